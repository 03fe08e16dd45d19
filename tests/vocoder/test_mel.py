"""The log-mel front end and the generator that belongs to it."""

import json
import sys

import librosa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import SpeechT5HifiGan
from transformers.audio_utils import mel_filter_bank

from musicldm.config import VocoderConfig
from vocoder import MelConfig, log_mel_spectrogram, make_generator, mel_config
from vocoder.losses import AdversarialLosses, mel_loss, multi_resolution_stft_loss
from vocoder.mel import mel_filters


@settings(deadline=None, max_examples=25)
@given(
    n_mels=st.integers(1, 128),
    n_fft=st.sampled_from([256, 1000, 1024, 2048]),
    rate=st.sampled_from([16_000, 22_050, 48_000]),
    f_min=st.floats(0, 500),
)
def test_filters_are_those_of_librosa(n_mels, n_fft, rate, f_min):
    config = MelConfig(sample_rate=rate, n_fft=n_fft, hop_length=160, n_mels=n_mels, f_min=f_min, f_max=7000.0)
    expected = librosa.filters.mel(sr=rate, n_fft=n_fft, n_mels=n_mels, fmin=f_min, fmax=7000.0)
    torch.testing.assert_close(mel_filters(config), torch.from_numpy(expected), rtol=1e-4, atol=1e-7)


def transformers_filters(config: MelConfig) -> torch.Tensor:
    """Filters (F, K) of `transformers.audio_utils`."""
    sizes = config.n_fft // 2 + 1, config.n_mels, config.f_min, config.f_max
    filters = mel_filter_bank(*sizes, config.sample_rate, norm="slaney", mel_scale="slaney")
    return torch.from_numpy(filters.T).float()


@pytest.mark.parametrize(("rate", "n_fft", "n_mels"), [(16_000, 1024, 64), (44_100, 2048, 128), (48_000, 1024, 64)])
def test_filters_are_those_of_transformers_at_even_rates_only(rate, n_fft, n_mels):
    config = MelConfig(sample_rate=rate, n_fft=n_fft, hop_length=160, n_mels=n_mels, f_max=7000.0)
    torch.testing.assert_close(mel_filters(config), transformers_filters(config), rtol=1e-6, atol=1e-10)
    odd = MelConfig(sample_rate=11_025, n_fft=512, hop_length=160, n_mels=40, f_max=5000.0)
    exact = torch.from_numpy(librosa.filters.mel(sr=11_025, n_fft=512, n_mels=40, fmin=0.0, fmax=5000.0))
    error, theirs = ((filters - exact).abs().max() for filters in (mel_filters(odd), transformers_filters(odd)))
    assert 100 * error < theirs  # why the filters are computed here


@settings(deadline=None, max_examples=20)
@given(n_samples=st.integers(513, 5000), batch=st.integers(1, 3))
def test_frames_and_batches(n_samples, batch):
    waveform = torch.randn(batch, n_samples, generator=torch.Generator().manual_seed(n_samples)) / 4
    mel = log_mel_spectrogram(waveform, MelConfig())
    assert mel.shape == (batch, 1 + n_samples // 160, 64)
    torch.testing.assert_close(mel[-1:], log_mel_spectrogram(waveform[-1:], MelConfig()), rtol=1e-4, atol=1e-4)


def test_a_tone_lights_its_band():
    time = torch.arange(16_000) / 16_000
    mel = log_mel_spectrogram(torch.sin(2 * torch.pi * 1000 * time)[None], MelConfig())
    centres = librosa.mel_frequencies(66, fmin=0, fmax=8000)[1:-1]
    assert abs(centres[int(mel[0, 50].argmax())] - 1000) < 60


def test_silence_has_a_finite_gradient_and_loud_samples_are_clipped():
    waveform = torch.zeros(1, 2000, requires_grad=True)
    log_mel_spectrogram(waveform, MelConfig()).sum().backward()
    assert torch.isfinite(waveform.grad).all()
    loud = 3 * torch.sin(torch.arange(4000) / 10)[None]
    clipped = log_mel_spectrogram(loud.clamp(-1, 1), MelConfig())
    torch.testing.assert_close(log_mel_spectrogram(loud, MelConfig()), clipped)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"hop_length": 2000}, "hop_length"),
        ({"f_max": 9000.0}, "8000"),
        ({"floor": 0.0}, "floor"),
        ({"n_mels": 0}, "0"),
        ({"audio_channels": 3}, "audio_channels must be 1 .* got 3"),
        ({"bands_per_row": 3}, r"divide n_mels \(64\), got 3"),
    ],
)
def test_impossible_front_ends_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        MelConfig(**wrong)


def test_a_front_end_first_used_in_inference_mode_can_train_later():
    config = MelConfig(sample_rate=8000, n_fft=128, hop_length=32, n_mels=9, f_max=4000.0)  # used by no other test
    with torch.inference_mode():
        log_mel_spectrogram(torch.randn(1, 256), config)
    waveform = torch.randn(1, 256, requires_grad=True)
    log_mel_spectrogram(waveform, config).sum().backward()
    assert waveform.grad.isfinite().all()


def test_waveforms_of_the_wrong_shape_or_length_are_refused():
    with pytest.raises(ValueError, match="batch, samples"):
        log_mel_spectrogram(torch.zeros(1000), MelConfig())
    with pytest.raises(ValueError, match="at least 513"):
        log_mel_spectrogram(torch.zeros(1, 512), MelConfig())


def test_the_front_end_travels_with_the_generator(tmp_path):
    mel = MelConfig(sample_rate=24_000, n_fft=512, hop_length=120, n_mels=20, f_max=11_000.0, clip_s=5.0)
    make_generator(mel, 16, (5, 6, 4), (11, 12, 8)).save_pretrained(tmp_path)
    generator = SpeechT5HifiGan.from_pretrained(tmp_path)
    assert mel_config(generator) == mel
    assert generator(torch.zeros(1, 10, 20)).shape == (1, 1200)


def test_channels_and_packing_travel_too_and_mono_is_written_as_before(tmp_path):
    stereo = MelConfig(audio_channels=2, bands_per_row=2)
    for name, mel in (("stereo", stereo), ("mono", MelConfig())):
        make_generator(mel, 32, (5, 4, 2, 2, 2), (16, 16, 8, 4, 4)).save_pretrained(tmp_path / name)
        assert mel_config(SpeechT5HifiGan.from_pretrained(tmp_path / name)) == mel
    written = json.loads((tmp_path / "mono" / "config.json").read_text())["mel"]
    assert set(written) == {"sample_rate", "n_fft", "hop_length", "n_mels", "f_min", "f_max", "floor", "clip_s"}
    assert "audio_channels" not in repr(MelConfig())  # caches of spectrograms are known by it
    assert repr(stereo).endswith("clip_s=10.24, audio_channels=2, bands_per_row=2)")


def test_a_published_generator_without_the_entry_is_understood(tmp_path):
    generator = make_generator(MelConfig(), 32, (5, 4, 2, 2, 2), (16, 16, 8, 4, 4))
    del generator.config.mel
    assert mel_config(generator) == MelConfig()


def test_generators_that_do_not_fit_the_hop_are_refused():
    with pytest.raises(ValueError, match="multiply to 80"):
        make_generator(MelConfig(), 32, (5, 4, 4), (16, 16, 8))


def test_losses_are_zero_for_equal_waveforms_and_grow_with_noise():
    generator = torch.Generator().manual_seed(0)
    real = torch.randn(2, 8192, generator=generator) / 5
    noise = torch.randn(2, 8192, generator=generator)
    for loss in (lambda x: mel_loss(x, real, MelConfig()), lambda x: multi_resolution_stft_loss(x, real)):
        assert loss(real) == 0
        assert loss(real + 0.01 * noise) < loss(real + 0.1 * noise)


def test_longer_frames_tell_nearer_tones_apart():
    for rate in (22_050, 44_100):
        at_s = torch.arange(rate, dtype=torch.float64) / rate
        low, high = (0.3 * (2 * torch.pi * hz * at_s).sin()[None] for hz in (440.0, 446.0))
        assert multi_resolution_stft_loss(low, high, scale=2) > 1.1 * multi_resolution_stft_loss(low, high)
    with pytest.raises(ValueError, match="above 2048, 1024 x stft_scale"):
        VocoderConfig(segment_samples=2048, stft_weight=1.0, stft_scale=2)


@pytest.mark.slow
def test_discriminators_learn_to_tell_and_feed_the_generator():
    torch.manual_seed(0)
    losses = AdversarialLosses()
    optimizer = torch.optim.Adam(losses.parameters(), lr=1e-3)
    real = torch.sin(torch.arange(4096) / 5).repeat(2, 1)
    fake = (torch.randn(2, 4096) / 3).requires_grad_()
    first = losses.discriminator_loss(fake, real)
    for _ in range(3):
        optimizer.zero_grad()
        loss = losses.discriminator_loss(fake, real)
        loss.backward()
        optimizer.step()
    assert losses.discriminator_loss(fake, real) < first
    assert fake.grad is None  # the discriminator's loss must not reach the generator
    parts = losses.generator_losses(fake, real)
    (parts["adversarial"] + parts["features"]).backward()
    assert fake.grad.abs().sum() > 0


def test_loaded_modules_can_be_looked_through_afterwards():
    """speechbrain leaves modules behind that fail when they are only looked at; hypothesis and inspect do that."""
    AdversarialLosses()
    assert "speechbrain.lobes.models.HifiGAN" in sys.modules
    assert not [
        name for name, module in list(sys.modules.items()) if type(module).__name__ == "DeprecatedModuleRedirect"
    ]
    for module in list(sys.modules.values()):
        hasattr(module, "__wrapped__")
