"""Adapters: small files that change a model, and can be taken away again.

    LoRA     FOLDER/pytorch_lora_weights.safetensors   low-rank changes of the UNet, trained on a collection
    concept  the same, and learned_embeds.safetensors  {name: vector (H,)}, a word of one's own for a kind of music

`add_adapter` and `save_adapter` make a LoRA; a pipeline's load_lora_weights, set_adapters, fuse_lora and
unload_lora_weights use it as in diffusers. A concept's name can be used in prompts beside other words and other
concepts; `load_concept` loads one.

Hu et al. (2021), LoRA, https://arxiv.org/abs/2106.09685: the layers are peft's, the file and the loading diffusers'.
Gal et al. (2022), textual inversion, https://arxiv.org/abs/2208.01618; Chen et al. (2023), JEN-1 DreamStyler's task,
https://arxiv.org/abs/2406.12292.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders import StableDiffusionLoraLoaderMixin
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken
from torch import Tensor, nn
from transformers import ClapModel, PreTrainedTokenizerBase

from musicldm.config import LoraConfig
from musicldm.kernels.unet_attention import separate_projections

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
RESIDUAL = ("time_emb_proj", "conv1", "conv2")  # the first is where time and condition enter
EMBEDDING_FILE = "learned_embeds.safetensors"
NAME = re.compile(r"<[a-z0-9-]+>")  # of a concept


class LoraMixin(StableDiffusionLoraLoaderMixin):
    """diffusers' loading, combining, fusing and unloading of adapters, for a pipeline with adapters of the UNet only.

    A call scales them by ``cross_attention_kwargs={"scale": 0.5}``.
    """

    _lora_loadable_modules = ["unet"]  # noqa: RUF012 diffusers reads it from the class

    def load_lora_weights(
        self, path_or_dict: str | Path | dict[str, Tensor], adapter_name: str | None = None, **kwargs
    ):
        """Add the adapter of a folder, a file, a hub name or a state dict; arguments as in diffusers.

        Raises:
            ValueError: it holds no adapter of a UNet, or one for a UNet of other sizes.
        """
        path_or_dict = path_or_dict if isinstance(path_or_dict, dict) else str(path_or_dict)
        layers, alphas, metadata = self.lora_state_dict(
            path_or_dict, unet_config=self.unet.config, return_lora_metadata=True, **kwargs
        )
        if not any(name.startswith("unet.") for name in layers):
            raise ValueError(f"there are no adapters of a UNet in {_shown(path_or_dict)}")
        separate_projections(self.unet)
        try:
            self.load_lora_into_unet(layers, alphas, self.unet, adapter_name, metadata=metadata, _pipeline=self)
        except (RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(
                f"the adapter in {_shown(path_or_dict)} does not fit this UNet ({reason}); load the model that it was "
                "trained on, under an adapter_name that is still free"
            ) from error

    def fuse_lora(self, components: list[str] | None = None, **kwargs) -> None:
        """Add the active adapters into the UNet's weights; arguments as in diffusers."""
        super().fuse_lora(components or ["unet"], **kwargs)

    def unfuse_lora(self, components: list[str] | None = None, **kwargs) -> None:
        """Take them out again."""
        super().unfuse_lora(components or ["unet"], **kwargs)


def _shown(path_or_dict: str | dict) -> str:
    return path_or_dict if isinstance(path_or_dict, str) else "the given tensors"


def add_adapter(unet: UNet2DConditionModel, config: LoraConfig) -> None:
    """Freeze ``unet`` and give it an adapter, which leaves its output as it is at first.

    Raises:
        ImportError: without peft.
    """
    try:
        import peft
    except ImportError as error:
        raise ImportError("adapters need peft: pip install 'musicldm[lora]'") from error
    layers = ATTENTION if config.layers == "attention" else ATTENTION + RESIDUAL
    unet.requires_grad_(False)
    unet.add_adapter(
        peft.LoraConfig(
            r=config.rank, lora_alpha=config.rank, init_lora_weights="gaussian", target_modules=list(layers)
        )
    )


def save_adapter(unet: UNet2DConditionModel, folder: Path) -> None:
    """Write ``FOLDER/pytorch_lora_weights.safetensors`` in diffusers' layout."""
    from peft.utils import get_peft_model_state_dict

    layers = get_peft_model_state_dict(unet)  # under peft's names: diffusers' older ones know attention only
    layers = {name: value.detach().cpu().contiguous() for name, value in layers.items()}
    LoraMixin.save_lora_weights(folder, unet_lora_layers=layers)


# --- concepts ---------------------------------------------------------------------------------------------------------


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
