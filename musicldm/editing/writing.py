"""Writes edited recordings in the source's container, rate, channels and sample format, in blocks and atomically.

`Source`, patches, recipe  ->  `output_form`, `write_patched`  ->  file with the source's tags and the recipe inside

Tags that are kept: title, artist, album, date, genre, track number, copyright and licence, where both containers have
them (WAV, RF64, AIFF, FLAC, CAF). The comment is the recipe's place. Cue points and other chunks are not kept.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from musicldm.audio.marks import BESIDE, add_mark, write_sidecar
from musicldm.audio.output import whole_file
from musicldm.audio.tags import APPENDED, append_comment
from musicldm.editing.patches import Patch, blocks, pieces
from musicldm.editing.source import EXACT, FileSource, Source

SUFFIXES = {  # of the containers that are written; the first is that of a new file
    "WAV": (".wav", ".wave"),
    "WAVEX": (".wav", ".wave"),
    "RF64": (".wav", ".rf64", ".wave"),
    "W64": (".w64",),
    "AIFF": (".aiff", ".aif", ".aifc"),
    "FLAC": (".flac",),
    "CAF": (".caf",),
    "AU": (".au", ".snd"),
}
INSTEAD = {  # subtypes for a container that does not have the first
    "PCM_S8": ("PCM_U8", "PCM_16"),
    "PCM_U8": ("PCM_S8", "PCM_16"),
    "ULAW": ("PCM_16",),
    "ALAW": ("PCM_16",),
    "PCM_32": ("PCM_24",),
    "FLOAT": ("PCM_24",),
    "DOUBLE": ("FLOAT", "PCM_24"),
}
ROUNDED = {("PCM_32", "PCM_24"), ("FLOAT", "PCM_24"), ("DOUBLE", "FLOAT"), ("DOUBLE", "PCM_24")}
TAGS = ("title", "artist", "album", "date", "genre", "tracknumber", "copyright", "license")
TAGGED = ("WAV", "WAVEX", "RF64", "AIFF", "FLAC", "CAF")
UNTOLD = ("AU", "W64")  # containers without a place for the recipe
SMALL = ("WAV", "WAVEX", "AIFF", "AU")  # containers whose sizes have 32 bits
MOST_BYTES = 2**32 - 2**20  # of samples in one of `SMALL`
HEAD = 4096  # bytes of a file that hold the chunks before its samples
BYTES = {"PCM_S8": 1, "PCM_U8": 1, "ULAW": 1, "ALAW": 1, "PCM_16": 2, "PCM_24": 3, "DOUBLE": 8}  # others: 4


class Form(NamedTuple):
    """Format of an edited recording."""

    container: str  # libsndfile's name
    subtype: str
    suffix: str  # of the file's name, with the dot
    remarks: tuple[str, ...]  # one line for each difference from the source


def output_form(source: Source, format: str | None = None, subtype: str | None = None) -> Form:
    """Container and sample format for an edited version of ``source``.

    They are those of the source, unless ``format`` (wav, flac, aiff, w64, rf64, caf, au) or ``subtype`` (PCM_16,
    PCM_24, FLOAT, ...) is given. Arrays, decoded files and containers that cannot be written become WAV.

    Raises:
        ValueError: for an unknown ``format`` or ``subtype``, or one that the container does not have.
    """
    import soundfile

    remarks = []
    container = (format or source.container or "WAV").upper()
    if format is not None and container not in SUFFIXES:
        raise ValueError(f"format must be one of {', '.join(name.lower() for name in SUFFIXES)}, got {format!r}")
    if container not in SUFFIXES or (source.decoded and format is None):
        why = "decoded" if source.decoded else f"{source.container}, which is read only"
        remarks.append(f"{source.name} is {why}: the result is WAV with {source.subtype} samples")
        container = "WAV"
    if subtype is not None and (subtype not in EXACT or not soundfile.check_format(container, subtype)):
        has = ", ".join(sorted(name for name in EXACT if soundfile.check_format(container, name)))
        raise ValueError(f"{container} files have the subtypes {has}, got {subtype!r}")
    wanted = subtype or source.subtype
    candidates = (wanted, *INSTEAD.get(wanted, ()))
    taken = next(name for name in candidates if soundfile.check_format(container, name))
    if taken != wanted:
        rounded = ", to which kept samples are rounded" if (wanted, taken) in ROUNDED else ""
        remarks.append(f"{container} files have no {wanted} samples: they are {taken}{rounded}")
    if container in UNTOLD:
        remarks.append(f"{container} files have no place for the recipe")
    own = Path(source.name).suffix.lower() if isinstance(source, FileSource) else ""
    suffix = own if own in SUFFIXES[container] else SUFFIXES[container][0]
    return Form(container, taken, suffix, tuple(remarks))


def write_patched(
    path: str | Path,
    source: Source,
    patches: Sequence[Patch],
    format: str | None = None,
    subtype: str | None = None,
    recipe: dict[str, Any] | None = None,
    mark: str | None = None,
) -> Form:
    """Write ``source`` with ``patches`` to ``path`` in the form of `output_form`, with ``recipe`` in the comment.

    ``mark``, one of `musicldm.audio.marks`, is written into the file if the container has a place for it, otherwise
    into a sidecar with the suffix ``.xmp``.

    Kept samples are the source's to the bit, unless a remark of the result says that they are rounded. A WAV file of
    more than 4 GB becomes RF64.

    Raises:
        ValueError: if ``path`` is the source itself or has another container's suffix; also as `Source.read`, `pieces`
            and `output_form`.
        OSError: if the file cannot be written; nothing is left behind.
    """
    path = Path(path)
    form = _roomy(output_form(source, format, subtype), source, patches)
    if path.suffix.lower() not in SUFFIXES[form.container]:
        endings = " or ".join(SUFFIXES[form.container])
        raise ValueError(f"{path} would hold {form.container}: its name must end in {endings}")
    if isinstance(source, FileSource) and path.exists() and os.path.samefile(path, source.path):
        raise ValueError(f"{path} is the source, which is never written to; give another name")
    comment = json.dumps(recipe) if recipe is not None else None  # ASCII, with everything else escaped
    with whole_file(path) as file:
        _encode(file, source, patches, form, None if form.container in APPENDED else comment)
        if comment is not None and form.container in APPENDED:
            append_comment(file, comment)
        _forget_time(file)
        is_marked = mark is None or form.container not in BESIDE
        if mark is not None and is_marked:
            add_mark(file, mark)
    if not is_marked:
        write_sidecar(path, mark)
    return form


def _roomy(form: Form, source: Source, patches: Sequence[Patch]) -> Form:
    """``form``, with RF64 instead of WAV if there are too many samples for WAV."""
    n = sum(piece.stop - piece.start for piece in pieces(source, patches))
    size = n * source.channels * BYTES.get(form.subtype, 4)
    if form.container not in SMALL or size <= MOST_BYTES:
        return form
    if form.container not in ("WAV", "WAVEX"):
        raise ValueError(f"{size / 2**30:.1f} GiB of samples do not fit into {form.container}; choose the format w64")
    remark = f"{size / 2**30:.1f} GiB of samples do not fit into {form.container}: the file is RF64"
    return form._replace(container="RF64", remarks=(*form.remarks, remark))


class _Watched:
    """A binary file for libsndfile that keeps its own errors, which libsndfile does not pass on."""

    def __init__(self, file: BinaryIO):
        self.file = file
        self.error: OSError | None = None
        self.seek, self.tell, self.read = file.seek, file.tell, file.read

    def write(self, content: bytes) -> int:
        try:
            return self.file.write(content)
        except OSError as error:
            self.error = error
            return 0


def _encode(file: BinaryIO, source: Source, patches: Sequence[Patch], form: Form, comment: str | None) -> None:
    import soundfile

    watched = _Watched(file)
    endian = source.endian if form.container == source.container and form.container in ("AIFF", "CAF", "AU") else "FILE"
    try:
        with soundfile.SoundFile(
            watched, "w", source.rate, source.channels, form.subtype, endian, form.container
        ) as sound:
            for name in TAGS if form.container in TAGGED else ():
                if value := source.metadata.get(name):
                    setattr(sound, name, value)
            if comment is not None and form.container in TAGGED:
                sound.comment = comment
            for block in blocks(source, patches, form.subtype):
                sound.write(block)
    except (soundfile.LibsndfileError, AssertionError) as error:  # soundfile asserts that all samples were written
        if watched.error is None:
            raise ValueError(
                f"{source.name} cannot be written as {form.container} ({error}); choose another"
            ) from error
    if watched.error is not None:
        raise watched.error


def _forget_time(file: BinaryIO) -> None:
    """Set the time in the chunk PEAK of floating-point files to 0, so that the same samples give the same file."""
    file.seek(0)
    head = file.read(HEAD)
    samples = min((at for name in (b"data", b"SSND") if (at := head.find(name)) >= 0), default=0)
    if (at := head.find(b"PEAK", 0, samples)) >= 0:
        file.seek(at + 12)  # behind its name, size and version
        file.write(bytes(4))
