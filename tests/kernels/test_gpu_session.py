"""The command that measures everything on a GPU, as far as it can be tried without one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.original import original_pipeline
from musicldm.pipelines.text_to_music import MusicLDMPipeline

ROOT = Path(__file__).parents[2]
STEPS = ["attention", "calls", "tests", "stages", "windows", "training", "on_device", "profile", "training_others"]
TRAVELS = 64 * 2**20  # bytes


def run(folder: Path, **settings: str) -> list[dict]:
    """What became of each step."""
    command = ["bash", str(ROOT / "benchmarks" / "gpu_session.sh"), "tiny"]
    environment = os.environ | {"OUT": str(folder), "PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""} | settings
    subprocess.run(command, env=environment, check=True, capture_output=True)
    return [json.loads(line) for line in (folder / "session.jsonl").read_text().splitlines()]


def test_a_step_that_fails_stops_no_other(tmp_path):
    ends = run(tmp_path, PYTHON="false")
    assert [end["step"] for end in ends] == STEPS
    assert {end["exit"] for end in ends} == {1}
    assert (tmp_path / "session.txt").read_text().count("== ") == len(STEPS)
    assert len(list(tmp_path.iterdir())) <= 8


def test_no_step_begins_when_the_time_is_over(tmp_path):
    assert {end["exit"] for end in run(tmp_path, LIMIT="5")} == {-1}


@pytest.mark.slow
def test_a_step_that_hangs_is_ended(tmp_path):
    hangs = tmp_path / "hangs"
    hangs.write_text("#!/bin/sh\nexec sleep 60\n")
    hangs.chmod(0o755)
    ends = run(tmp_path / "out", PYTHON=str(hangs), LIMIT="11")
    assert [end["exit"] for end in ends] == [124] + [-1] * (len(STEPS) - 1)


def test_the_published_size_needs_no_bundled_weights(monkeypatch):
    def missing(*args, **kwargs):
        raise OSError("there are no weights")

    monkeypatch.setattr(MusicLDMPipeline, "from_pretrained", missing)
    pipeline = original_pipeline("tiny")
    assert {part.device for part in (pipeline.unet, pipeline.vae, pipeline.vocoder)} == {torch.device("cpu")}


def test_the_tree_without_weights_can_travel():
    if not (ROOT / ".git").exists():
        pytest.skip("needs the git checkout")
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\0")
    files = [ROOT / name for name in names if name and not name.startswith("musicldm/pretrained/")]
    assert files
    assert sum(path.stat().st_size for path in files if path.is_file()) < TRAVELS
