"""The results of a server: ordinary files in a folder, and an SQLite index of them that can be made again.

    OUT/NAME.wav with its recipe inside, OUT/NAME.png   <->   rows of results in OUT/.musicldm/app.sqlite3

Jobs are kept in the same database, so that those that were waiting or running go on after a restart.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from musicldm.audio import read_recipe
from musicldm.audio.output import free_name, slug

STATE = ".musicldm"
DATABASE = "app.sqlite3"
SUFFIXES = (".wav", ".flac", ".png", ".mid")  # which the files of a result may have
SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL, client TEXT NOT NULL, kind TEXT NOT NULL,
    model TEXT NOT NULL, requests TEXT NOT NULL, parent TEXT, status TEXT NOT NULL, error TEXT, created REAL NOT NULL);
CREATE TABLE IF NOT EXISTS results (
    id TEXT PRIMARY KEY, job TEXT NOT NULL, place INTEGER NOT NULL, client TEXT NOT NULL, file TEXT UNIQUE NOT NULL,
    name TEXT NOT NULL, kind TEXT NOT NULL, prompt TEXT NOT NULL, seconds REAL NOT NULL, rate INTEGER NOT NULL,
    channels INTEGER NOT NULL, recipe TEXT NOT NULL, parent TEXT, created REAL NOT NULL,
    starred INTEGER NOT NULL DEFAULT 0, deleted INTEGER NOT NULL DEFAULT 0, complete INTEGER NOT NULL DEFAULT 0);
CREATE INDEX IF NOT EXISTS by_client ON results (client, created);
"""
ADDED = (
    "INSERT INTO results (id, job, place, client, file, name, kind, prompt, seconds, rate, channels, recipe, created, "
    "complete) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 1)"
)
LONGEST_NAME = 200


@dataclass(frozen=True)
class StoredJob:
    """A job as it is kept."""

    id: str
    client: str
    kind: str  # generate, or of an edit
    model: str
    requests: tuple[dict, ...]  # fields of a request of `musicldm.generate` for each result
    parent: str | None  # the result whose audio is edited
    status: str
    error: str | None = None
    created: float = 0.0


def result_id(job: str, place: int) -> str:
    """The id of a job's result: its own for the first one."""
    return job if place == 0 else f"{job}-{place + 1}"


class Library:
    """The folder ``out`` and its index; safe for several threads.

    Raises:
        OSError, sqlite3.Error: if the folder cannot be written, or holds a damaged database.
    """

    def __init__(self, out: Path):
        self.out, self.state = out, out / STATE
        self.state.mkdir(parents=True, exist_ok=True)
        self._lock = threading.RLock()
        self._connection = sqlite3.connect(self.state / DATABASE, check_same_thread=False)
        self._connection.row_factory = sqlite3.Row
        self._connection.execute("PRAGMA journal_mode = WAL").fetchone()
        self._connection.executescript(SCHEMA)
        self.rebuild()

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Cursor]:
        """A transaction: all of it is kept, or nothing."""
        with self._lock, self._connection:
            yield self._connection.cursor()

    def _rows(self, query: str, values: Iterable = ()) -> list[sqlite3.Row]:
        with self._lock:
            return self._connection.execute(query, tuple(values)).fetchall()

    def close(self) -> None:
        """Close the database; the files stay."""
        with self._lock:
            self._connection.close()

    # Jobs

    def add_job(self, job: StoredJob) -> None:
        """Keep a new job before anybody is told of it."""
        values = (
            job.id,
            job.client,
            job.kind,
            job.model,
            json.dumps(job.requests),
            job.parent,
            job.status,
            time.time(),
        )
        with self._writing() as cursor:
            cursor.execute(
                "INSERT INTO jobs (id, client, kind, model, requests, parent, status, created) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                values,
            )

    def set_status(self, job: str, status: str, error: str | None = None) -> None:
        with self._writing() as cursor:
            cursor.execute("UPDATE jobs SET status = ?, error = ? WHERE id = ?", (status, error, job))

    def job(self, job: str, client: str) -> StoredJob | None:
        """A job of ``client``; None if there is none."""
        rows = self._rows("SELECT * FROM jobs WHERE id = ? AND client = ?", (job, client))
        return _stored(rows[0]) if rows else None

    def unfinished(self) -> list[StoredJob]:
        """Jobs that wait or were running when the server ended, oldest first."""
        rows = self._rows("SELECT * FROM jobs WHERE status IN ('queued', 'running') ORDER BY number")
        return [_stored(row) for row in rows]

    def counts(self) -> dict[str, int]:
        """How many jobs there are of each status."""
        return {row["status"]: row["n"] for row in self._rows("SELECT status, COUNT(*) n FROM jobs GROUP BY status")}

    # Results

    def reserve(self, job: StoredJob, place: int, piece: Any, suffix: str) -> Path:
        """The file that result ``place`` of ``job`` is to be written to; the same one when the job is done again."""
        identity, recipe = result_id(job.id, place), piece.recipe
        channels = 1 if piece.waveform.ndim == 1 else len(piece.waveform)
        found = (piece.waveform.shape[-1] / piece.sampling_rate, piece.sampling_rate, channels, json.dumps(recipe))
        with self._writing() as cursor:
            rows = cursor.execute("SELECT file FROM results WHERE id = ?", (identity,)).fetchall()
            if rows:
                cursor.execute(
                    "UPDATE results SET seconds = ?, rate = ?, channels = ?, recipe = ? WHERE id = ?",
                    (*found, identity),
                )
                return self.out / rows[0]["file"]
            prompt = recipe.get("prompt") or ""
            path = self._free(f"{slug(prompt) or job.kind}_seed{recipe.get('seed')}", suffix, cursor)
            cursor.execute(
                "INSERT INTO results (id, job, place, client, file, name, kind, prompt, seconds, rate, channels, "
                "recipe, parent, created) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    *(identity, job.id, place, job.client, path.name, prompt or path.stem, job.kind, prompt),
                    *(*found, job.parent, time.time()),
                ),
            )
            return path

    def _free(self, stem: str, suffix: str, cursor: sqlite3.Cursor) -> Path:
        """A file ``stem`` in the folder, numbered if one of that name is there or about to be written."""
        reserved = {row["file"] for row in cursor.execute("SELECT file FROM results WHERE NOT complete").fetchall()}
        names = itertools.chain([stem], (f"{stem}_{number}" for number in itertools.count(2)))
        free = (free_name(self.out, name, (suffix, *SUFFIXES)) for name in names)
        return next(path for one in free if (path := one.with_name(f"{one.name}{suffix}")).name not in reserved)

    def complete(self, job: StoredJob, place: int) -> None:
        """Say that the file of a result is written."""
        with self._writing() as cursor:
            cursor.execute("UPDATE results SET complete = 1 WHERE id = ?", (result_id(job.id, place),))

    def made(self, job: str) -> list[str]:
        """Ids of the results of a job that are complete."""
        rows = self._rows("SELECT id FROM results WHERE job = ? AND complete ORDER BY place", (job,))
        return [row["id"] for row in rows]

    def result(self, identity: str, client: str) -> dict | None:
        """A complete result of ``client`` whose file is there, deleted or not; None if there is none."""
        rows = self._rows("SELECT * FROM results WHERE id = ? AND client = ? AND complete", (identity, client))
        return _shown(rows[0]) if rows and (self.out / rows[0]["file"]).is_file() else None

    def is_along(self, client: str, sha256: str) -> bool:
        """Whether a complete result of ``client``, deleted or not, was made along with a file of this hash."""
        pattern = f'%"along_sha256": "{sha256}"%'
        rows = self._rows("SELECT file FROM results WHERE client = ? AND complete AND recipe LIKE ?", (client, pattern))
        return any((self.out / row["file"]).is_file() for row in rows)

    def file_named(self, client: str, name: str) -> Path | None:
        """The file of that name, if it is a complete result of ``client``; None if there is none."""
        rows = self._rows("SELECT file FROM results WHERE client = ? AND complete AND file = ?", (client, name))
        path = self.out / rows[0]["file"] if rows else None
        return path if path is not None and path.is_file() else None

    def search(self, client: str, words: str = "", starred: bool = False, limit: int = 200) -> list[dict]:
        """Complete results of ``client`` that were not deleted, newest first, with all ``words`` in name or prompt.

        Their recipes lack the scores that they follow.
        """
        query, values = "SELECT * FROM results WHERE client = ? AND complete AND NOT deleted", [client]
        for word in words.split():
            query += " AND (name LIKE ? ESCAPE '\\' OR prompt LIKE ? ESCAPE '\\')"
            pattern = "%" + word.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_") + "%"
            values += [pattern, pattern]
        if starred:
            query += " AND starred"
        rows = self._rows(f"{query} ORDER BY created DESC, place LIMIT ?", [*values, str(limit)])
        listed = [_shown(row) for row in rows if (self.out / row["file"]).is_file()]
        for one in listed:
            one["recipe"].pop("context", None)  # a whole score; the result itself has it
        return listed

    def change(self, identity: str, client: str, **changes: Any) -> None:
        """Set name, starred or deleted of a result; its file stays where it is."""
        changes = {name: value for name, value in changes.items() if value is not None}
        if changes:
            assignments = ", ".join(f"{name} = ?" for name in changes)  # names of columns, from `schemas.Change`
            with self._writing() as cursor:
                cursor.execute(
                    f"UPDATE results SET {assignments} WHERE id = ? AND client = ?",
                    (*changes.values(), identity, client),
                )

    def add_recording(self, client: str, decoded: Path, name: str, recipe: dict | None) -> dict:
        """A result of a recording that ``client`` sent; the WAV file ``decoded`` is moved into the folder."""
        import soundfile

        about, stem = soundfile.info(decoded), Path(name).stem
        kind, recipe = "recording", recipe or {}
        if recipe.get("prompt"):
            kind = recipe.get("kind") or "generate"
        with self._writing() as cursor:
            path = self._free(slug(stem) or "recording", ".wav", cursor)
            decoded.rename(path)
            identity, prompt = secrets.token_hex(8), str(recipe.get("prompt") or "")
            values = (
                *(identity, "", 0, client, path.name, stem[:LONGEST_NAME], kind, prompt),
                *(about.frames / about.samplerate, about.samplerate, about.channels, json.dumps(recipe), time.time()),
            )
            cursor.execute(ADDED, values)
        return self.result(identity, client)

    def family(self, identity: str, client: str) -> list[dict]:
        """A result, what it was made from, and all that was made from these and not deleted, oldest first."""
        query = """
            WITH RECURSIVE
            above(id, parent) AS (
                SELECT id, parent FROM results WHERE id = ? AND client = ?
                UNION SELECT r.id, r.parent FROM results r JOIN above a ON r.id = a.parent WHERE r.client = ?),
            below(id) AS (
                SELECT id FROM above
                UNION SELECT r.id FROM results r JOIN below b ON r.parent = b.id WHERE r.client = ?)
            SELECT * FROM results WHERE id IN (SELECT id FROM below) AND complete AND (NOT deleted OR id = ?)
            ORDER BY created, place"""
        rows = self._rows(query, (identity, client, client, client, identity))
        return [_shown(row) for row in rows if (self.out / row["file"]).is_file()]

    def rebuild(self, client: str = "local") -> int:
        """Add results of files with a recipe that the index does not know, for ``client``; how many."""
        import soundfile

        known = {row["file"] for row in self._rows("SELECT file FROM results")}
        added = 0
        for path in sorted(self.out.iterdir()):
            if path.name in known or path.suffix.lower() not in (".wav", ".flac") or not path.is_file():
                continue
            try:
                recipe, about = read_recipe(path), soundfile.info(path)
            except (OSError, ValueError, soundfile.LibsndfileError):
                continue  # somebody else's file
            prompt, created = str(recipe.get("prompt") or ""), path.stat().st_mtime
            identity = "f" + hashlib.sha256(f"{path.name} {created}".encode()).hexdigest()[:15]
            values = (
                *(identity, "", 0, client, path.name, prompt or path.stem),
                *(recipe.get("kind") or "generate", prompt, about.frames / about.samplerate, about.samplerate),
                *(about.channels, json.dumps(recipe), created),
            )
            with self._writing() as cursor:
                cursor.execute(ADDED, values)
            added += 1
        return added


def _stored(row: sqlite3.Row) -> StoredJob:
    names = ("id", "client", "kind", "model", "parent", "status", "error", "created")
    return StoredJob(requests=tuple(json.loads(row["requests"])), **{name: row[name] for name in names})


def _shown(row: sqlite3.Row) -> dict:
    names = ("id", "name", "file", "created", "seconds", "channels", "kind", "prompt", "parent")
    shown = {name: row[name] for name in names} | {"sampling_rate": row["rate"], "starred": bool(row["starred"])}
    return shown | {"recipe": json.loads(row["recipe"])}
