"""Training items of the diffusion model, drawn from a cache: item by item on a CPU, or whole batches on the device.

moments (2C, T/f, F/f), embeddings (D,) of a clip  ->  latents, noise (C, T/f, F/f), time, embedding (D,)
                                 its contexts      ->  context (C + 1 + K, T/f, F/f)
"""

from __future__ import annotations

import copy
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from musicldm.config import DiffusionConfig
from musicldm.data.items import Item, item_rng
from musicldm.train.diffusion.cache import Cache
from musicldm.train.diffusion.contexts import Contexts
from musicldm.train.diffusion.contexts_on_device import ContextsOnDevice
from musicldm.train.diffusion.mixtures import MixtureRounds
from musicldm.train.diffusion.objectives import text_share


class Example(NamedTuple):
    """One drawn training item, or a batch (B, ...) of them."""

    latents: Tensor  # (C, T/f, F/f), unscaled
    embedding: Tensor  # (D,)
    dropped: Tensor  # bool: train without the condition
    noise: Tensor  # (C, T/f, F/f)
    timestep: Tensor


class ContextExample(NamedTuple):
    """The same for a UNet that takes a context."""

    latents: Tensor
    embedding: Tensor
    dropped: Tensor
    noise: Tensor
    timestep: Tensor
    context: Tensor  # (C + 1 + K, T/f, F/f): latents, unscaled, and frames of it; 0 without one


AnyExample = TypeVar("AnyExample", Example, ContextExample)


def to_device(example: AnyExample, device: torch.device) -> AnyExample:
    """A batch of examples on ``device``."""
    return type(example)(*(value.to(device) for value in example))


class CachedLatents(torch.utils.data.Dataset):
    """``dataset[Item]`` is an `Example` drawn for that item: the same in whichever process and after whatever else."""

    def __init__(
        self,
        cache: Cache,
        indices: list[int],
        config: DiffusionConfig,
        mixtures: MixtureRounds | None = None,
        n_epochs: int = 1,
        contexts: Contexts | None = None,
    ):
        self.cache, self.indices, self.config, self.mixtures = cache, indices, config, mixtures
        self.n_epochs = n_epochs  # of the whole run, over which the share of captions changes
        self.contexts = contexts  # for a UNet that takes one; mixtures are given none

    def all_given(self, how: str) -> CachedLatents:
        """The same with the one choice of what items are given (`Contexts.all_given`)."""
        other = copy.copy(self)
        other.contexts = self.contexts.all_given(how) if self.contexts else None
        return other

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, item: Item) -> Example | ContextExample:
        index, rng = self.indices[item.index], item_rng(self.config.seed, item, "diffusion")
        mixture, given = self._mixture(item), None
        if self.contexts and not mixture:
            given = self.contexts.draw(item_rng(self.config.seed, item, "context"), index)
        moments, audio, texts = mixture or (given and self.contexts.target(given)) or self._clip(index)
        mean, logvar = np.split(moments.astype(np.float32), 2)
        std = np.exp(0.5 * np.clip(logvar, -30, 20))
        latents = mean + std * rng.standard_normal(mean.shape, dtype=np.float32)
        noise = rng.standard_normal(mean.shape, dtype=np.float32)
        timestep = rng.integers(self.config.train_timesteps)
        share = text_share(self.config, item.epoch, self.n_epochs)
        dropped, by_text = rng.random(2) < (self.config.drop_condition, share)
        embedding = texts[rng.integers(len(texts))] if by_text and len(texts) else audio
        example = Example(
            torch.from_numpy(latents),
            torch.from_numpy(embedding.copy()),
            torch.tensor(bool(dropped)),
            torch.from_numpy(noise),
            torch.tensor(timestep),
        )
        return ContextExample(*example, self.contexts.channels(given, mean)) if self.contexts else example

    def _clip(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Moments, audio embedding (D,) and text embeddings (n, D) of a clip."""
        first, last = self.cache.offsets[index : index + 2]
        return self.cache.moments[index], self.cache.audio[index], self.cache.text[first:last]

    def _mixture(self, item: Item) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        """The same of a mixture anchored in the item's clip; None if the item is not to be mixed, or has no partner."""
        if self.mixtures is None:
            return None
        rng = item_rng(self.config.seed, item, "mixture")
        if rng.random() >= self.config.mixup_probability:
            return None
        return self.mixtures.draw(item, rng)


class LatentsOnDevice:
    """The clips of a dataset, and its mixtures if all epochs share them, in the memory of ``device``.

    Whole batches are drawn there. Clips, and all that is random about a batch, follow from the seed and its items, as
    in `CachedLatents`, but the numbers are others: those of the device's generator, which differ between kinds of GPU.

    Raises:
        ValueError: a GPU has too little free memory.
    """

    def __init__(self, dataset: CachedLatents, device: torch.device):
        cache, self.config, self.n_epochs = dataset.cache, dataset.config, dataset.n_epochs
        mixtures = [dataset.mixtures.of(0)] if dataset.mixtures else []
        names = ("moments", "audio", "text")
        tables = {name: [getattr(source, name) for source in (cache, *mixtures)] for name in names}
        contexts = dataset.contexts.tables if dataset.contexts else None
        if contexts:  # targets of their own are further clips without captions
            tables["moments"].append(contexts.moments)
            tables["audio"].append(contexts.embedding)
        size = sum(array.nbytes for arrays in tables.values() for array in arrays)
        size += contexts.latents.nbytes + contexts.frames.nbytes if contexts else 0
        if device.type == "cuda":
            torch.cuda.empty_cache()  # what the networks before this have left
        if device.type == "cuda" and size > (free := torch.cuda.mem_get_info(device)[0]):
            raise ValueError(
                f"on_device: latents and embeddings of {len(cache.audio)} clips, and of their mixtures, take "
                f"{size / 2**30:.1f} GiB of the GPU's memory, of which {free / 2**30:.1f} are free: set "
                "on_device=false or a lower share"
            )
        tables["text"].append(np.zeros_like(cache.audio[:1]))  # never taken: where a last clip without captions points
        self.moments, self.audio, self.text = (one_table(arrays, device) for arrays in tables.values())
        first, count = cache.offsets[:-1], np.diff(cache.offsets)  # of the captions of a clip
        self.made = torch.zeros(0, dtype=torch.bool, device=device)  # whether there is such a mixture
        if mixtures:
            made = np.asarray(mixtures[0].made)
            first = np.concatenate([first, cache.offsets[-1] + np.arange(len(made))])
            count = np.concatenate([count, made == 2])
            self.made = torch.from_numpy(made > 0).to(device)
        if contexts:
            none = np.zeros(len(contexts.embedding), dtype=int)
            first, count = np.concatenate([first, none]), np.concatenate([count, none])
        self.first, self.count = (torch.from_numpy(numbers).long().to(device) for numbers in (first, count))
        self.n_clips, self.per_clip = len(cache.audio), len(self.made) // len(dataset)
        self.indices = torch.tensor(dataset.indices, device=device)
        self.generator = torch.Generator(device)
        self.contexts = ContextsOnDevice(dataset.contexts, device) if dataset.contexts else None
        self.n_before = self.n_clips + len(self.made)  # rows before those of contexts' own targets

    def __len__(self) -> int:
        return len(self.indices)

    def draw(self, items: list[Item]) -> Example | ContextExample:
        """A batch, on the device."""
        config, device, n = self.config, self.indices.device, len(items)
        seed = int(item_rng(config.seed, items[0], "batch").integers(2**63))
        options = {"device": device, "generator": self.generator.manual_seed(seed)}
        mixed, mixture, by_text, caption, dropped = torch.rand(5, n, dtype=torch.float64, **options)
        place = torch.tensor([item.index for item in items], device=device)  # (B,)
        clip = row = self.indices[place]
        if self.per_clip:
            number = self.per_clip * place + (self.per_clip * mixture).long()
            mixes = (mixed < config.mixup_probability) & self.made[number]
            row = torch.where(mixes, self.n_clips + number, row)
        given = self.contexts.draw(clip, row != clip, options) if self.contexts else None
        if given:
            row = torch.where(given.target >= 0, self.n_before + given.target, row)
        mean, logvar = self.moments[row].float().chunk(2, dim=1)
        latents = mean + (0.5 * logvar.clamp(-30, 20)).exp() * torch.randn(mean.shape, **options)
        noise = torch.randn(mean.shape, **options)
        timestep = torch.randint(config.train_timesteps, (n,), **options)
        share = [text_share(config, item.epoch, self.n_epochs) for item in items]
        count = self.count[row]
        takes_text = (by_text < torch.tensor(share, dtype=torch.float64, device=device)) & (count > 0)
        text = self.text[self.first[row] + (count * caption).long()]  # (B, D)
        embedding = torch.where(takes_text[:, None], text, self.audio[row])
        example = Example(latents, embedding, dropped < config.drop_condition, noise, timestep)
        return ContextExample(*example, self.contexts.channels(given, mean)) if given else example


def one_table(arrays: list[np.ndarray], device: torch.device) -> Tensor:
    """The rows of ``arrays`` one after another on ``device``, without a second copy there."""
    first = torch.from_numpy(arrays[0][:1])
    table = torch.empty(sum(map(len, arrays)), *first.shape[1:], dtype=first.dtype, device=device)
    for part, array in zip(table.split([*map(len, arrays)]), arrays, strict=True):
        part.copy_(torch.from_numpy(np.asarray(array)))
    return table
