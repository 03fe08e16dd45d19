"""A worker of the tests of many processes: ``python -m torch.distributed.run ... processes.py TASKS``."""

import json
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from accelerate.state import GradientState, PartialState
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

from musicldm.config import CLAPConfig, DiffusionConfig
from musicldm.data.items import Item
from musicldm.models.clap import train_tokenizer
from musicldm.train import clap, run
from musicldm.train.common import make_accelerator, make_optimizer
from musicldm.train.diffusion.cache import BLOCK, Cache, KeptArrays
from musicldm.train.diffusion.latents import CachedLatents, Example
from musicldm.train.diffusion.objectives import Objective, make_scheduler
from musicldm.train.diffusion.stage import DiffusionStage, make_unet
from musicldm.train.run_folder import Average, Run, State

N_CLIPS, EMBEDDING = 24, 16
CAPTIONS = [f"{how} {what}" for how in ("slow", "fast", "calm", "loud") for what in ("harp", "flute", "drums")]


class DoubleLatents(CachedLatents):
    """In float64."""

    def __getitem__(self, item: Item) -> Example:
        return Example(*(value.double() if value.is_floating_point() else value for value in super().__getitem__(item)))


def diffusion_stage(config: DiffusionConfig, double: bool) -> DiffusionStage:
    """A tiny UNet on random latents."""
    rng = np.random.default_rng(0)
    offsets = np.arange(N_CLIPS + 1)
    moments = rng.standard_normal((N_CLIPS, 8, 16, 4)).astype(np.float16)
    audio, text = rng.standard_normal((2, N_CLIPS, EMBEDDING)).astype(np.float32)
    cache = Cache(moments, audio, text, offsets)
    dataset = (DoubleLatents if double else CachedLatents)(cache, list(range(N_CLIPS)), config)
    run = Run(config, Path(), make_accelerator(config, Path()))
    torch.manual_seed(0)
    plain = make_unet(config, 4, 16, EMBEDDING)
    plain = plain.double() if double else plain
    average = Average(plain, 0.9)
    unet, optimizer = run.accelerator.prepare(plain, make_optimizer(plain, config))
    state = State({"unet": unet, "optimizer": optimizer, "average": average})
    objective, empty = Objective(config, make_scheduler(config), 1.0), torch.zeros(EMBEDDING, dtype=plain.dtype)
    return DiffusionStage(run, state, plain, dataset, dataset, objective, empty)


def clap_stage(config: CLAPConfig) -> clap.CLAPStage:
    """Tiny towers on noises, their batch norm held still: the same of them."""

    class Pairs(torch.utils.data.Dataset):
        def __len__(self):
            return N_CLIPS

        def __getitem__(self, item):
            rng = np.random.default_rng(item.index)
            caption = CAPTIONS[item.index % 12]
            wrong = "" if item.index % 3 else f"fast {caption}"
            return torch.from_numpy(rng.standard_normal(16_000).astype(np.float32)), (caption,), (wrong,)

    run = Run(config, Path(), make_accelerator(config, Path()))
    torch.manual_seed(0)
    tokenizer = train_tokenizer(CAPTIONS * 5, 300)
    plain = clap.Towers(clap.make_clap(config, len(tokenizer)), tokenizer)
    plain.clap.logit_scale_t.requires_grad_(False)
    towers, optimizer = run.accelerator.prepare(plain, make_optimizer(plain, config))
    plain.eval()
    state, front_end = State({"towers": towers, "optimizer": optimizer}), clap.make_feature_extractor(config)
    return clap.CLAPStage(run, state, plain, front_end, Pairs(), Pairs())


def train(result: str, stage: str, batch_size: int, accumulate: int, precision: str, steps: int) -> None:
    """Train, and keep what the process saw and made in ``RESULT.INDEX``."""
    shared = {
        "device": "cpu",
        "trackers": (),
        "batch_size": batch_size,
        "accumulate": accumulate,
        "learning_rate": 1e-3,
        "steps": steps,
    }
    double = precision == "float64"
    if stage == "diffusion":
        sizes = {"channels": (8, 16), "head_channels": 8, "norm_groups": 4, "layers_per_level": 1}
        config = DiffusionConfig(**shared, **sizes, text_condition=0.5, drop_condition=0.3)
        made = diffusion_stage(config, double)
        plain, network = made.unet, made.state.parts["unet"]
    else:
        sizes = {"text_width": 16, "text_layers": 1, "text_heads": 2, "text_positions": 30, "embedding_size": 8}
        sizes |= {"audio_width": 8, "audio_depths": (1, 1), "audio_heads": (1, 2), "audio_image": 64, "audio_s": 1.0}
        sizes |= {"audio_sample_rate": 16_000, "audio_hop_length": 320, "audio_f_max": 8000.0, "dropout": 0.0}
        config = CLAPConfig(**shared, **sizes, contrary_weight=2.0, tempo_weight=1.0)
        made = clap_stage(config)
        plain, network = made.towers, made.state.parts["towers"]
    seen, gradients, accelerator = [], {}, made.run.accelerator

    def keep_first(_optimizer):
        if not gradients:
            gradients.update({name: p.grad.clone() for name, p in plain.named_parameters() if p.grad is not None})

    accelerator.unscale_gradients = keep_first  # called before clipping; there is nothing to unscale
    for batch in made.batches():
        seen.append(batch.items)
        with accelerator.accumulate(network):
            made.step(batch)
        if accelerator.sync_gradients:
            made.state.step += 1
    index = accelerator.process_index
    torch.save({"items": seen, "gradients": gradients, "weights": plain.state_dict()}, f"{result}.{index}")


class Promoted(TorchFunctionMode):
    """Where float32 meets float64, networks compute in float64, as arithmetic does by itself."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        given = (args, kwargs or {})
        kinds = {value.dtype for value in tree_leaves(given) if isinstance(value, torch.Tensor)}
        in_place = function.__name__.endswith("_")
        if not in_place and {torch.float32, torch.float64} <= kinds:
            given = tree_map_only(
                torch.Tensor, lambda value: value.double() if value.dtype == torch.float32 else value, given
            )
        return function(*given[0], **given[1])


@contextmanager
def in_float64():
    """Networks that are made inside have weights of float64."""
    torch.set_default_dtype(torch.float64)
    try:
        with Promoted():
            yield
    finally:
        torch.set_default_dtype(torch.float32)


def whole_runs(data: str, out: str, parts: str, batch_size: int) -> None:
    """All stages by the command's own way in, the VAE with its discriminator; diffusion with the parts of ``parts``.

    In float64, and validated on as many items whatever the batch size.
    """
    shared = ["trackers=[]", "steps=8", "log_every=1", "save_every=4", "validate_every=8", f"batch_size={batch_size}"]
    shared.append(f"validation_batches={8 // batch_size}")
    own = {
        "vae": ["adversarial_from=4"],
        "vocoder": [],
        "clap": ["dropout=0"],
        "diffusion": [f"{part}={parts}/{part}/final" for part in ("vae", "vocoder", "clap")],
    }
    for stage, overrides in own.items():
        with in_float64():
            run(stage, "tiny", Path(data), Path(out) / stage, overrides=shared + overrides)


def fill(folder: str) -> None:
    """Fill four blocks and a half, each process with its number."""
    n = 9 * BLOCK // 2
    kept = KeptArrays(Path(folder), "0" * 64, n, {"by": ((n,), np.int64)})
    for first, last in kept.batches("rows", "row"):
        kept.arrays["by"][first:last] = 1 + PartialState().process_index


def work(tasks: list[tuple[str, list]]) -> None:
    """Call functions of this module, each as in a new process."""
    for name, arguments in tasks:
        GradientState._reset_state()
        {"train": train, "whole_runs": whole_runs, "fill": fill}[name](*arguments)


if __name__ == "__main__":
    torch.set_num_threads(1)
    work(json.loads(sys.argv[1]))
