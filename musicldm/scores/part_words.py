"""What to ask for when parts of a piece are missing: "add a walking bass", "drums only".

The missing parts' notes  ->  a text, in the words of captions
"""

import numpy as np

from musicldm.scores.beats import Grid
from musicldm.scores.captions import MANY, instrument_words, listed, pick, with_article, write_captions
from musicldm.scores.facts import describe, score_facts
from musicldm.scores.general_midi import DRUM_CHANNEL
from musicldm.scores.lexicon import DRUMS_ALONE
from musicldm.scores.parts import BASSES, ONE_LINE, line, single_share
from musicldm.scores.reading import Score

CAPTION_SHARE = 0.35  # of texts that are captions of the missing parts, as of any music
WALKING_BEATS = 0.75  # share of a bass's notes that are a beat apart, from which it walks
WALKING_MOVES = 0.6  # share of them that go to another pitch
STEP = 5  # semitones, the mean of its moves at most
LEAST_WALK = 6  # notes


def missing_text(score: Score, grid: Grid, seconds: float, rng: np.random.Generator) -> str:
    """A text for the notes of ``score``, all of them missing parts, within ``seconds``."""
    attributes = describe(score_facts("", score), score, 0.0, seconds)
    caption = write_captions(attributes, rng, 1)[0]
    names = instrument_words(attributes, rng)[0]
    if rng.random() < CAPTION_SHARE:
        return caption
    notes = score.notes
    drums = bool((notes["channel"] == DRUM_CHANNEL).all())
    if drums and rng.random() < 0.3:
        return pick(rng, DRUMS_ALONE)
    what = [listed(names)]
    if drums:
        what += ["a drum beat", "a drum track", "a drum groove"] if "drums" in attributes["instruments"] else []
    elif len(names) == 1:
        what += _roles(notes, names[0], grid)
    said = pick(rng, what)
    bare = said.removeprefix("a ").removeprefix("an ")
    added = said if said != names[0] or MANY.fullmatch(said) or said == "drums" else with_article(said)
    forms = (
        f"add {added}",
        f"add {added}",
        f"add {added} to this",
        f"{bare} only",
        f"just {added}",
        f"only {added}",
        said,
    )
    return pick(rng, forms)


def _roles(notes: np.ndarray, name: str, grid: Grid) -> list[str]:
    """What one part is called by what it does, each as often as its name."""
    low = bool(np.isin(notes["program"], BASSES).all())
    if low:
        walks = _walks(line(notes, highest=False), grid)
        roles = ["a bass", "a bass line", with_article(f"{name} line")]
        return [*roles, "a walking bass", "a walking bass", "a walking bass line"] if walks else roles
    if single_share(notes) > ONE_LINE:
        return [with_article(f"{name} melody"), with_article(f"{name} line")]
    return [f"{name} chords", with_article(f"{name} accompaniment")]


def _walks(notes: np.ndarray, grid: Grid) -> bool:
    """Whether a bass goes on to another note, not far away, on nearly every beat."""
    if len(notes) < LEAST_WALK or len(grid.times_s) < 2:
        return False
    quarter_s = float(np.median(np.diff(grid.times_s)) / np.median(grid.quarters))
    apart = np.abs(np.diff(notes["start_s"]) / quarter_s - 1) < 0.15
    moves = np.abs(np.diff(notes["pitch"]))
    return bool(apart.mean() >= WALKING_BEATS and (moves > 0).mean() >= WALKING_MOVES and moves.mean() <= STEP)
