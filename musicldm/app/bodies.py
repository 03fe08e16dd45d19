"""Bodies of requests: JSON or forms, within limits, with or without a recording."""

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
AUDIO = ("audio", "src_audio", "ctx_audio")  # names of a form's field that has a recording


async def read_body(request: Request, state: State) -> tuple[dict[str, Any], list[str], Upload | None]:
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


async def _read_form(request: Request, state: State) -> tuple[dict[str, Any], list[str], Upload | None]:
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > state.options.upload_bytes + MOST_JSON:
        raise TooLarge(f"the upload is larger than the {state.options.upload_bytes / 2**20:g} MiB that are taken")
    fields: dict[str, Any] = {}
    upload = None
    async with request.form(max_files=1, max_fields=100, max_part_size=MOST_JSON) as form:
        for name, value in form.multi_items():
            if isinstance(value, str):
                fields[name] = [*fields[name], value] if isinstance(fields.get(name), list) else value
            elif name in AUDIO:
                name = Path(value.filename or "recording").name
                upload = await receive(_blocks(value), name, state.uploads, state.options.upload_bytes)
            else:
                raise ValueError(f"there is no file {name!r}; send a recording as 'audio'")
    return *flattened(fields), upload


async def _blocks(file) -> AsyncIterator[bytes]:
    while block := await file.read(2**20):
        yield block
