"""Opens recordings; all commands use it. Problems of a file are reported by name.

    file, or a part of one  ->  `open_audio`  ->  rate, channels, frames, what the header declared, blocks of samples

The length in the header is compared with the file (WAV, AIFF, AU, FLAC, Ogg) or counted (MP3). WAV files with sizes of
0, as streaming programs write them, are read completely.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from musicldm.audio.mp3 import counted_file
from musicldm.audio.mp4 import decoded, is_mp4

if TYPE_CHECKING:
    import soundfile

LOWEST_RATE, HIGHEST_RATE = 1000, 768_000  # Hz
BLOCK = 2**18  # frames per decoded block, so that the channels of a long recording do not fill the memory
END = 2**16  # bytes at either end of a file that its identity depends on
UNKNOWN_FRAMES = 2**40
UNKNOWN = 0x7FFF0000  # bytes; sizes in a header from here upwards mean that the size is unknown
SIZES = {"WAV": "data", "WAVEX": "data", "AIFF": "SSND", "AU": "Data Size", "W64": "riff", "RF64": "Riff size"}
STATED = {  # the line of libsndfile's log with the size that a header declares and that which the file has
    kind: rf"^\s*{name}\s*:\s*(\d+) \(should be (\d+)\)" for kind, name in SIZES.items()
}
MISSING_S = 0.1  # seconds that may be missing at the end without a warning
CANCELLED = 1e-3  # of the loudest sample; if the mean of the channels stays below, the channels cancel each other
REPAIR = "give the whole file or leave it out"


class Ends(ValueError):
    """A recording that ends early."""


class Audio:
    """A recording that is open for reading.

    Attributes:
        rate: in Hz.
        channels: number of channels.
        frames: number of frames.
        declared: number of frames according to the header.
        container: libsndfile's name of it, or MP4 for AAC.
        remark: a problem of the file, or None.
    """

    def __init__(self, name: str | Path, sound: soundfile.SoundFile, declared: int = 0):
        self.name, self.sound = name, sound
        self.remark: str | None = None
        self.container: str = sound.format
        self.rate, self.channels, self.frames = sound.samplerate, sound.channels, sound.frames
        self.declared = max(self.frames, declared)

    @property
    def duration_s(self) -> float:
        return self.frames / self.rate

    def read(self, start: int, n: int) -> np.ndarray:
        """At most ``n`` frames from ``start``, float32 (n, channels); ValueError for NaN and infinite values."""
        self.sound.seek(min(start, self.frames))
        frames = self.sound.read(n, dtype="float32", always_2d=True)
        self._check(frames, start)
        return frames

    def blocks(self) -> Iterator[np.ndarray]:
        """All frames as blocks (L, channels) float32.

        Warns if the recording ends early, is silent, or its channels cancel each other.

        Raises:
            ValueError: for NaN or infinite values, or no frames.
        """
        import soundfile

        n, loudest, loudest_mean = 0, 0.0, 0.0
        while True:
            try:
                block = self.sound.read(BLOCK, dtype="float32", always_2d=True)
            except soundfile.LibsndfileError as error:
                raise ValueError(
                    f"{self.name} cannot be read as audio beyond {n / self.rate:.2f} of "
                    f"{self.declared / self.rate:.2f} s that its header states ({_reason(error)}); {REPAIR}"
                ) from error
            if not len(block):
                break
            self._check(block, n)
            n += len(block)
            loudest = max(loudest, float(np.abs(block).max()))
            loudest_mean = max(loudest_mean, float(np.abs(block.mean(axis=1)).max()))
            yield block
        if not n:
            raise ValueError(f"{self.name} holds no samples; give a recording of at least one frame")
        if self.lacks(n) and not self.remark:
            self.remark = self.ends(n)
        self.warn()
        if loudest_mean < CANCELLED * loudest:
            warnings.warn(f"{self.name}: its channels cancel each other; their mean is silent", stacklevel=2)

    def warn(self) -> None:
        """Give the `remark` as a warning, if there is one."""
        if self.remark:
            warnings.warn(f"{self.name} {self.remark}", stacklevel=2)

    def check_end(self) -> None:
        """Read the last frame if the container (FLAC) has no sizes; raises `Ends` if it is missing."""
        import soundfile

        if self.sound.format != "FLAC" or not self.frames:
            return
        try:
            self.sound.seek(self.frames - 1)
            there = len(self.sound.read(1, dtype="float32"))
            self.sound.seek(0)
        except soundfile.LibsndfileError:
            there = 0
        if not there:
            raise Ends(f"{self.name} ends before the {self.duration_s:.2f} s that its header states; {REPAIR}")

    def lacks(self, n: int) -> bool:
        """Whether ``n`` frames are fewer than declared."""
        return n < self.declared - MISSING_S * self.rate

    def ends(self, n: int) -> str:
        """Message for a recording that has only ``n`` frames."""
        return f"ends after {n / self.rate:.2f} s; its header states {self.declared / self.rate:.2f} s"

    def _check(self, frames: np.ndarray, start: int) -> None:
        if not np.isfinite(frames).all():
            at = tuple(np.argwhere(~np.isfinite(frames))[0])
            seconds = (start + at[0]) / self.rate
            raise ValueError(f"{self.name} holds {frames[at]} at {seconds:.3f} s; repair the file or leave it out")


def doubt(path: Path) -> str | None:
    """Message for a recording that libsndfile can open but that ends early; None for all other files."""
    try:
        with open_audio(path) as audio:
            audio.check_end()
            return None if audio.remark and "no MP3" in audio.remark else audio.remark
    except Ends as error:
        return str(error).removeprefix(f"{path} ")
    except ValueError:
        return None


@contextmanager
def open_audio(path: str | Path, file: BinaryIO | None = None) -> Iterator[Audio]:
    """Open the recording at ``path`` (WAV, FLAC, Ogg, MP3, ...), or in ``file``, for which ``path`` is only the name.

    AAC (``.m4a``) is decoded if PyAV is installed. Pipes are read completely.

    Raises:
        OSError: if the file is missing, a folder, or may not be read.
        ValueError: if it is not audio, or its rate is below 1 kHz or above 768 kHz; also while reading in this context.
    """
    import soundfile

    path = Path(path)
    with ExitStack() as stack:
        source = file
        if file is None:
            source = stack.enter_context(path.open("rb"))  # for the system's error messages; libsndfile's are vague
            if not source.seekable():
                file = source = io.BytesIO(source.read())
        start = source.read(8)
        source.seek(0)
        if not start:
            raise ValueError(f"{path} is an empty file; give a recording (WAV, FLAC, Ogg or MP3)")
        if path.suffix.lower() == ".raw":
            raise ValueError(f"{path} is raw audio without rate and format; convert it to WAV or FLAC first")
        # bytes: soundfile cannot encode a name that is not UTF-8
        place = os.fsencode(path) if file is None else file
        if mp4 := is_mp4(start):
            place = os.fsencode(decoded(path, source, stack))
        try:
            audio = _opened(path, source, place, stack)
            audio.container = "MP4" if mp4 else audio.container
            yield audio
        except soundfile.LibsndfileError as error:
            raise ValueError(
                f"{path} cannot be read as audio ({_reason(error)}); give WAV, FLAC, Ogg or MP3"
            ) from error


def _opened(path: Path, source: BinaryIO, place: bytes | BinaryIO, stack: ExitStack) -> Audio:
    """``source`` as `Audio`, once its length is checked."""
    import soundfile

    sound = stack.enter_context(soundfile.SoundFile(place))
    rate = sound.samplerate
    if not LOWEST_RATE <= rate <= HIGHEST_RATE:
        raise ValueError(
            f"{path} has a rate of {rate} Hz, but {LOWEST_RATE} to {HIGHEST_RATE} Hz are supported: repair its "
            "header or leave it out"
        )
    at, size = source.tell(), source.seek(0, io.SEEK_END)  # libsndfile goes on at this place if it reads ``source``
    source.seek(0)
    declared = 0
    remark: str | None = None
    if sound.format in ("WAV", "WAVEX"):
        if not sound.frames and (head := sized_header(source, size)):
            sound = stack.enter_context(soundfile.SoundFile(Stretch(source, 0, size, head)))
            return Audio(path, sound)
    elif sound.format == "FLAC":
        if sound.frames > UNKNOWN_FRAMES:
            raise ValueError(f"{path} has no length in its header (it was streamed); encode it again with `flac`")
    elif sound.format == "MP3" and (found := counted_file(source, size)):
        sound = stack.enter_context(soundfile.SoundFile(io.BytesIO(found.content)))
        declared = found.declared
        if found.foreign:
            remark = f"holds {found.foreign} bytes between its frames that are no MP3; the others are read"
    elif sound.format == "OGG":
        remark = _ogg_remark(path, source, size)
    line = STATED.get(sound.format)
    if line and (sizes := re.search(line, sound.extra_info, re.MULTILINE)):
        stated, there = map(int, sizes.groups())
        if there and stated - there > 8 and stated < UNKNOWN:  # some writers leave out a byte of padding
            declared = round(sound.frames * stated / there)
    source.seek(at)
    opened = Audio(path, sound, declared)
    opened.remark = remark or (opened.ends(opened.frames) if opened.lacks(opened.frames) else None)
    return opened


class Stretch(io.RawIOBase):
    """``size`` bytes of ``file`` from ``offset``, as a file, with its first bytes replaced by ``head``."""

    def __init__(self, file: BinaryIO, offset: int, size: int, head: bytes = b""):
        self.file, self.offset, self.size, self.head, self.at = file, offset, size, head, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.at = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.at, io.SEEK_END: self.size}[whence])
        return self.at

    def tell(self) -> int:
        return self.at

    def readinto(self, buffer) -> int:
        self.file.seek(self.offset + self.at)
        view = memoryview(buffer)[: max(0, min(len(buffer), self.size - self.at))]
        content = self.file.read(len(view))
        n = len(content)
        view[:n] = content
        if changed := self.head[self.at : self.at + n]:
            view[: len(changed)] = changed
        self.at += n
        return n

    def close(self) -> None:
        self.file.close()
        super().close()


def sized_header(file: BinaryIO, size: int) -> bytes | None:
    """A corrected header for a WAV ``file`` that states 0 bytes of samples; None if there are none."""
    file.seek(0)
    head = file.read(END)
    if head[:4] != b"RIFF" or (data := _chunk(head, 12, b"data")) is None or _chunk(head, data, None) == size:
        return None  # chunks to the end of the file: no samples
    sizes = [(size - start).to_bytes(8, "little")[:4] for start in (8, data + 8)]
    return head[:4] + sizes[0] + head[8 : data + 4] + sizes[1]


def _chunk(head: bytes, at: int, name: bytes | None) -> int | None:
    """Position of the chunk ``name`` of a WAV file, from ``at`` onwards; without a name the end of the last chunk."""
    while at + 8 <= len(head) and head[at : at + 4].isalnum() | (head[at : at + 3] == b"fmt"):
        if head[at : at + 4] == name:
            return at
        length = int.from_bytes(head[at + 4 : at + 8], "little")
        at += 8 + length + length % 2
    return at if name is None else None


def _ogg_remark(path: Path, file: BinaryIO, size: int) -> str | None:
    """Message for an Ogg file that ends without its last page.

    Raises:
        ValueError: for several concatenated streams, of which libsndfile reads only the first.
    """
    pages = []
    for at in range(0, size, max(END, size // 16)):  # all of a small file, and parts of others
        file.seek(at)
        pages += re.findall(rb"OggS\0(.)(.{8})(.{4})", file.read(END + 32), re.DOTALL)
    file.seek(max(0, size - END))
    last = re.findall(rb"OggS\0(.)(.{8})(.{4})", file.read(), re.DOTALL)[-1:]
    streams = {serial for _, _, serial in pages[:1]}
    times = [int.from_bytes(time, "little", signed=True) for _, time, serial in pages + last if serial in streams]
    times = [time for time in times if time >= 0]
    if times != sorted(times) or any(serial not in {serial for _, _, serial in pages[:4]} for _, _, serial in last):
        raise ValueError(
            f"{path} holds several streams one behind the other, of which only the first can be read; save it as "
            "WAV or FLAC"
        )
    ended = last and last[0][0][0] & 4
    return None if ended else "ends without the last page of its stream; it may have been cut off"


def identity(path: Path, file: BinaryIO | None = None) -> str:
    """What changes when the recording at ``path``, or ``file`` in it, does: size, time, and a hash of both its ends."""
    modified = os.stat(path).st_mtime_ns
    return f"{modified} {content_mark(path, file)}"


def content_mark(path: Path, file: BinaryIO | None = None) -> str:
    """`identity` without the time, which a copy of a file does not share."""
    with ExitStack() as stack:
        file = file or stack.enter_context(open(path, "rb"))
        size = file.seek(0, io.SEEK_END)
        ends = []
        for at in (0, max(0, size - END)):
            file.seek(at)
            ends.append(file.read(END))
    return f"{size} {hashlib.sha256(b''.join(ends)).hexdigest()[:24]}"


def _reason(error: soundfile.LibsndfileError) -> str:
    return error.error_string.rstrip(". ")
