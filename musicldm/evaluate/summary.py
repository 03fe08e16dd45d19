"""All measures of a set of clips, each with its interval, as one dictionary: the contents of ``metrics.json``.

Evidence (embeddings (N, D), prompts, measurements, ...) -> {name: value, low, high, ...}, {name: values (N,)}
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from musicldm.evaluate.adherence import area_under_curve, key_adherence, tempo_adherence
from musicldm.evaluate.collect import asked
from musicldm.evaluate.distances import frechet_distance, frechet_distance_infinity, kernel_distance
from musicldm.evaluate.diversity import manifold, mean_pairwise_similarity, vendi_score
from musicldm.evaluate.families import asked_family
from musicldm.evaluate.intervals import (
    Estimate,
    bootstrap,
    half_samples,
    share,
)
from musicldm.evaluate.quality import inception_score, paired_kl_divergence
from musicldm.evaluate.similarity import THRESHOLDS

SHARES = ("sim_aa_90", "sim_aa_95", "above_base_rate", "copies")  # true or false for each clip
HALVES = 50  # draws for the intervals of distances
HALVES_TO_INFINITY = 20  # draws for extrapolated distances, which are fifteen distances each
ENOUGH_FOR_INFINITY = 4  # clips for each dimension, so that a line can be fitted to halves
# What each measure is, by itself, and whether higher is better.
MEANING = {
    "text_audio_similarity": ("CLAP similarity: mean cosine of the embeddings of prompt and clip", True),
    "vendi_score": ("Vendi score: effective number of different clips, CLAP embeddings", True),
    "mean_pairwise_similarity": ("mean cosine of CLAP embeddings over all pairs of clips", False),
    "kernel_distance_clap": ("kernel distance (KID) to the reference, CLAP embeddings", False),
    "frechet_distance_clap": ("Fréchet distance to the reference, CLAP embeddings", False),
    "frechet_distance_infinity_clap": (
        "Fréchet distance to the reference, CLAP embeddings, extrapolated to infinitely many clips",
        False,
    ),
    "kernel_distance_log_mel": ("kernel distance (KID) to the reference, log-mel statistics", False),
    "frechet_distance_log_mel": ("Fréchet distance to the reference, log-mel statistics", False),
    "frechet_distance_infinity_log_mel": (
        "Fréchet distance to the reference, log-mel statistics, extrapolated to infinitely many clips",
        False,
    ),
    "inception_score": ("inception score: each clip of one clear instrument family, all families present", True),
    "paired_kl_divergence": (
        "KL divergence (nats) of instrument families: the recording that the prompt describes from the clip",
        False,
    ),
    "precision": ("precision: share of clips near some reference clip", True),
    "recall": ("recall: share of reference clips near some clip", True),
    "density": ("density: reference clips whose neighbourhood holds a clip, relative to equal distributions", True),
    "coverage": ("coverage: share of reference clips with a clip in their neighbourhood", True),
    "nearest_training_similarity": ("mean cosine of each clip and its nearest training clip", False),
    "sim_aa_90": ("SIM_AA@90: share of clips with a cosine above 0.90 to a training clip", False),
    "sim_aa_95": ("SIM_AA@95: share of clips with a cosine above 0.95 to a training clip", False),
    "above_base_rate": ("share of clips nearer to a training clip than 99 % of other music is", False),
    "copies": ("share of clips with the verdict copy: a passage matches the training set", False),
    "tempo_within_5_percent": ("tempo: share of clips within 5 % of the tempo asked for", True),
    "tempo_within_2_percent": ("tempo: share of clips within 2 % of the tempo asked for", True),
    "tempo_octave_errors": ("tempo: share of clips at a half, double, third or triple of the tempo asked for", False),
    "key_score": ("key: mean MIREX score of the key measured for the key asked for", True),
    "family_probe": ("instrument family: share of clips of the family asked for, by the probe", True),
    "family_zero_shot": ("instrument family: share of clips of the family asked for, by CLAP", True),
    "drums_auc": ("drums: AUC of percussive energy, clips asked for drums against others (0.5: chance)", True),
}


class Classification(NamedTuple):
    """Output of a classifier for clips, and for the recordings that their prompts describe."""

    classes: tuple[str, ...]
    clips: np.ndarray  # (N, K) probabilities
    pairs: np.ndarray | None = None  # (M, K) probabilities of those recordings that are not silent
    paired: np.ndarray | None = None  # (N,) mask of the clips that they belong to
    name: str = ""  # of the classifier


@dataclass(frozen=True)
class Evidence:
    """Data of N clips that are not silent; None or empty where something was not asked for or is not available."""

    clap: np.ndarray  # embeddings (N, D)
    log_mel: np.ndarray  # embeddings (N, E)
    prompts: Sequence[str | None]
    measured: Sequence[dict]  # results of `measure_clip`
    text_similarity: np.ndarray | None = None  # (N,)
    reference: tuple[np.ndarray, np.ndarray] | None = None  # embeddings (M, D) and (M, E) of real music
    verdicts: Sequence[dict] | None = None  # of the novelty check of each clip
    base_rate: dict | None = None  # of the index
    # Families by the ``probe`` and by CLAP (``zero_shot``); the first is used for inception score and KL divergence.
    classified: dict[str, Classification] | None = None


def summarize(evidence: Evidence) -> tuple[dict[str, dict], dict[str, list]]:
    """Every measure that the data allow, and the values (N,) of single clips, both by name.

    Raises:
        ValueError: for fewer than two clips, or a reference of fewer than four.
    """
    clap = evidence.clap
    if len(clap) < 2:
        raise ValueError(f"an evaluation needs two or more clips that are not silent, got {len(clap)}")
    single = _single(evidence)
    found = {name: share(values) if name in SHARES else bootstrap(np.mean, values) for name, values in single.items()}
    if len(clap) >= 4:
        found["vendi_score"] = half_samples(vendi_score, clap, draws=HALVES)
        found["mean_pairwise_similarity"] = half_samples(mean_pairwise_similarity, clap, draws=HALVES)
    if evidence.reference is not None:
        found |= _distances(clap, evidence.log_mel, *evidence.reference)
    found |= _adherence(evidence.prompts, evidence.measured)
    for kind, one in (evidence.classified or {}).items():
        found |= _family(kind, one, evidence.prompts)
    if evidence.classified:
        found |= _classified(next(iter(evidence.classified.values())))
    metrics = {
        name: found[name]._asdict() | {"meaning": meaning, "more_is_better": more_is_better}
        for name, (meaning, more_is_better) in MEANING.items()
        if name in found
    }
    return metrics, {name: np.asarray(values).tolist() for name, values in single.items()}


def _single(evidence: Evidence) -> dict[str, np.ndarray]:
    """Measures (N,) of single clips."""
    single: dict[str, np.ndarray] = {}
    if evidence.text_similarity is not None:
        single["text_audio_similarity"] = evidence.text_similarity
    if evidence.verdicts is not None:
        nearest = np.array([verdict["similarity"] for verdict in evidence.verdicts])
        single["nearest_training_similarity"] = nearest
        for threshold in THRESHOLDS:
            single[f"sim_aa_{100 * threshold:.0f}"] = (nearest > threshold).astype(float)
        single["above_base_rate"] = (nearest > evidence.base_rate["similarity_99"]).astype(float)
        single["copies"] = np.array([float(verdict["verdict"] == "copy") for verdict in evidence.verdicts])
    return single


def _family(kind: str, classified: Classification, prompts: Sequence[str | None]) -> dict[str, Estimate]:
    """How often the family asked for is the most probable one."""
    wanted = [asked_family(prompt, classified.classes) for prompt in prompts]
    right = [
        classified.classes[row.argmax()] == name for row, name in zip(classified.clips, wanted, strict=True) if name
    ]
    return {f"family_{kind}": share(np.array(right))} if len(right) >= 2 else {}


def _distances(clap: np.ndarray, log_mel: np.ndarray, real_clap: np.ndarray, real_log_mel: np.ndarray) -> dict:
    found = {}
    if min(len(clap), len(real_clap)) < 4:
        raise ValueError(f"distances need four clips or more on either side, got {len(clap)} and {len(real_clap)}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # `few_clips` says it once, for the whole set
        for name, ours, real in (("clap", clap, real_clap), ("log_mel", log_mel, real_log_mel)):
            for kind, distance in (("kernel", kernel_distance), ("frechet", frechet_distance)):
                found[f"{kind}_distance_{name}"] = half_samples(distance, ours, real, draws=HALVES)
            if len(ours) >= ENOUGH_FOR_INFINITY * ours.shape[1] and len(real) > 2 * real.shape[1]:
                found[f"frechet_distance_infinity_{name}"] = half_samples(
                    lambda some, others: frechet_distance_infinity(some, others).distance,
                    ours,
                    real,
                    draws=HALVES_TO_INFINITY,
                )
    if min(len(clap), len(real_clap)) > 12:  # half of them more than the five neighbours
        for name in ("precision", "recall", "density", "coverage"):
            whole = half_samples(_manifold_part(name), clap, real_clap, draws=HALVES)
            shares = whole._replace(low=max(0.0, whole.low), high=min(1.0, whole.high))
            found[name] = whole if name == "density" else shares
    return found


def _classified(classified: Classification) -> dict[str, Estimate]:
    found = {}
    if len(classified.clips) >= 4:
        found["inception_score"] = half_samples(inception_score, classified.clips, draws=HALVES)
    if classified.pairs is not None and len(classified.pairs) >= 2:
        found["paired_kl_divergence"] = bootstrap(
            np.mean, paired_kl_divergence(classified.pairs, classified.clips[classified.paired])
        )
    return found


def _manifold_part(name: str) -> Callable[[np.ndarray, np.ndarray], float]:
    return lambda ours, real: getattr(manifold(ours, real), name)


def few_clips(clips: int, reference: int | None, widths: dict[str, int]) -> list[str]:
    """Notes on Fréchet distances of fewer clips than dimensions."""
    if reference is None:
        return []
    least = min(clips, reference)
    return [
        f"{least} clips are too few for a covariance of {width} dimensions ({name}): this Fréchet distance is biased "
        "upwards. Compare it only between equal numbers of clips, or use the kernel distance."
        for name, width in widths.items()
        if least <= width
    ]


def _adherence(prompts: Sequence[str | None], measured: Sequence[dict]) -> dict[str, Estimate]:
    wanted = [asked(prompt) for prompt in prompts]
    found = {}
    timed = [(w["tempo_bpm"], m["tempo_bpm"]) for w, m in zip(wanted, measured, strict=True) if "tempo_bpm" in m]
    if len(timed) >= 2:
        each = [tempo_adherence([asked_bpm], [measured_bpm]) for asked_bpm, measured_bpm in timed]
        found["tempo_within_2_percent"] = share([one.within_2_percent for one in each])
        found["tempo_within_5_percent"] = share([one.within_5_percent for one in each])
        found["tempo_octave_errors"] = share([one.octave_errors for one in each])
    keyed = [(w["key"], m["key"]) for w, m in zip(wanted, measured, strict=True) if m.get("key")]
    if len(keyed) >= 2:
        found["key_score"] = bootstrap(np.mean, key_adherence(*zip(*keyed, strict=True)))
    drums = np.array([w["drums"] is True for w in wanted])
    if 2 <= drums.sum() <= len(drums) - 2:
        shares = np.array([m["percussive_share"] for m in measured])
        value = area_under_curve(drums, shares)
        error = _auc_error(value, int(drums.sum()), int((~drums).sum()))
        found["drums_auc"] = Estimate(value, max(0.0, value - 1.96 * error), min(1.0, value + 1.96 * error), error)
    return found


def _auc_error(auc: float, n_asked: int, n_other: int) -> float:
    """Standard error of an area under the ROC curve: Hanley and McNeil (1982)."""
    q1, q2 = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    variance = auc * (1 - auc) + (n_asked - 1) * (q1 - auc**2) + (n_other - 1) * (q2 - auc**2)
    return float(np.sqrt(variance / (n_asked * n_other)))
