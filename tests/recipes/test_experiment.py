"""The mixup experiment, whole, on twelve small scores: its beats are the scores', its table has every measure."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest

from musicldm.audio import write_audio
from musicldm.models.clap import clap_feature_extractor
from musicldm.pipelines.text_to_music import MusicLDMPipeline
from musicldm.scores.reading import read_score
from recipes.mixup_experiment import run as experiment
from recipes.mixup_experiment import table as experiment_table
from recipes.mixup_experiment.data import draw_rows, score_beats
from recipes.mixup_experiment.scores import Piece, write_piece
from tests.helpers.melodies import RATE
from tests.helpers.tiny import MEL
from vocoder import make_generator

SECONDS, FACTOR = 4.0, 1.1


def row_of(score: str, bpm: float, start_s: float) -> dict:
    """As `musicldm render` would describe ``SECONDS`` of a score played ``FACTOR`` times as fast."""
    about = {"score": score, "piece_id": score, "start_s": start_s, "duration_s": SECONDS, "tempo_factor": FACTOR}
    return about | {"tempo_bpm": bpm * FACTOR, "quarter_notes_per_min": bpm * FACTOR, "key": None}


@pytest.mark.parametrize(("beats_per_bar", "start_s"), [(3, 0.0), (4, 2.3)])
def test_beats_are_those_of_the_score(tmp_path, beats_per_bar, start_s):
    piece = Piece(96.0, beats_per_bar)
    times = write_piece(piece, 20.0, tmp_path / "a.mid")
    score = read_score(tmp_path / "a.mid")._replace(metres=[(0.0, beats_per_bar, 4)])
    beats_s, downbeats_s, count = score_beats(score, row_of("a.mid", 96.0, start_s))
    expected = times / FACTOR - start_s
    inside = (expected >= 0) & (expected < SECONDS)
    np.testing.assert_allclose(beats_s, expected[inside], atol=2e-3)
    np.testing.assert_allclose(downbeats_s, expected[inside & (np.arange(len(times)) % beats_per_bar == 0)], atol=2e-3)
    assert count == beats_per_bar
    assert not len(score_beats(score, row_of("a.mid", 90.0, start_s))[0])  # the caption contradicts the tempo map
    assert not len(score_beats(score, row_of("a.mid", 96.0, start_s) | {"tempo_bpm": None})[0])


@pytest.fixture
def rendered(tmp_path):
    """Twelve noisy clips of four seconds, a click on every beat of their scores, and a model that hears them."""
    folder = tmp_path / "data"
    (folder / "audio").mkdir(parents=True)
    rng, rows = np.random.default_rng(0), []
    for i in range(12):
        bpm, name = 100.0 + i % 3, f"{i}.mid"
        times = write_piece(Piece(bpm, seed=i), 12.0, folder / name) / FACTOR
        waveform = 0.02 * rng.normal(size=round(SECONDS * RATE))
        for time in times[times < SECONDS - 0.1]:
            first = round(time * RATE)
            waveform[first : first + 800] += 0.3 * np.sin(np.arange(800) * (0.05 + 0.02 * i))
        write_audio(folder / "audio" / f"{i}.wav", waveform, RATE)
        row = row_of(name, bpm, 0.0) | {"file_name": f"audio/{i}.wav", "text": f"solo {('organ', 'piano')[i % 2]}"}
        rows.append(row | {"split": "validation" if i > 9 else "train", "orchestration": ("organ", "piano")[i % 2]})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.slow
def test_the_experiment_makes_its_table_and_goes_on(rendered, tiny_parts, tmp_path, monkeypatch, capsys):
    assert [row["file_name"] for row in draw_rows(rendered, 8)] == [row["file_name"] for row in draw_rows(rendered, 8)]
    with pytest.raises(ValueError, match="11 were asked for"):
        draw_rows(rendered, 11, "train")
    mel = replace(MEL, clip_s=2.56)
    front_end = clap_feature_extractor(RATE, 4, hop_length=640, n_mels=16, f_max=8000.0)
    vocoder = make_generator(mel, 16, (5, 4, 4), (9, 8, 8))
    MusicLDMPipeline(**tiny_parts | {"feature_extractor": front_end, "vocoder": vocoder}).save_pretrained(
        tmp_path / "model"
    )
    settings = [f"mel.{key}={getattr(mel, key)}" for key in vars(mel)] + ["steps=2", "batch_size=2"]
    settings += ["validate_every=2", "validation_batches=1", "save_every=2", "cooldown_steps=0"]
    out = tmp_path / "experiment.json"
    options = {"scores": rendered, "probe": rendered, "clips": 10, "validation": 2, "held-clips": 8, "prompts": 6}
    options |= {"modes": "none,latent", "seeds": "0", "config": "tiny", "model": tmp_path / "model", "out": out}
    options |= {"sampler-steps": 2, "batch": 4, "work": tmp_path / "work"}
    command = ["experiment", rendered, rendered, *settings]
    command += [f"--{name}={value}" for name, value in options.items()]
    monkeypatch.setattr(sys, "argv", [str(part) for part in command])
    experiment.main()
    table = json.loads(out.read_text())["10_clips"]
    assert table["training_set"] == {"clips": 10, "pieces": 10, "with_beats": 10}
    for mode in ("none", "latent"):
        assert set(experiment.TABLE) <= set(table["modes"][mode]["together"])
    assert set(table["modes"]["latent"]["against_none"]) == set(experiment.TABLE)
    shown = experiment_table.table(table)
    assert shown.count("\n") == 4
    assert "| `latent` |" in shown
    assert experiment_table.picture({"10 clips": table}).startswith(b"\x89PNG")
    written = [path.stat().st_mtime_ns for path in sorted(tmp_path.glob("work/10/runs/*/final/unet/*"))]
    assert len(written) == 4
    (tmp_path / "work" / "10" / "runs" / "latent-0" / "evaluation" / "metrics.json").unlink()
    experiment.main()
    assert [path.stat().st_mtime_ns for path in sorted(tmp_path.glob("work/10/runs/*/final/unet/*"))] == written
    again = json.loads(out.read_text())["10_clips"]["modes"]["latent"]["together"]["frechet_distance_clap"]
    assert again["value"] == pytest.approx(table["modes"]["latent"]["together"]["frechet_distance_clap"]["value"])
