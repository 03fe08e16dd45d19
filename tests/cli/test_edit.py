"""``musicldm edit`` on a tiny real model: what it writes and keeps, that it repeats, and what bad input leaves."""

import json
import shutil

import numpy as np
import pytest
import soundfile

from musicldm.audio import read_recipe
from musicldm.cli import main
from tests.helpers.commands import fails

RATE = 11_025  # not the model's 8 kHz


@pytest.fixture
def take(tmp_path):
    """Two seconds of two channels of noise, 24 bits."""
    samples = 0.2 * np.random.default_rng(0).standard_normal((2 * RATE, 2))
    soundfile.write(tmp_path / "take.wav", samples, RATE, subtype="PCM_24")
    return tmp_path / "take.wav"


@pytest.fixture
def edit(tiny_folder, tmp_path, capsys):
    """Run the command with few steps, into tmp_path/out; gives one record for each file."""

    def call(*arguments, model=tiny_folder, code=0):
        model = ("--model", str(model), "--steps", "2", "--no-fast") if model else ()
        given = ["edit", *map(str, arguments), *model, "--out", str(tmp_path / "out"), "--json"]
        assert main(given) == code
        out, err = capsys.readouterr()
        call.errors = err
        return [json.loads(line) for line in out.splitlines()]

    return call


def samples(path):
    return soundfile.read(path, dtype="int32", always_2d=True)[0]


def written(tmp_path):
    return sorted(path.name for path in (tmp_path / "out").iterdir())


INPAINT = "--region", "0.5:1.1", "--snap", "none", "--seed", 3


def test_files_recipe_and_what_is_kept(edit, take, tmp_path):
    before = take.read_bytes()
    (record,) = edit("inpaint", take, "soft strings", *INPAINT)
    assert written(tmp_path) == ["take.png", "take.wav"]
    assert take.read_bytes() == before
    recipe = read_recipe(record["file"])
    assert {name: value for name, value in record.items() if name not in ("file", "figure")} == recipe
    assert (recipe["kind"], recipe["source"], recipe["prompt"], recipe["seed"]) == (
        "inpaint",
        "take.wav",
        "soft strings",
        3,
    )
    assert recipe["regions_s"] == [[0.5, 1.1]]
    assert recipe["seams_s"] == pytest.approx([0.5, 1.1], abs=1 / RATE)
    info = soundfile.info(record["file"])
    assert (info.samplerate, info.channels, info.subtype) == (RATE, 2, "PCM_24")
    old, new = samples(take), samples(record["file"])
    first, last = round(0.5 * RATE), round(1.1 * RATE)
    assert np.array_equal(new[:first], old[:first])
    assert np.array_equal(new[last:], old[last:])
    assert (new[first:last] != old[first:last]).mean() > 0.9


def test_extension_keeps_all_of_it(edit, take):
    (record,) = edit("extend", take, "soft strings", "--before", 0.4, "--after", "0.6", "--seed", 3, "--no-figure")
    old, new = samples(take), samples(record["file"])
    before, after = round(0.4 * RATE), round(0.6 * RATE)
    assert len(new) == before + len(old) + after
    assert np.array_equal(new[before : before + len(old)], old)
    assert record["regions_s"] == [[-0.4, 0.0], [2.0, 2.6]]
    assert record["seams_s"] == pytest.approx([0.4, 2.4], abs=1 / RATE)
    assert record["figure"] is None
    assert np.abs(new[-after:]).max() > 0


def test_a_variation_is_as_long_as_its_source(edit, take):
    (record,) = edit("vary", take, "soft strings", "--amount", 0.4, "--seed", 3)
    info = soundfile.info(record["file"])
    assert (info.frames, info.samplerate, info.channels, info.subtype) == (2 * RATE, RATE, 2, "PCM_24")
    assert (record["amount"], record["regions_s"], record["seams_s"]) == (0.4, [[0.0, 2.0]], [])
    (other,) = edit("vary", take, "soft strings", "--amount", 1, "--seed", 3)
    assert not np.array_equal(samples(other["file"]), samples(record["file"]))


@pytest.fixture
def own(tiny_folder, tmp_path, capsys):
    """A file of `musicldm generate`."""
    given = ["--model", str(tiny_folder), "--steps", "2", "--seconds", "0.4", "--seed", "5", "--no-fast", "--json"]
    assert main(["generate", "calm piano", *given, "--out", str(tmp_path)]) == 0
    return tmp_path / json.loads(capsys.readouterr().out)["file"]


def test_a_retake_is_between_two_seeds(edit, own, tmp_path, tiny_folder, capsys):
    (same,) = edit("retake", own, "--amount", 0, "--seed", 8, model=None)
    assert np.array_equal(samples(same["file"]), samples(own))
    assert (same["prompt"], same["steps"], same["noise"]) == ("calm piano", 2, [[5, 1.0]])
    (other,) = edit("retake", own, "--amount", 1, "--seed", 8, model=None)
    given = ["--seed", "8", "--out", str(tmp_path / "other"), "--json"]
    assert main(["generate", "--from", str(own), *given]) == 0
    expected = json.loads(capsys.readouterr().out)["file"]
    assert np.array_equal(samples(other["file"]), samples(expected))
    (between,) = edit("retake", own, "--amount", 0.5, "--seed", 8, model=None)
    differences = [np.abs(samples(between["file"]) - samples(one["file"])).max() for one in (same, other)]
    assert min(differences) > 2**20


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("inpaint", INPAINT),
        ("extend", ("--after", 0.5)),
        ("vary", ("--amount", 0.5, "--scheduler", "euler-a")),
        ("retake", ("--amount", 0.3)),
    ],
)
def test_a_result_is_made_again_to_the_bit(kind, options, edit, take, own, tmp_path):
    source = own if kind == "retake" else take
    prompt = () if kind == "retake" else ("soft strings",)
    (first,) = edit(kind, source, *prompt, *options, "--format", "flac")
    (again,) = edit("--from", first["file"], source, model=None)
    assert again["file"].endswith("_2.flac")
    assert np.array_equal(samples(again["file"]), samples(first["file"]))
    assert read_recipe(again["file"]) == read_recipe(first["file"])
    (changed,) = edit("--from", first["file"], source, "--seed", first["seed"] + 1, model=None)
    assert not np.array_equal(samples(changed["file"]), samples(first["file"]))
    other = tmp_path / "other.wav"
    soundfile.write(other, np.full(100, 0.5), RATE)
    assert edit("--from", first["file"], other, model=None, code=2) == []
    assert edit.errors.count("\n") == 1
    assert first["source_sha256"] in edit.errors


def test_results_never_take_the_place_of_a_source(edit, take, tmp_path):
    (tmp_path / "out").mkdir()
    inside = shutil.move(take, tmp_path / "out" / "take.wav")
    before = inside.read_bytes()
    (first,) = edit("inpaint", inside, "strings", *INPAINT)
    (second,) = edit("inpaint", first["file"], *INPAINT, "--no-figure")  # with the prompt of the first
    assert [first["file"], second["file"]] == [str(tmp_path / "out" / name) for name in ("take_2.wav", "take_2_2.wav")]
    assert inside.read_bytes() == before
    assert second["prompt"] == "strings"


def test_several_recordings_are_edited_as_each_alone(edit, take, tmp_path, tiny_folder):
    shutil.copy(take, tmp_path / "second.wav")
    (tmp_path / "bad.wav").write_text("hello")
    records = edit("inpaint", take, tmp_path / "bad.wav", tmp_path / "second.wav", "strings", *INPAINT, code=2)
    assert [record["source"] for record in records] == ["take.wav", "second.wav"]
    (line,) = [line for line in edit.errors.splitlines() if line.startswith("musicldm: error")]
    assert "1 of 3 could not be used" in line
    assert "bad.wav" in line
    assert np.array_equal(samples(records[0]["file"]), samples(records[1]["file"]))


@pytest.mark.parametrize(("kind", "subtype", "wanted"), [("flac", "PCM_U8", "PCM_S8"), ("aiff", "PCM_16", "PCM_16")])
def test_another_container_keeps_rate_channels_and_samples(kind, subtype, wanted, edit, take, tmp_path):
    soundfile.write(tmp_path / "a.wav", samples(take)[:, 0], RATE, subtype=subtype)
    (record,) = edit("inpaint", tmp_path / "a.wav", "strings", *INPAINT, "--format", kind, "--no-figure")
    info = soundfile.info(record["file"])
    assert (info.format, info.subtype, info.samplerate, info.channels) == (kind.upper(), wanted, RATE, 1)
    old, new = samples(tmp_path / "a.wav"), samples(record["file"])
    assert np.array_equal(new[: RATE // 2], old[: RATE // 2])


def test_a_decoded_recording_becomes_a_wave_file(edit, take, tmp_path):
    soundfile.write(tmp_path / "a.ogg", samples(take)[:, 0] / 2**31, RATE)
    (record,) = edit("inpaint", tmp_path / "a.ogg", "strings", *INPAINT, "--no-figure")
    info = soundfile.info(record["file"])
    assert (info.format, info.subtype) == ("WAV", "FLOAT")
    assert "decoded" in edit.errors
    old, new = (soundfile.read(path, dtype="float32")[0] for path in (tmp_path / "a.ogg", record["file"]))
    assert np.array_equal(new[: RATE // 2], old[: RATE // 2])


BAD = [
    ([], "say what to do, vary, inpaint, extend, retake"),
    (["remix", "take.wav", "x"], "got 'remix'"),
    (["vary"], "no recording to vary"),
    (["vary", "take.wav"], "there is no prompt"),
    (["vary", "take.wav", ""], "the prompt '' is empty"),
    (["vary", "take.wav", "a", "b"], "one prompt, got 2 ('a', 'b')"),
    (["vary", "take.wav", "a", "--amount", "0"], "above 0"),
    (["vary", "take.wav", "a", "--amount", "1.5"], "'1.5'"),
    (["vary", "take.wav", "a", "--region", "0:1"], "regions_s is for inpaint"),
    (["vary", "none.wav", "a"], "none.wav"),
    (["vary", "none", "a"], "none"),
    (["vary", ".", "a"], "."),
    (["vary", "text.wav", "a"], "text.wav cannot be read as audio"),
    (["vary", "silent.wav", "a"], "silent"),
    (["vary", "nan.wav", "a"], "nan"),
    (["vary", "short.wav", "a"], "short"),
    (["vary", "take.wav", "a", "--seconds", "3"], "--seconds"),
    (["vary", "take.wav", "a", "--format", "mp3"], "'mp3'"),
    (["vary", "take.wav", "a", "--scheduler", "magic"], "'magic'"),
    (["vary", "take.wav", "a", "--novelty", "avoid"], "carries none"),
    (["inpaint", "take.wav", "a"], "needs a region"),
    (["inpaint", "take.wav", "a", "--region", "4"], "'4'"),
    (["inpaint", "take.wav", "a", "--region", "0:b"], "'0:b'"),
    (["inpaint", "take.wav", "a", "--region", "1:3"], "outside"),
    (["inpaint", "take.wav", "a", "--region", "5:"], "outside"),
    (["inpaint", "take.wav", "a", "--region=-1:1"], "outside"),
    (["inpaint", "take.wav", "a", "--region", "1:0.5"], "ends before it begins"),
    (["inpaint", "take.wav", "a", "--region", "1:1"], "empty"),
    (["inpaint", "take.wav", "a", "--region", "0:1", "--region", "0.5:1.5"], "overlap"),
    (["inpaint", "take.wav", "a", "--region", ":"], "covers all"),
    (["inpaint", "take.wav", "a", "--region", ":1", "--region", "1:"], "covers all"),
    (["extend", "take.wav", "a"], "needs seconds"),
    (["extend", "take.wav", "a", "--before", "-1"], "'-1'"),
    (["extend", "take.wav", "a", "--after", "nan"], "'nan'"),
    (["extend", "take.wav", "a", "--after", "1e9"], "GiB"),
    (["retake", "take.wav"], "carries no recipe"),
    (["--from", "take.wav", "take.wav"], "carries no recipe"),
    (["--from", "none.wav", "take.wav"], "none.wav"),
    (["--from", "take.wav"], "needs the recording"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[" ".join(arguments) for arguments, _ in BAD])
def test_bad_input_is_one_line_and_leaves_nothing(arguments, message, take, tiny_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.wav").write_text("hello")
    soundfile.write(tmp_path / "silent.wav", np.zeros(RATE), RATE)
    soundfile.write(tmp_path / "nan.wav", np.array([0.1, np.nan] * 500), RATE, subtype="FLOAT")
    soundfile.write(tmp_path / "short.wav", np.full(10, 0.1), RATE)
    before = sorted(path.name for path in tmp_path.iterdir())
    error = fails(capsys, "edit", *arguments, "--model", tiny_folder, "--steps", 1, "--out", tmp_path / "a" / "b")
    assert message in error
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_what_is_new_must_be_long_enough_to_compare(take, tmp_path, tiny_folder, capsys):
    error = fails(capsys, "edit", "inpaint", take, "a", *INPAINT, "--novelty", "report", "--index", tmp_path)
    assert "0.60 s that are made anew are too short to compare" in error
