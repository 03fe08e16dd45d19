"""Chords, MIDI files, melodies and recordings on the command line, with a tiny real model that takes contexts."""

import json
import sys

import numpy as np
import pytest
import soundfile

from musicldm.audio import read_audio, read_recipe, write_audio
from musicldm.audio.loop_chunks import Loop, read_loop
from musicldm.cli import main
from musicldm.scores import Sketch
from musicldm.scores.packing import unpack
from tests.helpers.scores import write_score

RATE = 8_000
TUNE = [(0.0, 1.0, 60, 0), (1.0, 1.0, 64, 0), (0.0, 4.0, 43, 1)]


@pytest.fixture(autouse=True)
def _librosa(monkeypatch):
    """Librosa tracks the beats, which is always there."""
    monkeypatch.setitem(sys.modules, "madmom", None)


@pytest.fixture
def run(context_folder, tmp_path, capsys):
    """Run a command with few steps, into tmp_path/out; gives the exit code, the records and stderr."""

    def call(command, *arguments, model=context_folder):
        made_by = ("--model", str(model), "--steps", "1", "--no-fast") if model else ()
        given = [command, *map(str, arguments), *made_by, "--device", "cpu", "--out", str(tmp_path / "out"), "--json"]
        code = main([*given, "--no-figure"])
        out, err = capsys.readouterr()
        return code, [json.loads(line) for line in out.splitlines()], err

    return call


@pytest.fixture
def song(tmp_path):
    path = tmp_path / "song.wav"
    write_audio(path, 0.3 * np.sin(2 * np.pi * 330 * np.arange(RATE) / RATE), RATE)
    return path


def test_chords_and_the_same_again_without_their_file(run, tmp_path):
    options = ("--chords", "| Am F | C/E |", "--rhythm", "comp", "--meter", "3/4", "--context-guidance", 2, "--seed", 1)
    code, (record,), err = run("generate", "string quartet", *options)
    assert code == 0, err
    assert record["midi"] == "string-quartet_seed1.mid"
    assert soundfile.info(record["file"]).frames == 3 * RATE  # two bars of three beats at 120 BPM
    expected = Sketch.from_chords("| Am F | C/E |", 120, "3/4", "comp")
    assert np.array_equal(unpack(record["context"]).notes, expected.notes)
    assert Sketch.from_midi(tmp_path / "out" / record["midi"]).notes["pitch"].tolist() == (
        expected.notes["pitch"].tolist()
    )
    assert (record["context_kinds"], record["context_guidance"]) == (["chords"], 2)
    (tmp_path / "out" / record["midi"]).unlink()
    code, (again,), err = run("generate", "--from", record["file"], model=None)
    assert code == 0, err
    assert np.array_equal(read_audio(again["file"])[0], read_audio(record["file"])[0])
    assert again == record | {name: again[name] for name in ("file", "midi")}
    assert (tmp_path / "out" / again["midi"]).exists()
    code, (other,), err = run("generate", "--from", record["file"], "--chords", "C", model=None)
    assert code == 0, err
    assert soundfile.info(other["file"]).frames == 2 * RATE  # the new score says how long
    assert other["context_guidance"] == 2


def test_tracks_of_a_midi_file_and_a_melody_sound_together(run, tmp_path):
    write_score(tmp_path / "tune.mid", TUNE)
    times = np.arange(RATE * 3 // 2) / RATE
    write_audio(tmp_path / "hum.wav", 0.4 * np.sin(2 * np.pi * 220 * times) * (times < 1.2), RATE)
    options = ("--midi", tmp_path / "tune.mid", "--tracks", "1", "--melody", tmp_path / "hum.wav", "--seed", 1)
    code, (record,), err = run("generate", "a flute", *options)
    assert code == 0, err
    sketch = unpack(record["context"])
    assert record["context_kinds"] == ["notes", "melody"]
    assert sorted(set(sketch.notes["pitch"].tolist())) == [57, 60, 64]
    assert soundfile.info(record["file"]).frames == RATE * 3 // 2


def test_along_a_recording_with_chords(run, song):
    code, (record,), err = run("generate", "a bass", "--along", song, "--chords", "C", "--seconds", 1)
    assert code == 0, err
    assert record["context_kinds"] == ["chords", "along"]
    assert len(record["along_sha256"]) == 64
    song.rename(song.with_name("moved.wav"))
    code, records, err = run("generate", "--from", record["file"], model=None)
    assert (code, records) == (2, [])
    assert "song.wav" in err
    code, (again,), err = run("generate", "--from", record["file"], "--along", song.with_name("moved.wav"), model=None)
    assert code == 0, err
    assert np.array_equal(read_audio(again["file"])[0], read_audio(record["file"])[0])


def test_a_loop_has_the_bars_of_its_chords(run):
    code, (record,), err = run("loop", "a waltz", "--bpm", 150, "--meter", "3/4", "--chords", "Am F", "--seed", 2)
    assert code == 0, err
    assert record["bars"] == 2
    assert read_loop(record["file"]).loop == Loop(6, 3, 4, 150)
    assert record["context_kinds"] == ["chords", "click"]
    assert record["candidates"] == 1


def test_holes_follow_chords(run, song, tmp_path):
    before = song.read_bytes()
    code, (record,), err = run("edit", "inpaint", song, "a harp", "--region", "0.3:0.7", "--chords", "Dm")
    assert code == 0, err
    assert record["midi"] == "song.mid"
    assert (tmp_path / "out" / "song.mid").exists()
    assert unpack(record["context"]).kinds == ("chords",)
    assert read_recipe(record["file"])["context_kinds"] == ["chords"]
    code, (again,), err = run("edit", "--from", record["file"], song, model=None)
    assert code == 0, err
    assert np.array_equal(read_audio(again["file"])[0], read_audio(record["file"])[0])
    code, (longer,), err = run("edit", "extend", song, "a harp", "--after", 0.5, "--bpm", 240)
    assert code == 0, err
    assert longer["context_kinds"] == ["click"]
    assert song.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--chords", "Am Foo"), "'Foo' is no chord that is known: 'oo'; understood are"),
        (("--chords", ""), "there are no chords"),
        (("--chords", "C", "--bpm", 0), "bpm must be from 20 to 300"),
        (("--chords", "C", "--meter", "four"), "meter must be"),
        (("--rhythm", "comp"), "rhythm (--rhythm) needs chords (--chords)"),
        (("--tracks", "1"), "tracks (--tracks) needs midi (--midi)"),
        (("--midi", "{tmp}/tune.mid", "--tracks", "1,3"), "there is no 3"),
        (("--midi", "{tmp}/tune.mid", "--tracks", "one"), "whole numbers with commas"),
        (("--midi", "{tmp}/tune.mid", "--bpm", 97), "the score has 120 BPM and bpm is 97"),
        (("--midi", "{tmp}/none.mid"), "none.mid: No such file"),
        (("--midi", "{tmp}/empty.mid"), "holds no notes"),
        (("--midi", "{tmp}/song.wav"), "is not a readable MIDI file"),
        (("--midi", "{tmp}/high.mid"), "the score is too high: C9"),
        (("--melody", "{tmp}/silence.wav"), "silence.wav: no pitch is heard"),
        (("--melody", "{tmp}/tune.mid"), "tune.mid"),
        (("--along", "{tmp}/none.wav"), "none.wav: No such file"),
        (("--along", "{tmp}/tune.mid"), "cannot be read as audio"),
        (("--context-guidance", 2), "there is nothing to follow"),
        (("--chords", "C", "--context-guidance", -1), "at least 0"),
        (("--meter", "3/4"), "there is no tempo for meter"),
    ],
)
def test_bad_input_is_refused_in_one_line_and_leaves_nothing(run, tmp_path, song, arguments, message):
    write_score(tmp_path / "tune.mid", TUNE)
    write_score(tmp_path / "empty.mid", [])
    write_score(tmp_path / "high.mid", [(0.0, 1.0, 120, 0)])
    soundfile.write(tmp_path / "silence.wav", np.zeros(RATE), RATE)
    given = [str(argument).format(tmp=tmp_path) for argument in arguments]
    code, records, err = run("generate", "a waltz", *given)
    assert (code, records) == (2, [])
    assert len(err.strip().splitlines()) == 1
    assert message in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("loop", "a", "--bpm", 120, "--bars", 4, "--chords", "C F"), "the bars do not fit"),
        (("edit", "retake", "{song}", "--chords", "C"), "carries no recipe"),
        (("edit", "inpaint", "{song}", "a", "--region", ":0.5", "--meter", "3/4"), "--meter is for"),
        (("edit", "extend", "{song}", "a", "--after", 1, "--chords", "H"), "'H' is no chord"),
    ],
)
def test_bad_loops_and_edits_are_refused_too(run, tmp_path, song, command, message):
    code, records, err = run(*(str(word).format(song=song) for word in command))
    assert (code, records) == (2, [])
    assert message in err
    assert not (tmp_path / "out").exists()


def test_a_model_without_contexts_refuses_them(run, tmp_path, tiny_folder, song):
    for arguments in (("--chords", "C"), ("--along", song)):
        code, records, err = run("generate", "a waltz", *arguments, model=tiny_folder)
        assert (code, records) == (2, [])
        assert "has no channels for a context" in err
        assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_info_says_which_contexts_a_model_takes(context_folder, tiny_folder, capsys):
    assert main(["info", "--json", str(context_folder), str(tiny_folder), "mini"]) == 0
    able, unable, mini = map(json.loads, capsys.readouterr().out.splitlines())
    assert able["context_kinds"] == ["notes", "melody", "chords", "bass", "drums", "click", "along", "hole"]
    assert unable["context_kinds"] == []
    assert (able["sampling_rate"], able["channels"]) == (RATE, 1)
    assert mini["model"] == "mini"


def test_info_describes_a_sketch_in_words(run, tmp_path, capsys):
    code, (record,), err = run("generate", "a waltz", "--chords", "C", "--bpm", 240)
    assert code == 0, err
    assert main(["info", record["file"]]) == 0
    assert "a sketch of 4 notes and 0 clicks, 1 s" in capsys.readouterr().out
    code, (plain,), err = run("generate", "a waltz", "--seconds", 0.4)
    assert main(["info", plain["file"]]) == 0
    assert "a sketch" not in capsys.readouterr().out


def test_a_folder_that_is_no_model_is_named(tmp_path, capsys):
    assert main(["info", str(tmp_path)]) == 2
    assert f"{tmp_path} is no model folder" in capsys.readouterr().err
