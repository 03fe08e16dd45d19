"""Bodies of requests: JSON or forms, within limits, with or without files."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from fastapi import Request

from musicldm.app.schemas import flattened
from musicldm.app.state import State
from musicldm.app.uploads import TooLarge, Upload, receive

MOST_JSON = 2**20  # bytes of a request without audio
FILES = {  # a form's fields that have files, by their names here
    "audio": "audio",
    "src_audio": "audio",
    "ctx_audio": "audio",
    "midi": "midi",
    "melody": "melody",
    "along": "along",
}

Uploads = dict[str, Upload]  # by the names of their fields


async def read_body(request: Request, state: State) -> tuple[dict[str, Any], list[str], Uploads]:
    """Fields of a JSON body or a form, names of those that were left out, and the uploaded files.

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
    return *flattened(body), {}


def remove(uploads: Uploads) -> None:
    """Remove what was uploaded, as far as it is still there."""
    for upload in uploads.values():
        upload.path.unlink(missing_ok=True)


async def _read_form(request: Request, state: State) -> tuple[dict[str, Any], list[str], Uploads]:
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > state.options.upload_bytes + MOST_JSON:
        raise TooLarge(f"the upload is larger than the {state.options.upload_bytes / 2**20:g} MiB that are taken")
    fields: dict[str, Any] = {}
    uploads: Uploads = {}
    try:
        async with request.form(max_files=len(FILES), max_fields=100, max_part_size=MOST_JSON) as form:
            for name, value in form.multi_items():
                if isinstance(value, str):
                    fields[name] = [*fields[name], value] if isinstance(fields.get(name), list) else value
                else:
                    await _keep(name, value, uploads, state)
        return *flattened(fields), uploads
    except BaseException:
        remove(uploads)
        raise


async def _keep(field: str, file, uploads: Uploads, state: State) -> None:
    """Add the ``file`` of a form's ``field`` to ``uploads``."""
    name = FILES.get(field)
    if name is None:
        raise ValueError(f"there is no file {field!r}; the names of files are audio, midi, melody and along")
    if name in uploads:
        raise ValueError(f"there are two files for {name!r}; send one")
    called = Path(file.filename or "recording").name
    uploads[name] = await receive(_blocks(file), called, state.uploads, state.options.upload_bytes)


async def _blocks(file) -> AsyncIterator[bytes]:
    while block := await file.read(2**20):
        yield block
