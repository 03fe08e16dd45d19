"""Reading and writing of audio files.

    file  -> decode, mean over channels or both of them, resample ->  waveform (L,) or (2, L), float32, about -1 to 1
    waveform (L,) or (L, channels)  -> 16-bit PCM and a JSON comment ->  WAV or FLAC

Waveforms of models have channels first, files have them last: write ``waveform.T`` of a model's waveform (A, L).

Files are written completely or not at all: encoded in memory, written to a temporary file, then renamed.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import BinaryIO

import numpy as np

from musicldm.audio.loop_chunks import Loop, add_loop
from musicldm.audio.marks import add_mark
from musicldm.audio.output import write_whole
from musicldm.audio.reading import open_audio
from musicldm.audio.tags import append_comment

FORMATS = ("wav", "flac")
MOST_CHANNELS = 8  # of a file; more are assumed to be a waveform with channels first


def read_audio(
    path: str | Path, sample_rate: int | None = None, channels: int = 1, file: BinaryIO | None = None
) -> tuple[np.ndarray, int]:
    """Decode ``path`` (WAV, FLAC, Ogg, MP3, ...): waveform ``(L,)`` or ``(2, L)`` float32 and its rate in Hz.

    With ``channels=1`` the file's channels are averaged; with 2 a mono file gives two equal channels. With
    ``sample_rate`` the result is resampled (soxr, high quality). If ``file`` is given, it is read instead of ``path``.
    Problems of files that can still be read, such as an early end, are warnings.

    Raises:
        OSError: if the file is missing, a folder, or may not be read.
        ValueError: if it is not audio, has no samples, a rate below 1 kHz or above 768 kHz, NaN or infinite values, or
            more than two channels where 2 are wanted.
    """
    import soxr

    path = Path(path)
    with open_audio(path, file) as sound:
        rate = sound.rate
        waveform = np.concatenate([with_channels(block, channels, path) for block in sound.blocks()])  # (L,) or (L, 2)
    if sample_rate is not None and sample_rate != rate:
        waveform = soxr.resample(waveform, rate, sample_rate, quality="HQ")
        rate = sample_rate
        if not len(waveform):
            raise ValueError(f"{path} is shorter than one sample at {sample_rate} Hz; give a longer recording")
    return np.ascontiguousarray(waveform.T), rate


def with_channels(frames: np.ndarray, channels: int, path: str | Path) -> np.ndarray:
    """``frames (L, n)`` of the file ``path`` as their mean (L,), or for 2 ``channels`` as (L, 2).

    Raises:
        ValueError: if 2 channels are wanted and the file has more.
    """
    if channels == 1:
        return frames.mean(axis=1)
    if frames.shape[1] > 2:
        raise ValueError(f"{path} has {frames.shape[1]} channels, more than stereo; mix it down to two first")
    return np.broadcast_to(frames, (len(frames), channels))


def write_audio(
    path: str | Path,
    waveform: np.ndarray,
    sample_rate: int,
    recipe: dict | None = None,
    mark: str | None = None,
    loop: Loop | None = None,
) -> None:
    """Write ``waveform`` (L,) or (L, channels) as 16-bit PCM; the suffix, ``.wav`` or ``.flac``, names the format.

    ``recipe`` is stored as JSON in the file's comment, ``mark`` as `musicldm.audio.marks` describes, and ``loop`` in
    the chunks of `musicldm.audio.loop_chunks`, which only WAV has. Levels are never changed: scale or clip before. Give
    a model's waveform, (L,) or (A, L), as ``waveform.T``.

    Raises:
        ValueError: if the suffix is another one, or samples are missing, not finite or beyond -1 to 1.
        OSError: if the file cannot be written; nothing is left behind.
    """
    import soundfile

    path = Path(path)
    kind = path.suffix[1:].lower()
    if kind not in FORMATS:
        raise ValueError(f"cannot write {path}: the name must end in {' or '.join('.' + name for name in FORMATS)}")
    waveform = np.asarray(waveform)
    if waveform.ndim not in (1, 2) or not waveform.size:
        raise ValueError(f"a waveform must be (samples,) or (samples, channels) and not empty, got {waveform.shape}")
    if waveform.ndim == 2 and waveform.shape[1] > MOST_CHANNELS:
        raise ValueError(
            f"a file has up to {MOST_CHANNELS} channels, got {waveform.shape}; transpose (channels, samples)"
        )
    if not (peak := float(np.abs(waveform).max())) <= 1.0:  # NaN fails this comparison too
        raise ValueError(
            f"samples must lie between -1 and 1, got a peak of {peak:.4g}; scale or clip the waveform first"
        )
    # ASCII, with everything else escaped: the comment of a WAV file has no declared encoding.
    comment = json.dumps(recipe) if recipe is not None else None
    # Not left to libsndfile, which truncates for WAV, rounds for FLAC, and scales differently when it reads.
    samples = np.round(waveform * 32768.0).clip(-32768, 32767).astype(np.int16)
    encoded = io.BytesIO()
    with soundfile.SoundFile(
        encoded, "w", sample_rate, 1 if waveform.ndim == 1 else waveform.shape[1], "PCM_16", format=kind
    ) as file:
        if comment is not None and kind == "flac":
            file.comment = comment
        file.write(samples)
    if comment is not None and kind == "wav":
        append_comment(encoded, comment)
    if loop is not None and kind == "wav":
        add_loop(encoded, loop, len(samples), sample_rate)
    if mark is not None:
        add_mark(encoded, mark)
    write_whole(path, encoded.getvalue())
