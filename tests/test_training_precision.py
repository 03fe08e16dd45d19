"""Number formats and compilation: what they change in a run, and what they must not."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from accelerate.optimizer import AcceleratedOptimizer
from processes import diffusion_run
from safetensors.torch import load_file
from torch import nn

from musicldm.attention import attention_reference, attention_torch
from musicldm.config import DiffusionConfig
from musicldm.train import run
from musicldm.train.checkpoints import load_state, save_state
from musicldm.train.common import batches

CONFIG = Path(__file__).parents[1] / "configs" / "tiny" / "vae.yaml"
TINY = {
    "device": "cpu",
    "trackers": (),
    "batch_size": 2,
    "channels": (8, 16),
    "head_channels": 8,
    "norm_groups": 4,
    "layers_per_level": 1,
}


def run_scaled(out: Path, steps: int) -> dict:
    """Train on to ``steps`` from what lies in ``out``, gradients scaled as with float16, and save; the whole state."""
    config = DiffusionConfig(**TINY, steps=steps)
    accelerator, state, dataset, unet, step = diffusion_run(config, double=False)
    # What accelerate sets up on a GPU; it grows after every third step.
    accelerator.scaler = scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=3)
    optimizer = state.parts["optimizer"].optimizer
    accelerator.unscale_gradients = lambda: scaler.unscale_(optimizer)
    state.parts["optimizer"] = AcceleratedOptimizer(optimizer, scaler=scaler)
    out.mkdir(exist_ok=True)
    load_state(state, out, accelerator)
    for batch in batches(dataset, config, accelerator, state):
        with accelerator.accumulate(unet):
            step(batch)
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


def test_a_compiled_run_is_an_ordinary_one(tmp_path, monkeypatch):
    """The same weights under the same names, resumed as well; traced and run by torch, which needs no compiler."""
    compiled: list[nn.Module] = []

    def compile_traced(self, original=nn.Module.compile):
        compiled.append(self)
        original(self, backend="aot_eager", fullgraph=True)

    monkeypatch.setattr(nn.Module, "compile", compile_traced)
    rng = np.random.default_rng(0)
    (tmp_path / "data").mkdir()
    for i in range(4):
        noise = 0.1 * rng.standard_normal(10_240).cumsum() / (i + 30)
        soundfile.write(tmp_path / "data" / f"{i}.wav", noise, 16_000)
    overrides = ["steps=4", "save_every=2", "validate_every=4", "validation_batches=1", "trackers=[]", "batch_size=2"]
    overrides += ["adversarial_from=1", "mixed_precision=bf16"]
    for name in ("false", "true"):
        run("vae", CONFIG, tmp_path / "data", tmp_path / name, overrides=[*overrides, f"compile={name}"])
    assert len(compiled) == 4  # encoder, and three blocks of the decoder
    plain, traced = (load_file(next((tmp_path / name / "final").glob("*.safetensors"))) for name in ("false", "true"))
    assert plain.keys() == traced.keys()
    for name, value in plain.items():
        torch.testing.assert_close(traced[name], value, rtol=0.01, atol=0.01)
    (tmp_path / "true" / "checkpoint-4" / "state.pt").unlink()
    run("vae", CONFIG, tmp_path / "data", tmp_path / "true", resume=True, overrides=[*overrides, "compile=true"])
    resumed = load_file(next((tmp_path / "true" / "final").glob("*.safetensors")))
    assert all(torch.equal(resumed[name], value) for name, value in traced.items())
