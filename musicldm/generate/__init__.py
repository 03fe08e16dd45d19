"""The generation service behind the command line and the evaluation: requests in, pieces with recipes out."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "recipe": ["Request", "Settings"],
        "session": ["Cancelled", "Piece", "Progress", "Session"],
    },
)
