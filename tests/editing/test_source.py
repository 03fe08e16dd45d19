"""Recordings that are opened to be edited: what they are, and which are refused."""

import hashlib

import numpy as np
import pytest
import soundfile

from musicldm.editing import Source


def test_a_file_says_what_it_is(tmp_path):
    soundfile.write(tmp_path / "a.flac", np.full((1000, 2), 0.5), 48_000, "PCM_24")
    source = Source.open(tmp_path / "a.flac")
    assert (source.rate, source.channels, source.length, source.duration_s) == (48_000, 2, 1000, 1000 / 48_000)
    assert (source.container, source.subtype, source.decoded) == ("FLAC", "PCM_24", False)
    assert source.sha256() == hashlib.sha256((tmp_path / "a.flac").read_bytes()).hexdigest()
    source.check()


def test_arrays_are_told_apart_by_what_is_in_them():
    a = np.linspace(-1, 1, 100, dtype=np.float32)
    assert Source.of(a, 8000).sha256() == Source.of(a.copy(), 8000).sha256()
    others = [Source.of(a, 8001), Source.of(a.astype(float), 8000), Source.of(a[None], 8000), Source.of(-a, 8000)]
    assert len({other.sha256() for other in [Source.of(a, 8000), *others]}) == 5


def with_value(value, subtype="FLOAT"):
    def write(path):
        samples = np.full(8000, 0.5)
        samples[400] = value
        soundfile.write(path, samples, 8000, subtype, format="WAV")

    return write


def silent(path):
    soundfile.write(path, np.zeros(8000), 8000, format="WAV")


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: path.write_bytes(b""), "empty file"),
        (lambda path: path.write_text("no sound" * 99), "cannot be read as audio"),
        (lambda path: soundfile.write(path, np.zeros(0), 8000, format="WAV"), "holds no samples"),
        (lambda path: soundfile.write(path, np.zeros((9, 9)), 8000, format="WAV"), "has 9 channels, up to 8"),
        (with_value(np.nan), r"holds nan at 0\.050 s"),
        (with_value(-np.inf, "DOUBLE"), r"holds -inf at 0\.050 s"),
        (silent, "silent throughout"),
    ],
)
def test_bad_files_are_refused(tmp_path, write, message):
    write(tmp_path / "a.wav")
    with pytest.raises(ValueError, match=message) as error:
        Source.open(tmp_path / "a.wav").check()
    assert str(tmp_path / "a.wav") in str(error.value)


@pytest.mark.parametrize(
    ("array", "rate", "message"),
    [
        (np.zeros(10, np.uint8), 8000, "got uint8"),
        ([0.0, 1.0], 8000, "got list"),
        (np.zeros((2, 0)), 8000, r"not empty, got \(2, 0\)"),
        (np.zeros((1, 2, 3)), 8000, r"got \(1, 2, 3\)"),
        (np.zeros((100, 2)), 8000, r"up to 8 channels, got \(100, 2\); give \(channels, samples\)"),
        (np.array([0.0, np.nan]), 8000, "holds nan"),
        (np.zeros(10), 0, "the sampling rate must be a number from 1000 to 768000"),
        (np.zeros(10), 8000.5, "whole number of Hz"),
        (np.zeros(10), np.nan, "the sampling rate must be"),
    ],
)
def test_bad_arrays_are_refused(array, rate, message):
    with pytest.raises(ValueError, match=message):
        Source.of(array, rate)


def test_silence_in_a_part_is_no_silence():
    samples = np.zeros(600_000, np.int16)
    samples[-1] = 1000
    Source.of(samples, 8000).check()
    with pytest.raises(ValueError, match="audio is silent throughout"):
        Source.of(samples[:-1], 8000).check()


def test_stretches_outside_are_refused():
    source = Source.of(np.zeros(10), 8000)
    assert source.read(10, 10).shape == (1, 0)
    for start, stop in ((-1, 5), (5, 11), (6, 5)):
        with pytest.raises(ValueError, match="has samples 0 to 10"):
            source.read(start, stop)


def test_aac_is_decoded(tmp_path):
    av = pytest.importorskip("av")
    sound = (0.4 * np.sin(np.arange(66_150) * 0.05) * np.array([[1.0], [0.5]])).astype(np.float32)
    with av.open(str(tmp_path / "a.m4a"), "w") as container:
        stream = container.add_stream("aac", rate=44_100, layout="stereo", bit_rate=256_000)
        for at in range(0, sound.shape[1], 1024):
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound[:, at : at + 1024]), "fltp", "stereo")
            frame.sample_rate, frame.pts = 44_100, at
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    source = Source.open(tmp_path / "a.m4a")
    assert (source.rate, source.channels, source.decoded, source.subtype) == (44_100, 2, True, "FLOAT")
    assert abs(source.length - sound.shape[1]) < 2048
    errors = source.read(10_000, 50_000) - sound[:, 10_000:50_000]
    assert np.sqrt(np.square(errors).mean()) < 0.02
    (tmp_path / "b.m4a").write_bytes(b"\0\0\0\x18ftypM4A " + b"x" * 1000)
    with pytest.raises(ValueError, match=r"b\.m4a cannot be read as audio"):
        Source.open(tmp_path / "b.m4a")
