"""Audio files: recordings in, waveforms out, and the recipe of a generated piece inside its file.

    file  -> decode, mean over channels, resample ->  waveform (L,), float32, about -1 to 1
    waveform (L,)  -> 16-bit PCM and a JSON comment ->  WAV or FLAC

Files are written whole or not at all: encoded in memory, written beside their place, then moved into it.
"""

from __future__ import annotations

import io
import json
import os
import re
import struct
import unicodedata
from pathlib import Path

import numpy as np

FORMATS = ("wav", "flac")
LONGEST_NAME = 60  # characters of a text that become part of a file's name; 255 bytes is what file systems take
BLOCK = 2**18  # frames decoded at a time, so that the channels of a long recording are never all in memory


def read_audio(path: str | Path, sample_rate: int | None = None) -> tuple[np.ndarray, int]:
    """Decode ``path`` (WAV, FLAC, Ogg, MP3, ...): mono waveform ``(L,)`` float32 and its rate in Hz.

    Channels are averaged. With ``sample_rate`` the result is resampled to it (soxr, high quality).

    Raises:
        OSError: if the file is missing, a folder, or may not be read.
        ValueError: if it is no audio, has no samples, or holds NaN or infinite values.
    """
    import soundfile
    import soxr

    path = Path(path)
    with path.open("rb") as file:  # the operating system's own errors, which libsndfile words poorly
        if not file.read(1):
            raise ValueError(f"{path} is an empty file; give a recording (WAV, FLAC, Ogg or MP3)")
    if path.suffix.lower() == ".raw":
        raise ValueError(f"{path} is raw audio without rate and format; convert it to WAV or FLAC first")
    try:
        with soundfile.SoundFile(path) as file:
            rate = file.samplerate
            blocks = []
            while len(block := file.read(BLOCK, dtype="float32", always_2d=True)):
                blocks.append(block.mean(axis=1))
    except soundfile.LibsndfileError as error:
        raise ValueError(
            f"{path} cannot be read as audio ({error.error_string.rstrip('. ')}); give WAV, FLAC, Ogg or MP3"
        ) from error
    if not blocks:
        raise ValueError(f"{path} holds no samples; give a recording of at least one frame")
    waveform = np.concatenate(blocks)
    if not np.isfinite(waveform).all():
        at = int(np.flatnonzero(~np.isfinite(waveform))[0])
        raise ValueError(f"{path} holds {waveform[at]} at {at / rate:.3f} s; repair the file or leave it out")
    if sample_rate is not None and sample_rate != rate:
        waveform = soxr.resample(waveform, rate, sample_rate, quality="HQ")
        rate = sample_rate
        if not len(waveform):
            raise ValueError(f"{path} is shorter than one sample at {sample_rate} Hz")
    return waveform, rate


def write_audio(path: str | Path, waveform: np.ndarray, sample_rate: int, recipe: dict | None = None) -> None:
    """Write ``waveform`` (L,) or (L, channels) as 16-bit PCM; the suffix, ``.wav`` or ``.flac``, names the format.

    ``recipe`` is stored as JSON in the file's comment. Levels are never changed: scale or clip before.

    Raises:
        ValueError: if the suffix is another one, or the samples are none, not finite or beyond -1 to 1.
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
    content = encoded.getvalue()
    if comment is not None and kind == "wav":
        content = _with_wav_comment(content, comment)
    write_whole(path, content)


def read_recipe(path: str | Path) -> dict:
    """The recipe that `write_audio` stored in ``path``.

    Raises:
        OSError: if the file is missing, a folder, or may not be read.
        ValueError: if it is no audio or carries no recipe.
    """
    import soundfile

    path = Path(path)
    with path.open("rb") as file:
        riff = file.read(12)
        comment = _wav_comment(file) if riff[:4] == b"RIFF" and riff[8:] == b"WAVE" else None
    if comment is None:
        try:
            with soundfile.SoundFile(path) as file:
                comment = file.comment
        except (soundfile.LibsndfileError, TypeError) as error:  # TypeError: a headerless .raw file
            raise ValueError(f"{path} cannot be read as audio; give a file that `musicldm generate` wrote") from error
    try:
        recipe = json.loads(comment)
    except json.JSONDecodeError:
        recipe = None
    if not isinstance(recipe, dict):
        raise ValueError(f"{path} carries no recipe; only files written by musicldm, and not re-encoded since, do")
    return recipe


def write_whole(path: str | Path, content: bytes) -> None:
    """Write ``content`` to ``path`` so that, whatever fails, ``path`` is either as before or complete."""
    path = Path(path)
    temporary = path.with_name(f".{path.name[:200]}.{os.getpid()}.part")  # the same folder, so the same disk
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # a disk that fills up may say so only now
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _with_wav_comment(content: bytes, comment: str) -> bytes:
    """``content`` of a WAV file with a LIST INFO chunk behind the samples; libsndfile drops comments beyond 2 kB."""
    text = comment.encode("ascii") + b"\0"
    entry = b"INFO" + b"ICMT" + struct.pack("<I", len(text)) + text + b"\0" * (len(text) % 2)
    content += b"\0" * (len(content) % 2) + b"LIST" + struct.pack("<I", len(entry)) + entry
    return b"RIFF" + struct.pack("<I", len(content) - 8) + content[8:]


def _wav_comment(file: io.BufferedIOBase) -> str | None:
    """The ICMT entry of the LIST INFO chunk of a WAV file that is open behind its 12 first bytes; None without one."""
    while len(header := file.read(8)) == 8:
        name, size = header[:4], struct.unpack("<I", header[4:])[0]
        padded = size + size % 2
        if name == b"LIST" and file.read(4) == b"INFO":
            end = file.tell() + padded - 4
            while file.tell() < end and len(header := file.read(8)) == 8:
                name, size = header[:4], struct.unpack("<I", header[4:])[0]
                if name == b"ICMT":
                    return file.read(size).rstrip(b"\0").decode("utf-8", errors="replace")
                file.seek(size + size % 2, io.SEEK_CUR)
        else:
            file.seek(padded - 4 if name == b"LIST" else padded, io.SEEK_CUR)
    return None


def slug(text: str) -> str:
    """``text`` as part of a file name: lower-case letters and digits of any script, joined by hyphens."""
    words = re.findall(r"[^\W_]+", unicodedata.normalize("NFKC", text).lower())
    joined = "-".join(words)
    while len(joined) > LONGEST_NAME or len(joined.encode()) > 3 * LONGEST_NAME:
        joined = joined[:-1]
    return joined.strip("-") or "music"


def free_name(folder: Path, stem: str, suffixes: tuple[str, ...]) -> Path:
    """``folder/stem`` (without suffix), numbered if a file of that name with one of ``suffixes`` is there."""
    name, number = stem, 1
    while any((folder / f"{name}{suffix}").exists() for suffix in suffixes):
        number += 1
        name = f"{stem}_{number}"
    return folder / name
