"""Embedders: from waveforms to vectors.

    waveforms (B, L) at any rate  ->  float32 array (B, D)

Any object with ``name`` and ``__call__(waveforms, sample_rate)`` is an embedder, so that a network of another library
(VGGish, PANNs, MERT) needs only a few lines. `TransformersEmbedder` covers networks that transformers reads.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from musicldm.audio.resampling import resample
from vocoder import MelConfig, log_mel_spectrogram

# Parameters of log-mel spectrograms for measurements. They are the same for every model, whatever its own rate and
# bands, so that measures of different models can be compared.
JUDGE_MEL = MelConfig(sample_rate=16_000, n_fft=1024, hop_length=160, n_mels=64, f_min=0.0, f_max=8000.0, clip_s=10.24)


class Embedder(Protocol):
    """Interface of an embedding. ``name`` identifies it: only embeddings with the same name may be compared."""

    name: str

    def __call__(self, waveforms: Tensor, sample_rate: int) -> np.ndarray:
        """Embeddings (B, D) of ``waveforms (B, L)``."""
        ...


def log_mel_statistics(waveform: Tensor, config: MelConfig = JUDGE_MEL) -> Tensor:
    """Four statistics of each mel band, ``(B, 4 F)``, of ``waveform (B, L)``, in natural logarithms of magnitude.

    Mean over time (level), standard deviation over time (contrast), mean absolute change from frame to frame (onsets),
    and standard deviation of bands smoothed over half a second (phrasing).

    Examples:
        >>> log_mel_statistics(torch.zeros(1, 16_000)).shape  # 64 bands
        torch.Size([1, 256])
    """
    mel = log_mel_spectrogram(waveform, config)  # (B, T, F)
    frames = max(1, round(0.5 * config.sample_rate / config.hop_length))
    smooth = torch.nn.functional.avg_pool1d(
        mel.transpose(1, 2), frames, stride=max(1, frames // 4), padding=frames // 2, count_include_pad=False
    )
    statistics = (mel.mean(1), mel.std(1), mel.diff(dim=1).abs().mean(1), smooth.std(2))
    return torch.cat(statistics, dim=1)


class LogMelEmbedder:
    """`log_mel_statistics` as an embedder; it has no learned parameters."""

    name = "log-mel"

    def __init__(self, mel: MelConfig = JUDGE_MEL):
        self.mel = mel

    def __call__(self, waveforms: Tensor, sample_rate: int) -> np.ndarray:
        return log_mel_statistics(resample(waveforms, sample_rate, self.mel.sample_rate), self.mel).numpy()


class TransformersEmbedder:
    """A hidden layer, averaged over time, of a network for waveforms that transformers reads (wav2vec 2.0, MERT, ...).

    Args:
        folder: with the network and its ``preprocessor_config.json``.
        layer: index of the hidden layer; 0 is the input, the last layer is the default.
        trust_remote_code: run Python code from the folder, which MERT needs.

    Raises:
        FileNotFoundError: if there is no such folder.
    """

    def __init__(self, folder: str | Path, layer: int = -1, trust_remote_code: bool = False):
        from transformers import AutoFeatureExtractor, AutoModel

        if not Path(folder).is_dir():
            raise FileNotFoundError(f"there is no folder {folder}; give one that transformers can load a network from")
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

    Weights are rounded to float16 first, so that float32 and float16 copies of a network have the same fingerprint.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        if tensor.is_floating_point() and name.startswith(prefix):
            digest.update(name.encode() + tensor.detach().cpu().half().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]
