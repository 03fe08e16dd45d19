"""What a generation returns."""

from dataclasses import dataclass

import numpy as np
from diffusers import AudioPipelineOutput
from torch import Tensor


@dataclass
class MusicLDMPipelineOutput(AudioPipelineOutput):
    """What the pipeline returns.

    audios: waveforms (B, L), NumPy or torch, float32; or latents (B, C, T/f, F/f) if those were asked for.
    sampling_rate: of the waveforms, in Hz.
    scores: (prompts, candidates), cosine similarity of each waveform and its prompt in CLAP's space, best first;
        None where nothing was ranked, as with one candidate for each prompt.
    novelty: for each waveform its nearest clips of the training set, a verdict and more; None unless asked for.
    """

    audios: np.ndarray | Tensor
    sampling_rate: int | None = None
    scores: np.ndarray | Tensor | None = None
    novelty: list[dict] | None = None
