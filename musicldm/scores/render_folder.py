"""The folder that a rendering writes, and what is finished in it.

``metadata.jsonl`` has one JSON object a clip, ``errors.jsonl`` one for each score or row of an index that could not be
used; ``audio/`` has the clips and, where they are asked for, their notes. ``.render/config.json``, the mark of the
folder, holds the settings, and ``.render/`` beside it what was made of each score, and of which content.
"""

import hashlib
import io
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import soundfile

from musicldm.audio.output import write_whole

MARK = ".render/config.json"
WRITES = ("metadata.jsonl", "errors.jsonl", ".render/*", "audio/*-v*-c*.flac", "audio/*-v*-c*.mid")
END_BYTES = 2**16  # of a SoundFont, at each end, that tell it from another one


def printable(text: str) -> str:
    r"""``text`` with bytes of a file's name that are not UTF-8 as ``\xe9``."""
    return os.fsencode(text).decode("utf-8", "backslashreplace")


def fingerprint(path: Path, row: Mapping[str, str] | None) -> str:
    """What a rendering is made of: a hash of the score ``path`` and of its ``row`` of the index.

    Raises:
        ValueError: the score cannot be read.
    """
    try:
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256")
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror})") from error
    digest.update(json.dumps(row, sort_keys=True).encode())
    return digest.hexdigest()


def font_identity(path: Path) -> list:
    """Name, size and a hash of both ends of a SoundFont."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        ends = file.read(END_BYTES)
        file.seek(max(size - END_BYTES, 0))
        ends += file.read(END_BYTES)
    return [printable(path.name), size, hashlib.sha256(ends).hexdigest()]


class RenderFolder:
    """The folder ``path``; `begin` opens it."""

    def __init__(self, path: Path):
        self.path, self.state = path, path / ".render"

    def begin(self, settings: dict) -> None:
        """Leave the mark with ``settings``, or compare it with them; remove what an interrupted run left half written.

        Raises:
            ValueError: the folder was rendered with other settings.
        """
        now = json.loads(json.dumps(settings))
        mark = self.path / MARK
        if mark.exists():
            if not isinstance(there := _load(mark), dict):
                raise ValueError(f"{mark} is damaged; choose another folder, or remove {self.path}")
            for ours, theirs in zip(now["soundfonts"], there.get("soundfonts", []), strict=False):
                del ours[len(theirs) :]  # earlier versions kept name and size
            if other := [name for name in now if now[name] != there.get(name)]:
                said = "; ".join(f"{name} {there.get(name)}, now {now[name]}" for name in other)
                raise ValueError(
                    f"{self.path} holds renderings with other settings ({said}); choose another folder or remove it"
                )
        else:
            self.state.mkdir(parents=True, exist_ok=True)
            write_whole(mark, json.dumps(now, indent=1, sort_keys=True).encode())
        (self.path / "audio").mkdir(exist_ok=True)
        for pattern in ("audio/*-v*-c*.flac.tmp", "audio/.*.part", ".render/*.tmp", ".render/.*.part"):
            for left in self.path.glob(pattern):
                left.unlink()

    def finished(self, name: str, path: Path, row: Mapping[str, str] | None) -> list[dict] | None:
        """The clips of a score that an earlier run made of the same content; one that failed is tried again."""
        file = self._file(name)
        result = _load(file)
        if result is None or result["error"]:
            return None
        try:
            if "source" in result:
                same = result["source"] == fingerprint(path, row)
            else:  # earlier versions did not keep it
                same = path.stat().st_mtime <= file.stat().st_mtime
        except (OSError, ValueError):
            same = True  # the score is gone, its clips are not
        return result["rows"] if same else None

    def clear(self, name: str) -> bool:
        """Remove what there is of a score; whether there was anything that is replaced."""
        file = self._file(name)
        result = _load(file)
        file.unlink(missing_ok=True)  # first, so that no clip is listed that is not there
        for suffix in ("flac", "mid"):
            for clip in self.path.glob(f"audio/{slug(name)}-v*-c*.{suffix}"):
                clip.unlink()
        return bool(result and not result["error"])

    def write_clip(self, file_name: str, audio: np.ndarray, sample_rate: int) -> None:
        """Write ``audio`` (L, channels) as FLAC of 16 bits."""
        encoded = io.BytesIO()
        soundfile.write(encoded, audio, sample_rate, format="FLAC", subtype="PCM_16")
        write_whole(self.path / file_name, encoded.getvalue())

    def write_midi(self, file_name: str, content: bytes) -> None:
        """Write the MIDI file of a clip."""
        write_whole(self.path / file_name, content)

    def keep(self, result: dict) -> None:
        """Keep what became of a score: ``score``, ``rows``, ``error`` and ``source``."""
        write_whole(self._file(result["score"]), json.dumps(result, ensure_ascii=False).encode())

    def assemble(self, faults: Sequence[tuple[str, str]] = ()) -> dict[str, str]:
        """Write metadata.jsonl and errors.jsonl of all that is kept, and ``faults`` of other things; the errors."""
        kept = [r for path in self.state.glob("*.json") if path.name != "config.json" and (r := _load(path))]
        rows = sorted((row for result in kept for row in result["rows"]), key=lambda row: row["file_name"])
        errors = {result["score"]: result["error"] for result in kept if result["error"]}
        listed = [{"score": score, "error": error} for score, error in [*sorted(errors.items()), *faults]]
        for name, objects in (("metadata.jsonl", rows), ("errors.jsonl", listed)):
            if objects or (self.path / name).exists():
                text = "".join(json.dumps(o, ensure_ascii=False) + "\n" for o in objects)
                write_whole(self.path / name, text.encode())
        return errors

    def _file(self, name: str) -> Path:
        return self.state / f"{slug(name)}.json"


def slug(name: str) -> str:
    """The score called ``name`` as part of a file name of up to 70 letters, different for each."""
    stem = re.sub(r"[^A-Za-z0-9]+", "_", name.rsplit(".", 1)[0]).strip("_")
    return f"{stem[:60]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _load(path: Path) -> dict | None:
    """The JSON file ``path``; None where there is none, or none that can be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
