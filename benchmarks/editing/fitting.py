"""Does one part of a piece go with another: tempo, key, chroma and loudness of the two.

part (L,), part (M,) -> distances by name
"""

from __future__ import annotations

import numpy as np

from augment import track_beats
from musicldm.analysis.key import LOWEST, estimate_key, pitch_bands

TEMPO_SHARE = 0.04
PITCHES = ("C", "Db", "D", "Eb", "E", "F", "Gb", "G", "Ab", "A", "Bb", "B")


def chroma(waveform: np.ndarray, rate: int) -> np.ndarray:
    """Unit vector (12,) of how much each pitch class stands out of their mean level."""
    bands = np.sqrt(pitch_bands(waveform, rate)).mean(axis=0)
    classes = np.bincount((np.arange(len(bands)) + LOWEST) % 12, bands, minlength=12)
    classes = classes - classes.mean()
    return classes / max(np.linalg.norm(classes), 1e-9)


def loudness_db(waveform: np.ndarray) -> float:
    return float(10 * np.log10(np.square(waveform, dtype=np.float64).mean() + 1e-10))


def fifths(name: str) -> int:
    """Place of a key's signature on the circle of fifths, from 0 to 11; a minor key has its relative major's."""
    tonic, mode = name.split()
    semitone = PITCHES.index(tonic) + (3 if mode == "minor" else 0)
    return 7 * semitone % 12


def key_steps(a: str | None, b: str | None) -> int | None:
    """Steps between the signatures of two keys on the circle of fifths, 0 to 6; None where one is not known."""
    if a is None or b is None:
        return None
    steps = abs(fifths(a) - fifths(b))
    return min(steps, 12 - steps)


def described(waveform: np.ndarray, rate: int) -> dict:
    """What `distances` compares of a part."""
    return {
        "bpm": track_beats(waveform, rate).tempo_bpm,
        "key": estimate_key(waveform, rate).name,
        "chroma": chroma(waveform, rate).tolist(),
        "loudness_db": loudness_db(waveform),
    }


def distances(a: dict, b: dict) -> dict:
    """Of two parts: octave-free tempo within 4 % (None without beats), steps of keys, chroma and loudness."""
    same = None
    if a["bpm"] > 0 and b["bpm"] > 0:
        octaves = np.log2(a["bpm"] / b["bpm"])
        same = bool(abs(octaves - round(octaves)) <= np.log2(1 + TEMPO_SHARE))
    return {
        "tempo_within_4_percent": same,
        "key_steps": key_steps(a["key"], b["key"]),
        "chroma_distance": 1 - float(np.dot(a["chroma"], b["chroma"])),
        "loudness_distance_db": abs(a["loudness_db"] - b["loudness_db"]),
    }
