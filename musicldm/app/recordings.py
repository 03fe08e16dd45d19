"""Recordings that clients sent with a request: kept for as long as a job or a result needs them.

    upload -> OUT/.musicldm/uploads/TOKEN.wav, decoded, and TOKEN.json: whose it is, its own name and hash

A job needs the recording that it edits, or goes along with, until it has ended. A result that was made along with one
needs it for retakes; deleted results do too, as they can be brought back.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel

from musicldm.app.library import Library, StoredJob
from musicldm.app.options import Options
from musicldm.app.uploads import Upload, decode
from musicldm.audio.output import write_whole


class Sent(BaseModel):
    """What is known of a recording."""

    client: str
    name: str  # of the client's own file
    sha256: str  # of that file


class Recordings:
    """The recordings in ``folder``; safe for several threads, as each has a file of its own."""

    def __init__(self, folder: Path, library: Library, options: Options):
        self.folder, self.library, self.options = folder, library, options

    def keep(self, upload: Upload, client: str) -> Path:
        """The WAV file of an upload, until `release` or `remove`; the upload itself is removed.

        Raises:
            OSError: if it cannot be written.
            ValueError: if it cannot be decoded.
        """
        path = decode(upload.path, self.options).path
        try:
            about = Sent(client=client, name=upload.name, sha256=upload.sha256)
            write_whole(path.with_suffix(".json"), about.model_dump_json().encode())
        except OSError:
            self.remove(path)
            raise
        return path

    def about(self, path: Path) -> Sent | None:
        """What is known of the recording ``path``; None if it is none of these."""
        if path.parent != self.folder:
            return None
        try:
            return Sent.model_validate_json(path.with_suffix(".json").read_bytes())
        except FileNotFoundError:
            return None

    def find(self, client: str, sha256: str) -> Path | None:
        """The recording that ``client`` sent as a file of this hash; None if it is not here."""
        for path in sorted(self.folder.glob("*.wav")):
            about = self.about(path)
            if about is not None and (about.client, about.sha256) == (client, sha256):
                return path
        return None

    def remove(self, path: Path) -> None:
        """Remove a recording, as far as it is there."""
        for one in (path, path.with_suffix(".json")):
            one.unlink(missing_ok=True)

    def release(self, job: StoredJob) -> None:
        """Remove the recordings of a job that has ended, unless something else needs them."""
        sent = [path for path in map(Path, named_in(job.requests)) if path.parent == self.folder]
        self._remove_unneeded(sent)

    def tidy(self) -> None:
        """Remove what no job and no result needs; for a start, when nothing is on its way."""
        if self.folder.is_dir():
            self._remove_unneeded([path for path in self.folder.iterdir() if path.suffix != ".json"])
            for described in self.folder.glob("*.json"):
                if not described.with_suffix(".wav").is_file():
                    described.unlink(missing_ok=True)

    def _remove_unneeded(self, paths: list[Path]) -> None:
        wanted = {Path(name).name for job in self.library.unfinished() for name in named_in(job.requests)}
        for path in paths:
            about = self.about(path)
            of_a_result = about is not None and self.library.is_along(about.client, about.sha256)
            if path.name not in wanted and not of_a_result:
                self.remove(path)

    def names(self, request: dict) -> dict[str, str]:
        """What a recipe is to say of the recordings of a ``request``: the names and hashes of the client's files."""
        found = {}
        for field, path in (("source", request.get("source")), ("along", along_of(request))):
            if path is not None:
                sent = self.about(Path(path))
                own = {} if sent is None else {f"{field}_sha256": sent.sha256}
                found |= {field: Path(path).name if sent is None else sent.name} | own
        return found


def along_of(request: dict) -> str | None:
    """The recording that a request, or the music of a retake, goes along with."""
    return request.get("along") or (request.get("music") or {}).get("along")


def named_in(requests: tuple[dict, ...]) -> set[str]:
    """The recordings that requests of a job are made of."""
    return {path for one in requests for path in (one.get("source"), along_of(one)) if path is not None}
