"""What a run shows: its size before it starts, a bar, curves, examples; and the signals that stop it.

OUT/metrics.jsonl, OUT/examples/step-N/, the trackers that accelerate knows (TensorBoard by default)
"""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm import tqdm

from musicldm.audio import write_audio, write_whole
from musicldm.audio.figures import save_comparison, save_log_mels
from musicldm.audio.marks import NEW
from musicldm.config import TrainConfig
from musicldm.data.clips import Clip

METRICS_FILE = "metrics.jsonl"
EXAMPLES = 2  # heard and seen at each validation


class StopSignals:
    """While inside, the first SIGINT or SIGTERM is only noted in ``received``; a second one acts as it always does."""

    def __init__(self):
        self.received: signal.Signals | None = None
        self.before: dict[signal.Signals, object] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():  # Python lets no other thread
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) is not signal.SIG_IGN:  # a background job is not to hear Ctrl-C
                    self.before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
        self.before = {}

    def _note(self, number: int, _frame) -> None:
        self.received = signal.Signals(number)
        self.__exit__()


@dataclass(frozen=True)
class Examples:
    """What a validation shows."""

    waveforms: dict[str, np.ndarray] = field(default_factory=dict)  # (L,) or (A, L) by name
    sample_rate: int = 0  # Hz
    log_mels: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)  # (T, F) by name and label, in one picture


class Log:
    """Progress bar on stderr, curves in the trackers and ``OUT/metrics.jsonl`` of one run, and its stop signals."""

    def __init__(
        self, config: TrainConfig, out: Path, first_step: int, seconds_per_item: float, accelerator: Accelerator
    ):
        self.config, self.out, self.seconds_per_item, self.accelerator = config, out, seconds_per_item, accelerator
        self.stop = StopSignals()
        self.first_step = first_step
        self.metrics = out / METRICS_FILE
        if accelerator.is_main_process and self.metrics.exists():
            # what an interrupted run wrote beyond its last checkpoint will come again
            written = self.metrics.read_text()
            rows = [json.loads(line) for line in written.splitlines() if line.endswith("}")]
            kept = "".join(json.dumps(row) + "\n" for row in rows if row["step"] <= first_step)
            if kept != written:
                write_whole(self.metrics, kept.encode())
        self.values: dict[str, list[Tensor]] = {}  # since the last point of the curves, on their device
        self.count, self.since = 0, time.monotonic()  # batches since then

    def __enter__(self) -> Log:
        options = {"tensorboard": {"purge_step": self.first_step}} if "tensorboard" in self.config.trackers else {}
        self.accelerator.init_trackers("curves", init_kwargs=options)
        self.bar = tqdm(
            total=self.config.steps,
            initial=self.first_step,
            unit="step",
            desc=self.out.name,
            mininterval=1.0,
            disable=not self.accelerator.is_main_process,
        )
        self.stop.__enter__()
        return self

    def __exit__(self, *_) -> None:
        self.stop.__exit__()
        self.bar.close()
        for tracker in self.accelerator.trackers:
            tracker.finish()

    def add(self, losses: dict[str, Tensor]) -> None:
        """Count one batch."""
        for name, value in losses.items():
            self.values.setdefault(name, []).append(value.detach().float())
        self.count += 1

    def step(self, step: int) -> None:
        """Count one step; means over ``log_every`` steps and all processes go to the curves."""
        self.bar.update()
        if step % self.config.log_every == 0 or step == self.config.steps:
            own = torch.stack([torch.stack(values).mean() for values in self.values.values()])
            means = self.accelerator.reduce(own, "mean").tolist()
            means = dict(zip(self.values, means, strict=True))
            items = self.count * self.config.batch_size * self.accelerator.num_processes
            means["audio_s_per_s"] = items * self.seconds_per_item / (time.monotonic() - self.since)
            self.write("train", step, means)
            self.bar.set_postfix({name: f"{value:.4g}" for name, value in means.items()})
            self.values, self.count, self.since = {}, 0, time.monotonic()

    def write(self, group: str, step: int, values: dict[str, float]) -> None:
        """Add one point to each curve of ``group``."""
        self.accelerator.log({f"{group}/{name}": value for name, value in values.items()}, step=step)
        if not self.accelerator.is_main_process:
            return
        with open(self.metrics, "a") as file:
            file.write(json.dumps({"step": step, "group": group, **values}) + "\n")
        if group != "train":
            line = "  ".join(f"{name} {value:.5g}" for name, value in values.items())
            tqdm.write(f"step {step}  {group}  {line}", file=sys.stderr)

    def examples(self, step: int, made: Examples) -> None:
        """Keep what the model makes, as files with pictures, and in trackers that can."""
        folder = self.out / "examples" / f"step-{step}"
        for name, waveform in made.waveforms.items():
            folder.mkdir(parents=True, exist_ok=True)
            write_audio(folder / f"{name}.wav", waveform.T, made.sample_rate, mark=NEW)
            save_comparison(folder / f"{name}.png", {"": waveform}, made.sample_rate)
            self._show(step, folder / f"{name}.png")
            for tracker in self.accelerator.trackers:
                if tracker.name == "tensorboard":
                    sound = torch.from_numpy(waveform).reshape(-1, waveform.shape[-1]).mean(dim=0, keepdim=True)
                    tracker.writer.add_audio(f"examples/{name}", sound, step, sample_rate=made.sample_rate)
        for name, rows in made.log_mels.items():
            folder.mkdir(parents=True, exist_ok=True)
            save_log_mels(folder / f"{name}.png", rows)
            self._show(step, folder / f"{name}.png")

    def _show(self, step: int, path: Path) -> None:
        """The picture at ``path`` in the trackers that can show one."""
        from matplotlib.image import imread

        picture = imread(path)[None, ..., :3]  # (1, height, width, 3)
        for tracker in self.accelerator.trackers:
            if hasattr(tracker, "log_images"):
                options = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
                tracker.log_images({f"examples/{path.stem}": picture}, step=step, **options)

    def stopping(self) -> signal.Signals | None:
        """The signal that asks this run to stop, whichever of its processes heard it."""
        if self.accelerator.num_processes == 1:
            return self.stop.received
        number = torch.tensor(self.stop.received or 0, device=self.accelerator.device)
        heard = int(self.accelerator.gather(number[None]).max())
        return signal.Signals(heard) if heard else None


def announce(
    config: TrainConfig,
    clips: list[Clip],
    networks: dict[str, nn.Module],
    dry_run: Callable[[], Tensor],
    accelerator: Accelerator,
) -> None:
    """Say on stderr what is to be trained, on what, and what to expect.

    ``networks`` are all that are trained, discriminators among them. ``dry_run`` returns the loss of one item, once
    all of them take part. One forward and backward pass of it, in evaluation mode so that nothing of the networks
    changes, gives the activations' memory and the time; both are then scaled to the batch.
    """
    if not accelerator.is_main_process:
        return
    trained = [p for network in networks.values() for p in network.parameters() if p.requires_grad]
    fixed = [p for network in networks.values() for p in network.parameters() if not p.requires_grad]
    activations, seconds = try_once(list(networks.values()), dry_run, accelerator)
    per_step = config.batch_size * config.accumulate * accelerator.num_processes
    copies = 5 if hasattr(config, "ema_decay") else 4  # weights, gradient, two moments of AdamW, average
    memory = copies * _bytes(trained) + _bytes(fixed) + activations * config.batch_size
    epoch_s = len(clips) * seconds / accelerator.num_processes
    sizes = ", ".join(f"{name} {_count(network.parameters()) / 1e6:.3g} M" for name, network in networks.items())
    hours = sum(clip.duration_s for clip in clips) / 3600
    print(
        f"parameters: {sizes}, trained {_count(trained) / 1e6:.3g} M\n"
        f"data: {len(clips)} clips, {hours:.3g} h; {config.steps} steps of {per_step} items are "
        f"{config.steps * per_step / len(clips):.3g} epochs\n"
        f"expected, from one item: {memory / 2**30:.2g} GiB for each process, about {epoch_s / 60:.2g} min an epoch",
        file=sys.stderr,
    )


def try_once(networks: list[nn.Module], dry_run: Callable[[], Tensor], accelerator: Accelerator) -> tuple[int, float]:
    """Bytes that one forward pass keeps for the gradient, parameters aside, and seconds of both passes."""
    own = {p.untyped_storage().data_ptr() for network in networks for p in network.parameters()}
    kept: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    modes = [network.training for network in networks]
    for network in networks:
        network.eval()
    with accelerator.autocast(), torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        loss = dry_run()
    loss.backward()
    since = time.monotonic()
    with accelerator.autocast():
        dry_run().backward()
    if accelerator.device.type == "cuda":
        torch.cuda.synchronize()
    seconds = time.monotonic() - since
    for network, training in zip(networks, modes, strict=True):
        network.zero_grad(set_to_none=True)
        network.train(training)
    return sum(kept.values()), seconds


def _bytes(tensors: list[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _count(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)
