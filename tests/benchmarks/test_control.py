"""The benchmark of control: its judges on sound whose notes are known, its truths, scores and kept music."""

import importlib.util
import json

import numpy as np
import pytest

from benchmarks.control import along, asking, following, judges, scoring, summary, text, truth
from benchmarks.control.pieces import SECONDS, Piece
from benchmarks.control.playing import Player, Wanted, music
from musicldm.audio import write_audio
from musicldm.scores.sketch_sound import Timbre
from musicldm.scores.sketches import Sketch
from tests.helpers.rhythm import drum_track, needs_madmom
from tests.helpers.scores import write_score

RATE = 16_000
STRUCK = Timbre(partials=(1.0, 0.6, 0.4, 0.3, 0.2, 0.15, 0.1, 0.05), decay_per_s=3.0)
CHORDS = ["C:maj", "A:min", "F:maj", "G:maj", "C:maj", "A:min"]


def needs_judges(test):
    """Mark ``test``; skipped where a package of the judges is missing, none of which is among the extras."""
    missing = [name for name in judges.NEEDED if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}")(test)


@pytest.fixture
def piece(tmp_path) -> Piece:
    """Chords on a piano, a tune on a flute, kick and snare: 120 BPM, a bar of 2 s for each of `CHORDS`."""
    triads, notes = {"C": (0, 4, 7), "A": (9, 12, 16), "F": (5, 9, 12), "G": (7, 11, 14)}, []
    for bar, label in enumerate(CHORDS):
        triad, at = triads[label[0]], 4 * bar
        notes += [(at, 3.9, 48 + tone, 0) for tone in triad]
        notes += [(at + beat, 0.9, 72 + triad[beat % 3], 1) for beat in range(4)]
        notes += [(at + beat, 0.1, 36 if beat % 2 == 0 else 38, 9) for beat in range(4)]
    Sketch.from_midi(write_score(tmp_path / "one_track.mid", notes, programs={0: 0, 1: 73})).to_midi(tmp_path / "a.mid")
    row = {"file_name": "a.flac", "midi": "a.mid", "text": "a tune", "piece_id": "a"}
    row |= {"tempo_bpm": 120.0, "tempo_steady": True, "time_signature": "4/4"}
    made = Piece(row, tmp_path)
    sound = Sketch.from_midi(made.midi).render(RATE)[: round(SECONDS * RATE)]
    write_audio(tmp_path / "a.flac", np.pad(sound, (0, max(0, round(SECONDS * RATE) - len(sound)))), RATE)
    return made


def test_truths_are_those_of_the_notes(piece):
    np.testing.assert_allclose(truth.beats(piece), np.arange(0, SECONDS, 0.5), atol=2e-3)
    chords = truth.chords(piece)
    assert (chords.text, chords.labels, chords.meter) == ("| C | Am | F | G | C | Am |", CHORDS, "4/4")
    assert chords.bpm == pytest.approx(120)
    np.testing.assert_allclose(chords.intervals[:, 0], np.arange(6) * 2.0, atol=2e-3)
    tune, pitches = truth.melody(piece)
    assert set(tune["program"]) == {73}
    assert (pitches[10], pitches[110]) == (72, 72 + 9)
    assert {name: len(times) for name, times in truth.drums(piece).items()} == {"kick": 12, "snare": 12}
    assert len(truth.notes(piece)) == 24 + 18 - 4  # but what begins with the clip


def test_a_clip_that_begins_within_a_bar_keeps_its_chords_in_place(piece):
    whole = Sketch.from_midi(piece.midi).cut(1.5, 11.5)
    whole.to_midi(piece.folder / "later.mid")
    later = Piece(piece.row | {"midi": "later.mid"}, piece.folder)
    score = later.score._replace(metres=[(0.0, 4, 4), (0.5, 4, 4)])
    object.__setattr__(later, "score", score)
    chords = truth.chords(later)
    assert chords.intervals[0].tolist() == pytest.approx([-1.5, 0.5], abs=2e-3)
    assert chords.labels[:3] == CHORDS[:3]
    sketch = asking.chords(later)
    assert sketch.seconds == pytest.approx(10.0, abs=0.25)
    second = sketch.notes[sketch.notes["start_s"] > 0.1]["start_s"].min()
    assert second == pytest.approx(0.5, abs=2e-3)


def test_sketches_are_of_what_is_asked(piece):
    assert asking.click(90).kinds == ("click",)
    assert len(asking.click(90).clicks) == 16
    assert asking.chords(piece).kinds == ("chords",)
    melody = asking.melody(piece)
    assert melody.kinds == ("melody",)
    true = truth.melody(piece)[0]
    assert len(melody.notes) == pytest.approx(len(true[true["start_s"] < SECONDS]), abs=2)
    assert set(asking.drums(piece).notes["channel"]) == {9}
    assert asking.tracks(piece, drums=False) == [1, 2]
    bpms = np.log2([asking.tempo_of(i) for i in range(40)])
    assert np.diff([np.log2(60), *np.sort(bpms), np.log2(180)]).max() < 0.1  # no gap of more than 7 %


@needs_judges
def test_scores_are_one_for_what_is_true_and_fall_with_faults(piece):
    true = truth.notes(piece)
    heard = {"onsets_s": true[:, 0].tolist(), "pitches": true[:, 1].tolist()}
    assert scoring.notes(heard, true) == {"f1_50_ms": 1.0, "f1_100_ms": 1.0}
    late = heard | {"onsets_s": (true[:, 0] + 0.08).tolist()}
    assert scoring.notes(late, true) == {"f1_50_ms": 0.0, "f1_100_ms": 1.0}
    assert scoring.notes({"onsets_s": [], "pitches": []}, true)["f1_50_ms"] == 0
    chords = truth.chords(piece)
    named = {"intervals": chords.intervals.tolist(), "labels": list(chords.labels)}
    wrong = named | {"labels": [*chords.labels[:2], *("D:maj",) * 4]}
    recalls = scoring.chords({"basic_pitch": named, "madmom": wrong}, chords)
    assert recalls["recall"] == pytest.approx(1.0)
    assert recalls["recall_by_madmom"] == pytest.approx(4 / SECONDS, abs=0.01)
    pitches = truth.melody(piece)[1]
    octave_up = {"strongest": (pitches + 12 * (pitches > 0)).tolist()}
    assert scoring.melody(octave_up, pitches)["chroma_accuracy"] == 1
    assert scoring.melody({"strongest": (pitches + 1).tolist()}, pitches)["chroma_accuracy"] == 0
    beats = truth.beats(piece)
    half = scoring.tempo({"bpm": 60.0, "times_s": beats[::2].tolist()}, 120.0, beats)
    assert (half["within_2_percent"], half["within_2_percent_up_to_octaves"]) == (0, 1)
    assert half["beat_f"] == pytest.approx(2 / 3, abs=0.1)
    drums = truth.drums(piece)
    assert scoring.drums({"kick": drums["kick"].tolist(), "snare": []}, drums) == {"f1": 0.5, "kick": 1, "snare": 0}


@needs_madmom
@needs_judges
def test_judges_hear_what_is_played(piece):
    band, tune = (Sketch.from_midi(piece.midi, parts).render(RATE, timbre=STRUCK) for parts in ([1, 2], [2]))
    recalls = scoring.chords(judges.chords(band, RATE), truth.chords(piece))
    assert min(recalls["recall"], recalls["recall_by_madmom"]) > 0.7
    assert scoring.melody(judges.notes(band, RATE), truth.melody(piece)[1])["chroma_accuracy"] > 0.7
    true = truth.notes(piece)
    assert scoring.notes(judges.notes(tune, RATE), true[true[:, 1] >= 72])["f1_50_ms"] > 0.6
    track, beats, _ = drum_track(100, 4)
    heard = judges.beats(track, 22_050)
    assert heard["bpm"] == pytest.approx(100, rel=0.02)
    assert scoring.tempo(heard, 100.0, beats)["beat_f"] > 0.9


def test_drums_are_told_apart():
    struck = {36: np.arange(0.5, 9.5, 1.0), 38: np.arange(1.0, 9.5, 1.0), 42: np.arange(0.75, 9.5, 0.5)}
    notes = [(2 * time, 0.2, pitch, 9) for pitch, times in struck.items() for time in times]
    noise = np.random.default_rng(0)
    waveform = 1e-3 * noise.standard_normal(round(10 * RATE))
    for start, _, pitch, _ in notes:
        at, t = round(start / 2 * RATE), np.arange(1600) / RATE
        burst = noise.standard_normal(1600)
        kick = np.sin(2 * np.pi * 60 * t) * np.exp(-t / 0.04)
        snare = np.diff(np.convolve(burst, np.ones(4) / 4, "same"), prepend=0) * np.exp(-t / 0.04)
        cymbal = np.diff(burst, 2, prepend=[0, 0]) * np.exp(-t / 0.02) / 6
        waveform[at : at + 1600] += {36: 0.8 * kick, 38: 0.5 * snare, 42: 0.3 * cymbal}[pitch]
    heard = judges.drums(waveform, RATE)
    pytest.importorskip("mir_eval")
    scores = scoring.drums(heard, {"kick": struck[36], "cymbals": struck[42]})
    assert scores["kick"] > 0.9
    assert scores["cymbals"] > 0.7
    apart = np.abs(np.array(heard["snare"])[:, None] - struck[38]).min(axis=0)
    assert apart.max() < scoring.DRUM_S  # each is heard
    assert np.abs(np.array(heard["snare"])[:, None] - struck[36]).min() > 0.1  # and no kick as one


def test_a_share_of_the_ceiling_has_an_interval_and_is_held_to_its_aim():
    rng = np.random.default_rng(0)
    ceiling = rng.uniform(0.6, 1.0, 50)
    rows = {"round_trip": [{"f1": v} for v in ceiling], "context": [{"f1": 0.75 * v} for v in ceiling]}
    share = summary.of_ceiling(rows, "f1")
    assert share["value"] == pytest.approx(0.75, abs=1e-4)
    assert share["low"] <= 0.75 <= share["high"]
    assert [summary.against(share, aim)["reached"] for aim in (0.7, 0.8)] == [True, False]
    assert summary.of_columns(rows)["f1"]["context"]["value"] == pytest.approx(0.75 * ceiling.mean(), abs=1e-3)
    assert text.lost([1.0] * 15 + [0.0] * 5, [1.0] * 20)["value"] == pytest.approx(0.25)


def test_music_is_made_once_with_a_context_and_without(context_folder, piece, tmp_path):
    player = Player(str(context_folder), tmp_path / "work")
    assert player.takes_context
    sketch = asking.notes(piece)
    wanted = [Wanted("a", "a flute"), Wanted("b", "a harp")]
    alone = player.play(wanted, "text")
    first = alone[0].stat().st_mtime_ns
    followed = player.play(
        [Wanted("a", "a flute", {"notes": sketch}), Wanted("b", "a harp", {"notes": sketch})], "notes"
    )
    assert player.play([wanted[1], wanted[0]], "text") == alone[::-1]
    assert alone[0].stat().st_mtime_ns == first
    assert len(music(alone[0], player.rate)) == round(SECONDS * player.rate)
    assert not np.allclose(music(alone[1], player.rate), music(followed[1], player.rate))
    other = Player(str(context_folder), tmp_path / "other").play([wanted[1]], "text")
    np.testing.assert_allclose(music(other[0], player.rate), music(alone[1], player.rate), atol=2e-3)


@needs_judges
def test_a_study_has_all_columns_and_goes_on_where_it_was(context_folder, piece, tmp_path):
    player = Player(str(context_folder), tmp_path / "work")
    study = following.Study([piece, piece], player, tmp_path / "work", 2, 1.0)
    told = following.followed("notes", study)
    assert (told["cases"], told["refused"]) == (2, {})
    columns = told["measures"]["f1_50_ms"]
    assert set(columns) == {"true", "round_trip", "text", "context"}
    assert columns["true"]["value"] > 0.3 > columns["context"]["value"]
    assert told["of_round_trip"]["aim"] == 0.7
    kept = next((tmp_path / "work").glob(f"true-{player.rate}/*.notes.json"))
    kept.write_text(json.dumps({"onsets_s": [], "pitches": [], "strongest": []}))
    assert following.followed("notes", study)["measures"]["f1_50_ms"]["true"]["value"] == 0


def test_what_is_missing_is_said_in_one_line(monkeypatch):
    monkeypatch.setitem(judges.NEEDED, "no_such_judge", "pip install no-such-judge")
    with pytest.raises(ImportError, match=r"no_such_judge.*pip install no-such-judge") as told:
        judges.check_installed()
    assert "\n" not in str(told.value)


@needs_judges
def test_a_part_agrees_with_itself_and_not_with_another():
    bars = [[start, start + 2.0] for start in range(0, 10, 2)]
    onsets = np.random.default_rng(0).uniform(size=(2, 300))
    part = along.Heard(100.0, {"intervals": bars, "labels": CHORDS[:5]}, onsets[0])
    other = along.Heard(87.0, {"intervals": bars, "labels": ["D:maj"] * 5}, onsets[1])
    assert along.agreement(part, part._replace(bpm=200.0)) == pytest.approx({"tempo": 1, "chords": 1, "onsets": 1})
    apart = along.agreement(part, other)
    assert (apart["tempo"], apart["chords"]) == (0, 0)
    assert abs(apart["onsets"]) < 0.2
    assert along.agreement(part, part._replace(bpm=0.0, onsets=np.zeros(300)))["onsets"] == 0


def test_what_is_added_is_nearer_to_the_true_partner_or_is_not():
    columns = {"true_partner": 0.8, "random_partner": 0.2, "context": 0.6}
    measures = {name: {column: {"value": v} for column, v in columns.items()} for name in along.AGREEMENTS}
    measures["onsets"]["context"] = {"value": 0.3}
    assert along.nearer(measures) == {"tempo": True, "chords": True, "onsets": False}
