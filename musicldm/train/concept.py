"""A concept: one new word of CLAP's text tower and a small adapter of the UNet, from about two minutes of music.

    first    captions with <name> -> text tower with the word's vector -> (B, D) -> 1 - cosine with the clips' audio
    then     captions with <name> -> (B, D) -> UNet with adapter -> diffusion loss
             other captions       -> (B, D) -> UNet with and without adapter -> squared difference (prior preservation)

The word comes first, as its place in CLAP's space is found in seconds and is most of what a listener hears; the adapter
then learns under the very embedding that prompts will give it. Textual inversion (Gal et al., 2022,
https://arxiv.org/abs/2208.01618) through CLAP in place of the diffusion model, and the prior of DreamBooth (Ruiz et
al., 2023, https://arxiv.org/abs/2208.12242), here the frozen model's own answers.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import SchedulerMixin
from torch import Tensor, nn
from torch.nn import functional

from musicldm.config import ConceptConfig
from musicldm.data.clips import Clip
from musicldm.data.collection import load_clips, of_share
from musicldm.data.items import Item, batch_items, item_rng
from musicldm.models.clap import embed_text
from musicldm.models.concepts import add_word, check_name, save_concept
from musicldm.models.lora import add_adapter
from musicldm.pipelines.text_to_music import MusicLDMPipeline
from musicldm.train.common import after_batch, batches, make_accelerator, make_optimizer, update
from musicldm.train.diffusion.cache import Conditioner, build_cache, latent_shape
from musicldm.train.diffusion.latents import CachedLatents, Example, to_device
from musicldm.train.diffusion.objectives import make_scheduler, question, weighted_losses
from musicldm.train.diffusion.stage import examples, initial_scale, initial_unet, load_parts, of_initial
from musicldm.train.diffusion.whitening import former_clap
from musicldm.train.log import METRICS_FILE, Log, announce
from musicldm.train.run_folder import State, final_folder, load_state, start


class Word(nn.Module):
    """CLAP's word embeddings, frozen, except for one word whose vector is learned."""

    def __init__(self, table: nn.Embedding, token: int):
        super().__init__()
        self.table, self.token = table.requires_grad_(False), token
        self.vector = nn.Parameter(table.weight[token].detach().clone())

    def forward(self, ids: Tensor) -> Tensor:
        return torch.where((ids == self.token)[..., None], self.vector, self.table(ids))


def own_captions(items: list[Item], clips: list[Clip], config: ConceptConfig) -> list[str]:
    """For each item a caption with the concept's name."""
    captions = []
    for item in items:
        texts = [config.name, *(f"{config.name}, {text}" for text in clips[item.index].texts)]
        captions.append(texts[item_rng(config.seed, item, "words").integers(len(texts))])
    return captions


def other_captions(items: list[Item], config: ConceptConfig) -> list[str]:
    """For each item a caption of other music."""
    texts = config.prior_captions
    return [texts[item_rng(config.seed, item, "prior").integers(len(texts))] for item in items]


def learn_word(
    word: Word, conditioner: Conditioner, audio: Tensor, clips: list[Clip], config: ConceptConfig
) -> dict[str, float]:
    """Bring captions with the word near to ``audio (N, D)``, the embeddings of ``clips``, and freeze it.

    Returns the mean cosine of the bare word's embedding and the clips' before and after.
    """

    @torch.no_grad()
    def likeness() -> float:
        return float((embed_text(conditioner.clap, conditioner.tokenizer, [config.name]) @ audio.T).mean())

    before = likeness()
    optimizer = torch.optim.AdamW([word.vector], lr=config.word_rate, weight_decay=0.0)
    for step in range(config.word_steps):
        for group in optimizer.param_groups:
            group["lr"] = config.word_rate * (1 - step / config.word_steps)
        items = batch_items(len(clips), config.batch_size, config.seed, step)
        own = embed_text(conditioner.clap, conditioner.tokenizer, own_captions(items, clips, config))  # (B, D)
        loss = (1 - functional.cosine_similarity(own, audio[[item.index for item in items]])).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    word.requires_grad_(False)
    return {"likeness": likeness(), "likeness_before": before}


def losses_of(
    unet: nn.Module,
    conditioner: Conditioner,
    example: Example,
    captions: tuple[list[str], list[str]],
    scaling_factor: float,
    config: ConceptConfig,
    scheduler: SchedulerMixin,
) -> dict[str, Tensor]:
    """``loss`` and its parts, ``diffusion`` and ``prior``; ``captions``: with the concept's name, of other music."""
    with torch.no_grad():
        own, other = (embed_text(conditioner.clap, conditioner.tokenizer, texts) for texts in captions)  # (B, D)
    x0 = scaling_factor * example.latents
    asked = question(x0, example.noise, example.timestep, scheduler, config.prediction)
    unet.disable_adapters()
    with torch.no_grad():
        before = unet(asked.noisy, asked.time, encoder_hidden_states=None, class_labels=other).sample
    unet.enable_adapters()
    twice = (torch.cat([value, value]) for value in (asked.noisy, asked.time))
    predicted = unet(*twice, encoder_hidden_states=None, class_labels=torch.cat([own, other])).sample
    predicted, after = predicted.chunk(2)
    losses = weighted_losses(predicted, asked.target, example.timestep, scheduler, config)
    prior = (after - before).square().mean()
    return {"loss": losses["loss"] + config.prior_weight * prior, "diffusion": losses["loss"], "prior": prior}


def train_step(
    state: State,
    example: Example,
    conditioner: Conditioner,
    config: ConceptConfig,
    scheduler: SchedulerMixin,
    accelerator: Accelerator,
) -> dict[str, Tensor]:
    """One batch for the adapter."""
    learned, scale = state.parts["learned"], state.numbers["scaling_factor"]
    example = to_device(example, accelerator.device)
    captions = own_captions(state.items, state.clips, config), other_captions(state.items, config)
    with accelerator.autocast():
        losses = losses_of(learned["unet"], conditioner, example, captions, scale, config, scheduler)
    accelerator.backward(losses["loss"])
    losses |= update(accelerator, state.parts["optimizer"], losses["loss"], learned, config, state)
    return {name: value.detach() for name, value in losses.items()}


@torch.no_grad()
def validate(
    state: State,
    conditioner: Conditioner,
    dataset: CachedLatents,
    config: ConceptConfig,
    scheduler: SchedulerMixin,
    device: torch.device,
) -> dict[str, float]:
    """The losses over every clip once, at fixed times and noise."""
    sums: dict[str, float] = {}
    for index in range(len(dataset)):
        item = Item(0, index)
        example = to_device([value[None] for value in dataset[item]], device)
        captions = own_captions([item], state.clips, config), other_captions([item], config)
        unet, scale = state.parts["learned"]["unet"], state.numbers["scaling_factor"]
        for name, value in losses_of(unet, conditioner, example, captions, scale, config, scheduler).items():
            sums[name] = sums.get(name, 0.0) + float(value) / len(dataset)
    return sums


def train(config: ConceptConfig, data: Path, out: Path, *, resume: bool = False) -> Path:
    """Learn ``config.name`` from the music in ``data``; `musicldm.models.concepts.load_concept` loads ``OUT/final``.

    All of it is learned from, as held-out music would be missed, but for recordings of the split test.

    Raises:
        ValueError: a name of another form, no music, another CLAP than the model's, or more than one process.
    """
    check_name(config.name)
    config = of_initial(config)
    clips = [clip for clip in load_clips(data, config.mel.clip_s) if clip.split != "test"]
    if not clips:
        raise ValueError(f"all recordings of {data} are of the split test, so that there is nothing to learn from")
    clips = of_share(clips, config.share)
    vae, vocoder, conditioner = load_parts(config)
    former_clap(config, conditioner)  # refuses another one
    channels, frames, _ = latent_shape(vae, config.mel)
    unet = initial_unet(config, channels, frames, conditioner.clap.config.projection_dim)
    add_adapter(unet, config.lora)
    if config.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    accelerator = make_accelerator(config, out)
    if accelerator.num_processes > 1:
        raise ValueError(f"a concept is learned by one process, not {accelerator.num_processes}")
    start(config, out, resume, accelerator)
    kept = Path(config.cache) if config.cache else out / "cache"
    cache = build_cache(clips, vae, conditioner, config.mel, kept, accelerator.device)
    dataset = CachedLatents(cache, list(range(len(clips))), config)
    token = add_word(conditioner.clap, conditioner.tokenizer, config.name)
    embeddings = conditioner.clap.requires_grad_(False).text_model.embeddings
    embeddings.word_embeddings = word = Word(embeddings.word_embeddings, token)
    unet = unet.to(accelerator.device, memory_format=torch.channels_last)
    learned = nn.ModuleDict({"unet": unet, "word": word.to(accelerator.device)})
    state = State({"learned": learned, "optimizer": accelerator.prepare(make_optimizer(unet, config))}, clips)
    load_state(state, out, accelerator)
    vae.register_to_config(scaling_factor=initial_scale(config, vae) or vae.config.scaling_factor)
    state.numbers["scaling_factor"] = vae.config.scaling_factor
    scheduler = make_scheduler(config)
    pipeline = MusicLDMPipeline(
        vae=vae,
        text_encoder=conditioner.clap,
        tokenizer=conditioner.tokenizer,
        feature_extractor=conditioner.feature_extractor,
        unet=unet,
        scheduler=scheduler,
        vocoder=vocoder.to(accelerator.device),
    )
    shown = replace(config, validation_prompts=tuple(config.validation_prompts) or (config.name,))
    show = partial(examples, pipeline, dataset, shown)
    check = partial(validate, state, conditioner, dataset, config, scheduler, accelerator.device)

    def trial() -> Tensor:
        example = to_device([value[None] for value in dataset[Item(0, 0)]], accelerator.device)
        captions = own_captions([Item(0, 0)], clips, config), other_captions([Item(0, 0)], config)
        scale = state.numbers["scaling_factor"]
        return losses_of(unet, conditioner, example, captions, scale, config, scheduler)["loss"]

    announce(config, clips, {"UNet": unet, "word": word}, trial, accelerator)
    if state.step == 0:  # what a run wrote that was killed before its first checkpoint will come again
        (out / METRICS_FILE).unlink(missing_ok=True)
    with Log(config, out, state.step, config.mel.clip_s, accelerator) as log:
        if state.step == 0:
            heard = torch.from_numpy(np.array(cache.audio)).to(accelerator.device)  # (N, D)
            log.write("word", 0, learn_word(word, conditioner, heard, clips, config))
            log.write("validation", 0, check())
        for example in batches(dataset, config, accelerator, state):
            with accelerator.accumulate(learned):
                losses = train_step(state, example, conditioner, config, scheduler, accelerator)
            after_batch(state, losses, config, out, log, check, show)
    final = final_folder(state, config, data, out, {"UNet and adapter": unet})
    save_concept(final, config.name, word.vector, unet)
    return final
