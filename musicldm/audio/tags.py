"""The recipe of a generated piece inside its audio file, as JSON in the file's comment.

WAV: the ICMT entry of a LIST INFO chunk        FLAC: the comment that libsndfile writes
"""

from __future__ import annotations

import io
import json
import os
import struct
from pathlib import Path


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
        comment = wav_comment(file) if riff[:4] == b"RIFF" and riff[8:] == b"WAVE" else None
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


def with_wav_comment(content: bytes, comment: str) -> bytes:
    """``content`` of a WAV file with a LIST INFO chunk behind the samples; libsndfile drops comments beyond 2 kB."""
    text = comment.encode("ascii") + b"\0"
    entry = b"INFO" + b"ICMT" + struct.pack("<I", len(text)) + text + b"\0" * (len(text) % 2)
    content += b"\0" * (len(content) % 2) + b"LIST" + struct.pack("<I", len(entry)) + entry
    return b"RIFF" + struct.pack("<I", len(content) - 8) + content[8:]


def wav_comment(file: io.BufferedIOBase) -> str | None:
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
