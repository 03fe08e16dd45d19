"""What a run survives, keeps and shows: signals, losses that are not finite, the best checkpoint, its own size."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from disk import full_disk

from musicldm.config import VAEConfig
from musicldm.train import run
from musicldm.train.checkpoints import STATE_FILE, State, checkpoints, record_best, save_state
from musicldm.train.progress import Log, StopSignals

CONFIG = Path(__file__).parents[1] / "configs" / "tiny" / "vae.yaml"
RATE = 16_000
SHORT = [
    "steps=12",
    "save_every=100",
    "validate_every=100",
    "adversarial_from=6",
    "validation_batches=1",
    "trackers=[]",
]


@pytest.fixture(scope="module")
def collection(tmp_path_factory) -> Path:
    """Ten noises of falling loudness."""
    folder = tmp_path_factory.mktemp("collection")
    rng = np.random.default_rng(0)
    for i in range(10):
        soundfile.write(folder / f"{i}.wav", 0.1 * rng.standard_normal(RATE).cumsum() / (i + 30), RATE)
    return folder


def last_weights(out: Path) -> dict[str, torch.Tensor]:
    saved = torch.load(checkpoints(out)[-1] / STATE_FILE, weights_only=True)
    return saved["parts"]["vae"] | {f"d.{name}": value for name, value in saved["parts"]["discriminator"].items()}


@pytest.fixture(scope="module")
def straight(collection, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("straight") / "run"
    run("vae", CONFIG, collection, out, overrides=SHORT)
    return out


@pytest.mark.parametrize(("number", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_a_signal_saves_and_stops(collection, straight, tmp_path, monkeypatch, capsys, number, raised):
    """It comes in the middle of step 8, is noted, and the run resumed later equals one that was left alone."""

    def signal_at_8(self, losses, original=Log.add):
        original(self, losses)
        self.batches_seen = getattr(self, "batches_seen", 0) + 1
        if self.batches_seen == 8:
            signal.raise_signal(number)

    before = signal.signal(number, signal.SIG_DFL), None  # a background job inherits that SIGINT is ignored
    try:
        with monkeypatch.context() as patch:
            patch.setattr(Log, "add", signal_at_8)
            with pytest.raises(raised) as stopped:
                run("vae", CONFIG, collection, tmp_path / "run", overrides=SHORT)
    finally:
        signal.signal(number, before[0])
    if number is signal.SIGTERM:
        assert stopped.value.code == 143
    assert f"{number.name}: stopped after step 8" in capsys.readouterr().err
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["checkpoint-8"]
    run("vae", CONFIG, collection, tmp_path / "run", resume=True, overrides=SHORT)
    expected, resumed = last_weights(straight), last_weights(tmp_path / "run")
    assert all(torch.equal(expected[name], resumed[name]) for name in expected)


def test_the_command_ends_with_the_signals_code(collection, tmp_path):
    command = [sys.executable, "-m", "musicldm", "train", "vae", "--config", str(CONFIG), f"data={collection}"]
    process = subprocess.Popen(
        [*command, "--out", str(tmp_path / "run"), *SHORT, "steps=100000"],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 200
    while not (tmp_path / "run" / "metrics.jsonl").exists():  # the first ten steps are done
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 143
    assert "--resume continues" in errors
    assert checkpoints(tmp_path / "run")


def test_a_second_signal_is_not_held_back():
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with StopSignals() as stop:
            signal.raise_signal(signal.SIGTERM)
            assert stop.received is signal.SIGTERM
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_the_best_checkpoint_outlives_newer_ones(tmp_path):
    state = State({"module": torch.nn.Linear(1, 1)})
    for state.step, loss in ((10, 3.0), (20, 1.0), (30, 2.0), (40, 2.5), (50, 1.5)):
        assert record_best(state, {"loss": loss, "other": -loss}) == (state.step <= 20)
        save_state(state, tmp_path, keep=2)
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-20", "checkpoint-40", "checkpoint-50"]


def test_a_full_disk_costs_no_checkpoint(tmp_path):
    state = State({"module": torch.nn.Linear(100, 100)}, step=10)
    save_state(state, tmp_path, keep=1)
    before = (tmp_path / "checkpoint-10" / STATE_FILE).read_bytes()
    state.step = 20
    with full_disk(5000), pytest.raises(OSError, match=r"checkpoint-20 cannot be written .*kept: checkpoint-10"):
        save_state(state, tmp_path, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-10"]
    assert (tmp_path / "checkpoint-10" / STATE_FILE).read_bytes() == before
    save_state(state, tmp_path, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-20"]


def test_the_best_weights_can_be_exported(collection, tmp_path):
    from safetensors.torch import load_file

    out = tmp_path / "run"
    overrides = [*SHORT, "validate_every=6", "learning_rate=0.5", "steps=12", "export=best"]
    run("vae", CONFIG, collection, out, overrides=[*overrides, "adversarial_from=100"])
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    best = min((row for row in rows if row["group"] == "validation"), key=lambda row: row["l1"])["step"]
    saved = torch.load(out / f"checkpoint-{best}" / STATE_FILE, weights_only=True)["parts"]["vae"]
    exported = load_file(out / "final" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(saved[f"vae.{name}"], value) for name, value in exported.items())


def test_a_loss_that_is_not_finite_names_its_recordings(collection, tmp_path):
    """One recording holds a NaN; no checkpoint after it is written, and the one before is whole."""
    folder = tmp_path / "data"
    folder.mkdir()
    for path in collection.iterdir():
        wave, rate = soundfile.read(path, dtype="float32")
        if path.name == "4.wav":
            wave[:] = np.nan
        soundfile.write(folder / path.name, wave, rate, subtype="FLOAT")
    out = tmp_path / "run"
    with pytest.raises(FloatingPointError, match=r"the loss is nan at step \d+, batch .*4\.wav"):
        run("vae", CONFIG, folder, out, overrides=[*SHORT, "save_every=1", "batch_size=2"])
    for checkpoint in checkpoints(out):
        parts = torch.load(checkpoint / STATE_FILE, weights_only=True)["parts"]
        assert all(value.isfinite().all() for value in parts["vae"].values())


def test_a_run_says_what_it_is_before_it_starts(collection, straight, tmp_path, capsys):
    run("vae", CONFIG, collection, tmp_path / "run", overrides=SHORT)
    said = capsys.readouterr().err
    parameters = sum(value.numel() for name, value in last_weights(straight).items() if name.startswith("vae."))
    assert f"parameters: vae {parameters / 1e6:.3g} M" in said
    assert "data: 9 clips, 0.0025 h; 12 steps of 4 items are 5.33 epochs" in said
    assert "GiB for each process" in said
    assert said.index("parameters:") < said.index("step 12")


def test_a_rate_may_fall_with_every_epoch(collection, tmp_path):
    """Nine clips in batches of four: steps 0 to 2 begin in the first epoch, step 11 in the fifth."""
    run("vae", CONFIG, collection, tmp_path / "run", overrides=[*SHORT, "decay_per_epoch=0.5", "schedule=constant"])
    saved = torch.load(checkpoints(tmp_path / "run")[-1] / STATE_FILE, weights_only=True)
    assert saved["parts"]["vae_optimizer"]["param_groups"][0]["lr"] == pytest.approx(3e-3 * 0.5 ** (11 * 4 // 9))


def test_unknown_trackers_are_refused(collection, tmp_path):
    with pytest.raises(ImportError, match="nosuch"):
        run("vae", CONFIG, collection, tmp_path / "run", overrides=["trackers=[nosuch]"])
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="export"):
        VAEConfig(export="newest")
