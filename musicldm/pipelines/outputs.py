"""What pipelines return."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from diffusers import AudioPipelineOutput
from torch import Tensor

from musicldm.editing.patches import Patch


@dataclass
class MusicLDMPipelineOutput(AudioPipelineOutput):
    """What a pipeline returns.

    audios: waveforms (B, L), or (B, A, L) of models that are not mono, NumPy or torch, float32; or latents
        (B, C, T/f, F/f) if those were asked for.
    sampling_rate: of the waveforms, in Hz.
    scores: (prompts, candidates), cosine similarity of each waveform and its prompt in CLAP's space, best first;
        None where nothing was ranked, as with one candidate for each prompt.
    novelty: for each waveform its nearest clips of the training set, a verdict and more; None unless a copy guard
        made the music.
    """

    audios: np.ndarray | Tensor
    sampling_rate: int | None = None
    scores: np.ndarray | Tensor | None = None
    novelty: list[dict] | None = None


@dataclass
class MusicLDMInpaintPipelineOutput(AudioPipelineOutput):
    """Recordings with new parts; a list has an entry for each of B edits.

    audios: samples in the source's rate, channels and number format, (L,) if the source was such an array, else (A, L);
        those that are kept are the source's to the bit. Or, if latents were asked for, a list of the latents
        (C, T/f, F/f) of each window.
    sampling_rate: of the source, in Hz; a list if sources differ.
    regions_s: what is new, in seconds from the beginning of the result.
    seams_s: where kept and new sound meet, in seconds from the beginning of the result.
    patches: the new samples as `musicldm.editing.patches.Patch`, for `musicldm.editing.writing.write_patched`.
    """

    audios: list[np.ndarray] | list[Tensor]
    sampling_rate: int | list[int]
    regions_s: list[list[tuple[float, float]]] = field(default_factory=list)
    seams_s: list[list[float]] = field(default_factory=list)
    patches: list[list[Patch]] = field(default_factory=list)
