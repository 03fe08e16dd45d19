"""MusicLDM: text to music with latent diffusion, whole: generation, training, data preparation and evaluation.

Chen et al. (2024), https://arxiv.org/abs/2308.01546. Importing this package imports nothing heavy.
"""

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from musicldm._version import __version__

if TYPE_CHECKING:
    from musicldm.pipelines.audio_to_audio import MusicLDMAudioToAudioPipeline
    from musicldm.pipelines.inpaint import MusicLDMInpaintPipeline
    from musicldm.pipelines.long_form import MusicLDMLongFormPipeline, Section
    from musicldm.pipelines.text_to_music import MusicLDMPipeline

__all__ = [
    "MusicLDMAudioToAudioPipeline",
    "MusicLDMInpaintPipeline",
    "MusicLDMLongFormPipeline",
    "MusicLDMPipeline",
    "Section",
    "__version__",
]


def _check_leaves() -> None:
    """Python must find the packages ``augment`` and ``vocoder`` that are installed beside this one.

    Raises:
        ImportError: a file or folder of the same name hides one of them.
    """
    home = Path(__file__).resolve().parents[1]
    for name in ("augment", "vocoder"):
        spec = find_spec(name)
        places = [] if spec is None else [spec.origin, *(spec.submodule_search_locations or [])]
        place = next((Path(place) for place in places if place), None)
        if place is None:
            raise ImportError(f"the package {name!r} is missing beside {home / 'musicldm'}: install musicldm again")
        if home / name not in (place.resolve(), place.resolve().parent):
            raise ImportError(
                f"{place} hides the package {name!r} of musicldm ({home / name}): rename it, "
                "or run `musicldm` or `python -m musicldm`, which import nothing from the working folder"
            )


if sys.argv[:1] != ["-m"]:  # while `python -m` looks for __main__, which then takes the working folder off the path
    _check_leaves()


def __getattr__(name: str):
    if name in __all__ and name != "__version__":
        from musicldm import pipelines

        return getattr(pipelines, name)
    raise AttributeError(f"module 'musicldm' has no attribute {name!r}")
