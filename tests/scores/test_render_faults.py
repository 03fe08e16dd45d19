"""Renderings of what is damaged, absurd, renamed or changed: one score costs itself only, and nothing else is lost."""

import itertools
import json
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import mido
import pytest

from musicldm.cli import main
from musicldm.scores import find_scores, render_scores
from musicldm.scores.facts import describe, score_facts
from musicldm.scores.limits import limited
from musicldm.scores.reading import Change, change_score, read_score
from musicldm.scores.render_folder import RenderFolder
from musicldm.scores.rendering import RenderConfig
from musicldm.scores.synthesis import LONGEST_S, Effects, check_soundfont, synthesize
from tests.helpers.disk import full_disk
from tests.helpers.scores import band, small_soundfont, synthesizer, write_score  # noqa: F401  (fixtures)
from tests.helpers.soundfont import write_soundfont
from tests.scores.test_index import GOOD, HEADER

DRUMS = [(at, 0.2, 38, 9) for at in range(40)]
FLUTE = [(at, 0.9, 72 + at % 5, 0) for at in range(40)]


@pytest.fixture
def config(synthesizer) -> RenderConfig:  # noqa: F811
    backend, soundfont = synthesizer
    return RenderConfig(backend=backend, soundfonts=(soundfont,), clip_s=5.0, max_clips=1, program_share=0.0)


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def instruments(out: Path) -> dict[str, list[str]]:
    return {row["score"]: row["instruments"] for row in lines(out / "metadata.jsonl")}


def flute(path: Path) -> Path:
    return write_score(path, FLUTE, programs={0: 73})


# Work that was done is recognised by content


def test_a_score_that_changed_is_rendered_anew(tmp_path, config):
    a, b = flute(tmp_path / "in" / "a.mid"), flute(tmp_path / "in" / "b.mid")
    out = tmp_path / "out"
    render_scores([a, b], out, replace(config, max_clips=2))
    before = {path.name: path.read_bytes() for path in (out / "audio").iterdir()}
    write_score(a, DRUMS[:12])  # music for one clip
    made = render_scores([a, b], out, replace(config, max_clips=2))
    assert (made.written, made.skipped, made.changed) == (1, 2, 1)
    assert instruments(out) == {"a.mid": ["drums"], "b.mid": ["flute"]}
    after = {path.name: path.read_bytes() for path in (out / "audio").iterdir()}
    assert len(after) == len(before) - 1  # no clip of the old one is left over
    assert sum(before.get(name) == content for name, content in after.items()) == 2
    again = render_scores([a, b], out, replace(config, max_clips=2))
    assert (again.written, again.changed) == (0, 0)


def test_a_row_of_the_index_that_changed_is_used(tmp_path, config):
    score, index, out = flute(tmp_path / "b.mid"), tmp_path / "index.csv", tmp_path / "out"
    for genre, written in (("folk", 1), ("folk", 0), ("jig", 1)):
        index.write_text(f"{HEADER}\n{GOOD.replace('folk', genre)}\n")
        assert render_scores([score], out, config, index=index).written == written
        assert lines(out / "metadata.jsonl")[0]["genres"] == [genre]
    assert render_scores([score], out, config).written == 1
    assert lines(out / "metadata.jsonl")[0]["genres"] == []


def test_a_folder_of_an_earlier_version_goes_on(tmp_path, config):
    score, out = flute(tmp_path / "a.mid"), tmp_path / "out"
    render_scores([score], out, config)
    mark = out / ".render" / "config.json"
    settings = json.loads(mark.read_text())
    settings["soundfonts"] = [font[:2] for font in settings["soundfonts"]]
    mark.write_text(json.dumps(settings, indent=1, sort_keys=True))
    (kept,) = (out / ".render").glob("a-*.json")
    result = json.loads(kept.read_text())
    del result["source"]
    kept.write_text(json.dumps(result))
    assert render_scores([score], out, config)[:2] == (0, 1)
    write_score(score, DRUMS)
    os.utime(score, (time.time() + 10, time.time() + 10))
    assert render_scores([score], out, config)[:2] == (1, 0)
    assert instruments(out) == {"a.mid": ["drums"]}


def test_what_differs_in_the_settings_is_named_a_soundfont_of_the_same_size_too(tmp_path, config):
    font = write_soundfont(tmp_path / "small.sf2")
    score, out = flute(tmp_path / "a.mid"), tmp_path / "out"
    mine = replace(config, soundfonts=(str(font),))
    render_scores([score], out, mine)
    with pytest.raises(ValueError, match=r"other settings \(seed 0, now 3\)"):
        render_scores([score], out, replace(mine, seed=3))
    content = bytearray(font.read_bytes())
    content[-200] ^= 1
    font.write_bytes(content)
    with pytest.raises(ValueError, match=r"other settings \(soundfonts "):
        render_scores([score], out, mine)


# Folders and files of others


@pytest.mark.parametrize("name", ["metadata.jsonl", "errors.jsonl", "audio/x-v00-c00.flac", ".render/x.json"])
def test_files_that_the_run_did_not_write_are_not_touched(tmp_path, config, name):
    out = tmp_path / "out"
    (out / name).parent.mkdir(parents=True)
    (out / name).write_text("mine")
    with pytest.raises(FileExistsError, match=r"nothing was changed"):
        render_scores([flute(tmp_path / "a.mid")], out, config)
    assert [path.read_text() for path in out.rglob("*") if path.is_file()] == ["mine"]


def test_other_files_stay_beside_what_is_rendered(tmp_path, config):
    out = tmp_path / "scores"
    others = [out / "notes.txt", out / "audio" / "mine.flac", out / "audio" / "mine.tmp"]
    (out / "audio").mkdir(parents=True)
    for path in others:
        path.write_text("mine")
    score = flute(out / "a.mid")
    for written in (1, 0):
        assert render_scores([score], out, config).written == written
        assert [path.read_text() for path in others] == ["mine"] * 3


def test_a_second_run_in_the_folder_is_refused(tmp_path, config):
    from musicldm.audio.output import sole_writer

    with sole_writer(tmp_path / "out", "render"), pytest.raises(BlockingIOError, match=f"process {os.getpid()}"):
        render_scores([flute(tmp_path / "a.mid")], tmp_path / "out", config)


def test_a_full_disk_is_named_and_leaves_no_half_clip(tmp_path):
    import numpy as np

    folder = RenderFolder(tmp_path / "out")
    folder.begin({"soundfonts": []})
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (16_000, 1))
    with full_disk(4096), pytest.raises(OSError, match="File too large") as error:
        folder.write_clip("audio/a-v00-c00.flac", noise, 16_000)
    assert error.value.filename == str(tmp_path / "out" / "audio" / "a-v00-c00.flac")
    assert list((tmp_path / "out" / "audio").iterdir()) == []


def test_a_full_disk_of_temporary_files_ends_the_run_by_name(tmp_path, small_soundfont):  # noqa: F811
    score = read_score(flute(tmp_path / "a.mid"))
    with full_disk(64), pytest.raises(OSError, match=r"temporary files, .* is full: make room there.*TMPDIR"):
        synthesize(score, [(0.0, 5.0)], Path(small_soundfont), sample_rate=16_000, effects=Effects())


# Scores that are damaged or absurd


def test_what_is_no_score_costs_itself_only(tmp_path, config):
    folder, out = tmp_path / "in", tmp_path / "out"
    flute(folder / "good.mid")
    (folder / "._good.mid").write_bytes(b"\0\5\x16\7")
    (folder / "folder.mid").mkdir()
    (folder / "empty.mid").touch()
    (folder / "big.mid").write_bytes(b"MThd" + bytes(9 * 2**20))
    (folder / "gone.mid").symlink_to("nowhere.mid")
    flute(folder / "zero.mid")
    content = bytearray((folder / "zero.mid").read_bytes())
    content[12:14] = b"\0\0"
    (folder / "zero.mid").write_bytes(content)
    made = render_scores([folder], out, config)
    assert (made.scores, made.failed, made.written) == (4, 3, 1)
    errors = {row["score"]: row["error"] for row in lines(out / "errors.jsonl")}
    assert {name: error.split(": ")[-1] for name, error in errors.items() if name != "zero.mid"} == {
        "empty.mid": "it is empty",
        "big.mid": "it has more than 8,388,608 bytes; split it",
    }
    assert "0 ticks per quarter note" in errors["zero.mid"]
    assert "film" not in errors["zero.mid"]


def test_names_that_are_not_utf8_are_rendered_and_can_be_printed(tmp_path, config):
    folder, out = tmp_path / "in", tmp_path / "out"
    flute(folder / "a.mid").rename(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.mid"))
    bad = os.fsdecode(os.fsencode(folder) + b"/\xff.mid")
    Path(bad).touch()
    render_scores([folder], out, config)
    assert list(instruments(out)) == [r"caf\xe9.mid"]
    (error,) = lines(out / "errors.jsonl")
    assert error["score"] == r"\xff.mid"
    assert r"\xff.mid is not a readable MIDI file: it is empty" in error["error"]


def test_texts_in_a_score_that_are_no_unicode_do_not_matter(tmp_path, config):
    title = mido.MetaMessage("track_name", name="caf\xe9 \x00\x85\xff")
    write_score(tmp_path / "a.mid", FLUTE, programs={0: 73}, others=[(0, title)])
    assert render_scores([tmp_path / "a.mid"], tmp_path / "out", config)[:3] == (1, 0, 0)


def test_an_event_days_away_is_refused_for_whole_pieces_only(tmp_path, config):
    days = mido.Message("note_on", note=60, velocity=64)
    far = write_score(tmp_path / "far.mid", FLUTE, others=[(700_000.0, days), (700_001.0, days.copy(velocity=0))])
    whole = replace(config, clip_s=None)
    made = render_scores([flute(tmp_path / "a.mid"), far], tmp_path / "whole", whole)
    assert (made.written, made.failed) == (1, 1)
    (error,) = lines(tmp_path / "whole" / "errors.jsonl")
    assert f" h, silences included, are more than the {LONGEST_S / 3600:g} h" in error["error"]
    assert render_scores([far], tmp_path / "clips", config)[:3] == (1, 0, 0)


def test_a_tempo_of_zero_and_absurd_tempi_and_metres_are_not_said(tmp_path):
    for micros, qpm in ((0, 120.0), (1, None), (16_777_215, None), (600_000, 100.0)):
        path = write_score(tmp_path / "a.mid", FLUTE, bpm=120.0, others=[(0, mido.MetaMessage("set_tempo"))])
        content = path.read_bytes()
        place = content.rindex(b"\xff\x51\x03") + 3
        path.write_bytes(content[:place] + micros.to_bytes(3, "big") + content[place + 3 :])
        score = read_score(path)
        end_s = score.notes["end_s"].max() + 1.0
        assert describe(score_facts("a", score), score, 0.0, end_s)["tempo_bpm"] == qpm
    for numerator, power in ((0, 2), (200, 2), (4, 200)):
        path = write_score(tmp_path / "a.mid", FLUTE)
        content = path.read_bytes()
        place = content.index(b"\xff\x58\x04") + 3
        path.write_bytes(content[:place] + bytes([numerator, power]) + content[place + 2 :])
        score = read_score(path)
        assert describe(score_facts("a", score), score, 0.0, 10.0)["time_signature"] is None


@pytest.mark.parametrize("factor", [1.0, 1.25])
def test_before_its_first_statement_tempo_and_metre_are_not_said(tmp_path, factor):
    slower = (16, mido.MetaMessage("set_tempo", tempo=mido.bpm2tempo(60)))
    waltz = (16, mido.MetaMessage("time_signature", numerator=3, denominator=4))
    path = write_score(tmp_path / "a.mid", FLUTE, bpm=None, metre=None, others=[slower, waltz])
    score = read_score(path)
    facts, changed = score_facts("a", score), change_score(score, Change(tempo_factor=factor))
    for start_s, end_s, tempo, metre in ((0, 6, None, None), (5, 14, None, None), (8, 14, 60 * factor, "3/4")):
        said = describe(facts, changed, start_s / factor, end_s / factor, tempo_factor=factor)
        assert (said["tempo_bpm"], said["time_signature"]) == (tempo, metre)
        assert said["tempo_steady"] is (None if tempo is None else True)


def test_work_that_goes_on_for_ever_is_ended_and_an_outer_limit_waits():
    with pytest.raises(ValueError, match=r"counting took more than 0\.05 s"), limited(0.05, "counting"):
        sum(1 for _ in itertools.count())
    with limited(0.2, "all"):
        with limited(5.0, "part"):
            time.sleep(0.3)
        assert 0 < signal.getitimer(signal.ITIMER_REAL)[0] <= 0.2
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


FLUIDSYNTH = """#!{python}
import os, signal, sys
from pathlib import Path
if b"\\xc0\\x7f" in Path(sys.argv[-1]).read_bytes():  # gunshot
    os.kill(os.getppid(), signal.SIGKILL)
Path(sys.argv[sys.argv.index("-F") + 1]).write_bytes((b"\\0\\0\\0\\x3f" * 240 + b"\\0\\0\\0\\xbf" * 240) * 2000)
"""


@pytest.fixture
def deadly(tmp_path, monkeypatch, small_soundfont) -> list:  # noqa: F811
    """Options for a synthesizer that ends the process that asks it to play a gunshot."""
    (tmp_path / "bin").mkdir()
    fake = tmp_path / "bin" / "fluidsynth"
    fake.write_text(FLUIDSYNTH.format(python=sys.executable))
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    return ["--soundfont", small_soundfont, "--clip-s", "4", "--program-share", "0", "--workers", "1"]


@pytest.mark.parametrize(("good", "code"), [("ab", 0), ("", 1)])
def test_a_score_that_ends_its_process_costs_itself_and_the_exit_code_counts(tmp_path, capsys, deadly, good, code):
    for name in good:
        flute(tmp_path / "in" / f"{name}.mid")
    write_score(tmp_path / "in" / "deadly.mid", FLUTE, programs={0: 127})
    out = tmp_path / "out"
    assert main(["render", str(tmp_path / "in"), "--out", str(out), *deadly]) == code
    assert "1 could not be rendered, see" in capsys.readouterr().out
    (error,) = lines(out / "errors.jsonl")
    assert error["score"] == "deadly.mid"
    assert "ended the process that rendered it" in error["error"]
    clips = lines(out / "metadata.jsonl") if good else []
    assert {row["score"] for row in clips} == {f"{name}.mid" for name in good}
    assert not list((out / "audio").glob("deadly*"))


def test_bad_rows_of_an_index_are_listed_and_their_scores_left_out(tmp_path, config):
    for name in "ab":
        flute(tmp_path / "in" / f"{name}.mid")
    rows = [GOOD, GOOD.replace("b.mid", "a.mid").replace("120", "fast"), GOOD.replace("b.mid", "")]
    (tmp_path / "index.csv").write_text("\n".join([HEADER, *rows]))
    out = tmp_path / "out"
    made = render_scores([tmp_path / "in"], out, config, index=tmp_path / "index.csv")
    assert (made.written, made.failed) == (1, 1)
    assert [(row["score"], row["error"].split(": ")[1]) for row in lines(out / "errors.jsonl")] == [
        ("a.mid", "column tempo_bpm"),
        ("", "column path is empty"),
    ]


def test_scores_without_a_row_of_the_index_are_counted(tmp_path, config):
    (tmp_path / "index.csv").write_text(f"{HEADER}\n{GOOD}\n")
    scores = [flute(tmp_path / f"{name}.mid") for name in "abc"]
    with pytest.warns(UserWarning, match=r"2 of 3 scores have no row in .*index\.csv: a\.mid, \.\.\."):
        render_scores(scores, tmp_path / "out", config, index=tmp_path / "index.csv")


def test_scores_are_found_under_other_spellings_of_their_paths(tmp_path):
    score = flute(tmp_path / "x" / "e\u0301.mid")
    assert find_scores([score], {"x/\xe9.mid": ".\\x\\\xe9.mid"}) == {".\\x\\\xe9.mid": score}
    os.mkfifo(tmp_path / "pipe.mid")
    with pytest.raises(FileNotFoundError, match="neither a file nor a folder"):
        find_scores([tmp_path / "pipe.mid"])


def test_a_soundfont_that_is_cut_off_is_refused(tmp_path):
    font = write_soundfont(tmp_path / "small.sf2")
    check_soundfont(font)
    font.write_bytes(font.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"small\.sf2 is cut off: it says that it has [\d,]+ bytes, and has"):
        check_soundfont(font)
