"""What the four training loops share: state, checkpoints, averaging, batches, logging.

Everything random in a step follows from the seed and the step (or the item), never from what ran before, so the
position of a run is one number and a run that was killed and resumed equals a straight one.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm import tqdm

from musicldm.config import TrainConfig, differences, load_config, save_config
from musicldm.data.clips import batch_items
from musicldm.loading import bundled_models

STATE_FILE = "state.pt"
CONFIG_FILE = "training.yaml"
METRICS_FILE = "metrics.jsonl"
# What a resumed run may change, because no weight depends on it.
HARMLESS = {"device", "log_every", "save_every", "keep_checkpoints", "validate_every", "validation_batches", "vocoder"}


class Average:
    """Exponential moving average of a module's parameters, warmed up as the original does.

    Update n = 1, 2, ... uses the rate min(decay, (1 + n) / (10 + n)).
    """

    def __init__(self, module: nn.Module, decay: float):
        self.decay, self.updates = decay, 0
        self.shadow = {name: p.detach().clone() for name, p in module.named_parameters()}

    def rate(self) -> float:
        """Share of the old average that the latest update kept."""
        return min(self.decay, (1 + self.updates) / (10 + self.updates))

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Move the average towards the parameters of ``module``."""
        self.updates += 1
        for name, parameter in module.named_parameters():
            self.shadow[name].lerp_(parameter, 1 - self.rate())

    def copy_to(self, module: nn.Module) -> None:
        """Overwrite the parameters of ``module`` by the average."""
        module.load_state_dict(self.shadow, strict=False)

    def state_dict(self) -> dict:
        return {"updates": self.updates, "shadow": self.shadow}

    def load_state_dict(self, state: dict) -> None:
        self.updates = state["updates"]
        for name, value in state["shadow"].items():
            self.shadow[name].copy_(value)


@dataclass
class State:
    """All that a resume needs; everything with a ``state_dict`` in ``parts`` is saved by its name."""

    parts: dict[str, nn.Module | torch.optim.Optimizer | Average]
    step: int = 0
    numbers: dict[str, float] = field(default_factory=dict)


def initial_folder(config: TrainConfig, part: str = "") -> Path:
    """Where the weights of ``config.init`` lie: its sub-folder ``part`` if it has one, else itself.

    Raises:
        FileNotFoundError: ``init`` is neither a folder nor a bundled model.
    """
    folder = bundled_models().get(config.init, Path(config.init))
    if not folder.is_dir():
        known = ", ".join(bundled_models())
        raise FileNotFoundError(f"init: there is no folder {config.init!r} to start from (bundled models: {known})")
    return folder / part if (folder / part).is_dir() else folder


def make_accelerator(config: TrainConfig) -> Accelerator:
    """The device and precision of a run."""
    return Accelerator(mixed_precision=config.mixed_precision, cpu=config.device == "cpu")


def make_optimizer(module: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW with the stage's learning rate, betas and decay."""
    return torch.optim.AdamW(
        module.parameters(), lr=config.learning_rate, betas=config.betas, weight_decay=config.weight_decay
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


def optimise(
    accelerator: Accelerator,
    optimizer: torch.optim.Optimizer,
    loss: Tensor,
    module: nn.Module,
    config: TrainConfig,
    step: int,
) -> Tensor:
    """One update of ``module`` by the gradient of ``loss``; returns the gradient's norm before clipping.

    Raises:
        FloatingPointError: the loss is not finite; the weights are as they were.
    """
    if not torch.isfinite(loss):
        raise FloatingPointError(
            f"the loss is {loss.item()} at step {step}: resume from the last checkpoint with a lower learning_rate"
        )
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(config, step)
    optimizer.zero_grad(set_to_none=True)
    accelerator.backward(loss)
    norm = accelerator.clip_grad_norm_(module.parameters(), config.max_grad_norm)
    optimizer.step()
    return norm


def seed_step(config: TrainConfig, step: int) -> None:
    """Make everything random in ``step`` a function of the seed and the step."""
    torch.manual_seed(config.seed * 1_000_003 + step)


def batches(dataset: torch.utils.data.Dataset, config: TrainConfig, first_step: int) -> Iterator[Tensor]:
    """Batches of ``dataset`` for the steps from ``first_step`` to the last, in an order fixed by the seed."""
    items = (
        batch_items(len(dataset), config.batch_size, config.seed, step) for step in range(first_step, config.steps)
    )
    return iter(torch.utils.data.DataLoader(dataset, batch_sampler=items))


def start(config: TrainConfig, out: Path, resume: bool) -> None:
    """Create the run's folder, or check that it holds a run of this configuration.

    Raises:
        ValueError: the folder holds a run and ``resume`` is not set, or one of another configuration.
    """
    recorded = out / CONFIG_FILE
    if not recorded.exists():
        out.mkdir(parents=True, exist_ok=True)
        save_config(config, recorded)
    elif not resume:
        raise ValueError(f"{out} already holds a run: continue it with --resume, or choose another folder")
    else:
        before = load_config(type(config), recorded)
        changes = differences(before, config)
        # A run at a constant rate may become longer or shorter until its cooldown begins.
        done = max((checkpoint_step(path) for path in checkpoints(out)), default=0)
        open_end = config.schedule == "constant" and done <= min(c.steps - c.cooldown_steps for c in (before, config))
        harmless = HARMLESS | ({"steps", "cooldown_steps"} if open_end else set())
        if grave := [change for change in changes if change.split(":")[0] not in harmless]:
            raise ValueError(
                f"{out} holds a run of another configuration ({'; '.join(grave)}): undo that or start anew"
            )
        save_config(config, recorded)


def checkpoints(out: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    return sorted(out.glob("checkpoint-*"), key=checkpoint_step)


def checkpoint_step(path: Path) -> int:
    """Steps done when the checkpoint ``path`` was written."""
    return int(path.name.split("-")[1])


def save_state(state: State, out: Path, keep: int) -> None:
    """Write ``OUT/checkpoint-N`` atomically and remove all but the newest ``keep``."""
    folder, scratch = out / f"checkpoint-{state.step}", out / ".writing"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    with open(scratch / STATE_FILE, "wb") as file:
        parts = {name: part.state_dict() for name, part in state.parts.items()}
        torch.save({"step": state.step, "numbers": state.numbers, "parts": parts}, file)
        file.flush()
        os.fsync(file.fileno())
    shutil.rmtree(folder, ignore_errors=True)  # one that could not be read, so that the run went back before it
    scratch.rename(folder)
    for old in checkpoints(out)[:-keep]:
        shutil.rmtree(old)


def load_state(state: State, out: Path) -> None:
    """Continue from the newest readable checkpoint of ``out``; without one ``state`` stays at step 0."""
    for folder in reversed(checkpoints(out)):
        try:
            saved = torch.load(folder / STATE_FILE, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError) as error:
            print(f"{folder} cannot be read ({error}); trying the checkpoint before it", file=sys.stderr)
            continue
        for name, part in state.parts.items():
            part.load_state_dict(saved["parts"][name])
        state.step, state.numbers = saved["step"], saved["numbers"]
        return


def final_folder(out: Path) -> Path:
    """``OUT/final``, with the run's configuration in it."""
    final = out / "final"
    final.mkdir(exist_ok=True)
    shutil.copy(out / CONFIG_FILE, final / CONFIG_FILE)
    return final


class Log:
    """Progress bar on stderr, TensorBoard curves and ``OUT/metrics.jsonl`` of one run."""

    def __init__(self, config: TrainConfig, out: Path, first_step: int, seconds_per_item: float):
        self.config, self.seconds_per_item = config, seconds_per_item
        self.bar = tqdm(total=config.steps, initial=first_step, unit="step", desc=out.name, mininterval=1.0)
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError("training writes its curves with tensorboard: pip install 'musicldm[train]'") from error
        self.writer = SummaryWriter(out / "tensorboard", purge_step=first_step)
        self.metrics = out / METRICS_FILE
        if self.metrics.exists():  # what an interrupted run wrote beyond its last checkpoint will come again
            rows = [json.loads(line) for line in self.metrics.read_text().splitlines() if line.endswith("}")]
            self.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows if row["step"] <= first_step))
        self.sums: dict[str, float] = {}
        self.count, self.since = 0, time.monotonic()

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_) -> None:
        self.bar.close()
        self.writer.close()

    def step(self, step: int, losses: dict[str, Tensor]) -> None:
        """Count one step; means over ``log_every`` steps go to the curves."""
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value)
        self.count += 1
        self.bar.update()
        if step % self.config.log_every == 0 or step == self.config.steps:
            means = {name: total / self.count for name, total in self.sums.items()}
            elapsed = time.monotonic() - self.since
            means["audio_s_per_s"] = self.count * self.config.batch_size * self.seconds_per_item / elapsed
            self.write("train", step, means)
            self.bar.set_postfix({name: f"{value:.4g}" for name, value in means.items()})
            self.sums, self.count, self.since = {}, 0, time.monotonic()

    def write(self, group: str, step: int, values: dict[str, float]) -> None:
        """Add one point to each curve of ``group``."""
        for name, value in values.items():
            self.writer.add_scalar(f"{group}/{name}", value, step)
        with open(self.metrics, "a") as file:
            file.write(json.dumps({"step": step, "group": group, **values}) + "\n")
        if group != "train":
            line = "  ".join(f"{name} {value:.5g}" for name, value in values.items())
            tqdm.write(f"step {step}  {group}  {line}", file=sys.stderr)


def after_step(
    state: State, losses: dict[str, Tensor], config: TrainConfig, out: Path, log: Log, validate: Callable[[], dict]
) -> None:
    """Log, validate and save when the step asks for it."""
    log.step(state.step, losses)
    last = state.step == config.steps
    if last or state.step % config.validate_every == 0:
        log.write("validation", state.step, validate())
    if last or state.step % config.save_every == 0:
        save_state(state, out, config.keep_checkpoints)
