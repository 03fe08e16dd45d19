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

import os
import pickle
import re
import warnings
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders import StableDiffusionLoraLoaderMixin
from diffusers.utils.state_dict_utils import convert_unet_state_dict_to_peft
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken
from torch import Tensor, nn
from transformers import ClapModel, PreTrainedTokenizerBase

from musicldm.config import LoraConfig
from musicldm.config.values import check_kind, check_number, shown
from musicldm.kernels.unet_attention import separate_projections
from musicldm.models.loading import HUB_ERRORS

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
RESIDUAL = ("time_emb_proj", "conv1", "conv2")  # the first is where time and condition enter
WEIGHTS_FILE = "pytorch_lora_weights.safetensors"
EMBEDDING_FILE = "learned_embeds.safetensors"
READING = {  # what diffusers takes of where an adapter is read from
    *("cache_dir", "force_download", "proxies", "local_files_only", "token", "revision", "subfolder", "weight_name"),
    "use_safetensors",
}
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

        All of an adapter is added or nothing. What a file holds for other parts than the UNet is named in a warning.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it holds no adapter of a UNet, one of which not all fits this UNet, or NaN; or its
                ``adapter_name`` is none, or taken.
        """
        if self.unet is None:
            raise ValueError("the pipeline has no unet, which adapters are added to; load the whole model")
        check_adapter_name(adapter_name)
        check_kind("the adapter", path_or_dict, (str, Path, dict), "a folder, a file, a hub name or a state dict")
        shown_path = "the given tensors" if isinstance(path_or_dict, dict) else os.fspath(path_or_dict)
        into = {name: kwargs.pop(name) for name in ("hotswap", "low_cpu_mem_usage") if name in kwargs}
        if unknown := sorted(kwargs.keys() - READING):
            raise TypeError(f"load_lora_weights has no arguments {unknown}; it knows {', '.join(sorted(READING))}")
        layers, alphas, metadata = self._read_adapter(path_or_dict, shown_path, kwargs)
        taken = {name: value for name, value in layers.items() if name.startswith("unet.")}
        if not taken:
            raise ValueError(f"there are no adapters of a UNet in {shown_path}")
        if others := sorted({name.partition(".")[0] for name in layers.keys() - taken.keys()}):
            warnings.warn(
                f"{shown_path} also changes {', '.join(others)}, which is left as it is: only the UNet takes adapters",
                stacklevel=2,
            )
        if problem := misfit(taken, self.unet):
            raise ValueError(
                f"the adapter in {shown_path} does not fit this UNet ({problem}); load the model that it was trained on"
            )
        separate_projections(self.unet)
        into["metadata"] = metadata
        try:
            self.load_lora_into_unet(taken, alphas, self.unet, adapter_name, _pipeline=self, **into)
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(
                f"the adapter in {shown_path} does not fit this UNet ({reason}); load the model that it was "
                "trained on, under an adapter_name that is still free"
            ) from error

    def _read_adapter(self, path_or_dict: str | Path | dict, shown_path: str, options: dict) -> tuple[dict, dict, dict]:
        """Layers, alphas and metadata as diffusers reads them; errors as of `load_lora_weights`."""
        names = path_or_dict
        if not isinstance(path_or_dict, dict):
            path_or_dict = find_adapter(path_or_dict)
            names = names_in(Path(path_or_dict), options.get("weight_name"))
        if any("dora_scale" in name for name in names):
            raise ValueError(f"{shown_path} is a DoRA adapter, whose magnitudes cannot be applied; use a LoRA")
        try:
            layers, alphas, metadata = self.lora_state_dict(
                path_or_dict, unet_config=self.unet.config, return_lora_metadata=True, **options
            )
        except (SafetensorError, RuntimeError, KeyError, pickle.UnpicklingError, *HUB_ERRORS) as error:
            if isinstance(path_or_dict, dict) or os.path.isfile(path_or_dict):
                raise ValueError(f"{shown_path} cannot be read as an adapter: {_first_line(error)}") from error
            raise FileNotFoundError(
                f"{shown_path} is no file or folder with an adapter, and the hub gave none ({_first_line(error)}); "
                "give the final/ folder of its training"
            ) from error
        return layers, alphas, metadata

    def set_adapters(self, adapter_names: list[str] | str, adapter_weights=None) -> None:
        """Weigh and activate adapters; arguments as in diffusers. ValueError for weights that are not finite."""
        for weight in adapter_weights if isinstance(adapter_weights, list | tuple) else [adapter_weights]:
            check_weights("adapter_weights", weight)
        super().set_adapters(adapter_names, adapter_weights)

    def fuse_lora(self, components: list[str] | None = None, **kwargs) -> None:
        """Add the active adapters into the UNet's weights; arguments as in diffusers."""
        check_weights("lora_scale", kwargs.get("lora_scale"))
        super().fuse_lora(components or ["unet"], **kwargs)

    def unfuse_lora(self, components: list[str] | None = None, **kwargs) -> None:
        """Take them out again."""
        super().unfuse_lora(components or ["unet"], **kwargs)


def find_adapter(path: str | Path) -> str:
    """``path`` if it is there or can be a hub's ``owner/name``; FileNotFoundError otherwise."""
    text = os.fspath(path)
    if not os.path.exists(text) and (isinstance(path, Path) or not re.fullmatch(r"[\w.-]+/[\w.-]+", text)):
        raise FileNotFoundError(f"there is no adapter at {text}; give the final/ folder of its training")
    return text


def names_in(path: Path, weight_name: str | None = None) -> list[str]:
    """Names of the tensors of an adapter that lies here in a safetensors file; none of others.

    Warns where the folder is that of a concept, of which the UNet's adapter alone is no more than half.
    """
    if path.is_dir():
        if (path / EMBEDDING_FILE).is_file():
            warnings.warn(
                f"{path} is a concept; its word is left out: load it by load_concept (--concept)", stacklevel=4
            )
        path = path / (weight_name or WEIGHTS_FILE)
    if path.suffix != ".safetensors" or not path.is_file():
        return []
    try:
        with safe_open(path, framework="pt") as file:
            return list(file.keys())
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read as an adapter: {_first_line(error)}") from error


def check_adapter_name(name: str | None) -> None:
    """ValueError unless ``name`` can be an adapter's in peft, which makes a module of that name; None: it chooses."""
    check_kind("adapter_name", name, (str, type(None)), "a text, or None")
    if name is not None and (not name or "." in name or hasattr(nn.ModuleDict(), name)):
        raise ValueError(f"adapter_name must be a word without dots that torch's modules do not use, got {shown(name)}")


def check_weights(name: str, weight) -> None:
    """ValueError unless ``weight`` is a finite number, None, or such ones by part, as diffusers takes them."""
    for value in weight.values() if isinstance(weight, dict) else [weight]:
        if isinstance(value, dict | list | tuple):
            for one in value if not isinstance(value, dict) else value.values():
                check_weights(name, one)
        elif value is not None:
            check_number(name, value)


def misfit(layers: dict[str, Tensor], unet: UNet2DConditionModel) -> str | None:
    """What of an adapter's ``layers``, named ``unet.MODULE.lora_A.weight``, cannot be applied to ``unet``; or None.

    diffusers' older names are known, and the factors of LoKr are only held to the UNet's modules.
    """
    layers = {name.removeprefix("unet."): value for name, value in layers.items()}
    if "lora_A" not in next(iter(layers)) and not any(".lokr_" in name for name in layers):
        layers = convert_unet_state_dict_to_peft(layers)
    modules, pairs = dict(unet.named_modules()), {}
    for name, value in layers.items():
        module, _, factor = name.partition(".lora_") if ".lora_" in name else name.partition(".lokr_")
        if not factor:
            return f"{name} is no layer of an adapter that can be applied"
        if module not in modules:
            return f"the UNet has no layer {module}"
        if not torch.isfinite(value).all():
            return f"{name} holds NaN or infinity"
        if ".lora_" in name:
            pairs.setdefault(module, {})[factor] = value
    for module, factors in pairs.items():
        if missing := {"A.weight", "B.weight"} - factors.keys():
            return f"{module} lacks lora_{min(missing)}, half of a pair"
        if unknown := factors.keys() - {"A.weight", "B.weight", "B.bias"}:
            return f"lora_{min(unknown)} of {module} cannot be applied"
        if any(factor.ndim < 2 for factor in (factors["A.weight"], factors["B.weight"])):
            return f"the factors of {module} are no matrices"
        if (rank := len(factors["A.weight"])) != (other := factors["B.weight"].shape[1]):
            return f"the factors of {module} are of ranks {rank} and {other}"
    return None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


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
    if vector is None:
        return
    if vector.shape != (size,):
        learned = len(vector) if vector.ndim == 1 else tuple(vector.shape)
        raise ValueError(f"{name} was learned for words of size {learned}, this CLAP's have {size}")
    if not vector.is_floating_point() or not torch.isfinite(vector).all():
        raise ValueError(f"the word vector of {name} is not of finite numbers; train the concept again")


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
    try:
        words = load_file(file)
    except SafetensorError as error:
        raise ValueError(f"{file} cannot be read as a concept's word: {_first_line(error)}") from error
    if len(words) != 1:
        raise ValueError(f"{file} holds {len(words)} words ({shown(sorted(words))}), a concept is one")
    ((name, vector),) = words.items()
    if pipeline.text_encoder is None or pipeline.tokenizer is None:
        raise ValueError("a concept is a word for text_encoder and tokenizer, and the pipeline lacks one of them")
    adapter = name.strip("<>")
    check_word(pipeline.text_encoder, pipeline.tokenizer, name, vector)
    before = pipeline.get_active_adapters()
    pipeline.load_lora_weights(file.with_name(WEIGHTS_FILE), adapter_name=adapter)
    pipeline.unet.set_adapter([*before, adapter])  # the pipeline's own method would give all of them the weight 1
    add_word(pipeline.text_encoder, pipeline.tokenizer, name, vector)
    return name
