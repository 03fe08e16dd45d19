"""What a run survives, keeps and shows: signals, losses that are not finite, the best checkpoint, its own size."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from accelerate import Accelerator
from torch import nn
from torch.nn import functional

from musicldm.config import VAEConfig
from musicldm.train import run
from musicldm.train.common import loaded_batches
from musicldm.train.log import METRICS_FILE, Log, StopSignals
from musicldm.train.run_folder import STATE_FILE, Run, State, checkpoints, load_state, record_best, save_state
from tests.helpers.disk import full_disk

CONFIG = Path(__file__).parents[2] / "configs" / "tiny" / "vae.yaml"
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_processes_that_read_ahead_change_nothing(collection, straight, tmp_path):
    run("vae", CONFIG, collection, tmp_path / "run", overrides=[*SHORT, "workers=2"])
    expected, weights = last_weights(straight), last_weights(tmp_path / "run")
    assert all(torch.equal(weights[name], value) for name, value in expected.items())


@pytest.mark.slow
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


class SmallJudge(nn.Module):
    """In place of discriminators of 70 M parameters; normalised as they are, by vectors that training changes."""

    def __init__(self):
        super().__init__()
        self.hear = nn.utils.spectral_norm(nn.Conv1d(1, 4, 15, stride=4))
        self.judge = nn.Conv1d(4, 1, 3)

    def forward(self, waveform):
        features = functional.leaky_relu(self.hear(waveform), 0.1)
        score = self.judge(features).flatten(1)
        return [score], [[features, score]]


GAN = ["adversarial_from=2", "batch_size=2", "save_every=3", "log_every=1", "validate_every=100"]
GAN += ["validation_batches=1", "trackers=[]"]


@pytest.fixture(scope="module")
def small_judge():
    from speechbrain.lobes.models import HifiGAN

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HifiGAN, "HifiganDiscriminator", SmallJudge)
        yield


@pytest.fixture(scope="module")
def straight_gan(small_judge, collection, tmp_path_factory) -> Path:
    """A vocoder's run of six steps, whose discriminators take part in the last four."""
    out = tmp_path_factory.mktemp("gan") / "run"
    run("vocoder", CONFIG.with_name("vocoder.yaml"), collection, out, overrides=[*GAN, "steps=6"])
    return out


def assert_same_end(out: Path, expected: Path) -> None:
    """Weights and optimisers of both sides, bit for bit."""
    found, wanted = (
        torch.load(run / "checkpoint-6" / STATE_FILE, weights_only=True)["parts"] for run in (out, expected)
    )
    assert found.keys() == wanted.keys()
    assert {"generator", "generator_optimizer", "discriminators", "discriminators_optimizer"} <= found.keys()
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)


def test_a_vocoder_and_its_discriminators_resume_exactly(straight_gan, small_judge, collection, tmp_path, monkeypatch):
    """Stopped after step 4, one step beyond its last checkpoint; both sides had learned by then."""

    def stop_after_4(self, step, original=Log.step):
        original(self, step)
        if step == 4:
            raise KeyboardInterrupt

    out, tiny = tmp_path / "run", CONFIG.with_name("vocoder.yaml")
    with monkeypatch.context() as patch:
        patch.setattr(Log, "step", stop_after_4)
        with pytest.raises(KeyboardInterrupt):
            run("vocoder", tiny, collection, out, overrides=[*GAN, "steps=6"])
    assert [path.name for path in checkpoints(out)] == ["checkpoint-3"]
    run("vocoder", tiny, collection, out, resume=True, overrides=[*GAN, "steps=6"])
    assert_same_end(out, straight_gan)
    rows = [json.loads(line) for line in (out / METRICS_FILE).read_text().splitlines()]
    logged = [{"discriminator", "adversarial", "features"} <= row.keys() for row in rows if row["group"] == "train"]
    assert logged == 2 * [False] + 4 * [True]
    both = (torch.load(straight_gan / f"checkpoint-{step}" / STATE_FILE, weights_only=True)["parts"] for step in (3, 6))
    before, after = (parts["discriminators"] for parts in both)
    assert not any(torch.equal(before[name], value) for name, value in after.items())


def test_a_vocoder_made_longer_begins_with_its_discriminators(straight_gan, small_judge, collection, tmp_path):
    """A run of two steps, which had none, becomes one of six."""
    out, tiny = tmp_path / "run", CONFIG.with_name("vocoder.yaml")
    run("vocoder", tiny, collection, out, overrides=[*GAN, "steps=2"])
    saved = torch.load(out / "checkpoint-2" / STATE_FILE, weights_only=True)
    assert "discriminators" not in saved["parts"]
    run("vocoder", tiny, collection, out, resume=True, overrides=[*GAN, "steps=6"])
    assert_same_end(out, straight_gan)


def test_a_validation_that_is_not_a_number_is_never_the_best():
    state = State({}, step=10)
    assert not record_best(state, {"loss": float("nan")})
    assert record_best(state, {"loss": 3.0})
    state.step = 20
    assert not record_best(state, {"loss": float("nan")})
    assert record_best(state, {"loss": 2.0})
    assert state.numbers == {"best": 2.0, "best_step": 20}


def test_checkpoints_that_cannot_be_read_or_do_not_fit_stop_a_resume(tmp_path, capsys):
    """No run begins anew by itself, and a sound file of other weights is not called unreadable."""
    accelerator = Accelerator(cpu=True)
    load_state(State({"module": torch.nn.Linear(2, 1)}), tmp_path, accelerator)  # of none there is nothing to load
    state = State({"module": torch.nn.Linear(2, 1)})
    for state.step in (10, 20):
        save_state(state, tmp_path, keep=2)
    with pytest.raises(ValueError, match=r"module of .*checkpoint-20 is not what this run trains"):
        load_state(State({"module": torch.nn.Linear(3, 1)}), tmp_path, accelerator)
    with pytest.raises(ValueError, match="average of"):
        load_state(State({**state.parts, "average": torch.nn.Linear(2, 1)}), tmp_path, accelerator)
    (tmp_path / "checkpoint-20" / STATE_FILE).write_bytes(b"")
    resumed = State({"module": torch.nn.Linear(2, 1)})
    load_state(resumed, tmp_path, accelerator)
    assert resumed.step == 10
    said = capsys.readouterr().err
    assert "checkpoint-20 cannot be read" in said
    assert f"continuing from {tmp_path / 'checkpoint-10'}" in said
    (tmp_path / "checkpoint-10" / STATE_FILE).write_bytes(b"")
    with pytest.raises(ValueError, match=r"none of the checkpoints in .* can be read: remove them"):
        load_state(resumed, tmp_path, accelerator)


def test_hosts_that_do_not_share_the_folder_are_told(tmp_path):
    state = State({"module": torch.nn.Linear(2, 1)}, step=10)
    save_state(state, tmp_path, keep=1)
    other = torch.tensor([0])  # what a process on another host found on a disk of its own
    cpu = torch.device("cpu")
    accelerator = SimpleNamespace(scaler=None, device=cpu, gather=lambda own: torch.cat([own, other]))
    with pytest.raises(
        ValueError, match=r"different steps \(10, 0\): .* must be on a file system that all hosts share"
    ):
        load_state(state, tmp_path, accelerator)


def test_another_number_of_items_a_step_is_told(tmp_path, capsys):
    """As after a resume by another number of processes."""

    class Clips(list):
        def __getitem__(self, item):
            return torch.zeros(1)

    config, clips = VAEConfig(device="cpu", steps=1, batch_size=2), Clips("abcd")
    state, accelerator = State({}), Accelerator(cpu=True)
    two = Run(config, tmp_path, accelerator)
    list(loaded_batches(clips, two, state))
    save_state(state, tmp_path, keep=1)
    resumed = State({})
    load_state(resumed, tmp_path, accelerator)
    list(loaded_batches(clips, two, resumed))
    assert not capsys.readouterr().err
    resumed.numbers["items"] = 4  # two processes
    list(loaded_batches(clips, two, resumed))
    said = capsys.readouterr().err
    assert said.startswith("warning: a step had 4 items until here and now has 2")
    assert said.count("\n") == 1
    assert resumed.numbers["items"] == 2


@pytest.mark.slow
def test_a_kill_while_resuming_truncates_no_record(collection, straight, tmp_path):
    """Who has opened them goes on reading the old ones: they are replaced, not written over, if they change at all."""
    out = tmp_path / "run"
    shutil.copytree(straight, out)
    shutil.rmtree(out / "checkpoint-12")
    names = "training.yaml", METRICS_FILE
    old = {name: (out / name).read_text() for name in names}
    opened = {name: (out / name).open() for name in names}
    run("vae", CONFIG, collection, out, resume=True, overrides=[*SHORT, "workers=0", "log_every=3"])
    assert {name: file.read() for name, file in opened.items()} == old
    assert "log_every: 3" in (out / "training.yaml").read_text()
    files = [(out / name).stat().st_ino for name in names]
    run("vae", CONFIG, collection, out, resume=True, overrides=[*SHORT, "log_every=3"])
    assert [(out / name).stat().st_ino for name in names] == files


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


@pytest.mark.slow
def test_a_run_that_filled_the_disk_goes_on_with_more_room(collection, straight, tmp_path, monkeypatch):
    out, overrides = tmp_path / "run", [name for name in SHORT if not name.startswith("save_every")]

    def save_while_there_is_room(state, *arguments, original=save_state, **options):
        with full_disk(5000) if state.step == 8 else nullcontext():
            original(state, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr("musicldm.train.loop.save_state", save_while_there_is_room)
        with pytest.raises(OSError, match=r"checkpoint-8 cannot be written .*kept: checkpoint-4"):
            run("vae", CONFIG, collection, out, overrides=[*overrides, "save_every=4"])
    run("vae", CONFIG, collection, out, resume=True, overrides=[*overrides, "save_every=4"])
    expected, weights = last_weights(straight), last_weights(out)
    assert all(torch.equal(weights[name], value) for name, value in expected.items())


@pytest.mark.slow
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
    """The rate is far too high; no checkpoint after the loss overflows is written, and those before are whole."""
    out = tmp_path / "run"
    overrides = [*SHORT, "save_every=1", "batch_size=2", "learning_rate=1e30"]
    with pytest.raises(FloatingPointError, match=r"the loss is (nan|inf) at step [1-9]\d*, batch .*\d\.wav"):
        run("vae", CONFIG, collection, out, overrides=overrides)
    saved = [torch.load(checkpoint / STATE_FILE, weights_only=True)["parts"]["vae"] for checkpoint in checkpoints(out)]
    assert saved
    assert all(value.isfinite().all() for weights in saved for value in weights.values())


def test_a_recording_that_holds_no_number_is_named(collection, tmp_path):
    """No checkpoint after it is written, and the one before is whole."""
    folder = tmp_path / "data"
    folder.mkdir()
    for path in collection.iterdir():
        wave, rate = soundfile.read(path, dtype="float32")
        if path.name == "4.wav":
            wave[:] = np.nan
        soundfile.write(folder / path.name, wave, rate, subtype="FLOAT")
    out = tmp_path / "run"
    with pytest.raises(ValueError, match=r"4\.wav holds nan at"):
        run("vae", CONFIG, folder, out, overrides=[*SHORT, "save_every=1", "batch_size=2"])
    for checkpoint in checkpoints(out):
        parts = torch.load(checkpoint / STATE_FILE, weights_only=True)["parts"]
        assert all(value.isfinite().all() for value in parts["vae"].values())


@pytest.mark.slow
def test_a_run_says_what_it_is_before_it_starts(collection, straight, tmp_path, capsys):
    run("vae", CONFIG, collection, tmp_path / "run", overrides=SHORT)
    said = capsys.readouterr().err
    parameters = sum(value.numel() for name, value in last_weights(straight).items() if name.startswith("vae."))
    judge = sum(value.numel() for name, value in last_weights(straight).items() if name.startswith("d."))
    of_both = f"parameters: vae {parameters / 1e6:.3g} M, discriminator {judge / 1e6:.3g} M"
    assert f"{of_both}, trained {(parameters + judge) / 1e6:.3g} M" in said
    assert "data: 9 clips, 0.0025 h; 12 steps of 4 items are 5.33 epochs" in said
    assert "GiB for each process, about" in said
    assert said.index("parameters:") < said.index("step 12")


def test_a_run_without_its_discriminator_expects_none(collection, tmp_path, capsys):
    run("vae", CONFIG, collection, tmp_path / "run", overrides=[*SHORT, "steps=1"])
    assert "discriminator" not in capsys.readouterr().err


def test_an_autoencoder_shows_what_comes_back(straight):
    """Beside what it was, drawn in the same colours."""
    from matplotlib.image import imread

    (path,) = (straight / "examples" / "step-12").iterdir()  # of one held-out clip
    assert path.name == "clip-0.png"
    above, below = np.array_split(imread(path)[..., :3], 2)
    assert above.std() > 0.1
    assert not np.array_equal(above[: len(below)], below)


@pytest.mark.slow
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
