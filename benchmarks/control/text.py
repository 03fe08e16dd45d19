"""Whether the text is still followed beside a context, and whether the music is as good.

200 phrases for families of instruments, with sketches of pieces and without -> the probe of `recipes.mini.following`
captions, with their pieces' notes and without -> distance by CLAP to other held-out music
"""

from __future__ import annotations

import csv
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.control import asking, summary
from benchmarks.control.following import Study, pieces_of, with_context
from benchmarks.control.playing import Wanted, music
from benchmarks.editing.keep import numbers
from benchmarks.editing.summary import rounded
from musicldm.evaluate.distances import frechet_distance, kernel_distance
from musicldm.evaluate.intervals import half_samples, paired_difference
from musicldm.evaluate.probe import FamilyProbe
from musicldm.models.clap_embedder import ClapEmbedder
from musicldm.scores.hearing import check_audible
from musicldm.scores.rendering import render_scores
from musicldm.scores.sketches import Sketch
from recipes.mini.data import FOLDERS, LEFT_OUT, folder_of
from recipes.mini.phrases import FAMILIES
from vocoder import MelConfig, mel_config

MOST_LOST = 0.05  # of the share of phrases whose family is heard


def make_probe(index: Path, scores: Path, work: Path) -> FamilyProbe:
    """The probe of `recipes.mini.following`, taught on one clip of each solo rendering instead of two."""
    with index.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["source"] not in LEFT_OUT]
    wanted = [scores / row["path"] for row in rows if folder_of(row["piece_id"]) == "probe"]
    render_scores(wanted, work / "probe", replace(FOLDERS["probe"], max_clips=1), index=index)
    return FamilyProbe.train(work / "probe", cache=work / "probe-features")


def heard_family(probe: FamilyProbe, waveform: np.ndarray, rate: int) -> str:
    """The likeliest family of ``waveform (L,)``."""
    probabilities = probe(torch.from_numpy(np.asarray(waveform, np.float32))[None], rate)
    return probe.classes[int(probabilities[0].argmax())]


def sketches(study: Study) -> tuple[list[Sketch], list[Sketch]]:
    """Of different pieces: of drums, and of all notes but drums, as one would give them to a single instrument."""
    drums = [asking.drums(piece) for piece in pieces_of("drums", study)]
    melodic = [Sketch.from_midi(piece.midi, asking.tracks(piece, drums=False)) for piece in pieces_of("notes", study)]
    mel = mel_config(study.player.pipeline.vocoder)
    return tuple([sketch for sketch in some if is_audible(sketch, mel)] for some in (drums, melodic))


def is_audible(sketch: Sketch, mel: MelConfig) -> bool:
    try:
        check_audible(sketch, mel)
    except ValueError:
        return False
    return True


def followed(study: Study, probe: FamilyProbe, phrases: int) -> dict:
    """The share of phrases whose family is heard, with a sketch of some piece and without."""
    asked = [(family, i, text) for family, texts in FAMILIES.items() for i, text in enumerate(texts[:phrases])]
    names = [f"{family}-{i:02d}" for family, i, _ in asked]
    columns = {"text": [Wanted(name, text) for name, (_, _, text) in zip(names, asked, strict=True)]}
    if study.player.takes_context:
        drums, others = sketches(study)
        given = [
            {"drums": drums[i % len(drums)]} if family == "drums" else {"notes": others[k % len(others)]}
            for k, (family, i, _) in enumerate(asked)
        ]
        columns["context"] = [
            Wanted(one.name, one.prompt, context) for one, context in zip(columns["text"], given, strict=True)
        ]
    rows = {}
    for column, wanted in columns.items():
        files = study.player.play(wanted, f"phrases-{column}", study.guidance)
        heard = [
            numbers(
                file.with_suffix(".family.json"),
                lambda file=file: {"family": heard_family(probe, music(file, study.rate), study.rate)},
            )["family"]
            for file in files
        ]
        rows[column] = [{"family_as_asked": float(one == each[0])} for one, each in zip(heard, asked, strict=True)]
    told = {"phrases": len(asked), "measures": summary.of_columns(rows)}
    if "context" in rows:
        told["lost"] = lost(*([row["family_as_asked"] for row in rows[column]] for column in ("context", "text")))
    return told


def lost(with_context: list[float], without: list[float]) -> dict:
    """How much lower a share is with a context, over the same phrases, beside the most that it may be."""
    difference, _ = paired_difference(np.array(with_context), np.array(without))
    return rounded(difference) | {"at_most": MOST_LOST, "reached": bool(difference.value <= MOST_LOST)}


def quality(study: Study) -> dict:
    """Distances by the model's CLAP to held-out pieces that nothing here is made of; lower is better."""
    pieces, files = pieces_of("notes", study), []
    if study.player.takes_context:
        pieces, _, files = with_context("notes", study)
    asked = {piece.row["piece_id"] for piece in pieces}
    others = [piece for piece in study.pieces if piece.row["piece_id"] not in asked]
    text = study.player.pipeline
    clap = ClapEmbedder(text.text_encoder, text.feature_extractor, study.rate)
    sets = {"text": [music(file, study.rate) for file in study.text_alone(pieces)]}
    sets["true"] = [piece.waveform(study.rate) for piece in pieces]
    back = study.player.round_trip(((piece.name, piece.waveform(study.rate)) for piece in pieces), "pieces")
    sets["round_trip"] = [music(file, study.rate) for file in back]
    if files:
        sets["context"] = [music(file, study.rate) for file in files]
    reference = embedded(clap, [piece.waveform(study.rate) for piece in others], study.rate)
    vectors = {name: embedded(clap, some, study.rate) for name, some in sets.items()}
    told: dict = {"clips": len(pieces), "reference": len(others), "measures": {}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of few clips: all sets have as many, and the same bias
        for measure, distance in (("frechet_clap", frechet_distance), ("kernel_clap", kernel_distance)):
            told["measures"][measure] = {
                name: rounded(half_samples(lambda rows, d=distance: d(rows, reference), some))
                for name, some in vectors.items()
            }
            if "context" in vectors:
                told[f"{measure}_more_than_without"] = more(vectors["context"], vectors["text"], reference, distance)
    return told


def more(made: np.ndarray, without: np.ndarray, reference: np.ndarray, distance) -> dict:
    """By how much one set is farther from ``reference`` than another of the same prompts."""
    places = np.arange(len(made))
    found = half_samples(lambda at: distance(made[at], reference) - distance(without[at], reference), places)
    return rounded(found) | {"reached": bool(found.low <= 0)}


def embedded(clap: ClapEmbedder, waveforms: list[np.ndarray], rate: int) -> np.ndarray:
    """Unit vectors (N, D) of waveforms (L,)."""
    return np.concatenate([clap(torch.from_numpy(one.astype(np.float32))[None], rate) for one in waveforms])
