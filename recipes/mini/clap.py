"""What a model can be told at all: instrument family, drums and tempo, as linear probes read them from CLAP's vectors.

    python -m recipes.mini.clap --data data/train --out recipes/mini/results/clap.json

Probes learn from embeddings of three quarters of a collection's pieces (of captions, and of the recordings) and are
tested on the others, and on the phrases of ``recipes.mini.phrases``: what is not there to be read, no UNet can follow.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import librosa
import numpy as np
import torch
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.metrics import r2_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.results import keep
from musicldm.data.metadata import metadata_rows, row_texts
from musicldm.evaluate import area_under_curve
from musicldm.models.clap import embed_audio, embed_text
from musicldm.train.common import model_folder
from musicldm.train.diffusion.cache import load_conditioner
from recipes.mini.phrases import FAMILIES, OTHERS, PIECES

TEMPI = (65, 160)  # BPM
STATED = re.compile(r"(\d+) (?:BPM|beats per minute)")


def classify(train: np.ndarray, labels: np.ndarray, *tests: np.ndarray) -> list[np.ndarray]:
    """Probabilities (N, K) of the sorted labels for the rows of each of ``tests``, by logistic regression."""
    fitted = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000)).fit(train, labels)
    return [fitted.predict_proba(test) for test in tests]


def regress(train: np.ndarray, values: np.ndarray, *tests: np.ndarray) -> list[np.ndarray]:
    """Values (N,) for the rows of each of ``tests``, by ridge regression."""
    fitted = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-1, 4, 12))).fit(train, values)
    return [fitted.predict(test) for test in tests]


class Material:
    """Some vectors with what is true of them: ``vectors (N, D)``, ``rows`` of the metadata, which ``learn`` (N,)."""

    def __init__(self, vectors: np.ndarray, rows: list[dict]):
        self.vectors, self.rows = vectors, rows
        self.learn = np.array([int(re.sub(r"\D", "", row["piece_id"])) % 4 > 0 for row in rows])

    def parts(self, chosen: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, ...]:
        """Vectors and values to learn from, and those to be tested on, of the ``chosen (N,)``."""
        learn, test = chosen & self.learn, chosen & ~self.learn
        return self.vectors[learn], values[learn], self.vectors[test], values[test]


def probe(material: Material, tempo: np.ndarray, phrases: dict[str, np.ndarray]) -> dict:
    """How well family, drums and ``tempo`` (N,) in BPM, NaN where unknown, are read of others and of ``phrases``."""
    rows, result = material.rows, {}
    families = np.array([row["orchestration"] for row in rows])
    train, labels, test, truth = material.parts(families != "original", families)
    named, *of_phrases = classify(train, labels, test, phrases["families"], phrases["others"])
    classes = np.unique(labels)
    result["family"] = float((classes[named.argmax(axis=1)] == truth).mean())
    for name, said, sure in zip(("phrases", "other_phrases"), (FAMILIES, OTHERS), of_phrases, strict=True):
        asked = np.array([family for family in said for _ in said[family]])
        result[f"family_of_{name}"] = float((classes[sure.argmax(axis=1)] == asked).mean())

    drums = np.array([bool(row["drums"]) for row in rows])
    train, labels, test, truth = material.parts(np.ones(len(rows), bool), drums)
    heard, with_drums, without = classify(train, labels, test, phrases["with drums"], phrases["without drums"])
    result["drums_auc"] = area_under_curve(truth, heard[:, 1])
    sure = np.concatenate([with_drums, without])[:, 1]
    result["drums_auc_of_phrases"] = area_under_curve(np.arange(len(sure)) < len(with_drums), sure)

    train, values, test, truth = material.parts(np.isfinite(tempo), np.log2(tempo))
    predicted, slow, fast = regress(train, values, test, *(phrases[f"{bpm} BPM"] for bpm in TEMPI))
    result["tempo_explained"] = float(r2_score(truth, predicted))
    result["tempo_of_phrases"] = {bpm: float(2 ** x.mean()) for bpm, x in zip(TEMPI, (slow, fast), strict=True)}
    result["tempo_auc_of_phrases"] = area_under_curve(
        np.arange(len(slow) + len(fast)) >= len(slow), np.concatenate([slow, fast])
    )
    return result


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="mini", help="a model, or the final folder of CLAP's training")
    parser.add_argument("--data", type=Path, required=True, help="a folder that `musicldm render` wrote")
    parser.add_argument("--clips", type=int, default=2000, help="spread evenly over the collection")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    clap, tokenizer, feature_extractor = load_conditioner(model_folder("--model", arguments.model))
    clap.eval()

    def read(texts: list[str]) -> np.ndarray:
        batches = [texts[i : i + 64] for i in range(0, len(texts), 64)]
        return torch.cat([embed_text(clap, tokenizer, some) for some in batches]).numpy()

    def hear(path: Path) -> np.ndarray:
        waveform, rate = librosa.load(path, sr=None, mono=True)
        return embed_audio(clap, feature_extractor, torch.from_numpy(waveform)[None], rate).numpy()

    rows = metadata_rows(arguments.data)
    rows = [rows[i] for i in np.linspace(0, len(rows) - 1, min(len(rows), arguments.clips)).astype(int)]
    phrases = {
        "families": read([phrase for some in FAMILIES.values() for phrase in some]),
        "others": read([phrase for some in OTHERS.values() for phrase in some]),
        "with drums": read([f"{piece} and drums" for piece in PIECES]),
        "without drums": read([f"{piece}, without drums" for piece in PIECES]),
        **{f"{bpm} BPM": read([f"{piece} and drums at {bpm} BPM" for piece in PIECES]) for bpm in TEMPI},
    }
    said = [(row, text) for row in rows for text in row_texts(row)]
    captions = Material(read([text for _, text in said]), [row for row, _ in said])
    stated = np.array([float(found[1]) if (found := STATED.search(text)) else np.nan for _, text in said])
    sounds = Material(np.concatenate([hear(arguments.data / row["file_name"]) for row in rows]), rows)
    known = np.array([row["tempo_bpm"] or np.nan for row in rows], float)
    results = {
        "model": arguments.model,
        "clips": len(rows),
        "captions": probe(captions, stated, phrases),
        "recordings": probe(sounds, known, phrases),
    }
    for of in ("captions", "recordings"):
        print(of, {name: value if isinstance(value, dict) else round(value, 3) for name, value in results[of].items()})
    if arguments.out:
        keep(arguments.out, {"probes": results})


if __name__ == "__main__":
    main()
