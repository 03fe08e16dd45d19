"""CLAP as an embedder: waveforms (B, L) at any rate to unit vectors (B, D)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from musicldm.analysis.embedders import fingerprint
from musicldm.audio.resampling import resample
from musicldm.models.clap import embed_audio


class ClapEmbedder:
    """The audio half of a CLAP: unit vectors.

    Args:
        clap: the model.
        feature_extractor: its front end.
        music_rate: of the music that is to be compared, where that is lower than CLAP's: all other music is then heard
            through that rate as well, or its highest octaves would make it a stranger.
    """

    def __init__(self, clap, feature_extractor, music_rate: int | None = None):
        if clap is None or feature_extractor is None:
            raise ValueError("a CLAP embedding needs text_encoder and feature_extractor; the model lacks one of them")
        self.clap, self.feature_extractor = clap, feature_extractor
        rounded = "bfloat16-" if clap.dtype == torch.bfloat16 else ""  # whose vectors are others
        self.name = f"clap-{rounded}{fingerprint(clap, 'audio_')}"  # what prompts are read by may learn words
        self.music_rate = None
        if music_rate is not None and music_rate < feature_extractor.sampling_rate:
            self.music_rate, self.name = music_rate, f"{self.name}-{music_rate}-Hz"

    @classmethod
    def from_model(cls, folder: str | Path) -> ClapEmbedder:
        """The CLAP of a model folder, for music at the rate of its vocoder if there is one.

        Raises:
            FileNotFoundError: if the folder lacks ``text_encoder`` or ``feature_extractor``.
        """
        from transformers import ClapFeatureExtractor, ClapModel

        from musicldm.models.loading import load_part

        folder = Path(folder)
        clap = load_part(folder, "text_encoder", ClapModel, torch.float32)
        vocoder = folder / "vocoder" / "config.json"
        rate = json.loads(vocoder.read_text())["sampling_rate"] if vocoder.is_file() else None
        return cls(clap, load_part(folder, "feature_extractor", ClapFeatureExtractor, torch.float32), rate)

    @property
    def clip_s(self) -> float:
        """Seconds that one embedding hears."""
        return self.feature_extractor.nb_max_samples / self.feature_extractor.sampling_rate

    @property
    def size(self) -> int:
        return self.clap.config.projection_dim

    @torch.no_grad()
    def __call__(self, waveforms: Tensor, sample_rate: int) -> np.ndarray:
        if self.music_rate is not None and sample_rate > self.music_rate:
            waveforms, sample_rate = resample(waveforms, sample_rate, self.music_rate), self.music_rate
        return embed_audio(self.clap, self.feature_extractor, waveforms, sample_rate).float().cpu().numpy()
