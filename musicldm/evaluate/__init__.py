"""Evaluation: measures of quality, adherence, diversity and novelty as functions on arrays, and whole evaluations."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "adherence": ["area_under_curve", "key_adherence", "tempo_adherence"],
        "distances": ["frechet_distance", "frechet_distance_infinity", "kernel_distance"],
        "diversity": ["manifold", "mean_pairwise_similarity", "vendi_score"],
        "probe": ["FamilyProbe", "log_mel_statistics"],
        "quality": ["inception_score", "paired_kl_divergence"],
        "run": ["EvaluationConfig", "Judges", "run_evaluation"],
        "similarity": ["nearest_similarity", "novelty", "paired_similarity"],
        "summary": ["Evidence", "summarize"],
    },
)
