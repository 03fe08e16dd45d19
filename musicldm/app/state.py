"""What belongs to a running server, and what its routes share."""

from __future__ import annotations

from pathlib import Path

from fastapi import Request
from starlette.exceptions import HTTPException

from musicldm.app.jobs import Jobs
from musicldm.app.library import STATE, Library
from musicldm.app.metrics import Metrics
from musicldm.app.options import Options
from musicldm.app.recordings import Recordings
from musicldm.app.schemas import JobState
from musicldm.app.sessions import Sessions


class State:
    """The library, the models, the queue and the counts of one server."""

    def __init__(self, options: Options):
        self.options = options
        self.library = Library(options.out)
        self.sessions = Sessions(options)
        self.uploads = options.out / STATE / "uploads"
        self.recordings = Recordings(self.uploads, self.library, options)
        self.jobs = Jobs(options, self.library, self.sessions, self.recordings)
        self.metrics = Metrics(self.jobs, self.library)

    def job(self, identity: str, client: str) -> JobState:
        """Where a job of ``client`` is; 404 if there is none."""
        job = self.jobs.state(identity, client)
        if job is None:
            raise HTTPException(404, f"there is no job {identity[:40]!r}")
        return job

    def result(self, identity: str, client: str) -> dict:
        """What is known of a result of ``client``; 404 if there is none."""
        result = self.library.result(identity, client)
        if result is None:
            raise HTTPException(404, f"there is no result {identity[:40]!r}")
        return result

    def file(self, identity: str, client: str) -> Path:
        """The audio file of a result of ``client``; 404 if there is none."""
        return self.library.out / self.result(identity, client)["file"]


def client_of_request(request: Request) -> str:
    """Whose request it is, as `musicldm.app.security.Gate` has found."""
    return request.state.client
