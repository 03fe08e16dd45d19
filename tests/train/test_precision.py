"""Number formats and compilation: what they change in a run, and what they must not."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from accelerate.optimizer import AcceleratedOptimizer
from safetensors.torch import load_file
from torch import nn
from torch._dynamo.backends.registry import lookup_backend

from musicldm.config import DiffusionConfig
from musicldm.kernels.dot_product import attention_reference, attention_torch
from musicldm.train import run
from musicldm.train.common import make_accelerator
from musicldm.train.log import METRICS_FILE
from musicldm.train.run_folder import STATE_FILE, load_state, save_state
from tests.helpers.processes import diffusion_stage

CONFIG = Path(__file__).parents[2] / "configs" / "tiny" / "vae.yaml"
TINY = {
    "device": "cpu",
    "trackers": (),
    "batch_size": 2,
    "channels": (8, 16),
    "head_channels": 8,
    "norm_groups": 4,
    "layers_per_level": 1,
}


@pytest.fixture(scope="module")
def collection(tmp_path_factory) -> Path:
    """Six captioned noises."""
    folder = tmp_path_factory.mktemp("collection")
    rng = np.random.default_rng(0)
    for i in range(6):
        soundfile.write(folder / f"{i}.wav", 0.1 * rng.standard_normal(20_480).cumsum() / (i + 30), 16_000)
    captions = [f"{i}.wav,{'a dark noise; ' * (i + 1)}slow" for i in range(6)]  # each of another length
    (folder / "metadata.csv").write_text("\n".join(["file_name,text", *captions]))
    return folder


def run_scaled(out: Path, steps: int) -> dict:
    """Train on to ``steps`` from what lies in ``out``, gradients scaled as with float16, and save; the whole state."""
    config = DiffusionConfig(**TINY, steps=steps)
    stage = diffusion_stage(config, double=False)
    accelerator, state, unet = stage.run.accelerator, stage.state, stage.state.parts["unet"]
    # What accelerate sets up on a GPU; it grows after every third step.
    accelerator.scaler = scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=3)
    optimizer = state.parts["optimizer"].optimizer
    accelerator.unscale_gradients = lambda _optimizer: scaler.unscale_(optimizer)
    state.parts["optimizer"] = AcceleratedOptimizer(optimizer, scaler=scaler)
    out.mkdir(exist_ok=True)
    load_state(state, out, accelerator)
    for batch in stage.batches():
        with accelerator.accumulate(unet):
            stage.step(batch)
        scaler.update()
        state.step += 1
    save_state(state, out, keep=1)
    return {name: part.state_dict() for name, part in state.parts.items()}


def test_the_scale_of_float16_gradients_is_part_of_a_checkpoint(tmp_path):
    """A run in two pieces has the scale, the count since it last grew, and the weights of a run in one."""
    straight = run_scaled(tmp_path / "straight", 11)
    halfway = run_scaled(tmp_path / "run", 8)["scaler"]
    resumed = run_scaled(tmp_path / "run", 11)
    assert (halfway["scale"], halfway["_growth_tracker"]) == (2.0**12, 2)
    assert (straight["scaler"]["scale"], straight["scaler"]["_growth_tracker"]) == (2.0**13, 2)
    assert resumed["scaler"] == straight["scaler"]
    assert all(torch.equal(resumed["unet"][name], value) for name, value in straight["unet"].items())


@pytest.mark.slow
def test_both_sides_of_a_gan_have_their_own_gradients_in_float16(collection, tmp_path, monkeypatch):
    """Each batch of two that make a step, and after each second step the scale doubles: it must not show."""
    made: list[torch.amp.GradScaler] = []

    def make_scaled(config, out):
        accelerator = make_accelerator(config, out)
        accelerator.scaler = scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2)

        def unscale(optimizer=None):  # as accelerate does on a GPU: of all optimisers if none is named
            for one in accelerator._optimizers if optimizer is None else [optimizer]:
                scaler.unscale_(one.optimizer)

        accelerator.unscale_gradients = unscale
        made.append(scaler)
        return accelerator

    overrides = ["steps=5", "batch_size=2", "accumulate=2", "adversarial_from=1", "trackers=[]", "validation_batches=1"]
    run("vae", "tiny", collection, tmp_path / "plain", overrides=overrides)
    monkeypatch.setattr("musicldm.train.common.make_accelerator", make_scaled)
    run("vae", "tiny", collection, tmp_path / "scaled", overrides=overrides)
    plain, scaled = (
        torch.load(tmp_path / name / "checkpoint-5" / STATE_FILE, weights_only=True)["parts"]
        for name in ("plain", "scaled")
    )
    for part in ("vae", "discriminator"):
        for name, value in plain[part].items():
            torch.testing.assert_close(scaled[part][name], value, rtol=1e-3, atol=1e-5, msg=f"{part}: {name}")
    assert made[0].get_scale() == 2.0**12


def test_float16_on_a_cpu_is_refused(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(16_000), 16_000)
    soundfile.write(tmp_path / "b.wav", np.zeros(16_000), 16_000)
    with pytest.raises(ValueError, match="fp16 needs a GPU"):
        run("vae", CONFIG, tmp_path, tmp_path / "run", overrides=["mixed_precision=fp16", "trackers=[]"])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("length", [16, 64, 300])
def test_gradients_of_attention_in_bfloat16(length):
    """As near to float64 as sixteen bits allow, whichever way torch computes them."""
    generator = torch.Generator().manual_seed(0)
    q, k, v, weights = (torch.randn(2, length, 3, 32, generator=generator).bfloat16() for _ in range(4))
    inputs = [x.requires_grad_() for x in (q, k, v)]
    with torch.autocast("cpu", torch.bfloat16):
        made = attention_torch(q, k, v)
    assert made.dtype == torch.bfloat16
    gradients = torch.autograd.grad((made * weights).sum(), inputs)
    exact = torch.autograd.grad((attention_reference(q, k, v) * weights).sum(), inputs)
    for gradient, expected in zip(gradients, exact, strict=True):
        assert (gradient - expected).norm() < 0.01 * expected.norm()


# How many modules are compiled, and in how many graphs: of each module one for training and one for evaluation, and one
# more where a size varies, such as the words of a batch or the length of examples.
STAGES = {"vae": (4, 8), "vocoder": (1, 3), "clap": (2, 5), "diffusion": (1, 3)}


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_a_compiled_run_is_an_ordinary_one(stage, tiny_folder, collection, tmp_path, monkeypatch):
    """It goes on from an ordinary checkpoint with the same losses to the same weights under the same names, and an
    ordinary run goes on from its own. Traced whole and run by torch, which needs no compiler."""
    compiled: list[nn.Module] = []
    graphs = 0

    def backend(graph: torch.fx.GraphModule, inputs: list) -> Callable:
        nonlocal graphs
        graphs += 1
        return lookup_backend("aot_eager")(graph, inputs)

    def compile_traced(self, original=nn.Module.compile):
        compiled.append(self)
        original(self, backend=backend, fullgraph=True)

    monkeypatch.setattr(nn.Module, "compile", compile_traced)
    torch.compiler.reset()
    overrides = [
        "save_every=4",
        "keep_checkpoints=3",
        "validate_every=10",
        "validation_batches=1",
        "trackers=[]",
        "batch_size=2",
    ]
    overrides += ["log_every=1"]
    if stage == "vae":
        overrides += ["adversarial_from=1", "mixed_precision=bf16"]
    if stage == "diffusion":
        mel = {"sample_rate": 8000, "n_fft": 256, "hop_length": 80, "n_mels": 16, "f_max": 4000, "clip_s": 0.32}
        overrides += [f"init={tiny_folder}", *(f"mel.{name}={value}" for name, value in mel.items())]

    def train(name: str, *changes: str, resume: bool = False) -> tuple[list[dict], dict[str, torch.Tensor]]:
        """Losses and weights."""
        out = tmp_path / name
        run(stage, "tiny", collection, out, resume=resume, overrides=[*overrides, *changes])
        part = {"clap": "text_encoder", "diffusion": "unet"}.get(stage, "")
        losses = [json.loads(line) for line in (out / METRICS_FILE).read_text().splitlines()]
        return losses, load_file(next((out / "final" / part).glob("*.safetensors")))

    def assert_alike(found: tuple[list[dict], dict], expected: tuple[list[dict], dict]) -> None:
        for row, other in zip(found[0], expected[0], strict=True):
            assert row["step"] == other["step"]
            for name in {"loss", "mel", "l1"} & other.keys():
                assert row[name] == pytest.approx(other[name], rel=0.01), name
        assert found[1].keys() == expected[1].keys()
        for name, value in found[1].items():
            torch.testing.assert_close(value, expected[1][name], rtol=0.01, atol=0.01)

    plain = train("plain", "steps=10")
    shutil.copytree(tmp_path / "plain", tmp_path / "compiled")
    for newer in ("checkpoint-8", "checkpoint-10"):
        shutil.rmtree(tmp_path / "compiled" / newer, ignore_errors=True)
    assert not compiled
    assert_alike(train("compiled", "steps=10", "compile=true", resume=True), plain)
    n_compiled, most_graphs = STAGES[stage]
    assert len(compiled) == n_compiled
    assert 0 < graphs <= most_graphs  # in six steps: not one for each
    assert_alike(train("compiled", "steps=12", resume=True), train("plain", "steps=12", resume=True))
    assert len(compiled) == n_compiled
