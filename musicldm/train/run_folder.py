"""A run's folder: its configuration, atomic checkpoints that hold everything a resume needs, and what may change.

OUT/training.yaml, OUT/data.jsonl, OUT/checkpoint-N/state.pt, OUT/final/
"""

from __future__ import annotations

import math
import os
import pickle
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from musicldm.audio.output import check_mark
from musicldm.config import CHANGEABLE, TrainConfig, differences, load_config, marked, save_config
from musicldm.data.clips import Clip
from musicldm.data.collection import Collection
from musicldm.data.items import Item
from musicldm.pipelines.hub import CARD
from musicldm.train.card import training_card
from musicldm.train.data import DATA_FILE
from musicldm.train.log import METRICS_FILE

STATE_FILE = "state.pt"
CONFIG_FILE = "training.yaml"
WRITTEN = ("checkpoint-*", "final", METRICS_FILE, DATA_FILE, "examples", "curves")  # into a run's folder, beside that


class Average:
    """Exponential moving average of a module's trained parameters, warmed up as the original does.

    Update n = 1, 2, ... uses the rate min(decay, (1 + n) / (10 + n)).
    """

    def __init__(self, module: nn.Module, decay: float):
        self.decay, self.updates = decay, 0
        self.shadow = {name: p.detach().clone() for name, p in module.named_parameters() if p.requires_grad}

    def rate(self) -> float:
        """Share of the old average that the latest update kept."""
        return min(self.decay, (1 + self.updates) / (10 + self.updates))

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Move the average towards the parameters of ``module``."""
        self.updates += 1
        latest = dict(module.named_parameters())
        torch._foreach_lerp_(list(self.shadow.values()), [latest[name] for name in self.shadow], 1 - self.rate())

    def copy_to(self, module: nn.Module) -> None:
        """Overwrite the parameters of ``module`` by the average."""
        module.load_state_dict(self.shadow, strict=False)

    @torch.no_grad()
    def swap(self, module: nn.Module) -> None:
        """Exchange the average and the parameters of ``module``, each in its place; a second time undoes it."""
        for name, p in module.named_parameters():
            if name in self.shadow:
                raw = p.clone()
                p.copy_(self.shadow[name])
                self.shadow[name].copy_(raw)

    def to(self, device: torch.device) -> Average:
        """Move the average to ``device``."""
        self.shadow = {name: value.to(device) for name, value in self.shadow.items()}
        return self

    def state_dict(self) -> dict:
        return {"updates": self.updates, "shadow": self.shadow}

    def load_state_dict(self, state: dict) -> None:
        self.updates = state["updates"]
        for name, value in state["shadow"].items():
            self.shadow[name].copy_(value)


@dataclass
class State:
    """All that a resume needs; everything with a ``state_dict`` in ``parts`` is saved by its name."""

    parts: dict[str, nn.Module | torch.optim.Optimizer | torch.amp.GradScaler | Average]
    clips: list[Clip] = field(default_factory=list)  # that items number
    step: int = 0
    numbers: dict[str, float] = field(default_factory=dict)  # "best" and "best_step" of the validations among them
    later: tuple[str, ...] = ()  # parts that checkpoints lack from before a run was long enough for them; then fresh

    def names(self, items: list[Item]) -> str:
        """The files of ``items``, for messages."""
        return ", ".join(self.clips[item.index].path.name for item in items if self.clips) or "unknown"


@dataclass(frozen=True)
class Run:
    """What a stage is told: settings, where its results go, the processes that work on it, and whether it goes on."""

    config: TrainConfig
    out: Path
    accelerator: Accelerator
    resume: bool = False

    @property
    def step_size(self) -> int:
        """Items of one step, over all processes."""
        return self.config.batch_size * self.config.accumulate * self.accelerator.num_processes


def start(run: Run) -> None:
    """Create the run's folder, or check that it holds a run of this configuration; the main process does it for all.

    Raises:
        ValueError: the folder holds a run that is not to be resumed, or one of another configuration.
        FileExistsError: it holds files that a run would write, and is none.
    """
    if run.accelerator.is_main_process:
        _start(run.config, run.out, run.resume)
    run.accelerator.wait_for_everyone()


def _start(config: TrainConfig, out: Path, resume: bool) -> None:
    recorded = out / CONFIG_FILE
    if not check_mark(out, CONFIG_FILE, WRITTEN, "train"):
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
        harmless = marked(config, CHANGEABLE) | ({"steps", "cooldown_steps"} if open_end else set())
        if grave := [change for change in changes if change.split(":")[0] not in harmless]:
            raise ValueError(
                f"{out} holds a run of another configuration ({'; '.join(grave)}): undo that or start anew"
            )
        if changes:
            save_config(config, recorded)


def checkpoints(out: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first; what else has such a name is left alone."""
    found = [path for path in out.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdecimal()]
    return sorted((path for path in found if (path / STATE_FILE).is_file()), key=checkpoint_step)


def checkpoint_step(path: Path) -> int:
    """Steps done when the checkpoint ``path`` was written."""
    return int(path.name.split("-")[1])


def save_state(state: State, out: Path, keep: int) -> None:
    """Write ``OUT/checkpoint-N`` atomically and remove all but the newest ``keep`` and the best.

    Raises:
        OSError: it cannot be written, as on a full disk; the checkpoints before it are as they were.
    """
    folder, scratch = out / f"checkpoint-{state.step}", out / f".{STATE_FILE}.part"
    try:
        with open(scratch, "wb") as file:
            parts = {name: _unwrapped(part).state_dict() for name, part in state.parts.items()}
            torch.save({"step": state.step, "numbers": state.numbers, "parts": parts}, file)
            file.flush()
            os.fsync(file.fileno())
        folder.mkdir(exist_ok=True)  # there may be one that could not be read, so that the run went back before it
        scratch.replace(folder / STATE_FILE)
    except (OSError, RuntimeError) as error:  # torch's writer hides the first in the second
        scratch.unlink(missing_ok=True)
        kept = ", ".join(path.name for path in checkpoints(out)) or "there is none before it"
        raise OSError(f"{folder} cannot be written ({error}); kept: {kept}. Make room, then --resume") from error
    for old in checkpoints(out)[:-keep]:
        if checkpoint_step(old) != state.numbers.get("best_step"):
            (old / STATE_FILE).unlink()
            if not any(old.iterdir()):  # else somebody keeps files of their own there
                old.rmdir()


def load_state(state: State, out: Path, accelerator: Accelerator) -> None:
    """Continue from the newest readable checkpoint of ``out``; ``state`` stays at step 0 if there is none at all.

    With float16 the scale of the gradients is part of the state.

    Raises:
        ValueError: there are checkpoints but none can be read, or one does not fit, or not all processes see the same.
    """
    if accelerator.scaler is not None:
        state.parts["scaler"] = accelerator.scaler
    found = checkpoints(out)
    for folder in reversed(found):
        try:
            saved = read_checkpoint(folder)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            print(f"{folder} cannot be read ({error})", file=sys.stderr)
            continue
        take_over(state, saved, folder)
        if folder != found[-1]:
            print(f"continuing from {folder}", file=sys.stderr)
        break
    else:
        if found:
            raise ValueError(f"none of the checkpoints in {out} can be read: remove them to begin anew")
    steps = accelerator.gather(torch.tensor([state.step], device=accelerator.device)).tolist()
    if len(set(steps)) > 1:
        raise ValueError(
            f"the processes would go on from different steps ({', '.join(map(str, steps))}): "
            f"{out} must be on a file system that all hosts share"
        )


def read_checkpoint(folder: Path) -> dict:
    """What `save_state` wrote."""
    return torch.load(folder / STATE_FILE, map_location="cpu", weights_only=True)


def take_over(state: State, saved: dict, folder: Path) -> None:
    """Make ``state`` that of the checkpoint ``folder``, whose content is ``saved``.

    Raises:
        ValueError: a part does not fit, or is not there.
    """
    for name, part in state.parts.items():
        if name in state.later and name not in saved["parts"]:
            continue
        try:
            _unwrapped(part).load_state_dict(saved["parts"][name])
        except (RuntimeError, ValueError, KeyError) as error:
            raise ValueError(
                f"{name} of {folder} is not what this run trains ({error}): was the model of init, or this package, "
                "another when the run began?"
            ) from error
    state.step, state.numbers = saved["step"], saved["numbers"]


def record_best(state: State, metrics: dict[str, float]) -> bool:
    """Note a validation, whose first number counts; whether it is the lowest so far, which NaN is not."""
    value = next(iter(metrics.values()))
    if math.isnan(value) or value >= state.numbers.get("best", float("inf")):
        return False
    state.numbers |= {"best": value, "best_step": state.step}
    return True


def final_folder(state: State, run: Run, collection: Collection, parts: dict[str, nn.Module]) -> Path:
    """``OUT/final``, with the run's configuration and a card of ``parts``; ``state`` becomes what is to be exported.

    Raises:
        ValueError: the best is to be exported and every validation was NaN.
    """
    config, out = run.config, run.out
    if config.export == "best":
        if "best_step" not in state.numbers:
            raise ValueError(f"no validation of {out} gave a number, so that none is the best: --resume export=last")
        best = out / f"checkpoint-{state.numbers['best_step']}"
        take_over(state, read_checkpoint(best), best)
    final = out / "final"
    final.mkdir(exist_ok=True)
    shutil.copy(out / CONFIG_FILE, final / CONFIG_FILE)
    (final / CARD).write_text(training_card(config, state.clips, collection, out, parts), encoding="utf-8")
    return final


def _unwrapped(part):
    """A network without what spreads it over processes, whose number may change from one resume to the next."""
    return part.module if isinstance(part, DistributedDataParallel) else part
