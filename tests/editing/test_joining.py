"""Joins: no click, no gap and no dip at a seam, and new sound in the recording's rate, channels and levels."""

import numpy as np
import pytest

from musicldm.editing import New, Patch, Source, apply, extrapolate, join, limits
from musicldm.editing.extrapolation import burg
from vocoder import MelConfig

RATE = 44_100


def tone(rate, seconds, phase=0.0, parts=((220.0, 0.3), (663.3, 0.15), (1501.7, 0.05))):
    t = np.arange(round(rate * seconds)) / rate
    return sum(a * np.sin(2 * np.pi * f * t + phase * (i + 1)) for i, (f, a) in enumerate(parts))


def noise(n, seed=0, level=0.1, channels=1):
    return np.random.default_rng(seed).normal(0, level, (channels, n))


def levels(samples, n):
    """Root mean square of blocks of ``n`` samples, in dB."""
    blocks = samples[: len(samples) // n * n].reshape(-1, n)
    return 10 * np.log10(np.square(blocks).mean(axis=1) + 1e-12)


def jump(samples, at):
    """How much the samples' second difference around ``at`` exceeds the largest elsewhere."""
    curve = np.abs(np.diff(samples, 2))
    return curve[at - 3 : at + 3].max() / max(curve[: at - 50].max(), curve[at + 50 :].max())


REGIONS = {"hole": (44_100, 100_000), "after": (132_300, 150_000), "before": (-20_000, 0), "start": (0, 50_000)}


@pytest.mark.parametrize("name", REGIONS)
@pytest.mark.parametrize("new_rate", [16_000, 44_100])
def test_tones_of_another_phase_join_without_click_or_dip(name, new_rate):
    source = Source.of(tone(RATE, 3.0), RATE)
    start, stop = REGIONS[name]
    begin = start - 22_050
    seconds = (stop - start + 44_100) / RATE
    found = join(source, (start, stop), New(tone(new_rate, seconds, phase=3.0), new_rate, begin))
    expected = {"hole": [1.0, 100_000 / RATE], "after": [3.0], "before": [0.0], "start": [50_000 / RATE]}[name]
    assert found.seams_s == expected
    made = apply(source, [found.patch])
    offset = max(0, -start)
    for at in (round(seam * RATE) + offset for seam in found.seams_s):
        assert jump(made, at) < 1.5
        near = made[max(0, at - 8820) : at + 8820]
        assert np.ptp(levels(near, 1323)) < 1.5  # dB, in blocks of 30 ms


def test_without_fitted_phases_the_same_tones_cancel():
    """What the joins above do better than an ordinary crossfade of equal power."""
    old, new = tone(RATE, 1.0), tone(RATE, 1.0, phase=3.0)
    share = np.clip((np.arange(RATE) - 20_000) / 1764, 0, 1) * np.pi / 2
    assert np.ptp(levels((old * np.cos(share) + new * np.sin(share))[12_000:30_000], 1323)) > 2.0


def test_sounds_that_agree_are_no_louder_in_a_crossfade():
    sound = noise(RATE * 3)
    source = Source.of(sound, RATE)
    found = join(source, (44_100, 88_200), New(sound, RATE, 0))
    difference = found.patch.samples - sound[:, 44_100:88_200]
    assert 20 * np.log10(difference.std() / sound.std()) < -20
    uneven = levels(found.patch.samples[0, :1764], 441) - levels(sound[0, 44_100:45_864], 441)
    assert np.abs(uneven).max() < 1.0


def test_noises_without_relation_keep_their_level():
    """Mean level in the crossfades of many joins, where an equal-gain one would lose 3 dB."""
    inside = []
    for seed in range(6):
        source = Source.of(noise(RATE, seed), RATE)
        found = join(source, (15_000, 30_000), New(noise(RATE, 100 + seed), RATE, 0))
        inside.append(np.square(found.patch.samples[0, 300:1464]).mean())
    assert abs(10 * np.log10(np.mean(inside)) + 20) < 0.7


def test_new_sound_gets_the_level_and_tone_around_it():
    rng = np.random.default_rng(0)
    old = rng.normal(0, 0.1, RATE * 4)
    dull = np.convolve(old, [0.15, 0.7, 0.15], mode="same") * 0.8  # softer, and more so at the top
    source = Source.of(old, RATE)
    found = join(source, (70_000, 110_000), New(dull, RATE, 0))

    def bands(samples):
        power = np.square(np.abs(np.fft.rfft(samples[4000:36_000])))
        return 10 * np.log10([part.mean() for part in np.array_split(power[100:12_000], 6)])

    assert np.abs(bands(found.patch.samples[0]) - bands(old[70_000:110_000])).max() < 1.5
    assert np.abs(bands(dull[70_000:110_000]) - bands(old[70_000:110_000])).max() > 6


def test_levels_on_both_sides_go_over_into_each_other():
    swell = np.linspace(0.05, 0.2, RATE * 4)
    source = Source.of(noise(RATE * 4, level=1.0)[0] * swell, RATE)
    new = noise(RATE * 4, 1, 1.0) * swell * np.linspace(0.5, 1.0, RATE * 4)
    found = join(source, (60_000, 120_000), New(new, RATE, 0))
    wanted = 20 * np.log10(swell[60_000:120_000])
    assert np.abs(levels(found.patch.samples[0], 10_000) - levels(10 ** (wanted / 20), 10_000)).max() < 1.5


def test_mono_sound_is_placed_where_the_recording_is():
    sound = noise(RATE * 3)[0]
    hard_left = np.stack([sound, 0 * sound])
    found = join(Source.of(hard_left, RATE), (50_000, 90_000), New(sound / 2, RATE, 0))
    assert np.abs(found.patch.samples[1]).max() < 1e-6
    assert abs(found.patch.samples[0].std() / sound.std() - 1) < 0.1
    three = np.stack([sound, sound / 2, -sound / 4])
    samples = join(Source.of(three, RATE), (50_000, 90_000), New(sound, RATE, 0)).patch.samples
    inside = samples[:, 10_000:30_000].std(axis=1)
    assert np.allclose(inside / inside[0], [1, 0.5, 0.25], atol=0.02)
    stereo = np.stack([sound, noise(RATE * 3, 5)[0]])
    mono = join(Source.of(sound, RATE), (50_000, 90_000), New(stereo, RATE, 0)).patch.samples
    assert mono.shape == (1, 40_000)


@pytest.mark.parametrize(
    ("rate", "channels", "dtype"), [(8000, 8, "int16"), (22_050, 2, "float32"), (96_000, 1, "int16")]
)
def test_any_rate_and_channels(rate, channels, dtype):
    sound = noise(rate, channels=channels)
    array = (sound * 32767).round().astype(dtype) if dtype == "int16" else sound.astype(dtype)
    source = Source.of(array, rate)
    third = rate // 3
    for region in ((third, 2 * third), (-third, 0), (rate, rate + third), (rate - third, rate + third)):
        begin = region[0] - third
        found = join(source, region, New(noise(16_000 * 2, 9)[0], 16_000, begin))
        made = apply(source, [found.patch])
        assert made.dtype == array.dtype
        assert found.patch.samples.shape == (channels, region[1] - region[0])
        assert np.square(found.patch.samples).mean() > 1e-4
        assert np.abs(found.patch.samples).max() <= 1.0


@pytest.mark.parametrize("length", [1, 2, 100, 1000])
def test_short_regions_and_short_recordings(length):
    sound = noise(RATE)
    source = Source.of(sound, RATE)
    new = New(noise(16_000, 3), 16_000, 0)
    for region in ((20_000, 20_000 + length), (RATE - length, RATE), (0, length)):
        samples = join(source, region, new).patch.samples
        assert samples.shape == (1, length)
        assert np.isfinite(samples).all()
    short = Source.of(sound[:, :length], RATE)
    samples = join(short, (length, length + 5000), New(noise(16_000, 3), 16_000, length)).patch.samples
    assert np.isfinite(samples).all()
    assert samples[0, 3000:].std() > 0.03


def test_the_result_is_the_same_wherever_it_lies_in_a_long_recording():
    sound = noise(RATE * 2)
    new = noise(32_000, 3)
    alone = join(Source.of(sound, RATE), (40_000, 60_000), New(new, 16_000, 0)).patch.samples
    at = 44_123
    long = np.concatenate([np.zeros((1, at)), sound, np.zeros((1, at))], axis=1)
    inside = join(Source.of(long, RATE), (at + 40_000, at + 60_000), New(new, 16_000, at)).patch.samples
    assert np.abs(alone - inside).max() < 1e-3


def test_a_note_that_begins_at_the_seam_keeps_its_attack():
    n = RATE * 2
    new = np.zeros(n)
    new[:] = noise(n, level=1e-3)[0]
    hit = 44_100 + 400  # 9 ms behind the seam
    new[hit : hit + 4000] += noise(4000, 4, 0.1)[0] * np.exp(-np.arange(4000) / 1000)
    old = noise(44_100, level=1e-3)
    found = join(Source.of(old, RATE), (44_100, n), New(new, RATE, 0)).patch.samples[0]
    assert abs(levels(found[400:800], 400)[0] - levels(new[hit : hit + 400], 400)[0]) < 1.5


def test_loud_new_sound_is_limited_and_not_cut_off():
    old = noise(RATE * 2, level=0.3).clip(-0.9, 0.9)
    source = Source.of(old, RATE)
    samples = join(source, (30_000, 60_000), New(tone(RATE, 2, parts=((300, 3.0),)), RATE, 0)).patch.samples
    assert np.abs(samples[:, 3000:-3000]).max() <= 0.97
    assert (np.abs(samples) > 0.96).mean() < 0.5  # a sine that is cut off stays at its peak


@pytest.mark.parametrize(
    ("region", "new", "message"),
    [
        ((10, 10), New(np.ones(8000), 8000, 0), "must touch"),
        ((8001, 9000), New(np.ones(16_000), 8000, 0), "must touch audio, of 0 to 8000"),
        ((-20, -10), New(np.ones(8000), 8000, -100), "must touch"),
        ((4000, 5000), New(np.ones(2000), 8000, 2500), "samples 2500 to 4500, does not cover 4000 to 5000"),
        ((4000, 5000), New(np.full(8000, np.nan), 8000, 0), "NaN"),
    ],
)
def test_what_cannot_be_joined_is_refused(region, new, message):
    with pytest.raises(ValueError, match=message):
        join(Source.of(np.ones(8000) / 2, 8000), region, new)


def test_one_line_tells_what_the_model_cannot_make():
    mel = MelConfig()  # mono, up to 8 kHz
    low, high = tone(RATE, 2), tone(RATE, 2, parts=((12_000.0, 0.1),))
    side = np.stack([low + 0.2 * noise(2 * RATE, 1)[0], low - 0.2 * noise(2 * RATE, 2)[0]])
    region = (30_000, 60_000)
    assert limits(Source.of(low, RATE), region, mel) is None
    assert limits(Source.of(np.stack([low, low]), RATE), region, mel) is None
    assert limits(Source.of(np.zeros(RATE), RATE), (100, 200), mel) is None
    assert "has sound above 8 kHz, which" in limits(Source.of(low + high, RATE), region, mel)
    wide = Source.of(np.stack([low, 0 * low]), RATE)
    assert "has sound in a side channel, which" in limits(wide, region, mel)
    stereo = MelConfig(sample_rate=44_100, n_fft=2048, hop_length=441, n_mels=128, f_max=22_050.0, audio_channels=2)
    assert limits(Source.of(side + high, RATE), (-100, 0), stereo) is None
    assert limits(Source.of(side + high, RATE), (2 * RATE, 3 * RATE), mel).count("\n") == 0


def test_tones_go_on_as_they_were():
    sound = tone(RATE, 1.0)
    made = extrapolate(sound[None, :40_000], 2000, RATE)[0]
    errors = made - sound[40_000:42_000]
    assert np.abs(errors[:441]).max() < 0.03
    assert np.sqrt(np.square(errors).mean()) < 0.25 * sound.std()


@pytest.mark.parametrize("offset", [0.0, 0.3])
@pytest.mark.parametrize("n", [1, 2, 3, 50, 5000])
def test_silence_offsets_and_short_sounds_go_on(offset, n):
    made = extrapolate(np.full((2, n), offset), 1323, RATE)
    assert made.shape == (2, 1323)
    assert np.abs(made - (offset if n > 1 else 0)).max() < 1e-9
    assert np.abs(extrapolate(noise(n), 1323, RATE)).max() < 1.0


def test_channels_go_on_by_themselves_and_clipped_sound_stays_in_range():
    loud = np.clip(3 * tone(RATE, 0.5), -1, 1)
    both = extrapolate(np.stack([loud, 0 * loud]), 2646, RATE)
    assert np.array_equal(both[0], extrapolate(loud[None], 2646, RATE)[0])
    assert not both[1].any()
    assert np.abs(both).max() <= np.abs(loud - loud[-4410:].mean()).max() + abs(loud[-4410:].mean()) + 1e-9
    assert np.square(both[0]).mean() > 0.3 * np.square(loud).mean()


def test_predictors_are_stable():
    for sound in (noise(600)[0], tone(8000, 0.1), np.r_[np.zeros(300), 1, np.zeros(299)]):
        poles = np.abs(np.roots(np.r_[1, -burg(sound, 60)]))
        assert poles.max(initial=0) < 1 + 1e-6


def test_a_join_is_what_is_applied():
    source = Source.of(noise(8000)[0].astype(np.float32), 8000)
    patch = join(source, (3000, 4000), New(noise(8000, 2), 8000, 0)).patch
    assert isinstance(patch, Patch)
    made = apply(source, [patch])
    assert np.array_equal(made[:3000], source.array[:3000])
    assert np.array_equal(made[4000:], source.array[4000:])
