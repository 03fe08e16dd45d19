"""Audio to latents: one way for pipelines, guard and trainers."""

from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch

from musicldm.audio import read_audio
from musicldm.models.latents import encode_image, latent_factor, model_waveform, padded_image
from tests.helpers.tiny import MEL
from vocoder import log_mel_spectrogram

SAMPLES = MEL.clip_samples


def noise(*shape):
    return 0.3 * torch.randn(shape, generator=torch.Generator().manual_seed(0)).clamp(-3, 3)


@torch.no_grad()
def test_latents_are_the_mode_that_the_vae_gives_scaled(tiny_pipeline):
    vae, audio = tiny_pipeline.vae, noise(2, SAMPLES)
    mode = vae.encode(log_mel_spectrogram(audio, MEL)[:, None, :-1]).latent_dist.mode()  # a whole clip, as trainers do
    latents = tiny_pipeline.encode_audio(audio, MEL.sample_rate)
    assert latents.shape == (2, 4, 8, 4)
    torch.testing.assert_close(latents, 0.8 * mode)
    posterior = encode_image(vae, padded_image(audio, MEL, latent_factor(vae)))
    assert posterior.parameters.shape == (2, 8, 8, 4)
    assert torch.equal(latents, 0.8 * posterior.mean)


@pytest.mark.parametrize("n_samples", [1, 100, MEL.n_fft, 320, 321, 2 * SAMPLES + 7])
def test_any_length_is_padded_with_silence(tiny_pipeline, n_samples):
    audio = noise(n_samples)
    latents = tiny_pipeline.encode_audio(audio, MEL.sample_rate)
    frames = -(-n_samples // (MEL.hop_length * latent_factor(tiny_pipeline.vae)))
    assert latents.shape == (1, 4, frames, 4)
    silence = torch.zeros(frames * 4 * MEL.hop_length - n_samples)
    padded = tiny_pipeline.encode_audio(torch.cat([audio, silence]).numpy(), MEL.sample_rate)
    assert torch.equal(latents, padded)


@pytest.mark.parametrize("rate", [8000, 11_025, 44_100])
def test_rate_and_channels_are_brought_to_the_models_as_by_reading_a_file(tiny_pipeline, rate, tmp_path):
    stereo = noise(2, rate // 2).numpy()
    soundfile.write(tmp_path / "a.wav", stereo.T, rate, "FLOAT")
    as_read, _ = read_audio(tmp_path / "a.wav", MEL.sample_rate)
    assert torch.equal(tiny_pipeline.encode_audio(stereo[None], rate), tiny_pipeline.encode_audio(as_read, 8000))


def test_latents_do_not_depend_on_the_batch(exact_pipeline):
    """In float64, where products of other sizes differ by no more than that rounds."""
    audio = noise(3, SAMPLES).double()
    together = exact_pipeline.encode_audio(audio, MEL.sample_rate)
    assert together.dtype == torch.float64
    torch.testing.assert_close(
        together[1:2], exact_pipeline.encode_audio(audio[1], MEL.sample_rate), atol=1e-10, rtol=0
    )


@pytest.mark.parametrize(
    ("audio", "rate", "message"),
    [
        (np.zeros((1, 1, 2, 9)), 8000, r"audio must be \(L,\), .* got shape \(1, 1, 2, 9\)"),
        (np.zeros(0), 8000, r"at least one sample, got shape \(0,\)"),
        (np.full(900, np.nan), 8000, "NaN or infinity"),
        (np.zeros(900), 0, "sampling_rate must be .* got 0"),
        (np.zeros(900), 8000.5, "sampling_rate must be .* got 8000.5"),
        (np.zeros(900), None, "sampling_rate must be .* got None"),
        (np.zeros(1), 44_100, "shorter than one sample at 8000 Hz"),
    ],
)
def test_what_is_no_audio_is_refused(tiny_pipeline, audio, rate, message):
    with pytest.raises(ValueError, match=message):
        tiny_pipeline.encode_audio(audio, rate)


def test_stereo_models_take_both_channels_or_one_for_both():
    mel = replace(MEL, audio_channels=2, bands_per_row=2)
    stereo = noise(3, 2, SAMPLES)
    assert torch.equal(model_waveform(stereo, 8000, mel), stereo)
    both = model_waveform(stereo[:, 0], 8000, mel)
    assert both.shape == stereo.shape
    assert torch.equal(both[:, 0], both[:, 1])
    assert model_waveform(stereo, 16_000, mel).shape == (3, 2, SAMPLES // 2)
    assert padded_image(stereo, mel, 4).shape == (3, 6, 32, 8)  # mid, side and balance of two bands each
    with pytest.raises(ValueError, match="audio of 3 channels for a model of 2; give as many, or 1"):
        model_waveform(noise(1, 3, 900), 8000, mel)
