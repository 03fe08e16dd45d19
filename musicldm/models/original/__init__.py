"""Checkpoints of MusicLDM's and LAION-CLAP's authors, as modules of diffusers and transformers."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["config_map"],
    submod_attrs={"checkpoint": ["OriginalCheckpoint", "load_original", "original_feature_extractor"]},
)
