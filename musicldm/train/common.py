"""What the stages share: first weights, optimisers, updates and batches.

Everything random in a batch follows from the seed and its items, never from what ran before, so the position of a run
is one number, a run that was killed and resumed equals a straight one, and so do runs on any number of processes.
"""

from __future__ import annotations

import atexit
import datetime
import itertools
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import get_available_trackers
from accelerate.utils import AutocastKwargs, InitProcessGroupKwargs
from torch import Tensor, nn

from musicldm.config import TrainConfig, differences
from musicldm.data.items import Item, batch_items, item_rng
from musicldm.models.loading import bundled_models
from musicldm.train.run_folder import Run, State
from vocoder import MelConfig


def model_folder(setting: str, name: str) -> Path:
    """The folder that ``setting`` names, or that of a bundled model.

    Raises:
        FileNotFoundError: it is neither.
        ValueError: it is a file.
    """
    folder = bundled_models().get(name, Path(name))
    if folder.is_file():
        raise ValueError(
            f"{setting}: {name} is a file; an original checkpoint becomes a folder to start from by "
            f"`musicldm convert {name} --out FOLDER`"
        )
    if not folder.is_dir():
        known = ", ".join(bundled_models())
        raise FileNotFoundError(f"{setting}: there is no folder {name!r} to start from (bundled models: {known})")
    return folder


def initial_folder(config: TrainConfig, part: str = "") -> Path:
    """Where the weights of ``config.init`` lie: its sub-folder ``part`` if it has one, else itself.

    Raises:
        FileNotFoundError: ``init`` is neither a folder nor a bundled model.
        ValueError: it is a file.
    """
    folder = model_folder("init", config.init)
    return folder / part if (folder / part).is_dir() else folder


def check_mel(part: str, trained: MelConfig, config: TrainConfig) -> None:
    """Refuse ``part`` if it was trained on other spectrograms than ``config.mel``; the length of clips may differ.

    Raises:
        ValueError: naming each difference.
    """
    if changes := differences(replace(trained, clip_s=config.mel.clip_s), config.mel, "mel."):
        raise ValueError(f"{part} was trained on other spectrograms ({'; '.join(changes)}): set the former")


def make_accelerator(config: TrainConfig, out: Path) -> Accelerator:
    """The devices, processes, precision and trackers of a run.

    Raises:
        ImportError: a tracker is not installed.
        ValueError: float16 is asked for on a CPU.
    """
    available = [str(tracker.value) for tracker in get_available_trackers()]
    if missing := [name for name in config.trackers if name not in available]:
        raise ImportError(
            f"trackers: {missing[0]} is not installed (pip install 'musicldm[train]' for tensorboard); "
            f"here are {', '.join(available) or 'none'}, and trackers=[] does without"
        )
    patience = InitProcessGroupKwargs(timeout=datetime.timedelta(hours=12))  # for who waits while others fill a cache
    casts = AutocastKwargs(cache_enabled=not getattr(config, "on_device", False))  # none may outlive a recorded pass
    AcceleratorState._reset_state()  # else a second run in one process could have no other precision than the first
    accelerator = Accelerator(
        mixed_precision=config.mixed_precision,
        cpu=config.device == "cpu",
        gradient_accumulation_steps=config.accumulate,
        log_with=list(config.trackers) or None,
        project_dir=out,
        kwargs_handlers=[patience, casts],
    )
    atexit.register(accelerator.state.destroy_process_group)  # not before: another run may follow among them
    if config.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise ValueError("mixed_precision=fp16 needs a GPU; take bf16, or no, on a CPU")
    return accelerator


def fastest_layout(network: nn.Module, accelerator: Accelerator) -> nn.Module:
    """``network`` with its images as convolutions like them best: channels last on a GPU.

    Not on a CPU, where group norms' gradients in that layout take longer than convolutions gain.
    """
    return network.to(memory_format=torch.channels_last) if accelerator.device.type == "cuda" else network


def refuse_checkpointing(config: TrainConfig, part: str) -> None:
    """ValueError if gradient checkpointing is asked for, which the class of ``part`` does not know."""
    if config.gradient_checkpointing:
        raise ValueError(f"gradient_checkpointing: the {part} has none; lower batch_size and raise accumulate instead")


def make_optimizer(module: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW with the stage's learning rate, betas and decay, on the parameters that are to be trained.

    Fused: one pass over each parameter instead of ten.
    """
    return torch.optim.AdamW(
        [p for p in module.parameters() if p.requires_grad],
        lr=config.learning_rate,
        betas=config.betas,
        weight_decay=config.weight_decay,
        fused=True,
    )


def learning_rate(config: TrainConfig, step: int) -> float:
    """Learning rate of ``step`` (counted from 0): linear warm-up from 0, then a half cosine to 0, or constant.

    The constant ends in a linear cooldown to 0, which gains most of what a whole run of falling rates would
    (Hägele et al., 2024, https://arxiv.org/abs/2405.18392) and leaves open until then how long a run will be.
    """
    if step < config.warmup_steps:
        return config.learning_rate * step / config.warmup_steps
    if config.schedule == "constant":
        return config.learning_rate * min(1.0, (config.steps - step) / max(1, config.cooldown_steps))
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def update(
    run: Run, state: State, items: list[Item], optimizer: torch.optim.Optimizer, loss: Tensor, module: nn.Module
) -> dict[str, Tensor]:
    """Update ``module``, which has the gradient of ``loss`` of ``items``, if that was the last batch of a step.

    Returns ``grad_norm``, the gradient's norm before clipping, when there was an update. A scale of float16 gradients
    stays what it is until the end of the step, so that all gradients of a step have the same.

    Raises:
        FloatingPointError: the loss or its gradient is not finite; the weights are as they were.
    """
    config, accelerator = run.config, run.accelerator
    if not accelerator.sync_gradients:
        check_finite(state, items, loss=loss)
        return {}
    epoch = state.step * run.step_size // max(1, len(state.clips))
    for group in optimizer.param_groups:
        group["lr"] = group.get("scale", 1.0) * learning_rate(config, state.step) * config.decay_per_epoch**epoch
    # Not accelerator.clip_grad_norm_, which unscales the gradients of all optimisers, though others' are yet to come.
    accelerator.unscale_gradients(optimizer)
    norm = nn.utils.clip_grad_norm_(module.parameters(), config.max_grad_norm)
    # A scaler leaves out steps with such gradients, and looks for a scale without them.
    check_finite(state, items, loss=loss, **({} if accelerator.scaler else {"gradient": norm}))
    if accelerator.scaler:
        accelerator.scaler.step(optimizer.optimizer)
    else:
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return {"grad_norm": norm}


def check_finite(state: State, items: list[Item], **values: Tensor) -> None:
    """FloatingPointError naming step and recordings unless all ``values`` are finite; a GPU is asked only once."""
    found = torch.stack([value.detach().float() for value in values.values()]).tolist()
    for what, value in zip(values, found, strict=True):
        if not math.isfinite(value):
            raise FloatingPointError(
                f"the {what} is {value} at step {state.step}, batch {state.names(items)}: look at these "
                "recordings, or start a run with a lower learning_rate; the checkpoints before this step are kept"
            )


def item_generators(config: TrainConfig, items: list[Item], purpose: str) -> list[torch.Generator]:
    """A generator on the CPU for each item."""
    seeds = [int(item_rng(config.seed, item, purpose).integers(2**63)) for item in items]
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def seed_batch(config: TrainConfig, items: list[Item]) -> None:
    """Make what torch draws by itself, such as dropout, a function of the seed and the batch's first item."""
    torch.manual_seed(int(item_rng(config.seed, items[0], "torch").integers(2**63)))


class Batch(NamedTuple):
    """What one process learns from at a time."""

    items: list[Item]
    data: Any  # what the stage's dataset made of them


def loaded_batches(dataset: torch.utils.data.Dataset, run: Run, state: State) -> Iterator[Batch]:
    """This process's batches of ``dataset`` from ``state.step`` to the last step, in an order fixed by the seed."""
    note_step_size(run, state)
    plans = [planned_items(len(dataset), run, state.step) for _ in range(2)]
    pin = run.accelerator.device.type == "cuda"
    options = {"num_workers": run.config.workers, "pin_memory": pin}
    loader = torch.utils.data.DataLoader(dataset, batch_sampler=plans[0], **options)
    return itertools.starmap(Batch, zip(plans[1], loader, strict=True))


def drawn_batches(draw: Callable[[list[Item]], Any], n_clips: int, run: Run, state: State) -> Iterator[Batch]:
    """The same of what ``draw`` makes of the items of each batch, when it is asked for."""
    note_step_size(run, state)
    return (Batch(items, draw(items)) for items in planned_items(n_clips, run, state.step))


def planned_items(n_clips: int, run: Run, first_step: int) -> Iterator[list[Item]]:
    """The items of this process's batches: in each step its share, disjoint from that of the others."""
    config, size = run.config, run.config.batch_size
    for step in range(first_step, config.steps):
        items = batch_items(n_clips, run.step_size, config.seed, step)
        own = items[run.accelerator.process_index * size * config.accumulate :]
        yield from (own[k * size : (k + 1) * size] for k in range(config.accumulate))


def note_step_size(run: Run, state: State) -> None:
    """Say so on stderr when the run goes on with another number of items a step, as with more or fewer processes."""
    size = run.step_size
    if (before := state.numbers.get("items", size)) != size and run.accelerator.is_main_process:
        print(
            f"warning: a step had {before} items until here and now has {size}, from another number of processes; "
            "clips come in another order, and learning_rate was chosen for the former",
            file=sys.stderr,
        )
    state.numbers["items"] = size
