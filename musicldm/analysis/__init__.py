"""Measurements on audio: key, onsets, melody, seams, embeddings."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "embedders": ["JUDGE_MEL", "Embedder", "LogMelEmbedder", "TransformersEmbedder", "log_mel_statistics"],
        "key": ["Key", "estimate_key", "pitch_bands"],
        "onsets": ["onset_rate", "percussive_share"],
        "seams": ["changes", "loop_jump", "loop_quantile", "seam_quantile", "seam_quantiles"],
        "waveforms": ["SILENCE"],
    },
)
