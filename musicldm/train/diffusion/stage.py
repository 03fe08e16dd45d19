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
from transformers import SpeechT5HifiGan

from musicldm.audio.output import slug
from musicldm.config import DiffusionConfig, VAEConfig, load_config
from musicldm.data.clips import Clip
from musicldm.data.collection import Collection, split_clips
from musicldm.data.items import Item, batch_items
from musicldm.kernels.unet_attention import install
from musicldm.models.adapters import add_adapter, save_adapter
from musicldm.models.latents import latent_shape
from musicldm.models.loading import head_numbers
from musicldm.novelty.carried import attach_index
from musicldm.pipelines.hub import NOVELTY_INDEX, read_card
from musicldm.pipelines.text_to_music import MusicLDMPipeline
from musicldm.sampling.condition import Condition, predict
from musicldm.train.common import (
    Batch,
    check_mel,
    drawn_batches,
    fastest_layout,
    initial_folder,
    loaded_batches,
    make_optimizer,
    update,
)
from musicldm.train.diffusion.cache import Conditioner, Parts, build_cache, load_conditioner
from musicldm.train.diffusion.latents import CachedLatents, Example, LatentsOnDevice, to_device
from musicldm.train.diffusion.mixtures import make_rounds
from musicldm.train.diffusion.objectives import Objective, make_scheduler, trained_settings
from musicldm.train.diffusion.on_device import Gradient, Recorded, check_device
from musicldm.train.diffusion.whitening import empty_embedding, prepare_condition
from musicldm.train.log import EXAMPLES, Examples
from musicldm.train.loop import Stage, fit
from musicldm.train.run_folder import CONFIG_FILE, Average, Run, State, load_state, start
from vocoder import install_matching, mel_config

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
    former_shape, shape = (latent_shape(each, config.mel, config.mel.clip_frames) for each in (former, vae))
    return former.config.scaling_factor if former_shape == shape else None


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

    def losses(self, unet: nn.Module, example: Example) -> dict[str, Tensor]:
        """Losses of a batch of examples."""
        return losses_of(unet, example, self.empty, self.objective)

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Mean loss on held-out clips at fixed times and noise; ``constant_loss`` is that of always predicting 0."""
        config, objective, dataset = self.run.config, self.objective, self.validation
        total, constant = 0.0, 0.0
        with self.averaged():
            for k in range(config.validation_batches):
                numbers = range(k * config.batch_size, (k + 1) * config.batch_size)
                drawn = [dataset[Item(*divmod(number, len(dataset)))] for number in numbers]
                example = to_device(torch.utils.data.default_collate(drawn), self.run.accelerator.device)
                total += float(self.losses(self.unet, example)["loss"])
                target = objective.question(example.latents, example.noise, example.timestep).target
                constant += float(objective.losses(torch.zeros_like(target), target, example.timestep)["loss"])
        return {"loss": total / config.validation_batches, "constant_loss": constant / config.validation_batches}

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
        """Music for fixed prompts and seeds: those of the configuration, else the conditions of held-out clips."""
        dataset = self.validation
        if self.prompts:
            names, wanted = [slug(prompt) for prompt in self.prompts], {"prompt": self.prompts}
        else:
            rows = [dataset[Item(0, index)].embedding for index in range(min(EXAMPLES, len(dataset)))]
            names, wanted = [f"clip-{index}" for index in range(len(rows))], {"prompt_embeds": torch.stack(rows)}
        self.pipeline.set_progress_bar_config(disable=True)
        with self.averaged():
            made = self.pipeline(**wanted, num_inference_steps=VALIDATION_STEPS, seed=self.run.config.seed)
        return Examples(dict(zip(names, made.audios, strict=True)), made.sampling_rate)

    def dry_run(self) -> Tensor:
        example = to_device([value[None] for value in self.training[Item(0, 0)]], self.run.accelerator.device)
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


def losses_of(unet: nn.Module, example: Example, empty: Tensor, objective: Objective) -> dict[str, Tensor]:
    """Losses of a batch of examples; ``empty (D,)`` is the embedding of the empty text."""
    embedding = torch.where(example.dropped[:, None], empty, example.embedding)  # (B, D)
    asked = objective.question(example.latents, example.noise, example.timestep)
    predicted = predict(unet, asked.noisy, asked.time, Condition(embedding))
    return objective.losses(predicted, asked.target, example.timestep)


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
    """`initial_unet` for latents and embeddings of ``parts``, with its adapter if there is to be one, as it trains."""
    config = run.config
    channels, frames, _ = latent_shape(parts.vae, config.mel, config.mel.clip_frames)
    unet = initial_unet(config, channels, frames, parts.conditioner.clap.config.projection_dim)
    if config.lora.rank:
        add_adapter(unet, config.lora)
    if config.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    return unet


def cache_folder(run: Run) -> Path:
    """Where what is computed once of each clip is kept."""
    return Path(run.config.cache) if run.config.cache else run.out / "cache"


def cached_sets(
    run: Run, collection: Collection, parts: Parts, clips: list[Clip], held_out: set[Clip]
) -> tuple[CachedLatents, CachedLatents]:
    """Training and validation on ``clips``, of which ``held_out`` are to validate with."""
    config, kept, device = run.config, cache_folder(run), run.accelerator.device
    cache = build_cache(clips, parts, config.mel, kept, device)
    to_mix = [clip for clip in clips if clip not in held_out]
    mixtures = make_rounds(config, to_mix, collection, parts, kept / f"mixup-{config.mixup}", device)
    indices = [i for i, clip in enumerate(clips) if clip not in held_out]
    n_epochs = math.ceil(config.steps * run.step_size / len(indices))
    training = CachedLatents(cache, indices, config, mixtures, n_epochs)
    return training, CachedLatents(cache, [i for i, clip in enumerate(clips) if clip in held_out], config)


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
    start(run)
    training, validation = cached_sets(run, collection, parts, clips, held_out)
    index = index_beside(run, collection, parts.conditioner) if config.index else None
    empty = empty_embedding(parts.conditioner)
    prepare_condition(plain, parts.conditioner, training.cache, training.indices, config)
    average = Average(plain, config.ema_decay).to(accelerator.device)
    scheduler = make_scheduler(config, accelerator.device if config.on_device else None)
    unet, optimizer = accelerator.prepare(plain, make_optimizer(plain, config))
    to_mix = [clip for clip in clips if clip not in held_out]
    state = State({"unet": unet, "optimizer": optimizer, "average": average}, to_mix)
    load_state(state, run.out, accelerator)
    if "scaling_factor" not in state.numbers:
        state.numbers["scaling_factor"] = scale_of(training, run, parts.vae)
    parts.vae.register_to_config(scaling_factor=state.numbers["scaling_factor"])
    pipeline = make_pipeline(parts, plain, scheduler, accelerator.device)
    objective = Objective(config, scheduler, state.numbers["scaling_factor"])
    stage = DiffusionStage(run, state, plain, training, validation, objective, empty, pipeline, index)
    return fit(stage, run, collection)
