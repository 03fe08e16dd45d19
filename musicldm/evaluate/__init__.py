"""Distances and scores, as functions on arrays."""

from musicldm.evaluate.distances import frechet_distance, kernel_distance
from musicldm.evaluate.embeddings import log_mel_statistics

__all__ = ["frechet_distance", "kernel_distance", "log_mel_statistics"]
