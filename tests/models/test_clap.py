"""CLAP's front end against transformers' own, and the properties of embeddings, resampling and the tokenizer."""

import copy
import math
import warnings

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, ClapConfig, ClapFeatureExtractor, ClapModel, RobertaTokenizer

from musicldm.models.clap import (
    clap_feature_extractor,
    clap_log_mel,
    contrary_loss,
    contrastive_loss,
    embed_audio,
    embed_log_mel,
    embed_text,
    fit_to_clip,
    fused_log_mel,
    read_tempo,
    resample,
    tempo_loss,
    train_tokenizer,
    views_loss,
)

CAPTIONS = ["a slow waltz for solo piano", "fast drums and bass", "solo piano, slow", "a string quartet in C minor"] * 5


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(CAPTIONS, 300)


def make_clap(tokenizer, **audio):
    torch.manual_seed(0)
    config = ClapConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "max_position_embeddings": 34,
        },
        audio_config={
            "spec_size": 64,
            "num_mel_bins": 16,
            "window_size": 4,
            "patch_embeds_hidden_size": 8,
            "depths": [2, 2],
            "num_attention_heads": [1, 2],
            "hidden_size": 16,
            **audio,
        },
        projection_dim=24,
    )
    return ClapModel(config).eval()


@pytest.fixture(scope="module")
def clap(tokenizer):
    return make_clap(tokenizer)


@pytest.fixture(scope="module")
def small():
    """Another rate and length than the released CLAP's: 2.5 s at 16 kHz, 16 bands."""
    return clap_feature_extractor(sample_rate=16_000, clip_s=2.5, hop_length=160, n_mels=16, f_max=8000.0)


def noise(batch, length, seed=0):
    return 0.1 * torch.randn(batch, length, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("padding", ["repeatpad", "repeat", "pad"])
@pytest.mark.parametrize("length", [700, 17_000, 40_000])
def test_log_mel_equals_transformers(small, length, padding):
    extractor = ClapFeatureExtractor.from_dict(small.to_dict() | {"padding": padding, "max_length_s": 2})
    waveforms = noise(2, min(length, 32_000))
    expected = extractor(list(waveforms.numpy()), sampling_rate=16_000, return_tensors="pt")["input_features"]
    actual = clap_log_mel(waveforms, extractor)
    assert actual.shape == expected.shape == (2, 1, 201, 16)
    assert (actual - expected).abs().max() < 1e-2


def test_released_extractor_starts_at_50_hz():
    extractor = clap_feature_extractor()
    assert (extractor.frequency_min, extractor.truncation, extractor.nb_max_samples) == (50.0, "rand_trunc", 480_000)
    assert clap_log_mel(noise(1, 1000), extractor).shape == (1, 1, 1001, 64)


def test_extractor_survives_saving(small, tmp_path):
    small.save_pretrained(tmp_path)
    loaded = ClapFeatureExtractor.from_pretrained(tmp_path)
    assert loaded.to_dict() == small.to_dict()
    assert torch.equal(clap_log_mel(noise(1, 999), loaded), clap_log_mel(noise(1, 999), small))


def test_longer_audio_is_cropped_in_the_middle_or_at_random(small):
    waveforms = torch.arange(50_000.0).repeat(3, 1)
    centre = fit_to_clip(waveforms, small)
    assert centre[:, 0].tolist() == [(50_000 - 40_000) // 2] * 3
    crops = fit_to_clip(waveforms, small, torch.Generator().manual_seed(1))
    assert crops.shape == (3, 40_000)
    assert len(set(crops[:, 0].tolist())) == 3
    again = fit_to_clip(waveforms, small, torch.Generator().manual_seed(1))
    assert torch.equal(crops, again)


@pytest.mark.parametrize(("from_rate", "to_rate"), [(16_000, 48_000), (44_100, 16_000), (44_101, 48_000), (7, 3)])
def test_resampled_sine_is_the_sine_at_the_other_rate(from_rate, to_rate):
    frequency = 0.05 * min(from_rate, to_rate)
    length = 3 * from_rate if from_rate < 100 else from_rate // 4
    length = max(length, 200)
    wave = torch.sin(2 * math.pi * frequency / from_rate * torch.arange(length, dtype=torch.float64))
    out = resample(wave, from_rate, to_rate)
    assert len(out) == math.ceil(length * to_rate / from_rate)
    expected = torch.sin(2 * math.pi * frequency / to_rate * torch.arange(len(out), dtype=torch.float64))
    margin = 10 * max(1, math.ceil(to_rate / from_rate))
    assert (out - expected)[margin:-margin].abs().max() < 5e-3


def test_resampling_removes_what_the_lower_rate_cannot_hold():
    wave = torch.sin(2 * math.pi * 12_000 / 48_000 * torch.arange(4800))
    assert resample(wave, 48_000, 16_000)[20:-20].abs().max() < 1e-2


def test_resampling_is_the_literal_sum():
    """Against the definition, sample by sample."""
    source, target = 3, 5
    x = noise(1, 40)[0].double().numpy()
    cutoff = 0.99 * min(source, target) / source
    expected = []
    for n in range(math.ceil(40 * target / source)):
        t = (np.arange(40) - n * source / target) * cutoff
        inside = np.abs(t) < 6
        expected.append(np.sum(x * np.sinc(t) * np.where(inside, np.cos(t * np.pi / 12) ** 2, 0) * cutoff))
    assert np.allclose(resample(torch.from_numpy(x), source, target).numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("rate", [0, -1, 16_000.5])
def test_impossible_rate_is_refused(rate):
    with pytest.raises(ValueError, match="positive whole"):
        resample(torch.zeros(10), rate, 16_000)


def test_audio_embeddings_are_unit_rows_independent_of_the_batch(clap, small):
    waveforms = noise(3, 30_000)
    with torch.no_grad():
        together = embed_audio(clap, small, waveforms, 22_050)
        alone = embed_audio(clap, small, waveforms[1:2], 22_050)
    assert together.shape == (3, 24)
    assert torch.allclose(together.norm(dim=1), torch.ones(3), atol=1e-5)
    assert (together[1:2] - alone).abs().max() < 1e-5


def test_gradients_reach_the_waveform_and_the_model(clap, small):
    waveforms = noise(2, 20_000).requires_grad_()
    embed_audio(clap, small, waveforms, 8_000).sum().backward()
    assert waveforms.grad.abs().sum() > 0
    assert clap.audio_projection.linear1.weight.grad.abs().sum() > 0
    clap.zero_grad()


@pytest.mark.parametrize(
    ("waveforms", "message"),
    [
        (torch.zeros(1, 0), "at least one sample"),
        (torch.zeros(10), "batch, samples"),
        (torch.tensor([[1, math.nan]]), "NaN"),
    ],
)
def test_bad_audio_is_refused(clap, small, waveforms, message):
    with pytest.raises(ValueError, match=message):
        embed_audio(clap, small, waveforms, 16_000)


def test_clip_that_the_audio_tower_cannot_hold_is_refused(clap):
    longer = clap_feature_extractor(sample_rate=16_000, clip_s=2.56, hop_length=160, n_mels=16, f_max=8000.0)
    with pytest.raises(ValueError, match=r"257 frames of 16 bands.* 256 of 16"):
        embed_audio(clap, longer, noise(1, 1000), 16_000)


@pytest.mark.parametrize("seconds", [0.7, 2, 5.3])
def test_log_mel_for_fusion_equals_transformers(seconds):
    extractor = clap_feature_extractor(16_000, 2, hop_length=160, f_max=8000.0, fusion=True)
    waveforms = noise(2, round(seconds * 16_000))
    expected = extractor(list(waveforms.numpy()), sampling_rate=16_000, return_tensors="pt")["input_features"]
    actual = fused_log_mel(waveforms, extractor)
    longer = seconds > 2
    assert actual.shape == (2, 4 if longer else 1, 201, 64)
    assert (actual[:, 0] - expected[:, 0]).abs().max() < 1e-2
    if longer:  # transformers draws the clips at random
        whole = extractor._np_extract_fbank_features(waveforms[0].double().numpy(), extractor.mel_filters)
        start = (len(whole) - 200) // 2
        for clip, first in ((1, 0), (2, start), (3, len(whole) - 201)):
            assert np.abs(actual[0, clip].numpy() - whole[first : first + 201]).max() < 1e-2
        drawn = fused_log_mel(waveforms, extractor, torch.Generator().manual_seed(0))
        assert torch.equal(drawn[:, 0], actual[:, 0])
        places = [[torch.cdist(clip[:1], torch.from_numpy(whole).float()).argmin().item() for clip in drawn[0, 1:]]]
        assert [3 * place // (len(whole) - 200) for place in places[0]] == [0, 1, 2]


def test_a_model_with_fusion_hears_all_of_a_long_recording(tokenizer, clap, small):
    fused = make_clap(tokenizer, enable_fusion=True)
    extractor = ClapFeatureExtractor.from_dict(small.to_dict() | {"truncation": "fusion", "max_length_s": 2})
    waveforms = noise(2, 100_000)
    other_end = torch.cat([waveforms[:, :-8000], noise(2, 8000, seed=1)], dim=1)
    with torch.no_grad():
        heard = [embed_audio(fused, extractor, x, 16_000) for x in (waveforms, other_end)]
        cropped = [embed_audio(clap, small, x, 16_000) for x in (waveforms, other_end)]
        features = extractor(list(waveforms[:, :9000].numpy()), sampling_rate=16_000, return_tensors="pt")
        short = fused.get_audio_features(features["input_features"], is_longer=torch.zeros(2, 1, dtype=torch.bool))
        ours = embed_audio(fused, extractor, waveforms[:, :9000], 16_000)
    assert torch.equal(*cropped)
    assert (heard[0] - heard[1]).abs().max() > 1e-5
    short = short if isinstance(short, torch.Tensor) else short.pooler_output
    assert (ours - short).abs().max() < 1e-4


def test_fusion_extractor_is_named(small):
    fusion = ClapFeatureExtractor.from_dict(small.to_dict() | {"truncation": "fusion"})
    with pytest.warns(UserWarning, match="fusion"):
        log_mel = clap_log_mel(noise(1, 1000), fusion)
    assert torch.equal(log_mel, clap_log_mel(noise(1, 1000), small))


def test_half_precision_model_embeds_audio(clap, small):
    half = copy.deepcopy(clap).to(torch.bfloat16)
    log_mel = clap_log_mel(noise(1, 30_000), small)
    with torch.no_grad():
        rough, exact = embed_log_mel(half, log_mel), embed_log_mel(clap, log_mel)
    assert rough.dtype == torch.bfloat16
    assert (rough.float() - exact).norm() < 0.05


def test_text_embedding_does_not_depend_on_padding(clap, tokenizer):
    with torch.no_grad():
        alone = embed_text(clap, tokenizer, ["solo piano"])
        beside = embed_text(clap, tokenizer, ["a slow waltz for solo piano", "solo piano", ""])
    assert beside.shape == (3, 24)
    assert torch.allclose(beside.norm(dim=1), torch.ones(3), atol=1e-5)
    assert (alone - beside[1:2]).abs().max() < 1e-5


def test_text_that_exceeds_the_positions_is_cut_with_a_warning(clap, tokenizer):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        embed_text(clap, tokenizer, ["piano " * 15])
    with pytest.warns(UserWarning, match="first 32 of"):
        embedding = embed_text(clap, tokenizer, ["piano " * 100])
    assert torch.isfinite(embedding).all()


@pytest.mark.parametrize("texts", [[], "piano"])
def test_texts_must_be_a_list(clap, tokenizer, texts):
    with pytest.raises(ValueError, match="list of at least one"):
        embed_text(clap, tokenizer, texts)


def test_contrastive_loss_of_known_matrices():
    audio = torch.eye(3)
    assert contrastive_loss(audio, audio, 100.0) < 1e-6
    same = torch.ones(3, 4) / 2  # every pair equally similar: chance
    assert torch.isclose(contrastive_loss(same, same, 10.0), torch.tensor(math.log(3)))
    text = torch.nn.functional.normalize(noise(3, 3), dim=1)
    rows = torch.log_softmax(2 * audio @ text.T, 1).diagonal().mean()
    columns = torch.log_softmax(2 * audio @ text.T, 0).diagonal().mean()
    assert torch.isclose(contrastive_loss(audio, text, 2.0), -(rows + columns) / 2)
    with pytest.raises(ValueError, match="both be"):
        contrastive_loss(audio, text[:2], 1.0)


def test_loss_of_several_views_is_the_mean_over_their_pairs():
    views = torch.nn.functional.normalize(noise(15, 4).view(3, 5, 4), dim=2)
    pairs = [contrastive_loss(views[i], views[j], 7.0) for i, j in ((0, 1), (0, 2), (1, 2))]
    assert torch.isclose(views_loss(views, 7.0), sum(pairs) / 3)
    assert torch.isclose(views_loss(views[:2], 7.0), pairs[0])
    with pytest.raises(ValueError, match="two views"):
        views_loss(views[:1], 7.0)


def test_contrary_captions_are_told_from_right_ones():
    """The mean over choices given the audio and the other caption, and over the clips that have a contrary one."""
    audio, one, other = views = torch.nn.functional.normalize(noise(15, 4).view(3, 5, 4), dim=2)
    wrong = torch.nn.functional.normalize(noise(10, 4).view(2, 5, 4), dim=2)
    wrong[0, 3] = wrong[1, 1:] = 0

    def cost(given, right, wrong):
        return torch.nn.functional.softplus(7 * ((given * wrong).sum(-1) - (given * right).sum(-1)))

    has = [0, 1, 2, 4]
    costs = [cost(given, one, wrong[0])[has] for given in (audio, other)]
    costs += [cost(given, other, wrong[1])[:1] for given in (audio, one)]
    assert torch.isclose(contrary_loss(views, wrong, 7.0), torch.cat(costs).mean())
    assert contrary_loss(views, views[1:], 7.0) == pytest.approx(math.log(2))  # what says the same cannot be told
    assert contrary_loss(views, torch.zeros_like(wrong), 7.0) == 0


def test_tempo_is_read_from_what_is_known_alone():
    octaves = torch.tensor([[7.0, float("nan"), 6.0]])
    embeddings = torch.nn.functional.normalize(torch.randn(1, 3, 8, generator=torch.Generator().manual_seed(0)), dim=-1)
    embeddings.requires_grad_(True)
    loss = tempo_loss(embeddings, octaves)
    errors = (read_tempo(embeddings) - octaves)[0, [0, 2]]
    assert loss.item() == pytest.approx((errors**2).mean().item())
    (gradient,) = torch.autograd.grad(loss, embeddings)
    assert (gradient[..., 0] != 0).tolist() == [[True, False, True]]
    assert (gradient[..., 1:] == 0).all()
    assert tempo_loss(embeddings, torch.full((1, 3), float("nan"))) == 0
    assert tempo_loss(embeddings, read_tempo(embeddings)) == 0


def test_tokenizer_survives_saving(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    texts = [*CAPTIONS[:4], "", "Ζούλα 音楽 \N{MUSICAL SYMBOL G CLEF}", "  spaces  kept "]
    for loaded in (RobertaTokenizer.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)):
        assert loaded(texts)["input_ids"] == tokenizer(texts)["input_ids"]
        assert len(loaded) == len(tokenizer)


def test_tokenizer_ids_and_unknown_words(tokenizer):
    assert [tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id] == [0, 1, 2]
    assert [tokenizer.unk_token_id, tokenizer.mask_token_id] == [3, 4]
    assert tokenizer("")["input_ids"] == [0, 2]
    assert len(tokenizer) <= 300
    for text in ("xylophone Ωmega", "\N{MUSICAL SYMBOL G CLEF}", "solo piano"):
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids, skip_special_tokens=True).strip() == text
    assert len(tokenizer("piano")["input_ids"]) == 3  # a frequent word is one piece
    assert tokenizer("piano")["input_ids"][1] == tokenizer("solo piano")["input_ids"][-2]


def test_tokenizer_training_repeats(tokenizer):
    assert train_tokenizer(iter(CAPTIONS), 300).get_vocab() == tokenizer.get_vocab()


def test_tokenizer_needs_room_and_captions():
    with pytest.raises(ValueError, match="at least 261"):
        train_tokenizer(CAPTIONS, 260)
    with pytest.raises(ValueError, match="no captions"):
        train_tokenizer(["", " "], 300)
