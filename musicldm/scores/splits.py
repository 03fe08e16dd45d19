"""Which recordings are held out: drawn from a hash of their piece, so that it never changes."""

from __future__ import annotations

import hashlib


def drawn_split(key: str, validation_share: float) -> str:
    """``validation`` for a ``validation_share`` of all keys, else ``train``: the same for a key wherever it occurs."""
    digest = int.from_bytes(hashlib.sha256(key.encode(errors="surrogatepass")).digest()[:8], "big")
    return "validation" if digest < validation_share * 2**64 else "train"
