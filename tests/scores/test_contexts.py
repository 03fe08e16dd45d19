"""Contexts for training: what is given is the clip's, and where it is said to be; chords, beats and parts are true."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import stft

from musicldm.models.context import KINDS
from musicldm.scores.beats import beat_grid, clip_score
from musicldm.scores.chords import parse_chord
from musicldm.scores.contexts import SHARES, ClipSource, ContextPlan, draw_context, plan_context
from musicldm.scores.general_midi import DRUM_CHANNEL
from musicldm.scores.harmony import beat_times, chord_symbols, triad
from musicldm.scores.part_words import missing_text
from musicldm.scores.parts import bass, melody
from musicldm.scores.reading import NOTE, Score, midi_file, read_score
from musicldm.scores.rendering import RenderConfig, render_scores
from musicldm.scores.roughness import clicks_of
from musicldm.scores.sketch_sound import Timbre, render_sketch
from musicldm.scores.sketches import Sketch, parse_meter
from tests.helpers.scores import band, small_soundfont, synthesizer, write_score  # noqa: F401  (fixtures)

RATE, SECONDS = 16_000, 6.0
SKETCHES = [kinds for kinds in SHARES if "along" not in kinds]


def no_audio() -> np.ndarray:
    raise AssertionError("a sketch does not read the clip")


def noise() -> np.ndarray:
    return np.random.default_rng(1).uniform(0.1, 0.2, round(SECONDS * RATE)).astype(np.float32)


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> ClipSource:
    return ClipSource(band(tmp_path_factory.mktemp("band") / "a.mid", beats=24), SECONDS, no_audio)


def inside(spans: list[tuple[float, float]], n: int) -> np.ndarray:
    mask = np.zeros(n, bool)
    for start, end in spans:
        mask[round(start * RATE) : round(end * RATE)] = True
    return mask


def test_every_kind_is_planned_and_a_target_of_its_own_only_for_what_is_missing():
    plans = [plan_context(np.random.default_rng(seed)) for seed in range(3000)]
    counted = {kind: sum(kind in plan.kinds for plan in plans) for kind in KINDS}
    assert min(counted.values()) > 100
    assert {plan.kinds for plan in plans} >= set(SHARES)
    assert all(plan.kinds == ("along",) for plan in plans if plan.own_target)
    assert 150 < sum(plan.own_target for plan in plans) < 350
    assert plans == [plan_context(np.random.default_rng(seed)) for seed in range(3000)]


@settings(max_examples=30, deadline=None)
@given(kinds=st.sampled_from(SKETCHES), hole=st.booleans(), seed=st.integers(0, 2**32))
def test_sketches_sound_within_their_spans_alone(clip, kinds, hole, seed):
    plan = ContextPlan((*kinds, "hole") if hole else kinds)
    source = clip._replace(audio=noise) if hole else clip
    drawn = draw_context(plan, source, np.random.default_rng(seed), RATE)
    again = draw_context(plan, source, np.random.default_rng(seed), RATE)
    assert (drawn.audio == again.audio).all()
    assert drawn._replace(audio=None) == again._replace(audio=None)
    assert drawn.audio.shape == (round(SECONDS * RATE),)
    assert drawn.audio.dtype == np.float32
    assert np.abs(drawn.audio).max() <= 0.9
    assert drawn.target is drawn.text is None
    sketched = {kind for kind in drawn.spans if kind != "hole"}
    assert sketched
    assert sketched <= {*kinds, "notes"}
    kept, given_at = inside(drawn.kept, len(drawn.audio)), inside(drawn.spans[min(sketched)], len(drawn.audio))
    assert not drawn.audio[~kept & ~given_at].any()
    assert drawn.audio[given_at & ~kept].any()
    if hole:
        assert drawn.spans["hole"] == [(0.0, SECONDS)]
        assert (drawn.audio[kept] == noise()[kept]).all()
        assert not (kept & given_at).any()
        assert 0 < kept.sum() < len(kept)
    else:
        assert not kept.any()


def test_a_stereo_context_has_the_sketch_in_both_channels(clip):
    drawn = draw_context(ContextPlan(("chords", "drums")), clip, np.random.default_rng(0), RATE, 2)
    assert drawn.audio.shape == (2, round(SECONDS * RATE))
    assert (drawn.audio[0] == drawn.audio[1]).all()


def test_a_clip_of_a_longer_file_has_the_context_of_its_part(tmp_path, clip):
    score = read_score(clip.midi)
    part = clip_score(score, [(2.0, 8.0)], None)._replace(tempos=score.tempos, metres=score.metres)  # from a downbeat
    (tmp_path / "part.mid").write_bytes(midi_file(part, SECONDS))
    for kinds in SKETCHES:
        plan = ContextPlan(kinds)
        whole = draw_context(plan, clip._replace(offset_s=2.0), np.random.default_rng(3), RATE)
        alone = draw_context(plan, clip._replace(midi=tmp_path / "part.mid"), np.random.default_rng(3), RATE)
        assert whole.spans == alone.spans
        assert np.abs(whole.audio - alone.audio).max() < 0.02  # the files round times differently


def test_what_a_clip_does_not_have_is_not_said_of_it(tmp_path):
    notes = [(at, 1, 72 + at % 5, 0) for at in range(12)]
    source = ClipSource(write_score(tmp_path / "a.mid", notes, programs={0: 73}, bpm=None), SECONDS, no_audio)
    asked = [("drums",), ("bass",), ("click",), ("along",), ("chords", "click"), ("melody", "drums")]
    for kinds in asked:
        found = {"melody"} if "melody" in kinds else {"notes"}
        drawn = draw_context(ContextPlan(kinds, alone=kinds == ("along",)), source, np.random.default_rng(0), RATE)
        assert set(drawn.spans) == found
        assert drawn.target is None
    later = draw_context(ContextPlan(("notes",)), source._replace(offset_s=50.0), np.random.default_rng(0), RATE)
    assert later.spans == {}
    assert not later.audio.any()


@st.composite
def progressions(draw) -> tuple[list[str], str, float]:
    """Chords of a bar each, no two alike in a row, a metre and a tempo."""
    roots = st.sampled_from(["C", "D", "Eb", "F#", "G", "A", "Bb"])
    chords = st.builds(lambda root, quality: root + quality, roots, st.sampled_from(["", "m", "7", "maj7", "m7"]))
    found = draw(st.lists(chords, min_size=3, max_size=6))
    return [b for a, b in zip(["", *found], found, strict=False) if triad(a or "E") != triad(b)], \
        draw(st.sampled_from(["3/4", "4/4", "2/4", "6/8"])), draw(st.floats(60, 150))  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(progressions(), st.sampled_from(["block", "arpeggio", "comp"]), st.floats(0, 0.9))
def test_the_chords_of_a_known_score_come_back(progression, rhythm, begin):
    chords, meter, bpm = progression
    if meter != "4/4" and rhythm == "arpeggio":
        rhythm = "comp"  # an arpeggio needs a bar of four beats for all of its tones
    sketch = Sketch.from_chords(" ".join(chords), bpm, meter, rhythm)
    bar_s = parse_meter(meter)[0] * 60 / bpm
    start_s = begin * bar_s if len(chords) > 1 else 0.0
    grid = beat_grid(sketch.score, start_s, sketch.seconds)
    grid = grid._replace(times_s=grid.times_s - start_s)
    if len(grid.times_s) < 2:
        return
    found = chord_symbols(clip_score(sketch.score, [(start_s, sketch.seconds)], None).notes, grid)
    for place, chord in enumerate(chords[1:] if start_s > 0 else chords, 1 if start_s > 0 else 0):
        middle_s = (place + 0.6) * bar_s - start_s
        held = [p for p in found if beat_times(grid, np.array([p.first, p.end], float))[0] <= middle_s
                < beat_times(grid, np.array([p.first, p.end], float))[1] + 1e-6]  # fmt: skip
        (one,) = held
        assert set(parse_chord(triad(chord)).tones) <= set(parse_chord(one.symbol).tones)
        assert parse_chord(one.symbol).tones[0] == parse_chord(chord).tones[0]
        assert beat_times(grid, np.array([float(one.end)]))[0] >= (place + 1) * bar_s - start_s - 1e-6


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 7), st.sampled_from([4, 8]), st.floats(40, 110), st.integers(0, 99))
def test_clicks_land_on_the_beats_and_downbeats_are_higher(beats, unit, bpm, seed):
    click = Sketch.click(bpm, f"{beats}/{unit}", seconds=10.0)
    grid = beat_grid(click.score, 0.0, 10.0)
    assert grid.clicks == pytest.approx(click.clicks, abs=1e-9)
    found = clicks_of(grid, np.random.default_rng(seed))
    assert np.isin(found[:, 0], grid.times_s).all()
    assert len(found) in (len(grid.times_s), -(-len(grid.times_s) // 3))  # or three eighths at a time
    first = np.isin(found[:, 0], grid.times_s[grid.place == 0])
    assert not found[:, 1].any() or (found[:, 1] == first).all()


def test_the_melody_is_the_part_that_is_one_and_the_bass_the_one_below(clip):
    notes = read_score(clip.midi).notes
    assert (melody(notes, 12.0)["channel"] == 2).all()
    assert len(melody(notes, 12.0)) == (notes["channel"] == 2).sum()
    assert (bass(notes)["program"] == 32).all()
    assert len(bass(notes[notes["program"] == 73])) == 0


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32))
def test_of_a_piano_the_melody_is_what_lies_on_top(seed):
    rng = np.random.default_rng(seed)
    tops = rng.integers(70, 80, 12)
    upper = [(i * 0.5, i * 0.5 + 0.5, int(p), 90, 0, 0, 1.0) for i, p in enumerate(tops)]
    lower = [(i * 0.25, i * 0.25 + 0.3, 48 + 4 * (i % 4), 80, 0, 0, 1.0) for i in range(24)]
    notes = np.sort(np.array(upper + lower, dtype=NOTE), order=["start_s", "pitch"])
    assert melody(notes, 6.0)["pitch"].tolist() == tops.tolist()
    assert bass(notes)["pitch"].max() <= 60


def test_parts_that_are_given_and_missing_make_the_clip(tmp_path, synthesizer):  # noqa: F811
    backend, soundfont = synthesizer
    config = RenderConfig(backend=backend, soundfonts=(soundfont,), clip_s=SECONDS, max_clips=1, contexts=True)
    render_scores([band(tmp_path / "a.mid")], tmp_path / "out", config)
    row = json.loads((tmp_path / "out" / "metadata.jsonl").read_text())
    audio, rate = soundfile.read(tmp_path / "out" / row["file_name"], dtype="float32")
    source = ClipSource(tmp_path / "out" / row["midi"], SECONDS, no_audio, 0.0, row["render"], (Path(soundfont),))
    texts = set()
    for seed in range(4):
        drawn = draw_context(ContextPlan(("along",), alone=True), source, np.random.default_rng(seed), rate)
        assert drawn.spans == {"along": [(0.0, SECONDS)]}
        assert drawn.audio.shape == drawn.target.shape == audio.shape
        assert drawn.text
        texts.add(drawn.text)
        levels = [np.abs(stft(x[rate:], rate, nperseg=512)[2]) ** 0.3 for x in (drawn.audio + drawn.target, audio)]
        assert np.corrcoef(levels[0].ravel(), levels[1].ravel())[0, 1] > 0.95
    whole = draw_context(ContextPlan(("along",)), source, np.random.default_rng(3), rate)
    assert whole.target is whole.text is None
    assert (whole.audio == drawn.audio).all()
    assert len(texts) > 2
    gone = source._replace(render=row["render"] | {"soundfont": "gone.sf2"})
    with pytest.raises(
        FileNotFoundError, match=r"there is no SoundFont gone\.sf2, with which these clips were rendered"
    ):
        draw_context(ContextPlan(("along",)), gone, np.random.default_rng(0), rate)
    sketch = draw_context(ContextPlan(("along",), True), source._replace(render=None), np.random.default_rng(0), rate)
    assert set(sketch.spans) == {"notes"}


def walking(moving: bool) -> Score:
    pitches = [40 + (i * (2 if i % 3 else -1)) % 9 for i in range(20)] if moving else [40] * 20
    notes = [(i * 0.5, i * 0.5 + 0.45, p, 90, 0, 32, 1.0) for i, p in enumerate(pitches)]
    return Score(np.array(notes, dtype=NOTE), [], np.array([[0.0, 120.0]]), [(0.0, 4, 4)], [])


def test_texts_name_what_is_missing():
    drums = [(i * 0.5, i * 0.5 + 0.1, 38, 90, DRUM_CHANNEL, 0, 1.0) for i in range(20)]
    scores = {
        "walks": walking(True),
        "stays": walking(False),
        "drums": walking(True)._replace(notes=np.array(drums, dtype=NOTE)),
    }
    texts = {
        name: {missing_text(score, beat_grid(score, 0, 10), 10.0, np.random.default_rng(seed)) for seed in range(80)}
        for name, score in scores.items()
    }
    assert any(text.lower().startswith("add a walking bass") for text in texts["walks"])
    assert not any("walking" in text for text in texts["stays"] | texts["drums"])
    assert "add drums" in texts["drums"]
    assert all("drum" in text.lower() or "beat" in text.lower() for text in texts["drums"])


@pytest.mark.parametrize("seed", range(8))
def test_a_note_is_the_sum_of_its_partials(seed):
    rng = np.random.default_rng(seed)
    pitch, rate = int(rng.integers(20, 110)), (16_000, 44_100)[seed % 2]
    seconds, edge_s = float(rng.choice([0.001, 0.05, 2.0])), float(rng.uniform(0.001, 0.05))
    partials = rng.uniform(0.1, 1, int(rng.integers(1, 9)))
    timbre = Timbre(tuple(partials.tolist()), edge_s, 2 * edge_s, 1.3)
    notes = np.array([(0.25, 0.25 + seconds, pitch, 100, 0, 0, 1.0)], dtype=NOTE)
    found = render_sketch(notes, np.empty((0, 2)), 3.0, rate, 1, timbre)
    length = max(round(seconds * rate), round(3 * edge_s * rate))
    t, frequency = np.arange(length) / rate, 440 * 2 ** ((pitch - 69) / 12)
    heard = [(k, weight) for k, weight in enumerate(partials, 1) if k * frequency < 0.45 * rate]
    expected = sum(weight * np.sin(2 * np.pi * k * frequency * t) for k, weight in heard)
    expected *= np.exp(-1.3 * t) * np.clip(np.minimum(t / edge_s, (length / rate - t) / (2 * edge_s)), 0, 1)
    sounding = np.zeros(len(found))
    sounding[round(0.25 * rate) :][:length] = 0.5 * expected / np.abs(expected).max()
    assert np.abs(found - sounding).max() < 2e-6
