"""Routes of results: what was made, and recordings that were sent."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import FastAPI, Query, Request, Response
from fastapi.responses import FileResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from musicldm.app.beats import LONGEST_S, Rhythm, rhythm
from musicldm.app.bodies import read_body, remove
from musicldm.app.formats import FORMATS, MEDIA_TYPES, converted
from musicldm.app.schemas import Change, Result
from musicldm.app.state import State, client_of_request
from musicldm.app.uploads import decode
from musicldm.audio import read_audio
from musicldm.audio.figures import save_figure


def add_result_routes(app: FastAPI, state: State) -> None:
    """What was made, and what is known of it."""

    @app.get("/v1/results")
    def results(
        request: Request,
        q: str = Query("", max_length=200, description="words of name or prompt"),
        starred: bool = False,
        limit: int = Query(200, ge=1, le=1000),
    ) -> list[Result]:
        """The client's results, newest first."""
        return [Result(**one) for one in state.library.search(client_of_request(request), q, starred, limit)]

    @app.post("/v1/recordings", status_code=201)
    async def add_recording(request: Request) -> Result:
        """Send a recording, as ``audio`` of a form, to work with; one of our own files brings its recipe back."""
        _, _, uploads = await read_body(request, state)
        upload = uploads.pop("audio", None)
        remove(uploads)
        if upload is None:
            raise ValueError("send a recording as the file 'audio' of a form")
        client = client_of_request(request)

        def keep() -> Result:
            decoded = decode(upload.path, state.options)
            return Result(**state.library.add_recording(client, decoded.path, upload.name, decoded.recipe))

        return await run_in_threadpool(keep)

    @app.get("/v1/results/{identity}")
    def result(identity: str, request: Request) -> Result:
        """What is known of a result."""
        return Result(**state.result(identity, client_of_request(request)))

    @app.get("/v1/results/{identity}/family")
    def family(identity: str, request: Request) -> list[Result]:
        """The result, what it was made from, and all that was made from these, oldest first."""
        client = client_of_request(request)
        state.result(identity, client)
        return [Result(**one) for one in state.library.family(identity, client)]

    @app.get("/v1/results/{identity}/beats")
    def beats(identity: str, request: Request) -> Rhythm:
        """Its beats, as they are measured."""
        path = state.file(identity, client_of_request(request))
        return rhythm(path, state.library.state / "beats" / f"{identity}.json")

    @app.patch("/v1/results/{identity}")
    def change(identity: str, changes: Change, request: Request) -> Result:
        """Name, star or delete a result; what is deleted is hidden, and its file stays."""
        client = client_of_request(request)
        state.result(identity, client)
        state.library.change(identity, client, **changes.model_dump())
        return Result(**state.result(identity, client))


def add_file_routes(app: FastAPI, state: State) -> None:
    """The files of a result."""

    @app.get("/v1/results/{identity}/audio", response_class=FileResponse)
    def audio(identity: str, request: Request, format: Literal[FORMATS] = "wav", download: bool = False) -> Response:
        """The audio: as it was made, or converted; parts of it by the header Range."""
        path = state.file(identity, client_of_request(request))
        named = f"{path.stem}.{format}" if download else None
        if path.suffix == f".{format}":
            return FileResponse(path, media_type=MEDIA_TYPES[format], filename=named)
        disposition = {"Content-Disposition": f'attachment; filename="{named}"'} if download else {}
        return Response(converted(path, format), media_type=MEDIA_TYPES[format], headers=disposition)

    @app.get("/v1/results/{identity}/figure", response_class=FileResponse)
    def figure(identity: str, request: Request) -> FileResponse:
        """A picture of waveform and spectrogram."""
        about = state.result(identity, client_of_request(request))
        path = state.library.out / about["file"]
        picture = path.with_suffix(".png")
        with state.jobs.drawing:  # pictures of new results are drawn after they can be heard
            if not picture.is_file() and about["seconds"] <= LONGEST_S:
                waveform, rate = read_audio(path)
                save_figure(picture, waveform, rate, title=about["prompt"] or about["name"])
        if not picture.is_file():
            raise HTTPException(404, f"this result has no picture; those of up to {LONGEST_S:g} s have one")
        return FileResponse(picture, media_type="image/png")

    @app.get("/v1/results/{identity}/midi", response_class=FileResponse)
    def score(identity: str, request: Request) -> FileResponse:
        """The score that it follows, a MIDI file."""
        path = state.file(identity, client_of_request(request)).with_suffix(".mid")
        if not path.is_file():
            raise HTTPException(404, "this result follows no score")
        return FileResponse(path, media_type="audio/midi", filename=path.name)

    @app.get("/v1/results/{identity}/recipe")
    def recipe(identity: str, request: Request) -> dict[str, Any]:
        """What makes the same music again."""
        return state.result(identity, client_of_request(request))["recipe"]
