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

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import default_collate

from musicldm.config import ConceptConfig
from musicldm.data.clips import Clip
from musicldm.data.collection import Collection, of_share
from musicldm.data.items import Item, batch_items, item_rng
from musicldm.models.adapters import add_word, check_name, save_concept
from musicldm.models.clap import embed_text
from musicldm.sampling.condition import Condition, predict
from musicldm.train.common import Batch, make_optimizer, update
from musicldm.train.diffusion.cache import Conditioner, build_cache
from musicldm.train.diffusion.latents import CachedLatents, Example, to_device
from musicldm.train.diffusion.objectives import Objective, make_scheduler
from musicldm.train.diffusion.stage import (
    DiffusionStage,
    cache_folder,
    initial_scale,
    load_parts,
    make_pipeline,
    of_initial,
    unet_for,
)
from musicldm.train.diffusion.whitening import former_clap
from musicldm.train.log import METRICS_FILE, Log
from musicldm.train.loop import fit
from musicldm.train.run_folder import Run, State, load_state, start


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


class ConceptExample(NamedTuple):
    """A batch of examples with the embeddings (B, D) of captions: with the concept's name, and of other music."""

    example: Example
    own: Tensor
    other: Tensor


@dataclass
class ConceptStage(DiffusionStage):
    """An adapter that learns the captions with the word and keeps the answers to others; before it, the word."""

    conditioner: Conditioner = field(kw_only=True)
    word: Word = field(kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        self.networks = {"UNet": self.unet, "word": self.word}
        self.prompts = self.prompts or [self.run.config.name]

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """One batch for the adapter."""
        state, accelerator = self.state, self.run.accelerator
        with accelerator.autocast():
            losses = self.losses(self.unet, self.captioned(to_device(batch.data, accelerator.device), batch.items))
        accelerator.backward(losses["loss"])
        optimizer, learned = state.parts["optimizer"], state.parts["learned"]
        losses |= update(self.run, state, batch.items, optimizer, losses["loss"], learned)
        return {name: value.detach() for name, value in losses.items()}

    @torch.no_grad()
    def captioned(self, example: Example, items: list[Item]) -> ConceptExample:
        """The example of ``items``, on its device, with their captions."""
        config, clap, tokenizer = self.run.config, self.conditioner.clap, self.conditioner.tokenizer
        captions = own_captions(items, self.state.clips, config), other_captions(items, config)
        return ConceptExample(example, *(embed_text(clap, tokenizer, texts) for texts in captions))

    def losses(self, unet: nn.Module, captioned: ConceptExample) -> dict[str, Tensor]:
        """``loss`` and its parts, ``diffusion`` and ``prior``."""
        example, own, other = captioned
        asked = self.objective.question(example.latents, example.noise, example.timestep)
        unet.disable_adapters()
        with torch.no_grad():
            before = predict(unet, asked.noisy, asked.time, Condition(other))
        unet.enable_adapters()
        noisy, time = (torch.cat([value, value]) for value in (asked.noisy, asked.time))
        predicted, after = predict(unet, noisy, time, Condition(torch.cat([own, other]))).chunk(2)
        losses = self.objective.losses(predicted, asked.target, example.timestep)
        prior = (after - before).square().mean()
        loss = losses["loss"] + self.run.config.prior_weight * prior
        return {"loss": loss, "diffusion": losses["loss"], "prior": prior}

    def one(self, item: Item) -> ConceptExample:
        """The example of one item."""
        example = to_device(default_collate([self.training[item]]), self.run.accelerator.device)
        return self.captioned(example, [item])

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """The losses over every clip once, at fixed times and noise."""
        sums: dict[str, float] = {}
        for index in range(len(self.training)):
            for name, value in self.losses(self.unet, self.one(Item(0, index))).items():
                sums[name] = sums.get(name, 0.0) + float(value) / len(self.training)
        return sums

    def averaged(self) -> AbstractContextManager:
        """Weights as they are: concepts have no average."""
        return nullcontext()

    def dry_run(self) -> Tensor:
        return self.losses(self.unet, self.one(Item(0, 0)))["loss"]

    def begin(self, log: Log) -> None:
        """Learn the word, which belongs to the state of every checkpoint."""
        if self.state.step:
            return
        audio = torch.from_numpy(np.array(self.training.cache.audio)).to(self.run.accelerator.device)  # (N, D)
        log.write("word", 0, learn_word(self.word, self.conditioner, audio, self.state.clips, self.run.config))
        log.write("validation", 0, self.validate())

    def export(self, final: Path) -> None:
        save_concept(final, self.run.config.name, self.word.vector, self.unet)


def train(run: Run, collection: Collection) -> Path:
    """Learn ``name`` of the configuration from ``collection``; `musicldm.models.load_concept` loads ``OUT/final``.

    All of it is learned from, as held-out music would be missed, but for recordings of the split test.

    Raises:
        ValueError: a name of another form, no music, another CLAP than the model's, or more than one process.
    """
    check_name(run.config.name)
    run = replace(run, config=of_initial(run.config))
    config, accelerator = run.config, run.accelerator
    clips = [clip for clip in collection.clips(config.mel.clip_s) if clip.split != "test"]
    if not clips:
        raise ValueError(
            f"all recordings of {collection.folder} are of the split test, so that there is nothing to learn from"
        )
    clips = of_share(clips, config.share)
    parts = load_parts(config)
    former_clap(config, parts.conditioner)  # refuses another one
    unet = unet_for(run, parts)
    if accelerator.num_processes > 1:
        raise ValueError(f"a concept is learned by one process, not {accelerator.num_processes}")
    start(run)
    cache = build_cache(clips, parts, config.mel, cache_folder(run), accelerator.device)
    dataset = CachedLatents(cache, list(range(len(clips))), config)
    token = add_word(parts.conditioner.clap, parts.conditioner.tokenizer, config.name)
    embeddings = parts.conditioner.clap.requires_grad_(False).text_model.embeddings
    embeddings.word_embeddings = word = Word(embeddings.word_embeddings, token)
    unet = unet.to(accelerator.device, memory_format=torch.channels_last)
    learned = nn.ModuleDict({"unet": unet, "word": word.to(accelerator.device)})
    state = State({"learned": learned, "optimizer": accelerator.prepare(make_optimizer(unet, config))}, clips)
    load_state(state, run.out, accelerator)
    scale = state.numbers["scaling_factor"] = initial_scale(config, parts.vae) or parts.vae.config.scaling_factor
    parts.vae.register_to_config(scaling_factor=scale)
    if state.step == 0:  # what a run wrote that was killed before its first checkpoint will come again
        (run.out / METRICS_FILE).unlink(missing_ok=True)
    scheduler = make_scheduler(config)
    stage = ConceptStage(
        run,
        state,
        unet,
        training=dataset,
        validation=dataset,
        objective=Objective(config, scheduler, scale),
        pipeline=make_pipeline(parts, unet, scheduler, accelerator.device),
        conditioner=parts.conditioner,
        word=word,
    )
    return fit(stage, run, collection)
