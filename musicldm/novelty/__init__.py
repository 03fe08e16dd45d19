"""Detection of copies: an index of a training set, checks of music against it, and a guard around a pipeline."""

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
    """All draws for a prompt were too similar to the training set, or hums; the message names the nearest clip.

    Attributes:
        output: the pipeline's output, with hums or the least similar draws in the places of the refused prompts.
        refused: indices of these prompts.
    """

    def __init__(self, message: str, output=None, refused: tuple[int, ...] = ()):
        super().__init__(message)
        self.output, self.refused = output, refused
