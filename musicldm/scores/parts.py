"""What the parts of a stretch of music are: its melody, its bass, its drums, and those that can be played alone.

notes (N,) of `musicldm.scores.reading.NOTE`  ->  notes of one line, or of one part
"""

import numpy as np

from musicldm.scores.general_midi import DRUM_CHANNEL, PROGRAMS
from musicldm.scores.reading import Score, parts, select

TOGETHER_S = 0.03  # onsets nearer than this are one
LEGATO_S = 0.05  # by which notes of one line may overlap
HIGHEST_BASS = 55  # MIDI pitch, the mean of a bass line
BASSES = (*range(32, 40), 43, 58, 67, 70)  # programs that play basses: also contrabass, tuba, baritone sax, bassoon
ACCOMPANYING = ("synth pad", "synth effect", "string ensemble", "synth strings", "orchestra hit")
ONE_LINE = 0.75  # share of its time in which a part plays a single note, to be a line
LEAST_MELODY = 1.2  # of `_melodic`, for a part that is the melody; below, it is the highest line of all parts
FAR = 14  # semitones from the middle of a line, where other voices are heard through its rests
LEAST_HEARD = 0.3  # share of the time in which a part must sound to be given, or to be missed


def drums_of(notes: np.ndarray) -> np.ndarray:
    """The notes of drums."""
    return notes[notes["channel"] == DRUM_CHANNEL]


def pitched(notes: np.ndarray) -> np.ndarray:
    """All but drums."""
    return notes[notes["channel"] != DRUM_CHANNEL]


def line(notes: np.ndarray, *, highest: bool) -> np.ndarray:
    """The highest or lowest voice of ``notes`` (by start): one note at a time, each ending when the next begins."""
    sign = 1 if highest else -1
    chosen: list[int] = []
    order = np.lexsort((-sign * notes["pitch"], notes["start_s"]))
    starts, ends, pitch = notes["start_s"], notes["end_s"].copy(), sign * notes["pitch"]
    for i in order.tolist():
        if chosen:
            last = chosen[-1]
            if starts[i] - starts[last] < TOGETHER_S:
                if pitch[i] > pitch[last]:
                    chosen[-1] = i
                continue
            if ends[last] > starts[i] + LEGATO_S and pitch[last] > pitch[i]:
                continue
        chosen.append(i)
    result = notes[chosen].copy()
    if len(result):
        result["end_s"][:-1] = np.minimum(result["end_s"][:-1], result["start_s"][1:])
    return result


def melody(notes: np.ndarray, seconds: float) -> np.ndarray:
    """The melody of ``notes`` that sound within ``seconds``: of the part that is most like one, or the highest line."""
    notes = pitched(notes)
    if not len(notes):
        return notes
    keys = sorted({(int(c), int(p)) for c, p in zip(notes["channel"], notes["program"], strict=True)})
    found = {key: notes[select(notes, key)] for key in keys}
    rated = {key: _melodic(part, key[1], seconds) for key, part in found.items()}
    best = max(keys, key=lambda key: rated[key])
    if len(keys) > 1 and rated[best] >= LEAST_MELODY:
        return line(found[best], highest=True)
    return _near_middle(line(notes, highest=True), 1)


def _near_middle(notes: np.ndarray, sign: int) -> np.ndarray:
    """``notes`` of a line without those far below its middle (``sign`` -1: above), heard through its rests."""
    held = notes["end_s"] - notes["start_s"]
    order = np.argsort(notes["pitch"], kind="stable")
    middle = notes["pitch"][order][np.searchsorted(np.cumsum(held[order]), held.sum() / 2)]
    return notes[sign * (notes["pitch"] - middle) > -FAR]


def _melodic(part: np.ndarray, program: int, seconds: float) -> float:
    """How much a part is like a melody: one note at a time, high, moving, through most of the time."""
    held = part["end_s"] - part["start_s"]
    register = float(np.clip((np.average(part["pitch"], weights=held) - 50) / 24, 0, 1))
    rate = len(np.unique(np.round(part["start_s"] / TOGETHER_S))) / seconds
    moving = float(np.clip(rate, 0, 1)) * float(np.clip(12 / max(rate, 1e-6), 0, 1))
    variety = min(len(np.unique(part["pitch"])), 5) / 5
    level = float(np.mean(part["velocity"] / 127 * part["level"]))
    accompanying = 1.0 if program in BASSES else 0.4 if PROGRAMS[program].word in ACCOMPANYING else 0.0
    # What is one note at a time counts most; the rest tells the melody among several lines.
    alone = 1.0 if single_share(part) > ONE_LINE else single_share(part)
    return alone + 0.5 * register + 0.6 * sounding_share(part, seconds) * moving * variety + 0.3 * level - accompanying


def bass(notes: np.ndarray) -> np.ndarray:
    """The bass of ``notes``: of the parts that play one, or the lowest line. Empty if nothing of it is low."""
    notes = pitched(notes)
    played = notes[np.isin(notes["program"], BASSES)]
    result = line(played if len(played) else notes, highest=False)
    if len(result) and not len(played):
        result = _near_middle(result, -1)
    if not len(result) or np.average(result["pitch"], weights=result["end_s"] - result["start_s"]) > HIGHEST_BASS:
        return result[:0]
    return result


def single_share(notes: np.ndarray) -> float:
    """Share of the time in which ``notes`` sound in which only one of them does."""
    times = np.concatenate([notes["start_s"], notes["end_s"] - LEGATO_S / 2])
    order = np.argsort(times, kind="stable")
    sounding = np.cumsum(np.repeat([1, -1], len(notes))[order])[:-1]
    span = np.diff(times[order])
    return float(span[sounding == 1].sum() / max(span[sounding > 0].sum(), 1e-9))


def sounding_share(notes: np.ndarray, seconds: float) -> float:
    """Share of ``seconds`` in which at least one of ``notes`` (by start) sounds; a drum counts as half a second."""
    ends = np.where(notes["channel"] == DRUM_CHANNEL, notes["start_s"] + 0.5, notes["end_s"]).clip(max=seconds)
    if not len(notes):
        return 0.0
    latest = np.maximum.accumulate(ends)
    begins = np.maximum(notes["start_s"], np.concatenate([[0.0], latest[:-1]]))
    return float(np.maximum(ends - begins, 0).sum() / seconds)


def voices(score: Score) -> list[tuple[int, int]]:
    """The (channel, program) of all that plays; drums are one, with program 0."""
    has_drums = bool((score.notes["channel"] == DRUM_CHANNEL).any())
    return parts(score) + ([(DRUM_CHANNEL, 0)] if has_drums else [])


def of_voices(notes: np.ndarray, chosen: list[tuple[int, int]]) -> np.ndarray:
    """Mask (N,) of the notes of ``chosen`` voices."""
    mask = np.zeros(len(notes), bool)
    for channel, program in chosen:
        mask |= notes["channel"] == channel if channel == DRUM_CHANNEL else select(notes, (channel, program))
    return mask


def draw_missing(score: Score, seconds: float, rng: np.random.Generator) -> tuple[list, list] | None:
    """Voices that are given, and those that are missing; None unless both are heard. One is missing, or several."""
    heard = [
        voice
        for voice in voices(score)
        if sounding_share(score.notes[of_voices(score.notes, [voice])], seconds) > LEAST_HEARD
    ]
    if len(heard) < 2:
        return None
    several = rng.random() < 0.35
    number = int(rng.integers(1, len(heard))) if several else 1
    order = [heard[i] for i in rng.permutation(len(heard)).tolist()]
    missing = sorted(order[:number])
    return [voice for voice in voices(score) if voice not in missing], missing
