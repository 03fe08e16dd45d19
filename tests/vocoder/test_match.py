"""A vocoder's waveform is matched to its spectrogram."""

import pytest
import torch

from musicldm.config import VocoderConfig
from musicldm.kernels.tiled_decoding import vocode as vocode_in_tiles
from musicldm.train.vocoder import initial_generator
from tests.helpers.tiny import MEL
from vocoder import install_matching, log_mel_spectrogram, make_generator, match_mel
from vocoder.match import CEILING, limit


@pytest.fixture(scope="module")
def tone_and_noise():
    """A tone (B, L) that begins after half of the time, and the same in a noise 30 dB below it."""
    time = torch.arange(8000) / MEL.sample_rate
    tone = 0.5 * torch.sin(2 * torch.pi * 440 * time) * (time > 0.5)
    noise = torch.randn(8000, generator=torch.Generator().manual_seed(0))
    return tone[None], (tone + 0.015 * noise)[None]


def error(waveform, log_mel):
    return float((log_mel_spectrogram(waveform, MEL)[:, : log_mel.shape[1]] - log_mel).abs().mean())


def test_noise_goes_where_the_spectrogram_has_none(tone_and_noise):
    tone, noisy = tone_and_noise
    wanted = log_mel_spectrogram(tone, MEL)
    matched = [match_mel(noisy, wanted, MEL, passes) for passes in (0, 1, 2, 4)]
    assert torch.equal(matched[0], noisy)
    errors = [error(waveform, wanted) for waveform in matched]
    assert errors[3] < errors[2] < errors[1] < 0.5 * errors[0]
    assert errors[3] < 0.5 * errors[1]
    before, after = ((waveform - tone)[:, 200:3800].std() for waveform in (noisy, matched[2]))
    assert after < 0.1 * before  # silence is silent again
    assert float((matched[2] - tone)[:, 4200:].std()) < float((noisy - tone)[:, 4200:].std())


def test_a_waveform_that_agrees_is_left_as_it_is(tone_and_noise):
    _, noisy = tone_and_noise
    matched = match_mel(noisy, log_mel_spectrogram(noisy, MEL), MEL, 3)
    torch.testing.assert_close(matched, noisy, atol=1e-5, rtol=0)


def test_gains_and_samples_are_bounded(tone_and_noise):
    tone, _ = tone_and_noise
    louder = match_mel(tone, log_mel_spectrogram(tone, MEL) + 20.0, MEL)
    torch.testing.assert_close(louder.abs().max(), torch.tensor(CEILING))
    whisper = match_mel(tone, torch.full_like(log_mel_spectrogram(tone, MEL), -30.0), MEL)
    assert 0.5e-2 < float(whisper[:, 4800:7200].abs().max() / tone[:, 4800:7200].abs().max()) < 2e-2  # 40 dB


def test_what_is_asked_beyond_full_scale_is_turned_down_and_not_cut_off(tone_and_noise):
    tone, _ = tone_and_noise
    asked = log_mel_spectrogram(tone, MEL)
    asked[:, 60:80] += 1.5  # a moment of a tone of 2.2 times full scale

    def harmonics(waveform):  # energy beside the tone's, of the loud moment
        power = torch.fft.rfft(waveform[0, 4896:6304] * torch.hann_window(1408)).abs().square()
        return float(power[100:].sum() / power.sum())

    passes = [match_mel(tone, asked, MEL, n) for n in (2, 6)]
    assert max(float(waveform.abs().max()) for waveform in passes) < CEILING + 1e-6
    assert float(passes[1][:, 5200:6000].abs().max()) > 0.9 * CEILING
    assert max(map(harmonics, passes)) < 1e-4 < 1e-2 < harmonics((2.2 / 0.5 * tone).clamp(-1, 1))


@pytest.mark.parametrize("look_ahead", [1, 40])
def test_a_limiter_changes_nothing_but_what_is_near_a_peak(look_ahead):
    waveform = 0.5 * torch.randn(2, 1000, generator=torch.Generator().manual_seed(0)).clamp(-1.5, 1.5)
    waveform[0, [0, 500]] = torch.tensor([-3.0, 1.2])
    limited = limit(waveform, look_ahead)
    assert limited.abs().max() < CEILING + 1e-6
    far = (torch.arange(1000) > 2 * look_ahead) & ((torch.arange(1000) - 500).abs() > 2 * look_ahead)
    assert torch.equal(limited[1], waveform[1])
    assert torch.equal(limited[0, far], waveform[0, far])
    assert (limited.sign() == waveform.sign()).all()
    torch.testing.assert_close(limited[0, 500], torch.tensor(CEILING))


@torch.no_grad()
def test_a_generator_is_matched_as_its_config_says():
    torch.manual_seed(0)
    generator, mel = make_generator(MEL, 16, (5, 4, 4), (9, 8, 8)).eval(), torch.randn(2, 40, 16) - 3
    plain = generator(mel)
    assert torch.equal(install_matching(generator)(mel), plain)  # published vocoders say nothing
    generator.config.match_passes = 2
    matched = install_matching(generator)(mel)  # installed twice is installed once
    assert torch.equal(matched, match_mel(plain, mel, MEL, 2))
    assert error(matched, mel) < 0.8 * error(plain, mel)
    torch.testing.assert_close(generator(spectrogram=mel[:1]), matched[:1], atol=1e-4, rtol=0)
    torch.testing.assert_close(generator(mel[0]), matched[0], atol=1e-4, rtol=0)  # without a batch


@torch.no_grad()
@pytest.mark.parametrize(("frames", "tile"), [(50, 10), (64, 64), (131, 30)])
@pytest.mark.parametrize("kernels", [(9, 8, 8), (16, 8, 8)])
def test_matched_tiles_are_the_matched_whole(frames, tile, kernels):
    torch.manual_seed(frames)
    generator, mel = make_generator(MEL, 16, (5, 4, 4), kernels).eval(), torch.randn(2, frames, 16) - 3
    install_matching(generator).config.match_passes = 2
    torch.testing.assert_close(vocode_in_tiles(generator, mel[:, None], tile), generator(mel), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("passes", [0, 5])
def test_a_vocoder_to_start_from_is_matched_as_the_configuration_says(tmp_path, passes):
    generator = make_generator(MEL, 16, (5, 4, 4), (9, 8, 8))
    generator.config.match_passes = 2
    generator.save_pretrained(tmp_path)
    asked = VocoderConfig(init=str(tmp_path), mel=MEL, match_passes=passes)
    assert initial_generator(asked).config.match_passes == passes
