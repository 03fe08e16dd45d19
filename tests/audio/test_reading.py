"""Recordings whose headers say something else than the file holds: all of it is read, or it is said."""

import io
import os
import struct
import threading
import warnings

import numpy as np
import pytest
import soundfile

from musicldm.audio import read_audio
from musicldm.audio.reading import BLOCK, Ends, content_mark, identity, open_audio
from musicldm.audio.text import is_text, read_lines, read_text

RATE = 44_100
KINDS = {"wav": "WAV", "aiff": "AIFF", "au": "AU", "w64": "W64", "rf64": "RF64", "flac": "FLAC", "ogg": "OGG"}


def music(seconds=4.0, rate=RATE, seed=0):
    rng = np.random.default_rng(seed)
    time_s = np.arange(round(seconds * rate)) / rate
    return 0.3 * np.sin(2 * np.pi * 300 * time_s) + 0.1 * rng.standard_normal(len(time_s))


def encoded(kind, waveform=None, rate=RATE, **options):
    file = io.BytesIO()
    soundfile.write(file, music() if waveform is None else waveform, rate, format=kind, **options)
    return file.getvalue()


def mp3(mode="VARIABLE", channels=1, seconds=4.0, rate=RATE):
    """An MP3 that is loud first and quiet later, so that its bitrate changes."""
    waveform = np.concatenate([music(seconds, rate), 0.01 * music(seconds, rate)])
    file = io.BytesIO()
    with soundfile.SoundFile(file, "w", rate, channels, format="MP3", bitrate_mode=mode) as out:
        out.write(waveform if channels == 1 else np.stack([waveform, 0.5 * waveform], axis=1))
    return file.getvalue()


def headless(content):
    """The MP3 without the frame that states its length."""
    tag = max(content.find(b"Xing"), content.find(b"Info"))
    return content[content.find(content[:2], tag) :]


def heard(path):
    """Seconds of the recording at ``path``, and what was said about it."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        waveform, rate = read_audio(path)
    return len(waveform) / rate, " ".join(str(one.message) for one in said)


@pytest.mark.parametrize("mode", ["VARIABLE", "CONSTANT"])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("rate", [44_100, 22_050, 11_025])
def test_mp3_without_a_length_is_read_whole(tmp_path, mode, channels, rate):
    (tmp_path / "a.mp3").write_bytes(headless(mp3(mode, channels, rate=rate)))
    seconds, said = heard(tmp_path / "a.mp3")
    assert 8.0 <= seconds < 8.2
    assert not said
    with open_audio(tmp_path / "a.mp3") as audio:
        assert audio.duration_s == seconds
        late = audio.read(round(7 * rate), rate)
    assert len(late) >= 0.99 * rate
    assert 1e-4 < np.abs(late).max() < 0.02  # the quiet end


def test_mp3_with_a_length_is_left_as_it_is(tmp_path):
    content = mp3()
    tags = b"ID3\4\0\0\0\0\2\0" + bytes(256) + content + b"TAG" + bytes(125)
    with soundfile.SoundFile(io.BytesIO(content)) as file:  # in blocks, which for MP3 change the last bits
        expected = np.concatenate([file.read(BLOCK, dtype="float32") for _ in range(2)])
    for name, file in (("plain.mp3", content), ("tags.mp3", tags)):
        (tmp_path / name).write_bytes(file)
        assert np.array_equal(read_audio(tmp_path / name)[0], expected)
        assert heard(tmp_path / name) == (8.0, "")


def test_joined_damaged_and_cut_mp3(tmp_path):
    content = mp3()
    (tmp_path / "joined.mp3").write_bytes(content + content)
    seconds, said = heard(tmp_path / "joined.mp3")
    assert (16.0 <= seconds < 16.3, said) == (True, "")
    (tmp_path / "junk.mp3").write_bytes(content[:20_000] + np.random.default_rng(3).bytes(3000) + content[20_000:])
    seconds, said = heard(tmp_path / "junk.mp3")
    assert 7.9 < seconds < 8.2
    assert "junk.mp3 holds" in said
    assert "that are no MP3" in said
    (tmp_path / "cut.mp3").write_bytes(content[: len(content) // 2])
    seconds, said = heard(tmp_path / "cut.mp3")
    assert seconds < 7
    assert f"cut.mp3 ends after {seconds:.2f} s; its header states 8.0" in said


@pytest.mark.parametrize("kind", KINDS)
def test_recordings_that_end_early(tmp_path, kind):
    content, path = encoded(KINDS[kind]), tmp_path / f"a.{kind}"
    path.write_bytes(content)
    assert heard(path) == (4.0, "")
    path.write_bytes(content[: len(content) * 6 // 10])
    if kind == "flac":
        with pytest.raises(ValueError, match=r"a\.flac cannot be read as audio beyond .* of 4\.00 s"):
            read_audio(path)
        with open_audio(path) as audio, pytest.raises(Ends, match=r"a\.flac ends before the 4\.00 s"):
            audio.check_end()
        return
    seconds, said = heard(path)
    assert 2.0 < seconds < 2.8
    assert str(path) in said
    assert (
        "without the last page" if kind == "ogg" else f"ends after {seconds:.2f} s; its header states 4.00 s"
    ) in said


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF, 0x7FFFF000])
def test_wav_of_streaming_programs_is_read_whole(tmp_path, size):
    """They cannot go back to write the sizes."""
    content = encoded("WAV")
    at = content.index(b"data") + 4
    stream = content[:4] + struct.pack("<I", size) + content[8:at] + struct.pack("<I", size) + content[at + 4 :]
    (tmp_path / "whole.wav").write_bytes(content)
    (tmp_path / "stream.wav").write_bytes(stream)
    assert np.array_equal(read_audio(tmp_path / "stream.wav")[0], read_audio(tmp_path / "whole.wav")[0])
    assert heard(tmp_path / "stream.wav") == (4.0, "")
    with open_audio(tmp_path / "stream.wav") as audio:
        assert np.allclose(audio.read(RATE, 100)[:, 0], music()[RATE : RATE + 100], atol=1e-4)


def test_wav_without_samples_has_none(tmp_path):
    (tmp_path / "a.wav").write_bytes(encoded("WAV", np.zeros(0)) + b"LIST" + struct.pack("<I", 4) + b"INFO")
    with pytest.raises(ValueError, match=r"a\.wav holds no samples"):
        read_audio(tmp_path / "a.wav")


def test_several_streams_in_one_ogg_are_refused(tmp_path):
    (tmp_path / "a.ogg").write_bytes(encoded("OGG") + encoded("OGG", music(seed=1)))
    with pytest.raises(ValueError, match=r"a\.ogg holds several streams"):
        read_audio(tmp_path / "a.ogg")


@pytest.mark.parametrize("rate", [1, 8, 999, 768_001, 2**31 - 1])
def test_implausible_rates_are_refused(tmp_path, rate):
    content = encoded("WAV")
    (tmp_path / "a.wav").write_bytes(content[:24] + struct.pack("<I", rate) + content[28:])
    with pytest.raises(ValueError, match=rf"a\.wav has a rate of {rate} Hz.*1000 to 768000 Hz"):
        read_audio(tmp_path / "a.wav", 16_000)


def test_channels_that_cancel_are_said_to(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.stack([music(), -music()], axis=1), RATE)
    assert "a.wav: its channels cancel each other" in heard(tmp_path / "a.wav")[1]
    soundfile.write(tmp_path / "silent.wav", np.zeros(RATE), RATE)
    assert heard(tmp_path / "silent.wav") == (1.0, "")


def test_a_pipe_is_read(tmp_path):
    content, pipe = encoded("WAV"), tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(content,))
    writer.start()
    assert len(read_audio(pipe)[0]) == 4 * RATE
    writer.join()


def test_names_that_are_not_utf8(tmp_path):
    path = os.fsencode(tmp_path) + b"/caf\xe9.wav"
    with open(path, "wb") as file:
        file.write(encoded("WAV"))
    assert len(read_audio(os.fsdecode(path))[0]) == 4 * RATE


def test_identity_changes_with_either_end_and_the_time(tmp_path):
    path = tmp_path / "a.wav"
    path.write_bytes(content := encoded("WAV"))
    first, mark = identity(path), content_mark(path)
    for changed in (b"R" + bytes(99) + content[100:], content[:-1] + b"\x07"):
        path.write_bytes(changed)
        assert content_mark(path) != mark
    path.write_bytes(content)
    os.utime(path, ns=(1, 1))
    assert (content_mark(path), identity(path)) == (mark, first.replace(first.split()[0], "1", 1))


def test_lines_end_at_newlines_only(tmp_path):
    (tmp_path / "a.txt").write_bytes("\ufeffone\u2028two\x85\x0b\r\nthree\n\nfour".encode())
    assert read_lines(tmp_path / "a.txt") == ["one\u2028two\x85\x0b", "three", "", "four"]
    (tmp_path / "b.txt").write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match=r"b\.txt is not in UTF-8"):
        read_text(tmp_path / "b.txt")
    assert is_text("é \U0001f3b5")
    assert not is_text("half \ud83c")
