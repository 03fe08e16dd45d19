"""The HTTP interface.

    POST /v1/generations, /v1/edits -> 202, a job     GET /v1/jobs/{id}, /events     DELETE /v1/jobs/{id}
    GET /v1/results, /v1/results/{id}/audio|figure|recipe     GET /v1/models, /health, /metrics

What can be known to be wrong with a request gets a 4xx answer at once, whose ``detail`` is one sentence.
"""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib import resources
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from musicldm._version import __version__
from musicldm.app.bodies import read_body
from musicldm.app.job_routes import add_job_routes
from musicldm.app.jobs import TooManyJobs
from musicldm.app.options import Options
from musicldm.app.result_routes import add_file_routes, add_result_routes
from musicldm.app.schemas import Model
from musicldm.app.security import COOKIE, Gate, client_of
from musicldm.app.state import State
from musicldm.app.uploads import TooLarge
from musicldm.sampling.schedulers import GUIDANCE, SAMPLER, SCHEDULERS, STEPS

STATIC = Path(str(resources.files("musicldm"))) / "app" / "static"


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
    add_job_routes(app, state)
    add_result_routes(app, state)
    add_file_routes(app, state)
    add_server_routes(app, state)
    add_page(app)
    return app


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


def add_server_routes(app: FastAPI, state: State) -> None:
    """The models, how the server is, and its door."""

    @app.get("/v1/models")
    def models() -> list[Model]:
        """The models that may be asked for."""
        return [state.sessions.about(name) for name in state.sessions.names]

    @app.get("/v1/defaults")
    def defaults() -> dict[str, Any]:
        """What is used where a request says nothing, and the samplers that there are."""
        return {
            "num_inference_steps": STEPS,
            "guidance_scale": GUIDANCE,
            "scheduler": SAMPLER,
            "schedulers": list(SCHEDULERS),
        }

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


def add_page(app: FastAPI) -> None:
    """The page and what it loads."""
    if STATIC.is_dir():
        app.mount("/static", StaticFiles(directory=STATIC), name="static")

        @app.get("/", include_in_schema=False)
        def page() -> FileResponse:
            return FileResponse(STATIC / "index.html")


def serve(options: Options, ready: Callable[[str], None] | None = None) -> None:
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
