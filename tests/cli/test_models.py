"""The commands that read recordings and checkpoints, render and train, each run for real at a tiny size."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml
from transformers import ClapModel

from musicldm import MusicLDMPipeline
from musicldm.audio import read_audio, write_audio
from musicldm.cli import main
from tests.helpers import originals
from tests.helpers.commands import fails, succeeds
from tests.helpers.disk import full_disk
from tests.helpers.golden import recording

RATE = 8000
CONFIGS = Path(__file__).parents[2] / "configs" / "tiny"


def tone(seconds=0.5, rate=RATE):
    return 0.5 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate)) / rate)


# reconstruct


def test_reconstruct_real_recordings(tiny_folder, tmp_path, capsys):
    """A long stereo Ogg file at 44.1 kHz and a FLAC file: resampled, mixed down, and back in full length."""
    names = ("house_in_a_forest.ogg", "arovane_beat_a.flac")
    recordings = [recording(name) for name in names]
    out = tmp_path / "out"
    records = succeeds(capsys, "reconstruct", *recordings, "--model", tiny_folder, "--out", out)
    assert [record["file"] for record in records] == list(map(str, recordings))
    for record, path in zip(records, recordings, strict=True):
        assert record["seconds"] == pytest.approx(soundfile.info(path).duration, abs=0.01)
        assert soundfile.info(record["audio"]).duration == record["seconds"]
        assert 0 < record["log_mel_error"] < 20
        assert 0 < record["vae_error"] < 20
        assert Path(record["figure"]).stat().st_size > 10_000


def test_reconstruct_prints_the_errors(tiny_folder, tmp_path, capsys):
    for name in ("a.wav", "b.flac"):
        write_audio(tmp_path / name, tone(), RATE)
    files = [str(tmp_path / "a.wav"), str(tmp_path / "b.flac")]
    out = ["--model", str(tiny_folder), "--out", str(tmp_path / "out")]
    assert main(["reconstruct", *files, *out, "--mel-only", "--no-figure"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": log-mel error ")[0] for line in lines[:2]] == files
    first, second = (float(line.split(": log-mel error ")[1].split(",")[0]) for line in lines[:2])
    assert first == second > 0
    assert lines[2] == f"mean of 2 recordings: log-mel error {first:.4f}"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a_reconstructed.wav", "b_reconstructed.wav"]


def test_reconstruct_keeps_what_is_there(tiny_folder, tmp_path, capsys):
    write_audio(tmp_path / "a.wav", tone(), RATE)
    call = ["reconstruct", tmp_path / "a.wav", "--model", tiny_folder, "--out", tmp_path, "--no-figure"]
    names = [Path(succeeds(capsys, *call, *extra)[0]["audio"]).name for extra in ([], [], ["--format", "flac"])]
    assert names == ["a_reconstructed.wav", "a_reconstructed_2.wav", "a_reconstructed_3.flac"]


def test_reconstruct_with_parts_from_training(tiny_folder, tmp_path, capsys):
    """--vae and --vocoder take the folders of single parts; together they need no model."""
    write_audio(tmp_path / "a.wav", tone(), RATE)
    call = ["reconstruct", tmp_path / "a.wav", "--out", tmp_path / "out", "--no-figure"]
    (whole,) = succeeds(capsys, *call, "--model", tiny_folder)
    (parts,) = succeeds(
        capsys, *call, "--model", "none", "--vae", tiny_folder / "vae", "--vocoder", tiny_folder / "vocoder"
    )
    assert parts["log_mel_error"] == whole["log_mel_error"]
    assert "cannot be read as AutoencoderKL" in fails(
        capsys, *call, "--model", tiny_folder, "--vae", tiny_folder / "vocoder"
    )


def not_a_number(path):
    samples = tone()
    samples[100] = np.nan
    soundfile.write(path, samples, RATE, subtype="FLOAT")


def cut_off(path):
    write_audio(path.with_suffix(".flac"), np.random.default_rng(0).uniform(-0.9, 0.9, RATE), RATE)
    path.write_bytes(path.with_suffix(".flac").read_bytes()[:5000])
    path.with_suffix(".flac").unlink()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.touch(), "empty file"),
        (lambda path: soundfile.write(path, np.zeros(0), RATE), "no samples"),
        (lambda path: soundfile.write(path, np.zeros(255), RATE), "shorter than one frame"),
        (not_a_number, "nan"),
        (cut_off, "cannot be read as audio"),
        (lambda path: path.write_text("words" * 100), "cannot be read as audio"),
        (lambda path: path.mkdir(), "Is a directory"),
        (lambda path: None, "No such file"),
    ],
)
def test_reconstruct_refuses(make, message, tiny_folder, tmp_path, capsys):
    make(tmp_path / "a.wav")
    error = fails(capsys, "reconstruct", tmp_path / "a.wav", "--model", tiny_folder, "--out", tmp_path / "out")
    assert message in error
    assert str(tmp_path / "a.wav") in error
    assert not (tmp_path / "out").exists()


# convert


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A checkpoint in the authors' layout with its three configurations, and the modules that it was made of."""
    folder = tmp_path_factory.mktemp("checkpoint")
    config = originals.config_of()
    modules = originals.fresh(config)
    torch.save({"state_dict": originals.full_checkpoint(modules)}, folder / "musicldm.ckpt")
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "vocoder.json").write_text(json.dumps(originals.VOCODER_CONFIG))
    (folder / "clap.json").write_text(json.dumps(originals.CLAP_CONFIG))
    return folder, modules


def conversion(folder: Path, out: Path) -> list:
    config = ["--config", folder / "config.yaml", "--vocoder-config", folder / "vocoder.json"]
    return ["convert", folder / "musicldm.ckpt", *config, "--clap-config", folder / "clap.json", "--out", out]


def test_convert(checkpoint, tmp_path, capsys):
    folder, modules = checkpoint
    (record,) = succeeds(capsys, *conversion(folder, tmp_path / "model"))
    assert set(record["parts"]) == {"unet", "vae", "vocoder", "scheduler", "text_encoder", "feature_extractor"}
    pipeline = MusicLDMPipeline.from_pretrained(tmp_path / "model")
    originals.assert_equal_weights(pipeline.unet, modules["unet"], 2.0)  # the average, twice the weights in this file
    originals.assert_equal_weights(pipeline.vae, modules["vae"])
    originals.assert_equal_weights(pipeline.vocoder, modules["vocoder"])
    originals.assert_equal_weights(pipeline.text_encoder, modules["clap"])
    assert [path.name for path in tmp_path.iterdir()] == ["model"]

    assert "model exists already" in fails(capsys, *conversion(folder, tmp_path / "model"))
    (tmp_path / "raw").mkdir()  # an empty folder may be there
    succeeds(capsys, *conversion(folder, tmp_path / "raw"), "--raw-weights")
    originals.assert_equal_weights(MusicLDMPipeline.from_pretrained(tmp_path / "raw").unet, modules["unet"])


def test_convert_a_model_folder_to_another_number_format(tiny_folder, tmp_path, capsys):
    half = tmp_path / "half"
    succeeds(capsys, "convert", tiny_folder, "--dtype", "float16", "--out", half)
    sizes = [sum(file.stat().st_size for file in folder.rglob("*.safetensors")) for folder in (tiny_folder, half)]
    assert 0.45 < sizes[1] / sizes[0] < 0.6
    before, after = (MusicLDMPipeline.from_pretrained(folder) for folder in (tiny_folder, half))
    for old, new in zip(before.unet.parameters(), after.unet.parameters(), strict=True):
        torch.testing.assert_close(new, old.half().float())
    assert "leave the others out" in fails(capsys, "convert", tiny_folder, "--config", "a", "--out", tmp_path / "other")


def test_convert_says_that_a_tokenizer_is_missing(checkpoint, tmp_path, capsys):
    assert main([str(argument) for argument in conversion(checkpoint[0], tmp_path / "model")]) == 0
    out, err = capsys.readouterr()
    assert out.startswith(str(tmp_path / "model"))
    assert err.startswith("musicldm: warning: without a tokenizer")
    assert err.count("\n") == 1


def test_convert_a_part_alone(checkpoint, tmp_path, capsys):
    """LAION's CLAP, say: a folder of what the file has."""
    folder, modules = checkpoint
    state = torch.load(folder / "musicldm.ckpt")["state_dict"]
    clap = {k.removeprefix(originals.CLAP): v for k, v in state.items() if k.startswith(originals.CLAP)}
    torch.save({"state_dict": clap}, tmp_path / "clap.pt")
    call = ["convert", tmp_path / "clap.pt", "--clap-config", folder / "clap.json", "--out", tmp_path / "clap"]
    assert main([str(argument) for argument in call]) == 0
    out, err = capsys.readouterr()
    assert out == f"{tmp_path / 'clap'} (text_encoder, feature_extractor)\n"
    assert "clap.pt has no vae, unet, scheduler, vocoder; what it has is no model by itself" in err
    assert "without a tokenizer" in err
    originals.assert_equal_weights(ClapModel.from_pretrained(tmp_path / "clap" / "text_encoder"), modules["clap"])
    assert {path.name for path in (tmp_path / "clap").iterdir()} == {"text_encoder", "feature_extractor"}


@pytest.mark.parametrize("size", [200, 5000, 40_000])  # bytes that fit: in a configuration, in weights
def test_convert_on_a_full_disk_leaves_nothing_and_says_so(size, checkpoint, tiny_folder, tmp_path, capsys):
    for out, call in (
        ("model", conversion(checkpoint[0], tmp_path / "out" / "model")),
        ("half", ["convert", tiny_folder, "--dtype", "float16", "--out", tmp_path / "out" / "half"]),
    ):
        with full_disk(size):
            code = main([str(argument) for argument in call])
        told = capsys.readouterr().err.strip().splitlines()[-1]
        assert code == 2, told
        assert "the disk is full" in told, told
        assert f"make room on the disk of {tmp_path / 'out'}, or give a folder on another one with --out" in told
        assert not (tmp_path / "out").exists(), out
    succeeds(capsys, *call)


def test_convert_on_a_full_disk_leaves_an_empty_folder_empty(tiny_folder, tmp_path, capsys):
    (tmp_path / "model").mkdir()
    with full_disk(5000):
        assert "the disk is full" in fails(capsys, "convert", tiny_folder, "--out", tmp_path / "model")
    assert [path.name for path in tmp_path.rglob("*")] == ["model"]


def test_convert_refuses(checkpoint, tiny_folder, tmp_path, capsys):
    folder = shutil.copytree(checkpoint[0], tmp_path / "checkpoint")
    call = conversion(folder, tmp_path / "out" / "model")
    tokenizer = tiny_folder / "tokenizer"
    assert "300 pieces" in fails(capsys, *call, "--tokenizer", tokenizer)  # CLAP's text tower here knows 50
    (folder / "config.yaml").write_text(yaml.safe_dump(originals.config_of(width=64)))
    assert "model_ema.diffusion_modelinput_blocks00weight" in fails(capsys, *call)  # which keys do not fit
    (folder / "config.yaml").unlink()
    assert "config.yaml" in fails(capsys, *call)
    shutil.copy(checkpoint[0] / "config.yaml", folder)
    content = (folder / "musicldm.ckpt").read_bytes()
    (folder / "musicldm.ckpt").write_bytes(content[: len(content) // 2])
    assert "musicldm.ckpt" in fails(capsys, *call)
    (folder / "musicldm.ckpt").unlink()
    assert "musicldm.ckpt" in fails(capsys, *call)
    assert not (tmp_path / "out").exists()


# render and train


@pytest.fixture(scope="module")
def score(tmp_path_factory) -> Path:
    """Twelve seconds of an arpeggio for piano."""
    import mido

    track = mido.MidiTrack([mido.MetaMessage("set_tempo", tempo=500_000), mido.Message("program_change", program=0)])
    for i in range(48):
        track.append(mido.Message("note_on", note=60 + (0, 4, 7, 12)[i % 4], velocity=90))
        track.append(mido.Message("note_off", note=60 + (0, 4, 7, 12)[i % 4], time=240))
    path = tmp_path_factory.mktemp("scores") / "arpeggio.mid"
    mido.MidiFile(tracks=[track], ticks_per_beat=480).save(path)
    return path


def test_render_and_train(score, tmp_path, capsys):
    """Scores become a collection, on which a stage trains, stops and goes on."""
    if shutil.which("fluidsynth") is None:
        pytest.skip("needs fluidsynth and a SoundFont")
    data = tmp_path / "data"
    options = ["--variants", 3, "--max-clips", 1, "--clip-s", 4, "--workers", 1, "--tempo-range", 1, 1]
    (made,) = succeeds(capsys, "render", score, "--out", data, *options)
    assert (made["scores"], made["failed"], made["folder"]) == (1, 0, str(data))
    assert 1 <= made["written"] <= 3
    rows = [json.loads(line) for line in (data / "metadata.jsonl").read_text().splitlines()]
    assert len(rows) == made["written"]
    assert read_audio(data / rows[0]["file_name"])[1] == 16_000
    (again,) = succeeds(capsys, "render", score, "--out", data, *options)
    assert (again["written"], again["skipped"]) == (0, made["written"])

    train = ["train", "vae", "--config", CONFIGS / "vae.yaml", f"data={data}", "--out", tmp_path / "run"]
    few = ["batch_size=1", "steps=3", "save_every=2", "validation_batches=1"]
    (trained,) = succeeds(capsys, *train, *few)
    assert trained == {"stage": "vae", "run": str(tmp_path / "run"), "final": str(tmp_path / "run" / "final")}
    assert (tmp_path / "run" / "final" / "config.json").is_file()
    assert "--resume" in fails(capsys, *train, *few)
    succeeds(capsys, *train, "--resume", *few)
