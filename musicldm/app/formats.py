"""Results in other formats than they were made in, marked as they are."""

from __future__ import annotations

import io
from pathlib import Path

from musicldm.audio.marks import add_mark, read_mark

FORMATS = ("wav", "flac", "mp3", "ogg", "opus")
MEDIA_TYPES = {"wav": "audio/wav", "flac": "audio/flac", "mp3": "audio/mpeg", "ogg": "audio/ogg", "opus": "audio/ogg"}
CODECS = {
    "flac": ("FLAC", None),
    "mp3": ("MP3", "MPEG_LAYER_III"),
    "ogg": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
    "wav": ("WAV", None),
}
OPUS_RATE = 48_000  # which it has, whatever it is given
MP3_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)


def converted(path: Path, format: str) -> bytes:
    """The audio file ``path`` as ``format``, one of `FORMATS`, with its mark of AI.

    FLAC and WAV keep the samples, of up to 24 bits. MP3 and Opus are resampled where they do not have the rate.

    Raises:
        OSError, ValueError: if the file cannot be read, or has more channels than the format.
    """
    import soundfile
    import soxr

    container, subtype = CODECS[format]
    with soundfile.SoundFile(path) as file:
        rate, kept = file.samplerate, file.subtype
        samples = file.read(dtype="float64" if subtype else "int32", always_2d=True)
    if subtype is None:
        subtype = kept if soundfile.check_format(container, kept) else "PCM_24"
    wanted = rate
    if format == "opus":
        wanted = OPUS_RATE
    elif format == "mp3":
        wanted = next((one for one in MP3_RATES if one >= rate), MP3_RATES[-1])
    if wanted != rate:
        samples = soxr.resample(samples, rate, wanted, quality="VHQ")
    encoded = io.BytesIO()
    try:
        soundfile.write(encoded, samples, wanted, format=container, subtype=subtype)
    except soundfile.LibsndfileError as error:
        raise ValueError(f"this result cannot be had as {format}: {error}") from error
    if (mark := read_mark(path)) is not None:
        add_mark(encoded, mark)
    return encoded.getvalue()
