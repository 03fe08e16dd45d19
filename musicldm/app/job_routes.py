"""Routes of jobs: requests for music, and where they are."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool

from musicldm.app.bodies import Uploads, read_body, remove
from musicldm.app.followed import recording_of, retake_of, sketch_of
from musicldm.app.jobs import FINISHED, Job
from musicldm.app.schemas import TASKS, Editing, Generation, JobState
from musicldm.app.state import State, client_of_request
from musicldm.audio import read_recipe

EVENTS_EVERY_S = 0.1
ALIVE_EVERY_S = 15.0  # a comment in a stream of events, so that proxies keep it


def accepted(state: State, job: Job, ignored: list[str], response: Response) -> JobState:
    """The answer to a request that became a job."""
    response.headers["Location"] = f"/v1/jobs/{job.stored.id}"
    if ignored:
        response.headers["Ignored-Fields"] = ", ".join(ignored)
    return state.jobs.state(job.stored.id, job.stored.client)


def submit_generation(state: State, client: str, fields: dict[str, Any], uploads: Uploads) -> Job:
    """The job that the ``fields`` of a body and its files ask for; ValueError for what is wrong with them.

    Of the files only a recording that the music goes along with is kept, if there is a job.
    """
    along = None
    try:
        wanted = Generation.model_validate(fields)
        model = state.sessions.named(wanted.model)
        sketch = sketch_of(wanted, uploads, state)
        along = recording_of(wanted, uploads, client, state)
        requests = wanted.requests(sketch, along)
        state.sessions.check(model, requests)
        return state.jobs.submit(client, "generate", model, requests, wanted.along)
    except BaseException:
        remove(uploads)
        if along is not None and "along" in uploads:
            state.recordings.remove(along)
        raise


def model_of(wanted: Editing, path: Path, state: State) -> str:
    """The model of an edit of ``path``: of a retake that names none, that of the recipe, if it is listed."""
    if wanted.kind == "retake" and wanted.model is None:
        with suppress(ValueError):  # without a recipe, of which more is said later
            if (own := read_recipe(path).get("model")) in state.sessions.names:
                return own
    return state.sessions.named(wanted.model)


def submit_edit(state: State, client: str, fields: dict[str, Any], uploads: Uploads) -> Job:
    """The job of an edit, of an upload or of an earlier result; uploads are removed if nothing comes of it."""
    upload = uploads.get("audio")
    path = None if upload is None else upload.path
    try:
        if "along" in uploads:
            raise ValueError("an edit has the recording itself to go along with; leave along out")
        kind = TASKS.get(fields.pop("task_type", None))
        wanted = Editing.model_validate(({"kind": kind} if kind else {}) | fields)
        state.sessions.named(wanted.model)
        if (wanted.source is None) == (upload is None):
            raise ValueError("give either the id of a result as source, or a file as audio")
        sketch = sketch_of(wanted, uploads, state)
        path = state.file(wanted.source, client) if upload is None else state.recordings.keep(upload, client)
        model = model_of(wanted, path, state)
        try:
            edits = wanted.edits(str(path), sketch)
            edits = [retake_of(edit, client, state) for edit in edits] if wanted.kind == "retake" else edits
            state.sessions.check_edits(model, edits)
        except ValueError as error:
            called = path.name if upload is None else upload.name
            raise ValueError(str(error).replace(str(path), called)) from error
        return state.jobs.submit(client, wanted.kind, model, edits, wanted.source)
    except BaseException:
        remove(uploads)
        if upload is not None and path is not None:
            state.recordings.remove(path)
        raise


def add_job_routes(app: FastAPI, state: State) -> None:
    """Requests for music, and the jobs that they become."""
    schema = {
        kind: {"schema": Generation.model_json_schema(by_alias=False)}
        for kind in ("application/json", "multipart/form-data")
    }

    @app.post("/v1/generations", status_code=202, openapi_extra={"requestBody": {"content": schema, "required": True}})
    async def generate(request: Request, response: Response) -> JobState:
        """Ask for new music; a form may have the files midi and melody, to follow, and along, to go with."""
        fields, ignored, uploads = await read_body(request, state)
        if "audio" in uploads:
            remove(uploads)
            raise ValueError(
                "new music takes no audio; send it to /v1/edits, or as along, to make music that goes with it"
            )
        if fields.get("task_type") in ("repaint", "cover"):
            remove(uploads)
            raise ValueError(
                f"task_type {fields['task_type']} changes a recording: send it, as src_audio, to /v1/edits"
            )
        job = await run_in_threadpool(submit_generation, state, client_of_request(request), fields, uploads)
        return accepted(state, job, ignored, response)

    content = {
        kind: {"schema": Editing.model_json_schema(by_alias=False)}
        for kind in ("application/json", "multipart/form-data")
    }

    @app.post("/v1/edits", status_code=202, openapi_extra={"requestBody": {"content": content, "required": True}})
    async def edit(request: Request, response: Response) -> JobState:
        """Ask for a change of a recording: of an earlier result, or of a file sent as ``audio``.

        Files midi and melody are followed in the new parts.
        """
        fields, ignored, uploads = await read_body(request, state)
        job = await run_in_threadpool(submit_edit, state, client_of_request(request), fields, uploads)
        return accepted(state, job, ignored, response)

    @app.get("/v1/jobs")
    def jobs(request: Request) -> list[JobState]:
        """The client's jobs that have not ended, oldest first."""
        return state.jobs.unfinished(client_of_request(request))

    @app.get("/v1/jobs/{identity}", responses={404: {"description": "no such job of this client"}})
    def job(identity: str, request: Request) -> JobState:
        """Where a job is."""
        return state.job(identity, client_of_request(request))

    @app.get("/v1/jobs/{identity}/events", response_class=StreamingResponse)
    async def events(identity: str, request: Request) -> StreamingResponse:
        """Server-sent events: the job each time that it changes, until it has ended."""
        client = client_of_request(request)
        state.job(identity, client)
        return StreamingResponse(job_events(state, identity, client, request), media_type="text/event-stream")

    @app.delete("/v1/jobs/{identity}")
    def cancel(identity: str, request: Request) -> JobState:
        """End a job: at once if it waits, else after its current step."""
        state.jobs.cancel(identity, client_of_request(request))
        return state.job(identity, client_of_request(request))


async def job_events(state: State, identity: str, client: str, request: Request) -> AsyncIterator[str]:
    """The stream of `events`."""
    told, quiet = None, 0.0
    while not await request.is_disconnected():
        job = state.jobs.state(identity, client)
        text = job.model_dump_json()
        if text != told:
            told, quiet = text, 0.0
            yield f"event: job\ndata: {text}\n\n"
        elif quiet >= ALIVE_EVERY_S:
            quiet = 0.0
            yield ": still here\n\n"
        if job.status in FINISHED:
            return
        await asyncio.sleep(EVENTS_EVERY_S)
        quiet += EVENTS_EVERY_S
