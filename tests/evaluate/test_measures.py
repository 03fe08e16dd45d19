"""Measures: known answers, invariants, and agreement with the field's libraries."""

import json
from importlib import import_module

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from musicldm.analysis.embedders import LogMelEmbedder
from musicldm.audio import write_audio
from musicldm.evaluate import (
    area_under_curve,
    frechet_distance,
    frechet_distance_infinity,
    inception_score,
    kernel_distance,
    key_adherence,
    manifold,
    mean_pairwise_similarity,
    nearest_similarity,
    novelty,
    paired_kl_divergence,
    paired_similarity,
    tempo_adherence,
    vendi_score,
)
from musicldm.evaluate.collect import Clip, embed_clips
from musicldm.evaluate.families import ZeroShotFamilies, asked_family
from musicldm.evaluate.intervals import (
    Estimate,
    bootstrap,
    half_samples,
    holm,
    paired_difference,
    share,
    unpaired_difference,
)
from musicldm.evaluate.probe import FamilyProbe
from musicldm.evaluate.summary import Classification, Evidence, summarize
from musicldm.models.clap import embed_text
from musicldm.models.clap_embedder import ClapEmbedder
from tests.helpers.melodies import RATE, tones

RNG = np.random.default_rng(0)
A, B = RNG.normal(size=(300, 8)), RNG.normal(size=(300, 8)) + 0.3


def test_frechet_distance_extrapolates_to_the_closed_form():
    rng = np.random.default_rng(1)
    samples, reference = rng.normal(size=(1500, 10)) + 0.2, rng.normal(size=(50_000, 10))
    true = 10 * 0.2**2
    found = frechet_distance_infinity(samples, reference)
    assert abs(found.distance - true) < abs(frechet_distance(samples[:300], reference) - true)
    assert found.distance == pytest.approx(true, rel=0.1)
    assert found.slope > 0
    with pytest.raises(ValueError, match="kernel distance"):
        frechet_distance_infinity(samples[:8], reference)
    with pytest.raises(ValueError, match="too few for a line"):
        frechet_distance_infinity(samples[:12], reference)  # 11 and 12 span 10 dimensions


def test_distances_agree_with_torch_fidelity():
    fid = import_module("torch_fidelity.metric_fid")
    kid = import_module("torch_fidelity.metric_kid")
    statistics = [{"mu": x.mean(0), "sigma": np.cov(x, rowvar=False)} for x in (A, B)]
    theirs = fid.fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert frechet_distance(A, B) == pytest.approx(theirs, rel=1e-3)
    options = {"kid_subsets": 1, "kid_subset_size": len(A), "verbose": False}
    theirs = kid.kid_features_to_metric(torch.from_numpy(A), torch.from_numpy(B), **options)
    assert kernel_distance(A, B) == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-3)


def test_inception_score_agrees_with_torch_fidelity():
    isc = import_module("torch_fidelity.metric_isc")
    logits = torch.from_numpy(A * 2)
    theirs = isc.isc_features_to_metric(logits, splits=10, shuffle=False)["inception_score_mean"]
    assert inception_score(logits.softmax(1).numpy(), splits=10) == pytest.approx(theirs, rel=1e-3)


def test_inception_score_and_divergence_have_known_answers():
    assert inception_score(np.eye(6)) == pytest.approx(6.0)
    assert inception_score(np.full((6, 4), 0.25)) == pytest.approx(1.0)
    p, q = np.array([[0.5, 0.5], [1.0, 0.0]]), np.array([[0.25, 0.75], [1.0, 0.0]])
    expected = [0.5 * np.log(2) + 0.5 * np.log(2 / 3), 0.0]
    assert paired_kl_divergence(p, q) == pytest.approx(expected)
    with pytest.raises(ValueError, match="softmax"):
        inception_score(A)
    with pytest.raises(ValueError, match="one shape"):
        paired_kl_divergence(p, q[:1])


def test_vendi_score_counts_different_clips():
    vendi = import_module("vendi_score.vendi")
    assert vendi_score(np.eye(5)) == pytest.approx(5.0)
    assert vendi_score(np.repeat(np.eye(5), 3, axis=0)) == pytest.approx(5.0)
    assert vendi_score(np.ones((7, 3))) == pytest.approx(1.0)
    unit = A[:50] / np.linalg.norm(A[:50], axis=1, keepdims=True)
    assert vendi_score(A[:50]) == pytest.approx(vendi.score_K(unit @ unit.T), rel=1e-3)


def test_manifold_agrees_with_prdc_and_knows_copies():
    prdc = import_module("prdc")
    theirs = prdc.compute_prdc(real_features=A, fake_features=B, nearest_k=5)
    assert manifold(B, A)._asdict() == pytest.approx(theirs)
    assert manifold(A, A).coverage == manifold(A, A).precision == manifold(A, A).recall == 1.0
    assert manifold(A + 100, A) == (0, 0, 0, 0)
    with pytest.raises(ValueError, match="fewer neighbours"):
        manifold(A[:4], A)


@given(st.integers(2, 30), st.integers(1, 6), st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_mean_pairwise_similarity_is_the_definition(n, width, seed):
    x = np.random.default_rng(seed).normal(size=(n, width))
    cosines = (x @ x.T) / np.outer(*[np.linalg.norm(x, axis=1)] * 2)
    assert mean_pairwise_similarity(x) == pytest.approx(cosines[~np.eye(n, dtype=bool)].mean())


def test_planted_duplicates_are_found_beside_the_base_rate():
    generated = np.concatenate([A[:10], -A[10:40]])  # ten copies
    nearest = nearest_similarity(generated, A[:10])
    base = nearest_similarity(A, A, groups=(np.arange(300), np.arange(300)))
    found = novelty(nearest, base)
    assert found.share_above[0.95] == pytest.approx(0.25)
    assert found.base_rate_above[0.95] < 0.2
    assert found.share_above_threshold >= 0.25
    assert paired_similarity(A, 3 * A) == pytest.approx(np.ones(300))
    with pytest.raises(ValueError, match="one model"):
        nearest_similarity(A, A[:, :3])
    with pytest.raises(ValueError, match="zero"):
        nearest_similarity(np.zeros((1, 8)), A)


def test_tempo_key_and_drums_have_known_answers():
    found = tempo_adherence([100] * 8, [100, 101.9, 104, 106, 50, 200, 0, 300])
    assert found == (2 / 8, 3 / 8, 3 / 8, 1 / 8, 8)
    keys = ["C major", "G major", "A minor", "C minor", "E major"]
    assert list(key_adherence(["C major"] * 5, keys)) == [1.0, 0.5, 0.3, 0.2, 0.0]
    assert area_under_curve([True, True, False, False], [3, 2, 1, 2]) == pytest.approx(3.5 / 4)
    with pytest.raises(ValueError, match="some must"):
        area_under_curve([True, True], [1, 2])
    with pytest.raises(ValueError, match="above 0 BPM"):
        tempo_adherence([0], [100])


def test_bootstrap_covers_a_mean_and_halves_a_distance():
    hits = 0
    for seed in range(40):
        x = np.random.default_rng(seed).normal(size=60)
        found = bootstrap(np.mean, x, draws=200, seed=seed)
        hits += found.low <= 0 <= found.high
    assert 34 <= hits <= 40
    errors = [kernel_distance(*np.random.default_rng(s).normal(size=(2, 60, 4))) for s in range(60)]
    found = half_samples(kernel_distance, *np.random.default_rng(0).normal(size=(2, 60, 4)), draws=60)
    assert found.error == pytest.approx(np.std(errors), rel=0.6)
    with pytest.raises(ValueError, match="two clips"):
        bootstrap(np.mean, np.ones(1))


@pytest.mark.parametrize("n", [2, 5, 33, 100])
def test_bootstrap_draws_rows_with_replacement(n):
    a, b = np.random.default_rng(n).normal(size=(2, n))

    def ratio(x, y):
        return float(x.mean() / (1 + np.square(y).mean()))

    rng, values = np.random.default_rng(3), []
    for _ in range(300):
        rows = rng.integers(n, size=n)
        values.append(ratio(a[rows], b[rows]))
    low, high = np.quantile(values, [0.05, 0.95])
    found = bootstrap(ratio, a, b, draws=300, level=0.9, seed=3)
    assert found == pytest.approx((ratio(a, b), low, high, np.std(values, ddof=1)), abs=1e-12)


@pytest.mark.parametrize("n", [2, 5, 40, 999])
def test_shares_have_wilsons_interval(n):
    for k in {0, 1, n // 3, n}:
        p, z = k / n, 1.959963984540054
        middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
        half = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
        assert share(np.arange(n) < k) == pytest.approx((p, middle - half, middle + half, half / z), abs=1e-12)
    with pytest.raises(ValueError, match="true or false"):
        share(np.array([0.5, 1.0]))


def test_the_area_under_the_curve_counts_pairs():
    rng = np.random.default_rng(4)
    for n in (2, 9, 60):
        asked, strength = np.arange(n) % 3 == 0, rng.integers(5, size=n)  # many ties
        pairs = strength[asked][:, None] - strength[~asked][None]
        assert area_under_curve(asked, strength) == pytest.approx(((pairs > 0) + (pairs == 0) / 2).mean(), abs=1e-12)


def test_differences_larger_than_chance():
    rng = np.random.default_rng(2)
    a = rng.normal(size=50)
    _, p = paired_difference(a, a + 0.3 + 0.1 * rng.normal(size=50))
    assert p < 0.01
    _, p = paired_difference(a, rng.permutation(a))
    assert p > 0.05
    assert unpaired_difference(Estimate(0, -1, 1, 0.5), Estimate(5, 4, 6, 0.5))[1] < 1e-6
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "c": 0.06, "b": 0.06})


def test_probe_tells_families_apart_whatever_their_loudness(tmp_path):
    rows = []
    for i in range(24):
        family = ("mallets", "organ")[i % 2]
        notes = tones(RNG.integers(50, 75, size=4), seconds=1.0, decay=(20.0, 0.5)[i % 2])
        write_audio(tmp_path / f"{i}.wav", notes * RNG.uniform(0.2, 1.0), RATE)
        rows.append(json.dumps({"file_name": f"{i}.wav", "orchestration": family}))
    (tmp_path / "metadata.jsonl").write_text("\n".join(rows))
    probe = FamilyProbe.train(tmp_path)
    heard = torch.from_numpy(np.stack([tones([61, 66, 58, 70], 1.0, 20.0), 0.1 * tones([61, 66, 58, 70], 1.0, 0.5)]))
    assert probe.classes == ("mallets", "organ")
    assert list(probe.families(heard)) == ["mallets", "organ"]
    assert probe.probabilities(heard).sum(axis=1) == pytest.approx([1, 1])
    with pytest.raises(FileNotFoundError, match=r"metadata\.jsonl"):
        FamilyProbe.train(tmp_path / "nothing")


def test_prompts_ask_for_one_family_or_none():
    for prompt, family in {
        "A waltz for solo piano.": "piano",
        "Cello and violin play a slow piece": "strings",
        "drums only, 90 BPM": "drums",
        "two flutes without drums": "winds",
        "solo French horn with no drums or bass": "brass",
        "a church organ": "organ",
        "synth pads": "synth",
        "a sawtooth lead": "synth",
        "Warm pad, slow": "synth",
        "a Hammond groove": "organ",
        "a horn section": "brass",
        "classical guitar": "guitar",
        "a bamboo flute": "winds",
        "a violinist practising": "strings",
        "a drummer warms up": "drums",
    }.items():
        assert asked_family(prompt) == family, prompt
    for prompt in (
        "piano and violin",
        "fast music",
        "bass guitar",
        "double bass",
        "a guitarist and a drummer",
        "a guitar and a harp",
        "",
        None,
    ):
        assert asked_family(prompt) is None, prompt
    assert asked_family("an accordion", ("accordion", "harp")) == "accordion"


def test_zero_shot_families_are_the_softmax_of_claps_similarities(tiny_parts):
    embedder = ClapEmbedder(tiny_parts["text_encoder"], tiny_parts["feature_extractor"])
    judge = ZeroShotFamilies(embedder, tiny_parts["tokenizer"], ("piano", "drums"))
    heard = torch.from_numpy(tones([60, 64]))[None]
    texts = embed_text(embedder.clap, tiny_parts["tokenizer"], ["music for piano", "music for drums only"])
    scale = float(embedder.clap.logit_scale_a.detach().exp())
    expected = torch.softmax(scale * torch.from_numpy(embedder(heard, RATE)) @ texts.detach().T, dim=1)
    np.testing.assert_allclose(judge(heard, RATE), expected, atol=1e-5)
    assert scale > 1


def test_summary_has_the_classifiers_measures_and_extrapolates_with_enough_clips():
    rng = np.random.default_rng(3)
    n, prompts = 80, ["solo piano", "an organ", "music", "piano and organ"] * 20
    truth = np.eye(2)[np.arange(n) % 2] * 0.98 + 0.01  # piano, organ, piano, ...
    paired = np.arange(n) < 60  # of the others no recording sounds
    classified = {"probe": Classification(("piano", "organ"), truth, truth[:60], paired)}
    classified["zero_shot"] = Classification(("piano", "organ"), truth[:, ::-1])
    clap = rng.normal(size=(n, 6))
    options = {"reference": (rng.normal(size=(n, 6)), rng.normal(size=(n, 30))), "classified": classified}
    metrics, _ = summarize(
        Evidence(clap, rng.normal(size=(n, 30)), prompts, [{"percussive_share": 0.0}] * n, **options)
    )
    assert metrics["family_probe"]["value"] == 1.0
    assert metrics["family_zero_shot"]["value"] == 0.0
    assert metrics["paired_kl_divergence"]["value"] == pytest.approx(0.0, abs=1e-9)
    assert metrics["inception_score"]["value"] == pytest.approx(inception_score(truth))
    assert 1.8 < metrics["inception_score"]["value"] < 2.0
    infinity = metrics["frechet_distance_infinity_clap"]
    assert infinity["value"] < metrics["frechet_distance_clap"]["value"]
    assert infinity["low"] < infinity["value"] < infinity["high"]
    assert "frechet_distance_infinity_log_mel" not in metrics  # 80 clips do not span 30 dimensions four times


def test_what_is_embedded_once_is_kept(tmp_path):
    write_audio(tmp_path / "a.wav", tones([60, 64]), RATE)
    write_audio(tmp_path / "b.wav", np.zeros(RATE), RATE)
    clips, calls = [Clip(tmp_path / "a.wav", None), Clip(tmp_path / "b.wav", None)], []

    class Counts(LogMelEmbedder):
        def __call__(self, waveforms, sample_rate):
            calls.append(1)
            return super().__call__(waveforms, sample_rate)

    once = embed_clips(clips, Counts(), RATE, tmp_path)
    again = embed_clips(clips, Counts(), RATE, tmp_path)
    assert len(calls) == 1  # one is silent
    assert np.array_equal(once[0], again[0])
    assert again[1].tolist() == [True, False]
    write_audio(tmp_path / "short.wav", tones([60], seconds=0.05), RATE)
    with pytest.raises(ValueError, match=r"short\.wav, of 0\.05 s, is too short"):
        embed_clips([Clip(tmp_path / "short.wav", None)], LogMelEmbedder(), RATE)
    write_audio(tmp_path / "a.wav", tones([60, 65], seconds=2.0), RATE)
    assert not np.array_equal(embed_clips(clips, Counts(), RATE, tmp_path)[0], once[0])
