"""Music that follows a sketch or a recording: requests, recipes, lengths, clicks, and the scores beside results."""

import json
import sys
from dataclasses import replace

import mido
import numpy as np
import pytest
import soundfile
import torch

from musicldm import MusicLDMPipeline
from musicldm.audio import read_recipe, write_audio
from musicldm.generate import Edit, Request, Session
from musicldm.generate.recipe import complete
from musicldm.models.context import add_context
from musicldm.sampling.schedulers import make_scheduler
from musicldm.scores import Sketch
from tests.helpers.scores import write_score
from tests.helpers.tiny import make_context_unet

RATE = 8_000  # of the tiny model
CHORDS = Sketch.from_chords("C G", bpm=240)  # 2 s
OTHERS = Sketch.from_chords("F Bb", bpm=240)
ASKED = Request("a waltz", 1, steps=2, context=CHORDS)
TEMPO = {"bpm": 240.0, "candidates": 1, "force": True}

pytestmark = pytest.mark.filterwarnings("ignore:madmom is not installed")


@pytest.fixture(autouse=True)
def _librosa(monkeypatch):
    """Librosa tracks the beats, which is always there."""
    monkeypatch.setitem(sys.modules, "madmom", None)


@pytest.fixture(scope="module")
def session(context_folder):
    return Session(context_folder, "cpu", fast=False)


@pytest.fixture(scope="module")
def song(tmp_path_factory):
    """A recording of 1.5 s."""
    path = tmp_path_factory.mktemp("song") / "song.wav"
    write_audio(path, 0.3 * np.sin(2 * np.pi * 330 * np.arange(round(1.5 * 11_025)) / 11_025), 11_025)
    return path


def difference(one, other):
    return np.abs(one.waveform - other.waveform).max()


def test_music_follows_its_sketch_and_is_as_long(session):
    made = session.run(ASKED)
    assert made.waveform.shape == (2 * RATE,)
    assert np.array_equal(made.waveform, session.run(ASKED).waveform)
    assert difference(made, session.run(replace(ASKED, context=OTHERS))) > 1e-3
    assert difference(made, session.run(replace(ASKED, context=None))) > 1e-3
    assert difference(made, session.run(replace(ASKED, context_guidance=3.0))) > 1e-3
    assert difference(made, session.run(replace(ASKED, context=replace(CHORDS, kinds=("notes",))))) > 1e-3


def test_it_is_what_the_pipeline_makes(session, context_folder):
    pipeline = MusicLDMPipeline.from_pretrained(context_folder)
    pipeline.scheduler = make_scheduler("dpm++", pipeline.scheduler)
    pipeline.set_progress_bar_config(disable=True)
    made = session.run(replace(ASKED, context_guidance=2.0))
    wanted = pipeline(
        "a waltz",
        context=CHORDS,
        context_guidance_scale=2.0,
        num_inference_steps=2,
        guidance_scale=ASKED.guidance,
        guidance_interval=ASKED.guidance_interval,
        seed=1,
    )
    assert np.abs(made.waveform - wanted.audios[0]).max() < 1e-4


def test_seconds_cut_a_sketch_or_go_on_after_it(session):
    for seconds in (0.5, 3.0):
        made = session.run(replace(ASKED, seconds=seconds))
        assert made.waveform.shape == (round(seconds * RATE),)
        assert made.sketch.seconds == min(seconds, 2.0)


def test_a_long_score_is_played_to_its_end(session, tmp_path):
    notes = [(beat, 0.9, 60 + beat % 12, 0) for beat in range(24)]
    sketch = Sketch.from_midi(write_score(tmp_path / "long.mid", notes, bpm=240))
    asked = Request("a waltz", 1, steps=1, context=sketch)
    made = session.run(asked)
    assert made.waveform.shape[-1] == round(sketch.seconds * RATE) > 15 * 0.32 * RATE
    other = sketch.notes.copy()
    other["pitch"][-1] += 4
    changed = replace(sketch, score=sketch.score._replace(notes=other))
    apart = np.abs(made.waveform - session.run(replace(asked, context=changed)).waveform)
    last = round(sketch.notes["start_s"][-1] * RATE)
    assert apart[last:].max() > 1e-3
    assert apart[last:].mean() > 5 * apart[: last - RATE].mean()


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_the_recipe_alone_remakes_it(session, tmp_path, suffix):
    made = session.run(replace(ASKED, context=CHORDS + Sketch.click(97.3, "3/4"), context_guidance=1.5, seconds=2.0))
    made.save(tmp_path / f"a{suffix}")
    recipe = read_recipe(tmp_path / f"a{suffix}")
    assert recipe == made.recipe | {"midi": "a.mid"}
    assert recipe["context_kinds"] == ["chords", "click"]
    assert recipe["context_guidance"] == 1.5
    (tmp_path / "a.mid").unlink()
    again = session.run(Request.from_recipe(recipe))
    assert np.array_equal(again.waveform, made.waveform)
    assert again.recipe == made.recipe


def test_the_score_lies_beside_the_result(session, tmp_path):
    made = session.run(replace(ASKED, seconds=1.25))
    made.save(tmp_path / "a.wav")
    score = Sketch.from_midi(tmp_path / "a.mid")
    expected = CHORDS.cut(0, 1.25)
    assert score.notes["pitch"].tolist() == expected.notes["pitch"].tolist()
    assert np.abs(score.notes["start_s"] - expected.notes["start_s"]).max() < 1e-3
    assert mido.MidiFile(tmp_path / "a.mid").length == pytest.approx(1.25, abs=1e-3)
    session.run(replace(ASKED, context=None, seconds=0.4)).save(tmp_path / "b.wav")
    assert not (tmp_path / "b.mid").exists()


def test_requests_of_one_sketch_go_together(session):
    seen = []
    requests = [replace(ASKED, seed=seed) for seed in (1, 2)] + [replace(ASKED, context=OTHERS), ASKED]
    pieces = list(session.run_many(requests, progress=seen.append))
    assert list(dict.fromkeys((one.first, one.last) for one in seen)) == [(1, 2), (3, 3), (4, 4)]
    assert difference(pieces[0], pieces[3]) < 1e-4


def test_along_a_recording(session, song, tmp_path):
    asked = Request("a bass", 1, steps=2, along=song)
    made = session.run(asked)
    assert made.waveform.shape == (round(1.5 * RATE),)
    assert made.recipe["context_kinds"] == ["along"]
    assert made.recipe["along"] == str(song)
    assert made.sketch is None
    both = session.run(replace(asked, context=CHORDS, seconds=1.5))
    assert both.recipe["context_kinds"] == ["chords", "along"]
    assert difference(made, both) > 1e-3
    assert session.run(replace(asked, context=CHORDS)).waveform.shape == (2 * RATE,)  # the longer says how long
    again = session.run(Request.from_recipe(json.loads(json.dumps(both.recipe))))
    assert np.array_equal(again.waveform, both.waveform)
    other = tmp_path / "other.wav"
    write_audio(other, 0.2 * np.ones(9000), 9000)
    with pytest.raises(ValueError, match=r"is another recording .* SHA-256 is [0-9a-f]{64}, that of the recipe is"):
        session.run(replace(Request.from_recipe(both.recipe), along=str(other)))


def test_sections_follow_a_sketch(session):
    asked = Request.of_sections([("a waltz", 1.0), ("fast drums", 1.0)], 1, steps=1, context=CHORDS)
    made = session.run(asked)
    assert made.waveform.shape == (2 * RATE,)
    assert made.recipe["context_kinds"] == ["chords"]
    assert difference(made, session.run(replace(asked, context=OTHERS))) > 1e-3


def test_a_tempo_is_also_a_click(session, tmp_path):
    asked = Request("a waltz", 1, steps=1, seconds=1.5, meter="3/4", **TEMPO)
    made = session.run(asked)
    assert made.recipe["context_kinds"] == ["click"]
    assert "context" not in made.recipe
    assert made.sketch.clicks[:, 0] == pytest.approx(np.arange(6) * 0.25)
    assert made.sketch.clicks[:, 1].tolist() == [1, 0, 0, 1, 0, 0]
    made.save(tmp_path / "a.wav")
    assert np.array_equal(session.run(Request.from_recipe(read_recipe(tmp_path / "a.wav"))).waveform, made.waveform)
    assert np.array_equal(np.diff(Sketch.from_midi(tmp_path / "a.mid").notes["start_s"].round(3)), [0.25] * 5)


def test_a_model_without_clicks_is_measured_as_ever(tiny_folder):
    asked = Request("a waltz", 1, steps=1, seconds=1.5, **TEMPO)
    made = Session(tiny_folder, "cpu", fast=False).run(asked)
    assert "context_kinds" not in made.recipe
    assert made.sketch is None


def test_music_of_chords_keeps_their_time(session):
    """It is measured, but neither stretched nor refused, whatever the tracker hears."""
    made = session.run(replace(ASKED, bpm=240.0, candidates=None))
    assert made.recipe["candidates"] == 1
    assert made.recipe["tempo"]["stretched"] == 1
    assert made.recipe["context_kinds"] == ["chords", "click"]
    assert made.recipe["seconds"] == 2
    assert len(made.sketch.clicks) == 8
    assert Request.from_recipe(made.recipe).sketch.kinds == ("chords",)  # the click is the tempo's
    assert np.array_equal(session.run(Request.from_recipe(made.recipe)).waveform, made.waveform)


def test_loops_follow_chords_from_their_first_sample(session):
    chords = Sketch.from_chords("C G", bpm=233)
    asked = Request("a waltz", 1, steps=1, loop=True, bars=2, context=chords, bpm=233.0)
    made = session.run(asked)
    assert made.waveform.shape == (round(8 * 60 / 233 * RATE),)
    assert made.recipe["take"]["start"] == 0
    assert made.sketch.notes["start_s"].max() == pytest.approx(4 * 60 / 233)
    assert np.array_equal(session.run(Request.from_recipe(made.recipe)).waveform, made.waveform)
    free = session.run(replace(asked, bpm=None, bars=None, meter=None, seconds=chords.seconds, candidates=1))
    assert free.waveform.shape == made.waveform.shape


def test_holes_and_extensions_follow_a_sketch(session, tmp_path):
    path = tmp_path / "take.wav"
    rng = np.random.default_rng(0)
    write_audio(path, 0.2 * np.sin(2 * np.pi * 220 * np.arange(3 * RATE) / RATE) + 0.01 * rng.random(3 * RATE), RATE)
    hole = Edit("inpaint", path, "a waltz", 1, regions_s=[(1.0, 2.0)], steps=2, snap="none", context=CHORDS)
    made = session.run(hole)
    assert difference(made, session.run(replace(hole, context=OTHERS))) > 1e-3
    assert difference(made, session.run(replace(hole, context=None))) > 1e-3
    assert made.recipe["context_kinds"] == ["chords"]
    assert made.sketch.notes["start_s"].min() == 1.0
    assert made.sketch.seconds == 2.0
    made.save(tmp_path / "new.wav")
    assert Sketch.from_midi(tmp_path / "new.mid").notes["start_s"].min() == pytest.approx(1.0, abs=1e-3)
    again = session.run(Edit.from_recipe(read_recipe(tmp_path / "new.wav"), path))
    assert np.array_equal(again.waveform, made.waveform)
    longer = session.run(Edit("extend", path, "a waltz", 1, before_s=0.5, after_s=1.0, steps=2, context=CHORDS))
    assert longer.sketch.notes["start_s"].min() == 0
    assert session.run(Edit("extend", path, "a waltz", 1, after_s=1, steps=2, context=CHORDS)).sketch.seconds == 4
    varied = Edit("vary", path, "a waltz", 1, steps=2, context=CHORDS)
    assert difference(session.run(varied), session.run(replace(varied, context=None))) > 1e-3


def test_a_retake_follows_what_its_source_did(session, tmp_path):
    made = session.run(ASKED)
    made.save(tmp_path / "a.wav")
    same = session.run(Edit("retake", tmp_path / "a.wav", seed=5, amount=0.0))
    assert np.abs(same.waveform[0] - made.waveform).max() < 1e-6
    assert same.recipe["context_kinds"] == ["chords"]
    same.save(tmp_path / "b.wav")
    assert (tmp_path / "b.mid").exists()
    assert read_recipe(tmp_path / "b.wav")["context"] == made.recipe["context"]


def test_recipes_without_contexts_are_as_before(session):
    recipe = session.run(replace(ASKED, context=None, seconds=0.4)).recipe
    assert not {"context", "context_guidance", "context_kinds", "along", "along_sha256", "midi"} & set(recipe)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"context": 3}, "context must be a Sketch, or None"),
        ({"context": "Am F"}, "context must be a Sketch, or None"),
        ({"context_guidance": -1}, "context_guidance must be a number of at least 0"),
        ({"context_guidance": float("nan")}, "context_guidance must be a finite number"),
        ({"context": None, "context_guidance": 2}, "there is nothing to follow"),
        ({"along": 3}, "along must be the path of a recording"),
        ({"along_sha256": "ab"}, "along_sha256 is for along"),
        ({"along": "song.wav", "loop": True}, "a loop cannot be made along with a recording"),
        ({"along": "song.wav", "sections": [("a", 1.0)], "seconds": None}, "in sections cannot be made along"),
        ({"bpm": 100}, "the score has 240 BPM and bpm is 100"),
        ({"bpm": 240, "loop": True, "bars": 4, "seconds": None}, "the bars do not fit: .* which is 2 bars of 4/4"),
        ({"bpm": 240, "loop": True, "bars": 1, "seconds": None}, "the bars do not fit: .* and the loop has 1"),
    ],
)
def test_requests_that_cannot_be_are_refused(changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        replace(ASKED, **changes)
    assert "\n" not in str(caught.value)


def test_recipes_with_a_damaged_sketch_are_refused_by_name(session):
    recipe = session.run(ASKED).recipe
    for name, value in (("context", "eNp"), ("context_guidance", "1"), ("along", 3), ("along_sha256", 3)):
        with pytest.raises(ValueError, match=name):
            complete(recipe | {name: value})


def test_octaves_of_the_score_s_tempo_are_the_same_tempo():
    assert replace(ASKED, bpm=120).bpm == 120


@pytest.mark.parametrize(
    ("context", "message"),
    [
        (CHORDS.transposed(40), "the score is too high"),
        (Sketch.from_chords("N.C. N.C."), "the sketch is silent"),
        (sum((CHORDS.transposed(n) for n in range(1, 8)), CHORDS), "the score is too dense"),
    ],
)
def test_what_the_model_cannot_hear_is_refused_before_anything_is_made(session, context, message):
    seen = []
    with pytest.raises(ValueError, match=message):
        next(session.run_many([ASKED, replace(ASKED, context=context)], progress=seen.append))
    with pytest.raises(ValueError, match=message):
        session.memory([replace(ASKED, context=context)])
    assert not seen


def test_a_model_that_takes_no_context_says_so(tiny_folder):
    session = Session(tiny_folder, "cpu", fast=False)
    assert session.context_kinds == ()
    with pytest.raises(ValueError, match=r"follows no chords, its UNet has no channels .*bundled models"):
        session.run(ASKED)


def test_a_kind_that_the_model_does_not_know_is_named(tiny_parts, tmp_path, song):
    torch.manual_seed(2)
    unet = make_context_unet(("chords",))
    MusicLDMPipeline(**tiny_parts | {"unet": unet}).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="takes a context already"):
        add_context(unet)
    session = Session(tmp_path, "cpu", fast=False)
    session.run(ASKED)
    for wanted in (replace(ASKED, context=Sketch.click(120)), replace(ASKED, along=song)):
        with pytest.raises(ValueError, match=r"no context of kind '(click|along)'; it knows chords"):
            session.run(wanted)
    assert "context_kinds" not in session.run(Request("a", 1, steps=1, seconds=1.0, **TEMPO)).recipe


def test_a_recording_that_is_none_is_refused(session, tmp_path):
    (tmp_path / "a.wav").write_bytes(b"no audio")
    with pytest.raises(ValueError, match=r"a\.wav"):
        session.run(Request("a", along=tmp_path / "a.wav"))
    with pytest.raises(FileNotFoundError):
        session.run(Request("a", along=tmp_path / "b.wav"))
    soundfile.write(tmp_path / "silent.wav", np.zeros(8000), RATE)
    with pytest.raises(ValueError, match="silent"):
        session.run(Request("a", along=tmp_path / "silent.wav"))
