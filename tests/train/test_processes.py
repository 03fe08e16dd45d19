"""Two processes with batch b, one with batch 2 b, and one that adds up two batches of b, train the same."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import soundfile
import torch

from musicldm.train.diffusion.cache import BLOCK
from musicldm.train.log import METRICS_FILE
from tests.helpers import processes as worker

pytestmark = pytest.mark.slow

WORKER = Path(worker.__file__)


class Case(NamedTuple):
    """How the worker's ``train`` is called."""

    processes: int
    stage: str
    batch_size: int
    accumulate: int
    precision: str
    steps: int


CASES = {
    "one": Case(1, "diffusion", 4, 1, "float64", 20),
    "added": Case(1, "diffusion", 2, 2, "float64", 20),
    "two": Case(2, "diffusion", 2, 1, "float64", 20),
    "one diffusion": Case(1, "diffusion", 4, 1, "float32", 1),
    "two diffusion": Case(2, "diffusion", 2, 1, "float32", 1),
    "one clap": Case(1, "clap", 4, 1, "float32", 1),
    "two clap": Case(2, "clap", 2, 1, "float32", 1),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the cases have run: in this process, or all in the same two, started as ``accelerate launch`` does."""
    folder = tmp_path_factory.mktemp("processes")
    rng = np.random.default_rng(0)
    (folder / "data").mkdir()
    for i in range(10):
        soundfile.write(folder / "data" / f"{i}.wav", 0.1 * rng.standard_normal(16_000).cumsum() / (i + 30), 16_000)
    captions = [{"file_name": f"{i}.wav", "text": f"noise {i}"} for i in range(10)]
    (folder / "data" / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in captions))
    tasks = {
        processes: [("train", (str(folder / name), *case[1:])) for name, case in CASES.items() if case[0] == processes]
        + [("whole_runs", (*(str(folder / name) for name in ("data", f"run-{processes}", "run-1")), 4 // processes))]
        for processes in (1, 2)
    }
    tasks[2].append(("fill", (str(folder / "filled"),)))
    worker.work(tasks[1])
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [sys.executable, "-m", *launcher, str(WORKER), json.dumps(tasks[2])],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-12000:]
    return folder


def load(folder: Path, name: str) -> list[dict]:
    """What each process of a case saw and made."""
    return [torch.load(folder / f"{name}.{index}", weights_only=False) for index in range(CASES[name].processes)]


def of_one_step(seen: list, batches: int) -> list[set]:
    """The items of each step, from the batches of one process."""
    return [set().union(*seen[k : k + batches]) for k in range(0, len(seen), batches)]


def worst(ours: dict, reference: dict) -> float:
    """Largest error relative to the largest value of its tensor, those aside that are zero in exact arithmetic."""
    assert ours.keys() == reference.keys()
    scale = max(float(value.abs().max()) for value in reference.values() if value.is_floating_point())
    errors = [
        float((ours[name] - value).abs().max() / value.abs().max())
        for name, value in reference.items()
        if value.is_floating_point() and float(value.abs().max()) > 1e-6 * scale
    ]
    assert len(errors) > 20
    return max(errors)


def relative_error(ours: dict, reference: dict) -> float:
    """Of all tensors as one vector."""
    assert ours.keys() == reference.keys()
    squares = [((ours[name] - value).square().sum(), value.square().sum()) for name, value in reference.items()]
    return float(sum(error for error, _ in squares) / sum(size for _, size in squares)) ** 0.5


def test_processes_share_the_items_without_overlap(folder):
    (one,), (first, second), (added,) = (load(folder, name) for name in ("one", "two", "added"))
    assert len(one["items"]) == 20
    for whole, left, right in zip(one["items"], first["items"], second["items"], strict=True):
        assert not set(left) & set(right)
        assert set(left) | set(right) == set(whole)
    assert of_one_step(added["items"], 2) == of_one_step(one["items"], 1)


@pytest.mark.parametrize("name", ["two", "added"])
def test_weights_after_twenty_steps_are_those_of_one_process(folder, name):
    (one,) = load(folder, "one")
    for process in load(folder, name):
        assert worst(process["weights"], one["weights"]) < 1e-9
        assert worst(process["gradients"], one["gradients"]) < 1e-9


@pytest.mark.parametrize("stage", ["diffusion", "clap"])
def test_gradients_of_the_first_step_in_float32(folder, stage):
    """For CLAP: with the pairs of all processes as negatives."""
    (one,) = load(folder, f"one {stage}")
    for process in load(folder, f"two {stage}"):
        assert relative_error(process["gradients"], one["gradients"]) < 1e-5


WHOLE_RUNS = {  # losses that are equal, and until which step
    "vae": (("l1", "kl", "discriminator"), 8),
    "vocoder": (("mel",), 1),  # spectral convergence is a ratio of norms of each process's own batch
    "clap": ((), 0),  # so is its batch norm
    "diffusion": (("loss",), 8),
}


@pytest.mark.parametrize("stage", WHOLE_RUNS)
def test_a_whole_run_of_two_processes_is_that_of_one(folder, stage):
    """Into one folder, with one result.

    In float64, because eight steps of Adam can make 1e-3 of what float32 rounds; losses are logged in float32.
    """
    runs = [folder / f"run-{processes}" / stage for processes in (1, 2)]
    rows = [[json.loads(line) for line in (out / METRICS_FILE).read_text().splitlines()] for out in runs]
    names, until = WHOLE_RUNS[stage]
    for one, two in zip(*rows, strict=True):
        assert one.keys() == two.keys()
        assert all(math.isfinite(value) for value in two.values() if isinstance(value, float))
        for name in names if one["step"] <= until else ():
            if name in one:
                assert two[name] == pytest.approx(one[name], rel=1e-6)
    files = [sorted(path.relative_to(out) for path in (out / "final").rglob("*.safetensors")) for out in runs]
    assert files[0] == files[1] != []


def test_processes_fill_a_cache_together(folder):
    """Each block by one of the two; blocks that are not marked are filled again, by however many there are then."""
    by = np.load(folder / "filled" / "by.npy")
    blocks = np.split(by, range(BLOCK, len(by), BLOCK))
    assert [set(block) for block in blocks] == [{1}, {2}, {1}, {2}, {1}]
    marks = np.load(folder / "filled" / "filled.npy")
    assert marks.all()
    marks[[0, 3]] = False
    np.save(folder / "filled" / "filled.npy", marks)
    np.save(folder / "filled" / "by.npy", np.zeros_like(by))
    worker.fill(str(folder / "filled"))
    blocks = np.split(np.load(folder / "filled" / "by.npy"), range(BLOCK, len(by), BLOCK))
    assert [set(block) for block in blocks] == [{1}, {0}, {0}, {1}, {0}]
