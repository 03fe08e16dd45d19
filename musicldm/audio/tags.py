"""The recipe of a generated piece inside its audio file, as JSON in the file's comment.

WAV, RF64: the ICMT entry of a LIST INFO chunk behind the samples    FLAC, AIFF, CAF: the comment that libsndfile writes
"""

from __future__ import annotations

import io
import json
import os
import struct
from pathlib import Path
from typing import BinaryIO

APPENDED = ("WAV", "WAVEX", "RF64")  # containers whose comment `append_comment` writes


def read_recipe(path: str | Path) -> dict:
    """The recipe that `write_audio` stored in ``path``.

    Raises:
        OSError: if the file is missing, a folder, or may not be read.
        ValueError: if it is no audio or carries no recipe.
    """
    import soundfile

    path = Path(path)
    with path.open("rb") as file:
        comment = appended_comment(file)
    if comment is None:
        try:
            with soundfile.SoundFile(os.fsencode(path)) as file:
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


def append_comment(file: BinaryIO, comment: str) -> None:
    """Write ``comment``, ASCII, behind the samples of ``file``, a whole WAV or RF64 file that is open for both ways."""
    file.seek(0)
    is_rf64 = file.read(4) == b"RF64"
    text = comment.encode("ascii") + b"\0"
    entry = b"INFO" + b"ICMT" + struct.pack("<I", len(text)) + text + b"\0" * (len(text) % 2)
    size = file.seek(0, io.SEEK_END)
    file.write(b"\0" * (size % 2) + b"LIST" + struct.pack("<I", len(entry)) + entry)
    size = file.tell() - 8
    file.seek(20 if is_rf64 else 4)  # of RF64 in the chunk ds64, which comes first
    file.write(struct.pack("<Q" if is_rf64 else "<I", size))
    file.seek(0, io.SEEK_END)


def appended_comment(file: BinaryIO) -> str | None:
    """What `append_comment` wrote into ``file``; None for other files."""
    start = file.read(36)
    if start[:4] not in (b"RIFF", b"RF64") or start[8:12] != b"WAVE":
        return None
    data = struct.unpack("<Q", start[28:36])[0] if start[12:16] == b"ds64" else None  # bytes of samples
    file.seek(12)
    return wav_comment(file, data)


def wav_comment(file: BinaryIO, data_size: int | None = None) -> str | None:
    """The ICMT entry of the LIST INFO chunk of a WAV file that is open behind its 12 first bytes; None without one.

    ``data_size`` is that of an RF64 file's samples, whose chunk does not say it.
    """
    while len(header := file.read(8)) == 8:
        name, size = header[:4], struct.unpack("<I", header[4:])[0]
        size = data_size if name == b"data" and size == 0xFFFFFFFF and data_size is not None else size
        padded = size + size % 2
        if name == b"LIST" and file.read(4) == b"INFO":
            if (comment := _info_comment(file, file.tell() + padded - 4)) is not None:
                return comment
        else:
            file.seek(padded - 4 if name == b"LIST" else padded, io.SEEK_CUR)
    return None


def _info_comment(file: BinaryIO, end: int) -> str | None:
    """The ICMT entry among those from here to the byte ``end``; ``file`` is behind the last if there is none."""
    while file.tell() < end and len(header := file.read(8)) == 8:
        name, size = header[:4], struct.unpack("<I", header[4:])[0]
        if name == b"ICMT":
            return file.read(size).rstrip(b"\0").decode("utf-8", errors="replace")
        file.seek(size + size % 2, io.SEEK_CUR)
    return None
