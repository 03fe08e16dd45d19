"""Sketches: from chords, MIDI files, melodies and clicks; their sound, and their MIDI files."""

from dataclasses import replace
from fractions import Fraction

import mido
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from musicldm.scores import Sketch
from musicldm.scores.chords import parse_chord, parse_chords, voiced
from musicldm.scores.reading import read_score

RATE = 16_000
ROOTS = st.sampled_from([letter + accidental for letter in "CDEFGAB" for accidental in ("", "#", "b")])
QUALITIES = st.sampled_from(
    ["", "m", "7", "maj7", "m7", "m7b5", "dim", "dim7", "aug", "sus4", "sus2", "6", "9", "add9"]
)


def pitch_classes(sketch: Sketch, time_s: float) -> set[int]:
    notes = sketch.notes
    return {int(n["pitch"]) % 12 for n in notes[(notes["start_s"] <= time_s) & (notes["end_s"] > time_s)]}


@pytest.mark.parametrize(
    ("symbol", "tones", "bass"),
    [
        ("Am", {9, 0, 4}, 9),
        ("F#m7b5", {6, 9, 0, 4}, 6),
        ("F♯ø", {6, 9, 0, 4}, 6),
        ("C/E", {0, 4, 7}, 4),
        ("Bbmaj7", {10, 2, 5, 9}, 10),
        ("BbΔ", {10, 2, 5, 9}, 10),
        ("B♭M7", {10, 2, 5, 9}, 10),
        ("Dsus4", {2, 7, 9}, 2),
        ("Dsus", {2, 7, 9}, 2),
        ("Gm(maj7)", {7, 10, 2, 6}, 7),
        ("Ebmin7", {3, 6, 10, 1}, 3),
        ("E-7", {4, 7, 11, 2}, 4),
        ("C°7", {0, 3, 6, 9}, 0),
        ("Co", {0, 3, 6}, 0),
        ("E+", {4, 8, 0}, 4),
        ("G7(#9)", {7, 11, 2, 5, 10}, 7),
        ("C6/9", {0, 4, 7, 9, 2}, 0),
        ("Cm13", {0, 3, 7, 10, 2, 5, 9}, 0),
        ("N.C.", set(), None),
    ],
)
def test_chords_are_read_as_people_write_them(symbol, tones, bass):
    chord = parse_chord(symbol)
    assert set(chord.tones) == tones
    assert chord.bass == bass


@pytest.mark.parametrize("symbol", ["H", "am", "Cfoo", "7", "C/H", "Ab5b5b5", "", "C//E"])
def test_what_is_no_chord_is_named(symbol):
    with pytest.raises(ValueError, match=r"is no chord.*understood are Am") as caught:
        parse_chord(symbol)
    assert repr(symbol) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_bar_lines_each_chord_is_a_bar_and_with_them_a_bar_is_shared():
    alone, bars = parse_chords("Am F C G")
    assert bars == 4
    assert [(one.start, one.end) for one in alone] == [(0, 1), (1, 2), (2, 3), (3, 4)]
    shared, bars = parse_chords("| Am F G | % || C |")
    assert bars == 3
    assert [one.chord.symbol for one in shared] == ["Am", "F", "G", "Am", "F", "G", "C"]
    assert shared[1].start == Fraction(1, 3)
    assert shared[-1].end == 3


@given(ROOTS, QUALITIES, ROOTS, QUALITIES)
def test_chords_are_played_with_their_tones_near_those_before(root, quality, other_root, other_quality):
    first = voiced(parse_chord(root + quality))
    chord = parse_chord(other_root + other_quality)
    second = voiced(chord, first)
    assert {pitch % 12 for pitch in second} == set(chord.tones)
    assert second[0] % 12 == chord.bass
    assert list(second) == sorted(second)
    assert abs(np.mean(first[1:]) - np.mean(second[1:])) <= 8  # no leap of the whole hand


@pytest.mark.parametrize("rhythm", ["block", "arpeggio", "comp"])
def test_chords_begin_at_sample_0_and_last_their_bars(rhythm):
    sketch = Sketch.from_chords("| Am F | C N.C. |", bpm=90, meter="3/4", rhythm=rhythm)
    assert sketch.seconds == pytest.approx(2 * 3 * 60 / 90)
    assert sketch.notes["start_s"].min() == 0
    assert {int(n["pitch"]) % 12 for n in sketch.notes[sketch.notes["start_s"] < 0.99]} == {9, 0, 4}
    assert sketch.notes["end_s"].max() <= 3.0 + 1e-9  # then there is no chord
    assert len(sketch.render(RATE)) == round(sketch.seconds * RATE)


def test_a_beat_is_the_note_that_the_metre_names():
    quick = Sketch.from_chords("C", bpm=180, meter="6/8")
    assert quick.seconds == pytest.approx(2.0)
    assert quick.score.tempos[0, 1] == pytest.approx(90)  # quarters


def test_a_click_is_higher_on_downbeats():
    click = Sketch.click(120, "3/4", bars=2)
    assert click.clicks[:, 0] == pytest.approx(np.arange(6) * 0.5)
    assert click.clicks[:, 1].tolist() == [1, 0, 0, 1, 0, 0]
    sound = click.render(RATE)
    loudest = [np.abs(np.fft.rfft(sound[at : at + 960])).argmax() * RATE / 960 for at in (0, 8000)]
    assert loudest == pytest.approx([1800, 1200], abs=20)


def test_notes_sound_at_their_pitch_in_every_channel_and_without_aliases():
    high = Sketch.from_chords("A5", bpm=60).transposed(36)
    sound = high.render(RATE, channels=2)
    assert sound.shape == (2, 4 * RATE)
    assert sound.dtype == np.float32
    assert np.array_equal(sound[0], sound[1])
    assert np.abs(sound).max() == pytest.approx(0.5)
    spectrum = np.abs(np.fft.rfft(sound[0]))
    peaks = {round(float(f)) for f in np.argsort(spectrum)[-400:] / 4}
    partials = {round(440 * 2 ** ((p - 69) / 12) * k) for p in high.notes["pitch"] for k in (1, 2, 3, 4)}
    assert all(any(abs(peak - partial) < 40 for partial in partials) for peak in peaks)


def test_the_same_sketch_sounds_the_same_each_time():
    kick_and_hat = Sketch.click(100, bars=1) + Sketch.from_chords("C")
    assert np.array_equal(kick_and_hat.render(44_100), kick_and_hat.render(44_100))


def test_sketches_add_cut_shift_and_transpose():
    both = Sketch.from_chords("C G", bpm=120) + Sketch.click(120, bars=3)
    assert both.seconds == 6.0
    middle = both.cut(1.0, 2.5)
    assert pitch_classes(middle, 0.5) == {0, 4, 7}
    assert pitch_classes(middle, 1.2) == {7, 11, 2}
    assert middle.clicks[:, 0] == pytest.approx([0, 0.5, 1.0])
    later = middle.shifted(2.0)
    assert later.seconds == 3.5
    assert pitch_classes(later, 1.9) == set()
    assert pitch_classes(later.transposed(2), 2.5) == {2, 6, 9}


def test_a_sketch_knows_what_is_in_it(tmp_path):
    chords, click = Sketch.from_chords("C G"), Sketch.click(120)
    chords.to_midi(tmp_path / "a.mid")
    assert Sketch.from_midi(tmp_path / "a.mid").kinds == ("notes",)
    click.to_midi(tmp_path / "b.mid")  # woodblocks
    assert Sketch.from_midi(tmp_path / "b.mid").kinds == ("drums",)
    assert (chords.kinds, click.kinds) == (("chords",), ("click",))
    assert (click + chords + chords).kinds == ("chords", "click")
    both = chords + click
    for changed in (both.cut(1, 2), both.shifted(1), both.transposed(2)):
        assert changed.kinds == ("chords", "click")
    assert replace(chords, kinds=["bass", "melody"]).kinds == ("melody", "bass")


@pytest.mark.parametrize("bpm", [97.3, 61, 200])
def test_a_sketch_comes_back_from_its_midi_file(tmp_path, bpm):
    sketch = Sketch.from_chords("Am F | C G |", bpm=bpm, meter="5/4", rhythm="arpeggio")
    sketch.to_midi(tmp_path / "a.mid")
    back = Sketch.from_midi(tmp_path / "a.mid")
    assert back.notes["pitch"].tolist() == sketch.notes["pitch"].tolist()
    assert np.abs(back.notes["start_s"] - sketch.notes["start_s"]).max() < 1e-3
    assert np.abs(back.notes["end_s"] - sketch.notes["end_s"]).max() < 1e-3
    assert back.score.tempos[0, 1] == pytest.approx(bpm, rel=1e-5)
    assert back.score.metres == [(0.0, 5, 4)]
    assert mido.MidiFile(tmp_path / "a.mid").length == pytest.approx(sketch.seconds, abs=1e-3)


def write_tracks(path, kind: int) -> None:
    """Two voices, on tracks of their own (type 1) or channels of one (type 0), behind a slower tempo."""
    midi = mido.MidiFile(ticks_per_beat=480, type=kind)
    tempo = mido.MetaMessage("set_tempo", tempo=1_000_000)
    voices = [[(c, 60 + 7 * c), (c, 62 + 7 * c)] for c in (0, 3)]
    if kind:
        midi.tracks.append(mido.MidiTrack([tempo]))
    for i, voice in enumerate(voices):
        if kind or i == 0:
            midi.tracks.append(mido.MidiTrack([] if kind else [tempo]))
        for channel, pitch in voice:
            midi.tracks[-1].append(mido.Message("note_on", channel=channel, note=pitch, velocity=80))
            midi.tracks[-1].append(mido.Message("note_off", channel=channel, note=pitch, time=480))
    midi.save(path)


@pytest.mark.parametrize("kind", [0, 1])
def test_tracks_are_counted_among_those_with_notes(tmp_path, kind):
    write_tracks(tmp_path / "a.mid", kind)
    assert Sketch.from_midi(tmp_path / "a.mid").notes["pitch"].size == 4
    second = Sketch.from_midi(tmp_path / "a.mid", tracks=[2]).notes
    assert second["pitch"].tolist() == [81, 83]
    assert np.diff(second["start_s"]) == pytest.approx(1.0)  # the tempo of another track holds
    with pytest.raises(ValueError, match=r"has 2 .* with notes, counted from 1; there is no 3"):
        read_score(tmp_path / "a.mid", tracks=[1, 3])


def hummed(pitches: list[int], rate: int, cents: float = 0.0) -> np.ndarray:
    """A voice with vibrato, a soft attack and a breath between its notes."""
    times = np.arange(round(0.5 * rate)) / rate
    notes = []
    for pitch in pitches:
        frequency = 440 * 2 ** ((pitch - 69 + cents / 100) / 12)
        phase = 2 * np.pi * frequency * (times + 0.003 * np.sin(2 * np.pi * 5 * times) / 5)
        envelope = np.minimum(1, np.minimum(times / 0.05, (0.5 - times) / 0.05)).clip(0)
        notes.append(envelope * sum(np.sin(k * phase) / k**2 for k in (1, 2, 3)))
    noise = np.random.default_rng(0).standard_normal(len(times) * len(pitches))
    return (0.3 * np.concatenate(notes) + 0.002 * noise).astype(np.float32)


@pytest.mark.slow
@pytest.mark.parametrize(("rate", "cents"), [(44_100, 0.0), (16_000, 35.0)])
def test_a_hummed_melody_becomes_its_notes(rate, cents):
    pitches = [60, 64, 62, 67, 67, 55]
    sketch = Sketch.from_melody(hummed(pitches, rate, cents), rate)
    assert sketch.notes["pitch"].tolist() == pitches
    assert sketch.notes["start_s"] == pytest.approx(np.arange(6) * 0.5, abs=0.08)


@pytest.mark.slow
def test_a_whistled_melody_becomes_its_notes():
    times, pitches = np.arange(RATE // 2) / RATE, [86, 91, 88, 95, 98]
    envelope = np.minimum(1, np.minimum(times / 0.05, (0.5 - times) / 0.05)).clip(0)
    tones = [envelope * np.sin(2 * np.pi * 440 * 2 ** ((pitch - 69) / 12) * times) for pitch in pitches]
    breath = np.random.default_rng(0).standard_normal(len(times) * len(pitches))
    sketch = Sketch.from_melody((0.3 * np.concatenate(tones) + 0.001 * breath).astype(np.float32), RATE)
    assert sketch.notes["pitch"].tolist() == pitches


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["silence", "noise", "too short"])
def test_a_melody_without_pitch_is_refused(kind):
    length = {"silence": 16_000, "noise": 16_000, "too short": 200}[kind]
    audio = np.random.default_rng(1).standard_normal(length).astype(np.float32) * (0.0 if kind == "silence" else 0.1)
    with pytest.raises(ValueError, match="no pitch is heard"):
        Sketch.from_melody(audio, RATE)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Sketch.from_chords(""), "there are no chords"),
        (lambda: Sketch.from_chords("Am X7 C"), "'X7' is no chord"),
        (lambda: Sketch.from_chords("% | C"), "the first bar"),
        (lambda: Sketch.from_chords("C", bpm=0), "bpm must be from 20 to 400"),
        (lambda: Sketch.from_chords("C", bpm=float("nan")), "bpm"),
        (lambda: Sketch.from_chords("C", meter="4"), "meter must be as 4/4"),
        (lambda: Sketch.from_chords("C", meter="0/4"), "meter must be as 4/4"),
        (lambda: Sketch.from_chords("C", rhythm="swing"), "rhythm must be one of block, arpeggio, comp"),
        (lambda: Sketch.click(120, bars=2, seconds=3.0), "either bars or seconds"),
        (lambda: Sketch.click(120, seconds=-1.0), "a sketch must last"),
        (lambda: Sketch.click(120, bars=0), "bars"),
        (lambda: Sketch.click(120).cut(3, 2), "cannot cut 3 to 2 s"),
        (lambda: Sketch.click(120).shifted(-1), "can be shifted by 0 s or more"),
        (lambda: Sketch.from_chords("C").transposed(100), "leave the MIDI range"),
        (lambda: replace(Sketch.click(120), kinds=("clicks",)), "kinds of a sketch must be some of .* 'clicks'"),
        (lambda: replace(Sketch.click(120), kinds=()), "got none"),
        (lambda: replace(Sketch.click(120), kinds="click"), "kinds"),
    ],
)
def test_bad_sketches_are_refused_in_one_line(make, message):
    with pytest.raises(ValueError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
