"""Audio files: what is written is read back, and what cannot be read or written says so and leaves nothing."""

import json
import struct

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from musicldm.audio import read_audio, read_recipe, write_audio, write_whole
from tests.helpers.disk import full_disk

RATE = 16_000
ERROR = 1 / 2**16  # half a step of 16 bits


def tone(seconds=0.5, rate=RATE, hz=440.0):
    return (0.5 * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


@pytest.mark.parametrize("kind", ["wav", "flac"])
def test_written_audio_is_read_back(tmp_path, kind):
    write_audio(tmp_path / f"a.{kind}", tone(), RATE)
    waveform, rate = read_audio(tmp_path / f"a.{kind}")
    assert rate == RATE
    assert waveform.dtype == np.float32
    assert np.abs(waveform - tone()).max() <= ERROR
    assert [path.name for path in tmp_path.iterdir()] == [f"a.{kind}"]
    assert soundfile.info(tmp_path / f"a.{kind}").subtype == "PCM_16"


def test_both_formats_hold_the_same_samples(tmp_path):
    noise = np.random.default_rng(0).uniform(-1, 1, 10_000)
    for kind in ("wav", "flac"):
        write_audio(tmp_path / f"a.{kind}", noise, RATE)
    wav, flac = read_audio(tmp_path / "a.wav")[0], read_audio(tmp_path / "a.flac")[0]
    assert np.array_equal(wav, flac)
    assert abs((wav - noise).mean()) < 2e-7  # rounded, not truncated, which would shift everything by half a step


def test_full_scale_does_not_wrap_around(tmp_path):
    write_audio(tmp_path / "a.wav", np.array([1.0, -1.0, 0.0], np.float32), RATE)
    assert np.allclose(read_audio(tmp_path / "a.wav")[0], [1, -1, 0], atol=2 * ERROR)


def test_channels_are_averaged(tmp_path):
    stereo = np.stack([tone(), -0.5 * tone()], axis=1)
    write_audio(tmp_path / "a.wav", stereo, RATE)
    assert np.abs(read_audio(tmp_path / "a.wav")[0] - 0.25 * tone()).max() <= 2 * ERROR


@pytest.mark.parametrize("kind", ["wav", "flac"])
def test_both_channels_are_kept_when_asked_for(tmp_path, kind):
    stereo = np.stack([tone(), -0.5 * tone(hz=660.0)])  # (2, L), as a model has it
    write_audio(tmp_path / f"a.{kind}", stereo.T, RATE, RECIPE)
    waveform, rate = read_audio(tmp_path / f"a.{kind}", channels=2)
    assert (rate, waveform.shape, waveform.dtype) == (RATE, stereo.shape, np.float32)
    assert np.abs(waveform - stereo).max() <= ERROR
    assert read_recipe(tmp_path / f"a.{kind}") == RECIPE
    resampled, _ = read_audio(tmp_path / f"a.{kind}", 24_000, channels=2)
    assert resampled.shape == (2, 12_000)
    alone = read_audio_of(tmp_path, stereo[1], 24_000)
    assert np.abs(resampled[1] - alone).max() <= 2 * ERROR


def read_audio_of(folder, waveform, rate):
    write_audio(folder / "alone.wav", waveform, RATE)
    return read_audio(folder / "alone.wav", rate)[0]


def test_a_mono_file_is_the_same_in_both_channels_and_more_are_refused(tmp_path):
    write_audio(tmp_path / "a.wav", tone(), RATE)
    mono, (left, right) = read_audio(tmp_path / "a.wav")[0], read_audio(tmp_path / "a.wav", channels=2)[0]
    assert np.array_equal(left, mono)
    assert np.array_equal(right, mono)
    write_audio(tmp_path / "b.wav", np.zeros((100, 3)), RATE)
    with pytest.raises(ValueError, match=r"b\.wav has 3 channels"):
        read_audio(tmp_path / "b.wav", channels=2)
    assert read_audio(tmp_path / "b.wav")[0].shape == (100,)


@pytest.mark.parametrize("channels", [1, 2])
def test_long_recordings_are_read_whole(tmp_path, channels):
    """One of more frames than are decoded at once."""
    stereo = np.random.default_rng(0).uniform(-0.9, 0.9, (2, 600_000))
    write_audio(tmp_path / "a.flac", stereo.T, RATE)
    expected = stereo if channels == 2 else stereo.mean(axis=0)
    assert np.abs(read_audio(tmp_path / "a.flac", channels=channels)[0] - expected).max() <= 1.01 * ERROR


@pytest.mark.parametrize("rate", [8_000, 44_100, 48_000])
def test_resampling_keeps_a_tone(tmp_path, rate):
    write_audio(tmp_path / "a.flac", tone(rate=rate), rate)
    waveform, given_rate = read_audio(tmp_path / "a.flac", RATE)
    assert given_rate == RATE
    assert len(waveform) == len(tone())
    inside = slice(1000, -1000)  # the filter has no neighbours at the edges
    assert np.abs(waveform - tone())[inside].max() < 2e-4


@pytest.mark.parametrize(("kind", "subtype"), [("ogg", "VORBIS"), ("mp3", "MPEG_LAYER_III")])
def test_lossy_formats_are_read(tmp_path, kind, subtype):
    soundfile.write(tmp_path / f"a.{kind}", tone(), RATE, subtype=subtype)
    waveform, _ = read_audio(tmp_path / f"a.{kind}")
    loudest = np.abs(np.fft.rfft(waveform[: len(tone())])).argmax() / (len(tone()) / RATE)
    assert abs(loudest - 440) <= 4
    assert len(waveform) >= len(tone())


RECIPE = {
    "prompt": 'a "quiet" piano \\ Übung 音楽 🎵 and a line\nbreak, NUL \0, half a pair \udc80',
    "seed": 2**63,
    "guidance": 2.5,
    "none": None,
    "nested": {"a": [1, 2]},
}


@pytest.mark.parametrize("kind", ["wav", "flac"])
@pytest.mark.parametrize("length", [0, 1, 2_000, 100_000])
def test_recipe_survives(tmp_path, kind, length):
    recipe = RECIPE | {"long": "x" * length}
    write_audio(tmp_path / f"a.{kind}", tone(), RATE, recipe)
    assert read_recipe(tmp_path / f"a.{kind}") == recipe
    assert np.abs(read_audio(tmp_path / f"a.{kind}")[0] - tone()).max() <= ERROR


@settings(max_examples=25, deadline=None)
@given(prompt=st.text(), n_samples=st.integers(1, 5))
def test_any_text_survives(tmp_path_factory, prompt, n_samples):
    folder = tmp_path_factory.mktemp("recipes")
    for kind in ("wav", "flac"):
        write_audio(folder / f"a.{kind}", tone()[:n_samples], RATE, {"prompt": prompt})
        assert read_recipe(folder / f"a.{kind}") == {"prompt": prompt}


def test_other_programs_see_a_well_formed_wav(tmp_path):
    """Every chunk ends where the next begins, and libsndfile reads a short comment itself."""
    write_audio(tmp_path / "a.wav", tone()[:101], RATE, {"seed": 12})
    content = (tmp_path / "a.wav").read_bytes()
    assert struct.unpack("<I", content[4:8])[0] == len(content) - 8
    chunks, at = [], 12
    while at < len(content):
        size = struct.unpack("<I", content[at + 4 : at + 8])[0]
        chunks.append(content[at : at + 4])
        at += 8 + size + size % 2
    assert at == len(content)
    assert chunks == [b"fmt ", b"data", b"LIST"]
    with soundfile.SoundFile(tmp_path / "a.wav") as file:
        assert json.loads(file.comment) == {"seed": 12}


def test_comment_behind_other_chunks_is_found(tmp_path):
    def chunk(name, content):
        return name + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)

    write_audio(tmp_path / "plain.wav", tone()[:100], RATE)
    content = (tmp_path / "plain.wav").read_bytes()
    entries = b"INFO" + chunk(b"INAM", b"odd") + chunk(b"ICMT", b'{"seed": 3}\0')
    content += chunk(b"LIST", b"adtlxxxx") + chunk(b"LIST", entries) + chunk(b"junk", b"1")
    (tmp_path / "a.wav").write_bytes(content[:4] + struct.pack("<I", len(content) - 8) + content[8:])
    assert read_recipe(tmp_path / "a.wav") == {"seed": 3}


@pytest.mark.parametrize("kind", ["wav", "flac"])
def test_file_without_recipe_is_refused(tmp_path, kind):
    write_audio(tmp_path / f"a.{kind}", tone(), RATE)
    with pytest.raises(ValueError, match=r"a\.\w+ carries no recipe"):
        read_recipe(tmp_path / f"a.{kind}")


def test_text_file_has_no_recipe(tmp_path):
    (tmp_path / "a.wav").write_text("not audio at all")
    with pytest.raises(ValueError, match=r"a\.wav cannot be read as audio"):
        read_recipe(tmp_path / "a.wav")


def without_samples(path):
    soundfile.write(path, np.zeros(0, np.float32), RATE, format="WAV")


def with_value(value):
    def write(path):
        samples = tone()
        samples[800] = value
        soundfile.write(path, samples, RATE, format="WAV", subtype="FLOAT")

    return write


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("a.wav", lambda path: path.write_bytes(b""), "empty file"),
        ("a.wav", lambda path: path.write_text("hello, this is text" * 100), "cannot be read as audio"),
        ("a.raw", lambda path: path.write_bytes(b"\1" * 100), "raw audio"),
        ("a.wav", without_samples, "no samples"),
        ("a.wav", with_value(np.nan), r"nan at 0\.050 s"),
        ("a.wav", with_value(-np.inf), r"-inf at 0\.050 s"),
    ],
)
def test_bad_recordings_are_refused(tmp_path, name, write, message):
    write(tmp_path / name)
    with pytest.raises(ValueError, match=message) as error:
        read_audio(tmp_path / name)
    assert str(tmp_path / name) in str(error.value)


def test_cut_off_flac_is_refused(tmp_path):
    rng = np.random.default_rng(0)
    write_audio(tmp_path / "a.flac", rng.uniform(-0.9, 0.9, RATE), RATE)
    content = (tmp_path / "a.flac").read_bytes()
    (tmp_path / "a.flac").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="cannot be read as audio"):
        read_audio(tmp_path / "a.flac")


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.wav"):
        read_audio(tmp_path / "none.wav")
    with pytest.raises(IsADirectoryError):
        read_audio(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"none\.wav"):
        read_recipe(tmp_path / "none.wav")


@pytest.mark.parametrize(
    ("name", "waveform", "message"),
    [
        ("a.mp3", tone(), r"\.wav or \.flac"),
        ("a", tone(), r"\.wav or \.flac"),
        ("a.wav", np.zeros(0), "not empty"),
        ("a.wav", np.zeros((1, 2, 3)), "not empty"),
        ("a.wav", np.zeros((2, 16_000)), r"up to 8 channels, got \(2, 16000\); transpose"),
        ("a.wav", np.array([0.0, np.nan]), "peak of nan"),
        ("a.wav", np.array([0.0, -1.5]), r"peak of 1\.5"),
    ],
)
def test_bad_waveforms_are_not_written(tmp_path, name, waveform, message):
    with pytest.raises(ValueError, match=message):
        write_audio(tmp_path / name, waveform, RATE)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["wav", "flac"])
def test_full_disk_leaves_nothing(tmp_path, kind):
    noise = np.random.default_rng(0).uniform(-1, 1, 10_000)
    with full_disk(1024), pytest.raises(OSError, match="File too large"):
        write_audio(tmp_path / f"a.{kind}", noise, RATE)
    assert not list(tmp_path.iterdir())


def test_full_disk_keeps_what_was_there(tmp_path):
    (tmp_path / "a.wav").write_bytes(b"old")
    with full_disk(1024), pytest.raises(OSError, match="File too large"):
        write_whole(tmp_path / "a.wav", b"new" * 1000)
    assert (tmp_path / "a.wav").read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


def test_unwritable_folder(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_audio(tmp_path / "none" / "a.wav", tone(), RATE)
