"""Is a run that is killed at random moments and resumed each time the same as one that was left alone?

    python -m benchmarks.kills [--kills 10] [--stages vae vocoder clap diffusion] [--out benchmarks/results/kills.json]

Trains all stages of configs/tiny on noises made here, the VAE with its discriminator and the diffusion model with two
processes that read ahead; every start is a new process.
"""

from __future__ import annotations

import argparse
import json
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
from musicldm.train.log import METRICS_FILE
from musicldm.train.run_folder import STATE_FILE, checkpoints

STEPS, RATE = 240, 16_000
OVERRIDES = [f"steps={STEPS}", "save_every=7", "validate_every=50", "log_every=1", "trackers=[]"]
STAGES = {"vae": ["adversarial_from=60"], "vocoder": [], "clap": [], "diffusion": ["workers=2"]}


def make_collection(folder: Path) -> None:
    """Ten noises of one second, with captions."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(10):
        soundfile.write(folder / f"{i}.wav", 0.1 * rng.standard_normal(RATE).cumsum() / (i + 30), RATE)
    rows = [json.dumps({"file_name": f"{i}.wav", "text": f"noise {i}"}) + "\n" for i in range(10)]
    (folder / "metadata.jsonl").write_text("".join(rows))


def begin(stage: str, data: Path, out: Path, options: list[str]) -> subprocess.Popen:
    """Start training in a process of its own."""
    command = [sys.executable, "-m", "musicldm", "train", stage, "--config", "tiny", f"data={data}", "--out", str(out)]
    return subprocess.Popen(
        [*command, *OVERRIDES, *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def lines(out: Path) -> int:
    """Lines that the run has logged, one or two for each step."""
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


def try_stage(stage: str, own: list[str], n_kills: int, moments: random.Random, scratch: Path) -> dict:
    """A straight run, and one that is killed ``n_kills`` times: what was hit, and the tensors that differ."""
    data, straight, killed = scratch / "data", scratch / stage, scratch / f"{stage}-killed"
    if begin(stage, data, straight, own).wait():
        raise SystemExit(f"the straight run of {stage} failed")
    targets = sorted(moments.sample(range(5, STEPS - 5), n_kills))  # steps, hit within the next 50 ms
    kills = []
    for target in targets:
        process = begin(stage, data, killed, [*own, *(["--resume"] if kills else [])])
        if not kill_at(process, killed, target, moments.uniform(0, 0.05)):
            raise SystemExit(f"the run of {stage} ended before it could be killed at step {target}")
        kills.append({"logged": lines(killed), "checkpoints": [int(p.name.split("-")[1]) for p in checkpoints(killed)]})
        print(stage, kills[-1], file=sys.stderr)
    if begin(stage, data, killed, [*own, "--resume"]).wait():
        raise SystemExit(f"the last resume of {stage} failed")
    expected, resumed = parts(straight), parts(killed)
    different = [name for name in expected if not torch.equal(expected[name], resumed[name])]
    print(f"{stage}: {len(kills)} kills, {len(expected)} tensors compared, {len(different)} differ")
    return {"steps": STEPS, "kills": kills, "tensors": len(expected), "different_tensors": different}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES), help="diffusion needs the others")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "kills.json")
    args = parser.parse_args()
    moments, result = random.Random(args.seed), {}
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        make_collection(scratch / "data")
        for stage in args.stages:
            made = [f"{part}={scratch / part / 'final'}" for part in ("vae", "vocoder", "clap")]
            own = STAGES[stage] + (made if stage == "diffusion" else [])
            result[stage] = try_stage(stage, own, args.kills, moments, scratch) | {"settings": STAGES[stage]}
    keep(args.out, {"kills": result})


if __name__ == "__main__":
    main()
