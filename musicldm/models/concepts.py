"""Concepts: a word of one's own for a kind of music, usable in prompts beside other words and other concepts.

    FOLDER/learned_embeds.safetensors        {name: vector (H,)}, a row of CLAP's word embeddings
    FOLDER/pytorch_lora_weights.safetensors  an adapter of the UNet

Gal et al. (2022), textual inversion, https://arxiv.org/abs/2208.01618; Chen et al. (2023), JEN-1 DreamStyler's task,
https://arxiv.org/abs/2406.12292.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken
from torch import Tensor, nn
from transformers import ClapModel, PreTrainedTokenizerBase

from musicldm.models.lora import save_adapter

EMBEDDING_FILE = "learned_embeds.safetensors"
NAME = re.compile(r"<[a-z0-9-]+>")


def check_name(name: str) -> None:
    """ValueError unless ``name`` is like <mine>: in angle brackets, so that no other text contains it."""
    if not NAME.fullmatch(name):
        raise ValueError(f'a concept is named like "<mine>", lower case, digits and hyphens in <>, got {name!r}')


def check_word(clap: ClapModel, tokenizer: PreTrainedTokenizerBase, name: str, vector: Tensor | None = None) -> None:
    """ValueError unless `add_word` can teach ``name``: of the form <name>, not known yet, its vector of CLAP's size."""
    check_name(name)
    if name in tokenizer.get_vocab():
        raise ValueError(f"the model knows the concept {name} already; take another name")
    size = clap.text_model.embeddings.word_embeddings.embedding_dim
    if vector is not None and vector.shape != (size,):
        raise ValueError(f"{name} was learned for words of size {len(vector)}, this CLAP's have {size}")


def add_word(clap: ClapModel, tokenizer: PreTrainedTokenizerBase, name: str, vector: Tensor | None = None) -> int:
    """Teach the text tower the word ``name``; returns its token. Without a ``vector (H,)`` it is as the word "music".

    Raises:
        ValueError: that of `check_word`.
    """
    check_word(clap, tokenizer, name, vector)
    table = clap.text_model.embeddings.word_embeddings  # (V, H)
    if vector is None:
        usual = tokenizer("music", add_special_tokens=False)["input_ids"]
        vector = table.weight[usual].mean(dim=0)
    tokenizer.add_tokens([AddedToken(name, normalized=False)])
    token = tokenizer.convert_tokens_to_ids(name)
    if token >= len(table.weight):
        bigger = nn.Embedding(token + 1, table.embedding_dim, table.padding_idx).to(table.weight)
        with torch.no_grad():
            bigger.weight.zero_()
            bigger.weight[: len(table.weight)] = table.weight
        clap.text_model.embeddings.word_embeddings = table = bigger.requires_grad_(False)
        clap.config.text_config.vocab_size = token + 1
    with torch.no_grad():
        table.weight[token] = vector
    return token


def save_concept(folder: Path, name: str, vector: Tensor, unet: UNet2DConditionModel) -> None:
    """Write the two files of a concept."""
    save_adapter(unet, folder)
    save_file({name: vector.detach().cpu().contiguous()}, folder / EMBEDDING_FILE)


def load_concept(pipeline, folder: str | Path) -> str:
    """Teach a `MusicLDMPipeline` the concept of ``folder`` beside those that it knows; returns its name.

    The adapter is called as the concept without its brackets: ``pipeline.set_adapters`` weighs several. Those that
    are active keep their weights.

    Raises:
        FileNotFoundError: no concept there.
        ValueError: it does not fit the model, or one of its name is loaded; no word is known then.
    """
    file = Path(folder) / EMBEDDING_FILE
    if not file.is_file():
        raise FileNotFoundError(f"{folder} holds no concept ({EMBEDDING_FILE}): train one by `musicldm train concept`")
    ((name, vector),) = load_file(file).items()
    adapter = name.strip("<>")
    check_word(pipeline.text_encoder, pipeline.tokenizer, name, vector)
    before = pipeline.get_active_adapters()
    pipeline.load_lora_weights(folder, adapter_name=adapter)
    pipeline.unet.set_adapter([*before, adapter])  # the pipeline's own method would give all of them the weight 1
    add_word(pipeline.text_encoder, pipeline.tokenizer, name, vector)
    return name
