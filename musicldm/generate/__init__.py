"""The generation service behind the command line and the evaluation: requests and edits in, pieces with recipes out."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "calls": ["Cancelled", "Progress"],
        "edit": ["Edit"],
        "pieces": ["EditedPiece", "Piece"],
        "recipe": ["Request", "Settings"],
        "session": ["Session"],
        "tempo": ["TempoError"],
    },
)
