"""Mixtures: what is mixed is what lambda says, at one loudness, and the authors' latent mixup is reproduced."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from augment import mix_latents, mix_waveforms
from augment.captions import mixed_caption
from augment.mixup import (
    block_loudness,
    draw_lambda,
    excerpt_loudness,
    gated_loudness,
    loudness_gain,
    normalise_peak,
    stretch,
)
from musicldm.models.original import load_original
from tests.helpers.golden import golden, relative_error, tensors

RATE = 16_000


def noise(seconds, seed=0, level=0.1, rate=RATE):
    """Pink-like noise (L,), float32."""
    white = np.random.default_rng(seed).normal(0, level, round(seconds * rate))
    return np.convolve(white, np.ones(8) / 8, "same").astype(np.float32)


@given(st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_a_mixture_is_the_line_between_its_parts(lam, seed):
    a, b = np.random.default_rng(seed).normal(size=(2, 50))
    mixed = mix_waveforms(a, b, lam)
    np.testing.assert_allclose(mixed, lam * a + (1 - lam) * b, atol=1e-12)
    np.testing.assert_allclose(mix_waveforms(b, a, 1 - lam), mixed, atol=1e-12)
    rows = mix_latents(torch.from_numpy(np.stack([a, b])), torch.from_numpy(np.stack([b, a])), np.array([lam, 1 - lam]))
    torch.testing.assert_close(rows[0], rows[1])
    assert rows.dtype == torch.float64
    assert mix_waveforms(a.astype(np.float32), b.astype(np.float32), np.float64(lam)).dtype == np.float32


def test_what_cannot_be_mixed_is_refused():
    with pytest.raises(ValueError, match=r"\(5,\) and \(6,\); cut the longer"):
        mix_waveforms(np.zeros(5), np.zeros(6), 0.5)
    with pytest.raises(ValueError, match=r"from 0 to 1, got 1\.5"):
        mix_latents(torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 3, 4), 1.5)
    with pytest.raises(ValueError, match="from 0 to 1, got nan"):
        mix_waveforms(np.zeros(5), np.zeros(5), float("nan"))
    with pytest.raises(ValueError, match="one for each of 2 items"):
        mix_latents(torch.zeros(2, 2, 3, 4), torch.zeros(2, 2, 3, 4), torch.rand(3))


def test_lambda_is_beta_5_5():
    rng = np.random.default_rng(0)
    drawn = np.array([draw_lambda(rng) for _ in range(20_000)])
    assert drawn.mean() == pytest.approx(0.5, abs=0.005)
    assert drawn.std() == pytest.approx(1 / np.sqrt(44), abs=0.002)  # sqrt(ab / ((a + b)^2 (a + b + 1)))


def test_the_peak_is_a_half_and_the_mean_0():
    made = normalise_peak(noise(1) + 0.3)
    assert np.abs(made).max() == pytest.approx(0.5, rel=1e-5)
    assert abs(made.mean()) < 1e-6
    assert not normalise_peak(np.full(9, 0.25)).any()


@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_loudness_is_that_of_pyloudnorm(rate):
    """Of the whole, and of an excerpt as if it had been cut out, but for what the filters carry over its edges."""
    from pyloudnorm import Meter

    quiet_then_loud = np.concatenate([noise(3, 1, 0.01, rate), np.zeros(rate), noise(5, 2, 0.2, rate)])
    blocks = block_loudness(quiet_then_loud, rate)
    assert gated_loudness(blocks) == pytest.approx(Meter(rate).integrated_loudness(quiet_then_loud), abs=0.01)
    for start_s, end_s in ((0.0, 3.0), (5.0, 8.3), (1.0, 7.0)):
        part = quiet_then_loud[round(start_s * rate) : round(end_s * rate)]
        expected = Meter(rate).integrated_loudness(part)
        assert excerpt_loudness(blocks, start_s, end_s) == pytest.approx(expected, abs=0.05)
    assert gated_loudness(block_loudness(np.zeros(rate), rate)) == -np.inf
    assert len(block_loudness(noise(0.2, rate=rate), rate)) == 0


@given(st.floats(-60, 0), st.floats(-60, 0))
def test_gain_moves_loudness(before, after):
    assert 20 * np.log10(loudness_gain(before, after)) == pytest.approx(after - before, abs=1e-9)


@pytest.mark.parametrize("speed", [0.96, 1.017, 1.04])
def test_stretching_moves_clicks_where_they_belong_and_keeps_pitch(speed):
    waveform = np.zeros(4 * RATE, np.float32)
    clicks = np.arange(0.5, 3.6, 0.5)
    rng = np.random.default_rng(0)
    for at in clicks:
        waveform[round(at * RATE) :][:800] += rng.normal(0, 0.3, 800) * np.exp(-np.arange(800) / 150)
    faster = stretch(waveform, RATE, speed)
    assert len(faster) == pytest.approx(len(waveform) / speed, abs=2)
    np.testing.assert_array_equal(faster, stretch(waveform, RATE, speed))
    energy = np.convolve(faster**2, np.ones(160), "same")
    for at in clicks / speed:
        near = energy[round((at - 0.1) * RATE) : round((at + 0.1) * RATE)]
        assert near.argmax() / RATE - 0.1 == pytest.approx(0.005, abs=0.012)
    tone = np.sin(2 * np.pi * 440 * np.arange(2 * RATE) / RATE).astype(np.float32)
    middle = stretch(tone, RATE, speed)[RATE // 2 :][:RATE]
    assert np.abs(np.fft.rfft(middle * np.hanning(RATE))).argmax() == 440


def test_stereo_is_stretched_and_levelled_as_a_whole():
    """Channels stay in step: a sound that is panned stays where it is."""
    stereo = np.stack([noise(1), 0.25 * noise(1)])
    left, right = stretch(stereo, RATE, 1.02)
    np.testing.assert_allclose(right, 0.25 * left, atol=1e-4)
    assert len(left) == pytest.approx(stereo.shape[1] / 1.02, abs=2)
    made = normalise_peak(stereo + np.array([[0.3], [0.0]]))
    assert np.abs(made[0]).max() == pytest.approx(0.5, rel=1e-5)
    np.testing.assert_allclose(made.mean(axis=1), 0, atol=1e-6)
    np.testing.assert_allclose(made[1], 0.25 * made[0], atol=1e-6)


def test_more_stretching_is_refused():
    with pytest.raises(ValueError, match=r"within 4% of 1, since more is audible, got 1\.05"):
        stretch(noise(1), RATE, 1.05)
    waveform = noise(1)
    assert stretch(waveform, RATE, 1.0) is waveform


@pytest.mark.parametrize(
    ("lam", "expected"),
    [
        (0.6, "A calm piano, layered with fast drums."),
        (0.4, "Fast drums, layered with a calm piano."),
        (0.8, "A calm piano, softly layered with fast drums."),
        (0.1, "Fast drums, softly layered with a calm piano."),
    ],
)
def test_captions_name_the_louder_part_first(lam, expected):
    assert mixed_caption("A calm piano.", "Fast drums.", lam) == expected


def test_captions_of_what_has_none():
    assert mixed_caption("", "EDM loop", 0.5) == "EDM loop"
    assert mixed_caption("Piano", "EDM loop", 0.5) == "Piano, layered with EDM loop"
    assert mixed_caption("", "", 0.5) == ""


def test_latent_mixup_is_that_of_the_authors():
    """All of a batch: rows that are drawn become mixtures of the other two spectrograms, heard through the vocoder."""
    from musicldm.train.diffusion.mixtures import hear_latents, sample_latents

    io = tensors("mixup/io.safetensors")
    vae = load_original(golden("vae/weights.safetensors"), golden("mixup/config.yaml"))["vae"]
    vocoder = load_original(golden("vocoder/weights_plain.safetensors"), None, golden("vocoder/config.json"))["vocoder"]
    selected = io["selected"].long()
    assert torch.equal(selected, torch.nonzero(io["uniform"] < 0.5)[:, 0])
    parts = [sample_latents(vae, io[key][selected], io[f"posterior_noise.{key}"]) for key in ("fbank_1", "fbank_2")]
    mixed = mix_latents(*parts, io["p"])
    planes, waveform = hear_latents(vae, vocoder, mixed, io["waveform"].shape[1], as_authors=True)

    others = io["uniform"] >= 0.5  # these rows stay as they are
    latents = sample_latents(vae, io["fbank"], io["posterior_noise.fbank"])
    waveforms, mels = io["waveform"].clone(), io["fbank"].clone()
    latents[selected], waveforms[selected], mels[selected] = mixed, waveform, planes[:, 0]
    assert others.any()
    assert relative_error(io["scale_factor"] * latents, io["out.z"]) < 1e-5
    assert relative_error(waveforms, io["out.waveform"]) < 1e-5
    assert relative_error(mels, io["out.x"][:, 0]) < 1e-5
