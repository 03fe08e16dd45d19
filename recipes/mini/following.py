"""Does the bundled model play what it is asked? Instrument family, drums and tempo, measured without its own parts.

    python -m recipes.mini.following --probe FOLDER --renderings RENDERINGS --out recipes/mini/results/following.json

FOLDER holds solo renderings of pieces that no training clip comes from (``recipes.mini.data`` makes it as
``probe``): they teach a support-vector machine to tell families apart. Prompts are the hand-written phrases of
``recipes.mini.phrases``. What the model could reach at best is what a probe that was taught on half of the pieces says
of solos of the others, as recorded, after the vocoder, and after VAE and vocoder. How far percussive energy tells drums
from their absence, RENDERINGS say (``train`` of the same command): bands with their drums and the same without.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import librosa
import numpy as np
import torch

from augment import track_beats
from benchmarks.machine import describe_machine
from musicldm import MusicLDMPipeline
from musicldm.analysis.onsets import onset_rate, percussive_share
from musicldm.data.metadata import metadata_rows
from musicldm.evaluate import area_under_curve, tempo_adherence
from musicldm.evaluate.probe import FamilyProbe, folder_features
from musicldm.generate.reconstruct import reconstruct
from recipes.mini.phrases import FAMILIES, PIECES
from recipes.mini.playing import add_sampler_arguments, load_pipeline, play
from vocoder import mel_config

TEMPI = (65, 160)  # BPM
STATED = (70, 85, 100, 115, 130, 145, 160)  # BPM


def make_probe(folder: Path, pipeline: MusicLDMPipeline, n_solos: int) -> tuple[FamilyProbe, dict[str, float]]:
    """The probe, taught on all of ``folder``, and how often one taught on half of the pieces is right on the others.

    The latter on all recordings, and on ``n_solos`` of them as recorded and after the ``pipeline``'s parts.
    """
    mel = mel_config(pipeline.vocoder)
    rows = [row for row in metadata_rows(folder) if row["orchestration"] != "original"]
    features, families = folder_features(folder, mel)
    even = np.array([int(row["piece_id"].strip("p")) % 2 == 0 for row in rows])
    half = FamilyProbe(features[even], families[even])
    others = np.flatnonzero(~even)
    named = np.array(half.classes)[half.classifier.predict_proba(features[others]).argmax(axis=1)]
    shares = {"recordings": float((named == families[others]).mean())}
    some = others[np.linspace(0, len(others) - 1, n_solos).astype(int)]
    played = [librosa.load(folder / rows[i]["file_name"], sr=mel.sample_rate)[0] for i in some]
    ways = {"solos": None, "solos_after_vocoder": (None,), "solos_after_vae_and_vocoder": (pipeline.vae,)}
    for name, parts in ways.items():
        back = played if parts is None else [reconstruct(x, *parts, pipeline.vocoder).waveform for x in played]
        heard = np.concatenate([half.families(torch.from_numpy(x)[None], mel) for x in back])  # some are shorter
        shares[name] = float((heard == families[some]).mean())
    return FamilyProbe(features, families), shares


def drums_of_renderings(folder: Path, most: int, rate: int) -> dict[str, float]:
    """How well percussive energy tells renderings of ``folder`` with drums from those of the same scores without.

    One of either kind of at most ``most`` scores: what a model reaches that does just as it is asked.
    """
    kinds: tuple[dict[str, str], dict[str, str]] = ({}, {})
    for row in metadata_rows(folder):
        if row["orchestration"] == "original" and (row["drums"] or row.get("drums_left_out")):
            kinds[not row["drums"]].setdefault(row["score"], row["file_name"])
    scores = sorted(set(kinds[0]) & set(kinds[1]))
    scores = [scores[i * len(scores) // most] for i in range(most)] if len(scores) > most else scores
    shares = [
        percussive_share(librosa.load(folder / kind[score], sr=rate)[0], rate) for kind in kinds for score in scores
    ]
    with_drums = np.arange(len(shares)) < len(scores)
    return {"scores": len(scores), "drums_auc": area_under_curve(with_drums, np.array(shares))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_sampler_arguments(parser)
    parser.add_argument("--probe", type=Path, required=True)
    parser.add_argument("--renderings", type=Path, help="of bands, with and without their drums")
    parser.add_argument("--phrases", type=int, default=25, help="of each family, and pairs for drums and tempo")
    parser.add_argument("--solos", type=int, default=128, help="that are sent through the model's parts")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    pipeline = load_pipeline(arguments)
    mel = mel_config(pipeline.vocoder)
    rate, n = mel.sample_rate, arguments.phrases

    def music(prompts: list[str]) -> torch.Tensor:
        return play(pipeline, prompts, mel.clip_s, arguments.steps, arguments.guidance, arguments.interval)

    probe, reachable = make_probe(arguments.probe, pipeline, arguments.solos)
    asked = [family for family in FAMILIES for _ in FAMILIES[family][:n]]
    heard = probe.families(music([phrase for phrases in FAMILIES.values() for phrase in phrases[:n]]), mel)
    right = np.array(asked) == heard
    confusion = {
        family: {other: int((heard[np.array(asked) == family] == other).sum()) for other in probe.classes}
        for family in FAMILIES
    }

    pieces = [PIECES[i % len(PIECES)] for i in range(n)]
    with_drums = music([f"{piece} and drums" for piece in pieces])
    without = music([f"{piece}, without drums" for piece in pieces])
    percussion = [percussive_share(waveform, rate) for waveform in torch.cat([with_drums, without]).numpy()]
    slow, fast = (music([f"{piece} and drums at {bpm} BPM" for piece in pieces]) for bpm in TEMPI)
    onsets = [onset_rate(waveform, rate) for waveform in torch.cat([slow, fast]).numpy()]
    second_half = np.arange(2 * n) >= n

    stated = np.array([STATED[i % len(STATED)] for i in range(n)], float)
    timed = music([f"{piece} and drums, {bpm:.0f} BPM" for piece, bpm in zip(pieces, stated, strict=True)]).numpy()
    tracked = np.array([track_beats(waveform, rate).tempo_bpm or 0.0 for waveform in timed])
    shuffled = [tempo_adherence(np.roll(stated, shift), tracked) for shift in range(1, len(STATED))]

    report = {
        "machine": describe_machine(),
        "settings": {key: str(value) for key, value in vars(arguments).items()},
        "probe_right_on_other_pieces": reachable,
        "family": {
            "share_named_as_asked": float(right.mean()),
            "of_each": {family: float(right[np.array(asked) == family].mean()) for family in FAMILIES},
            "chance": 1 / len(probe.classes),
            "confusion": confusion,
        },
        "drums_auc": area_under_curve(~second_half, np.array(percussion)),
        "tempo_auc": area_under_curve(second_half, np.array(onsets)),
        "stated_tempo": tempo_adherence(stated, tracked)._asdict(),
        "stated_tempo_chance_within_5_percent": float(np.mean([one.within_5_percent for one in shuffled])),
    }
    if arguments.renderings:
        report["renderings"] = drums_of_renderings(arguments.renderings, 100, rate)
    print(json.dumps(report, indent=1))
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
