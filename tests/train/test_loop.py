"""The loop of all stages, on a stage of its own: whatever is to be trained, a step is all that it must bring."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from musicldm.config import TrainConfig
from musicldm.data.collection import Collection
from musicldm.train.common import Batch, drawn_batches, make_optimizer, update
from musicldm.train.loop import Stage, fit
from musicldm.train.run_folder import Run, State, checkpoints, load_state, start


class Line(Stage):
    """Learns y = 3 x - 1 from the numbers of items; one number is an item of half a second."""

    def __init__(self, run: Run, collection: Collection):
        torch.manual_seed(0)
        self.run, self.line, self.item_s = run, nn.Linear(1, 1), 0.5
        self.networks = self.described = {"line": self.line}
        line, optimizer = run.accelerator.prepare(self.line, make_optimizer(self.line, run.config))
        self.state = State({"line": line, "optimizer": optimizer}, collection.clips(0.5))
        self.validated: list[int] = []

    def batches(self) -> Iterator[Batch]:
        return drawn_batches(lambda items: torch.tensor([[item.index / 8] for item in items]), 8, self.run, self.state)

    def loss(self, x: Tensor) -> Tensor:
        return (self.line(x) - (3 * x - 1)).square().mean()

    def step(self, batch: Batch) -> dict[str, Tensor]:
        loss = self.loss(batch.data)
        self.run.accelerator.backward(loss)
        optimizer, line = self.state.parts["optimizer"], self.state.parts["line"]
        return {"loss": loss.detach()} | update(self.run, self.state, batch.items, optimizer, loss, line)

    def validate(self) -> dict[str, float]:
        self.validated.append(self.state.step)
        return {"loss": float(self.loss(torch.linspace(0, 1, 9)[:, None]))}

    def dry_run(self) -> Tensor:
        return self.loss(torch.ones(1, 1))

    def export(self, final: Path) -> None:
        torch.save(self.line.state_dict(), final / "line.pt")


@pytest.fixture
def collection(tmp_path) -> Collection:
    folder = tmp_path / "data"
    folder.mkdir()
    soundfile.write(folder / "a.wav", np.zeros(32_000), 8000)
    return Collection(folder)


def run_of(out: Path, steps: int, resume: bool = False) -> Run:
    settings = {"learning_rate": 0.05, "weight_decay": 0.0, "batch_size": 2, "accumulate": 2, "save_every": 50}
    settings |= {"validate_every": 30, "keep_checkpoints": 10, "trackers": (), "device": "cpu"}
    run = Run(TrainConfig(steps=steps, **settings), out, Accelerator(cpu=True, gradient_accumulation_steps=2), resume)
    start(run)
    return run


def test_a_stage_is_trained_validated_saved_and_exported(collection, tmp_path):
    stage = Line(run_of(tmp_path / "run", 100), collection)
    final = fit(stage, stage.run, collection)
    assert stage.validated == [30, 60, 90, 100]
    # each validation was the best so far, each 50th step is kept, and the last
    assert [path.name for path in checkpoints(tmp_path / "run")] == [f"checkpoint-{n}" for n in (30, 50, 60, 90, 100)]
    learned = torch.load(final / "line.pt", weights_only=True)
    assert float(learned["weight"]) == pytest.approx(3, abs=0.5)
    assert float(learned["bias"]) == pytest.approx(-1, abs=0.5)


def test_a_stage_goes_on_where_it_was(collection, tmp_path):
    straight, first = (
        Line(run_of(tmp_path / name, steps), collection) for name, steps in (("straight", 100), ("run", 40))
    )
    for stage in (straight, first):
        fit(stage, stage.run, collection)
    second = Line(run_of(tmp_path / "run", 100, resume=True), collection)
    load_state(second.state, second.run.out, second.run.accelerator)
    assert second.state.step == 40
    fit(second, second.run, collection)
    assert all(torch.equal(a, b) for a, b in zip(straight.line.parameters(), second.line.parameters(), strict=True))
    assert second.validated == [60, 90, 100]


def test_the_loop_leaves_settings_of_the_process_alone(collection, tmp_path):
    before = torch.backends.cudnn.benchmark
    stage = Line(run_of(tmp_path / "run", 2), collection)
    fit(stage, stage.run, collection)
    assert torch.backends.cudnn.benchmark == before
