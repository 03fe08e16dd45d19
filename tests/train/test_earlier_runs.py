"""Run folders that earlier versions left are continued as those versions would have."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from musicldm.config import STAGES, load_config
from musicldm.train import run_stage
from musicldm.train.log import METRICS_FILE
from musicldm.train.run_folder import CONFIG_FILE
from tests.helpers.golden import COPIES

RUNS = COPIES / "runs_before"


@pytest.fixture(scope="module")
def collection(tmp_path_factory) -> Path:
    """Four tones with noise, one held out: what the runs had learned from."""
    folder = tmp_path_factory.mktemp("collection")
    time_s, rows = np.arange(8000) / 8000, []
    for i in range(4):
        tone = 0.3 * np.sin(2 * np.pi * 200 * (i + 1) * time_s)
        noise = 0.05 * np.random.default_rng(i).standard_normal(8000)
        soundfile.write(folder / f"{i}.wav", tone + noise, 8000)
        rows.append({"file_name": f"{i}.wav", "text": f"tone {i}", "split": "validation" if i == 3 else "train"})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.parametrize("stage", ["vae", "vocoder"])
def test_a_run_of_before_goes_on(collection, tmp_path, stage):
    """Its third step has the losses that the earlier version recorded, and so has the validation after it.

    The first follow from the weights of the checkpoint, the second from the optimiser's moments too. What was in the
    metrics stays. One step of Adam makes little of float32's rounding; a gradient of absolute errors makes more of it,
    as it jumps where rounding changes their sign.
    """
    out = tmp_path / "run"
    shutil.copytree(RUNS / stage, out)
    before = (out / METRICS_FILE).read_text()
    config = load_config(STAGES[stage], out / CONFIG_FILE, ["steps=3"])
    run_stage(config, collection, out, resume=True)
    after = (out / METRICS_FILE).read_text()
    assert after.startswith(before)
    rows = [json.loads(line) for line in after[len(before) :].splitlines()]
    assert [(row["step"], row["group"]) for row in rows] == [(3, "train"), (3, "validation")]
    for row in rows:
        for name, value in json.loads((RUNS / "third_step.json").read_text())[stage][row["group"]].items():
            tolerance = 1e-2 if name == "grad_norm" else 1e-4 if row["group"] == "train" else 1e-3
            assert row[name] == pytest.approx(value, rel=tolerance), name
