"""MusicLDM: text to music with latent diffusion, whole: generation, training, data preparation and evaluation.

Chen et al. (2024), https://arxiv.org/abs/2308.01546. Importing this package imports nothing heavy.
"""

from typing import TYPE_CHECKING

from musicldm._version import __version__

if TYPE_CHECKING:
    from musicldm.pipelines.text_to_music import MusicLDMPipeline

__all__ = ["MusicLDMPipeline", "__version__"]


def __getattr__(name: str):
    if name == "MusicLDMPipeline":
        from musicldm.pipelines.text_to_music import MusicLDMPipeline

        return MusicLDMPipeline
    raise AttributeError(f"module 'musicldm' has no attribute {name!r}")
