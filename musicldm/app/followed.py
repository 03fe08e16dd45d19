"""What a client sends to be followed: chords, a MIDI file, a melody, a recording.

fields, uploads -> files that are safe to read -> Sketch, and the recording that music goes along with
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import soundfile

from musicldm.app.bodies import Uploads
from musicldm.app.schemas import Body, Generation
from musicldm.app.state import State
from musicldm.app.uploads import decode
from musicldm.generate.edit import Edit, file_sha256, resolved_retake
from musicldm.scores.sketches import Sketch

MOST_MELODY_S = 600.0  # of a melody, whose pitch takes about as long to find as to hum


def sketch_of(wanted: Body, uploads: Uploads, state: State) -> Sketch | None:
    """The sketch that ``wanted`` and its ``uploads`` ask for; their files are read and removed.

    Raises:
        ValueError: for what cannot be followed, with the client's own name of a file.
    """
    sent = {name: uploads[name] for name in ("midi", "melody") if name in uploads}
    files = {name: upload.path for name, upload in sent.items()}
    try:
        if "melody" in files:
            files["melody"] = decode(files["melody"], state.options).path
            if (seconds := soundfile.info(files["melody"]).duration) > MOST_MELODY_S:
                raise ValueError(
                    f"the melody lasts {seconds:.0f} s, and {MOST_MELODY_S:g} s are taken; send a part of it"
                )
        return wanted.score(files)
    except ValueError as error:
        message = str(error)
        for name, path in files.items():
            message = message.replace(str(path), sent[name].name)
        raise ValueError(message) from error
    finally:
        for path in files.values():
            path.unlink(missing_ok=True)


def retake_of(edit: Edit, client: str, state: State) -> Edit:
    """A retake as the recipe of its source says, of files that are ``client``'s own.

    Raises:
        OSError: if the source cannot be read.
        ValueError: if the recipe names other files, or a recording that is not here.
    """
    edit = resolved_retake(edit)
    for name in ("lora", "concept", "index"):
        if getattr(edit, name):
            raise ValueError(
                f"the recipe of this piece names a file ({name}), which the server does not open; make the retake with "
                "`musicldm edit retake`"
            )
    called, sha256 = edit.music.get("along"), edit.music.get("along_sha256")
    if called is None:
        return edit
    if (path := state.recordings.find(client, sha256)) is not None:
        sha256 = None  # that of the client's file; this one holds the same samples
    elif (path := state.library.file_named(client, called)) is None or file_sha256(path) != sha256:
        raise ValueError(f"the recording that this piece was made along with, {called!r}, is not here; make it anew")
    return replace(edit, music=edit.music | {"along": str(path), "along_sha256": sha256})


def recording_of(wanted: Generation, uploads: Uploads, client: str, state: State) -> Path | None:
    """The recording that ``wanted`` is made along with: an earlier result, or the upload, decoded.

    Raises:
        ValueError: for both, or an upload that is no audio.
    """
    upload = uploads.get("along")
    if upload is None:
        return None if wanted.along is None else state.file(wanted.along, client)
    if wanted.along is not None:
        raise ValueError("give either the id of a result as along, or a file, not both")
    return state.recordings.keep(upload, client)
