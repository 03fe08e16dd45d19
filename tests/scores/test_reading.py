"""Scores: General MIDI's facts, reading, changing, cutting, and what is true of a stretch."""

from itertools import pairwise

import mido
import numpy as np
import pytest

from musicldm.scores.arranging import can_play, draw_rendering
from musicldm.scores.facts import (
    Facts,
    beats_per_minute,
    describe,
    genre_words,
    key_name,
    parse_key,
    score_facts,
)
from musicldm.scores.general_midi import GROUPS, ORCHESTRATIONS, PROGRAMS, group
from musicldm.scores.reading import Change, change_score, parts, read_score, write_windows
from musicldm.scores.rendering import RenderConfig
from musicldm.scores.windows import choose_windows, heard, music_spans, sounds
from tests.helpers.scores import band, write_score


def test_general_midi_has_128_programs_in_16_groups():
    assert [p.number for p in PROGRAMS] == list(range(128))
    assert len({p.name for p in PROGRAMS}) == 128
    assert len(GROUPS) == 16
    known = {0: "piano", 19: "organ", 24: "guitar", 32: "bass", 40: "strings", 56: "brass", 68: "reed", 73: "pipe",
             81: "synth lead", 104: "ethnic", 116: "percussive", 127: "sound effects"}  # fmt: skip
    assert {program: group(program) for program in known} == known
    names = {0: "acoustic grand piano", 24: "acoustic guitar (nylon)", 40: "violin", 56: "trumpet", 73: "flute",
             105: "banjo", 127: "gunshot"}  # fmt: skip
    assert {program: PROGRAMS[program].name for program in names} == names


def test_every_program_has_a_family_a_range_and_stand_ins_of_its_own_kind():
    for p in PROGRAMS:
        assert p.family
        assert p.word
        assert 0 <= p.low < p.high <= 127
        assert {q.word for q in PROGRAMS if q.swap == p.swap} <= {q.word for q in PROGRAMS if q.family == p.family}


def test_orchestrations_keep_to_their_family():
    for name, pool in ORCHESTRATIONS.items():
        assert {PROGRAMS[program].family for program in pool} <= ({name, "bass"} if name == "synth" else {name})


def test_times_follow_the_tempo_map(tmp_path):
    slower = (4, mido.MetaMessage("set_tempo", tempo=mido.bpm2tempo(60)))
    score = read_score(write_score(tmp_path / "a.mid", [(0, 1, 60, 0), (4, 2, 62, 0)], others=[slower]))
    assert score.notes["start_s"] == pytest.approx([0.0, 2.0])
    assert score.notes["end_s"] == pytest.approx([0.5, 4.0])
    assert score.tempos == pytest.approx(np.array([[0.0, 120.0], [2.0, 60.0]]))


def test_a_key_that_is_struck_again_ends_its_note(tmp_path):
    score = read_score(write_score(tmp_path / "a.mid", [(0, 8, 60, 0), (2, 1, 60, 0)]))
    assert score.notes["end_s"] == pytest.approx([1.0, 1.5])


def test_programs_belong_to_notes_and_other_banks_are_left_out(tmp_path):
    changes = [(0, mido.Message("control_change", control=0, value=8)), (2, mido.Message("program_change", program=40))]
    score = read_score(write_score(tmp_path / "a.mid", [(0, 1, 60, 0), (2, 1, 60, 0)], others=changes))
    assert score.notes["program"].tolist() == [0, 40]
    assert score.controls == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a readable MIDI file"),
        (b"this is not MIDI at all", "not a readable MIDI file"),
        (b"MThd\x00\x00\x00\x06\x00\x02\x00\x01\x01\xe0MTrk\x00\x00\x00\x04\x00\xff\x2f\x00", "MIDI type 2"),
        (b"MThd\x00\x00\x00\x06\x00\x00\x00\x01\xe7\x28MTrk\x00\x00\x00\x04\x00\xff\x2f\x00", "film frames"),
        (b"MThd\x00\x00\x00\x06\x00\x00\x00\x01\x01\xe0MTrk\x00\x00\x00\x04\x00\xff\x2f\x00", "no notes"),
    ],
)
def test_what_is_no_score_is_refused_by_name(tmp_path, content, message):
    path = tmp_path / "bad.mid"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        read_score(path)
    assert "bad.mid" in str(error.value)


def test_a_score_cut_short_is_refused(tmp_path):
    path = band(tmp_path / "a.mid")
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match="not a readable MIDI file"):
        read_score(path)


def test_change_moves_pitch_time_and_loudness_but_not_the_drums_pitch(tmp_path):
    score = read_score(band(tmp_path / "a.mid"))
    change = Change(tempo_factor=1.25, transpose=3, velocity_factor=0.5, programs={(2, 73): 68}, octaves={(1, 32): 12})
    changed = change_score(score, change)
    drums = score.notes["channel"] == 9
    bass = score.notes["channel"] == 1
    assert changed.notes["pitch"][drums].tolist() == score.notes["pitch"][drums].tolist()
    assert (changed.notes["pitch"] - score.notes["pitch"])[bass].tolist() == [15] * bass.sum()
    assert (changed.notes["pitch"] - score.notes["pitch"])[~drums & ~bass].tolist() == [3] * (~drums & ~bass).sum()
    assert changed.notes["start_s"] == pytest.approx(score.notes["start_s"] / 1.25)
    assert changed.tempos == pytest.approx(np.array([[0.0, 150.0]]))
    assert set(changed.notes["velocity"]) == {50}
    assert parts(changed) == [(0, 0), (1, 32), (2, 68)]
    with pytest.raises(ValueError, match="leave the MIDI range"):
        change_score(score, Change(transpose=-40))


def test_windows_carry_over_what_was_set_and_what_sounds(tmp_path):
    settings = [
        (0, mido.Message("control_change", control=7, value=50)),
        (0, mido.Message("control_change", control=64, value=127)),
        (1, mido.Message("control_change", control=7, value=90)),
        (1, mido.Message("pitchwheel", pitch=1000)),
    ]
    path = write_score(tmp_path / "a.mid", [(0, 20, 60, 0), (6, 1, 64, 3), (30, 1, 65, 0)],
                       programs={0: 16, 3: 40}, others=settings)  # fmt: skip
    write_windows(read_score(path), [(2.0, 4.0), (14.5, 16.0)], tmp_path / "cut.mid")
    messages, at = [], 0.0
    for m in mido.MidiFile(tmp_path / "cut.mid"):
        at += m.time
        if not m.is_meta and not (m.type == "control_change" and m.control >= 120):
            messages.append((round(at, 3), m.copy(time=0)))
    start = [m for when, m in messages if when == 0]
    assert start == [
        mido.Message("control_change", control=7, value=90),
        mido.Message("control_change", control=64, value=127),
        mido.Message("pitchwheel", pitch=1000),
        mido.Message("program_change", program=16),
        mido.Message("note_on", note=60, velocity=100),
    ]
    struck = [(when, m.note, m.channel) for when, m in messages if m.type == "note_on"]
    assert struck == [(0.0, 60, 0), (1.0, 64, 3), (2.5, 65, 0)]
    assert at == pytest.approx(3.5)


def test_windows_hold_no_long_silence(tmp_path):
    notes = [(at, 1, 60 + at % 12, 0) for at in [*range(40), *range(100, 160)]]
    score = read_score(write_score(tmp_path / "a.mid", notes))
    spans = music_spans(score.notes, 1.0)
    assert np.array(spans) == pytest.approx(np.array([[0.0, 20.0], [50.0, 80.0]]))
    windows = choose_windows(score, 10.0, 3, 4.0, 1.0, np.random.default_rng(0))
    assert len(windows) == 5  # all that fit
    for start, end in windows:
        assert any(a <= start and end <= b for a, b in spans)
    ordered = sorted(windows)
    assert all(b[0] >= a[1] - 1e-9 for a, b in pairwise(ordered))


def test_a_short_piece_is_one_shorter_clip_or_none(tmp_path):
    score = read_score(write_score(tmp_path / "a.mid", [(at, 1, 60, 0) for at in range(12)]))
    rng = np.random.default_rng(0)
    assert choose_windows(score, 10.0, 3, 4.0, 1.0, rng) == [(0.0, 6.0)]
    assert choose_windows(score, 10.0, 3, 7.0, 1.0, rng) == []


def test_silence_is_told_from_sound():
    rate = 8000
    tone = 0.1 * np.sin(2 * np.pi * 440 * np.arange(4 * rate) / rate)[:, None]
    gap = np.zeros((2 * rate, 1))
    assert sounds(tone, rate, 0.9, 1.0)
    assert not sounds(np.concatenate([tone, gap, tone]), rate, 0.5, 1.0)
    assert sounds(np.concatenate([tone, gap, tone]), rate, 0.5, 2.5)
    assert not sounds(np.concatenate([tone, gap, tone]), rate, 0.9, 2.5)
    assert not sounds(gap, rate, 0.0, 9.0)
    first, second = heard(np.concatenate([gap, tone, gap, tone, gap]), rate, 0.5)
    assert first == pytest.approx((2 * rate, 6.5 * rate), abs=400)
    assert second == pytest.approx((8 * rate, 12 * rate), abs=400)


@pytest.mark.parametrize("target", ORCHESTRATIONS)
def test_a_rescored_piece_has_that_family_only(tmp_path, target):
    score = read_score(band(tmp_path / "a.mid"))
    config = RenderConfig()
    for seed in range(20):
        drawn = draw_rendering(score, target, np.random.default_rng(seed), config)
        notes = change_score(score, drawn.change).notes
        drums = notes["channel"] == 9
        if target == "drums":
            assert drums.all()
        else:
            assert not drums.any()
            assert set(notes["program"]) <= set(ORCHESTRATIONS[target])
            assert len(notes)


def test_low_parts_go_to_low_instruments(tmp_path):
    bass = [(at, 1, 40 + at % 5, 0) for at in range(40)]
    tune = [(at, 1, 84 + at % 5, 1) for at in range(40)]
    score = read_score(write_score(tmp_path / "a.mid", bass + tune, programs={0: 0, 1: 1}))
    lower = 0
    for seed in range(40):
        programs = draw_rendering(score, "strings", np.random.default_rng(seed), RenderConfig()).change.programs
        if len(programs) == 2 and programs[0, 0] != programs[1, 1]:
            lower += 1
            low, high = PROGRAMS[programs[0, 0]], PROGRAMS[programs[1, 1]]
            assert low.low <= high.low, (low.name, high.name)
    assert lower > 3


def test_drums_alone_cannot_be_rescored_and_no_drums_cannot_drum(tmp_path):
    drums = read_score(write_score(tmp_path / "d.mid", [(at, 0.1, 38, 9) for at in range(20)]))
    piano = read_score(write_score(tmp_path / "p.mid", [(at, 1, 60, 0) for at in range(20)]))
    assert [can_play(drums, target) for target in ("original", "drums", "piano")] == [True, True, False]
    assert [can_play(piano, target) for target in ("original", "drums", "piano")] == [True, False, True]


def test_a_transposition_stays_within_what_midi_knows(tmp_path):
    high = read_score(write_score(tmp_path / "a.mid", [(at, 1, 120 + at % 8, 0) for at in range(20)]))
    drawn = [draw_rendering(high, "original", np.random.default_rng(s), RenderConfig()) for s in range(20)]
    assert max(d.change.transpose for d in drawn) == 0
    assert min(d.change.transpose for d in drawn) < 0
    with pytest.raises(ValueError, match="leave the MIDI range"):
        draw_rendering(high, "original", np.random.default_rng(0), RenderConfig(transpose_range=(2, 5)))


def facts(**changes) -> Facts:
    given = {"piece_id": "p", "source": "", "licence": "", "title": "", "composer": "", "genres": (), "tempo": True,
             "tempo_qpm": None, "metre": True, "key": (0, "major")}  # fmt: skip
    return Facts(**given | changes)


def test_attributes_are_those_of_the_stretch(tmp_path):
    slower = (24, mido.MetaMessage("set_tempo", tempo=mido.bpm2tempo(60)))
    waltz = (24, mido.MetaMessage("time_signature", numerator=3, denominator=4))
    chords = [(at, 2, pitch, 0) for at in range(0, 24, 2) for pitch in (60, 64, 67)]
    flute = [(at, 1, pitch, 1) for at, pitch in zip(range(24, 40), [72, 76, 79, 77] * 4, strict=True)]
    drums = [(at, 0.1, 38, 9) for at in range(24)]
    path = write_score(tmp_path / "a.mid", chords + flute + drums, programs={0: 0, 1: 73}, others=[slower, waltz])
    score = read_score(path)

    first = describe(facts(), score, 0.0, 10.0)
    assert first["instruments"] == ["acoustic grand piano", "drums"]
    assert first["chords"] == ["acoustic grand piano"]
    assert (first["tempo_bpm"], first["time_signature"], first["drums"]) == (120.0, "4/4", True)
    assert (first["notes_per_s"], first["onsets_per_s"]) == (5.0, 2.0)
    assert first["mean_pitch_midi"] == pytest.approx(63.7, abs=0.05)

    last = describe(facts(), score, 13.0, 20.0)
    assert (last["instruments"], last["programs"]) == (["flute"], [73])
    assert (last["tempo_bpm"], last["time_signature"], last["drums"]) == (60.0, "3/4", False)
    assert last["one_line"]

    both = describe(facts(), score, 8.0, 16.0)
    assert both["tempo_bpm"] is None
    assert both["tempo_steady"] is False
    assert both["time_signature"] is None


def test_a_part_that_cannot_be_heard_is_not_mentioned(tmp_path):
    off = (0, mido.Message("control_change", channel=1, control=7, value=0))
    notes = [(at, 1, pitch, channel) for at in range(20) for pitch, channel in ((60, 0), (72, 1))]
    score = read_score(write_score(tmp_path / "a.mid", notes, programs={0: 0, 1: 73}, others=[off]))
    assert describe(facts(), score, 0.0, 10.0)["instruments"] == ["acoustic grand piano"]


def test_the_key_follows_the_transposition_and_is_silent_about_modulation(tmp_path):
    score = read_score(band(tmp_path / "a.mid"))
    up = change_score(score, Change(transpose=2))
    assert describe(facts(), up, 0.0, 10.0, transpose=2)["key"] == "D major"
    assert describe(facts(key=(6, "major")), score, 0.0, 10.0)["key"] is None


@pytest.mark.parametrize(
    ("source", "tempo"),
    [("stated", 120.0), ("file", 120.0), ("score marking", 120.0), ("estimated from the tempo word", None),
     ("default, not stated", None), ("MIDI default, not stated", None), ("not musical (fixed tick rate)", None)],
)  # fmt: skip
def test_only_trusted_tempi_become_facts(tmp_path, source, tempo):
    score = read_score(band(tmp_path / "a.mid"))
    row = dict.fromkeys(("source", "licence", "title", "composer", "genre"), "")
    row |= {"piece_id": "p1", "tempo_bpm": "120", "tempo_source": source, "time_signature": "", "key": "C"}
    attributes = describe(score_facts("a.mid", score, row), score, 0.0, 10.0)
    assert attributes["tempo_bpm"] == tempo
    assert attributes["time_signature"] is None
    assert attributes["key"] == "C major"


def test_an_index_overrules_the_tempo_of_the_file(tmp_path):
    score = read_score(band(tmp_path / "a.mid"))
    row = dict.fromkeys(("source", "licence", "title", "composer", "genre"), "")
    row |= {"piece_id": "p1", "tempo_bpm": "90", "tempo_source": "stated", "time_signature": "4/4", "key": ""}
    found = score_facts("a.mid", score, row)
    assert (
        describe(found, change_score(score, Change(tempo_factor=1.1)), 0.0, 9.0, tempo_factor=1.1)["tempo_bpm"] == 99.0
    )


def test_without_an_index_the_score_speaks_for_itself(tmp_path):
    stated = read_score(band(tmp_path / "a.mid"))
    found = score_facts("a.mid", stated)
    assert (found.tempo, found.metre, found.key) == (True, True, (0, "major"))
    silent = read_score(write_score(tmp_path / "b.mid", [(at, 1, 60, 0) for at in range(20)], bpm=None, metre=None))
    found = score_facts("b.mid", silent)
    assert (found.tempo, found.metre, found.key) == (False, False, None)
    # A key signature that the notes contradict, as where a program always writes C.
    wrong = write_score(tmp_path / "c.mid", [(at, 1, 66 + (0, 4, 7, 11)[at % 4], 0) for at in range(20)], key="C")
    assert score_facts("c.mid", read_score(wrong)).key is None


@pytest.mark.parametrize(
    ("qpm", "metre", "bpm"),
    [(120, "4/4", 120), (120, None, 120), (120, "6/8", 80), (90, "12/8", 60), (144, "2/2", 72), (60, "2/2", 60),
     (420, "3/4", 140), (400, "4/4", 200)],
)  # fmt: skip
def test_beats_are_what_one_taps(qpm, metre, bpm):
    assert beats_per_minute(qpm, metre) == pytest.approx(bpm)


def test_genres_that_are_alternatives_are_left_out():
    assert genre_words("jazz/swing") == ("jazz", "swing")
    assert genre_words("latin/brazilian-bossa") == ("Latin", "Brazilian", "bossa nova")
    assert genre_words("game soundtrack, rock/metal/electronic/ambient") == ("game soundtrack",)
    assert genre_words("fast waltz") == ("waltz",)
    assert genre_words("folk, slip jig, melody and chords") == ("folk", "slip jig")
    assert genre_words("") == ()


@pytest.mark.parametrize(
    ("genres", "rescored", "holding"),
    [(("rock",), None, ["rock"]), (("rock",), "strings", []), (("folk", "jig"), "strings", ["folk", "jig"]),
     (("jazz waltz",), "strings", ["waltz"]), (("guitar ballad",), None, []),
     (("piano ballad",), None, ["piano ballad"]), (("string quartet",), None, [])],
)  # fmt: skip
def test_genres_hold_only_for_the_instruments_that_play(tmp_path, genres, rescored, holding):
    score = read_score(band(tmp_path / "a.mid"))
    assert describe(facts(genres=genres), score, 0.0, 10.0, rescored=rescored)["genres"] == holding


def test_keys_are_read_and_named():
    assert parse_key("F#m") == (6, "minor")
    assert [key_name(parse_key(key)) for key in ("Bb", "Am", "C#", "Abm")] == [
        "Bb major",
        "A minor",
        "Db major",
        "G# minor",
    ]
    with pytest.raises(ValueError, match="'H' is not a key"):
        parse_key("H")
