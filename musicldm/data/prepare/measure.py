"""Decodes, resamples and measures one recording of any format.

    file  ->  PyAV, mean over channels or both, soxr  ->  parts of some minutes  ->  FLAC and numbers

A file is read as a stream, so that memory does not grow with its length. Measurements are of the mean over channels.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from augment.mixup import SILENCE_LUFS, block_loudness, gated_loudness
from musicldm.audio.reading import CANCELLED, HIGHEST_RATE, doubt
from musicldm.data.analysis import analyse
from musicldm.data.prepare.duplicates import fingerprint
from musicldm.scores.facts import MAJOR_PROFILE, MINOR_PROFILE, key_name

LEAST_RATE = 8000  # Hz
MOST_CHANNELS = 2
LEAST_S = 0.5
SAMPLE_SHARE = 0.97  # least share of the stated length that must be present
STEP = 2**-15  # quantisation step; a recording whose samples span less is silent
GUESSED = ("mp3", "aac")  # formats whose length is not stated


class Part(NamedTuple):
    """A recording, or a part of a long one."""

    flac: bytes
    row: dict  # row of the index, without columns that depend on other recordings
    words: np.ndarray  # (T,) fingerprint


def decode(path: Path, sample_rate: int, channels: int = 1) -> Iterator[np.ndarray]:
    """Float32 blocks of ``path`` at ``sample_rate``: (L,), or with 2 ``channels`` (L, 2), duplicated for mono files.

    Raises:
        ValueError: if the file is not audio, damaged, ends early, or is not mono or stereo at 8 kHz or more.
    """
    import av
    import soxr

    with _opened(path) as (container, stream):
        rate = stream.rate
        stated_s = float(stream.duration * stream.time_base) if stream.duration else 0.0
        resample = soxr.ResampleStream(rate, sample_rate, channels, dtype="float32", quality="HQ")
        as_float = av.AudioResampler(format="fltp", layout=stream.layout, rate=rate)
        n, loudest, lowest, highest = 0, 0.0, math.inf, -math.inf
        for frame in container.decode(stream):
            for block in as_float.resample(frame):
                if not (frames := block.to_ndarray()).size:
                    continue
                mono = frames.mean(axis=0)
                if not np.isfinite(mono).all():
                    at = n + int(np.flatnonzero(~np.isfinite(mono))[0])
                    raise ValueError(f"has a sample that is not finite at {at / rate:.3f} s")
                n += len(mono)
                loudest = max(loudest, float(np.abs(frames).max()))
                lowest, highest = min(lowest, float(mono.min())), max(highest, float(mono.max()))
                kept = mono if channels == 1 else np.broadcast_to(frames, (2, len(mono))).T
                yield resample.resample_chunk(np.ascontiguousarray(kept))
        nothing = np.empty(0 if channels == 1 else (0, 2), np.float32)
        yield resample.resample_chunk(nothing, last=True)
        if container.format.name not in GUESSED and n / rate < SAMPLE_SHARE * stated_s - 0.1:
            raise ValueError(f"ends after {n / rate:.2f} of {stated_s:.2f} s")
        if n < LEAST_S * rate:
            raise ValueError(f"holds {n / rate:.2f} s of sound, {LEAST_S} s are needed")
        if max(highest, -lowest) < CANCELLED * loudest:
            raise ValueError("has channels that cancel each other, so that their mean is silent")
        if highest - lowest < STEP:
            raise ValueError(f"is silent: all its samples are {highest:.4g}")


@contextmanager
def _opened(path: Path) -> Iterator[tuple]:
    """The file and its first audio stream, once both are checked."""
    import av

    try:
        with av.open(str(path), metadata_errors="ignore") as container:
            if not container.streams.audio:
                raise ValueError("holds no audio")
            stream = container.streams.audio[0]
            if not LEAST_RATE <= stream.rate <= HIGHEST_RATE:
                raise ValueError(
                    f"has a rate of {stream.rate} Hz, {LEAST_RATE} Hz or more are needed, up to {HIGHEST_RATE} Hz"
                )
            if stream.codec_context.channels > MOST_CHANNELS:
                raise ValueError(f"has {stream.codec_context.channels} channels, mono or stereo is needed")
            yield container, stream
    except av.error.FFmpegError as error:
        raise ValueError(f"cannot be decoded ({error.strerror})") from error


def measure_file(path: Path, sample_rate: int, tracker: str, part_s: float, channels: int = 1) -> Iterator[Part]:
    """The parts of a recording that are not silent: one, unless it is longer than ``part_s`` seconds.

    Raises:
        ValueError: as in `decode`, or if all of it is silent.
        OSError: if the file cannot be read.
    """
    if path.is_dir():
        raise ValueError("is a folder")
    if not path.stat().st_size:
        raise ValueError("is empty")
    if early := doubt(path):  # PyAV does not notice it, since it takes the length from the file
        raise ValueError(early)
    blocks, held, number, sounding, most = [], 0, 0, 0, round(part_s * sample_rate)
    with _opened(path) as (_, stream):
        source = {"source_sample_rate_hz": stream.rate, "source_channels": stream.codec_context.channels}
    for block in decode(path, sample_rate, channels):
        while len(block):
            blocks.append(block[: most - held])
            held += len(blocks[-1])
            block = block[len(blocks[-1]) :]
            if held == most:
                part = measure(np.concatenate(blocks), sample_rate, tracker, {"part": number, **source})
                if part is not None:
                    sounding += 1
                    yield part
                blocks, held, number = [], 0, number + 1
    if held >= LEAST_S * sample_rate or not number:
        part = measure(np.concatenate(blocks), sample_rate, tracker, {"part": number, **source})
        if part is not None:
            sounding += 1
            yield part
    if not sounding:
        raise ValueError(f"is silent: it nowhere reaches {SILENCE_LUFS:.0f} LUFS")


def measure(waveform: np.ndarray, sample_rate: int, tracker: str, known: dict) -> Part | None:
    """Encode and measure ``waveform`` (L,) or (L, 2), clipped to -1 to 1 at 16 bits; None for silence."""
    import soundfile

    peak = float(np.abs(waveform).max())
    samples = np.round(waveform * 32768.0).clip(-32768, 32767).astype(np.int16)
    stored = samples.astype(np.float32) / 32768.0
    stored = stored if stored.ndim == 1 else stored.mean(axis=1)
    if math.isinf(gated_loudness(block_loudness(stored, sample_rate))):
        return None
    encoded = io.BytesIO()
    soundfile.write(encoded, samples, sample_rate, "PCM_16", format="FLAC")
    measured = analyse(stored, sample_rate, tracker)
    blocks = np.array(measured.pop("loudness_lufs"))
    loudness = gated_loudness(blocks)
    key, clarity = find_key(stored, sample_rate)
    row = known | {
        **measured,
        "peak": round(peak, 4),
        "loudness_lufs": None if math.isinf(loudness) else round(loudness, 2),
        "block_loudness_lufs": blocks.tolist(),
        "silence_share": round(float((blocks < SILENCE_LUFS).mean()), 4) if len(blocks) else 0.0,
        "key": key,
        "key_clarity": round(clarity, 4),
    }
    return Part(encoded.getvalue(), row, fingerprint(stored, sample_rate))


def find_key(waveform: np.ndarray, sample_rate: int) -> tuple[str | None, float]:
    """The key of ``waveform`` (L,), such as "C major", and its margin over the next best key, 0 to 1.

    Correlation of the energy of the twelve pitch classes with the profiles of Krumhansl and Kessler (1982); None where
    no correlation reaches 0.5. `musicldm.analysis.estimate_key` uses other profiles and bands. This one stays because
    its results are part of collections, and because it needs little memory for long recordings.
    """
    length = 2 ** round(math.log2(sample_rate / 4))  # 4 Hz apart
    energy = np.zeros(length // 2 + 1)
    window = np.hanning(length)
    for first in range(0, len(waveform) - length + 1, length // 2):
        energy += np.abs(np.fft.rfft(window * waveform[first : first + length]))
    hz = np.arange(len(energy)) * sample_rate / length
    heard = (hz > 100) & (hz < 2000)
    pitch = np.round(12 * np.log2(hz[heard] / 440) + 69).astype(int) % 12
    chroma = np.bincount(pitch, energy[heard], 12) / np.maximum(1, np.bincount(pitch, minlength=12))
    if not chroma.std() > 1e-9:
        return None, 0.0
    fits = []
    for mode, profile in (("major", MAJOR_PROFILE), ("minor", MINOR_PROFILE)):
        for tonic in range(12):
            fits.append((float(np.corrcoef(chroma, np.roll(profile, tonic))[0, 1]), tonic, mode))
    fits.sort(reverse=True)
    if fits[0][0] < 0.5:
        return None, 0.0
    return key_name(fits[0][1:]), fits[0][0] - fits[1][0]
