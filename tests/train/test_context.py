"""Training with contexts: what items are given, what is learned from them, and whole runs."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch._subclasses.fake_tensor import FakeTensorMode

from musicldm import MusicLDMPipeline
from musicldm.config import DiffusionConfig, load_config
from musicldm.data.collection import Collection
from musicldm.data.items import Item, batch_items
from musicldm.models.context import KINDS, ContextLayout, add_context, context_layout
from musicldm.sampling.condition import predict
from musicldm.scores.rendering import RenderConfig, render_scores
from musicldm.scores.sketches import Sketch
from musicldm.train import run
from musicldm.train.diffusion.cache import Cache
from musicldm.train.diffusion.context_cache import midi_of
from musicldm.train.diffusion.contexts import WITH_HOLE, WITH_MADE, WITHOUT, Contexts, Tables, span_frames
from musicldm.train.diffusion.holes import NUMBERS, kept_frames
from musicldm.train.diffusion.latents import CachedLatents, ContextExample, Example, LatentsOnDevice
from musicldm.train.diffusion.mixtures import Mixtures
from musicldm.train.diffusion.new_columns import frozen_copy, unet_optimizer
from musicldm.train.diffusion.objectives import Objective, make_scheduler
from musicldm.train.diffusion.stage import asked_of, losses_of
from musicldm.train.log import Log
from tests.helpers.scores import band, small_soundfont, synthesizer  # noqa: F401  (fixtures)
from tests.helpers.tiny import EMBEDDING, make_unet
from tests.train.test_on_device import Moves

CPU = torch.device("cpu")
N, DRAWS, SHAPE = 10, 2, (4, 8, 4)
WITHOUT_NOTES = 3  # the clip that has none
CHORDS, ALONG, HOLE = (KINDS.index(kind) for kind in ("chords", "along", "hole"))


def config_of(**changes) -> DiffusionConfig:
    return DiffusionConfig(**{"context": True, "context_draws": DRAWS, "text_condition": 0.5} | changes)


def contexts_of(config: DiffusionConfig) -> Contexts:
    """Two draws of each clip but one: chords in the first half of its time, and another track with a target of its own.

    Of clip i, whose latents are i, the first's are 100 + i and the second's 200 + i; its target's are 300 + i, and the
    text of that is (-i, ...). The second draw of clip 0 could not be made.
    """
    with_notes = [i for i in range(N) if i != WITHOUT_NOTES]
    first = np.full(N, -1)
    first[with_notes] = DRAWS * np.arange(len(with_notes))
    clip, draw = np.repeat(with_notes, DRAWS), np.tile(range(DRAWS), len(with_notes))
    frames = np.zeros((len(clip), 1 + len(KINDS), SHAPE[1]), np.uint8)
    frames[draw == 0, 1 + CHORDS, : SHAPE[1] // 2] = 1
    frames[draw == 1, 1 + ALONG] = 1
    made = np.where(draw == 0, 1, 2).astype(np.uint8)
    made[(clip == 0) & (draw == 1)] = 0
    return Contexts(
        config,
        ContextLayout(SHAPE[0]),
        first,
        Tables(
            latents=filled(100 + clip + 100 * draw),
            frames=frames,
            made=made,
            target=np.where(draw == 1, np.arange(len(clip)) // DRAWS, -1),
            moments=moments_of(300 + np.array(with_notes)),
            embedding=np.repeat(-np.array(with_notes, np.float32)[:, None], EMBEDDING, axis=1),
        ),
    )


def filled(levels: np.ndarray) -> np.ndarray:
    return np.broadcast_to(levels[:, None, None, None], (len(levels), *SHAPE)).astype(np.float16)


def moments_of(levels: np.ndarray) -> np.ndarray:
    return np.concatenate([filled(levels), filled(np.full_like(levels, -20))], axis=1)


def dataset_of(config: DiffusionConfig, mixtures=None, contexts: bool = True) -> CachedLatents:
    audio = np.repeat(np.arange(N, dtype=np.float32)[:, None], EMBEDDING, axis=1)
    cache = Cache(moments_of(np.arange(N)), audio, audio + 0.5, np.arange(N + 1))
    return CachedLatents(cache, list(range(N)), config, mixtures, 1, contexts_of(config) if contexts else None)


def one_by_one(dataset: CachedLatents, epochs: int) -> ContextExample:
    items = [Item(epoch, index) for epoch in range(epochs) for index in range(N)]
    return torch.utils.data.default_collate([dataset[item] for item in items])


def in_batches(dataset: CachedLatents, epochs: int) -> ContextExample:
    """The same in the order of the clips."""
    latents = LatentsOnDevice(dataset, CPU)
    drawn = [latents.draw([Item(epoch, index) for index in range(N)]) for epoch in range(epochs)]
    return ContextExample(*(torch.cat(values) for values in zip(*drawn, strict=True)))


# --- what items are given --------------------------------------------------------------------------------------------


def test_holes_lie_at_all_places():
    """At the end, the beginning, inside and at both ends, in about a quarter of the draws each; none is whole."""
    kept = kept_frames(torch.rand(NUMBERS, 4000, generator=torch.Generator().manual_seed(0)), 128)
    starts, ends = kept[:, 0], kept[:, -1]
    inside = kept.any(dim=1)
    shares = [
        float((how & inside).float().mean()) for how in (starts & ~ends, ~starts & ends, starts & ends, ~starts & ~ends)
    ]
    assert shares == pytest.approx([0.25] * 4, abs=0.04)
    changes = (kept[:, 1:] != kept[:, :-1]).sum(dim=1)
    assert changes.max() <= 2
    assert not kept.all(dim=1).any()
    share = kept.float().mean(dim=1)
    assert share[starts & ~ends].min() < 0.15 < 0.85 < share[starts & ~ends].max()


def test_spans_are_frames_that_they_reach_the_middle_of_or_wholly_hold():
    spans = [(0.0, 0.24), (0.56, 0.8)]  # of frames of 0.1 s
    assert span_frames(spans, 8, 0.1, whole=False).tolist() == [1, 1, 0, 0, 0, 0, 1, 1]
    assert span_frames(spans, 8, 0.1, whole=True).tolist() == [1, 1, 0, 0, 0, 0, 1, 1]
    assert span_frames([(0.04, 0.36)], 8, 0.1, whole=False).tolist() == [1, 1, 1, 1, 0, 0, 0, 0]
    assert span_frames([(0.04, 0.36)], 8, 0.1, whole=True).tolist() == [0, 1, 1, 0, 0, 0, 0, 0]
    assert not span_frames([], 8, 0.1, whole=False).any()


@pytest.mark.parametrize("draw", [one_by_one, in_batches], ids=["items", "batches"])
def test_contexts_are_given_in_their_shares(draw):
    """Item by item and in whole batches alike."""
    config = config_of(drop_context=0.3, hole_share=0.2, drop_condition=0.25)
    epochs = 300
    example = draw(dataset_of(config), epochs)
    clip = torch.arange(N).repeat(epochs)
    given, mask, kinds = example.context.split([SHAPE[0], 1, len(KINDS)], dim=1)
    level = example.latents.mean(dim=(1, 2, 3))
    sets = kinds.flatten(2).any(dim=2)  # (M, K)
    chords, along, hole = (sets[:, kind] for kind in (CHORDS, ALONG, HOLE))
    assert (sets.sum(dim=1) <= 1).all()
    usual = (clip != WITHOUT_NOTES) & (clip != 0)
    shares = [float(how[usual].float().mean()) for how in (~sets.any(dim=1), hole, chords, along)]
    assert shares == pytest.approx([0.3, 0.2, 0.25, 0.25], abs=0.035)
    assert float(hole[clip == WITHOUT_NOTES].float().mean()) == pytest.approx(0.2, abs=0.07)
    assert not (chords | along)[clip == WITHOUT_NOTES].any()
    assert not along[clip == 0].any()
    assert float(chords[clip == 0].float().mean()) == pytest.approx(0.25, abs=0.07)
    # what is given, and what is wanted
    assert not example.context[~sets.any(dim=1)].any()
    assert torch.equal(given[chords][:, :, :4], (100 + clip[chords].float()).view(-1, 1, 1, 1).expand(-1, 4, 4, 4))
    assert not given[chords][:, :, 4:].any()
    assert torch.equal(given[along], (200 + clip[along].float()).view(-1, 1, 1, 1).expand(-1, *SHAPE))
    assert torch.equal(given[hole], (mask[hole] * clip[hole].float().view(-1, 1, 1, 1)).expand(-1, SHAPE[0], -1, -1))
    assert kinds[hole][:, HOLE].all()
    assert not mask[~hole].any()
    wanted = clip + 300 * along
    torch.testing.assert_close(level, wanted.float(), atol=0.01, rtol=0)
    assert torch.equal(example.embedding[along, 0], -clip[along].float())
    assert float((example.embedding[~along, 0] > clip[~along]).float().mean()) == pytest.approx(0.5, abs=0.04)
    for some in (sets.any(dim=1), ~sets.any(dim=1)):  # the text is dropped independently
        assert float(example.dropped[some].float().mean()) == pytest.approx(0.25, abs=0.04)


@pytest.mark.parametrize("draw", [one_by_one, in_batches], ids=["items", "batches"])
def test_mixtures_are_given_no_context(draw):
    config = config_of(mixup="latent", mixup_probability=1.0)
    mixture = Mixtures(
        moments_of(1000 + np.arange(N)), *np.zeros((2, N, EMBEDDING), np.float32), np.full(N, 2, np.uint8)
    )
    rounds = SimpleNamespace(
        of=lambda epoch: mixture,
        draw=lambda item, rng: (mixture.moments[item.index], mixture.audio[item.index], mixture.text[item.index][None]),
    )
    example = draw(dataset_of(config, rounds), 20)
    assert example.latents.mean(dim=(1, 2, 3)).min() > 900
    assert not example.context.any()


def test_all_else_of_an_item_is_as_without_contexts():
    """But where something else is wanted: latents, noise, times and conditions."""
    config = config_of()
    plain = one_by_one(dataset_of(config, contexts=False), 20)
    example = one_by_one(dataset_of(config), 20)
    own = example.latents.mean(dim=(1, 2, 3)) > 250
    assert own.any()
    for name, value in plain._asdict().items():
        rows = ~own if name in ("latents", "embedding") else slice(None)
        assert torch.equal(getattr(example, name)[rows], value[rows])


@pytest.mark.parametrize("draw", [one_by_one, in_batches], ids=["items", "batches"])
def test_draws_follow_from_seed_and_item(draw):
    one, again, other = (draw(dataset_of(config_of(seed=seed)), 3).context for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_all_items_can_be_given_the_same_way():
    dataset = dataset_of(config_of())
    for how, kinds in ((WITHOUT, set()), (WITH_HOLE, {HOLE}), (WITH_MADE, {CHORDS, ALONG})):
        example = one_by_one(dataset.all_given(how), 10)
        sets = example.context[:, SHAPE[0] + 1 :].flatten(2).any(dim=2)
        assert {*sets.any(dim=0).nonzero()[:, 0].tolist()} == kinds
        assert how != WITH_HOLE or sets.any(dim=1).all()


# --- what is learned -------------------------------------------------------------------------------------------------


def batch(config: DiffusionConfig, step: int = 0) -> ContextExample:
    dataset = dataset_of(config)
    example = torch.utils.data.default_collate([dataset[item] for item in batch_items(N, 8, 0, step)])
    return ContextExample(*(value.double() if value.is_floating_point() else value for value in example))


def wide_unet() -> torch.nn.Module:
    torch.manual_seed(0)
    unet = make_unet().double()
    add_context(unet)
    return unet


def objective_of(config: DiffusionConfig, former=None) -> Objective:
    return Objective(config, make_scheduler(config), 0.01, former)


EMPTY = torch.zeros(EMBEDDING, dtype=torch.float64)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "flow"])
def test_new_columns_change_nothing_until_they_learn(prediction):
    config = config_of(prediction=prediction)
    example, unet = batch(config), wide_unet()
    assert example.context.any()
    torch.manual_seed(0)
    plain = losses_of(make_unet().double(), Example(*example[:5]), EMPTY, objective_of(config))["loss"]
    loss = losses_of(unet, example, EMPTY, objective_of(config))["loss"]
    torch.testing.assert_close(loss, plain)
    loss.backward()
    assert unet.conv_in.weight.grad[:, SHAPE[0] :].flatten(2).any(dim=2).any(dim=0)[: SHAPE[0]].all()


def test_context_latents_are_scaled_as_the_music_is():
    """And frames are not."""
    config = config_of()
    channels = objective_of(config).context(batch(config).context, SHAPE[0])
    torch.testing.assert_close(channels[:, : SHAPE[0]], 0.01 * batch(config).context[:, : SHAPE[0]])
    assert torch.equal(channels[:, SHAPE[0] :], batch(config).context[:, SHAPE[0] :])


@pytest.mark.parametrize("keep", [0.0, 1.0])
def test_losses_keep_to_the_device(keep):
    """As a recording must, here on an imagined GPU, without numbers."""
    config = config_of(init="mini", context_keep=keep)
    with FakeTensorMode(), Moves() as moves:
        with torch.device("cuda"):
            unet, former, empty = make_unet(), make_unet(), torch.zeros(EMBEDDING)
            add_context(unet)
            add_context(former)
            sizes = SHAPE, (EMBEDDING,), (), SHAPE, (), (SHAPE[0] + 1 + len(KINDS), *SHAPE[1:])
            example = ContextExample(*(torch.zeros(4, *size) for size in sizes))
        example = example._replace(dropped=example.dropped.bool(), timestep=example.timestep.long())
        scheduler = make_scheduler(config)
        scheduler.betas, scheduler.alphas_cumprod = (torch.zeros(1000, device="cuda") for _ in range(2))
        objective = Objective(config, scheduler, 1.3, former if keep else None)
        moves.found.clear()
        losses = losses_of(unet, example, empty, objective)
    assert {value.device.type for value in losses.values()} == {"cuda"}
    assert not moves.found


def test_the_first_layer_has_a_rate_of_its_own():
    config = config_of(learning_rate=1e-3, context_learning_rate=5e-3)
    unet = wide_unet()
    optimizer = unet_optimizer(unet, config)
    rates = {id(p): group.get("scale", 1.0) for group in optimizer.param_groups for p in group["params"]}
    assert len(rates) == len(list(unet.parameters()))
    for name, p in unet.named_parameters():
        assert rates[id(p)] == pytest.approx(5.0 if name.startswith("conv_in.") else 1.0)
    assert len(unet_optimizer(unet, replace(config, context_learning_rate=None)).param_groups) == 1


def test_answers_without_a_context_are_held_to_the_former_ones():
    """Wholly for 1, half for 0.5; those with a context are asked for the truth."""
    config = config_of(init="mini", context_keep=1.0, hole_share=0.5, drop_context=0.5)
    example, unet = batch(config), wide_unet()
    bare = ~example.context.flatten(1).any(dim=1)
    assert 0 < bare.sum() < len(bare)
    objective = objective_of(config, frozen_copy(unet))
    asked, condition = asked_of(example, EMPTY, objective)
    with torch.no_grad():
        former = predict(unet, asked.noisy, asked.time, condition)
    whole, half = objective.held(asked, condition), replace(objective, config=replace(config, context_keep=0.5))
    torch.testing.assert_close(whole[bare], former[bare])
    assert torch.equal(whole[~bare], asked.target[~bare])
    torch.testing.assert_close(half.held(asked, condition)[bare], (former + asked.target)[bare] / 2)
    rows = ContextExample(*(value[bare] for value in example))
    assert losses_of(unet, rows, EMPTY, objective)["loss"] < 1e-20
    with torch.no_grad():
        unet.conv_in.weight += 0.1
    assert losses_of(unet, rows, EMPTY, objective)["loss"] > 1e-3  # the copy stays as it was


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["hole_share=0.5"], "hole_share=0.5 is for training with contexts: set context=true"),
        (["context_keep=0.5"], "context_keep=0.5 holds on to a model: name it by init=MODEL"),
        (["context=true", "drop_context=1.5"], "drop_context is a share between 0 and 1, got 1.5"),
        (["context=true", "drop_context=0.8", "hole_share=0.4"], r"drop_context \(0.8\) and hole_share \(0.4\)"),
        (["context=true", "context_draws=0"], "context_draws must be positive, got 0"),
        (["context=true", "context_learning_rate=0"], "context_learning_rate must be positive, got 0"),
    ],
)
def test_settings_out_of_range_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        load_config(DiffusionConfig, None, changes)


# --- whole runs ------------------------------------------------------------------------------------------------------

OVERRIDES = [
    *("context=true", "context_draws=3", "device=cpu", "steps=6", "batch_size=4", "learning_rate=0.003"),
    *("ema_decay=0.5", "trackers=[]", "mel.sample_rate=8000", "mel.n_fft=256", "mel.hop_length=80", "mel.n_mels=16"),
    *("mel.f_max=4000", "mel.clip_s=1.28", "save_every=2", "validate_every=6", "validation_batches=2"),
    *("context_learning_rate=0.01", "text_condition=0.5", "log_every=1"),
]


@pytest.fixture(scope="module")
def collection(tmp_path_factory, synthesizer) -> Path:  # noqa: F811
    """Clips of six renderings, with their notes."""
    folder = tmp_path_factory.mktemp("music")
    scores = [band(folder / "scores" / f"{name}.mid", beats) for name, beats in zip("abc", (8, 12, 16), strict=True)]
    settings = {"clip_s": 1.28, "min_clip_s": 1.0, "sample_rate": 8000, "max_clips": 3, "min_sound": 0.3}
    backend, soundfont = synthesizer
    config = RenderConfig(**settings, backend=backend, soundfonts=(soundfont,), contexts=True)
    render_scores(scores, folder / "data", config, workers=1)
    return folder / "data"


def trained(model: Path, collection: Path, out: Path, *overrides: str, resume: bool = False) -> Path:
    return run("diffusion", None, collection, out, resume=resume, overrides=[f"init={model}", *OVERRIDES, *overrides])


def weights(final: Path) -> dict[str, torch.Tensor]:
    return load_file(final / "unet" / "diffusion_pytorch_model.safetensors")


@pytest.fixture(scope="module")
def straight(collection, tiny_folder, tmp_path_factory, synthesizer) -> Path:  # noqa: F811
    return trained(tiny_folder, collection, tmp_path_factory.mktemp("runs") / "straight", fonts(synthesizer))


def fonts(synthesizer) -> str:  # noqa: F811
    return f"soundfonts=[{synthesizer.soundfont}]"


def test_a_run_makes_a_model_that_takes_contexts(straight, tiny_folder):
    pipeline = MusicLDMPipeline.from_pretrained(straight)
    layout = context_layout(pipeline.unet)
    assert layout == ContextLayout(4, KINDS)
    before, after = weights(tiny_folder)["conv_in.weight"], weights(straight)["conv_in.weight"]
    assert (after[:, :4] - before).abs().max() < 0.1
    assert after[:, 4:8].abs().max() > 1e-3
    rows = [json.loads(line) for line in (straight.parent / "metrics.jsonl").read_text().splitlines()]
    (metrics,) = [row for row in rows if row["group"] == "validation"]
    assert {"loss", "constant_loss", "loss_without", "loss_hole", "loss_context"} < metrics.keys()
    assert any(f"loss_{kind}" in metrics for kind in KINDS[:6])
    shares = {"without": 0.3, "hole": 0.1, "context": 0.6}
    assert metrics["loss"] == pytest.approx(sum(share * metrics[f"loss_{how}"] for how, share in shares.items()))
    heard = [path.stem for path in (straight.parent / "examples" / "step-6").glob("context-*.wav")]
    assert len(heard) == 2
    pipeline.set_progress_bar_config(disable=True)
    sketch = Sketch.from_chords("C F", bpm=400, meter="2/4")
    calm, given = (
        pipeline("a", num_inference_steps=2, audio_length_in_s=0.64, seed=0, **options).audios
        for options in ({}, {"context": sketch})
    )
    assert np.abs(calm - given).max() > 1e-6


def test_contexts_are_those_of_the_clips_notes(straight):
    """Of all kinds that there are in these scores, and some with a target of their own."""
    folder = straight.parent / "cache" / "contexts"
    frames, made, latents = (np.load(folder / f"{name}.npy") for name in ("frames", "made", "latents"))
    assert len(made) % 3 == 0
    assert (made > 0).all()
    assert frames[:, 1:].any(axis=2).any(axis=0).sum() >= 5
    assert np.isfinite(latents).all()
    assert np.load(folder / "moments.npy").any(axis=(1, 2, 3)).sum() == (made == 2).sum()


@pytest.mark.slow
def test_a_run_resumed_equals_a_straight_one(straight, collection, tiny_folder, tmp_path, monkeypatch, synthesizer):  # noqa: F811
    """Stopped after step 3, one beyond its last checkpoint."""

    def stop_after_3(self, step, original=Log.step):
        original(self, step)
        if step == 3:
            raise KeyboardInterrupt

    options = tiny_folder, collection, tmp_path / "run", fonts(synthesizer)
    with monkeypatch.context() as patch:
        patch.setattr(Log, "step", stop_after_3)
        with pytest.raises(KeyboardInterrupt):
            trained(*options)
    resumed, expected = weights(trained(*options, resume=True)), weights(straight)
    assert all(torch.equal(resumed[name], expected[name]) for name in expected)
    for name in ("latents", "frames", "made", "moments", "embedding"):
        one, other = (
            np.load(out / "cache" / "contexts" / f"{name}.npy") for out in (tmp_path / "run", straight.parent)
        )
        assert np.array_equal(one, other)


@pytest.mark.slow
def test_a_model_with_contexts_goes_on(straight, collection, tmp_path, synthesizer):  # noqa: F811
    """Whole, on the device, or as an adapter; held to what it did without a context."""
    before, cache = weights(straight)["conv_in.weight"], f"cache={straight.parent / 'cache'}"
    for name, changes in {"device": ["on_device=true", "context_keep=1"], "whole": ["context_keep=0.5"]}.items():
        final = trained(straight, collection, tmp_path / name, fonts(synthesizer), cache, "steps=2", *changes)
        after = weights(final)["conv_in.weight"]
        assert after.shape == before.shape
        assert 0 < (after - before).abs().max() < 0.1
    final = trained(straight, collection, tmp_path / "adapter", fonts(synthesizer), cache, "steps=2", "lora.rank=2")
    assert (final / "pytorch_lora_weights.safetensors").is_file()


def test_bad_configurations_write_nothing(collection, tiny_folder, tmp_path, synthesizer):  # noqa: F811
    with pytest.raises(ValueError, match="no input channels for a context, which an adapter cannot add"):
        trained(tiny_folder, collection, tmp_path / "run", fonts(synthesizer), "lora.rank=2")
    assert not (tmp_path / "run").exists()


def test_clips_without_notes_have_holes_or_nothing(collection, tiny_folder, tmp_path):
    """And one is told how to make notes."""
    plain = tmp_path / "plain"
    plain.mkdir()
    for path in sorted((collection / "audio").glob("*.flac"))[:4]:
        shutil.copy(path, plain)
    with pytest.warns(UserWarning, match="render with `musicldm render --contexts`; this run trains with holes alone"):
        final = trained(tiny_folder, plain, tmp_path / "holes", "steps=2", "hole_share=0.6")
    assert weights(final)["conv_in.weight"][:, 4:].any()
    with pytest.raises(ValueError, match="or set hole_share above 0"):
        trained(tiny_folder, plain, tmp_path / "nothing", "hole_share=0")
    assert not (tmp_path / "nothing").exists()


def test_a_midi_file_that_is_named_must_be_there(collection, tiny_folder, tmp_path):
    shutil.copytree(collection, tmp_path / "data")
    missing = sorted((tmp_path / "data" / "audio").glob("*.mid"))[0]
    missing.unlink()
    with pytest.raises(FileNotFoundError, match=f"names 'audio/{missing.name}', which is not there"):
        trained(tiny_folder, tmp_path / "data", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_notes_may_lie_beside_a_recording(collection):
    """Under its name, where no metadata names them."""
    rows = Collection(collection).rows
    assert len(rows) > 5
    bare = [{name: row[name] for name in ("file_name", "path")} for row in rows]
    for row in rows:
        assert midi_of(row, Collection(collection)) == row["path"].with_suffix(".mid")
    assert [midi_of(row, Collection(collection)) for row in bare] == [row["path"].with_suffix(".mid") for row in rows]
