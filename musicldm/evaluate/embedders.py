"""Embedders: waveforms in, vectors out, behind one small interface.

    waveforms (B, L) at any rate  ->  float32 array (B, D)

Any object with ``name`` and ``__call__(waveforms, sample_rate)`` is one, so that a network from another library
(VGGish, PANNs, MERT) needs three lines around it; `TransformersEmbedder` covers what transformers reads.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from musicldm.clap import embed_audio, resample
from musicldm.evaluate.embeddings import log_mel_statistics
from vocoder import MelConfig


class Embedder(Protocol):
    """What the measures need of an embedding."""

    name: str

    def __call__(self, waveforms: Tensor, sample_rate: int) -> np.ndarray:
        """Embeddings (B, D) of ``waveforms (B, L)``."""
        ...


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

        from musicldm.loading import load_part

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


class LogMelEmbedder:
    """`log_mel_statistics`: no model, nothing learned."""

    name = "log-mel"

    def __init__(self, mel: MelConfig = MelConfig()):
        self.mel = mel

    def __call__(self, waveforms: Tensor, sample_rate: int) -> np.ndarray:
        return log_mel_statistics(resample(waveforms, sample_rate, self.mel.sample_rate), self.mel).numpy()


class TransformersEmbedder:
    """A network for waveforms that transformers reads (MERT, wav2vec 2.0, HuBERT, ...), averaged over time.

    Args:
        folder: with the network and its ``preprocessor_config.json``.
        layer: which hidden layer, counted from the input's 0; the last by default.
        trust_remote_code: run the Python that lies in the folder, as MERT's network is written there.
    """

    def __init__(self, folder: str | Path, layer: int = -1, trust_remote_code: bool = False):
        from transformers import AutoFeatureExtractor, AutoModel

        if not Path(folder).is_dir():
            raise FileNotFoundError(f"there is no folder {folder} with a network to embed with")
        self.model = AutoModel.from_pretrained(folder, trust_remote_code=trust_remote_code).eval()
        extractor = AutoFeatureExtractor.from_pretrained(folder, trust_remote_code=trust_remote_code)
        self.sample_rate, self.normalize = extractor.sampling_rate, getattr(extractor, "do_normalize", True)
        self.layer, self.name = layer, f"{Path(folder).name}-layer{layer}-{fingerprint(self.model)}"

    @torch.no_grad()
    def __call__(self, waveforms: Tensor, sample_rate: int) -> np.ndarray:
        heard = resample(waveforms, sample_rate, self.sample_rate)
        if self.normalize:
            heard = (heard - heard.mean(1, keepdim=True)) / (heard.std(1, keepdim=True) + 1e-7)
        states = self.model(heard, output_hidden_states=True).hidden_states  # (B, T, D) each
        return states[self.layer].mean(dim=1).numpy()


def fingerprint(module: torch.nn.Module, prefix: str = "") -> str:
    """12 hexadecimal digits of a network's weights whose names begin with ``prefix``.

    They are rounded to float16, so that it does not matter in which of float32 and float16 a network is kept.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        if tensor.is_floating_point() and name.startswith(prefix):
            digest.update(name.encode() + tensor.detach().cpu().half().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]
