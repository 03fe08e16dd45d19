"""Latent diffusion: predict the noise in scaled VAE latents, conditioned on CLAP.

    latents (B, C, T/f, F/f) + noise at time t, embedding (B, D)  -> unet ->  noise, v or velocity  -> squared error

Chen et al. (2023), MusicLDM. https://arxiv.org/abs/2308.01546; Ho et al. (2020), https://arxiv.org/abs/2006.11239.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from diffusers import AutoencoderKL, SchedulerMixin, UNet2DConditionModel
from torch import Tensor, nn
from torch.utils.data import default_collate

from musicldm.audio.output import slug
from musicldm.config import DiffusionConfig
from musicldm.data.clips import Clip
from musicldm.data.collection import Collection, split_clips
from musicldm.data.items import Item, batch_items
from musicldm.kernels.unet_attention import install
from musicldm.models import context
from musicldm.models.adapters import add_adapter, save_adapter
from musicldm.models.latents import latent_shape
from musicldm.models.loading import head_numbers
from musicldm.novelty.carried import attach_index
from musicldm.pipelines.hub import NOVELTY_INDEX, read_card
from musicldm.pipelines.text_to_music import MusicLDMPipeline
from musicldm.sampling.condition import Condition, predict
from musicldm.train.common import (
    Batch,
    drawn_batches,
    fastest_layout,
    initial_folder,
    loaded_batches,
    update,
)
from musicldm.train.diffusion.cache import Conditioner, Parts, build_cache
from musicldm.train.diffusion.context_cache import ContextMaker, clip_sources
from musicldm.train.diffusion.latents import CachedLatents, ContextExample, Example, LatentsOnDevice, to_device
from musicldm.train.diffusion.mixtures import make_rounds
from musicldm.train.diffusion.new_columns import frozen_copy, ready_for_contexts, unet_optimizer
from musicldm.train.diffusion.objectives import Objective, Question, make_scheduler
from musicldm.train.diffusion.on_device import Gradient, Recorded, check_device
from musicldm.train.diffusion.parts import initial_scale, initial_settings, load_parts, of_initial
from musicldm.train.diffusion.validation import context_losses, context_to_show, plain_losses
from musicldm.train.diffusion.whitening import empty_embedding, prepare_condition
from musicldm.train.log import EXAMPLES, Examples
from musicldm.train.loop import Stage, fit
from musicldm.train.run_folder import Average, Run, State, load_state, start

VALIDATION_STEPS = 25  # of the sampler, for examples


def make_unet(config: DiffusionConfig, latent_channels: int, latent_frames: int, embedding_size: int):
    """A freshly initialised `UNet2DConditionModel`; the embedding is concatenated to the time embedding."""
    levels = range(len(config.channels))
    attends = [level >= config.attention_from_level for level in levels]
    return UNet2DConditionModel(
        sample_size=latent_frames,
        in_channels=latent_channels,
        out_channels=latent_channels,
        block_out_channels=tuple(config.channels),
        layers_per_block=config.layers_per_level,
        norm_num_groups=config.norm_groups,
        down_block_types=tuple("CrossAttnDownBlock2D" if attends[level] else "DownBlock2D" for level in levels),
        up_block_types=tuple("CrossAttnUpBlock2D" if attends[level] else "UpBlock2D" for level in reversed(levels)),
        attention_head_dim=tuple(width // config.head_channels for width in config.channels),  # in truth head counts
        cross_attention_dim=tuple(config.channels),  # without a context both attentions are self-attentions
        class_embed_type="simple_projection",
        projection_class_embeddings_input_dim=embedding_size,
        class_embeddings_concat=True,
    )


def initial_unet(config: DiffusionConfig, latent_channels: int, latent_frames: int, embedding_size: int):
    """The UNet to train: that of ``config.init``, its heads put right as by the pipeline, or a fresh one.

    Raises:
        ValueError: the one of ``init`` is for other latents or embeddings, or was trained on other noise.
    """
    if not config.init:
        return make_unet(config, latent_channels, latent_frames, embedding_size)
    folder = initial_folder(config, "unet")
    if heads := head_numbers(UNet2DConditionModel.load_config(folder)):
        said = "says 8 attention heads at every level of the UNet, a mistake of its conversion"
        warnings.warn(f"{folder} {said}; using {heads} as in training", stacklevel=2)
    changes = {"attention_head_dim": heads} if heads else {}
    with context.expecting_context():
        unet = UNet2DConditionModel.from_pretrained(folder, **changes).float()
    sizes = context.latent_channels(unet), unet.config.projection_class_embeddings_input_dim
    if sizes != (latent_channels, embedding_size):
        raise ValueError(
            f"{config.init} works on {sizes[0]} latent channels and embeddings of {sizes[1]}, the VAE and CLAP given "
            f"make {latent_channels} and {embedding_size}: take all from one model"
        )
    for name, trained in initial_settings(config).items():
        if trained != (asked := getattr(config, name)):
            raise ValueError(f"{config.init} was trained for {name}={trained}, not {asked}: set it so")
    unet.register_to_config(sample_size=latent_frames)  # what the pipeline plays unless told
    return unet


@dataclass
class DiffusionStage(Stage):
    """The UNet, whole or with an adapter, on cached latents; its average is what is validated, heard and exported."""

    run: Run
    state: State  # unet, as it is spread over processes, its optimiser and its average
    unet: nn.Module
    training: CachedLatents
    validation: CachedLatents
    objective: Objective
    empty: Tensor | None = None  # (D,), the embedding of the empty text, in place of dropped conditions
    pipeline: MusicLDMPipeline | None = None  # of all parts, to be heard and saved
    index: Path | None = None  # the novelty index that goes with the model

    def __post_init__(self):
        config, device = self.run.config, self.run.accelerator.device
        self.item_s, self.prompts = config.mel.clip_s, list(config.validation_prompts)
        self.networks, self.described = {"UNet": self.unet}, self.pipeline.components if self.pipeline else {}
        if config.lora.rank:
            self.described = {"UNet and adapter": self.unet}
        self.learn: Gradient = self.gradient
        if config.on_device and device.type == "cuda":
            self.learn = Recorded(self.gradient, self.unet)

    def batches(self) -> Iterator[Batch]:
        if not self.run.config.on_device:
            return loaded_batches(self.training, self.run, self.state)
        latents = LatentsOnDevice(self.training, self.run.accelerator.device)
        return drawn_batches(latents.draw, len(latents), self.run, self.state)

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """The gradient of one batch of examples; if it completes a step, an update by it, and of the average."""
        state, accelerator, unet = self.state, self.run.accelerator, self.state.parts["unet"]
        losses = self.learn(to_device(batch.data, accelerator.device))
        losses |= update(self.run, state, batch.items, state.parts["optimizer"], losses["loss"], unet)
        if accelerator.sync_gradients:
            state.parts["average"].update(accelerator.unwrap_model(unet))
        return {name: value.detach() for name, value in losses.items()}

    def gradient(self, example: Example) -> dict[str, Tensor]:
        """Losses of a batch, whose gradient is added to that of the UNet."""
        with self.run.accelerator.autocast():
            losses = self.losses(self.state.parts["unet"], example)
        self.run.accelerator.backward(losses["loss"])
        return {name: value.detach() for name, value in losses.items()}

    def losses(self, unet: nn.Module, example: Example | ContextExample) -> dict[str, Tensor]:
        """Losses of a batch of examples."""
        return losses_of(unet, example, self.empty, self.objective)

    def answer(self, unet: nn.Module, example: ContextExample) -> tuple[Tensor, Question]:
        """What ``unet`` predicts of a batch of examples, and what it was asked."""
        asked, condition = asked_of(example, self.empty, self.objective)
        return predict(unet, asked.noisy, asked.time, condition), asked

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Mean losses on held-out clips at fixed times and noise (`musicldm.train.diffusion.validation`)."""
        about = self.validation, self.objective, self.run.accelerator.device
        with self.averaged():
            if self.validation.contexts:
                return context_losses(lambda example: self.answer(self.unet, example), *about)
            return plain_losses(lambda example: self.losses(self.unet, example), *about)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """While inside, the UNet has the averaged weights."""
        average = self.state.parts["average"]
        average.swap(self.unet.eval())
        try:
            yield
        finally:
            average.swap(self.unet.train())

    @torch.no_grad()
    def examples(self) -> Examples:
        """Music for fixed prompts and seeds: those of the configuration, else the conditions of held-out clips.

        With contexts also a held-out clip's, and what is played to it.
        """
        dataset = self.validation
        if self.prompts:
            names, wanted = [slug(prompt) for prompt in self.prompts], {"prompt": self.prompts}
        else:
            rows = [dataset[Item(0, index)].embedding for index in range(min(EXAMPLES, len(dataset)))]
            names, wanted = [f"clip-{index}" for index in range(len(rows))], {"prompt_embeds": torch.stack(rows)}
        self.pipeline.set_progress_bar_config(disable=True)
        fixed = {"num_inference_steps": VALIDATION_STEPS, "seed": self.run.config.seed}
        with self.averaged():
            made = self.pipeline(**wanted, **fixed)
            sounds = dict(zip(names, made.audios, strict=True))
            if shown := context_to_show(dataset):
                latents = self.objective.scaling_factor * shown.latents.to(self.run.accelerator.device)
                given = {"context": latents, "context_kind": shown.kinds, "prompt_embeds": shown.embedding}
                name = f"context-{'-'.join(shown.kinds)}"
                sounds[name] = self.pipeline(**given, **fixed).audios[0]
                sounds[f"{name}-given"] = self.pipeline.vocode(self.pipeline.decode_latents(latents))[0].cpu().numpy()
        return Examples(sounds, made.sampling_rate)

    def dry_run(self) -> Tensor:
        example = to_device(default_collate([self.training[Item(0, 0)]]), self.run.accelerator.device)
        return self.losses(self.unet, example)["loss"]

    def compile(self) -> None:
        self.unet.compile()

    def export(self, final: Path) -> None:
        """An adapter for ``load_lora_weights``, or a whole pipeline with its card and novelty index."""
        self.state.parts["average"].copy_to(self.unet)
        if self.run.config.lora.rank:
            save_adapter(self.unet, final)
        else:
            self.pipeline.card = read_card(final)
            if self.index is not None:
                attach_index(self.pipeline, self.index)
            self.pipeline.save_pretrained(final)


def losses_of(
    unet: nn.Module, example: Example | ContextExample, empty: Tensor, objective: Objective
) -> dict[str, Tensor]:
    """Losses of a batch of examples; ``empty (D,)`` is the embedding of the empty text."""
    asked, condition = asked_of(example, empty, objective)
    predicted = predict(unet, asked.noisy, asked.time, condition)
    target = asked.target if objective.former is None else objective.held(asked, condition)
    return objective.losses(predicted, target, example.timestep)


def asked_of(example: Example | ContextExample, empty: Tensor, objective: Objective) -> tuple[Question, Condition]:
    """What a UNet is asked of a batch of examples, and under which condition."""
    embedding = torch.where(example.dropped[:, None], empty, example.embedding)  # (B, D)
    context = None
    if isinstance(example, ContextExample):
        context = objective.context(example.context, example.latents.shape[1])
    asked = objective.question(example.latents, example.noise, example.timestep)
    return asked, Condition(embedding, context=context)


def make_pipeline(parts: Parts, unet: nn.Module, scheduler: SchedulerMixin, device: torch.device) -> MusicLDMPipeline:
    """The pipeline of ``unet``, which attends through `musicldm.kernels.attention` from then on, and the others."""
    install(unet)
    return MusicLDMPipeline(
        vae=parts.vae,
        text_encoder=parts.conditioner.clap,
        tokenizer=parts.conditioner.tokenizer,
        feature_extractor=parts.conditioner.feature_extractor,
        unet=unet,
        scheduler=scheduler,
        vocoder=parts.vocoder.to(device),
    )


def index_beside(run: Run, collection: Collection, conditioner: Conditioner) -> Path:
    """The novelty index of what is trained on of ``collection``, made by the main process before the training."""
    from musicldm.models.clap_embedder import ClapEmbedder
    from musicldm.novelty.build import build_index

    folder = run.out / NOVELTY_INDEX
    if run.accelerator.is_main_process and not folder.exists():
        embedder = ClapEmbedder(conditioner.clap, conditioner.feature_extractor, run.config.mel.sample_rate)
        build_index(collection, folder, embedder, split="train")
    run.accelerator.wait_for_everyone()
    return folder


def unet_for(run: Run, parts: Parts) -> UNet2DConditionModel:
    """`initial_unet` for latents and embeddings of ``parts``, with its adapter if there is to be one, as it trains.

    With contexts it has the input channels for them, whose weights are zero if they are new.

    Raises:
        ValueError: it knows other kinds of contexts, or an adapter is to learn contexts for which it has no channels.
    """
    config = run.config
    channels, frames, _ = latent_shape(parts.vae, config.mel, config.mel.clip_frames)
    unet = initial_unet(config, channels, frames, parts.conditioner.clap.config.projection_dim)
    if config.context:
        ready_for_contexts(unet, config)
    elif context.context_layout(unet) and not config.lora.rank:
        warnings.warn(f"{config.init} takes a context, which it will unlearn; set context=true", stacklevel=2)
    if config.lora.rank:
        add_adapter(unet, config.lora)
    if config.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    return unet


def cache_folder(run: Run) -> Path:
    """Where what is computed once of each clip is kept."""
    return Path(run.config.cache) if run.config.cache else run.out / "cache"


def cached_sets(
    run: Run,
    collection: Collection,
    parts: Parts,
    clips: list[Clip],
    held_out: set[Clip],
    to_give: ContextMaker | None,
) -> tuple[CachedLatents, CachedLatents]:
    """Training and validation on ``clips``, of which ``held_out`` are to validate with; ``to_give``: the contexts."""
    config, kept, device = run.config, cache_folder(run), run.accelerator.device
    cache = build_cache(clips, parts, config.mel, kept, device)
    to_mix = [clip for clip in clips if clip not in held_out]
    mixtures = make_rounds(config, to_mix, collection, parts, kept / f"mixup-{config.mixup}", device)
    contexts = to_give.fill(kept / "contexts", device) if to_give else None
    indices = [i for i, clip in enumerate(clips) if clip not in held_out]
    n_epochs = math.ceil(config.steps * run.step_size / len(indices))
    training = CachedLatents(cache, indices, config, mixtures, n_epochs, contexts)
    rest = [i for i, clip in enumerate(clips) if clip in held_out]
    return training, CachedLatents(cache, rest, config, contexts=contexts)


def scale_of(training: CachedLatents, run: Run, vae: AutoencoderKL) -> float:
    """`initial_scale`, or else what brings the first batch's latents to unit variance."""
    first = batch_items(len(training), run.step_size, run.config.seed, 0)
    drawn = (training[item].latents for item in first)
    return initial_scale(run.config, vae) or 1.0 / float(torch.stack([*drawn]).std())


def train(run: Run, collection: Collection) -> Path:
    """Train a diffusion model on ``collection``; ``OUT/final`` holds averaged weights.

    It is a whole `MusicLDMPipeline` folder, or with ``config.lora`` an adapter for its ``load_lora_weights``.
    """
    run = replace(run, config=of_initial(run.config)) if run.config.lora.rank else run
    config, accelerator = run.config, run.accelerator
    clips = collection.clips(config.mel.clip_s)
    if config.captions == "expected":
        collection.check_captions(wanted=bool(config.text_condition or config.text_condition_last))
    used, held_out = map(set, split_clips(clips, config.share))
    clips = [clip for clip in clips if clip in used | held_out]
    parts = load_parts(config)
    plain = unet_for(run, parts)
    if config.on_device:  # in the plain layout, in which small networks without pauses between kernels are faster
        check_device(accelerator)
    else:
        plain = fastest_layout(plain, accelerator)
    contexts = None
    if layout := config.context and context.context_layout(plain):
        contexts = ContextMaker(clip_sources(clips, collection, config), clips, parts, config, layout)
    start(run)
    training, validation = cached_sets(run, collection, parts, clips, held_out, contexts)
    index = index_beside(run, collection, parts.conditioner) if config.index else None
    empty = empty_embedding(parts.conditioner)
    prepare_condition(plain, parts.conditioner, training.cache, training.indices, config)
    average = Average(plain, config.ema_decay).to(accelerator.device)
    scheduler = make_scheduler(config, accelerator.device if config.on_device else None)
    former = frozen_copy(plain).to(accelerator.device) if config.context_keep else None
    unet, optimizer = accelerator.prepare(plain, unet_optimizer(plain, config))
    to_mix = [clip for clip in clips if clip not in held_out]
    state = State({"unet": unet, "optimizer": optimizer, "average": average}, to_mix)
    load_state(state, run.out, accelerator)
    if "scaling_factor" not in state.numbers:
        state.numbers["scaling_factor"] = scale_of(training, run, parts.vae)
    parts.vae.register_to_config(scaling_factor=state.numbers["scaling_factor"])
    pipeline = make_pipeline(parts, plain, scheduler, accelerator.device)
    objective = Objective(config, scheduler, state.numbers["scaling_factor"], former)
    stage = DiffusionStage(run, state, plain, training, validation, objective, empty, pipeline, index)
    return fit(stage, run, collection)
