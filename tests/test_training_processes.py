"""Two processes with batch b, one with batch 2 b, and one that adds up two batches of b, train the same."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from accelerate import debug_launcher
from accelerate.state import AcceleratorState, GradientState

from musicldm.clap import train_tokenizer
from musicldm.config import CLAPConfig, DiffusionConfig
from musicldm.train import clap, diffusion, run
from musicldm.train.cache import Cache
from musicldm.train.checkpoints import Average, State
from musicldm.train.common import batches, make_accelerator, make_optimizer
from musicldm.train.progress import METRICS_FILE

N_CLIPS, EMBEDDING = 24, 16
CAPTIONS = [f"{how} {what}" for how in ("slow", "fast", "calm", "loud") for what in ("harp", "flute", "drums")]


def diffusion_run(config: DiffusionConfig, double: bool):
    """A tiny UNet on random latents: state, items of each batch, a train step."""
    rng = np.random.default_rng(0)
    offsets = np.arange(N_CLIPS + 1)
    moments = rng.standard_normal((N_CLIPS, 8, 16, 4)).astype(np.float16)
    audio, text = rng.standard_normal((2, N_CLIPS, EMBEDDING)).astype(np.float32)
    dataset = diffusion.CachedLatents(Cache(moments, audio, text, offsets), list(range(N_CLIPS)), config)
    accelerator = make_accelerator(config, Path())
    torch.manual_seed(0)
    plain = diffusion.make_unet(config, 4, 16, EMBEDDING)
    plain = plain.double() if double else plain
    average, scheduler = Average(plain, 0.9), diffusion.make_scheduler(config)
    unet, optimizer = accelerator.prepare(plain, make_optimizer(plain, config))
    state = State({"unet": unet, "optimizer": optimizer, "average": average}, numbers={"scaling_factor": 1.0})
    empty = torch.zeros(EMBEDDING, dtype=plain.dtype)

    def step(example):
        if double:
            example = [value.double() if value.is_floating_point() else value for value in example]
        return diffusion.train_step(state, diffusion.Example(*example), empty, config, scheduler, accelerator)

    return accelerator, state, dataset, unet, step


def clap_run(config: CLAPConfig, double: bool):
    """Tiny towers on noises, their batch norm held still: the same of them."""

    class Pairs(torch.utils.data.Dataset):
        def __len__(self):
            return N_CLIPS

        def __getitem__(self, item):
            rng = np.random.default_rng(item.index)
            return torch.from_numpy(rng.standard_normal(16_000).astype(np.float32)), CAPTIONS[item.index % 12]

    accelerator = make_accelerator(config, Path())
    torch.manual_seed(0)
    tokenizer = train_tokenizer(CAPTIONS * 5, 300)
    plain = clap.Towers(clap.make_clap(config, len(tokenizer)), tokenizer)
    plain.clap.logit_scale_t.requires_grad_(False)
    towers, optimizer = accelerator.prepare(plain, make_optimizer(plain, config))
    plain.eval()
    state, front_end = State({"towers": towers, "optimizer": optimizer}), clap.make_feature_extractor(config)

    def step(batch):
        return clap.train_step(state, batch, front_end, config, accelerator)

    return accelerator, state, Pairs(), towers, step


def train(result: str, stage: str, batch_size: int, accumulate: int, precision: str, steps: int) -> None:
    """Train, and keep what the process saw and made in ``RESULT.INDEX``."""
    GradientState._reset_state()
    shared = {
        "device": "cpu",
        "trackers": (),
        "batch_size": batch_size,
        "accumulate": accumulate,
        "learning_rate": 1e-3,
        "steps": steps,
    }
    double = precision == "float64"
    if stage == "diffusion":
        sizes = {"channels": (8, 16), "head_channels": 8, "norm_groups": 4, "layers_per_level": 1}
        config = DiffusionConfig(**shared, **sizes, text_condition=0.5, drop_condition=0.3)
        accelerator, state, dataset, network, step = diffusion_run(config, double)
    else:
        sizes = {"text_width": 16, "text_layers": 1, "text_heads": 2, "text_positions": 30, "embedding_size": 8}
        sizes |= {"audio_width": 8, "audio_depths": (1, 1), "audio_heads": (1, 2), "audio_image": 64, "audio_s": 1.0}
        sizes |= {"audio_sample_rate": 16_000, "audio_hop_length": 320, "audio_f_max": 8000.0, "dropout": 0.0}
        config = CLAPConfig(**shared, **sizes)
        accelerator, state, dataset, network, step = clap_run(config, double)
    seen, gradients = [], {}
    plain = accelerator.unwrap_model(network)
    clip = accelerator.clip_grad_norm_

    def keep_first(parameters, limit):
        if not gradients:
            gradients.update({name: p.grad.clone() for name, p in plain.named_parameters() if p.grad is not None})
        return clip(parameters, limit)

    accelerator.clip_grad_norm_ = keep_first
    for batch in batches(dataset, config, accelerator, state):
        seen.append(list(state.items))
        with accelerator.accumulate(network):
            step(batch)
        if accelerator.sync_gradients:
            state.step += 1
    index = accelerator.process_index
    torch.save({"items": seen, "gradients": gradients, "weights": plain.state_dict()}, f"{result}.{index}")


def in_child(*arguments) -> None:
    AcceleratorState._reset_state(True)  # what this process inherited from the tests before
    torch.set_num_threads(1)
    train(*arguments)


def results(folder: Path, stage: str, processes: int, batch_size: int, accumulate: int, precision: str, steps: int):
    """What each of the processes saw and made."""
    result = folder / f"{processes}-{batch_size}-{accumulate}"
    arguments = (str(result), stage, batch_size, accumulate, precision, steps)
    if processes == 1:
        train(*arguments)
    else:
        debug_launcher(in_child, arguments, processes)
    return [torch.load(f"{result}.{index}", weights_only=False) for index in range(processes)]


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


def of_one_step(seen: list, batches: int) -> list[set]:
    """The items of each step, from the batches of one process."""
    return [set().union(*seen[k : k + batches]) for k in range(0, len(seen), batches)]


@pytest.fixture(scope="module")
def double_runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("float64")
    runs = {"one": (1, 4, 1), "two": (2, 2, 1), "added": (1, 2, 2)}
    return {name: results(folder, "diffusion", *run, "float64", 20) for name, run in runs.items()}


def test_processes_share_the_items_without_overlap(double_runs):
    (one,), (first, second), (added,) = (double_runs[name] for name in ("one", "two", "added"))
    assert len(one["items"]) == 20
    for whole, left, right in zip(one["items"], first["items"], second["items"], strict=True):
        assert not set(left) & set(right)
        assert set(left) | set(right) == set(whole)
    assert of_one_step(added["items"], 2) == of_one_step(one["items"], 1)


@pytest.mark.parametrize("name", ["two", "added"])
def test_weights_after_twenty_steps_are_those_of_one_process(double_runs, name):
    (one,) = double_runs["one"]
    for process in double_runs[name]:
        assert worst(process["weights"], one["weights"]) < 1e-9
        assert worst(process["gradients"], one["gradients"]) < 1e-9


def relative_error(ours: dict, reference: dict) -> float:
    """Of all tensors as one vector."""
    assert ours.keys() == reference.keys()
    squares = [((ours[name] - value).square().sum(), value.square().sum()) for name, value in reference.items()]
    return float(sum(error for error, _ in squares) / sum(size for _, size in squares)) ** 0.5


@pytest.mark.parametrize("stage", ["diffusion", "clap"])
def test_gradients_of_the_first_step_in_float32(tmp_path, stage):
    """For CLAP: with the pairs of all processes as negatives."""
    (one,) = results(tmp_path, stage, 1, 4, 1, "float32", 1)
    for process in results(tmp_path, stage, 2, 2, 1, "float32", 1):
        assert relative_error(process["gradients"], one["gradients"]) < 1e-5


def in_child_run(data: str, out: str) -> None:
    AcceleratorState._reset_state(True)
    torch.set_num_threads(1)
    overrides = ["steps=8", "batch_size=2", "adversarial_from=4", "save_every=4", "validate_every=8", "trackers=[]"]
    run("vae", "tiny", data, out, overrides=overrides)


def test_a_whole_run_of_two_processes_is_that_of_one(tmp_path):
    """With its discriminator, and into one folder."""
    rng = np.random.default_rng(0)
    (tmp_path / "data").mkdir()
    for i in range(10):
        soundfile.write(tmp_path / "data" / f"{i}.wav", 0.1 * rng.standard_normal(16_000).cumsum() / (i + 30), 16_000)
    debug_launcher(in_child_run, (str(tmp_path / "data"), str(tmp_path / "two")), 2)
    overrides = ["steps=8", "batch_size=4", "adversarial_from=4", "save_every=4", "validate_every=8", "trackers=[]"]
    run("vae", "tiny", tmp_path / "data", tmp_path / "one", overrides=overrides)
    rows = [(tmp_path / name / METRICS_FILE).read_text().splitlines() for name in ("one", "two")]
    assert len(rows[0]) == len(rows[1]) == 2
    one, two = (json.loads(lines[0]) for lines in rows)
    for name in ("l1", "kl", "discriminator"):
        assert two[name] == pytest.approx(one[name], rel=1e-3)  # after Adam has made much of float32's rounding
