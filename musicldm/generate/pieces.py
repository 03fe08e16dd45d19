"""What a session gives: music with its recipe, as a file and as a picture; or an edited recording."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from musicldm.audio import write_audio
from musicldm.audio.figures import Marks, Shown, save_edit, save_figure
from musicldm.audio.marks import EDITED, NEW, read_mark
from musicldm.editing import Form, Patch, Source, apply, output_form, write_patched
from musicldm.editing.source import FileSource
from musicldm.generate.tempo import loop_of
from musicldm.scores.sketches import Sketch

WHOLE_S = 60.0  # of a longer file a picture shows what is new, and this much around it
AROUND_S = 10.0
MOST_S = 600.0
WHOLLY_NEW = ("vary", "retake")  # kinds of edits in whose pictures no region is marked


@dataclass(frozen=True)
class Piece:
    """Music with all that is known of it."""

    waveform: np.ndarray  # (L,) of a mono model, (A, L) of others
    sampling_rate: int  # Hz
    recipe: dict  # what makes the same music again, and what was found
    score: float | None = None  # cosine similarity to the prompt in CLAP's space; None of one candidate
    novelty: dict | None = None  # what `musicldm.novelty.guard.CopyGuard.judge` found; None unless asked for
    sketch: Sketch | None = None  # that it follows, in its own time

    def save(self, path: str | Path) -> None:
        """Write a WAV or FLAC file with all channels and the recipe inside; errors of `write_audio`.

        The WAV of a loop says that it is one: loop points and, of a loop of bars, beats, meter and tempo. The sketch
        that the music follows is written beside it, as a MIDI file of the same name.
        """
        write_audio(path, self.waveform.T, self.sampling_rate, self.recipe_at(path), NEW, loop_of(self.recipe))
        self.save_sketch(path)

    def recipe_at(self, path: str | Path) -> dict:
        """The recipe in the file ``path``, which names the score beside it."""
        return self.recipe if self.sketch is None else self.recipe | {"midi": Path(path).with_suffix(".mid").name}

    def save_sketch(self, path: str | Path) -> None:
        """Write the sketch, if there is one, as a MIDI file beside ``path``; OSError if it cannot be written."""
        if self.sketch is not None:
            self.sketch.to_midi(Path(path).with_suffix(".mid"))

    def figure(self, path: str | Path) -> None:
        """Write a picture (PNG) of the waveform and its spectrogram; errors of `save_figure`."""
        save_figure(path, self.waveform, self.sampling_rate, title=self.recipe["prompt"])


class EditedPiece(Piece):
    """An edited recording: the original, what of it is new, and the recipe.

    Attributes:
        original: the `Source` that was edited.
        patches: what is new in it; of a retake all, from the first sample on.
        waveform: (A, L) of the result, float32 (float64 of a source of that kind), read when it is asked for.
        sampling_rate: the original's, in Hz.
        remarks: a line for each thing that the model cannot make as it was in the original.
    """

    original: Source
    patches: tuple[Patch, ...]
    remarks: tuple[str, ...]
    _made: Source
    _patches: tuple[Patch, ...]

    def __init__(
        self,
        original: Source,
        patches: Sequence[Patch],
        recipe: dict,
        score: float | None = None,
        novelty: dict | None = None,
        remarks: Sequence[str] = (),
        replaces: bool = False,
        sketch: Sketch | None = None,
    ):
        """``replaces``: the only patch is the whole result, however long the original is."""
        values = {"original": original, "patches": tuple(patches), "recipe": recipe, "score": score}
        values |= {"novelty": novelty, "remarks": tuple(remarks), "sampling_rate": original.rate}
        values |= {"sketch": sketch}
        values |= {"_made": Source.of(patches[0].samples, original.rate) if replaces else original}
        values |= {"_patches": () if replaces else tuple(patches)}
        for name, value in values.items():
            object.__setattr__(self, name, value)  # a frozen dataclass

    @cached_property
    def waveform(self) -> np.ndarray:
        samples = apply(self._made, self._patches)
        if samples.dtype.kind == "i":
            samples = samples / 2.0 ** (8 * samples.dtype.itemsize - 1)
        return samples.astype(np.float64 if self.original.subtype == "DOUBLE" else np.float32, copy=False)

    def form(self, format: str | None = None) -> Form:
        """The container and sample format that `save` writes: the original's, unless ``format`` says otherwise."""
        return output_form(self.original, format)

    def save(self, path: str | Path, format: str | None = None) -> None:
        """Write the result, in the original's container, rate, channels and sample format; errors of `write_patched`.

        ``format`` names another container, such as wav or flac.
        """
        form = self.form(format)
        kind = form.container.lower()
        write_patched(path, self._made, self._patches, kind, form.subtype, self.recipe_at(path), self.mark)
        self.save_sketch(path)

    @property
    def mark(self) -> str:
        """How the result is marked: as new music if nothing of a recording is in it, else as a composite."""
        made_here = isinstance(self.original, FileSource) and read_mark(self.original.path) == NEW
        return NEW if made_here or self.recipe["kind"] == "retake" else EDITED

    def figure(self, path: str | Path) -> None:
        """Write a picture (PNG) of the original above the result, with what is new and the seams marked."""
        regions, rate = self.recipe["regions_s"], self.sampling_rate
        before_s = max([0.0, *(-patch.start / rate for patch in self._patches)])  # what the result has before it
        length_s = before_s + max([self._made.length, *(patch.stop for patch in self._patches)]) / rate
        new = [(start + before_s, stop + before_s) for start, stop in regions]
        first_s, last_s = 0.0, length_s
        if length_s > WHOLE_S:
            first_s = max(0.0, min(start for start, _ in new) - AROUND_S)
            last_s = min(length_s, first_s + MOST_S, max(stop for _, stop in new) + AROUND_S)
        marked = [(max(start, first_s), min(stop, last_s)) for start, stop in new if start < last_s]
        if self.recipe["kind"] in WHOLLY_NEW:
            marked = []
        old = _stretch(self.original, (), first_s - before_s, last_s - before_s)
        made = _stretch(self._made, self._patches, first_s - before_s, last_s - before_s)
        save_edit(
            path,
            Shown(f"before: {self.recipe['source']}", old.waveform, old.starts_s + before_s),
            Shown(f"after: {self.recipe['kind']}", made.waveform, made.starts_s + before_s),
            rate,
            Marks(marked, [seam for seam in self.recipe["seams_s"] if first_s <= seam <= last_s]),
            title=self.recipe["prompt"],
        )


def _stretch(source: Source, patches: Sequence[Patch], first_s: float, last_s: float) -> Shown:
    """The mean of the channels of ``source`` with ``patches``, from ``first_s`` to ``last_s`` of the source's time."""
    begin = min([0, *(patch.start for patch in patches)])
    end = max([source.length, *(patch.stop for patch in patches)])
    start, stop = max(begin, round(first_s * source.rate)), min(end, round(last_s * source.rate))
    mean = np.zeros(stop - start, np.float32)
    at = max(start, 0)
    for block in source.blocks(at, max(at, min(stop, source.length))):
        mean[at - start : at - start + block.shape[1]] = block.mean(axis=0)
        at += block.shape[1]
    for patch in patches:
        low, high = max(patch.start, start), min(patch.stop, stop)
        if low < high:
            mean[low - start : high - start] = patch.samples[:, low - patch.start : high - patch.start].mean(axis=0)
    return Shown("", mean, start / source.rate)
