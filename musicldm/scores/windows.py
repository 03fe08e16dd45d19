"""Where to cut clips out of a score, and whether what came out is music or silence.

Score -> choose_windows -> (start_s, end_s), ... ; waveform (L, channels) -> sounds, heard
"""

import numpy as np

from musicldm.scores.reading import Score

FRAME_S = 0.05
SILENCE_DB = -60.0  # of a frame, below the loudest one
REST_S = 0.5  # silences up to here belong to the rhythm
SPARES = 2  # windows, for each clip that is wanted, for when one turns out to be silent
TAIL_S = 1.0  # after the last note of a whole piece


def choose_windows(
    score: Score,
    clip_s: float | None,
    max_clips: int,
    min_clip_s: float,
    max_silence_s: float,
    rng: np.random.Generator,
) -> list[tuple[float, float]]:
    """Windows (start_s, end_s) that do not overlap: first ``max_clips`` spread over the piece, then spare ones.

    ``clip_s`` None gives the whole piece. When no stretch without a long silence holds a clip, the longest stretch is
    the one window, unless it is shorter than ``min_clip_s``.
    """
    if not len(score.notes):
        return []
    spans = music_spans(score.notes, max_silence_s)
    if clip_s is None:
        return [(spans[0][0], spans[-1][1] + TAIL_S)]
    long = [(a, b) for a, b in spans if b - a >= clip_s]
    if not long:
        a, b = max(spans, key=lambda span: span[1] - span[0])
        return [(a, b)] if b - a >= min_clip_s else []
    slots = []  # as many clips as fit, what is left over spread between them at random
    for a, b in long:
        n = int((b - a) // clip_s)
        gaps = np.sort(rng.uniform(0.0, b - a - n * clip_s, n))
        slots += [(a + gap + i * clip_s, a + gap + (i + 1) * clip_s) for i, gap in enumerate(gaps.tolist())]
    chosen = {int((i + rng.random()) / max_clips * len(slots)) for i in range(max_clips)}  # one of each equal share
    spare = [i for i in rng.permutation(len(slots)).tolist() if i not in chosen]
    return [slots[i] for i in [*sorted(chosen), *spare[: SPARES * max_clips]]]


def music_spans(notes: np.ndarray, gap_s: float) -> list[tuple[float, float]]:
    """Stretches (start_s, end_s) in which no silence between notes is longer than ``gap_s``."""
    latest = np.maximum.accumulate(notes["end_s"])
    cuts = np.flatnonzero(notes["start_s"][1:] > latest[:-1] + gap_s)
    starts = notes["start_s"][np.concatenate([[0], cuts + 1])]
    ends = latest[np.concatenate([cuts, [len(notes) - 1]])]
    return [(float(a), float(b)) for a, b in zip(starts, ends, strict=True)]


def sounds(audio: np.ndarray, sample_rate: int, min_sound: float, max_silence_s: float) -> bool:
    """Whether enough of ``audio`` (L, channels) is heard and no silence in it, at its ends neither, is too long."""
    loud = _loud(audio, sample_rate)
    silences_s = _runs(~loud) * FRAME_S
    silent = silences_s[silences_s > REST_S].sum() / (len(loud) * FRAME_S)
    return bool(loud.any()) and bool(1 - silent >= min_sound) and silences_s.max(initial=0.0) <= max_silence_s


def heard(audio: np.ndarray, sample_rate: int, max_silence_s: float) -> list[tuple[int, int]]:
    """Stretches (first sample, end) of ``audio`` (L, channels) without silence at its ends.

    Between two of them lies what is longer than ``max_silence_s`` of a silence.
    """
    frame = round(FRAME_S * sample_rate)
    loud = np.flatnonzero(_loud(audio, sample_rate))
    if not len(loud):
        return []
    keep = round(max_silence_s / FRAME_S)
    blocks = np.split(loud, np.flatnonzero(np.diff(loud) > keep) + 1)
    ends = [block[-1] + keep for block in blocks[:-1]] + [blocks[-1][-1] + 1]
    return [(int(b[0]) * frame, int(end) * frame) for b, end in zip(blocks, ends, strict=True)]


def _loud(audio: np.ndarray, sample_rate: int) -> np.ndarray:
    """Mask of the frames of FRAME_S that are heard."""
    frame = round(FRAME_S * sample_rate)
    n = len(audio) // frame
    power = np.square(audio[: n * frame]).reshape(n, -1).mean(axis=1)
    return power > max(power.max(initial=0.0) * 10 ** (SILENCE_DB / 10), 1e-12)


def _runs(mask: np.ndarray) -> np.ndarray:
    """Lengths of the stretches in which ``mask`` is true."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(int)))
    return edges[1::2] - edges[::2]
