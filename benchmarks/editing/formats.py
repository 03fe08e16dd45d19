"""The kept part: samples that differ, in every container and sample format that is written.

file -> `MusicLDMInpaintPipeline` -> `write_patched` -> file -> its kept samples beside the source's, as stored
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile
import soxr

from benchmarks.editing import keep
from benchmarks.editing.edits import Pipelines, options
from benchmarks.editing.pieces import Piece
from musicldm.editing import Source, write_patched
from musicldm.editing.source import EXACT

CONTAINERS = {"WAV": ".wav", "FLAC": ".flac", "AIFF": ".aiff", "W64": ".w64", "RF64": ".rf64", "CAF": ".caf"}
RATES = (8_000, 22_050, 44_100, 48_000, 96_000, 192_000)  # Hz, in turn
SECONDS = 6.0
HOLE_S, BEFORE_S, AFTER_S = (2.5, 3.5), 1.0, 1.0


def forms() -> list[tuple[str, str, int, int]]:
    """Container, sample format, rate and channels of each case."""
    pairs = [
        (container, subtype)
        for container in CONTAINERS
        for subtype in sorted(EXACT)
        if soundfile.check_format(container, subtype)
    ]
    return [(*pair, RATES[i % len(RATES)], 1 + i // len(RATES) % 2) for i, pair in enumerate(pairs)]


def stored(path: Path, subtype: str) -> np.ndarray:
    """Samples (L, A) of a file as they are stored: 64-bit floats hold all of them."""
    dtype = "int32" if subtype.startswith("PCM") else "float64"
    return soundfile.read(path, dtype=dtype, always_2d=True)[0]


def kept_samples(piece: Piece, form: tuple, pipelines: Pipelines, folder: Path) -> dict:
    """A file of that form is given a new hole and new ends: how many of its kept samples there are, and differ."""
    container, subtype, rate, channels = form
    stem = f"{container}-{subtype}-{rate}-{channels}"

    def measure() -> dict:
        path, out = (folder / "kept" / f"{stem}{end}{CONTAINERS[container]}" for end in ("", "-edited"))
        path.parent.mkdir(parents=True, exist_ok=True)
        mono = soxr.resample(piece.original[: round(SECONDS * piece.rate)], piece.rate, rate)
        sound = np.stack([mono, 0.6 * np.roll(mono, rate // 50)][:channels], axis=1) / max(1.0, np.abs(mono).max())
        soundfile.write(path, 0.9 * sound, rate, subtype=subtype, format=container)
        before = path.read_bytes()
        starts, stops = [-BEFORE_S, HOLE_S[0], SECONDS], [0.0, HOLE_S[1], SECONDS + AFTER_S]
        call = options(0) | {"num_inference_steps": 4}
        made = pipelines.inpaint(
            piece.prompt,
            str(path),
            mask_start_seconds=starts,
            mask_end_seconds=stops,
            **call,
        )
        source = Source.open(path)
        write_patched(out, source, made.patches[0])
        new, old = stored(out, subtype), stored(path, subtype)
        shift = -min(patch.start for patch in made.patches[0])
        kept = np.ones(len(old), bool)
        for patch in made.patches[0]:
            kept[max(0, patch.start) : max(0, patch.stop)] = False
        same = new[shift : shift + len(old)][kept] == old[kept]
        info = soundfile.info(out)
        told = {
            "kept_samples": int(same.size),
            "differ": int((~same).sum()),
            "same_form": (info.format, info.subtype, info.samplerate, info.channels)
            == (container, subtype, rate, channels),
            "source_untouched": path.read_bytes() == before,
        }
        path.unlink()
        out.unlink()
        return told

    return keep.numbers(folder / "kept" / f"{stem}.json", measure)


def summarized(found: dict[str, dict]) -> dict:
    """Over all forms; those in which anything differs by name."""
    return {
        "forms": len(found),
        "kept_samples": sum(row["kept_samples"] for row in found.values()),
        "differ": sum(row["differ"] for row in found.values()),
        "forms_with_differences": [name for name, row in found.items() if row["differ"]],
        "forms_that_changed": [name for name, row in found.items() if not row["same_form"]],
        "sources_untouched": all(row["source_untouched"] for row in found.values()),
    }
