"""A UNet's condition at the start of training: whitened, and forgotten where CLAP is another."""

import numpy as np
import pytest
import torch

from musicldm.config import DiffusionConfig
from musicldm.train.diffusion.cache import Cache
from musicldm.train.diffusion.whitening import condition_moments, fit_condition, forget_condition
from tests.helpers.tiny import EMBEDDING, make_unet


def narrow_embeddings(n: int, seed: int) -> np.ndarray:
    """Unit vectors (n, D) around a common mean, along axes that differ in variance by five orders of magnitude."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((n, EMBEDDING)) * np.logspace(0, -2.5, EMBEDDING) + 0.3
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def cache_of(audio: np.ndarray, text: np.ndarray, texts_each: int) -> Cache:
    return Cache(np.zeros((len(audio), 1)), audio, text, np.arange(len(audio) + 1) * texts_each)


def test_moments_are_those_of_drawn_conditions():
    audio, text, empty = narrow_embeddings(40, 0), -narrow_embeddings(80, 1), narrow_embeddings(1, 2)[0]
    config = DiffusionConfig(text_condition=0.25, text_condition_last=0.75, drop_condition=0.2)
    mean, covariance = condition_moments(cache_of(audio, text, 2), list(range(40)), empty, config)
    # 0.2 of draws are empty, 0.4 audio, 0.4 text: the same shares, as a table of rows
    drawn = np.concatenate([np.repeat(empty[None], 40, axis=0), np.repeat(audio, 2, axis=0), text])
    np.testing.assert_allclose(mean, drawn.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(covariance, np.cov(drawn.T, bias=True), atol=1e-6)


def test_without_captions_audio_is_all_there_is():
    audio = narrow_embeddings(40, 0)
    config = DiffusionConfig(text_condition=1.0, drop_condition=0.0)
    mean, _ = condition_moments(cache_of(audio, np.zeros((0, EMBEDDING)), 0), list(range(40)), audio[0], config)
    np.testing.assert_allclose(mean, audio.mean(axis=0), atol=1e-6)


def test_a_fitted_projection_evens_out_the_directions():
    rows = narrow_embeddings(4000, 3)
    unet = make_unet()
    fit_condition(unet, rows.mean(axis=0, dtype=np.float64), np.cov(rows.T.astype(np.float64), bias=True), seed=0)
    with torch.no_grad():
        heard = unet.class_embedding(torch.from_numpy(rows)).numpy()
    assert abs(heard.mean(axis=0)).max() < 0.5  # the bias is rounded to bfloat16
    assert 0.9 < heard.var(axis=0).mean() < 1.1
    before, after = (np.linalg.eigvalsh(np.cov(x.T))[::-1] for x in (rows, heard))
    assert before[0] > 100 * before[EMBEDDING // 2]
    assert after[0] < 2 * after[EMBEDDING // 2]


def test_what_autocast_hears_is_what_float32_hears():
    rows = narrow_embeddings(100, 4)
    unet = make_unet()
    fit_condition(unet, rows.mean(axis=0, dtype=np.float64), np.cov(rows.T.astype(np.float64)), seed=0)
    for value in unet.class_embedding.parameters():
        assert torch.equal(value, value.bfloat16().float())


@torch.no_grad()
def test_a_deaf_unet_plays_as_for_the_empty_text():
    unet = make_unet().eval()
    sample, time = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([3, 700])
    empty, other = torch.from_numpy(narrow_embeddings(2, 5))[:, None]
    before = unet(sample, time, encoder_hidden_states=None, class_labels=empty.expand(2, -1)).sample
    heard = unet(sample, time, encoder_hidden_states=None, class_labels=-other.expand(2, -1)).sample
    assert not torch.allclose(before, heard, atol=1e-5)
    forget_condition(unet, empty[0])
    for condition in (empty, -other):
        after = unet(sample, time, encoder_hidden_states=None, class_labels=condition.expand(2, -1)).sample
        torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("embedding", [8, 64])
def test_a_projection_to_fewer_or_more_numbers_is_fitted_too(embedding):
    unet = make_unet(projection_class_embeddings_input_dim=embedding)
    rows = np.random.default_rng(0).standard_normal((1000, embedding)) * np.linspace(0.01, 1, embedding)
    fit_condition(unet, rows.mean(axis=0), np.cov(rows.T), seed=0)
    with torch.no_grad():
        heard = unet.class_embedding(torch.from_numpy(rows).float())
    assert 0.8 < float(heard.var(dim=0).mean()) < 1.2
