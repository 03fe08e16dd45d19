"""Is a run that is killed at random moments and resumed each time the same as one that was left alone?

    python -m benchmarks.kills [--kills 10] [--out benchmarks/results/kills.json]

Trains the VAE of configs/tiny, discriminator included, on noises made here; every start is a new process.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
import torch

from benchmarks.results import keep
from musicldm.train.checkpoints import STATE_FILE, checkpoints
from musicldm.train.progress import METRICS_FILE

STEPS, RATE = 240, 16_000
OVERRIDES = [f"steps={STEPS}", "save_every=7", "validate_every=50", "adversarial_from=60", "log_every=1"]


def make_collection(folder: Path) -> None:
    """Ten noises of one second."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(10):
        soundfile.write(folder / f"{i}.wav", 0.1 * rng.standard_normal(RATE).cumsum() / (i + 30), RATE)


def begin(data: Path, out: Path, *options: str) -> subprocess.Popen:
    """Start training in a process of its own."""
    command = [sys.executable, "-m", "musicldm", "train", "vae", "--config", "tiny", f"data={data}", "--out", str(out)]
    return subprocess.Popen(
        [*command, *OVERRIDES, *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def lines(out: Path) -> int:
    """Steps that the run has logged."""
    return len((out / METRICS_FILE).read_text().splitlines()) if (out / METRICS_FILE).exists() else 0


def kill_at(process: subprocess.Popen, out: Path, n_lines: int, delay_s: float) -> bool:
    """SIGKILL ``delay_s`` after the run has logged ``n_lines``; False if it ended before."""
    while lines(out) < n_lines:
        if process.poll() is not None:
            return False
        time.sleep(0.002)
    time.sleep(delay_s)
    if process.poll() is not None:
        return False
    process.send_signal(signal.SIGKILL)
    process.wait()
    return True


def parts(out: Path) -> dict[str, torch.Tensor]:
    """Every tensor of the last checkpoint: weights, both optimisers."""
    saved = torch.load(checkpoints(out)[-1] / STATE_FILE, weights_only=True)
    assert saved["step"] == STEPS
    found: dict[str, torch.Tensor] = {}

    def collect(name: str, value: object) -> None:
        if isinstance(value, torch.Tensor):
            found[name] = value
        elif isinstance(value, dict):
            for key, inner in value.items():
                collect(f"{name}/{key}", inner)

    collect("", saved["parts"])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "kills.json")
    args = parser.parse_args()
    moments = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as scratch:
        data, straight, killed = (Path(scratch) / name for name in ("data", "straight", "killed"))
        make_collection(data)
        if begin(data, straight).wait():
            raise SystemExit("the straight run failed")
        targets = sorted(moments.sample(range(5, STEPS - 5), args.kills))  # steps, hit within the next 50 ms
        kills = []
        for target in targets:
            process = begin(data, killed, *(["--resume"] if kills else []))
            if not kill_at(process, killed, target, moments.uniform(0, 0.05)):
                raise SystemExit(f"the run ended before it could be killed at step {target}")
            logged, saved = lines(killed), [int(path.name.split("-")[1]) for path in checkpoints(killed)]
            kills.append({"steps_logged": logged, "checkpoints": saved})
            print(kills[-1], file=sys.stderr)
        if begin(data, killed, "--resume").wait():
            raise SystemExit("the last resume failed")
        expected, resumed = parts(straight), parts(killed)
    different = [name for name in expected if not torch.equal(expected[name], resumed[name])]
    result = {"steps": STEPS, "kills": kills, "tensors": len(expected), "different_tensors": different}
    keep(args.out, {"kills": result})
    print(f"{len(kills)} kills, {len(expected)} tensors compared, {len(different)} differ")


if __name__ == "__main__":
    main()
