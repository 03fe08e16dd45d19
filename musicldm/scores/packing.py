"""A sketch as one line of text, exact to the bit, for recipes and requests that others keep.

Sketch  <->  JSON, compressed, in base 64 (about 20 characters a note)
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import zlib
from functools import lru_cache

import numpy as np

from musicldm.config.values import check_text, shown
from musicldm.scores.reading import NOTE, Score
from musicldm.scores.sketches import Sketch

MOST_BYTES = 2**26  # of the JSON: a million notes
# What notes may be, beside finite: the renderer and MIDI files rely on it.
LIMITS = {"pitch": (0, 127), "velocity": (0, 127), "channel": (0, 15), "program": (0, 127), "level": (0, 1)}


def pack(sketch: Sketch) -> str:
    """``sketch`` as text; its score's controls, which are not played, are left out."""
    score = sketch.score
    content = {
        "seconds": sketch.seconds,
        "kinds": list(sketch.kinds),
        "notes": {name: score.notes[name].tolist() for name in NOTE.names},
        "clicks": sketch.clicks.tolist(),
        "tempos": score.tempos.tolist(),
        "metres": [list(metre) for metre in score.metres],
        "keys": [list(key) for key in score.keys],
    }
    packed = zlib.compress(json.dumps(content, separators=(",", ":")).encode("ascii"), 9)
    return base64.b64encode(packed).decode("ascii")


@lru_cache(maxsize=16)
def unpack(text: str) -> Sketch:
    """The sketch that `pack` wrote as ``text``.

    Raises:
        ValueError: if ``text`` is none.
    """
    check_text("a packed sketch", text)
    try:
        reader = zlib.decompressobj()
        content = reader.decompress(base64.b64decode(text, validate=True), MOST_BYTES)
        if not reader.eof:
            raise ValueError(f"it is cut off, or has more than {MOST_BYTES:,} bytes")
        return _sketch(json.loads(content))
    except (binascii.Error, zlib.error, ValueError, KeyError, TypeError, RecursionError, OverflowError) as error:
        raise ValueError(f"{shown(text)} is no packed sketch ({type(error).__name__}: {error})") from error


def _sketch(content: dict) -> Sketch:
    columns = content["notes"]
    notes = np.empty(len(columns["pitch"]), NOTE)
    for name in NOTE.names:
        notes[name] = columns[name]
    clicks = np.array(content["clicks"], np.float64).reshape(-1, 2)
    tempos = np.array(content["tempos"], np.float64).reshape(-1, 2)
    if not all(np.isfinite(values).all() for values in (notes["start_s"], notes["end_s"], clicks, tempos)):
        raise ValueError("it holds NaN or infinity")
    for name, (least, most) in LIMITS.items():
        if len(notes) and not (notes[name].min() >= least and notes[name].max() <= most):
            raise ValueError(f"{name} of a note must be from {least} to {most}")
    if len(tempos) and tempos[:, 1].min() <= 0:
        raise ValueError("a tempo must be above 0")
    metres = [(float(time), int(beats), int(unit)) for time, beats, unit in content["metres"]]
    keys = [(float(time), str(key)) for time, key in content["keys"]]
    if not all(math.isfinite(entry[0]) for entry in metres) or not all(math.isfinite(entry[0]) for entry in keys):
        raise ValueError("it holds NaN or infinity")
    return Sketch(Score(notes, [], tempos, metres, keys), clicks, content["seconds"], tuple(content["kinds"]))
