"""Distances and scores, as functions on arrays."""

from musicldm.analysis.embedders import log_mel_statistics
from musicldm.evaluate.adherence import area_under_curve, key_adherence, tempo_adherence
from musicldm.evaluate.distances import frechet_distance, frechet_distance_infinity, kernel_distance
from musicldm.evaluate.diversity import manifold, mean_pairwise_similarity, vendi_score
from musicldm.evaluate.quality import inception_score, paired_kl_divergence
from musicldm.evaluate.similarity import nearest_similarity, novelty, paired_similarity

__all__ = [
    "area_under_curve",
    "frechet_distance",
    "frechet_distance_infinity",
    "inception_score",
    "kernel_distance",
    "key_adherence",
    "log_mel_statistics",
    "manifold",
    "mean_pairwise_similarity",
    "nearest_similarity",
    "novelty",
    "paired_kl_divergence",
    "paired_similarity",
    "tempo_adherence",
    "vendi_score",
]
