"""Adapters of the UNet: trained on a folder, saved as diffusers does, loaded, combined, scaled, fused and removed."""

import copy
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from diffusers import AutoencoderKL, DDIMScheduler
from safetensors.torch import load_file, save_file

from musicldm import MusicLDMPipeline
from musicldm.config import DiffusionConfig, load_config
from musicldm.generate.adapters import load_adapters
from musicldm.models.adapters import WEIGHTS_FILE
from musicldm.train import run
from musicldm.train.diffusion import stage as diffusion
from musicldm.train.log import Log

OVERRIDES = [
    *("device=cpu", "steps=6", "batch_size=2", "learning_rate=0.05", "ema_decay=0", "trackers=[]"),
    *("mel.sample_rate=8000", "mel.n_fft=256", "mel.hop_length=80", "mel.n_mels=16", "mel.f_max=4000"),
    *("mel.clip_s=0.32", "lora.rank=2", "validate_every=6", "validation_batches=1", "validation_prompts=[waltz]"),
]


@pytest.fixture(scope="module")
def adapters(tiny_folder, tmp_path_factory):
    """Two of them, on the same noises with different seeds."""
    root = tmp_path_factory.mktemp("adapters")
    (root / "data").mkdir()
    rng = np.random.default_rng(0)
    for i in range(6):
        soundfile.write(root / "data" / f"{i}.wav", 0.1 * rng.standard_normal(2560), 8000)
    for seed in (0, 1):
        run(
            "diffusion",
            None,
            root / "data",
            root / str(seed),
            overrides=[f"init={tiny_folder}", f"seed={seed}", *OVERRIDES],
        )
    return [root / str(seed) / "final" for seed in (0, 1)]


@pytest.fixture
def pipeline(tiny_folder):
    pipeline = MusicLDMPipeline.from_pretrained(tiny_folder)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def play(pipeline, scale: float | None = None) -> torch.Tensor:
    options = {} if scale is None else {"cross_attention_kwargs": {"scale": scale}}
    return pipeline("a waltz", num_inference_steps=3, seed=0, output_type="latent", **options).audios


def test_the_file_is_diffusers_layout_and_small(adapters, pipeline):
    layers = load_file(adapters[0] / "pytorch_lora_weights.safetensors")
    assert layers
    assert all(name.startswith("unet.") and "lora" in name for name in layers)
    adapted = ("to_q", "to_k", "to_v", "to_out.0", "time_emb_proj", "conv1", "conv2")
    assert len(layers) == 2 * sum(name.endswith(adapted) for name, _ in pipeline.unet.named_modules())
    pipeline.load_lora_weights(adapters[0], adapter_name="a")  # all of it
    loaded = {name.replace(".a.", "."): value for name, value in pipeline.unet.state_dict().items() if "lora_" in name}
    assert all(torch.equal(layers[f"unet.{name}"], value) for name, value in loaded.items())
    assert len(loaded) == len(layers)
    assert {min(value.shape[:2]) for value in layers.values()} == {2}  # the rank
    assert not (adapters[0] / "unet").exists()


def test_an_adapter_changes_the_music_by_its_scale_and_leaves_without_a_trace(adapters, pipeline, tmp_path):
    plain = play(pipeline)
    pipeline.load_lora_weights(adapters[0])
    adapted, half = play(pipeline), play(pipeline, 0.5)
    assert (adapted - plain).norm() > 0.01 * plain.norm()
    assert 0 < (half - plain).norm() < (adapted - plain).norm()
    torch.testing.assert_close(play(pipeline, 0.0), plain)
    assert torch.equal(play(pipeline), adapted)  # a call's scale is gone with the call
    with pytest.raises(ValueError, match="fuse_lora"):
        pipeline.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()
    pipeline.fuse_lora()
    torch.testing.assert_close(play(pipeline), adapted, rtol=1e-3, atol=1e-3)
    pipeline.unfuse_lora()
    pipeline.unload_lora_weights()
    torch.testing.assert_close(play(pipeline), plain, rtol=1e-4, atol=1e-4)  # fusing rounds


@pytest.mark.slow
def test_validations_are_of_what_is_exported_and_change_nothing(adapters, tiny_folder, tmp_path, monkeypatch):
    """A run stopped and validated often equals a straight one; its last validation had the averaged weights."""
    seen = []

    def losses(self, unet, example, original=diffusion.DiffusionStage.losses):
        seen.append({name: value.clone() for name, value in unet.state_dict().items() if "lora_" in name})
        return original(self, unet, example)

    def stop_after_5(self, step, original=Log.step):
        original(self, step)
        if step == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(diffusion.DiffusionStage, "losses", losses)
    data = adapters[0].parents[1] / "data"
    options = [f"init={tiny_folder}", *OVERRIDES, "ema_decay=0.9"]
    straight = run("diffusion", None, data, tmp_path / "straight", overrides=options)
    options += ["validate_every=2", "save_every=4"]
    with monkeypatch.context() as patch:
        patch.setattr(Log, "step", stop_after_5)
        with pytest.raises(KeyboardInterrupt):
            run("diffusion", None, data, tmp_path / "often", overrides=options)
    often = run("diffusion", None, data, tmp_path / "often", resume=True, overrides=options)
    once, again = (load_file(folder / "pytorch_lora_weights.safetensors") for folder in (straight, often))
    assert all(torch.equal(once[name], again[name]) for name in once)
    validated = {name.replace(".default.", "."): value for name, value in seen[-1].items()}
    assert all(torch.equal(again[f"unet.{name}"], value) for name, value in validated.items())
    assert len(validated) == len(again)


def test_a_unet_goes_on_with_latents_of_its_scale(adapters, tiny_folder, tiny_parts, tmp_path):
    """Also with another VAE, whose own factor nothing was trained on."""
    other = copy.deepcopy(tiny_parts["vae"])
    other.register_to_config(scaling_factor=5.0)
    other.save_pretrained(tmp_path / "vae")
    options = [f"init={tiny_folder}", f"vae={tmp_path / 'vae'}", *OVERRIDES, "lora.rank=0", "steps=1"]
    final = run("diffusion", None, adapters[0].parents[1] / "data", tmp_path / "run", overrides=options)
    assert MusicLDMPipeline.from_pretrained(final).vae.config.scaling_factor == 0.8
    wider = AutoencoderKL(latent_channels=8)
    assert diffusion.initial_scale(load_config(DiffusionConfig, None, options), wider) is None


def test_adapters_combine_by_weights(adapters, pipeline):
    pipeline.load_lora_weights(adapters[0], adapter_name="a")
    first = play(pipeline)
    pipeline.load_lora_weights(adapters[1], adapter_name="b")
    pipeline.set_adapters("b")
    second = play(pipeline)
    assert (first - second).norm() > 0.01 * first.norm()
    pipeline.set_adapters(["a", "b"], [1.0, 0.0])
    torch.testing.assert_close(play(pipeline), first)
    pipeline.set_adapters(["a", "b"], [0.5, 0.5])
    both = play(pipeline)
    assert min((both - first).norm(), (both - second).norm()) > 0.001 * first.norm()
    assert pipeline.get_active_adapters() == ["a", "b"]


def test_what_does_not_fit_is_refused(adapters, pipeline, tmp_path):
    with pytest.raises(ValueError, match="init=MODEL"):
        DiffusionConfig(lora=DiffusionConfig().lora.__class__(rank=4))
    with pytest.raises(ValueError, match="negative"):
        load_config(DiffusionConfig, None, ["lora.rank=-1"])
    with pytest.raises(ValueError, match="no adapters of a UNet"):
        pipeline.load_lora_weights({"text_encoder.to_q.lora_A.weight": torch.zeros(2, 8)})
    layers = load_file(adapters[0] / "pytorch_lora_weights.safetensors")
    wider = {name: torch.cat([value, value], dim=int("lora_A" in name)) for name, value in layers.items()}
    with pytest.raises(ValueError, match="does not fit this UNet"):
        pipeline.load_lora_weights(wider)


def halves(layers):
    """Adapters of which something does not fit, each with what the error names."""
    names = sorted(layers)
    first, last = names[0], names[-1]
    yield {name: layers[name] for name in names if "lora_A" in name}, r"lacks lora_B\.weight, half of a pair"
    yield {name: layers[name] for name in names if name != last}, "half of a pair"
    renamed = {name.replace("unet.", "unet.other.") if i % 2 else name: layers[name] for i, name in enumerate(names)}
    yield renamed, r"the UNet has no layer other\."
    yield layers | {"unet.mid_block.alpha": torch.tensor(4.0)}, "mid_block.alpha is no layer of an adapter"
    yield (
        layers | {first.replace("lora_A.weight", "lora_A.bias"): torch.zeros(2)},
        "lora_A.bias of .* cannot be applied",
    )
    yield layers | {first: torch.full_like(layers[first], float("nan"))}, "lora_A.weight holds NaN or infinity"
    yield layers | {first: layers[first][:1]}, "are of ranks 1 and 2"
    yield layers | {first: layers[first].flatten()}, "are no matrices"
    yield layers | {first.replace("lora_A.weight", "dora_scale"): torch.ones(2)}, "is a DoRA adapter"


def test_an_adapter_is_added_whole_or_not_at_all(adapters, pipeline, tmp_path):
    before = play(pipeline)
    layers = load_file(adapters[0] / "pytorch_lora_weights.safetensors")
    for number, (changed, message) in enumerate(halves(layers)):
        with pytest.raises(ValueError, match=message):
            pipeline.load_lora_weights(changed, adapter_name="a")
        (folder := tmp_path / str(number)).mkdir()
        save_file({name: value.contiguous() for name, value in changed.items()}, folder / WEIGHTS_FILE)
        with pytest.raises(ValueError, match=message):
            pipeline.load_lora_weights(folder, adapter_name="a")
        assert torch.equal(play(pipeline), before)
    assert pipeline.get_active_adapters() == []
    pipeline.load_lora_weights(layers, adapter_name="a")
    assert not torch.equal(play(pipeline), before)


def test_older_names_are_known(adapters, pipeline):
    layers = load_file(adapters[0] / "pytorch_lora_weights.safetensors")
    older = {}
    for name, value in layers.items():
        name = re.sub(r"\.(to_[qkv])\.lora_(.)", r".processor.\1_lora.\2", name)
        name = re.sub(r"\.to_out\.0\.lora_(.)", r".processor.to_out_lora.\1", name)
        name = re.sub(r"\.(conv1|conv2|time_emb_proj)\.lora_(.)", r".\1.lora.\2", name)
        older[name.replace("lora.A", "lora.down").replace("lora.B", "lora.up")] = value
    pipeline.load_lora_weights(layers, adapter_name="new")
    new = play(pipeline)
    pipeline.unload_lora_weights()
    pipeline.load_lora_weights(older, adapter_name="old")
    assert torch.equal(play(pipeline), new)


def test_what_is_for_other_parts_is_named(adapters, pipeline):
    layers = load_file(adapters[0] / "pytorch_lora_weights.safetensors")
    with pytest.warns(UserWarning, match="the given tensors also changes text_encoder, which is left as it is"):
        pipeline.load_lora_weights(layers | {"text_encoder.q_proj.lora_A.weight": torch.zeros(2, 8)})


def test_where_an_adapter_is_and_what_it_is_called(adapters, pipeline, tmp_path):
    for path in (tmp_path / "nowhere", str(tmp_path / "nowhere"), "nowhere", "runs/nowhere", Path("runs/nowhere")):
        with pytest.raises(FileNotFoundError, match="nowhere"):
            pipeline.load_lora_weights(path)
    with pytest.raises(FileNotFoundError, match="is no file or folder with an adapter"):
        pipeline.load_lora_weights(tmp_path)
    (tmp_path / WEIGHTS_FILE).write_bytes(b"no tensors")
    for path in (tmp_path, tmp_path / WEIGHTS_FILE):
        with pytest.raises(ValueError, match="cannot be read as an adapter"):
            pipeline.load_lora_weights(path)
    for name in ("my.adapter", "", "keys", 3):
        with pytest.raises(ValueError, match="adapter_name must be"):
            pipeline.load_lora_weights(adapters[0], adapter_name=name)
    with pytest.raises(ValueError, match=r"the adapter must be a folder, .* got 3 \(int\)"):
        pipeline.load_lora_weights(3)
    with pytest.raises(TypeError, match=r"no arguments \['adaptername'\]"):
        pipeline.load_lora_weights(adapters[0], adaptername="a")


def test_weights_of_adapters_are_finite(adapters, pipeline):
    pipeline.load_lora_weights(adapters[0], adapter_name="a")
    for weights in (float("nan"), [float("inf")], {"down": float("nan")}, [{"up": {"block_0": float("inf")}}], "1"):
        with pytest.raises(ValueError, match="adapter_weights must be a finite number"):
            pipeline.set_adapters(["a"], weights)
    with pytest.raises(ValueError, match="lora_scale must be a finite number"):
        pipeline.fuse_lora(lora_scale=float("nan"))
    for weight in ("nan", "inf", "-inf"):
        with pytest.raises(ValueError, match=f"the weight in .*:{weight} must be a finite number"):
            load_adapters(pipeline, [f"{adapters[0]}:{weight}"], None)
