"""What the configurations of all training stages share: their common fields, marks of fields, checks of values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from vocoder.mel import MelConfig

PRECISIONS = ("no", "bf16", "fp16")
SCHEDULES = ("constant", "cosine")
CHANGEABLE, LOCAL = "changeable", "local"


def changeable(default: object, local: bool = False) -> Any:
    """A field that a resumed run may change, as no weight depends on it."""
    return field(default=default, metadata={CHANGEABLE: True, LOCAL: local})


def local(default: object) -> Any:
    """A field that is of one machine, which a model's card leaves out."""
    return field(default=default, metadata={LOCAL: True})


def marked(config: Any, mark: str) -> set[str]:
    """The names of the fields of ``config`` that are `CHANGEABLE` or `LOCAL`."""
    return {f.name for f in fields(config) if f.metadata.get(mark)}


def positive(config: object, *names: str) -> None:
    for name in names:
        if not getattr(config, name) > 0:
            raise ValueError(f"{name} must be positive, got {getattr(config, name)}")


def not_negative(config: object, *names: str) -> None:
    for name in names:
        if getattr(config, name) < 0:
            raise ValueError(f"{name} must not be negative, got {getattr(config, name)}")


def _finite(config: TrainConfig) -> None:
    """ValueError for infinity and NaN, and for sizes in lists that are none."""
    for f in fields(config):
        value = getattr(config, f.name)
        values = value if isinstance(value, tuple) else (value,)
        if any(isinstance(each, float) and not math.isfinite(each) for each in values):
            raise ValueError(f"{f.name} must be finite, got {value}")
        if f.type == "tuple[int, ...]" and (not values or min(values) < 1):
            raise ValueError(f"{f.name} must be sizes of at least 1, got {list(values)}")


def one_of(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")


@dataclass
class TrainConfig:
    """What all stages share."""

    seed: int = 0
    # Weights to start from, whose sizes then count: a stage's final folder, a model folder or "mini".
    init: str = local("")
    share: float = 1.0  # of the training recordings that are used; the same ones in every run
    steps: int = 100_000  # optimiser steps
    batch_size: int = 16  # clips for each process at a time
    accumulate: int = 1  # batches of each process whose gradients make one step
    learning_rate: float = 1e-4
    warmup_steps: int = 0  # the learning rate rises linearly from 0
    schedule: str = "constant"  # or cosine, to 0 at the last step
    cooldown_steps: int = 0  # a constant learning rate falls linearly to 0 over the last of these
    decay_per_epoch: float = 1.0  # factor of the learning rate after each pass over the clips
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    max_grad_norm: float = 1.0
    mixed_precision: str = "no"  # no, bf16 or fp16
    gradient_checkpointing: bool = changeable(False)  # compute activations again instead of keeping them
    compile: bool = changeable(False)  # by torch.compile
    device: str = changeable("auto", local=True)  # auto or cpu
    workers: int = changeable(0, local=True)  # processes that read ahead
    log_every: int = changeable(50, local=True)  # steps
    save_every: int = changeable(5000)  # steps
    keep_checkpoints: int = changeable(2)  # the newest; that of the best validation is kept beside them
    export: str = changeable("last")  # or best: which weights OUT/final gets
    trackers: tuple[str, ...] = changeable(("tensorboard",), local=True)  # any that accelerate knows
    validate_every: int = changeable(5000)  # steps
    validation_batches: int = changeable(8)
    mel: MelConfig = field(default_factory=MelConfig)

    def __post_init__(self):
        _finite(self)
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must be from 0 to {2**32 - 1}, got {self.seed}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must be from 0 to below 1, got {self.betas}")
        not_negative(self, "weight_decay")
        positive(self, "steps", "batch_size", "accumulate", "learning_rate", "max_grad_norm")
        positive(self, "log_every", "save_every", "keep_checkpoints", "validate_every", "validation_batches")
        one_of("mixed_precision", self.mixed_precision, PRECISIONS)
        one_of("schedule", self.schedule, SCHEDULES)
        one_of("device", self.device, ("auto", "cpu"))
        one_of("export", self.export, ("last", "best"))
        if not 0 < self.share <= 1:
            raise ValueError(f"share is a share of the recordings, above 0 and at most 1, got {self.share}")
        not_negative(self, "workers")
        if not 0 < self.decay_per_epoch <= 1:
            raise ValueError(f"decay_per_epoch must be above 0 and at most 1, got {self.decay_per_epoch}")
        for name in ("warmup_steps", "cooldown_steps"):
            if not 0 <= getattr(self, name) <= self.steps:
                raise ValueError(f"{name} must be from 0 to steps ({self.steps}), got {getattr(self, name)}")
        if self.cooldown_steps and self.schedule == "cosine":
            raise ValueError(f"cooldown_steps={self.cooldown_steps} is for schedule=constant; cosine falls by itself")
