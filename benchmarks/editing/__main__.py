"""Editing, extension, loops, tempo and long form, beside plain methods on the same cases.

    python -m benchmarks.editing --recordings RECORDINGS --scores SCORES --index index.csv \\
        --work DIR --out benchmarks/results/editing.json

RECORDINGS is a folder of music, SCORES one of MIDI files with a table of facts, of which those that `mini` did not
learn from are rendered. Each piece goes through the model's VAE and vocoder first, so that seams are judged and not
the codec; ``original`` are recordings as they are. What is made is kept in DIR: a run that was stopped goes on.

Seams are judged by the rank of the change there among the changes at the piece's own beats (0.5: as at any beat), and
by classifiers that tell joined places from true ones of other pieces, which hear 0.1, 0.5 or 2 s to either side (area
under the curve; 0.5: they cannot).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks.editing import edits, formats, long_form, loops, seams, summary, tempos, varying
from benchmarks.editing.pieces import RENDERED, Piece, prepare
from benchmarks.results import keep
from musicldm.generate import Session

KINDS = ("kept", "inpaint", "extend", "loop", "tempo", "vary", "long")
CASES = {"inpaint": 120, "extend": 120, "loop": 120, "bars": 40, "tempo": 40, "vary": 40}


class Run:
    """What all kinds of cases need, opened once."""

    def __init__(self, options: argparse.Namespace):
        self.options, self.work = options, options.work
        self.pipelines = edits.Pipelines.load(options.model)
        self.session = Session(options.model, device="cpu")
        found = prepare(self.pipelines.text, options)
        turns = zip_turns([p for p in found if p.recorded], [p for p in found if not p.recorded])
        self.pieces: list[Piece] = list(turns)

    def some(self, kind: str) -> list[Piece]:
        """The pieces that cases of ``kind`` are made of, recordings spread among renderings."""
        return self.pieces[: self.options.cases or CASES[kind]]

    def each(self, kind: str, measure: Callable, items: list) -> list[dict]:
        return [measure(*item) for item in tqdm(items, desc=kind)]

    def kept(self) -> dict:
        piece = self.pieces[0]
        found = self.each(
            "kept", lambda *form: formats.kept_samples(piece, form, self.pipelines, self.work), formats.forms()
        )
        names = ["-".join(str(part) for part in form) for form in formats.forms()]
        return formats.summarized(dict(zip(names, found, strict=True)))

    def edits(self, kind: str) -> dict:
        """Inpainting or extension: seams and fits by method; original recordings beside them."""
        told = {}
        for source, chosen in (("coded", self.some(kind)), ("original", [p for p in self.some(kind) if p.recorded])):
            cases = seams.cases_of(chosen, kind, len(chosen))
            methods = edits.METHODS if source == "coded" else ("ours",)
            found = {
                method: self.each(
                    f"{kind}, {source}, {method}",
                    lambda case, m=method, s=source: seams.measured(case, m, self.pipelines, s, self.work),
                    [(case,) for case in cases],
                )
                for method in ("true", *methods)
            }
            true = found.pop("true")
            of_source = {method: summary.of_seams(cases, rows, true) for method, rows in found.items()}
            of_source["true_beats"] = summary.of_seams(cases, true, true, judged=False)
            of_source["fit"] = {method: summary.of_fits(cases, rows, true) for method, rows in found.items()}
            told[source] = of_source
        return told

    def loop(self) -> dict:
        told = {"any_length": {}, "bars": {}}
        for method in loops.METHODS:
            items = [(piece, i, method) for i, piece in enumerate(self.some("loop"))]
            rows = self.each(f"loop, {method}", lambda *item: loops.closed(*item, self.pipelines, self.work), items)
            told["any_length"][method] = summary.of_loops(rows)
            items = [(piece, i, method) for i, piece in enumerate(self.some("bars"))]
            rows = self.each(f"bars, {method}", lambda *item: loops.in_bars(*item, self.session, self.work), items)
            told["bars"][method] = summary.of_bars(rows)
        return told

    def tempo(self) -> dict:
        told, chosen = {}, self.some("tempo")
        for method in tempos.METHODS:
            items = [(piece, tempos.bpm_of(i, len(chosen)), method) for i, piece in enumerate(chosen)]
            rows = self.each(f"tempo, {method}", lambda *item: tempos.at_tempo(*item, self.session, self.work), items)
            told[method] = summary.of_tempos(rows)
        return told

    def vary(self) -> dict:
        items = [(piece,) for piece in self.some("vary")]
        varied = self.each("vary", lambda piece: varying.varied(piece, self.pipelines, self.work), items)
        retaken = self.each("retake", lambda piece: varying.retaken(piece, self.pipelines, self.work), items)
        return {"variations": summary.of_amounts(varied), "retakes": summary.of_amounts(retaken)}

    def long(self) -> dict:
        told = {}
        for seconds, (_, count) in long_form.PIECES.items():
            count = min(count, self.options.cases or count)
            told[f"{seconds:g} s"] = {
                method: summary.of_long(
                    self.each(
                        f"long, {seconds:g} s, {method}",
                        lambda *item: long_form.piece(*item, self.options.model, self.pipelines, self.work),
                        [(i, seconds, method) for i in range(count)],
                    )
                )
                for method in long_form.METHODS
            }
        return told


def zip_turns(few: list, many: list) -> list:
    """Both lists as one, those of the shorter spread evenly."""
    keyed = [((i + 0.5) / len(part), one) for part in (few, many) for i, one in enumerate(part)]
    return [one for _, one in sorted(keyed, key=lambda pair: pair[0])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recordings", type=Path, required=True, help="folder of music")
    parser.add_argument("--scores", type=Path, required=True, help="folder of MIDI files")
    parser.add_argument("--index", type=Path, required=True, help="table of what is known of each score")
    parser.add_argument("--work", type=Path, required=True, help="folder for what is made; it may be used again")
    parser.add_argument("--model", default="mini")
    parser.add_argument("--rendered", type=int, default=RENDERED, help="held-out scores that are rendered")
    parser.add_argument("--cases", type=int, help="of each kind; by default as many as the published numbers have")
    parser.add_argument("--only", choices=KINDS, nargs="+", default=KINDS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    run = Run(options)
    for kind in options.only:
        told = run.edits(kind) if kind in ("inpaint", "extend") else getattr(run, kind)()
        print(json.dumps({kind: told}, indent=1), flush=True)
        if options.out:
            keep(options.out, {kind: told})


if __name__ == "__main__":
    main()
