"""``musicldm loop`` and ``generate --bpm`` on a tiny real model: files, exit codes, and the same again."""

import json
import sys

import pytest
import soundfile

from musicldm.audio import read_recipe
from musicldm.audio.loop_chunks import Loop, Looped, read_loop
from musicldm.cli import main

RATE = 8_000


@pytest.fixture(autouse=True)
def _librosa(monkeypatch):
    """Librosa tracks the beats, which is always there."""
    monkeypatch.setitem(sys.modules, "madmom", None)


@pytest.fixture
def run(tiny_folder, tmp_path, capsys):
    """Run a command with few steps, into tmp_path/out; gives the exit code, the records and stderr."""

    def call(command, *arguments, model=True):
        made_by = ("--model", str(tiny_folder), "--steps", "1", "--no-fast", "--device", "cpu") if model else ()
        given = [command, *map(str, arguments), *made_by, "--out", str(tmp_path / "out"), "--json", "--no-figure"]
        code = main(given)
        out, err = capsys.readouterr()
        return code, [json.loads(line) for line in out.splitlines()], err

    return call


def test_a_loop_of_bars(run, tmp_path):
    options = ("a waltz", "--bpm", 121.5, "--bars", 1, "--meter", "3/4", "--seed", 5, "--candidates", 1, "--force")
    code, (record,), err = run("loop", *options)
    assert code == 0, err
    assert "madmom is not installed, librosa tracks the beats" in err
    n_samples = round(3 * 60 / 121.5 * RATE)
    assert soundfile.info(record["file"]).frames == n_samples
    assert read_loop(record["file"]) == Looped(0, n_samples - 1, 60, Loop(3, 3, 4, 121.5), True)
    recipe = read_recipe(record["file"])
    assert {name: recipe[name] for name in ("loop", "bpm", "bars", "meter", "force", "candidates")} == {
        **{"loop": True, "bpm": 121.5, "bars": 1, "meter": "3/4", "force": True, "candidates": 1}
    }
    assert recipe["tempo"]["asked_bpm"] == 121.5
    assert recipe["tempo"]["tracker"] == "librosa"
    for command in ("loop", "generate"):
        code, (again,), err = run(command, "--from", record["file"], model=False)
        assert code == 0, err
        assert again["file"] != record["file"]
        assert (tmp_path / "out" / again["file"]).read_bytes() == (tmp_path / "out" / record["file"]).read_bytes()
    code, (other,), err = run("loop", "--from", record["file"], "--bars", 2, model=False)
    assert code == 0, err
    assert soundfile.info(other["file"]).frames == round(6 * 60 / 121.5 * RATE)


def test_a_loop_of_seconds(run):
    code, (record,), err = run("loop", "a waltz", "--seconds", 1.1, "--seed", 1)
    assert code == 0, err
    assert read_loop(record["file"]) == Looped(0, 8_799, 60, None, False)
    assert record["seam_quantile"] <= 1
    assert "tempo" not in record
    code, (flac,), err = run("loop", "a waltz", "--seconds", 1.1, "--seed", 1, "--format", "flac")
    assert code == 0
    assert "FLAC has no place for loop points" in err
    assert read_loop(flac["file"]) is None
    assert read_recipe(flac["file"]) == read_recipe(record["file"])


def test_music_at_a_tempo(run):
    code, (record,), err = run("generate", "a waltz", "--bpm", 96, "--seconds", 1.5, "--candidates", 2, "--force")
    assert code == 0, err
    assert soundfile.info(record["file"]).frames == 12_000
    assert read_loop(record["file"]) is None
    assert record["tempo"]["asked_bpm"] == 96
    code, (again,), err = run("generate", "--from", record["file"], model=False)
    assert code == 0, err
    assert again == record | {"file": again["file"]}
    # another tempo for a piece that was made without one may choose among more than the piece had
    code, (plain,), err = run("generate", "a waltz", "--seconds", 0.4)
    code, (brought,), err = run("generate", "--from", plain["file"], "--bpm", 96, "--force", model=False)
    assert code == 0, err
    assert brought["candidates"] == 16


def test_a_tempo_out_of_reach_has_exit_code_2_and_no_file(run, tmp_path):
    code, records, err = run("generate", "a waltz", "--bpm", 96, "--seconds", 1, "--candidates", 1)
    assert (code, records) == (2, [])
    assert err.count("musicldm: error:") == 1
    assert "96 BPM" in err
    assert "--force" in err
    assert not list(tmp_path.rglob("*.wav"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--bpm", 0), "from 20 to 300"),
        (("--bpm", "nan"), "finite"),
        (("--bpm", 400), "from 20 to 300"),
        (("--bpm", 120, "--bars", 0), "above 0"),
        (("--bpm", 240, "--bars", 1, "--meter", "3/4"), "a loop lasts 1 s"),
        (("--bpm", 120, "--meter", "four"), "meter must be"),
        (("--bars", 4), "no tempo for bars=4"),
        (("--bpm", 120, "--seconds", 4), "--bars instead of --seconds"),
        (("--bpm", 20, "--bars", 10_000, "--meter", "64/4"), "memory|GiB"),
    ],
)
def test_bad_loops_are_refused(run, tmp_path, arguments, message):
    code, records, err = run("loop", "a waltz", *arguments)
    assert (code, records) == (2, [])
    assert len(err.strip().splitlines()) == 1
    assert any(part in err for part in message.split("|"))
    assert not (tmp_path / "out").exists()
