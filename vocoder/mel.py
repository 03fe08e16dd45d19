"""Log-mel spectrograms, as all parts of the package compute them.

    waveform (B, L)  -> clip, STFT magnitude, mel filters, logarithm ->  log-mel (B, T, F)

Magnitudes (not powers) of centred frames with reflected edges, Slaney mel filters with area normalisation, natural
logarithm: what HiFi-GAN (Kong et al., 2020, https://arxiv.org/abs/2010.05646) and the published MusicLDM use.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from functools import lru_cache

import torch
from torch import Tensor

ADDED = ("audio_channels", "bands_per_row")  # fields that configurations of mono models leave out


@dataclass(frozen=True, repr=False)
class MelConfig:
    """Parameters of log-mel spectrograms and of their audio; stored as ``mel`` in the vocoder's ``config.json``."""

    sample_rate: int = 16_000  # Hz
    n_fft: int = 1024  # samples, also the length of the Hann window
    hop_length: int = 160  # samples
    n_mels: int = 64
    f_min: float = 0.0  # Hz
    f_max: float = 8000.0  # Hz
    floor: float = 1e-5  # lower magnitudes are raised to it
    clip_s: float = 10.24  # seconds of one training clip
    audio_channels: int = 1  # of waveforms: 1, or 2 for stereo, whose spectrogram has three planes (vocoder.planes)
    bands_per_row: int = 1  # neighbouring mel bands that the VAE gets as channels of one row

    def __post_init__(self):
        for name in ("sample_rate", "n_fft", "hop_length", "n_mels"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.hop_length > self.n_fft:
            raise ValueError(
                f"hop_length ({self.hop_length}) must not exceed n_fft ({self.n_fft}): samples would be lost"
            )
        if not 0 <= self.f_min < self.f_max <= self.sample_rate / 2:
            raise ValueError(
                f"mel bands need 0 <= f_min < f_max <= {self.sample_rate / 2} Hz (half the sample rate), "
                f"got {self.f_min} to {self.f_max}"
            )
        if not self.floor > 0:
            raise ValueError(f"floor must be positive, got {self.floor}")
        if not self.clip_s > 0:
            raise ValueError(f"clip_s must be positive, got {self.clip_s}")
        if self.audio_channels not in (1, 2):
            raise ValueError(f"audio_channels must be 1 (mono) or 2 (stereo), got {self.audio_channels}")
        if self.bands_per_row < 1 or self.n_mels % self.bands_per_row:
            raise ValueError(f"bands_per_row must divide n_mels ({self.n_mels}), got {self.bands_per_row}")

    def __repr__(self) -> str:
        """The fields of `mel_to_dict`, so that digests of mono configurations do not change."""
        return f"MelConfig({', '.join(f'{name}={value!r}' for name, value in mel_to_dict(self).items())})"

    @property
    def planes(self) -> int:
        """Planes of the spectrogram: 1 for mono; 3 for stereo (mid, side and balance)."""
        return 1 if self.audio_channels == 1 else 3

    @property
    def clip_samples(self) -> int:
        """Samples of one training clip."""
        return round(self.clip_s * self.sample_rate)

    @property
    def clip_frames(self) -> int:
        """Frames of one training clip; the centred last frame is left out."""
        return self.clip_samples // self.hop_length


def log_mel_spectrogram(waveform: Tensor, config: MelConfig) -> Tensor:
    """Log-mel spectrogram ``(B, T, F)`` of ``waveform (B, L)``; T = 1 + L // hop_length. Differentiable.

    Samples are clipped to [-1, 1]. Computed in the waveform's dtype, at least float32.

    Raises:
        ValueError: if the waveform is not (B, L), or too short to be reflected at its edges (n_fft // 2 samples).
    """
    if waveform.ndim != 2:
        raise ValueError(f"waveform must be (batch, samples), got shape {tuple(waveform.shape)}")
    if waveform.shape[1] <= config.n_fft // 2:
        raise ValueError(
            f"a waveform of {waveform.shape[1]} samples is too short for frames of {config.n_fft}: "
            f"give at least {config.n_fft // 2 + 1} samples (pad with zeros)"
        )
    mel = magnitude(waveform, config) @ mel_filters(config).to(waveform.device, _at_least_float32(waveform)).T
    return mel.clamp(min=config.floor).log()  # (B, T, F)


def magnitude(waveform: Tensor, config: MelConfig) -> Tensor:
    """Magnitudes ``(B, T, n_fft // 2 + 1)`` of the centred short-time Fourier transform of ``waveform (B, L)``."""
    waveform = waveform.to(_at_least_float32(waveform)).clamp(-1.0, 1.0)
    window = torch.hann_window(config.n_fft, device=waveform.device, dtype=waveform.dtype)
    spectrum = torch.stft(waveform, config.n_fft, config.hop_length, window=window, return_complex=True)  # (B, K, T)
    # The gradient of |z| at exactly z = 0 is taken as 0 by torch, so silence does not produce NaN.
    return spectrum.abs().transpose(1, 2)


def _at_least_float32(waveform: Tensor) -> torch.dtype:
    return torch.promote_types(waveform.dtype, torch.float32)


def hz_to_mel(frequency: Tensor) -> Tensor:
    """Slaney's scale: linear below 1 kHz (3 mel per 200 Hz), logarithmic above (27 mel per factor 6.4)."""
    linear = frequency * 3.0 / 200.0
    return torch.where(
        frequency < 1000.0, linear, 15.0 + 27.0 * (frequency.clamp(min=1.0) / 1000.0).log() / math.log(6.4)
    )


def mel_to_hz(mel: Tensor) -> Tensor:
    """Inverse of `hz_to_mel`."""
    return torch.where(mel < 15.0, mel * 200.0 / 3.0, 1000.0 * ((mel - 15.0) * math.log(6.4) / 27.0).exp())


@lru_cache(maxsize=8)
@torch.inference_mode(False)  # a cached tensor made in inference mode could not take part in training later
def mel_filters(config: MelConfig) -> Tensor:
    """Triangular filters ``(F, n_fft // 2 + 1)``, float32, each of unit area in Hz: those of `librosa.filters.mel`.

    Computed here for two reasons. Importing librosa takes seconds. `transformers.audio_utils.mel_filter_bank` gives the
    same values at even sample rates, but at odd ones, such as 11,025 Hz, it rounds half the rate down.
    """
    bins = torch.linspace(0, config.sample_rate / 2, config.n_fft // 2 + 1, dtype=torch.float64)  # Hz, (K,)
    low, high = hz_to_mel(torch.tensor([config.f_min, config.f_max], dtype=torch.float64)).tolist()
    edges = mel_to_hz(torch.linspace(low, high, config.n_mels + 2, dtype=torch.float64))  # Hz, (F + 2,)
    width = edges.diff()
    ramps = edges[:, None] - bins[None, :]  # (F + 2, K)
    rising = -ramps[:-2] / width[:-1, None]
    falling = ramps[2:] / width[1:, None]
    filters = torch.minimum(rising, falling).clamp(min=0) * (2.0 / (edges[2:] - edges[:-2]))[:, None]
    return filters.float()


def mel_from_dict(values: dict) -> MelConfig:
    """A `MelConfig` from the ``mel`` entry of a vocoder's ``config.json``; unknown keys are an error."""
    known = {field.name for field in fields(MelConfig)}
    if unknown := sorted(set(values) - known):
        raise ValueError(f"the vocoder's mel entry has unknown keys {unknown}; known are {sorted(known)}")
    return MelConfig(**values)


def mel_to_dict(config: MelConfig) -> dict:
    """The ``mel`` entry of a vocoder's ``config.json``; `ADDED` fields only where they are not the default's."""
    added = {field.name: field.default for field in fields(MelConfig) if field.name in ADDED}
    return {name: value for name, value in asdict(config).items() if name not in added or value != added[name]}
