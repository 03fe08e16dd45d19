"""Partners and alignments: pure functions of beats that are known exactly."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from augment.pairing import (
    TOLERANCE_S,
    Pairing,
    Recording,
    align_paper,
    align_synchronous,
    compatible_keys,
    paper_group,
    paper_tempo,
    pulse_ratio,
)

CLIP_S = 10.24


def recording(name, bpm, beats_per_bar=4, pickup=0, seconds=30.0, start_s=0.0, jitter_s=0.0, **changes) -> Recording:
    """Beats from ``start_s`` on, each moved at random by up to ``jitter_s``."""
    beats = np.arange(start_s, seconds, 60 / bpm)
    beats = beats + np.random.default_rng(len(beats)).uniform(-jitter_s, jitter_s, len(beats))
    downbeats = beats[pickup::beats_per_bar]
    return Recording(name, name, seconds, beats, downbeats, beats_per_bar, float(bpm), 0.8)._replace(**changes)


def beats_apart(a, b, fit):
    """Seconds between the beats of both within the clip, each of the slower to the nearest of the faster."""
    first = a.beats_s - fit.a_start_s
    second = (b.beats_s - fit.b_start_s) / fit.speed
    first, second = (times[(times > -TOLERANCE_S) & (times < CLIP_S - TOLERANCE_S)] for times in (first, second))
    sparse, dense = sorted((first, second), key=len)
    return np.abs(sparse[:, None] - dense[None]).min(axis=1)


@given(
    st.floats(60, 200),
    st.floats(-0.035, 0.035),
    st.sampled_from([0.5, 1.0, 2.0]),
    st.sampled_from([3, 4]),
    st.integers(0, 3),
    st.floats(0, 0.008),
    st.integers(0, 2**32 - 1),
)
def test_beats_of_an_aligned_pair_coincide_all_through_the_clip(bpm, change, pulse, metre, pickup, jitter_s, seed):
    a = recording("a", bpm, metre, pickup % metre, jitter_s=jitter_s)
    b = recording("b", bpm * pulse * (1 + change), metre, seconds=40.0, start_s=0.2, jitter_s=jitter_s)
    fit = align_synchronous(a, b, np.random.default_rng(seed), CLIP_S)
    assert fit is not None
    assert abs(fit.speed - 1) <= 0.04 + 1e-9
    assert beats_apart(a, b, fit).max() <= TOLERANCE_S + 1e-6
    assert np.abs(a.downbeats_s - fit.a_start_s).min() < 0.02
    assert np.abs(b.downbeats_s - fit.b_start_s).min() < 0.04
    assert fit.a_start_s + CLIP_S <= a.duration_s + 0.04
    assert fit.b_start_s + CLIP_S * fit.speed <= b.duration_s + 0.04


def test_drift_is_bounded_without_stretching():
    """At 120 BPM, 1 BPM more drifts 85 ms in a clip; a quarter of it is just about 20 ms."""
    anchor, near, far = recording("a", 120), recording("b", 120.3), recording("c", 121)
    rng = np.random.default_rng(0)
    pairing = Pairing([anchor, near, far], CLIP_S, max_stretch=0)
    assert 2 not in pairing.candidates(0)
    fit = align_synchronous(anchor, near, rng, CLIP_S, max_stretch=0)
    assert fit is None or beats_apart(anchor, near, fit).max() <= TOLERANCE_S
    assert align_synchronous(anchor, far, rng, CLIP_S, max_stretch=0) is None
    with_stretch = Pairing([anchor, near, far, recording("d", 126)], CLIP_S)
    assert with_stretch.candidates(0).tolist() == [1, 2]
    _, fit = Pairing([anchor, far], CLIP_S).draw(0, rng)
    assert fit.speed == pytest.approx(120 / 121, abs=6e-4)


def test_partners_share_pulse_and_metre_and_are_never_the_same_piece():
    anchor = recording("a", 120)
    recordings = [
        anchor,
        recording("same tempo", 121),
        recording("half", 60.5),
        recording("double", 239),
        recording("two thirds", 80),
        recording("waltz", 120, beats_per_bar=3),
        recording("another version", 120, group="a"),
        recording("unsure", 120, confidence=0.1),
        recording("beatless", 120, beats_s=np.empty(0), downbeats_s=np.empty(0), tempo_bpm=0.0),
        recording("no bar", 120, beats_per_bar=4)._replace(beats_per_bar=0, downbeats_s=np.empty(0)),
    ]
    pairing = Pairing(recordings, CLIP_S)
    assert [recordings[i].name for i in pairing.candidates(0)] == ["same tempo", "half", "double"]
    assert not len(pairing.candidates(8))
    assert pairing.draw(8, np.random.default_rng(0)) is None
    assert pulse_ratio(120, 60.5)[0] == 0.5
    assert pulse_ratio(120, 239) == (2.0, pytest.approx(240 / 239))


def test_partners_are_drawn_uniformly_and_by_the_generator_alone():
    recordings = [recording(str(i), 100 + 0.5 * i, start_s=0.1 * i) for i in range(6)]
    pairing = Pairing(recordings, CLIP_S)
    drawn = [pairing.draw(0, np.random.default_rng(seed)) for seed in range(600)]
    counts = np.bincount([partner for partner, _ in drawn], minlength=6)
    assert counts[0] == 0
    assert counts[1:].min() > 80
    assert counts[1:].max() < 160
    assert drawn[:50] == [pairing.draw(0, np.random.default_rng(seed)) for seed in range(50)]


def test_an_unsteady_partner_is_left_out():
    """The same mean tempo, but it slows down: no straight line fits."""
    beats = np.cumsum(np.linspace(0.4, 0.6, 60))
    rubato = recording("b", 120, beats_s=beats, downbeats_s=beats[::4], duration_s=float(beats[-1]))
    steady = recording("a", 120)
    assert 1 in Pairing([steady, rubato], CLIP_S).candidates(0)
    assert Pairing([steady, rubato], CLIP_S).draw(0, np.random.default_rng(0)) is None


def test_short_recordings_start_on_their_first_downbeat_and_hold_half_a_clip():
    short, other = recording("a", 120, pickup=2, seconds=CLIP_S), recording("b", 120, seconds=CLIP_S)
    fit = align_synchronous(short, other, np.random.default_rng(0), CLIP_S)
    assert (fit.a_start_s, fit.b_start_s) == (pytest.approx(1.0), pytest.approx(0.0))
    tiny = recording("c", 120, seconds=5.0)
    assert align_synchronous(short, tiny, np.random.default_rng(0), CLIP_S) is None


def test_keys_that_differ_in_one_note_at_most_are_compatible():
    assert compatible_keys("C major", "A minor")
    assert compatible_keys("C major", "G major")
    assert compatible_keys("F# major", "Db major")
    assert compatible_keys("Gb major", "D# minor")
    assert compatible_keys("E minor", "D major")
    assert not compatible_keys("C major", "D major")
    assert not compatible_keys("C major", "C minor")
    assert not compatible_keys(None, "C major")
    with pytest.raises(ValueError, match="written like 'C major'"):
        compatible_keys("C major", "H dur")
    keys = [recording("a", 120, key="C major"), recording("b", 120, key="E major"), recording("c", 120, key="G major")]
    assert Pairing(keys, CLIP_S, same_key=True).candidates(0).tolist() == [2]


def test_groups_and_cuts_of_the_authors():
    assert paper_tempo(np.array([0.0, 0.5, 1.0, 1.5])) == 120
    assert paper_tempo(np.array([3.0])) == 0
    assert paper_group(np.arange(0, 20, 60 / 119.6)) == 40
    recordings = [recording("a", 120), recording("b", 121.8), recording("c", 123), recording("d", 60)]
    pairing = Pairing(recordings, CLIP_S, "paper")
    assert pairing.candidates(0).tolist() == [0, 1]  # 120 to 122 BPM, itself among them
    last = recordings[0].downbeats_s[-1]
    fits = [align_paper(*recordings[:2], np.random.default_rng(seed)) for seed in range(200)]
    assert all(fit.a_start_s in recordings[0].downbeats_s and fit.speed == 1 for fit in fits)
    assert {fit.a_start_s for fit in fits} == set(recordings[0].downbeats_s) - {last}
    one_bar = recording("e", 120, downbeats_s=np.array([0.5]))
    assert align_paper(recordings[0], one_bar, np.random.default_rng(0)) == (0, 0, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "loose"}, "mode must be one of paper, synchronous, got 'loose'"),
        ({"max_stretch": 0.1}, "max_stretch must be from 0 to 0.04"),
        ({"clip_s": 0}, "clip_s must be positive"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Pairing([], **{"clip_s": CLIP_S} | options)
