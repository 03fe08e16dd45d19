"""AAC and ALAC in MP4 files (``.m4a``, ``.mp4``) or streams (``.aac``), which libsndfile does not read.

file -> PyAV's decoder -> a temporary file of float samples, which libsndfile reads
"""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

STREAMS = (b"\xff\xf1", b"\xff\xf9")  # how the frames of an AAC stream begin: MPEG-4 and MPEG-2


def is_mp4(start: bytes) -> bool:
    """Whether a file that begins with the bytes ``start``, at least 8, is an MP4 file or an AAC stream."""
    return start[4:8] == b"ftyp" or start[:2] in STREAMS


def decoded(path: Path, source: BinaryIO, stack: ExitStack) -> Path:
    """The first audio stream of ``source``, which ``path`` names, as a float W64 file that ``stack`` removes.

    Raises:
        ValueError: if PyAV is missing, or cannot decode the file.
    """
    try:
        import av
    except ImportError as error:
        raise ValueError(
            f"{path} cannot be read without a decoder for AAC: run `pip install av`, or convert it to WAV or FLAC"
        ) from error
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="musicldm-"))
    place = Path(folder) / "decoded.w64"
    try:
        with av.open(source, metadata_errors="ignore") as container:
            if not container.streams.audio:
                raise ValueError(f"{path} holds no audio; give a recording")
            _decode(container, place)
    except av.error.FFmpegError as error:
        raise ValueError(f"{path} cannot be read as audio ({error.strerror}); give WAV, FLAC, Ogg or MP3") from error
    return place


def _decode(container, place: Path) -> None:
    import av
    import soundfile

    stream = container.streams.audio[0]
    as_float = av.AudioResampler(format="fltp", layout=stream.layout, rate=stream.rate)
    channels = stream.codec_context.channels
    with soundfile.SoundFile(place, "w", stream.rate, channels, "FLOAT", format="W64") as file:
        for frame in container.decode(stream):
            for block in as_float.resample(frame):
                file.write(block.to_ndarray().T)
        for block in as_float.resample(None):
            file.write(block.to_ndarray().T)
