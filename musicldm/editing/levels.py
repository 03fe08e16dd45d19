"""Matches the output of a model to the loudness, tone and panning of the recording around it.

new sound, kept sound beside it  ->  gains of bands, smooth in frequency and time  ->  new sound as loud
new channels, kept channels      ->  a gain for each channel                       ->  new sound in as many channels

A model also makes the kept sound beside a region. The difference between its bands and those of the recording is an
error of the model and its vocoder, and is corrected in the region.
"""

from __future__ import annotations

import numpy as np
import torch

from musicldm.analysis.waveforms import SILENCE
from musicldm.editing.source import Source
from vocoder import MelConfig, log_mel_spectrogram
from vocoder.match import CEILING, bin_weights, framing, limit
from vocoder.mel import mel_filters

BANDS = 20
FRAME_S, HOP_S = 0.064, 0.016
HEARD_S = 1.5  # seconds of kept sound beside a region that determine its level
HEARD = 5.0  # natural logarithm: levels more than 43 dB below the loudest are not compared
FEWEST = 0.25  # least share of frames for comparing a band; other bands get the overall gain
MOST_GAIN = 1.15  # natural logarithm, 10 dB up or down
LOOK_AHEAD_S = 0.01  # of the limiter
WIDE, HIGH = 0.1, 0.01  # shares of the amplitude from which a side channel, or sound above the bands, is reported


def level_frames(rate: int) -> MelConfig:
    """Parameters of the spectrogram for comparing levels."""
    return MelConfig(
        sample_rate=rate,
        n_fft=2 ** round(np.log2(FRAME_S * rate)),
        hop_length=max(1, round(HOP_S * rate)),
        n_mels=BANDS,
        f_max=rate / 2,
    )


def band_gains(old: np.ndarray, new: np.ndarray, rate: int) -> np.ndarray:
    """Gains (F,), natural logarithm, that bring each band of ``new (n,)`` to the level of ``old (n,)``.

    The median over the frames in which the band is audible in ``old``; 0 where nothing is audible.
    """
    config = level_frames(rate)
    if len(old) <= config.n_fft // 2 or min(np.abs(old).max(), np.abs(new).max()) < SILENCE:
        return np.zeros(BANDS)
    pair = torch.from_numpy(np.stack([old, new]).astype(np.float32))
    wanted, found = log_mel_spectrogram(pair / pair.abs().max(), config).numpy()  # (T, F) each
    edge = -(-config.n_fft // 2 // config.hop_length)  # frames that hear sound reflected at an end
    if len(wanted) > 2 * edge:
        wanted, found = wanted[edge:-edge], found[edge:-edge]
    heard = wanted > wanted.max() - HEARD
    differences = np.where(heard, wanted - found, np.nan)
    gains = np.full(BANDS, np.median(differences[heard]))
    for band in np.flatnonzero(heard.mean(axis=0) >= FEWEST):
        gains[band] = np.nanmedian(differences[:, band])
    smooth = np.convolve(np.pad(gains, 1, mode="edge"), [0.25, 0.5, 0.25], mode="valid")
    return smooth.clip(-MOST_GAIN, MOST_GAIN)


def with_gains(new: np.ndarray, gains: np.ndarray, rate: int) -> np.ndarray:
    """``new (A, n)`` with the gains (T, F) of bands in its frames, natural logarithm."""
    config = level_frames(rate)
    if new.shape[1] <= config.n_fft // 2 or not gains.any():
        return new
    samples = torch.from_numpy(np.ascontiguousarray(new))
    frame = framing(samples, config)
    spectrum = torch.stft(samples, **frame, return_complex=True)  # (A, K, T)
    spread = bin_weights(mel_filters(config)).double()
    spread[:, -1], spread[:, 0] = spread[:, -2], spread[:, 1]  # bins at the edges, which lie in no band
    by_bin = (torch.from_numpy(gains).double() @ spread).exp().T  # (K, T)
    return torch.istft(spectrum * by_bin, **frame, length=new.shape[1]).numpy()


def levelled(new: np.ndarray, old: np.ndarray, region: tuple[int, int], kept: tuple[int, int], rate: int) -> np.ndarray:
    """``new (A, n)``, mono or stereo, with the levels that ``old (n,)``, the recording's mean channel, has beside it.

    The gains are measured to the left and to the right of ``region`` (samples), and interpolated in between. If only
    one side lies in ``kept``, the samples that belong to the recording, its gains are used throughout.
    """
    heard = round(HEARD_S * rate)
    start, stop = region
    sides = [(max(kept[0], start - heard), start), (stop, min(kept[1], stop + heard))]
    mean = new.mean(axis=0)
    gains = [band_gains(old[a:b], mean[a:b], rate) if b - a > FRAME_S * rate else None for a, b in sides]
    left, right = gains
    if left is None and right is None:
        return new
    left = right if left is None else left
    right = left if right is None else right
    hop = level_frames(rate).hop_length
    frames = np.arange(1 + new.shape[1] // hop) * hop
    share = np.clip((frames - start) / max(1, stop - start), 0, 1)[:, None]
    return with_gains(new, left * (1 - share) + right * share, rate)


def placed(new: np.ndarray, old: np.ndarray) -> np.ndarray:
    """``new (A', n)`` with as many channels as ``old (A, m)``, the kept sound beside it.

    Mono sound is distributed by the relative levels of the channels in ``old``, so that the mean of the channels is the
    mono sound. Stereo stays stereo, and is mixed to mono first for any other number of channels.
    """
    if len(new) == len(old):
        return new
    mono = new.mean(axis=0, keepdims=True)
    loudness = np.sqrt(np.square(old).mean(axis=1, keepdims=True)) if old.size else np.ones((len(old), 1))
    if loudness.max() < SILENCE:
        return np.repeat(mono, len(old), axis=0)
    return mono * loudness / loudness.mean()


def limited(new: np.ndarray, old: np.ndarray, rate: int) -> np.ndarray:
    """``new (A, n)`` nowhere louder than full scale, or than ``old (A, m)`` is if that is louder."""
    ceiling = max(CEILING, float(np.abs(old).max(initial=0.0)))
    if np.abs(new).max(initial=0.0) <= ceiling:
        return new
    samples = torch.from_numpy(np.ascontiguousarray(new)) * (CEILING / ceiling)
    return (limit(samples[None], max(1, round(LOOK_AHEAD_S * rate)))[0] * (ceiling / CEILING)).numpy()


def limits(source: Source, region: tuple[int, int], mel: MelConfig) -> str | None:
    """One line about what ``source`` has around ``region`` (samples) and the model cannot make; None if nothing.

    Args:
        source: the recording.
        region: first sample, and sample after the last.
        mel: the model's spectrogram, with its channels and its highest frequency.
    """
    reach = round(2 * HEARD_S * source.rate)
    sides = (max(0, region[0] - reach), max(0, region[0])), (region[1], region[1] + reach)
    kept = [source.read(*(min(at, source.length) for at in side)) for side in sides]
    kept = [side for side in kept if side.shape[1] > 1]
    loudness = np.sqrt(sum(np.square(side).sum() for side in kept))
    if not loudness > 0:
        return None
    lacks = []
    top = min(mel.f_max, mel.sample_rate / 2)
    if source.rate / 2 > top:
        high = np.sqrt(sum(_energy_above(side, top, source.rate) for side in kept))
        if high > HIGH * loudness:
            lacks.append(f"above {top / 1000:g} kHz")
    if source.channels > mel.audio_channels:
        apart = np.sqrt(sum(np.square(side - side.mean(axis=0)).sum() for side in kept))
        if apart > WIDE * loudness:
            lacks.append("in the differences of channels" if source.channels > 2 else "in a side channel")
    if not lacks:
        return None
    return f"{source.name} has sound {' and '.join(lacks)}, which the model does not make: what is new lacks it"


def _energy_above(samples: np.ndarray, frequency: float, rate: int) -> float:
    """The energy of ``samples (A, n)`` above ``frequency`` in Hz."""
    n = samples.shape[1]
    spectrum = np.fft.rfft(samples * np.hanning(n + 2)[1:-1], axis=1)
    above = np.fft.rfftfreq(n, 1 / rate) > 1.02 * frequency
    share = np.square(np.abs(spectrum[:, above])).sum() / max(np.square(np.abs(spectrum)).sum(), 1e-30)
    return float(share * np.square(samples).sum())
