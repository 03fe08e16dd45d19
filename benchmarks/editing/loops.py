"""Loops: how much changes where they begin again, and whether the beat goes on there.

prompt, length -> circle | line -> loop -> rank of the change at its seam, played twice
prompt, tempo, bars -> `Session` | line -> loop of bars -> error of the beats' phase across the seam
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from augment import track_beats
from benchmarks.editing import keep
from benchmarks.editing.edits import Pipelines, options, seed_of
from benchmarks.editing.pieces import Piece
from musicldm.analysis.seams import loop_quantile
from musicldm.editing.tempo import measure_tempo
from musicldm.generate import Request, Session
from musicldm.generate.tempo import TempoError

METHODS = ("ours", "line")
LENGTHS_S = (5.12, 6.4, 7.68, 8.96, 10.24, 5.0, 6.0, 7.0, 8.0, 9.0)  # the first half whole strides of `mini`
TEMPOS = (72, 84, 90, 96, 104, 112, 120, 128, 140)  # BPM
BARS = (2, 4)
LEAST_BEATS = 6  # of a turn, through which a line is laid
SHORTEST_S, LONGEST_S = 4.0, 11.0  # of a loop of bars


def closed(piece: Piece, i: int, method: str, pipelines: Pipelines, folder: Path) -> dict:
    """A loop of one of `LENGTHS_S` for the piece's prompt: ranks of the change at its seam."""
    name, seconds = f"loop/{piece.name}-{method}", LENGTHS_S[i % len(LENGTHS_S)]
    seed = seed_of("loop", piece.name)

    def make() -> tuple[np.ndarray, dict]:
        circle = {"loop": True} if method == "ours" else {}
        call = options(seed) | circle
        (waveform,) = pipelines.text(piece.prompt, audio_length_in_s=seconds, **call).audios
        return waveform, {"seconds": seconds}

    def measure() -> dict:
        waveform, told = keep.sound(folder / f"{name}-sound.flac", piece.rate, make)
        tempo = measure_tempo(waveform, piece.rate, loop=True)
        return told | {"quantile": loop_quantile(waveform, piece.rate, tempo.beats_s), "bpm": tempo.bpm}

    return keep.numbers(folder / f"{name}.json", measure)


def bars_of(piece: Piece, i: int) -> tuple[float, int]:
    """Tempo and number of bars of the i-th case, so that the loop is of a usual length."""
    bpm, bars = TEMPOS[i % len(TEMPOS)], BARS[i % len(BARS)]
    return float(bpm), bars if SHORTEST_S <= bars * 240 / bpm <= LONGEST_S else 6 - bars


def in_bars(piece: Piece, i: int, method: str, session: Session, folder: Path) -> dict:
    """A loop of bars for the piece's prompt: the error of its beats' phase across the seam; ``made`` if it was."""
    name, seed, (bpm, bars) = f"bars/{piece.name}-{method}", seed_of("bars", piece.name), bars_of(piece, i)

    def make() -> tuple[np.ndarray, dict]:
        if method == "ours":
            made = session.run(Request(piece.prompt, seed=seed, bpm=bpm, bars=bars, loop=True))
            return made.waveform, {"tempo": made.recipe["tempo"], "tried": made.recipe["take"]["tried"]}
        made = session.run(Request(f"{piece.prompt} at {bpm:g} BPM", seed=seed, seconds=bars * 240 / bpm))
        return made.waveform, {}

    def measure() -> dict:
        asked = {"bpm": bpm, "bars": bars}
        try:
            waveform, told = keep.sound(folder / f"{name}-sound.flac", piece.rate, make)
        except TempoError as error:
            return asked | {"made": False, "error": str(error)}
        tempo = measure_tempo(waveform, piece.rate, loop=True)
        told |= {"made": True, "quantile": loop_quantile(waveform, piece.rate, tempo.beats_s)}
        return asked | told | {"phase_error_ms": phase_error_ms(waveform, piece.rate)}

    return keep.numbers(folder / f"{name}.json", measure)


def phase_error_ms(loop: np.ndarray, rate: int) -> float | None:
    """How far the beat after the seam of ``loop (L,)``, played over, is from where the beats of a turn lead, in ms.

    The beats of one whole turn are laid on a line (least squares), whose slope is their period P: the error is what
    L lacks of, or has above, a whole number of periods. None where a turn has fewer than `LEAST_BEATS`.
    """
    turns = max(3, int(np.ceil(12 * rate / len(loop))) + 1)
    length_s = len(loop) / rate
    seam_s = length_s * (turns // 2)
    beats = track_beats(np.tile(loop, turns), rate).times_s
    inside = beats[(beats >= seam_s - 0.02) & (beats < seam_s + length_s - 0.02)]
    if len(inside) < LEAST_BEATS:
        return None
    period = float(np.polyfit(np.arange(len(inside)), inside, 1)[0])
    return 1000 * abs(length_s - round(length_s / period) * period)
