"""Sketches as text, and sketches that a model cannot hear."""

import base64
import json
import zlib
from dataclasses import replace

import numpy as np
import pytest

from musicldm.scores import Sketch
from musicldm.scores.hearing import check_audible, note_name
from musicldm.scores.packing import pack, unpack
from tests.helpers.scores import band, write_score
from vocoder import MelConfig

PUBLISHED = MelConfig()


def sketches(tmp_path):
    return {
        "band": Sketch.from_midi(band(tmp_path / "band.mid", beats=8)),
        "chords": Sketch.from_chords("Am F | C/E G |", bpm=97.3, meter="7/8", rhythm="comp"),
        "click": Sketch.click(101.7, "3/4", seconds=4.321),
        "both": Sketch.from_chords("C", bpm=66) + Sketch.click(66).shifted(0.1),
    }


@pytest.mark.parametrize("name", ["band", "chords", "click", "both"])
def test_a_sketch_comes_back_from_text_to_the_bit(tmp_path, name):
    sketch = sketches(tmp_path)[name]
    back = unpack(pack(sketch))
    assert np.array_equal(back.notes, sketch.notes)
    assert np.array_equal(back.clicks, sketch.clicks)
    assert np.array_equal(back.score.tempos, sketch.score.tempos)
    assert (back.score.metres, back.score.keys) == (sketch.score.metres, sketch.score.keys)
    assert (back.seconds, back.kinds) == (sketch.seconds, sketch.kinds)
    assert np.array_equal(back.render(8000), sketch.render(8000))
    assert pack(back) == pack(sketch)


def test_a_minute_of_music_takes_little_room(tmp_path):
    sketch = Sketch.from_midi(band(tmp_path / "band.mid", beats=120))
    assert sketch.seconds > 59
    text = pack(sketch)
    assert text.isascii()
    assert len(text) < 20 * len(sketch.notes)


def packed(**changes):
    content = json.loads(zlib.decompress(base64.b64decode(pack(Sketch.from_chords("C")))))
    return base64.b64encode(zlib.compress(json.dumps(content | changes).encode())).decode()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no text of ours",
        "é",
        base64.b64encode(b"not compressed").decode(),
        pack(Sketch.click(120))[:-8],
        packed(seconds="long"),
        packed(seconds=-1),
        packed(kinds=["voice"]),
        packed(notes={}),
        packed(clicks=[[0.0, 1.0, 2.0]]),
        packed(clicks=[[float("nan"), 1.0]]),
        packed(tempos=[[0.0, 0.0]]),
        packed(metres=[["now", 4, 4]]),
        base64.b64encode(zlib.compress(b"[" * 100_000)).decode(),
    ],
)
def test_other_texts_are_no_sketches(text):
    with pytest.raises(ValueError, match="is no packed sketch") as caught:
        unpack(text)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_music_of_people_is_heard(tmp_path):
    for sketch in sketches(tmp_path).values():
        check_audible(sketch, PUBLISHED)
    whole_hand = [(0.0, 1.0, pitch, 0) for pitch in range(60, 90)]
    check_audible(Sketch.from_midi(write_score(tmp_path / "a.mid", whole_hand)), PUBLISHED)


def test_what_is_too_high_is_refused_with_the_way_out():
    high = Sketch.from_chords("C", bpm=60)
    top = int(high.notes["pitch"].max())
    for up in range(127 - top):
        hertz = 440 * 2 ** ((top + up - 69) / 12)
        if hertz <= 7200:
            check_audible(high.transposed(up), PUBLISHED)
            continue
        with pytest.raises(ValueError, match=r"too high: .* up to 7200 Hz; transpose it down by") as caught:
            check_audible(high.transposed(up), PUBLISHED)
        assert note_name(top + up) in str(caught.value)
        down = int(str(caught.value).split(" by ")[1].split()[0])
        check_audible(high.transposed(up - down), PUBLISHED)
    with pytest.raises(ValueError, match="up to 1000 Hz"):
        check_audible(high.transposed(24), replace(PUBLISHED, f_max=1000.0))


def test_drums_are_never_too_high(tmp_path):
    drums = [(0.0, 0.1, 125, 9), (1.0, 0.1, 36, 9)]
    check_audible(Sketch.from_midi(write_score(tmp_path / "a.mid", drums)), PUBLISHED)


@pytest.mark.parametrize(("apart_s", "heard"), [(0.05, True), (0.015, True), (0.012, False), (0.002, False)])
def test_notes_that_begin_too_close_together_are_refused(tmp_path, apart_s, heard):
    notes = [(10.0 + i * apart_s * 2, apart_s, 60 + i % 12, 0) for i in range(round(3 / apart_s))]
    sketch = Sketch.from_midi(write_score(tmp_path / "a.mid", [(0.0, 1.0, 60, 0), *notes]))
    if heard:
        check_audible(sketch, PUBLISHED)
        return
    with pytest.raises(ValueError, match=r"too dense: from 5\.\d\d s on .* can tell 75 apart"):
        check_audible(sketch, PUBLISHED)


def test_more_pitches_at_once_than_bands_are_refused(tmp_path):
    cluster = [(2.0 + 0.001 * pitch, 4.0, pitch, 0) for pitch in range(21, 105)]
    sketch = Sketch.from_midi(write_score(tmp_path / "a.mid", cluster))
    with pytest.raises(ValueError, match=r"84 pitches sound at once .* can tell 32 apart"):
        check_audible(sketch, replace(PUBLISHED, hop_length=32))
    doubled = [(2.0, 4.0, 60, channel) for channel in range(9)] * 8
    check_audible(Sketch.from_midi(write_score(tmp_path / "b.mid", doubled)), PUBLISHED)


def test_silence_is_refused():
    with pytest.raises(ValueError, match="the sketch is silent"):
        check_audible(Sketch.from_chords("N.C. N.C."), PUBLISHED)


def test_a_stretched_sketch_is_slower():
    both = Sketch.from_chords("C G", bpm=120) + Sketch.click(120, bars=2)
    slow = both.stretched(1.25)
    assert slow.seconds == pytest.approx(5.0)
    assert slow.notes["start_s"] == pytest.approx(both.notes["start_s"] * 1.25)
    assert slow.notes["end_s"] == pytest.approx(both.notes["end_s"] * 1.25)
    assert slow.clicks == pytest.approx(both.clicks * np.array([1.25, 1]))
    assert slow.score.tempos[0, 1] == pytest.approx(96)
    assert slow.notes["pitch"].tolist() == both.notes["pitch"].tolist()
    assert slow.kinds == both.kinds
    with pytest.raises(ValueError, match="factor above 0"):
        both.stretched(0)
