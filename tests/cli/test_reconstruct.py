"""What `reconstruct` measures is what it says, and working in windows changes nothing that it should not."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from musicldm.generate.reconstruct import VOCODER_CONTEXT, in_windows, reconstruct, vae_window
from vocoder import MelConfig, log_mel_spectrogram, make_generator, mel_config, spectrogram_planes, vocode_planes


def music(seconds, rate, seed=0):
    """Decaying notes of a scale, one each 0.1 s."""
    rng = np.random.default_rng(seed)
    time_s = np.arange(round(seconds * rate)) / rate
    pitch = 220 * 2 ** (rng.integers(0, 24, len(time_s) // (rate // 10) + 1)[(time_s * 10).astype(int)] / 12)
    return (0.5 * np.sin(2 * np.pi * np.cumsum(pitch) / rate) * np.exp(-8 * (time_s % 0.1))).astype(np.float32)


def log_mel(waveform, mel):
    return log_mel_spectrogram(torch.from_numpy(waveform)[None], mel)[0].numpy()


@pytest.mark.parametrize("n_samples", [256, 257, 4000, 5120, 20_003])
def test_length_and_errors(tiny_parts, n_samples):
    vae, vocoder = tiny_parts["vae"], tiny_parts["vocoder"]
    mel = mel_config(vocoder)
    original = music(3, mel.sample_rate)[:n_samples]
    result = reconstruct(original, vae, vocoder)
    assert result.waveform.shape == original.shape
    expected = np.abs(log_mel(result.waveform, mel) - log_mel(original, mel)).mean()
    assert result.log_mel_error == pytest.approx(expected, rel=1e-5)
    alone = reconstruct(original, None, vocoder)
    assert alone.vae_error is None
    assert not np.array_equal(alone.waveform, result.waveform)


def test_autoencoder_alone(tiny_parts):
    """One window: the error is that of encoding and decoding the log-mel as it is."""
    vae, vocoder = tiny_parts["vae"], tiny_parts["vocoder"]
    mel = mel_config(vocoder)
    original = music(mel.clip_s, mel.sample_rate)
    frames = torch.from_numpy(log_mel(original, mel)[: mel.clip_frames])[None, None]
    with torch.no_grad():
        back = vae.decode(vae.encode(frames).latent_dist.mode()).sample
    result = reconstruct(original, vae, vocoder)
    assert result.vae_error == pytest.approx(float((back - frames).abs().mean()), rel=1e-4)
    with torch.no_grad():
        waveform = vocoder(back[:, 0])[0, : len(original)]
    assert np.abs(result.waveform - waveform.numpy()).max() < 1e-5


def test_without_autoencoder_it_is_the_vocoder(tiny_parts):
    vocoder = tiny_parts["vocoder"]
    mel = mel_config(vocoder)
    original = music(0.5, mel.sample_rate)
    with torch.no_grad():
        waveform = vocoder(torch.from_numpy(log_mel(original, mel)[:50])[None])[0, :4000]
    assert np.abs(reconstruct(original, None, vocoder).waveform - waveform.numpy()).max() < 1e-5


def test_stereo_stays_where_it_is_even_if_the_vocoder_knows_nothing():
    """Balance needs no training: what sounds in all bands on one side comes back there, as whatever noise."""
    torch.manual_seed(0)
    mel = MelConfig(sample_rate=24_000, n_fft=512, hop_length=120, n_mels=32, f_max=12_000.0, audio_channels=2)
    vocoder = make_generator(mel, 16, (5, 4, 3, 2), (9, 8, 7, 6)).eval()
    hiss = np.random.default_rng(0).normal(0, 0.01, mel.sample_rate).astype(np.float32)
    original = np.stack([music(1, mel.sample_rate) + hiss, np.zeros_like(hiss)])
    left = reconstruct(original, None, vocoder)
    assert left.waveform.shape == original.shape
    assert np.square(left.waveform[1]).mean() < 1e-3 * np.square(left.waveform[0]).mean()  # 30 dB
    np.testing.assert_allclose(reconstruct(original[::-1], None, vocoder).waveform, left.waveform[::-1], atol=1e-5)
    made, first = (spectrogram_planes(torch.from_numpy(one.copy())[None], mel) for one in (left.waveform, original))
    assert left.log_mel_error == pytest.approx(float((made - first)[:, :2].abs().mean()), rel=1e-5)


def test_windows_join_exactly_where_the_context_covers_the_network():
    torch.manual_seed(0)
    planes = torch.randn(1, 2, 200, 8)
    convolve = nn.Conv2d(2, 2, (9, 1), padding=(4, 0))  # hears 4 frames to either side
    with torch.no_grad():
        whole = convolve(planes)
        assert (in_windows(convolve, planes, 32, 4) - whole).abs().max() < 1e-6
        assert (in_windows(convolve, planes, 32, 3) - whole).abs().max() > 1e-3  # or the test would show nothing
        assert torch.equal(in_windows(convolve, planes, 200, 4), whole)


@pytest.mark.parametrize("channels", [1, 2])
def test_vocoder_in_windows_equals_the_whole(channels):
    """The released generator's rates and kernels, and what joins channels, reach less far than the context."""
    torch.manual_seed(0)
    mel = MelConfig(audio_channels=channels)
    vocoder = make_generator(mel, 32, (5, 4, 2, 2, 2), (16, 16, 8, 4, 4)).eval()
    planes = torch.randn(1, mel.planes, 300, mel.n_mels)
    vocode = partial(vocode_planes, vocoder, config=mel)
    with torch.no_grad():
        whole = vocode(planes)[..., : 300 * mel.hop_length]
        parts = in_windows(vocode, planes, 256, VOCODER_CONTEXT, mel.hop_length, axis=-1)
        apart = in_windows(vocode, planes, 256, 1, mel.hop_length, axis=-1)
    assert parts.shape == whole.shape
    assert (parts - whole).abs().max() < 1e-5
    assert (apart - whole).abs().max() > 1e-3  # too little context does show


@pytest.mark.parametrize(("clip_s", "factor"), [(10.24, 4), (10.24, 8), (0.64, 4), (0.01, 8)])
def test_windows_are_whole_latents(clip_s, factor):
    size, context = vae_window(MelConfig(clip_s=clip_s), factor)
    assert size % factor == context % factor == 0
    assert 0 < 2 * context < size
    if clip_s == 10.24:
        assert (size, context) == (1024, 64)


def test_long_recordings(tiny_parts):
    """Several windows of the autoencoder: as long as the original, and mostly as in one window."""
    vae, vocoder = tiny_parts["vae"], tiny_parts["vocoder"]
    original = music(4, 8000)
    result = reconstruct(original, vae, vocoder)
    assert result.waveform.shape == original.shape
    assert result.vae_error == pytest.approx(reconstruct(original[:16_000], vae, vocoder).vae_error, rel=0.2)


def test_shorter_than_a_frame(tiny_parts):
    with pytest.raises(
        ValueError, match=r"255 samples are shorter than one frame of 256 samples \(0\.032 s at 8000 Hz\)"
    ):
        reconstruct(np.zeros(255, np.float32), None, tiny_parts["vocoder"])


def test_models_that_do_not_fit(tiny_parts):
    vocoder = make_generator(MelConfig(n_mels=18), 32, (5, 4, 4, 2), (9, 8, 8, 4))
    with pytest.raises(ValueError, match=r"18 mel bands are no multiple of the VAE's factor 4"):
        reconstruct(np.zeros(16_000, np.float32), tiny_parts["vae"], vocoder)
