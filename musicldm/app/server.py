"""The HTTP interface.

    POST /v1/generations, /v1/edits -> 202, a job     GET /v1/jobs/{id}, /events     DELETE /v1/jobs/{id}
    GET /v1/results, /v1/results/{id}/audio|figure|recipe     GET /v1/models, /health, /metrics

What can be known to be wrong with a request gets a 4xx answer at once, whose ``detail`` is one sentence.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from fastapi.staticfiles import StaticFiles
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from musicldm._version import __version__
from musicldm.app.formats import FORMATS, MEDIA_TYPES, converted
from musicldm.app.jobs import FINISHED, Job, Jobs, TooManyJobs
from musicldm.app.library import STATE, Library
from musicldm.app.metrics import Metrics
from musicldm.app.options import Options
from musicldm.app.schemas import Change, Editing, Generation, JobState, Model, Result, flattened
from musicldm.app.security import COOKIE, Gate, client_of
from musicldm.app.sessions import Sessions
from musicldm.app.uploads import TooLarge, decode, receive

MOST_JSON = 2**20  # bytes of a request without audio
EVENTS_EVERY_S = 0.1
ALIVE_EVERY_S = 15.0  # a comment in a stream of events, so that proxies keep it
STATIC = Path(str(resources.files("musicldm"))) / "app" / "static"
SENTENCE = {"detail": "one sentence"}

JobId = str


class State:
    """What belongs to a running server."""

    def __init__(self, options: Options):
        self.options = options
        self.library = Library(options.out)
        self.sessions = Sessions(options)
        self.jobs = Jobs(options, self.library, self.sessions)
        self.uploads = options.out / STATE / "uploads"
        self.metrics = Metrics(self.jobs, self.library)


def create_app(options: Options) -> FastAPI:
    """The application; opens the library, and begins to work when it is started.

    Raises:
        OSError, sqlite3.Error: if the folder of results cannot be used.
    """
    state = State(options)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        state.jobs.start()
        yield
        await run_in_threadpool(state.jobs.stop)
        state.library.close()

    app = FastAPI(title="MusicLDM", version=__version__, lifespan=lifespan, docs_url="/docs", redoc_url=None)
    app.state.server = state
    app.add_middleware(Gate, options=options)
    _errors(app)
    _jobs(app, state)
    _results(app, state)
    _server(app, state)
    return app


def _client(request: Request) -> str:
    return request.state.client


def _errors(app: FastAPI) -> None:
    """Every error as ``{"detail": sentence}``."""

    def answer(status: int, sentence: str) -> JSONResponse:
        return JSONResponse({"detail": sentence}, status)

    app.add_exception_handler(ValueError, lambda _, error: answer(422, sentence_of(error)))
    app.add_exception_handler(RequestValidationError, lambda _, error: answer(422, validation_sentence(error.errors())))
    app.add_exception_handler(ValidationError, lambda _, error: answer(422, validation_sentence(error.errors())))
    app.add_exception_handler(TooLarge, lambda _, error: answer(413, str(error)))
    app.add_exception_handler(TooManyJobs, lambda _, error: answer(429, str(error)))
    app.add_exception_handler(OSError, lambda _, error: answer(507, f"the server cannot keep this: {error.strerror}"))
    app.add_exception_handler(sqlite3.Error, lambda _, error: answer(507, f"the server cannot keep this: {error}"))


def sentence_of(error: Exception) -> str:
    """The message of ``error`` in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def validation_sentence(errors: Any) -> str:
    """What is wrong with the fields of a body, in one line."""
    lines = []
    for error in errors[:3]:
        field = ".".join(str(part) for part in error["loc"] if part not in ("body", "query"))
        if error["type"] == "extra_forbidden":
            lines.append(f"there is no field {field!r}")
        elif error["type"] == "missing":
            lines.append(f"the field {field!r} is missing")
        else:
            lines.append(f"{field}: {error['msg'][:1].lower()}{error['msg'][1:]}, got {str(error.get('input'))[:80]!r}")
    more = len(errors) - len(lines)
    return "; ".join(lines) + (f"; and {more} more" if more > 0 else "")


async def read_body(request: Request, state: State) -> tuple[dict[str, Any], list[str], Path | None]:
    """Fields of a JSON body or a form, names of those that were left out, and the uploaded file if there is one.

    Raises:
        ValueError: for a body that is neither, or too large.
    """
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind in ("multipart/form-data", "application/x-www-form-urlencoded"):
        return await _read_form(request, state)
    content = b""
    async for block in request.stream():
        content += block
        if len(content) > MOST_JSON:
            raise TooLarge(f"a request without audio has at most {MOST_JSON:,} bytes")
    try:
        body = json.loads(content)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError("the body is no JSON; send an object, with Content-Type: application/json") from error
    if not isinstance(body, dict):
        raise ValueError("the body must be a JSON object of fields")
    return *flattened(body), None


async def _read_form(request: Request, state: State) -> tuple[dict[str, Any], list[str], Path | None]:
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > state.options.upload_bytes + MOST_JSON:
        raise TooLarge(f"the upload is larger than the {state.options.upload_bytes / 2**20:g} MiB that are taken")
    fields: dict[str, Any] = {}
    upload = None
    async with request.form(max_files=1, max_fields=100, max_part_size=MOST_JSON) as form:
        for name, value in form.multi_items():
            if isinstance(value, str):
                fields[name] = [*fields[name], value] if isinstance(fields.get(name), list) else value
            elif name in ("audio", "src_audio", "ctx_audio"):
                upload = await receive(_blocks(value), state.uploads, state.options.upload_bytes)
            else:
                raise ValueError(f"there is no file {name!r}; send a recording as 'audio'")
    return *flattened(fields), upload


async def _blocks(file) -> AsyncIterator[bytes]:
    while block := await file.read(2**20):
        yield block


def accepted(state: State, job: Job, ignored: list[str], response: Response) -> JobState:
    """The answer to a request that became a job."""
    response.headers["Location"] = f"/v1/jobs/{job.stored.id}"
    if ignored:
        response.headers["Ignored-Fields"] = ", ".join(ignored)
    return state.jobs.state(job.stored.id, job.stored.client)


def _jobs(app: FastAPI, state: State) -> None:
    """Requests for music, and the jobs that they become."""
    schema = {"application/json": {"schema": Generation.model_json_schema(by_alias=False)}}

    @app.post("/v1/generations", status_code=202, openapi_extra={"requestBody": {"content": schema, "required": True}})
    async def generate(request: Request, response: Response) -> JobState:
        """Ask for new music."""
        fields, ignored, upload = await read_body(request, state)
        if upload is not None:
            upload.unlink(missing_ok=True)
            raise ValueError("new music takes no audio; send it to /v1/edits")
        if fields.get("task_type") in ("repaint", "cover"):
            raise ValueError(
                f"task_type {fields['task_type']} changes a recording: send it, as src_audio, to /v1/edits"
            )

        def submit() -> Job:
            wanted = Generation.model_validate(fields)
            model = state.sessions.named(wanted.model)
            requests = wanted.requests()
            state.sessions.check(model, requests)
            return state.jobs.submit(_client(request), "generate", model, requests, None)

        return accepted(state, await run_in_threadpool(submit), ignored, response)

    content = {
        kind: {"schema": Editing.model_json_schema(by_alias=False)}
        for kind in ("application/json", "multipart/form-data")
    }

    @app.post("/v1/edits", status_code=202, openapi_extra={"requestBody": {"content": content, "required": True}})
    async def edit(request: Request, response: Response) -> JobState:
        """Ask for a change of a recording: of an earlier result, or of a file sent as ``audio``."""
        fields, ignored, upload = await read_body(request, state)

        def submit() -> Job:
            path = upload
            try:
                kind = TASK_KINDS.get(fields.pop("task_type", None))
                wanted = Editing.model_validate(({"kind": kind} if kind else {}) | fields)
                model = state.sessions.named(wanted.model)
                if (wanted.source is None) == (upload is None):
                    raise ValueError("give either the id of a result as source, or a file as audio")
                if upload is None:
                    path = found(state, wanted.source, _client(request))
                else:
                    path = decode(upload, state.options)
                return state.jobs.submit(_client(request), wanted.kind, model, wanted.edits(str(path)), wanted.source)
            except BaseException:
                if upload is not None:
                    for left in (upload, path):
                        left.unlink(missing_ok=True)
                raise

        return accepted(state, await run_in_threadpool(submit), ignored, response)

    @app.get("/v1/jobs/{identity}", responses={404: {"description": "no such job of this client"}})
    def job(identity: JobId, request: Request) -> JobState:
        """Where a job is."""
        return known_job(state, identity, _client(request))

    @app.get("/v1/jobs/{identity}/events", response_class=StreamingResponse)
    async def events(identity: JobId, request: Request) -> StreamingResponse:
        """Server-sent events: the job each time that it changes, until it has ended."""
        client = _client(request)
        known_job(state, identity, client)
        return StreamingResponse(job_events(state, identity, client, request), media_type="text/event-stream")

    @app.delete("/v1/jobs/{identity}")
    def cancel(identity: JobId, request: Request) -> JobState:
        """End a job: at once if it waits, else after its current step."""
        state.jobs.cancel(identity, _client(request))
        return known_job(state, identity, _client(request))


TASK_KINDS = {"repaint": "inpaint", "cover": "vary"}  # ACE-Step's


def known_job(state: State, identity: str, client: str) -> JobState:
    job = state.jobs.state(identity, client)
    if job is None:
        raise HTTPException(404, f"there is no job {identity[:40]!r}")
    return job


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


def result_of(state: State, identity: str, client: str) -> dict:
    result = state.library.result(identity, client)
    if result is None:
        raise HTTPException(404, f"there is no result {identity[:40]!r}")
    return result


def found(state: State, identity: str, client: str) -> Path:
    """The audio file of a result."""
    return state.library.out / result_of(state, identity, client)["file"]


def _results(app: FastAPI, state: State) -> None:
    """What was made."""

    @app.get("/v1/results")
    def results(
        request: Request,
        q: str = Query("", max_length=200, description="words of name or prompt"),
        starred: bool = False,
        limit: int = Query(200, ge=1, le=1000),
    ) -> list[Result]:
        """The client's results, newest first."""
        return [Result(**one) for one in state.library.search(_client(request), q, starred, limit)]

    @app.get("/v1/results/{identity}")
    def result(identity: str, request: Request) -> Result:
        """What is known of a result."""
        return Result(**result_of(state, identity, _client(request)))

    @app.patch("/v1/results/{identity}")
    def change(identity: str, changes: Change, request: Request) -> Result:
        """Name, star or delete a result; what is deleted is hidden, and its file stays."""
        client = _client(request)
        result_of(state, identity, client)
        state.library.change(identity, client, **changes.model_dump())
        return Result(**result_of(state, identity, client))

    @app.get("/v1/results/{identity}/audio", response_class=FileResponse)
    def audio(identity: str, request: Request, format: Literal[FORMATS] = "wav", download: bool = False) -> Response:
        """The audio: as it was made, or converted; parts of it by the header Range."""
        path = found(state, identity, _client(request))
        named = f"{path.stem}.{format}" if download else None
        if path.suffix == f".{format}":
            return FileResponse(path, media_type=MEDIA_TYPES[format], filename=named)
        disposition = {"Content-Disposition": f'attachment; filename="{named}"'} if download else {}
        return Response(converted(path, format), media_type=MEDIA_TYPES[format], headers=disposition)

    @app.get("/v1/results/{identity}/figure", response_class=FileResponse)
    def figure(identity: str, request: Request) -> FileResponse:
        """A picture of waveform and spectrogram."""
        path = found(state, identity, _client(request)).with_suffix(".png")
        if not path.is_file():
            raise HTTPException(404, "this result has no picture")
        return FileResponse(path, media_type="image/png")

    @app.get("/v1/results/{identity}/recipe")
    def recipe(identity: str, request: Request) -> dict[str, Any]:
        """What makes the same music again."""
        return result_of(state, identity, _client(request))["recipe"]


def _server(app: FastAPI, state: State) -> None:
    """The server itself, and the page."""

    @app.get("/v1/models")
    def models() -> list[Model]:
        """The models that may be asked for."""
        return [state.sessions.about(name) for name in state.sessions.names]

    @app.get("/health")
    def health() -> dict[str, str]:
        """Whether the server serves."""
        return {"status": "ok", "version": __version__}

    @app.get("/metrics", response_class=Response)
    def metrics() -> Response:
        """Counts for Prometheus."""
        return Response(state.metrics.text(), media_type="text/plain; version=0.0.4")

    @app.post("/v1/session", status_code=204)
    async def open_session(request: Request) -> Response:
        """Trade a token, ``{"token": ...}``, for a cookie that scripts cannot read."""
        fields, _, _ = await read_body(request, state)
        token = fields.get("token")
        if not isinstance(token, str) or client_of(token, state.options) is None:
            raise HTTPException(401, "this is no token of this server")
        response = Response(status_code=204)
        secure = request.url.scheme == "https"
        response.set_cookie(COOKIE, token, httponly=True, samesite="strict", secure=secure, max_age=30 * 86400)
        return response

    if STATIC.is_dir():
        app.mount("/static", StaticFiles(directory=STATIC), name="static")

        @app.get("/", include_in_schema=False)
        def page() -> FileResponse:
            return FileResponse(STATIC / "index.html")


def serve(options: Options, ready=None) -> None:
    """Run a server until it is interrupted; ``ready(url)`` is called when it can be used.

    Raises:
        OSError: if the address is taken, or the folder cannot be used.
    """
    import uvicorn

    config = uvicorn.Config(create_app(options), host=options.host, port=options.port, log_level="warning")
    server = uvicorn.Server(config)
    started = server.startup

    async def startup(sockets=None) -> None:
        await started(sockets)
        if server.started and ready is not None:
            host, port = server.servers[0].sockets[0].getsockname()[:2]
            ready(f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/")

    server.startup = startup
    server.run()
