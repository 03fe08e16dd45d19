"""Lists of files with bad ones among them, and names, seeds and streams of all kinds."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from musicldm.audio import write_audio
from musicldm.cli import COMMANDS, main
from tests.helpers.commands import fails, succeeds
from tests.helpers.rhythm import drum_track

RATE = 16_000


def beat(path, bpm=120):
    soundfile.write(path, drum_track(bpm, 4, 0, rate=RATE)[0], RATE)
    return path


@pytest.fixture
def some(tmp_path):
    """A good recording, a text, one that is not there, and another good one."""
    beat(tmp_path / "a.wav")
    (tmp_path / "b.wav").write_text("hello")
    beat(tmp_path / "d.wav", 90)
    return [tmp_path / f"{name}.wav" for name in "abcd"]


def assert_bad_ones_named(capsys, *arguments) -> list[str]:
    """The lines on stdout of a call that does the good ones and names b.wav and c.wav at the end."""
    assert main(list(map(str, arguments))) == 2
    out, err = capsys.readouterr()
    (line,) = [line for line in err.splitlines() if line.startswith("musicldm: error")]
    assert "2 of 4" in line
    assert "b.wav" in line
    assert "c.wav" in line
    return out.splitlines()


def test_beats_of_the_good_ones(some, tmp_path, capsys):
    out = tmp_path / "out"
    assert len(assert_bad_ones_named(capsys, "beats", *some, "--tracker", "librosa", "--out", out)) == 2
    assert sorted(path.name for path in out.iterdir()) == ["a.beats", "d.beats"]


def test_recipes_of_the_good_ones(some, capsys):
    for path in (some[0], some[3]):
        write_audio(path, np.zeros(10), 8000, {"seed": 3})
    lines = assert_bad_ones_named(capsys, "info", *some, "--json")
    assert [json.loads(line)["file"] for line in lines] == [str(some[0]), str(some[3])]


def test_reconstructions_of_the_good_ones(some, tiny_folder, tmp_path, capsys):
    out = tmp_path / "out"
    lines = assert_bad_ones_named(
        capsys, "reconstruct", *some, "--model", tiny_folder, "--mel-only", "--no-figure", "--out", out
    )
    assert lines[-1].startswith("mean of 2 recordings")
    assert sorted(path.name for path in out.iterdir()) == ["a_reconstructed.wav", "d_reconstructed.wav"]


def test_a_full_disk_ends_a_list(some, tmp_path, capsys, monkeypatch):
    """No further item could be written."""
    tried = []

    def write(path, content):
        tried.append(path)
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("musicldm.cli.beats.write_whole", write)
    error = fails(capsys, "beats", *some, "--tracker", "librosa", "--out", tmp_path / "out")
    assert "a.beats" in error
    assert "make room" in error
    assert len(tried) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_help_tells_the_exit_codes(command, capsys):
    for arguments in ([command], [command, "index"]) if command == "novelty" else ([command],):
        assert main([*arguments, "--help"]) == 0
        text = " ".join(capsys.readouterr().out.split())
        for words in ("Exit codes: 0 done; 1 ", "; 2 wrong input", "; 130 "):
            assert words in text


def test_help_tells_lengths_that_the_model_is_good_for(capsys):
    main(["generate", "--help"])
    assert "repeats itself" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("command", ["generate a", "mixup a b", "evaluate --prompts p"])
@pytest.mark.parametrize("seed", ["-1", "²", "1.5", str(2**63)])
def test_seeds_are_refused_as_typed(command, seed, capsys):
    error = fails(capsys, *command.split(), "--seed", seed, "--out", "x")
    assert "--seed" in error
    assert seed in error


def test_mixtures_are_numbered(tmp_path, capsys, monkeypatch):
    """Neither an input, nor a picture, nor the mixture before is written over."""
    monkeypatch.chdir(tmp_path)
    beat(tmp_path / "mix.wav")
    beat(tmp_path / "b.wav", 121)
    (tmp_path / "mix_2.png").write_text("mine")
    before = (tmp_path / "mix.wav").read_bytes()
    call = ["mixup", "mix.wav", "b.wav", "--tracker", "librosa", "--seconds", 2]
    names = [Path(succeeds(capsys, *call)[0]["audio"]).name for _ in range(2)]
    assert names == ["mix_3.wav", "mix_4.wav"]
    assert (tmp_path / "mix.wav").read_bytes() == before
    assert (tmp_path / "mix_2.png").read_text() == "mine"


def test_long_names_of_recordings(tmp_path, tiny_folder, capsys):
    path = beat(tmp_path / ("音" * 83 + ".wav"))
    for call in (["beats", path, "--tracker", "librosa"], ["reconstruct", path, "--model", tiny_folder, "--mel-only"]):
        (record,) = succeeds(capsys, *call, "--out", tmp_path / "out")
        assert all(Path(record[name]).is_file() for name in ("beats", "audio", "figure") if name in record)


# standard output and error


def shell(command, **environment):
    """``musicldm COMMAND`` in a shell of its own."""
    script = f"{sys.executable} -m musicldm {command}"
    return subprocess.run(["bash", "-c", script], capture_output=True, env=os.environ | environment)


@pytest.fixture
def recipe(tmp_path):
    write_audio(tmp_path / "a.wav", np.zeros(10), 8000, {"prompt": "ein Flötenstück 🎵", "seed": 3})
    return tmp_path / "a.wav"


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams(closed, tmp_path):
    beat(tmp_path / "a.wav")
    result = shell(f"beats {tmp_path}/a.wav {tmp_path}/a.wav --tracker librosa --out {tmp_path}/out {closed}")
    assert result.returncode == 0
    assert result.stderr == b""
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_what_standard_output_has_no_letters_for_is_escaped(recipe):
    result = shell(f"info {recipe}", PYTHONIOENCODING="ascii")
    assert result.returncode == 0
    assert b"Fl\\xf6tenst\\xfcck \\U0001f3b5" in result.stdout


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_output_that_cannot_be_printed_ends_no_work(tmp_path):
    beat(tmp_path / "a.wav")
    result = shell(f"beats {tmp_path}/a.wav {tmp_path}/a.wav --tracker librosa --out {tmp_path}/out > /dev/full")
    assert result.returncode == 1
    assert result.stderr.decode().count("\n") == 1
    assert "could be printed (No space left on device)" in result.stderr.decode()
    assert len(list((tmp_path / "out").iterdir())) == 2
