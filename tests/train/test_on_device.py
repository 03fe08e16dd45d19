"""Training with clips on the device. Without CUDA a recording is computed anew into the same places, which is all that
differs from what a GPU gets."""

import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from musicldm.config import DiffusionConfig
from musicldm.data.clips import Clip
from musicldm.data.items import Item, batch_items
from musicldm.sampling.cuda_graphs import record_graph
from musicldm.train import run
from musicldm.train.common import Batch, make_accelerator, make_optimizer
from musicldm.train.diffusion import stage as stage_module
from musicldm.train.diffusion.cache import Cache
from musicldm.train.diffusion.latents import CachedLatents, Example, LatentsOnDevice
from musicldm.train.diffusion.mixtures import Mixtures
from musicldm.train.diffusion.objectives import Objective, make_scheduler
from musicldm.train.diffusion.on_device import Recorded, check_device
from musicldm.train.diffusion.stage import DiffusionStage, losses_of, make_unet
from musicldm.train.log import Log
from musicldm.train.run_folder import Average, Run, State, checkpoints

CPU = torch.device("cpu")
N, SHAPE, WIDTH = 12, (4, 16, 4), 6
CAPTIONS = [3, 0, 1, 2, 5, 0, 1, 1, 4, 2, 1, 0]  # of each clip
OVERRIDES = [
    *("on_device=true", "steps=12", "batch_size=4", "learning_rate=0.003", "ema_decay=0.5", "trackers=[]"),
    *("mel.sample_rate=8000", "mel.n_fft=256", "mel.hop_length=80", "mel.n_mels=16", "mel.f_max=4000"),
    *("mel.clip_s=0.32", "save_every=4", "validate_every=12", "validation_batches=1", "validation_prompts=[waltz]"),
]


def dataset_of(config: DiffusionConfig, spread: float = 0.1, n_epochs: int = 1) -> CachedLatents:
    """Clip i has latents around i and audio (i, 0, ...), caption k of it (i, 1, k, ...); clip 4 is held out."""
    offsets = np.concatenate([[0], np.cumsum(CAPTIONS)])
    means = np.broadcast_to(np.arange(N)[:, None, None, None], (N, *SHAPE))
    moments = np.concatenate([means, np.full((N, *SHAPE), 2 * np.log(spread))], axis=1).astype(np.float16)
    audio, text = np.zeros((N, WIDTH), np.float32), np.zeros((offsets[-1], WIDTH), np.float32)
    audio[:, 0] = np.arange(N)
    for i in range(N):
        for k in range(CAPTIONS[i]):
            text[offsets[i] + k, :3] = i, 1, k
    return CachedLatents(Cache(moments, audio, text, offsets), [i for i in range(N) if i != 4], config, None, n_epochs)


def drawn(config: DiffusionConfig, steps: range = range(200), size: int = 11, **options) -> list[tuple[list, Example]]:
    latents = LatentsOnDevice(dataset_of(config, **options), CPU)
    return [(items, latents.draw(items)) for items in (batch_items(len(latents), size, 3, step) for step in steps)]


def test_a_batch_is_drawn_as_items_are():
    """Each from its own clip, with one of its captions or its audio, and the shares that were asked for."""
    config = DiffusionConfig(text_condition=0.6, drop_condition=0.2)
    batches = drawn(config)
    clips = dataset_of(config).indices
    index = torch.tensor([clips[item.index] for items, _ in batches for item in items])  # (M,)
    latents, embedding, dropped, noise, timestep = (
        torch.cat(values) for values in zip(*(e for _, e in batches), strict=False)
    )
    off = (latents - index[:, None, None, None]) / 0.1
    assert off.mean().abs() < 0.02
    assert abs(off.std() - 1) < 0.02
    assert noise.mean().abs() < 0.02
    assert abs(noise.std() - 1) < 0.02
    assert (off * noise).mean().abs() < 0.02
    assert torch.equal(embedding[:, 0].long(), index)
    assert 4 not in index
    captions = torch.tensor(CAPTIONS)[index]
    by_text = embedding[:, 1] == 1
    assert not by_text[captions == 0].any()
    assert (embedding[:, 2] < captions.clamp(min=1)).all()
    assert abs(by_text[captions > 0].float().mean() - 0.6) < 0.05
    assert {*embedding[by_text & (index == 8), 2].tolist()} == {0, 1, 2, 3}
    assert abs(dropped.float().mean() - 0.2) < 0.03
    assert timestep.min() >= 0
    assert timestep.max() < 1000
    assert abs(timestep.float().mean() / 999 - 0.5) < 0.02
    for numbers in (off, noise):  # each item's are its own
        assert (numbers[:-1] * numbers[1:]).mean().abs() < 0.02
    assert len({*batches[0][1].timestep.tolist()}) > 1
    for some in (by_text, ~by_text):
        assert abs(dropped[some].float().mean() - 0.2) < 0.05
    assert [value.dtype for value in batches[0][1]] == [value.dtype for value in dataset_of(config)[Item(0, 0)]]


def test_mixtures_are_drawn_too():
    """In half of the items whose clip found a partner; two made with each clip, the second with a caption."""
    config = DiffusionConfig(
        mixup="latent", mixup_probability=0.5, mixup_per_clip=2, text_condition=0.5, drop_condition=0.2
    )
    plain = dataset_of(config)
    n = len(plain)
    clip, which = np.divmod(np.arange(2 * n), 2)
    made = np.where(clip == 3, 0, 1 + which).astype(np.uint8)
    means = np.broadcast_to((100 + clip + which / 2)[:, None, None, None], (2 * n, *SHAPE))
    moments = np.concatenate([means, np.full_like(means, -30.0)], axis=1).astype(np.float16)
    audio, text = (np.full((2 * n, WIDTH), value, np.float32) for value in (-1.0, -2.0))
    mixtures = SimpleNamespace(of=lambda epoch: Mixtures(moments, audio, text, made))
    latents = LatentsOnDevice(CachedLatents(plain.cache, plain.indices, config, mixtures), CPU)
    drawn = [(items, latents.draw(items)) for items in (batch_items(n, n, 3, step) for step in range(400))]
    place = torch.tensor([item.index for items, _ in drawn for item in items])
    level = torch.cat([example.latents for _, example in drawn]).flatten(1).median(dim=1).values
    embedding = torch.cat([example.embedding for _, example in drawn])
    mixed = level > 50
    assert not mixed[place == 3].any()
    assert abs(mixed[place != 3].float().mean() - 0.5) < 0.03
    torch.testing.assert_close((level[mixed] - 100).floor().long(), place[mixed])
    second = (level[mixed] - 100) % 1 > 0.25
    assert abs(second.float().mean() - 0.5) < 0.04
    assert (embedding[mixed][~second] == -1).all()
    assert {*embedding[mixed][second][:, 0].tolist()} == {-1.0, -2.0}
    assert (embedding[~mixed] >= 0).all()
    dropped = torch.cat([example.dropped for _, example in drawn])
    for some in (mixed, ~mixed):
        assert abs(dropped[some].float().mean() - 0.2) < 0.03


def test_a_batch_follows_from_seed_and_items():
    config = DiffusionConfig(text_condition=0.5)
    one, again, other = drawn(config), drawn(config, range(5, 6)), drawn(DiffusionConfig(seed=1, text_condition=0.5))
    assert all(torch.equal(a, b) for a, b in zip(one[5][1], again[0][1], strict=True))
    assert not torch.equal(one[5][1].noise, one[6][1].noise)
    assert not torch.equal(one[5][1].noise, other[5][1].noise)


def test_the_share_of_captions_follows_the_epoch():
    config = DiffusionConfig(text_condition=0.0, text_condition_last=1.0)
    batches = drawn(config, range(100), n_epochs=100)  # a batch is an epoch
    with_captions = torch.tensor([count > 0 for i, count in enumerate(CAPTIONS) if i != 4])
    share = [
        float(example.embedding[with_captions[[item.index for item in items]], 1].mean()) for items, example in batches
    ]
    assert share[0] == 0
    assert share[-1] == 1
    assert abs(np.mean(share[:50]) - 0.25) < 0.06


# --- recorded passes -------------------------------------------------------------------------------------------------


def anew(function):
    """Records without a graph; what is replayed leaves no gradient in the parameters, as a graph does not."""
    losses, gradients = function()

    def replay():
        for place, value in zip([*losses.values(), *gradients], flat(function()), strict=True):
            place.copy_(value)
        for p in function.__self__.parameters:
            p.grad = None

    return replay, (losses, gradients)


def flat(result):
    return [*result[0].values(), *result[1]]


def tiny_run(config: DiffusionConfig, record=None):
    """A tiny UNet on random latents: state, and a function that trains it for some steps, `Recorded` by ``record``."""
    rng = np.random.default_rng(0)
    moments = rng.standard_normal((N, 8, 16, 4)).astype(np.float16)
    audio, text = rng.standard_normal((2, N, WIDTH)).astype(np.float32)
    dataset = CachedLatents(Cache(moments, audio, text, np.arange(N + 1)), list(range(N)), config)
    accelerator = make_accelerator(config, Path())
    device = accelerator.device
    torch.manual_seed(0)
    unet = make_unet(config, 4, 16, WIDTH)
    average, scheduler = Average(unet, 0.9), make_scheduler(config, device)
    average.to(device)
    wrapped, optimizer = accelerator.prepare(unet, make_optimizer(unet, config))
    clips = [Clip(Path(f"{i}.wav"), 0.0, 0.32, (), "train") for i in range(N)]
    state = State({"unet": wrapped, "optimizer": optimizer, "average": average}, clips)
    objective, empty = Objective(config, scheduler, 1.0), torch.zeros(WIDTH, device=device)
    stage = DiffusionStage(Run(config, Path(), accelerator), state, unet, dataset, dataset, objective, empty)
    stage.learn = Recorded(stage.gradient, unet, record) if record else stage.gradient
    source = LatentsOnDevice(dataset, device)

    def train(steps: int) -> list[float]:
        losses = []
        for _ in range(steps):
            items = batch_items(N, config.batch_size, 0, state.step)
            with accelerator.accumulate(wrapped):
                losses.append(stage.step(Batch(items, source.draw(items)))["loss"])
            state.step += 1
        return [float(loss) for loss in losses]

    return state, train


def tiny_config(**changes) -> DiffusionConfig:
    settings = {"channels": (8, 16), "norm_groups": 4, "head_channels": 8, "batch_size": 4, "on_device": True}
    return DiffusionConfig(**settings | {"text_condition": 0.5, "learning_rate": 3e-3, "trackers": ()} | changes)


@pytest.mark.parametrize(
    "changes", [{}, {"prediction": "v_prediction", "min_snr": 5.0}, {"prediction": "flow"}, {"mixed_precision": "bf16"}]
)
def test_replayed_steps_train_the_same(changes):
    """Also across a validation, which puts the average in the place of the weights and back: in their very places."""
    config = tiny_config(device="cpu", **changes)
    kept = []
    for record in (None, anew):
        state, train = tiny_run(config, record)
        unet, average = state.parts["unet"], state.parts["average"]
        places = [p.data_ptr() for p in unet.parameters()]
        losses = train(5)
        weight, shadow = (value.clone() for value in (unet.conv_in.weight.detach(), average.shadow["conv_in.weight"]))
        average.swap(unet)
        assert places == [p.data_ptr() for p in unet.parameters()]
        assert torch.equal(unet.conv_in.weight, shadow)
        assert torch.equal(average.shadow["conv_in.weight"], weight)
        average.swap(unet)
        losses += train(5)
        kept.append((losses, unet.state_dict() | {f"average of {k}": value for k, value in average.shadow.items()}))
    (losses, expected), (replayed, got) = kept
    assert losses == replayed
    assert len({*losses}) == 10
    assert all(torch.equal(got[key], expected[key]) for key in expected)


def test_a_recording_that_does_not_take_its_examples_in_is_refused():
    def deaf(function):
        return (lambda: None), function()

    state, train = tiny_run(tiny_config(device="cpu"), deaf)
    before = {name: value.clone() for name, value in state.parts["unet"].state_dict().items()}
    with pytest.raises(RuntimeError, match="set on_device=false"):
        train(1)
    assert all(torch.equal(value, before[name]) for name, value in state.parts["unet"].state_dict().items())


class Moves(TorchDispatchMode):
    """Notes what goes between devices, or from one to Python."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        tensors = [value for value in tree_leaves((args, kwargs, result)) if isinstance(value, torch.Tensor)]
        copies = "copy" in str(function)  # other operations may read a number on the CPU when they are launched
        places = {value.device.type for value in tensors if value.ndim or copies}
        if len(places) > 1 or "_local_scalar_dense" in str(function):
            self.found.append(str(function))
        return result


def test_tables_go_to_the_device():
    scheduler = make_scheduler(DiffusionConfig(), torch.device("meta"))
    assert {scheduler.betas.device.type, scheduler.alphas_cumprod.device.type} == {"meta"}


def test_moves_are_noticed():
    with FakeTensorMode(), Moves() as moves:
        torch.tensor(0.5, device="cuda")
        assert moves.found
        moves.found.clear()
        x = 2 * torch.zeros(3, device="cuda") * torch.tensor(0.5)
        assert not moves.found
        x.cpu()
        assert moves.found


@pytest.mark.parametrize("table_device", ["cuda", "cpu"])
@pytest.mark.parametrize("changes", [{"min_snr": 5.0}, {"prediction": "v_prediction"}, {"prediction": "flow"}])
def test_losses_keep_to_the_device(changes, table_device):
    """As a recording must, here on an imagined GPU, without numbers. Tables elsewhere are noticed."""
    config = tiny_config(**changes)
    scheduler = make_scheduler(config)
    with FakeTensorMode(), Moves() as moves:
        with torch.device("cuda"):
            unet, empty = make_unet(config, 4, 16, WIDTH), torch.zeros(WIDTH)
            sizes = (4, 16, 4), (WIDTH,), (), (4, 16, 4), ()
            example = Example(*(torch.zeros(4, *size) for size in sizes))
        example = example._replace(dropped=example.dropped.bool(), timestep=example.timestep.long())
        if config.prediction != "flow":
            scheduler.betas, scheduler.alphas_cumprod = (torch.zeros(1000, device=table_device) for _ in range(2))
        moves.found.clear()
        losses = losses_of(unet, example, empty, Objective(config, scheduler, 1.3))
    assert {value.device.type for value in losses.values()} == {"cuda"}
    assert bool(moves.found) == (table_device == "cpu" and config.prediction != "flow")


def test_a_loss_that_is_not_a_number_stops_before_the_update():
    state, train = tiny_run(tiny_config(device="cpu"), anew)
    train(2)
    with torch.no_grad():
        weight = next(state.parts["unet"].parameters())
        weight[0] = torch.nan
    before = {name: value.clone() for name, value in state.parts["unet"].state_dict().items()}
    with pytest.raises(FloatingPointError, match=r"loss is nan at step 2, batch \d+\.wav"):
        train(1)
    after = state.parts["unet"].state_dict()
    assert all(torch.equal(after[name].nan_to_num(), before[name].nan_to_num()) for name in before)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("changes", "tolerance"), [({}, 1e-4), ({"mixed_precision": "bf16"}, 0.02), ({"prediction": "flow"}, 1e-4)]
)
def test_graphs_train_as_plain_passes_do(changes, tolerance, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    config = tiny_config(**changes)
    kept = []
    for record in (None, record_graph):
        state, train = tiny_run(config, record)
        losses = train(15)
        for _ in range(2):
            state.parts["average"].swap(state.parts["unet"])
        kept.append(losses + train(15))
    torch.testing.assert_close(*kept, rtol=tolerance, atol=tolerance)


# --- whole runs ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def collection(tmp_path_factory) -> Path:
    """Noises with captions."""
    folder = tmp_path_factory.mktemp("collection")
    rng, rows = np.random.default_rng(0), []
    for i in range(10):
        soundfile.write(folder / f"{i}.wav", 0.1 * rng.standard_normal(2560), 8000)
        rows.append({"file_name": f"{i}.wav", "text": f"noise {i}", "split": "train" if i < 8 else "validation"})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def trained(folder: Path, collection: Path, out: Path, *overrides: str, resume: bool = False) -> dict:
    settings = [f"init={folder}", "text_condition=0.5", *OVERRIDES, *overrides]
    final = run("diffusion", None, collection, out, resume=resume, overrides=settings)
    return load_file(final / "unet" / "diffusion_pytorch_model.safetensors")


@pytest.mark.slow
def test_a_run_with_mixtures(tiny_folder, collection, tmp_path):
    mixed, plain = (
        trained(tiny_folder, collection, tmp_path / kind, "device=cpu", f"mixup={kind}", "mixup_probability=1")
        for kind in ("plain", "none")
    )
    assert not any(torch.equal(mixed[name], plain[name]) for name in plain)


@pytest.mark.slow
def test_a_run_resumed_equals_a_straight_one(tiny_folder, collection, tmp_path, monkeypatch):
    def stop_after_6(self, step, original=Log.step):
        original(self, step)
        if step == 6:
            raise KeyboardInterrupt

    cpu = tiny_folder, collection, tmp_path / "run", "device=cpu"
    with monkeypatch.context() as patch:
        patch.setattr(Log, "step", stop_after_6)
        with pytest.raises(KeyboardInterrupt):
            trained(*cpu)
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["checkpoint-4"]
    resumed, straight = (
        trained(*cpu, resume=True),
        trained(tiny_folder, collection, tmp_path / "straight", "device=cpu"),
    )
    assert all(torch.equal(resumed[name], straight[name]) for name in straight)
    before = load_file(tiny_folder / "unet" / "diffusion_pytorch_model.safetensors")
    assert not any(torch.equal(straight[name], before[name]) for name in before)
    with pytest.raises(ValueError, match="on_device: True -> False"):
        trained(*cpu, "on_device=false", resume=True)


@pytest.mark.gpu
def test_a_run_on_a_gpu_replays(tiny_folder, collection, tmp_path, monkeypatch):
    """One recording serves the whole run, and leads where plain passes lead.

    Rounding alone moves weights whose gradient is nearly zero by as much as Adam's step; they are few.
    """
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    recorded = []

    def counted(function):
        recorded.append(function)
        return record_graph(function)

    before, ends = load_file(tiny_folder / "unet" / "diffusion_pytorch_model.safetensors"), []
    for name, record in (("plain", anew), ("replayed", counted)):
        with monkeypatch.context() as patch:
            patch.setattr(stage_module, "Recorded", partial(Recorded, record=record))
            learned = trained(tiny_folder, collection, tmp_path / name)
        ends.append(torch.cat([(value - before[key]).flatten() for key, value in learned.items()]))
    assert len(recorded) == 1
    assert (ends[1] - ends[0]).norm() < 0.05 * ends[0].norm()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mixup": "latent", "mixup_fresh": True}, "mixup_fresh=false only, got true"),
        ({"accumulate": 2}, "accumulate=1 only, got 2"),
        ({"gradient_checkpointing": True}, "gradient_checkpointing=false only, got true"),
        ({"compile": True}, "compile=false only, got true"),
        ({"mixed_precision": "fp16"}, "mixed_precision=bf16, or no"),
    ],
)
def test_what_does_not_go_with_it_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        DiffusionConfig(on_device=True, **changes)


@pytest.mark.parametrize(("processes", "device"), [(2, "cuda"), (1, "mps")])
def test_one_process_on_one_known_device(processes, device):
    with pytest.raises(ValueError, match=f"not {processes} on {device}"):
        check_device(SimpleNamespace(num_processes=processes, device=torch.device(device)))


def test_a_recording_that_fails_says_the_way_out():
    def fails(function):
        raise RuntimeError("operation not permitted when stream is capturing")

    with pytest.raises(RuntimeError, match=r"capturing\): set on_device=false"):
        tiny_run(tiny_config(device="cpu"), fails)[1](1)


def test_clips_that_do_not_fit_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 2**34))
    with pytest.raises(
        ValueError,
        match=r"12 clips, and of their mixtures, take .* GiB of the GPU's memory, of which 0.0 are free: set on_dev",
    ):
        LatentsOnDevice(dataset_of(DiffusionConfig()), torch.device("cuda"))
