"""Edits refuse what cannot be before anything is loaded, and an edited file's recipe gives the same edit again."""

import hashlib
import json
import math

import numpy as np
import pytest
import soundfile

from musicldm.audio import write_audio
from musicldm.editing.beats import beats_near
from musicldm.generate import Edit
from musicldm.generate.edit import check_source, load_edit_recipe, load_music_recipe, retake_of
from musicldm.generate.preparing import made_anew, prepare
from musicldm.generate.recipe import DEFAULTS, load_recipe

RATE = 8000


@pytest.fixture
def recording(tmp_path):
    """Two seconds of noise with a click each half second."""
    samples = 0.02 * np.random.default_rng(0).standard_normal(2 * RATE)
    samples[:: RATE // 2] = 0.9
    soundfile.write(tmp_path / "take.wav", samples, RATE)
    return tmp_path / "take.wav"


def own_file(path, **fields):
    """A file with a recipe of ours, which only says what it must."""
    recipe = (
        DEFAULTS
        | {"prompt": "a waltz", "seed": 5, "seconds": 1.0, "dtype": "float32", "steps": 7, "candidates": 1}
        | fields
    )
    write_audio(path, np.full(RATE, 0.1), RATE, recipe)
    return path


def edited(recording, kind="inpaint", **fields):
    """The recipe of an edit of ``recording``."""
    digest = hashlib.sha256(recording.read_bytes()).hexdigest()
    about = {"kind": kind, "source": recording.name, "source_sha256": digest, "regions_s": [[0.5, 1.0]], "seams_s": []}
    return DEFAULTS | {"prompt": "strings", "seed": 3, "seconds": 2.0, "dtype": "float32"} | about | fields


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("remix", {}, "unknown kind of edit 'remix'; choose one of vary, inpaint, extend, retake"),
        (["vary"], {}, "unknown kind of edit"),
        ("vary", {"prompt": ["a", "b"]}, r"prompt must be a text, got \['a', 'b'\]"),
        ("vary", {"prompt": " "}, "the prompt ' ' is empty"),
        ("vary", {"amount": 0}, "amount of vary must be above 0"),
        ("vary", {"amount": 1.5}, "amount must be a number from 0 to 1, got 1.5"),
        ("vary", {"amount": math.nan}, "amount must be a finite number"),
        ("vary", {"seconds": 5}, "takes its length from the recording; leave seconds=5 out"),
        ("vary", {"regions_s": [(0, 1)]}, "regions_s is for inpaint, not for vary"),
        ("vary", {"before_s": 1}, "before_s is for extend, not for vary"),
        ("vary", {"seed": -1}, "seed must be a whole number"),
        ("vary", {"snap": "bar"}, "snap must be one of beat, none, got 'bar'"),
        ("vary", {"steps": 0}, "steps must be a whole number"),
        ("inpaint", {}, "needs a region"),
        ("inpaint", {"regions_s": [(0, 1)], "amount": 0.5}, "amount is for vary and retake, not for inpaint"),
        ("inpaint", {"regions_s": 4}, "regions_s must be a list of pairs"),
        ("inpaint", {"regions_s": [4]}, "a region must be a pair of seconds"),
        ("inpaint", {"regions_s": [(0, 1, 2)]}, "a region must be a pair of seconds"),
        ("inpaint", {"regions_s": [("a", 1)]}, "a region's border must be a finite number"),
        ("inpaint", {"regions_s": [(math.nan, 1)]}, "a region's border must be a finite number"),
        ("extend", {}, "extend needs seconds to add"),
        ("extend", {"after_s": -1}, "after_s must be a number of at least 0, got -1"),
        ("retake", {"noise": [(1, 2, 3)]}, "must be a pair of a seed and a share"),
        ("retake", {"noise": [(1, 1.5)]}, "a share of noise must be a number from 0 to 1"),
    ],
)
def test_an_edit_that_cannot_be_is_refused(kind, options, message):
    with pytest.raises(ValueError, match=message):
        Edit(kind, "take.wav", **options)


def test_an_edit_knows_its_usual_amount(tmp_path):
    assert Edit("vary", tmp_path / "a.wav", "x").amount == 0.6
    assert Edit("retake", "a.wav").amount == 0.5
    assert Edit("inpaint", "a.wav", regions_s=[(-math.inf, 1), (2, math.inf)]).regions_s == ((None, 1), (2, None))
    assert Edit("vary", tmp_path / "a.wav").source == str(tmp_path / "a.wav")


@pytest.mark.parametrize(
    ("regions", "message"),
    [
        ([(0.5, 3)], "outside"),
        ([(-1, 1)], "outside"),
        ([(5, None)], "outside"),
        ([(1.5, 1)], "ends before it begins"),
        ([(1, 1)], "empty"),
        ([(0.2, 1), (0.8, 1.5)], "overlap"),
        ([(None, None)], "covers all"),
        ([(0, 1), (1, 2)], "covers all"),
    ],
)
def test_regions_are_checked_against_the_recording(recording, regions, message):
    with pytest.raises(ValueError, match=message):
        prepare(Edit("inpaint", recording, "strings", regions_s=regions))


def test_a_prepared_edit_says_everything(recording):
    edit, source = prepare(Edit("inpaint", recording, "strings", regions_s=[(1.5, None), (None, 0.25)], snap="none"))
    assert edit.regions_s == ((0.0, 0.25), (1.5, 2.0))
    assert made_anew(edit, source) == [(0.0, 0.25), (1.5, 2.0)]
    assert prepare(edit).edit == edit
    extended = Edit("extend", recording, "strings", before_s=0.5, after_s=1)
    assert made_anew(*prepare(extended)) == [(-0.5, 0.0), (2.0, 3.0)]
    assert made_anew(*prepare(Edit("extend", recording, "strings", after_s=1))) == [(2.0, 3.0)]
    assert made_anew(*prepare(Edit("vary", recording, "strings"))) == [(0.0, 2.0)]


def test_regions_move_to_beats_near_them(tmp_path):
    """Clicks each half second: a region's start moves later to one, its end earlier."""
    rate, beats = 16_000, np.arange(0.25, 12, 0.5)
    samples = np.zeros(12 * rate)
    for beat in beats:
        at = round(beat * rate)
        samples[at : at + 400] = 0.8 * np.hanning(400) * np.sin(np.arange(400) * 0.4)
    soundfile.write(tmp_path / "clicks.wav", np.stack([samples, samples], 1), rate)
    edit = Edit("inpaint", tmp_path / "clicks.wav", "strings", regions_s=[(4.22, 6.28)], snap="beat")
    ((start, stop),) = prepare(edit).edit.regions_s
    assert 4.22 <= start <= 4.28
    assert 6.22 <= stop <= 6.28
    assert (start, stop) != (4.22, 6.28)
    heard = beats_near(prepare(edit).source, [(4.0, 5.0)])
    assert min(abs(beat - 4.25) for beat in heard) < 0.04


def test_the_prompt_of_a_recording_of_ours_is_taken(tmp_path, recording):
    own = own_file(tmp_path / "own.wav")
    assert prepare(Edit("vary", own)).edit.prompt == "a waltz"
    assert prepare(Edit("vary", own, "a march")).edit.prompt == "a march"
    with pytest.raises(ValueError, match=r"there is no prompt, and .*take\.wav carries none of its own"):
        prepare(Edit("vary", recording))


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.zeros(RATE), "silent"),
        (np.array([0.1, np.nan] * 100), "nan"),
        (np.zeros(0), "no samples"),
    ],
)
def test_a_recording_that_cannot_be_edited_is_refused(tmp_path, samples, message):
    soundfile.write(tmp_path / "a.wav", samples, RATE, subtype="FLOAT")
    with pytest.raises(ValueError, match=message):
        prepare(Edit("vary", tmp_path / "a.wav", "strings"))


def test_a_source_that_is_missing_or_no_audio_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError):
        prepare(Edit("vary", tmp_path / "none.wav", "strings"))
    (tmp_path / "a.wav").write_text("hello")
    with pytest.raises(ValueError, match="cannot be read as audio"):
        prepare(Edit("vary", tmp_path / "a.wav", "strings"))


def test_a_retake_follows_the_recipe_of_its_source(tmp_path):
    own = own_file(tmp_path / "own.wav", guidance=2.0, candidates=3)
    edit = prepare(Edit("retake", own, seed=9, amount=0.25)).edit
    assert (edit.prompt, edit.steps, edit.guidance, edit.candidates) == ("a waltz", 7, 2.0, 3)
    assert (edit.seed, edit.amount, edit.noise) == (9, 0.25, ((5, 1.0),))
    changed = prepare(Edit("retake", own, "a march", steps=9)).edit
    assert (changed.prompt, changed.steps, changed.guidance) == ("a march", 9, 2.0)
    recipe = load_music_recipe(own)
    assert retake_of(recipe, own, {"steps": DEFAULTS["steps"]}).steps == DEFAULTS["steps"]  # asked for, so not 7


def test_a_retake_of_a_retake_turns_its_noise_further(tmp_path):
    again = own_file(tmp_path / "again.wav", kind="retake", noise=[[5, 1.0]], amount=0.25, seed=9)
    assert prepare(Edit("retake", again)).edit.noise == ((5, 1.0), (9, 0.25))


def test_a_retake_needs_music_of_ours(tmp_path, recording):
    with pytest.raises(ValueError, match="carries no recipe"):
        prepare(Edit("retake", recording))
    painted = own_file(tmp_path / "painted.wav", kind="inpaint", source="take.wav")
    with pytest.raises(ValueError, match=r"is an edit \('inpaint' of 'take.wav'\)"):
        prepare(Edit("retake", painted))
    broken = own_file(tmp_path / "broken.wav", steps="many")
    with pytest.raises(ValueError, match=r"the recipe in .*broken\.wav cannot be followed: steps"):
        prepare(Edit("retake", broken))


@pytest.mark.parametrize(
    ("kind", "fields", "wanted"),
    [
        ("inpaint", {}, {"regions_s": ((0.5, 1.0),)}),
        ("vary", {"amount": 0.3, "regions_s": [[0.0, 2.0]]}, {"amount": 0.3, "regions_s": ()}),
        ("extend", {"before_s": 1.0, "after_s": 0.5}, {"before_s": 1.0, "after_s": 0.5, "regions_s": ()}),
        ("retake", {"noise": [[5, 1.0]], "amount": 0.2}, {"noise": ((5, 1.0),), "amount": 0.2, "seconds": 2.0}),
    ],
)
def test_a_recipe_gives_the_same_edit_again(recording, kind, fields, wanted):
    recipe = json.loads(json.dumps(edited(recording, kind, **fields)))
    edit = Edit.from_recipe(recipe, recording)
    assert (edit.kind, edit.prompt, edit.seed, edit.snap) == (kind, "strings", 3, "none")
    for name, value in wanted.items():
        assert getattr(edit, name) == value
    assert Edit.from_recipe(recipe, recording, seed=4, steps=3).seed == 4


def test_another_recording_is_refused_with_both_hashes(recording, tmp_path):
    recipe = edited(recording)
    other = own_file(tmp_path / "other.wav")
    hashes = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (recording, other)]
    with pytest.raises(ValueError, match=r"other\.wav is another recording .*'take\.wav'") as error:
        Edit.from_recipe(recipe, other)
    assert all(digest in str(error.value) for digest in hashes)
    check_source(recording, recipe)


@pytest.mark.parametrize(
    ("name", "value"),
    [("kind", None), ("source_sha256", 5), ("regions_s", None), ("dtype", "float8"), ("adapters", 3), ("prompt", None)],
)
def test_each_field_of_an_edit_is_checked_by_name(recording, tmp_path, name, value):
    write_audio(tmp_path / "made.wav", np.zeros(9), RATE, edited(recording) | {name: value})
    with pytest.raises(ValueError, match=rf"made\.wav carries no recipe of `musicldm edit` .*{name}"):
        load_edit_recipe(tmp_path / "made.wav")


def test_the_recipe_of_an_edit_is_none_of_generate(recording, tmp_path):
    write_audio(tmp_path / "made.wav", np.zeros(9), RATE, edited(recording))
    with pytest.raises(ValueError, match=r"that of an edit \('inpaint' of 'take\.wav'\).*musicldm edit --from"):
        load_recipe(tmp_path / "made.wav")
