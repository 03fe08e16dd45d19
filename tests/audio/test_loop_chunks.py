"""Chunks that tell workstations of a loop: every byte, beside the recipe and the mark, and read back."""

import io
import struct

import numpy as np
import pytest
import soundfile

from musicldm.audio import read_recipe, write_audio
from musicldm.audio.loop_chunks import Loop, Looped, add_loop, read_loop
from musicldm.audio.marks import NEW, read_mark


def chunks(content):
    """Name and content of each chunk; every one begins at an even byte and the last ends with the file."""
    assert content[:4] == b"RIFF"
    assert struct.unpack("<I", content[4:8])[0] == len(content) - 8
    assert content[8:12] == b"WAVE"
    found, at = {}, 12
    while at < len(content):
        assert at % 2 == 0
        name, size = struct.unpack("<4sI", content[at : at + 8])
        found[name] = content[at + 8 : at + 8 + size]
        at += 8 + size + size % 2
    assert at == len(content)
    return found


@pytest.mark.parametrize("n_samples", [16_000, 15_999])
@pytest.mark.parametrize("channels", [1, 2])
def test_a_wav_says_that_it_is_a_loop(tmp_path, n_samples, channels):
    path = tmp_path / "loop.wav"
    waveform = np.random.default_rng(0).uniform(-0.5, 0.5, (n_samples, channels))
    write_audio(path, waveform, 44_100, {"prompt": "käse", "n": 1}, NEW, Loop(14, 7, 8, 123.5))
    found = chunks(path.read_bytes())
    # manufacturer, product, period in ns, unity note, fraction, SMPTE format and offset, one loop, no other data
    assert struct.unpack("<9I", found[b"smpl"][:36]) == (0, 0, 22_676, 60, 0, 0, 0, 1, 0)
    # the loop: name, forward, first and last sample, fraction, for ever
    assert struct.unpack("<6I", found[b"smpl"][36:]) == (0, 0, 0, n_samples - 1, 0, 0)
    # flags (a loop that stretches), root note, two that are always so, beats, denominator, numerator, tempo
    assert struct.unpack("<IHHfIHHf", found[b"acid"]) == (4, 60, 0x8000, 0.0, 14, 8, 7, 123.5)
    assert read_loop(path) == Looped(0, n_samples - 1, 60, Loop(14, 7, 8, 123.5), True)
    assert read_recipe(path) == {"prompt": "käse", "n": 1}
    assert read_mark(path) == NEW
    samples, rate = soundfile.read(path, dtype="int16", always_2d=True)
    assert rate == 44_100
    assert np.array_equal(samples, np.round(waveform * 32768).astype(np.int16))


def test_libsndfile_reads_the_same(tmp_path):
    write_audio(tmp_path / "loop.wav", np.zeros(8_001), 8_000, None, None, Loop(12, 3, 4, 90.25))
    with soundfile.SoundFile(tmp_path / "loop.wav") as file:
        said = " ".join(file.extra_info.split())
    assert "Start : 0 End : 8000" in said
    assert "Midi Note : 60" in said
    assert "(Loop,RootNoteInvalid,StretchOn,RAMBased" in said
    assert "Beats : 12 Meter : 3/4 Tempo : 90.250000" in said


def test_a_loop_of_unknown_tempo_has_loop_points_alone(tmp_path):
    write_audio(tmp_path / "loop.wav", np.zeros(800), 8_000, None, None, Loop())
    assert list(chunks((tmp_path / "loop.wav").read_bytes())) == [b"fmt ", b"data", b"smpl"]
    assert read_loop(tmp_path / "loop.wav") == Looped(0, 799, 60, None, False)


def test_other_files_say_nothing(tmp_path):
    write_audio(tmp_path / "loop.flac", np.zeros(800), 8_000, {"a": 1}, None, Loop(4, 4, 4, 60.0))
    write_audio(tmp_path / "plain.wav", np.zeros(800), 8_000, {"a": 1})
    assert read_loop(tmp_path / "loop.flac") is None
    assert read_loop(tmp_path / "plain.wav") is None
    assert read_recipe(tmp_path / "loop.flac") == {"a": 1}
    with pytest.raises(ValueError, match="only WAV"):
        add_loop(io.BytesIO(b"fLaC" + bytes(100)), Loop(), 10, 8_000)
    with pytest.raises(FileNotFoundError):
        read_loop(tmp_path / "missing.wav")


def test_a_one_shot_and_a_sampler_without_loops(tmp_path):
    content = io.BytesIO()
    soundfile.write(content, np.zeros(10), 8_000, "PCM_16", format="WAV")
    body = content.getvalue()
    body += b"smpl" + struct.pack("<I9I", 36, 0, 0, 125_000, 64, 0, 0, 0, 0, 0)
    body += b"acid" + struct.pack("<IIHHfIHHf", 24, 1, 60, 0x8000, 0.0, 1, 4, 4, 100.0)
    (tmp_path / "a.wav").write_bytes(b"RIFF" + struct.pack("<I", len(body) - 8) + body[8:])
    assert read_loop(tmp_path / "a.wav") == Looped(None, None, 64, None, False)


@pytest.mark.parametrize(("name", "size"), [(b"smpl", 20), (b"acid", 10)])
def test_a_short_chunk_is_refused(tmp_path, name, size):
    content = io.BytesIO()
    soundfile.write(content, np.zeros(10), 8_000, "PCM_16", format="WAV")
    body = content.getvalue() + name + struct.pack("<I", size) + bytes(size)
    (tmp_path / "a.wav").write_bytes(b"RIFF" + struct.pack("<I", len(body) - 8) + body[8:])
    with pytest.raises(ValueError, match=f"{name.decode()} chunk ends after {size} bytes"):
        read_loop(tmp_path / "a.wav")
