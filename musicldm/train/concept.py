"""A concept: one new word of CLAP's text tower and a small adapter of the UNet, from about two minutes of music.

    captions with <name> -> text tower with the word's vector -> (B, D) -> UNet with adapter -> diffusion loss
                                                              -> 1 - cosine with the clip's audio embedding
    other captions       -> (B, D) -> UNet with and without adapter -> squared difference (prior preservation)

Textual inversion (Gal et al., 2022, https://arxiv.org/abs/2208.01618) and the prior of DreamBooth (Ruiz et al., 2023,
https://arxiv.org/abs/2208.12242), here the frozen model's own answers.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers import SchedulerMixin
from torch import Tensor, nn
from torch.nn import functional
from transformers import SpeechT5HifiGan

from musicldm.clap import embed_text
from musicldm.concepts import add_word, check_name, save_concept
from musicldm.config import ConceptConfig
from musicldm.data.clips import Item, item_rng, load_clips
from musicldm.lora import add_adapter
from musicldm.train.cache import Conditioner, build_cache
from musicldm.train.checkpoints import State, final_folder, load_state, start
from musicldm.train.common import after_batch, batches, initial_folder, make_accelerator, optimise
from musicldm.train.diffusion import CachedLatents, Example, initial_unet, load_parts, to_device
from musicldm.train.objectives import make_scheduler, question, trained_prediction, weighted_losses
from musicldm.train.progress import Log, announce
from vocoder import mel_config


class Word(nn.Module):
    """CLAP's word embeddings, frozen, except for one word whose vector is learned."""

    def __init__(self, table: nn.Embedding, token: int):
        super().__init__()
        self.table, self.token = table.requires_grad_(False), token
        self.vector = nn.Parameter(table.weight[token].detach().clone())

    def forward(self, ids: Tensor) -> Tensor:
        return torch.where((ids == self.token)[..., None], self.vector, self.table(ids))


def captions_of(items: list[Item], state: State, config: ConceptConfig) -> tuple[list[str], list[str]]:
    """For each item a caption with the concept's name, and one of other music."""
    own, other = [], []
    for item in items:
        rng = item_rng(config.seed, item, "words")
        texts = [config.name, *(f"{config.name}, {text}" for text in state.clips[item.index].texts)]
        own.append(texts[rng.integers(len(texts))])
        other.append(config.prior_captions[rng.integers(len(config.prior_captions))])
    return own, other


def losses_of(
    unet: nn.Module,
    conditioner: Conditioner,
    example: Example,
    captions: tuple[list[str], list[str]],
    empty: Tensor,
    scaling_factor: float,
    config: ConceptConfig,
    scheduler: SchedulerMixin,
) -> dict[str, Tensor]:
    """``loss`` and its parts: ``diffusion``, ``likeness`` (1 - cosine with the audio) and ``prior``."""
    own = embed_text(conditioner.clap, conditioner.tokenizer, captions[0])  # (B, D)
    with torch.no_grad():
        other = embed_text(conditioner.clap, conditioner.tokenizer, captions[1])
    x0 = scaling_factor * example.latents
    asked = question(x0, example.noise, example.timestep, scheduler, config.prediction)
    condition = torch.where(example.dropped[:, None], empty, own)
    predicted = unet(asked.noisy, asked.time, encoder_hidden_states=None, class_labels=condition).sample
    diffusion = weighted_losses(predicted, asked.target, example.timestep, scheduler, config)["loss"]
    likeness = (1 - functional.cosine_similarity(own, example.embedding)).mean()
    unet.disable_adapters()
    with torch.no_grad():
        before = unet(asked.noisy, asked.time, encoder_hidden_states=None, class_labels=other).sample
    unet.enable_adapters()
    after = unet(asked.noisy, asked.time, encoder_hidden_states=None, class_labels=other).sample
    prior = (after - before).square().mean()
    loss = diffusion + config.likeness_weight * likeness + config.prior_weight * prior
    return {"loss": loss, "diffusion": diffusion, "likeness": likeness, "prior": prior}


def train_step(
    state: State,
    example: Example,
    conditioner: Conditioner,
    empty: Tensor,
    config: ConceptConfig,
    scheduler: SchedulerMixin,
    accelerator: Accelerator,
) -> dict[str, Tensor]:
    """One batch for the word and the adapter."""
    learned = state.parts["learned"]
    example = to_device(example, accelerator.device)
    captions = captions_of(state.items, state, config)
    with accelerator.autocast():
        losses = losses_of(
            learned["unet"], conditioner, example, captions, empty, state.numbers["scaling_factor"], config, scheduler
        )
    losses |= optimise(accelerator, state.parts["optimizer"], losses["loss"], learned, config, state)
    return {name: value.detach() for name, value in losses.items()}


@torch.no_grad()
def validate(
    state: State,
    conditioner: Conditioner,
    dataset: CachedLatents,
    empty: Tensor,
    config: ConceptConfig,
    scheduler: SchedulerMixin,
) -> dict[str, float]:
    """The losses over every clip once, at fixed times and noise."""
    sums: dict[str, float] = {}
    for index in range(len(dataset)):
        item = Item(0, index)
        example = to_device([value[None] for value in dataset[item]], empty.device)
        losses = losses_of(
            state.parts["learned"]["unet"],
            conditioner,
            example,
            captions_of([item], state, config),
            empty,
            state.numbers["scaling_factor"],
            config,
            scheduler,
        )
        for name, value in losses.items():
            sums[name] = sums.get(name, 0.0) + float(value) / len(dataset)
    return sums


def of_model(config: ConceptConfig) -> ConceptConfig:
    """The configuration with what the model ``init`` says of itself."""
    vocoder = SpeechT5HifiGan.from_pretrained(initial_folder(config, "vocoder"))
    return replace(config, prediction=trained_prediction(initial_folder(config, "scheduler")), mel=mel_config(vocoder))


def train(config: ConceptConfig, data: Path, out: Path, *, resume: bool = False) -> Path:
    """Learn ``config.name`` from the music in ``data``; `musicldm.concepts.load_concept` loads ``OUT/final``.

    Raises:
        ValueError: a name of another form, or more than one process.
    """
    check_name(config.name)
    config = of_model(config)
    clips = load_clips(data, config.mel.clip_s)
    vae, _, conditioner = load_parts(config)
    unet = initial_unet(config, vae.config.latent_channels, 0, conditioner.clap.config.projection_dim)
    add_adapter(unet, config.lora.rank)
    accelerator = make_accelerator(config, out)
    if accelerator.num_processes > 1:
        raise ValueError(f"a concept is learned by one process, not {accelerator.num_processes}")
    start(config, out, resume, accelerator)
    cache = build_cache(clips, vae, conditioner, config.mel, out / "cache", accelerator.device)
    dataset = CachedLatents(cache, list(range(len(clips))), config)
    with torch.no_grad():
        empty = embed_text(conditioner.clap, conditioner.tokenizer, [""])[0]  # (D,)
    token = add_word(conditioner.clap, conditioner.tokenizer, config.name)
    embeddings = conditioner.clap.requires_grad_(False).text_model.embeddings
    embeddings.word_embeddings = word = Word(embeddings.word_embeddings, token)
    learned = nn.ModuleDict({"unet": unet.to(accelerator.device), "word": word.to(accelerator.device)})
    adapter = [p for p in unet.parameters() if p.requires_grad]
    groups = [{"params": adapter}, {"params": [word.vector], "scale": config.word_rate}]
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, weight_decay=config.weight_decay)
    optimizer = accelerator.prepare(optimizer)
    state = State({"learned": learned, "optimizer": optimizer}, clips)
    load_state(state, out, accelerator)
    state.numbers["scaling_factor"] = vae.config.scaling_factor
    scheduler = make_scheduler(config)
    check = partial(validate, state, conditioner, dataset, empty, config, scheduler)

    def trial() -> Tensor:
        example = to_device([value[None] for value in dataset[Item(0, 0)]], accelerator.device)
        captions = captions_of([Item(0, 0)], state, config)
        scale = state.numbers["scaling_factor"]
        return losses_of(unet, conditioner, example, captions, empty, scale, config, scheduler)["loss"]

    announce(config, clips, {"UNet": unet, "word": word}, trial, accelerator)
    with Log(config, out, state.step, config.mel.clip_s, accelerator) as log:
        if state.step == 0:
            log.write("validation", 0, check())
        for example in batches(dataset, config, accelerator, state):
            with accelerator.accumulate(learned):
                losses = train_step(state, example, conditioner, empty, config, scheduler, accelerator)
            after_batch(state, losses, config, out, log, check)
    final = final_folder(state, config, out)
    save_concept(final, config.name, word.vector, unet)
    return final
