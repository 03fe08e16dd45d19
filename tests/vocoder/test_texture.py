"""What an absolute error smooths away: the roughness of spectrograms, and networks trained to keep it."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from musicldm.config import VocoderConfig
from musicldm.data.items import Item
from musicldm.train.run_folder import Run, State
from musicldm.train.vocoder import VocoderStage, initial_generator, spectral_losses
from tests.helpers.tiny import MEL
from vocoder.texture import TEXTURE_LAGS, TEXTURE_WINDOW, roughness, texture_loss


def test_roughness_of_known_spectrograms():
    """Silence has none; a sign that changes with every frame has two over odd lags, none over even ones or bands."""
    assert roughness(torch.zeros(2, 1, 64, 8)).abs().max() == 0
    flips = torch.tensor([1.0, -1.0]).repeat(32)[None, None, :, None].expand(1, 1, 64, 8)
    expected = []
    for axis, lags in TEXTURE_LAGS.items():
        for lag in lags:
            frames, bands = (64 - lag, 8) if axis == 2 else (64, 8 - lag)
            windows = 1 + (frames - TEXTURE_WINDOW) // (TEXTURE_WINDOW // 2)
            expected += windows * bands * [2.0 if axis == 2 and lag % 2 else 0.0]
    torch.testing.assert_close(roughness(flips), torch.tensor(expected))


def test_texture_tells_smoothing_but_not_which_noise():
    """Other noise of the same kind costs little, the noise's mean much, though its absolute error is the smaller."""
    generator = torch.Generator().manual_seed(0)
    one, other = torch.randn(2, 1, 1, 512, 64, generator=generator)
    smooth = torch.zeros_like(one)
    assert texture_loss(one, one) == 0
    assert texture_loss(one, other) < 0.2 * texture_loss(one, smooth)
    assert (one - smooth).abs().mean() < (one - other).abs().mean()
    assert texture_loss(one, smooth).item() == pytest.approx(2 / torch.pi**0.5, rel=0.02)  # E|a - b| of unit normals


def test_flips_from_frame_to_frame_are_no_noise():
    """They have noise's changes over one frame, so that lag alone would take them for it."""
    noise = torch.randn(1, 1, 512, 64, generator=torch.Generator().manual_seed(0))
    flips = torch.tensor([1.0, -1.0]).repeat(256)[None, None, :, None].expand(1, 1, 512, 64) / torch.pi**0.5
    changes = [x.diff(dim=2).abs().mean().item() for x in (flips, noise)]
    assert changes[0] == pytest.approx(changes[1], rel=0.02)
    assert texture_loss(noise, flips) > 0.5 * texture_loss(noise, torch.zeros_like(noise))


def test_a_spectrogram_shorter_than_the_lags():
    assert roughness(torch.randn(1, 1, 4, 8)).isfinite().all()


def test_a_vocoder_may_be_asked_for_texture():
    """Beside its other losses; the best checkpoint is then known by their sum."""
    torch.manual_seed(0)
    config = VocoderConfig(
        mel=MEL, segment_samples=1280, channels=16, upsample_rates=(5, 4, 4), upsample_kernel_sizes=(15, 8, 8)
    )
    real, fake = torch.randn(2, 2, 1280)
    asked = replace(config, texture_weight=3.0)
    (before, plain), (after, losses) = (spectral_losses(fake, real, c) for c in (config, asked))
    assert "texture" not in plain
    assert losses["texture"] > 0
    torch.testing.assert_close(after, before + 3 * losses["texture"])
    generator = initial_generator(asked)
    held_out = {Item(0, index): waveform for index, waveform in enumerate(real)}
    runs = [Run(each, Path(), Accelerator(cpu=True)) for each in (config, asked)]
    of_plain, of_asked = (VocoderStage(run, State({}), generator, None, held_out, held_out).validate() for run in runs)
    assert next(iter(of_asked)) == "loss"
    assert next(iter(of_plain)) == "mel"
    assert of_asked["loss"] == pytest.approx(config.mel_weight * of_asked["mel"] + 3 * of_asked["texture"])
    with pytest.raises(ValueError, match="texture_weight"):
        replace(config, texture_weight=-1.0)
