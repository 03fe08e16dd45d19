"""The four trainers, at the size of ``configs/tiny``: they learn, they resume exactly, they refuse what is wrong."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file

from musicldm.config import DiffusionConfig, VAEConfig, save_config
from musicldm.train import common, run
from musicldm.train.clap import CLAPStage
from musicldm.train.log import METRICS_FILE, Log
from musicldm.train.run_folder import CONFIG_FILE, STATE_FILE, checkpoints
from musicldm.train.vae import VAEStage, initial_vae
from musicldm.train.vocoder import VocoderStage
from vocoder import MelConfig

pytestmark = pytest.mark.slow

CONFIGS = Path(__file__).parents[2] / "configs" / "tiny"
RATE, CLIP_S = 16_000, 1.28


@pytest.fixture(scope="module")
def collection(tmp_path_factory) -> Path:
    """Forty short recordings of two kinds, low and high, with captions; four are held out."""
    folder = tmp_path_factory.mktemp("collection")
    rng = np.random.default_rng(0)
    time_s = np.arange(round(CLIP_S * RATE)) / RATE
    rows = []
    for i in range(40):
        high = i % 2 == 1
        frequency = (1800 if high else 220) * rng.uniform(0.9, 1.1)
        tone = 0.4 * np.sin(2 * np.pi * frequency * time_s) * np.exp(-4 * (4 * time_s % 1))
        soundfile.write(folder / f"{i:02d}.flac", tone, RATE)
        text = "a high flute, fast" if high else "a low cello, slow"
        split = "validation" if i >= 36 else "train"
        rows.append({"file_name": f"{i:02d}.flac", "text": text, "split": split})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def trained(collection, tmp_path_factory) -> dict[str, Path]:
    """Run folders of all four stages."""
    root = tmp_path_factory.mktemp("runs")
    for stage in ("vae", "vocoder", "clap", "diffusion"):
        run(stage, CONFIGS / f"{stage}.yaml", collection, root / stage, overrides=parts_of(stage, root))
    return {stage: root / stage for stage in ("vae", "vocoder", "clap", "diffusion")}


def parts_of(stage: str, root: Path) -> list[str]:
    if stage != "diffusion":
        return []
    return [f"{part}={root / part / 'final'}" for part in ("vae", "vocoder", "clap")]


def metrics(out: Path, group: str) -> list[dict]:
    rows = [json.loads(line) for line in (out / METRICS_FILE).read_text().splitlines()]
    return [row for row in rows if row["group"] == group]


def weights(out: Path) -> dict[str, torch.Tensor]:
    files = sorted((out / "final").rglob("*.safetensors"))
    assert files
    return {f"{file.parent.name}/{key}": value for file in files for key, value in load_file(file).items()}


@pytest.mark.parametrize(
    ("stage", "loss", "constant"),
    [
        ("vae", "l1", "constant_l1"),
        ("vocoder", "mel", "constant_mel"),
        ("clap", "loss", "constant_loss"),
        ("diffusion", "loss", "constant_loss"),
    ],
)
def test_held_out_loss_is_below_that_of_the_best_constant(trained, stage, loss, constant):
    last = metrics(trained[stage], "validation")[-1]
    assert last["step"] == 40
    assert last[loss] < last[constant]


@pytest.mark.parametrize("stage", ["vae", "vocoder", "clap", "diffusion"])
def test_an_interrupted_run_equals_a_straight_one(trained, collection, tmp_path, monkeypatch, stage):
    """Stopped after step 30, ten steps beyond its last checkpoint, and resumed."""

    def stop_after_30(self, step, original=Log.step):
        original(self, step)
        if step == 30:
            raise KeyboardInterrupt

    overrides = parts_of(stage, trained["vae"].parent)
    with monkeypatch.context() as patch:
        patch.setattr(Log, "step", stop_after_30)
        with pytest.raises(KeyboardInterrupt):
            run(stage, CONFIGS / f"{stage}.yaml", collection, tmp_path / "run", overrides=overrides)
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["checkpoint-20"]
    run(stage, CONFIGS / f"{stage}.yaml", collection, tmp_path / "run", resume=True, overrides=overrides)

    straight, resumed = weights(trained[stage]), weights(tmp_path / "run")
    assert straight.keys() == resumed.keys()
    for name in straight:
        assert torch.equal(straight[name], resumed[name]), name
    steps = [row["step"] for row in metrics(tmp_path / "run", "train")]
    assert steps == [10, 20, 30, 40]


def test_a_killed_run_resumes(trained, collection, tmp_path):
    out = tmp_path / "run"
    arguments = ["train", "vae", "--config", str(CONFIGS / "vae.yaml"), f"data={collection}", "--out", str(out)]
    process = subprocess.Popen(
        [sys.executable, "-m", "musicldm", *arguments],
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},  # another number rounds otherwise
    )
    deadline = time.monotonic() + 120
    while not (out / "checkpoint-20").exists():
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    run("vae", CONFIGS / "vae.yaml", collection, out, resume=True)
    straight, resumed = weights(trained["vae"]), weights(out)
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)


def test_a_corrupt_newest_checkpoint_is_passed_over(trained, collection, tmp_path, capsys):
    out = tmp_path / "run"
    shutil.copytree(trained["vae"], out)
    newest = checkpoints(out)[-1] / STATE_FILE
    newest.write_bytes(newest.read_bytes()[:1000])
    run("vae", CONFIGS / "vae.yaml", collection, out, resume=True)
    assert "checkpoint-40 cannot be read" in capsys.readouterr().err
    assert torch.load(newest, weights_only=True)["step"] == 40  # and written anew
    straight, resumed = weights(trained["vae"]), weights(out)
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)


def test_finals_are_what_the_public_classes_load(trained):
    from musicldm import MusicLDMPipeline

    AutoencoderKL.from_pretrained(trained["vae"] / "final")
    pipeline = MusicLDMPipeline.from_pretrained(trained["diffusion"] / "final")
    scale = pipeline.vae.config.scaling_factor
    latents = np.load(trained["diffusion"] / "cache" / "latents" / "moments.npy")[:36]
    means = latents[:, : latents.shape[1] // 2].astype(np.float64)
    assert 0.8 < scale * means.std() < 1.2
    output = pipeline("a low cello", audio_length_in_s=1.0, num_inference_steps=2, seed=0)
    assert output.audios.shape == (1, RATE)


def test_a_folder_with_another_run_is_refused(trained, collection):
    with pytest.raises(ValueError, match="already holds a run"):
        run("vae", CONFIGS / "vae.yaml", collection, trained["vae"])
    with pytest.raises(ValueError, match=r"learning_rate: 0.003 -> 0.5"):
        run("vae", CONFIGS / "vae.yaml", collection, trained["vae"], resume=True, overrides=["learning_rate=0.5"])


def test_a_loss_that_is_not_finite_stops_the_run(collection, tmp_path):
    with pytest.raises(FloatingPointError, match="step"):
        run("vae", CONFIGS / "vae.yaml", collection, tmp_path / "run", overrides=["learning_rate=1e30"])


def test_wrong_stage_data_and_parts_are_named(collection, tmp_path):
    with pytest.raises(ValueError, match="'vea'"):
        run("vea", None, collection, tmp_path / "a")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        run("vae", CONFIGS / "vae.yaml", tmp_path / "nowhere", tmp_path / "b")
    with pytest.raises(ValueError, match="vae=FOLDER"):
        run("diffusion", CONFIGS / "diffusion.yaml", collection, tmp_path / "c")
    assert not list(tmp_path.iterdir())


def test_parts_of_other_spectrograms_are_refused(trained, collection, tmp_path):
    overrides = [*parts_of("diffusion", trained["vae"].parent), "mel.f_max=7000"]
    with pytest.raises(ValueError, match="f_max"):
        run("diffusion", CONFIGS / "diffusion.yaml", collection, tmp_path / "run", overrides=overrides)


def test_clips_of_another_length_need_no_other_vocoder(trained, collection, tmp_path):
    """What is trained on half the length plays that length unless told."""
    from musicldm import MusicLDMPipeline

    source = trained["diffusion"] / "final"
    clip_s = MusicLDMPipeline.from_pretrained(source)("a tone", num_inference_steps=2).audios.shape[1] / RATE
    overrides = [f"init={source}", f"mel.clip_s={clip_s / 2}", "steps=1"]
    final = run("diffusion", CONFIGS / "diffusion.yaml", collection, tmp_path / "run", overrides=overrides)
    half = MusicLDMPipeline.from_pretrained(final)("a tone", num_inference_steps=2).audios.shape[1]
    assert half / RATE == pytest.approx(clip_s / 2)


@pytest.mark.parametrize("stage", ["vae", "vocoder", "clap", "diffusion"])
@pytest.mark.parametrize("whole", [False, True], ids=["stage", "model"])
def test_a_stage_continues_from_another_run_or_a_whole_model(trained, collection, tmp_path, stage, whole):
    """Two gentle steps leave it near the weights that it started from."""
    source = trained["diffusion" if whole else stage] / "final"
    overrides = [f"init={source}", "steps=2", "learning_rate=1e-6", "ema_decay=0"][: 4 if stage == "diffusion" else 3]
    run(stage, CONFIGS / f"{stage}.yaml", collection, tmp_path / "run", overrides=overrides)
    before, after = weights(trained[stage]), weights(tmp_path / "run")
    assert before.keys() == after.keys()
    change = {
        name: (after[name] - before[name]).norm() / before[name].norm().clamp(min=1e-6)
        for name in before
        if name.endswith("weight")
    }
    assert 0 < max(change.values()) < 0.01


def test_a_diffusion_model_learns_to_hear_another_clap(trained, collection, tmp_path):
    """Its condition begins anew, whitened for the new embeddings; what it knows of music stays."""
    run("clap", CONFIGS / "clap.yaml", collection, tmp_path / "clap", overrides=["seed=1", "steps=2"])
    source, config = trained["diffusion"] / "final", CONFIGS / "diffusion.yaml"
    overrides = [f"init={source}", "steps=2", "learning_rate=1e-6", "ema_decay=0"]
    other = f"clap={tmp_path / 'clap' / 'final'}"
    run("diffusion", config, collection, tmp_path / "other", overrides=[*overrides, other])
    run("diffusion", config, collection, tmp_path / "same", overrides=[*overrides, f"clap={source}"])
    before, other_after, same_after = (
        weights(out) for out in (trained["diffusion"], tmp_path / "other", tmp_path / "same")
    )
    heard, made = "unet/class_embedding.weight", "unet/conv_in.weight"
    torch.testing.assert_close(same_after[heard], before[heard], atol=1e-4, rtol=1e-3)
    assert (other_after[heard] - before[heard]).norm() > 0.5 * before[heard].norm()
    torch.testing.assert_close(other_after[made], before[made], atol=1e-4, rtol=1e-3)
    with pytest.raises(ValueError, match="its own CLAP"):
        run("diffusion", config, collection, tmp_path / "lora", overrides=[*overrides, other, "lora.rank=2"])


def test_a_diffusion_model_goes_on_with_a_clap_that_learned_words_alone(trained, collection, tmp_path):
    from musicldm import MusicLDMPipeline

    source, config = trained["diffusion"] / "final", CONFIGS / "diffusion.yaml"
    words = ["freeze_audio=true", f"init={source}", "steps=2", "learning_rate=0.01"]
    clap = f"clap={run('clap', CONFIGS / 'clap.yaml', collection, tmp_path / 'clap', overrides=words)}"
    overrides = [f"init={source}", clap, "steps=2", "learning_rate=1e-6", "ema_decay=0"]
    final = run("diffusion", config, collection, tmp_path / "run", overrides=overrides)
    before, after = weights(trained["diffusion"]), weights(tmp_path / "run")
    heard, word = "unet/class_embedding.weight", "text_encoder/text_projection.linear1.weight"
    torch.testing.assert_close(after[heard], before[heard], atol=1e-4, rtol=1e-3)
    assert word in after
    assert not torch.equal(after[word], before[word])
    assert MusicLDMPipeline.from_pretrained(final)("a tone", num_inference_steps=2).audios.size
    with pytest.raises(ValueError, match="its own CLAP"):
        run("diffusion", config, collection, tmp_path / "lora", overrides=[*overrides, "lora.rank=2"])


@pytest.mark.parametrize(
    ("stage", "override", "message"),
    [
        ("vocoder", "mel.f_min=30", "f_min"),
        ("vae", "channels=[8,8,16]", "factor"),
        ("diffusion", "prediction=v_prediction", "prediction=epsilon"),
    ],
)
def test_weights_that_do_not_fit_are_refused(trained, collection, tmp_path, stage, override, message):
    overrides = [f"init={trained['diffusion'] / 'final'}", override]
    with pytest.raises(ValueError, match=message):
        run(stage, CONFIGS / f"{stage}.yaml", collection, tmp_path / "run", overrides=overrides)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        run(stage, CONFIGS / f"{stage}.yaml", collection, tmp_path / "run", overrides=["init=nowhere"])
    with pytest.raises(ValueError, match="musicldm convert"):
        run(stage, CONFIGS / f"{stage}.yaml", collection, tmp_path / "run", overrides=[f"init={__file__}"])
    assert not list(tmp_path.iterdir())


OF_TINY_FOLDER = MelConfig(sample_rate=8000, n_fft=256, hop_length=80, n_mels=16, f_max=4000.0, clip_s=0.32)


@pytest.mark.parametrize("stage", ["vae", "vocoder", "clap"])
def test_given_weights_train_in_training_mode_from_the_first_step(
    tiny_folder, collection, tmp_path, monkeypatch, stage
):
    """They are loaded in evaluation mode, without dropout, and only the main process validates."""
    kind, modes = {"vae": VAEStage, "vocoder": VocoderStage, "clap": CLAPStage}[stage], set()

    def spy(self, batch, original=kind.step):
        networks = [part for part in self.state.parts.values() if isinstance(part, torch.nn.Module)]
        modes.update(layer.training for network in networks for layer in network.modules())
        return original(self, batch)

    monkeypatch.setattr(kind, "step", spy)
    monkeypatch.setattr("musicldm.train.loop.announce", lambda *_: None)  # as in the other processes
    overrides = [f"init={tiny_folder}", "steps=1", "batch_size=2", "trackers=[]", "validation_batches=1"]
    overrides += [f"mel.{name}={value}" for name, value in asdict(OF_TINY_FOLDER).items()]
    overrides += {"vae": ["channels=[8,8,16]", "segment_s=0.32"], "vocoder": ["segment_samples=1600"]}.get(stage, [])
    run(stage, CONFIGS / f"{stage}.yaml", collection, tmp_path / "run", overrides=overrides)
    assert modes == {True}


def test_an_autoencoder_of_other_spectrograms_is_refused(tiny_folder, tmp_path):
    """As the vocoder beside it says, or the record of its run; alone and without one it is taken at its word."""
    settings = {"channels": (8, 8, 16), "norm_groups": 4, "latent_channels": 4}
    other = replace(OF_TINY_FOLDER, hop_length=40, n_mels=32)
    initial_vae(VAEConfig(**settings, init=str(tiny_folder), mel=OF_TINY_FOLDER))
    with pytest.raises(ValueError, match=r"mel.hop_length: 80 -> 40; mel.n_mels: 16 -> 32"):
        initial_vae(VAEConfig(**settings, init=str(tiny_folder), mel=other))
    alone = tmp_path / "final"
    shutil.copytree(tiny_folder / "vae", alone)
    initial_vae(VAEConfig(**settings, init=str(alone), mel=other))
    save_config(VAEConfig(**settings, mel=OF_TINY_FOLDER), alone / CONFIG_FILE)
    with pytest.raises(ValueError, match=r"mel.hop_length: 80 -> 40; mel.n_mels: 16 -> 32"):
        initial_vae(VAEConfig(**settings, init=str(alone), mel=other))


def test_a_run_at_a_constant_rate_may_end_later_until_its_cooldown_begins(collection, tmp_path):
    """Twelve steps, made into twenty with a cooldown, equal a straight run of twenty; afterwards it is closed."""
    out, straight = tmp_path / "run", tmp_path / "straight"
    vae = ("vae", CONFIGS / "vae.yaml", collection)
    common_part = ["schedule=constant", "save_every=4"]
    longer = [*common_part, "steps=20", "cooldown_steps=8"]
    run(*vae, out, overrides=[*common_part, "steps=12"])
    run(*vae, out, resume=True, overrides=longer)
    run(*vae, straight, overrides=longer)
    resumed, expected = weights(out), weights(straight)
    assert all(torch.equal(resumed[name], expected[name]) for name in expected)
    with pytest.raises(ValueError, match="steps: 20 -> 30"):
        run(*vae, out, resume=True, overrides=[*common_part, "steps=30", "cooldown_steps=8"])


def test_a_decoder_trains_on_with_its_encoder_held_still(trained, collection, tmp_path):
    """Also against the discriminator and for texture; latents stay what they were, to the bit."""
    start = trained["vae"] / "final"
    overrides = [f"init={start}", "freeze_encoder=true", "steps=6", "weight_decay=0.1", "log_every=1"]
    overrides += ["adversarial_from=3", "discriminator_lead=2", "discriminator_rate=2", "texture_weight=0.5"]
    final = run("vae", CONFIGS / "vae.yaml", collection, tmp_path / "run", overrides=overrides)
    before, after = (AutoencoderKL.from_pretrained(folder).state_dict() for folder in (start, final))
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert same == {name for name in before if name.startswith(("encoder.", "quant_conv."))}
    logged = metrics(tmp_path / "run", "train")
    assert ["discriminator" in row for row in logged] == [False] + 5 * [True]
    assert ["generator" in row for row in logged] == 3 * [False] + 3 * [True]
    for row in (logged[0], *metrics(tmp_path / "run", "validation")):
        assert row["loss"] == pytest.approx(row["l1"] + 1e-4 * row["kl"] + 0.5 * row["texture"])
        assert [*row].index("loss") < [*row].index("l1")  # so that the best checkpoint is known by it
    with pytest.raises(ValueError, match="init=MODEL"):
        run("vae", CONFIGS / "vae.yaml", collection, tmp_path / "other", overrides=["freeze_encoder=true"])


def test_learning_rate_rises_and_falls():
    config = VAEConfig(steps=1100, warmup_steps=100, learning_rate=1.0, schedule="cosine")
    assert common.learning_rate(config, 0) == 0
    assert common.learning_rate(config, 50) == 0.5
    assert common.learning_rate(config, 600) == pytest.approx(0.5)
    assert common.learning_rate(config, 1100) == pytest.approx(0)
    config = VAEConfig(steps=100, learning_rate=1.0, schedule="constant", cooldown_steps=10)
    assert [common.learning_rate(config, step) for step in (0, 90, 95, 100)] == [1, 1, 0.5, 0]


def test_a_rectified_flow_is_trained_saved_and_played(trained, collection, tmp_path):
    """From the parts of the other runs; the folder says what it is, and nothing else continues from it."""
    from musicldm import MusicLDMPipeline

    tiny = ("diffusion", CONFIGS / "diffusion.yaml", collection)
    overrides = [*parts_of("diffusion", trained["vae"].parent), "prediction=flow", "text_condition_last=1"]
    final = run(*tiny, tmp_path / "run", overrides=[*overrides, "validation_prompts=[a low cello]"])
    last = metrics(tmp_path / "run", "validation")[-1]
    assert last["loss"] < last["constant_loss"]
    pipeline = MusicLDMPipeline.from_pretrained(final)
    assert type(pipeline.scheduler).__name__ == "FlowMatchEulerDiscreteScheduler"
    made = pipeline("a low cello", num_inference_steps=25, seed=0)
    heard, rate = soundfile.read(tmp_path / "run" / "examples" / "step-40" / "a-low-cello.wav")
    assert rate == made.sampling_rate
    np.testing.assert_allclose(heard, made.audios[0], atol=1e-3)  # 16 bits, and the same weights, prompt and seed
    assert (tmp_path / "run" / "examples" / "step-40" / "a-low-cello.png").stat().st_size > 1000
    with pytest.raises(ValueError, match="trained for prediction=flow"):
        run(*tiny, tmp_path / "other", overrides=[f"init={final}"])


@pytest.mark.parametrize("stage", ["vae", "diffusion"])
def test_gradient_checkpointing_changes_nothing_but_memory(trained, collection, tmp_path, stage):
    """Two steps with it give the weights of two without."""
    overrides = [*parts_of(stage, trained["vae"].parent), "steps=2"]
    for name in ("false", "true"):
        options = [*overrides, f"gradient_checkpointing={name}"]
        run(stage, CONFIGS / f"{stage}.yaml", collection, tmp_path / name, overrides=options)
    plain, saving = weights(tmp_path / "false"), weights(tmp_path / "true")
    for name in plain:
        torch.testing.assert_close(saving[name], plain[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stage", ["vocoder", "clap"])
def test_networks_without_gradient_checkpointing_say_so(collection, tmp_path, stage):
    with pytest.raises(ValueError, match="accumulate"):
        run(stage, CONFIGS / f"{stage}.yaml", collection, tmp_path / "a", overrides=["gradient_checkpointing=true"])
    assert not list(tmp_path.iterdir())


def test_v_prediction_is_the_rotated_pair():
    """v = dx/dphi on the circle x = cos(phi) x0 + sin(phi) noise, so x0 = sqrt(a) x - sqrt(1 - a) v."""
    from musicldm.train.diffusion.objectives import add_noise, make_scheduler, prediction_target

    alpha_bar = make_scheduler(DiffusionConfig()).alphas_cumprod
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, 4, 3, 8, 2, generator=generator)
    timestep = torch.tensor([0, 10, 500, 999])
    x = add_noise(x0, noise, timestep, alpha_bar)
    v = prediction_target(x0, noise, timestep, alpha_bar, "v_prediction")
    a = alpha_bar[timestep].view(-1, 1, 1, 1)
    torch.testing.assert_close(a.sqrt() * x - (1 - a).sqrt() * v, x0, rtol=1e-4, atol=1e-4)
