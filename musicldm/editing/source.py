"""Recordings to edit: opened without decoding them completely, read exactly, and never written to.

    file or array  ->  `Source`  ->  rate, channels, length, container, subtype; samples (A, n) of any stretch, float64

All lossless sample formats (integers of up to 32 bits, floats) fit into float64 without rounding, so that samples that
are read and written again are the same to the bit. Lossy formats such as MP3, Ogg and AAC are decoded to float32.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from musicldm.audio.files import MOST_CHANNELS
from musicldm.audio.reading import BLOCK, HIGHEST_RATE, LOWEST_RATE, Audio, identity, open_audio
from musicldm.config.values import check_number, shown

SILENT = 1e-4  # a peak below this is silence: -80 dB
BITS = {"PCM_S8": 8, "PCM_U8": 8, "PCM_16": 16, "PCM_24": 24, "PCM_32": 32, "ULAW": 16, "ALAW": 16}
FLOATS = {"FLOAT": np.float32, "DOUBLE": np.float64}
EXACT = {*BITS, *FLOATS}  # subtypes that come back to the bit when they are written again
ARRAYS = {"float16": "FLOAT", "float32": "FLOAT", "float64": "DOUBLE", "int16": "PCM_16", "int32": "PCM_32"}
PREROLL_S = 1.0  # read before a stretch of a lossy file, whose decoders need some sound to be exact after a jump


class Source(ABC):
    """A recording to edit. Made by `Source.open` or `Source.of`; safe for several threads.

    Attributes:
        name: of the file, or "audio" for an array.
        rate: in Hz.
        channels: number of channels A.
        length: samples of each channel.
        container: libsndfile's name of the container (WAV, FLAC, AIFF, W64, RF64, ...); None for an array.
        subtype: libsndfile's name of the sample format, one of `EXACT`; FLOAT for decoded files.
        decoded: whether the file is lossy (MP3, Ogg, AAC, ...).
        dtype: of the array that `apply` gives: int16 and int32 for whole numbers, as soundfile reads them.
        endian: byte order of the file, as libsndfile names it.
        flat: whether it is an array of shape (L,).
        metadata: title, artist and other tags that libsndfile reads.
        remark: a problem of the file, or None.
    """

    name: str = "audio"
    rate: int
    channels: int
    length: int
    container: str | None = None
    subtype: str
    decoded: bool = False
    dtype: np.dtype
    endian: str = "FILE"
    flat: bool = False
    metadata: dict[str, str]
    remark: str | None = None

    @staticmethod
    def open(path: str | Path) -> FileSource:
        """The recording in the file ``path``, of which only the header and the last frame are read now.

        Raises:
            OSError: if the file is missing, a folder, or may not be read.
            ValueError: if it is not audio, has no samples or more than 8 channels.
        """
        return FileSource(path)

    @staticmethod
    def of(array: Any, rate: int) -> ArraySource:
        """The recording in ``array``, (L,) or (A, L), NumPy or torch, at ``rate`` Hz.

        Samples are float16, float32 or float64 from -1 to 1, or int16 or int32 at full scale.

        Raises:
            ValueError: if the shape, dtype or rate is wrong, there are no samples, or one is not finite.
        """
        return ArraySource(array, rate)

    @property
    def duration_s(self) -> float:
        return self.length / self.rate

    def read(self, start: int, stop: int) -> np.ndarray:
        """Samples ``[start, stop)`` as (A, stop - start) float64, exact, -1 to 1 being full scale.

        Raises:
            ValueError: if the range lies outside, or a sample is not finite.
        """
        if not 0 <= start <= stop <= self.length:
            raise ValueError(f"{self.name} has samples 0 to {self.length}, not {start} to {stop}")
        blocks = list(self.blocks(start, stop))
        return np.concatenate(blocks, axis=1) if blocks else np.zeros((self.channels, 0))

    @abstractmethod
    def blocks(self, start: int = 0, stop: int | None = None) -> Iterator[np.ndarray]:
        """`read` in pieces of at most 2 ** 18 samples, one after another."""

    @abstractmethod
    def sha256(self) -> str:
        """Of the file's bytes, or of an array's samples."""

    def check(self) -> None:
        """Check the samples before long work begins: all of floating-point files, others until one is audible.

        Raises:
            ValueError: for NaN or infinity, damaged parts, or silence throughout.
        """
        loud = False
        for block in self.blocks():
            loud = loud or bool(np.abs(block).max() >= SILENT)
            if loud and self.subtype not in FLOATS:
                return
        if not loud:
            raise ValueError(f"{self.name} is silent throughout; give a recording with sound")


class FileSource(Source):
    """A `Source` in a file."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.name = str(path)
        with open_audio(path) as audio:
            sound = audio.sound
            self.rate, self.channels, self.length = audio.rate, audio.channels, audio.frames
            self.container, subtype, self.endian = audio.container, sound.subtype, sound.endian
            self.metadata, self.remark = sound.copy_metadata(), audio.remark
            audio.check_end()
        if not self.length:
            raise ValueError(f"{path} holds no samples; give a recording of at least one frame")
        if self.channels > MOST_CHANNELS:
            raise ValueError(f"{path} has {self.channels} channels, up to {MOST_CHANNELS} can be edited; mix it down")
        self.decoded = subtype not in EXACT or self.container == "MP4"
        self.subtype = "FLOAT" if self.decoded else subtype
        self.dtype = np.dtype(FLOATS.get(self.subtype) or (np.int16 if BITS[self.subtype] <= 16 else np.int32))
        self.identity = identity(self.path)

    def blocks(self, start: int = 0, stop: int | None = None) -> Iterator[np.ndarray]:
        import soundfile

        if identity(self.path) != self.identity:
            raise ValueError(f"{self.name} changed since it was opened; open it again")
        stop = self.length if stop is None else stop
        with open_audio(self.path) as audio:
            try:
                self._seek(audio, start)
                while start < stop:
                    block = self._block(audio, min(BLOCK, stop - start))
                    self._check_block(block, start)
                    start += block.shape[1]
                    yield block
            except soundfile.LibsndfileError as error:
                raise ValueError(
                    f"{self.name} cannot be read beyond {start / self.rate:.2f} s; repair the file first"
                ) from error

    def _seek(self, audio: Audio, start: int) -> None:
        """Bring ``audio`` to the sample ``start``."""
        lead = round(PREROLL_S * self.rate) if self.decoded else 0
        begin = max(0, start - lead)
        audio.sound.seek(begin)
        audio.sound.read(start - begin, dtype="float32")

    def _block(self, audio: Audio, n: int) -> np.ndarray:
        """The next ``n`` samples, (A, n) float64."""
        kind = "float32" if self.decoded else "int32" if self.subtype in BITS else "float64"
        samples = audio.sound.read(n, dtype=kind, always_2d=True).T.astype(np.float64)
        if kind == "int32":
            samples /= 2.0**31
        return samples

    def _check_block(self, block: np.ndarray, start: int) -> None:
        if not block.size:
            raise ValueError(f"{self.name} ends after {start / self.rate:.2f} s, before its header says")
        check_finite(self.name, block, start, self.rate)

    def sha256(self) -> str:
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


class ArraySource(Source):
    """A `Source` in an array."""

    def __init__(self, array: Any, rate: int):
        if hasattr(array, "detach"):  # torch, whose bfloat16 NumPy does not know
            array = array.detach().cpu()
            array = array.numpy() if str(array.dtype).removeprefix("torch.") in ARRAYS else array
        if not isinstance(array, np.ndarray):
            kind = getattr(array, "dtype", type(array).__name__)
            raise ValueError(f"audio must be an array of {', '.join(ARRAYS)}, got {kind}; convert it first")
        if array.dtype.name not in ARRAYS:
            raise ValueError(f"audio must be of {', '.join(ARRAYS)}, got {array.dtype}; convert it first")
        if array.ndim not in (1, 2) or not array.size:
            raise ValueError(f"audio must be (samples,) or (channels, samples) and not empty, got {array.shape}")
        if array.ndim == 2 and len(array) > MOST_CHANNELS:
            raise ValueError(f"audio has up to {MOST_CHANNELS} channels, got {array.shape}; give (channels, samples)")
        check_number("the sampling rate", rate, LOWEST_RATE, HIGHEST_RATE)
        if rate % 1:
            raise ValueError(f"the sampling rate must be a whole number of Hz, got {shown(rate)}")
        self.array, self.rate, self.dtype, self.metadata = array, int(rate), array.dtype, {}
        self.flat = array.ndim == 1
        self.channels, self.length = (1 if array.ndim == 1 else len(array)), array.shape[-1]
        self.subtype = ARRAYS[array.dtype.name]
        if array.dtype.kind == "f":
            for at in range(0, self.length, BLOCK):
                check_finite(self.name, np.atleast_2d(array)[:, at : at + BLOCK], at, self.rate)

    def blocks(self, start: int = 0, stop: int | None = None) -> Iterator[np.ndarray]:
        stop = self.length if stop is None else stop
        scale = 1.0 if self.dtype.kind == "f" else 2.0 ** (BITS[self.subtype] - 1)
        for at in range(start, stop, BLOCK):
            yield np.atleast_2d(self.array)[:, at : min(stop, at + BLOCK)].astype(np.float64) / scale

    def sha256(self) -> str:
        digest = hashlib.sha256(f"{self.rate} {self.dtype} {self.array.shape} ".encode())
        for block in np.atleast_2d(self.array):
            digest.update(np.ascontiguousarray(block).data)
        return digest.hexdigest()


def check_finite(name: str, block: np.ndarray, start: int, rate: int) -> None:
    """Raise ValueError if ``block (A, n)``, which begins at sample ``start``, holds NaN or infinity."""
    if not np.isfinite(block).all():
        channel, at = np.argwhere(~np.isfinite(block))[0]
        seconds = (start + at) / rate
        raise ValueError(f"{name} holds {block[channel, at]} at {seconds:.3f} s; repair it or leave it out")
