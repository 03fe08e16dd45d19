"""The loop of all stages.

    for each batch: step
    every n steps: log, validate, show examples, save; on SIGINT or SIGTERM: save and stop

What differs between the stages is a `Stage`. All that a resume needs is in its ``state``.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from musicldm.data.collection import Collection
from musicldm.train.common import Batch
from musicldm.train.data import note_data
from musicldm.train.log import Examples, Log, announce
from musicldm.train.run_folder import Run, State, final_folder, record_best, save_state


class Stage(Protocol):
    """What is trained, and how.

    ``state`` holds the networks as they are spread over processes, and their optimisers.
    """

    state: State
    networks: dict[str, nn.Module]  # all that are trained, by the names that the announcement gives them
    described: dict[str, nn.Module]  # what the card tells of
    item_s: float  # seconds of audio of one item

    def batches(self) -> Iterator[Batch]:
        """This process's batches from ``state.step`` to the last step."""

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """Learn from one batch; the losses by name. Gradients of ``accumulate`` batches make one update."""

    def validate(self) -> dict[str, float]:
        """Metrics on held-out clips, of which the first decides what is best: the lowest."""

    def dry_run(self) -> Tensor:
        """The loss of one item once all networks take part: by it memory and time are foretold."""

    def compile(self) -> None:
        """Compile the networks in place."""

    def export(self, final: Path) -> None:
        """Write what was trained into the folder ``final``."""

    def examples(self) -> Examples:
        """What the networks make by now."""
        return Examples()

    def begin(self, log: Log) -> None:
        """What comes before the first batch."""


def fit(stage: Stage, run: Run, collection: Collection) -> Path:
    """Train ``stage`` on ``collection`` to its last step; returns ``OUT/final``.

    Raises:
        KeyboardInterrupt, SystemExit: SIGINT or SIGTERM came; the state is saved.
        FloatingPointError: a loss or gradient is not finite.
    """
    config, accelerator, state = run.config, run.accelerator, stage.state
    if accelerator.is_main_process:
        print(collection.account(), file=sys.stderr)
        note_data(run.out, state.step, state.clips, collection)
    announce(config, state.clips, stage.networks, stage.dry_run, accelerator)
    if config.compile:
        stage.compile()
    trained = [part for part in state.parts.values() if isinstance(part, nn.Module)]
    with tuned_convolutions(), Log(config, run.out, state.step, stage.item_s, accelerator) as log:
        stage.begin(log)
        for batch in stage.batches():
            with accelerator.accumulate(*trained):
                losses = stage.step(batch)
            log.add(losses)
            if not accelerator.sync_gradients:
                continue
            if accelerator.scaler:
                accelerator.scaler.update()
            state.step += 1
            log.step(state.step)
            last, best = state.step == config.steps, False
            if accelerator.is_main_process and (last or state.step % config.validate_every == 0):
                metrics = stage.validate()
                log.write("validation", state.step, metrics)
                best = record_best(state, metrics)
                log.examples(state.step, stage.examples())
            stop = log.stopping()
            if accelerator.is_main_process and (last or best or stop or state.step % config.save_every == 0):
                save_state(state, run.out, config.keep_checkpoints)
            if stop:
                leave(stop, run, state.step)
    if accelerator.is_main_process:
        stage.export(final_folder(state, run, collection, stage.described))
    return run.out / "final"


def leave(stop: signal.Signals, run: Run, step: int) -> None:
    """End the run as the signal ``stop`` asks for: KeyboardInterrupt or SystemExit, once all processes are here."""
    run.accelerator.wait_for_everyone()
    print(f"{stop.name}: stopped after step {step}, saved; --resume continues", file=sys.stderr)
    raise KeyboardInterrupt if stop is signal.SIGINT else SystemExit(128 + stop)


@contextmanager
def tuned_convolutions() -> Iterator[None]:
    """While inside, cuDNN measures which of its convolutions is fastest, which pays as batches have one shape."""
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
