"""Attention on CUDA and in torch, precision of the decoders, and decoding in tiles."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "dot_product": ["attention"],
    },
)
