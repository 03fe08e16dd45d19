"""Did it copy? An index of what a model was trained on, a check against it, and a guard while music is made."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "build": ["build_index"],
        "carried": ["attach_index", "index_of"],
        "guard": ["CopyGuard"],
        "index": ["NoveltyIndex"],
    },
)
__all__ += ["CopyError"]


class CopyError(ValueError):
    """Every draw for some prompt came too near to the training set, or was a hum; the message names the nearest clip.

    Attributes:
        output: what the pipeline would return, with hums or the least similar draws in the places of these prompts.
        refused: their numbers among the prompts.
    """

    def __init__(self, message: str, output=None, refused: tuple[int, ...] = ()):
        super().__init__(message)
        self.output, self.refused = output, refused
