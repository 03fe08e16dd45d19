"""CLAP's other ways of learning: from a larger model, and from recordings longer than what a tower hears."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from musicldm.config import CLAPConfig
from musicldm.data.metadata import metadata_rows
from musicldm.models.clap import embed_audio, embed_text, read_tempo, regression_loss
from musicldm.train import clap, run
from musicldm.train.diffusion.cache import load_conditioner

RATE, CLIP_S = 16_000, 1.28
SHORT = ["trackers=[]", "save_every=1000", "validate_every=1000", "batch_size=4"]


@pytest.fixture(scope="module")
def collection(tmp_path_factory) -> Path:
    """Eight tones, high and low."""
    folder = tmp_path_factory.mktemp("collection")
    time_s = np.arange(round(CLIP_S * RATE)) / RATE
    rows = []
    for i in range(8):
        tone = 0.4 * np.sin(2 * np.pi * (1800 if i % 2 else 220) * (1 + i / 50) * time_s)
        soundfile.write(folder / f"{i}.wav", tone, RATE)
        rows.append({"file_name": f"{i}.wav", "texts": [f"{'high' if i % 2 else 'low'} tone", f"tone number {i}"]})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def fused(collection, tmp_path_factory) -> Path:
    """Towers that hear 0.6 s and the whole of a clip shrunk to that."""
    overrides = [*SHORT, "fusion=true", "audio_s=0.6", "steps=3", "caption_views=2"]
    return run("clap", "tiny", collection, tmp_path_factory.mktemp("runs") / "fused", overrides=overrides)


def embeddings(folder: Path, collection: Path) -> torch.Tensor:
    """Of two recordings and two texts, (4, D)."""
    clap, tokenizer, feature_extractor = load_conditioner(folder)
    waveforms = torch.stack([torch.from_numpy(soundfile.read(collection / f"{i}.wav")[0]).float() for i in (0, 1)])
    with torch.no_grad():
        heard = embed_audio(clap.eval(), feature_extractor, waveforms, RATE)
        return torch.cat([heard, embed_text(clap, tokenizer, ["low tone", "high tone"])])


def test_fusion_is_trained_and_saved(fused, collection):
    towers, _, feature_extractor = load_conditioner(fused)
    assert towers.config.audio_config.enable_fusion
    assert feature_extractor.truncation == "fusion"
    changed = {name for name, p in towers.named_parameters() if "fusion_model" in name and "weight" in name}
    assert changed
    assert embeddings(fused, collection).isfinite().all()
    with pytest.raises(ValueError, match="longer than audio_s"):
        CLAPConfig(fusion=True, audio_s=10.24)


def test_a_fused_model_to_start_from_goes_on_hearing_random_places(fused, collection, tmp_path, monkeypatch):
    """Without saying ``fusion=true`` again: what the weights are decides."""
    heard = []

    def spy(towers, waveform, config, feature_extractor, generator=None, original=clap.log_mel_of):
        made = original(towers, waveform, config, feature_extractor, generator)
        still = original(towers, waveform, config, feature_extractor)
        heard.append((generator is not None, made.shape[1], bool((made == still).all())))
        return made

    monkeypatch.setattr(clap, "log_mel_of", spy)
    run("clap", "tiny", collection, tmp_path / "run", overrides=[*SHORT, f"init={fused}", "audio_s=0.6", "steps=1"])
    assert (True, 4, False) in heard


@pytest.mark.slow
def test_smaller_towers_learn_the_embeddings_of_a_larger_model(fused, collection, tmp_path):
    overrides = [*SHORT, f"distill={fused}", "text_width=16", "audio_width=8", "steps=40", "caption_views=2"]
    with pytest.raises(ValueError, match="embedding_size=32"):
        run("clap", "tiny", collection, tmp_path / "a", overrides=[*overrides, "embedding_size=16"])
    with pytest.raises(FileNotFoundError, match="nowhere"):
        run("clap", "tiny", collection, tmp_path / "a", overrides=["distill=nowhere"])
    assert not (tmp_path / "a").exists()
    student = run("clap", "tiny", collection, tmp_path / "b", overrides=overrides)
    likeness = (embeddings(student, collection) * embeddings(fused, collection)).sum(dim=1)
    assert likeness.min() > 0.8


def test_a_frozen_audio_tower_keeps_its_embeddings(tiny_folder, collection, tmp_path):
    with pytest.raises(ValueError, match="freeze_audio needs a trained audio tower"):
        run("clap", "tiny", collection, tmp_path / "a", overrides=["freeze_audio=true"])
    overrides = [*SHORT, f"init={tiny_folder}", "freeze_audio=true", "steps=4", "audio_s=0.6"]
    frozen = run("clap", "tiny", collection, tmp_path / "b", overrides=overrides)
    before, after = embeddings(tiny_folder, collection), embeddings(frozen, collection)
    assert torch.equal(before[:2], after[:2])  # audio
    assert not torch.allclose(before[2:], after[2:], atol=1e-4)  # texts
    both = run("clap", "tiny", collection, tmp_path / "c", overrides=[o for o in overrides if "freeze" not in o])
    assert not torch.allclose(before[:2], embeddings(both, collection)[:2], atol=1e-4)


def test_settings_that_could_not_take_effect_are_refused(tiny_folder, collection, tmp_path):
    unfused = [f"init={tiny_folder}", "fusion=true", "audio_s=0.6"]
    with pytest.raises(ValueError, match="has no fusion; start from a model with it"):
        run("clap", "tiny", collection, tmp_path / "a", overrides=[*SHORT, *unfused])
    for weight in ("contrary_weight=2", "tempo_weight=2"):
        both = [f"distill={tiny_folder}", weight]
        with pytest.raises(ValueError, match=rf"{weight}.*leave one out"):
            run("clap", "tiny", collection, tmp_path / "a", overrides=[*SHORT, *both])
    assert not (tmp_path / "a").exists()


def test_regression_loss_compares_each_modality_with_itself():
    generator = torch.Generator().manual_seed(0)
    views = torch.nn.functional.normalize(torch.randn(3, 5, 8, generator=generator), dim=-1)
    assert regression_loss(views, views).abs() < 1e-6
    opposite = views.clone()
    opposite[0] = -views[0]
    assert regression_loss(views, opposite) == pytest.approx(1.0)  # half of the audio's 2, none of the captions'


def captioned(collection, folder, change):
    """A ``folder`` with the recordings of ``collection``, each of its captions changed."""
    folder.mkdir()
    rows = metadata_rows(collection)
    for row in rows:
        (folder / row["file_name"]).symlink_to(collection / row["file_name"])
        row["texts"] = [change(text) for text in row["texts"]]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_contrary_captions_teach_what_other_clips_do_not(collection, tmp_path):
    """All clips are slow, so that only captions which call them fast show what the word means."""
    slow = captioned(collection, tmp_path / "slow", lambda text: f"slow {text}")
    nearer = {}
    for name in ("0", "1"):
        overrides = [*SHORT, "steps=40", "caption_views=2", f"contrary_weight={name}"]
        clap, tokenizer, feature_extractor = load_conditioner(
            run("clap", "tiny", slow, tmp_path / name, overrides=overrides)
        )
        waveforms = torch.stack([torch.from_numpy(soundfile.read(slow / f"{i}.wav")[0]).float() for i in (0, 1)])
        with torch.no_grad():
            heard = embed_audio(clap.eval(), feature_extractor, waveforms, RATE)
            right, wrong = (
                embed_text(clap, tokenizer, [f"{word} low tone", f"{word} high tone"]) for word in ("slow", "fast")
            )
        nearer[name] = float((heard * (right - wrong)).sum(dim=1).mean())
    assert nearer["1"] > 0.05 > nearer["0"]


def test_the_tempo_of_captions_is_read_from_captions_and_audio(collection, tmp_path):
    timed = captioned(collection, tmp_path / "timed", lambda text: f"{text} at {160 if 'high' in text else 65} BPM")
    rows = metadata_rows(timed)
    overrides = [*SHORT, "steps=60", "tempo_weight=4", "contrary_weight=1"]
    clap, tokenizer, front_end = load_conditioner(run("clap", "tiny", timed, tmp_path / "run", overrides=overrides))
    waveforms = torch.stack([torch.from_numpy(soundfile.read(timed / row["file_name"])[0]).float() for row in rows])
    with torch.no_grad():
        heard = read_tempo(embed_audio(clap.eval(), front_end, waveforms, RATE)).exp2()
        slow, fast = read_tempo(embed_text(clap, tokenizer, ["low tone at 65 BPM", "low tone at 160 BPM"])).exp2()
    high = torch.tensor(["160" in row["texts"][0] for row in rows])
    assert heard[high].min() > heard[~high].max()
    assert slow < 90 < 120 < fast
