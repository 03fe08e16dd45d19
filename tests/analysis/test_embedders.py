"""Embedders: CLAP, networks of transformers, log-mel statistics."""

import numpy as np
import pytest
import torch

from musicldm.analysis.embedders import LogMelEmbedder, TransformersEmbedder, fingerprint, log_mel_statistics
from musicldm.audio.resampling import resample
from musicldm.models.clap_embedder import ClapEmbedder
from tests.helpers.melodies import RATE, tones


def test_embedders(tiny_parts, tiny_folder, tmp_path):
    from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

    waveforms = torch.from_numpy(np.stack([tones([60]), tones([70])]))
    given = ClapEmbedder(tiny_parts["text_encoder"], tiny_parts["feature_extractor"])
    read = ClapEmbedder.from_model(tiny_folder)
    assert given.name == f"clap-{fingerprint(tiny_parts['text_encoder'], 'audio_')}"
    assert read.name == f"{given.name}-8000-Hz"  # that of its vocoder
    assert np.allclose(given(resample(waveforms, RATE, 8000), 8000), read(waveforms, RATE), atol=1e-6)
    rounded = ClapEmbedder.from_model(tiny_folder)
    half = ClapEmbedder(rounded.clap.half(), rounded.feature_extractor)
    assert half.name == given.name
    assert "bfloat16" in ClapEmbedder(rounded.clap.bfloat16(), rounded.feature_extractor).name
    assert np.linalg.norm(read(waveforms, RATE), axis=1) == pytest.approx([1, 1], abs=1e-5)
    assert LogMelEmbedder()(waveforms, RATE).shape == (2, 256)
    low = ClapEmbedder(given.clap, given.feature_extractor, music_rate=4000)  # as a model would play it
    assert low.name == f"{given.name}-4000-Hz"
    played = resample(waveforms, RATE, 4000)
    assert np.allclose(low(waveforms, RATE), given(played, 4000), atol=1e-6)
    assert np.allclose(low(played, 4000), given(played, 4000), atol=1e-6)
    assert ClapEmbedder(given.clap, given.feature_extractor, 96_000).name == given.name
    with pytest.raises(ValueError, match="lacks one"):
        ClapEmbedder(tiny_parts["text_encoder"], None)

    config = Wav2Vec2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, conv_dim=[8] * 7,
        num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2,
    )  # fmt: skip
    Wav2Vec2Model(config).save_pretrained(tmp_path)
    Wav2Vec2FeatureExtractor().save_pretrained(tmp_path)
    embedder = TransformersEmbedder(tmp_path, layer=1)
    assert embedder(waveforms, RATE).shape == (2, 16)
    assert np.allclose(embedder(waveforms * 0.1, RATE), embedder(waveforms, RATE), atol=1e-3)  # loudness is taken out
    Wav2Vec2FeatureExtractor(do_normalize=False).save_pretrained(tmp_path)
    embedder = TransformersEmbedder(tmp_path, layer=0)
    assert not np.allclose(embedder(waveforms * 0.1, RATE), embedder(waveforms, RATE), atol=1e-3)


def test_log_mel_statistics_tell_a_tremolo_from_a_steady_tone():
    time = torch.arange(32_000) / 16_000
    steady = 0.5 * torch.sin(2 * torch.pi * 440 * time)
    tremolo = steady * (1 + torch.sin(2 * torch.pi * 8 * time)) / 2
    level, contrast, onsets, _ = log_mel_statistics(torch.stack([steady, tremolo])).view(2, 4, 64).unbind(1)
    loudest = int(level[0].argmax())
    assert contrast[1, loudest] > 5 * contrast[0, loudest]
    assert onsets[1, loudest] > 5 * onsets[0, loudest]
