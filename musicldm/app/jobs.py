"""The queue of jobs, and the one thread that works on them.

    job -> waits -> with others of the same model and settings through the network -> files in the library

One thread, as the network fills all cores by itself. What waits or runs is kept in the library before anybody is told
of it, with its seed: after a crash it is made again, to the same music.
"""

from __future__ import annotations

import logging
import secrets
import sqlite3
import threading
import time
from collections import deque
from dataclasses import asdict, dataclass, field
from pathlib import Path

from musicldm.app.library import Library, StoredJob, result_id
from musicldm.app.options import Options
from musicldm.app.recordings import Recordings
from musicldm.app.schemas import JobState
from musicldm.app.sessions import Sessions
from musicldm.generate import Cancelled, Piece, Progress, Session
from musicldm.generate.calls import batches
from musicldm.generate.edit import Edit
from musicldm.generate.pieces import EditedPiece
from musicldm.generate.recipe import Request
from musicldm.generate.tempo import TempoError
from musicldm.novelty import CopyError

FINISHED = ("done", "failed", "cancelled")
KEPT_FINISHED = 1000  # jobs of which the state is kept in memory

log = logging.getLogger(__name__)


class TooManyJobs(Exception):
    """A client has as many unfinished jobs as it may have."""


@dataclass
class Job:
    """A job while the server runs."""

    stored: StoredJob
    status: str = "queued"
    done: dict[int, int] = field(default_factory=dict)  # steps of each of its requests
    made: list[str] = field(default_factory=list)  # ids of results that are complete
    error: str | None = None
    started: float | None = None  # by the monotonic clock
    cancelled: threading.Event = field(default_factory=threading.Event)

    @property
    def step(self) -> int:
        """Steps that are done, of all its requests together."""
        return self.steps if self.status == "done" else sum(self.done.values())

    @property
    def steps(self) -> int:
        return sum(request["steps"] for request in self.stored.requests)

    @property
    def requests(self) -> list[Request | Edit]:
        return [as_request(self.stored.kind, fields) for fields in self.stored.requests]


class Jobs:
    """The queue of a server; every method may be called from any thread."""

    def __init__(self, options: Options, library: Library, sessions: Sessions, recordings: Recordings):
        self.options, self.library, self.sessions, self.recordings = options, library, sessions, recordings
        self.drawing = threading.Lock()  # held while results are there whose pictures are not yet
        self._changed = threading.Condition()
        self._waiting: deque[str] = deque()
        self._jobs: dict[str, Job] = {}
        self._ends = False
        self._pace: float | None = None  # seconds for each step, lately
        self._thread = threading.Thread(target=self._work, name="jobs", daemon=True)
        self.seconds_made = 0.0

    def start(self) -> None:
        """Take up what an earlier server left, and begin to work."""
        self.recordings.tidy()
        for stored in self.library.unfinished():
            self._jobs[stored.id] = Job(stored)
            self._waiting.append(stored.id)
        self._thread.start()

    def stop(self) -> None:
        """End after the current step; what is not finished goes on when a server starts again."""
        with self._changed:
            self._ends = True
            self._changed.notify_all()
        self._thread.join(timeout=60)

    def submit(self, client: str, kind: str, model: str, requests: list[Request | Edit], parent: str | None) -> Job:
        """A new job at the end of the queue.

        Raises:
            TooManyJobs: if ``client`` has too many unfinished ones.
            sqlite3.Error: if it cannot be kept, as on a full disk.
        """
        with self._changed:
            mine = sum(job.stored.client == client and job.status not in FINISHED for job in self._jobs.values())
            if mine >= self.options.jobs_a_client:
                raise TooManyJobs(f"there are {mine} jobs of yours already; wait for one to end, or cancel one")
            described = tuple(asdict(request) for request in requests)
            stored = StoredJob(secrets.token_hex(8), client, kind, model, described, parent, "queued")
            self.library.add_job(stored)
            self._jobs[stored.id] = Job(stored)
            self._waiting.append(stored.id)
            self._forget()
            self._changed.notify_all()
            return self._jobs[stored.id]

    def _forget(self) -> None:
        """Drop the oldest finished jobs; the library has them."""
        finished = [name for name, job in self._jobs.items() if job.status in FINISHED]
        for name in finished[: max(0, len(finished) - KEPT_FINISHED)]:
            del self._jobs[name]

    def state(self, identity: str, client: str) -> JobState | None:
        """Where a job of ``client`` is; None if there is none."""
        with self._changed:
            job = self._jobs.get(identity)
            if job is None or job.stored.client != client:
                stored = self.library.job(identity, client)
                if stored is None:
                    return None
                job = Job(stored, stored.status, made=self.library.made(identity), error=stored.error)
            position = self._waiting.index(identity) + 1 if identity in self._waiting else None
            return JobState(
                id=identity,
                status=job.status,
                position=position if job.status == "queued" else None,
                step=job.step,
                steps=job.steps,
                seconds_left=self._seconds_left(job),
                results=job.made if job.status == "done" else [],
                error=job.error,
            )

    def unfinished(self, client: str) -> list[JobState]:
        """The jobs of ``client`` that have not ended, oldest first."""
        with self._changed:
            mine = [
                name for name, job in self._jobs.items() if job.stored.client == client and job.status not in FINISHED
            ]
            return [state for name in mine if (state := self.state(name, client)) is not None]

    def _seconds_left(self, job: Job) -> float | None:
        if job.status == "running" and job.step and job.started is not None:
            return round((time.monotonic() - job.started) / job.step * (job.steps - job.step), 1)
        if job.status == "queued" and self._pace is not None and job.stored.id in self._waiting:
            before = list(self._waiting)[: self._waiting.index(job.stored.id) + 1]
            running = sum(one.steps - one.step for one in self._jobs.values() if one.status == "running")
            return round(self._pace * (running + sum(self._jobs[name].steps for name in before)), 1)
        return None

    def cancel(self, identity: str, client: str) -> bool:
        """End a job of ``client``, at once if it waits, else after its current step; False if there is none."""
        with self._changed:
            job = self._jobs.get(identity)
            if job is None or job.stored.client != client:
                return self.library.job(identity, client) is not None
            if job.status not in FINISHED:
                job.cancelled.set()
                self._end(job, "cancelled")
                if identity in self._waiting:  # one that runs may still read its recordings
                    self._waiting.remove(identity)
                    self._release(job)
            return True

    @property
    def waiting(self) -> int:
        """How many jobs wait."""
        return len(self._waiting)

    def _end(self, job: Job, status: str, error: str | None = None) -> None:
        with self._changed:
            if job.status in FINISHED:
                return
            job.status, job.error = status, error
            self._keep_status(job)
            self._changed.notify_all()

    def _release(self, job: Job) -> None:
        try:
            self.recordings.release(job.stored)
        except (OSError, sqlite3.Error) as problem:  # the next start tries again
            log.warning("the recordings of job %s could not be removed: %s", job.stored.id, problem)

    def _keep_status(self, job: Job) -> None:
        try:
            self.library.set_status(job.stored.id, job.status, job.error)
        except sqlite3.Error as problem:  # a full disk, for one; after a restart the job is done again
            log.warning("the state of job %s could not be kept: %s", job.stored.id, problem)

    # The worker

    def _work(self) -> None:
        while (job := self._next()) is not None:
            group = [job]
            try:
                session = self.sessions.get(job.stored.model)
                group += self._joining(job, session.waveforms_at_once)
                self._do(group, session)
            except Cancelled:
                for one in group:
                    if one.cancelled.is_set():
                        self._end(one, "cancelled")
                    elif not self._ends:
                        self._again(one)
            except Exception as error:
                # Whatever a job does, the server goes on; a bug is logged whole and told as what it is.
                is_told = isinstance(error, ValueError | OSError | sqlite3.Error | MemoryError)
                if not is_told:
                    log.exception("job %s failed", job.stored.id)
                message = str(error) or type(error).__name__
                for one in group:
                    self._end(one, "failed", message if is_told else f"{type(error).__name__}: {message}")
            for one in group:
                if one.status in FINISHED:
                    self._release(one)

    def _next(self) -> Job | None:
        """The next job, now running; None when the server ends."""
        with self._changed:
            while not self._waiting and not self._ends:
                self._changed.wait()
            if self._ends:
                return None
            return self._begin(self._waiting.popleft())

    def _begin(self, identity: str) -> Job:
        job = self._jobs[identity]
        job.status, job.started, job.done, job.made = "running", time.monotonic(), {}, []
        self._keep_status(job)
        return job

    def _joining(self, first: Job, at_once: int) -> list[Job]:
        """Waiting jobs that go through the network with ``first``, ``at_once`` waveforms in all, now running."""
        with self._changed:
            group, room = [], at_once - waveforms(first.stored)
            for name in list(self._waiting):
                other = self._jobs[name].stored
                if waveforms(other) <= room and goes_with(first.stored, other):
                    self._waiting.remove(name)
                    group.append(self._begin(name))
                    room -= waveforms(other)
            return group

    def _again(self, job: Job) -> None:
        """Put a job of which another was cancelled back to the front."""
        with self._changed:
            job.status, job.done = "queued", {}
            self._waiting.appendleft(job.stored.id)

    def _do(self, group: list[Job], session: Session) -> None:
        """Make and keep the music of jobs that go together."""
        owners = [(job, place) for job in group for place in range(len(job.stored.requests))]
        places, undrawn = deque(owners), []
        requests = [request for job in group for request in job.requests]
        began = time.monotonic()

        def progress(where: Progress) -> None:
            for job, place in owners[where.first - 1 : where.last]:
                most = job.stored.requests[place]["steps"]
                job.done[place] = min(most, max(where.step, job.done.get(place, 0)))
            self._pace = (time.monotonic() - began) / max(1, sum(job.step for job in group))

        def cancel() -> bool:
            return self._ends or all(job.cancelled.is_set() for job in group)

        pieces, problem = session.run_many(requests, progress, cancel), None
        try:
            for piece in pieces:
                job, place = next_owner(places, piece.recipe)
                if isinstance(piece, EditedPiece):  # which may hold a long recording
                    draw(undrawn)
                if not job.cancelled.is_set():
                    undrawn.append((piece, self._keep(job.stored, place, piece)))
                    job.made.append(result_id(job.stored.id, place))
        except (CopyError, TempoError) as error:  # some are not as they were asked for; the others are there
            problem = str(error)
        with self.drawing:  # pictures take longer than files: the music can be heard before
            for job in group:
                missing = len(job.made) < len(job.stored.requests)
                self._end(job, "done" if job.made else "failed", problem if missing else None)
            draw(undrawn)

    def _keep(self, stored: StoredJob, place: int, piece: Piece) -> Path:
        """The file of a result, written."""
        piece.recipe.update(self.recordings.names(stored.requests[place]))
        path = self.library.reserve(stored, place, piece, ".wav")
        piece.save(path)
        self.library.complete(stored, place)
        self.seconds_made += piece.waveform.shape[-1] / piece.sampling_rate
        return path


def draw(undrawn: list[tuple[Piece, Path]]) -> None:
    """Draw the pictures of pieces beside their files, and take them off the list."""
    while undrawn:
        piece, path = undrawn.pop(0)
        piece.figure(path.with_suffix(".png"))


def next_owner(places: deque[tuple[Job, int]], recipe: dict) -> tuple[Job, int]:
    """The job, and the place in it, of a piece with this ``recipe``; places before it, which were refused, are dropped.

    Pieces come in the order of ``places``, but those that the copy guard refuses, or no tempo, do not come at all.
    """
    while True:
        job, place = places.popleft()
        wanted = job.stored.requests[place]
        if wanted["seed"] == recipe["seed"] and wanted["prompt"] in (None, recipe["prompt"]):
            return job, place


def as_request(kind: str, values: dict) -> Request | Edit:
    """The request that was kept as ``values``."""
    return Request(**values) if kind == "generate" else Edit(**values)


def waveforms(stored: StoredJob) -> int:
    return sum(request["candidates"] for request in stored.requests)


def goes_with(one: StoredJob, other: StoredJob) -> bool:
    """Whether both can go through the network together: the same model, and settings that are alike."""
    if one.kind != "generate" or other.kind != "generate" or one.model != other.model:
        return False
    both = [as_request(job.kind, job.requests[0]) for job in (one, other)]
    return len(list(batches(both, sum(request.candidates for request in both)))) == 1
