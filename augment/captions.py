"""Captions of mixtures.

A, B, lambda  ->  "A, layered with B": the louder part comes first, and a much quieter part is called soft.
"""

from __future__ import annotations

SOFT = 0.3  # share below which a part is called soft: 7 dB quieter than the other


def mixed_caption(a: str, b: str, lam: float) -> str:
    """Caption of a mixture with shares ``lam`` of caption ``a`` and ``1 - lam`` of ``b``; one of them may be empty.

    Examples:
        >>> mixed_caption("a slow waltz", "solo flute", 0.4)
        'solo flute, layered with a slow waltz'

    Raises:
        ValueError: if ``lam`` is not from 0 to 1.
    """
    if not 0 <= lam <= 1:
        raise ValueError(f"lambda is a share from 0 to 1, got {lam}")
    if not a.strip() or not b.strip():
        return (a or b).strip()
    louder, other, share = (a, b, 1 - lam) if lam >= 0.5 else (b, a, lam)
    louder, other = louder.strip().rstrip(".").rstrip(), other.strip()
    if other[1:2].islower() or other[1:2] == " ":  # not of an abbreviation or a name in capitals
        other = other[0].lower() + other[1:]
    return f"{louder}, {'softly ' if share < SOFT else ''}layered with {other}"
