"""Windows: the new part covers the regions, and the model hears nothing of what lay there."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from musicldm.editing import Source, plan_windows, read_window
from vocoder import MelConfig

MEL = MelConfig(sample_rate=8000, n_fft=256, hop_length=80, n_mels=16, f_max=4000.0, clip_s=1.28)
FACTOR = 4  # a latent frame is 40 ms
STEREO = MelConfig(sample_rate=8000, n_fft=256, hop_length=80, n_mels=16, f_max=4000.0, clip_s=1.28, audio_channels=2)


def noise(rate, seconds, channels=1):
    return np.random.default_rng(0).uniform(-0.9, 0.9, (channels, round(rate * seconds))).astype(np.float32)


@given(
    rate=st.sampled_from([8000, 11_025, 44_100]),
    seconds=st.floats(0.3, 20),
    borders=st.lists(st.floats(-0.3, 1.3), min_size=2, max_size=6, unique=True),
)
def test_what_is_new_covers_the_regions_and_little_more(rate, seconds, borders):
    source = Source.of(np.full(round(rate * seconds), 0.5, np.float32), rate)
    places = sorted({min(source.length * 2, max(-source.length, round(b * source.length))) for b in borders})
    regions = [(a, b) for a, b in list(pairwise(places))[::2] if a <= source.length and b >= 0]
    if not regions:
        return
    latent = rate * 0.04
    if source.length - sum(min(b, source.length) - max(a, 0) for a, b in regions) < 4 * latent * len(regions):
        return  # too little is kept
    windows = plan_windows(source, regions, MEL, FACTOR, context_s=0.2)
    assert [region for window in windows for region in window.regions] == regions
    for window in windows:
        assert len(window.mask) * 320 == window.n_samples
        assert abs(window.stop - window.start - len(window.mask) * latent) <= 1
        kept = np.repeat(window.mask == 0, 320)
        times = window.start + np.flatnonzero(kept) / 8000 * rate  # in samples of the source
        assert times.min() >= -2
        assert times.max() <= source.length + 2
        for start, stop in regions:
            assert not np.any((times > start + 2) & (times < stop - 2 * rate / 8000 - 2))
        new = window.mask.sum() * latent
        inside = sum(max(0, min(stop, window.stop) - max(start, window.start)) for start, stop in window.holes)
        assert new <= inside + 2 * (latent + 1) * len(window.holes)


def test_a_seam_lies_where_latent_frames_meet():
    source = Source.of(noise(44_100, 10), 44_100)
    for region, at in (((100_001, 150_000), 0), ((441_000, 500_000), 0), ((-50_000, 0), 1), ((0, 60_000), 1)):
        (window,) = plan_windows(source, [region], MEL, FACTOR)
        first, last = window.spans[0]
        border = window.start + (first, last)[at] * 44_100 * 0.04
        assert abs(border - region[at]) <= 1


def test_a_window_is_as_long_as_wanted_with_context_on_both_sides():
    source = Source.of(noise(8000, 20), 8000)
    (window,) = plan_windows(source, [(80_000, 81_600)], MEL, FACTOR, length_s=4.0, context_s=1.0)
    assert len(window.mask) == 100
    assert window.spans == [(47, 52)]
    (window,) = plan_windows(source, [(1600, 3200)], MEL, FACTOR, length_s=4.0, context_s=1.0)
    assert window.spans == [(5, 10)]
    assert len(window.mask) == 100
    (window,) = plan_windows(source, [(16_000, 96_000)], MEL, FACTOR, length_s=4.0, context_s=1.0)
    assert window.spans == [(25, 275)]
    assert len(window.mask) == 300


def test_regions_near_each_other_share_a_window():
    source = Source.of(noise(8000, 20), 8000)
    near, far = [(40_000, 41_000), (44_000, 45_000)], (100_000, 101_000)
    windows = plan_windows(source, [*near, far], MEL, FACTOR, length_s=4.0, context_s=1.0)
    assert [list(window.regions) for window in windows] == [near, [far]]
    assert len(windows[0].spans) == 2


@pytest.mark.parametrize(
    "regions", [[(20_000, 30_000)], [(-9000, 0)], [(40_000, 50_000)], [(9000, 9900), (30_000, 31_000)]]
)
@pytest.mark.parametrize("rate", [8000, 22_050])
def test_the_model_hears_nothing_of_what_lay_in_a_hole(regions, rate):
    sound = noise(rate, 40_000 / rate, 2)
    source = Source.of(sound, rate)
    changed = sound.copy()
    for start, stop in regions:
        changed[:, max(0, start) : max(0, stop)] = 1.0
    windows = plan_windows(source, regions, MEL, FACTOR, length_s=0.5, context_s=0.3)
    others = plan_windows(Source.of(changed, rate), regions, MEL, FACTOR, length_s=0.5, context_s=0.3)
    for window, other in zip(windows, others, strict=True):
        heard = read_window(source, window, MEL)
        assert np.array_equal(heard, read_window(Source.of(changed, rate), other, MEL))
        assert heard.shape == (window.n_samples,)
        if rate == 8000:  # what is kept is heard as it is
            start, stop = window.start, window.stop
            at = np.arange(start, stop)
            kept = (at >= 0) & (at < 40_000)
            for a, b in regions:
                kept &= (at < a) | (at >= b)
            assert np.array_equal(heard[kept], sound.astype(float).mean(axis=0).astype(np.float32)[at[kept]])
            assert np.abs(heard[~kept]).max() > 0.1  # holes are filled with sound


def test_stereo_models_hear_both_channels():
    for channels, rows in ((1, [0, 0]), (2, [0, 1])):
        sound = noise(8000, 5, channels)
        (window,) = plan_windows(Source.of(sound, 8000), [(10_000, 12_000)], STEREO, FACTOR)
        heard = read_window(Source.of(sound, 8000), window, STEREO)
        first = window.spans[0][0] * 320
        expected = sound[rows, window.start : window.start + first]
        assert np.array_equal(heard[:, :first], expected)


def test_a_recording_without_a_frame_to_keep_is_refused():
    source = Source.of(noise(8000, 0.03), 8000)
    with pytest.raises(ValueError, match=r"keeps less than the 0\.040 s beside the region"):
        plan_windows(source, [(240, 4000)], MEL, FACTOR)
