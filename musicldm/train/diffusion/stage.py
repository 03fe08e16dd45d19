"""Latent diffusion: predict the noise in scaled VAE latents, conditioned on CLAP.

    latents (B, C, T/f, F/f) + noise at time t, embedding (B, D)  -> unet ->  noise, v or velocity  -> squared error

Chen et al. (2023), MusicLDM. https://arxiv.org/abs/2308.01546; Ho et al. (2020), https://arxiv.org/abs/2006.11239.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL, SchedulerMixin, UNet2DConditionModel
from torch import Tensor, nn
from transformers import SpeechT5HifiGan

from musicldm.audio.files import slug
from musicldm.config import DiffusionConfig, VAEConfig, load_config
from musicldm.data.collection import load_clips, split_clips
from musicldm.data.items import Item, batch_items
from musicldm.models.loading import head_numbers
from musicldm.models.lora import add_adapter, save_adapter
from musicldm.pipelines.hub import NOVELTY_INDEX, read_card
from musicldm.pipelines.text_to_music import MusicLDMPipeline
from musicldm.train.common import (
    after_batch,
    batches,
    check_mel,
    fastest_layout,
    initial_folder,
    make_accelerator,
    make_optimizer,
    step_size,
    update,
)
from musicldm.train.diffusion.cache import Conditioner, build_cache, latent_shape, load_conditioner
from musicldm.train.diffusion.latents import CachedLatents, Example, to_device
from musicldm.train.diffusion.mixtures import make_rounds
from musicldm.train.diffusion.objectives import make_scheduler, question, trained_settings, weighted_losses
from musicldm.train.diffusion.on_device import Gradient, check_device, on_device
from musicldm.train.diffusion.whitening import empty_embedding, prepare_condition
from musicldm.train.log import EXAMPLES, Log, announce
from musicldm.train.run_folder import CONFIG_FILE, Average, State, final_folder, load_state, start
from vocoder import install_matching, mel_config

VALIDATION_STEPS = 25  # of the sampler, for examples


class Parts(NamedTuple):
    """The trained models that the diffusion model works between."""

    vae: AutoencoderKL
    vocoder: SpeechT5HifiGan
    conditioner: Conditioner


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
    unet = UNet2DConditionModel.from_pretrained(folder, **changes).float()
    sizes = unet.config.in_channels, unet.config.projection_class_embeddings_input_dim
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


def initial_settings(config: DiffusionConfig) -> dict:
    """What the model ``init`` says of the noise that it was trained on; nothing of a UNet alone."""
    scheduler = initial_folder(config, "scheduler")
    return trained_settings(scheduler) if scheduler.name == "scheduler" else {}


def initial_scale(config: DiffusionConfig, vae: AutoencoderKL) -> float | None:
    """The factor of the latents that the UNet of ``config.init`` knows, which is in its model's own VAE.

    None of a UNet alone, or if the latents of ``vae`` are of another shape.
    """
    folder = initial_folder(config, "vae") if config.init else Path()
    if folder.name != "vae":
        return None
    with torch.device("meta"):  # for its configuration alone
        former = AutoencoderKL.from_config(AutoencoderKL.load_config(folder))
    return former.config.scaling_factor if latent_shape(former, config.mel) == latent_shape(vae, config.mel) else None


def of_initial(config: DiffusionConfig) -> DiffusionConfig:
    """The configuration with what the model ``init`` says of itself: its noise and its vocoder's spectrograms."""
    vocoder = SpeechT5HifiGan.from_pretrained(config.vocoder or initial_folder(config, "vocoder"))
    return replace(config, **initial_settings(config), mel=mel_config(vocoder))


def load_parts(config: DiffusionConfig) -> Parts:
    """The autoencoder, vocoder and CLAP that the configuration names, or those of the model ``init``.

    Raises:
        ValueError: a folder is not named, or parts were trained on different spectrograms.
        FileNotFoundError: a named folder does not exist.
    """
    folders = {}
    for name in ("vae", "clap", "vocoder"):
        if not (named := getattr(config, name)) and not config.init:
            raise ValueError(f"the diffusion model needs {name}=FOLDER, the final/ folder of that stage, or init=MODEL")
        folders[name] = Path(named) if named else initial_folder(config, name)
        if not folders[name].is_dir():
            raise FileNotFoundError(f"no trained {name} at {named}: train it first (musicldm train {name})")
    vocoder = install_matching(SpeechT5HifiGan.from_pretrained(folders["vocoder"]).float())
    check_mel("the vocoder", mel_config(vocoder), config)
    if (recorded := folders["vae"] / CONFIG_FILE).exists():
        check_mel("the VAE", load_config(VAEConfig, recorded).mel, config)
    vae = AutoencoderKL.from_pretrained(folders["vae"]).float()
    return Parts(vae, vocoder, load_conditioner(folders["clap"]))


def losses_of(
    unet: nn.Module,
    example: Example,
    empty: Tensor,
    scaling_factor: float,
    config: DiffusionConfig,
    scheduler: SchedulerMixin,
) -> dict[str, Tensor]:
    """Losses of a batch of examples; ``empty (D,)`` is the embedding of the empty text."""
    x0 = scaling_factor * example.latents
    embedding = torch.where(example.dropped[:, None], empty, example.embedding)  # (B, D)
    asked = question(x0, example.noise, example.timestep, scheduler, config.prediction)
    predicted = unet(asked.noisy, asked.time, encoder_hidden_states=None, class_labels=embedding).sample
    return weighted_losses(predicted.to(asked.target.dtype), asked.target, example.timestep, scheduler, config)


def gradient(
    unet: nn.Module,
    example: Example,
    empty: Tensor,
    scaling_factor: float,
    config: DiffusionConfig,
    scheduler: SchedulerMixin,
    accelerator: Accelerator,
) -> dict[str, Tensor]:
    """`losses_of` a batch, whose gradient is added to that of ``unet``."""
    example = to_device(example, accelerator.device)
    with accelerator.autocast():
        losses = losses_of(unet, example, empty, scaling_factor, config, scheduler)
    accelerator.backward(losses["loss"])
    return {name: value.detach() for name, value in losses.items()}


def train_step(
    state: State,
    example: Example,
    learn: Gradient,
    config: DiffusionConfig,
    accelerator: Accelerator,
) -> dict[str, Tensor]:
    """One batch for the UNet by ``learn``, its `gradient`; if it completes a step, an update of it and its average."""
    unet = state.parts["unet"]
    losses = learn(example)
    losses |= update(accelerator, state.parts["optimizer"], losses["loss"], unet, config, state)
    if accelerator.sync_gradients:
        state.parts["average"].update(accelerator.unwrap_model(unet))
    return {name: value.detach() for name, value in losses.items()}


@torch.no_grad()
def validate(
    unet: nn.Module,
    dataset: CachedLatents,
    empty: Tensor,
    scaling_factor: float,
    config: DiffusionConfig,
    scheduler: SchedulerMixin,
) -> dict[str, float]:
    """Mean loss on held-out clips at fixed times and noise; ``constant_loss`` is that of always predicting 0."""
    total, constant = 0.0, 0.0
    for k in range(config.validation_batches):
        numbers = range(k * config.batch_size, (k + 1) * config.batch_size)
        drawn = [dataset[Item(*divmod(number, len(dataset)))] for number in numbers]
        example = to_device(torch.utils.data.default_collate(drawn), empty.device)
        total += float(losses_of(unet, example, empty, scaling_factor, config, scheduler)["loss"])
        x0 = scaling_factor * example.latents
        target = question(x0, example.noise, example.timestep, scheduler, config.prediction).target
        zero = weighted_losses(torch.zeros_like(target), target, example.timestep, scheduler, config)
        constant += float(zero["loss"])
    return {"loss": total / config.validation_batches, "constant_loss": constant / config.validation_batches}


@contextmanager
def averaged(unet: nn.Module, average: Average) -> Iterator[None]:
    """While inside, ``unet`` has the averaged weights, which are what is exported."""
    average.swap(unet.eval())
    try:
        yield
    finally:
        average.swap(unet.train())


@torch.no_grad()
def examples(
    pipeline: MusicLDMPipeline, dataset: CachedLatents, config: DiffusionConfig
) -> tuple[dict[str, np.ndarray], int]:
    """Music for fixed prompts and seeds: those of the configuration, else the conditions of held-out clips."""
    if config.validation_prompts:
        names = [slug(prompt) for prompt in config.validation_prompts]
        wanted = {"prompt": list(config.validation_prompts)}
    else:
        rows = [dataset[Item(0, index)].embedding for index in range(min(EXAMPLES, len(dataset)))]
        names, wanted = [f"clip-{index}" for index in range(len(rows))], {"prompt_embeds": torch.stack(rows)}
    pipeline.set_progress_bar_config(disable=True)
    made = pipeline(**wanted, num_inference_steps=VALIDATION_STEPS, seed=config.seed)
    return dict(zip(names, made.audios, strict=True)), made.sampling_rate


def index_beside(
    config: DiffusionConfig, data: Path, out: Path, conditioner: Conditioner, accelerator: Accelerator
) -> Path:
    """The novelty index of what is trained on of ``data``, made by the main process before the training."""
    from musicldm.models.clap_embedder import ClapEmbedder
    from musicldm.novelty.build import build_index

    folder = out / NOVELTY_INDEX
    if accelerator.is_main_process and not folder.exists():
        embedder = ClapEmbedder(conditioner.clap, conditioner.feature_extractor, config.mel.sample_rate)
        build_index(data, folder, embedder, split="train")
    accelerator.wait_for_everyone()
    return folder


def train(config: DiffusionConfig, data: Path, out: Path, *, resume: bool = False) -> Path:
    """Train a diffusion model on ``data``; ``OUT/final`` holds averaged weights.

    It is a whole `MusicLDMPipeline` folder, or with ``config.lora`` an adapter for its ``load_lora_weights``.
    """
    config = of_initial(config) if config.lora.rank else config
    clips = load_clips(data, config.mel.clip_s)
    used, held_out = split_clips(clips, config.share)
    parts = load_parts(config)
    channels, frames, _ = latent_shape(parts.vae, config.mel)
    plain = initial_unet(config, channels, frames, parts.conditioner.clap.config.projection_dim)
    if config.lora.rank:
        add_adapter(plain, config.lora)
    accelerator = make_accelerator(config, out)
    if config.on_device:  # in the plain layout, in which small networks without pauses between kernels are faster
        check_device(accelerator)
    else:
        plain = fastest_layout(plain, accelerator)
    start(config, out, resume, accelerator)
    if config.gradient_checkpointing:
        plain.enable_gradient_checkpointing()
    held_out_set, used_set = set(held_out), {*used, *held_out}
    clips = [clip for clip in clips if clip in used_set]
    to_mix = [clip for clip in clips if clip not in held_out_set]
    kept = Path(config.cache) if config.cache else out / "cache"
    cache = build_cache(clips, parts.vae, parts.conditioner, config.mel, kept, accelerator.device)
    mixtures = make_rounds(config, to_mix, data, *parts, kept / f"mixup-{config.mixup}", accelerator.device)
    index = index_beside(config, data, out, parts.conditioner, accelerator) if config.index else None
    indices = [i for i, clip in enumerate(clips) if clip not in held_out_set]
    n_epochs = math.ceil(config.steps * step_size(config, accelerator) / len(indices))
    training = CachedLatents(cache, indices, config, mixtures, n_epochs)
    validation = CachedLatents(cache, [i for i, clip in enumerate(clips) if clip in held_out_set], config)
    empty = empty_embedding(parts.conditioner)
    prepare_condition(plain, parts.conditioner, cache, indices, config)
    average = Average(plain, config.ema_decay).to(accelerator.device)
    scheduler = make_scheduler(config, accelerator.device if config.on_device else None)
    unet, optimizer = accelerator.prepare(plain, make_optimizer(plain, config))
    state = State({"unet": unet, "optimizer": optimizer, "average": average}, to_mix)
    load_state(state, out, accelerator)
    if "scaling_factor" not in state.numbers:
        first = batch_items(len(training), step_size(config, accelerator), config.seed, 0)
        drawn = (training[item].latents for item in first)
        state.numbers["scaling_factor"] = initial_scale(config, parts.vae) or 1.0 / float(torch.stack([*drawn]).std())
    parts.vae.register_to_config(scaling_factor=state.numbers["scaling_factor"])
    pipeline = MusicLDMPipeline(
        vae=parts.vae,
        text_encoder=parts.conditioner.clap,
        tokenizer=parts.conditioner.tokenizer,
        feature_extractor=parts.conditioner.feature_extractor,
        unet=plain,
        scheduler=scheduler,
        vocoder=parts.vocoder.to(accelerator.device),
    )
    of_losses = {"empty": empty, "scaling_factor": state.numbers["scaling_factor"]}
    of_losses |= {"config": config, "scheduler": scheduler}

    def trial() -> Tensor:
        example = to_device([value[None] for value in training[Item(0, 0)]], accelerator.device)
        return losses_of(plain, example, **of_losses)["loss"]

    announce(config, to_mix, {"UNet": plain}, trial, accelerator)
    if config.compile:
        plain.compile()
    check = averaged(plain, average)(partial(validate, plain, validation, **of_losses))
    show = averaged(plain, average)(partial(examples, pipeline, validation, config))
    source, learn = training, partial(gradient, unet, accelerator=accelerator, **of_losses)
    if config.on_device:
        source, learn = on_device(source, learn, plain, accelerator.device)
    with Log(config, out, state.step, config.mel.clip_s, accelerator) as log:
        for example in batches(source, config, accelerator, state):
            with accelerator.accumulate(unet):
                losses = train_step(state, example, learn, config, accelerator)
            after_batch(state, losses, config, out, log, check, show)
    if accelerator.is_main_process:
        shown = {"UNet and adapter": plain} if config.lora.rank else pipeline.components
        final = final_folder(state, config, data, out, shown)
        average.copy_to(plain)
        if config.lora.rank:
            save_adapter(plain, final)
        else:
            pipeline.card, pipeline.novelty_index = read_card(final), index
            pipeline.save_pretrained(final)
    return out / "final"
