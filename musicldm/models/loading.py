"""From a name to the parts of a pipeline: bundled models, folders and the hub.

    name or path -> folder on disk -> model_index.json -> {part: module}, each read by its own public class

A folder that cannot give a whole model is refused with the folder, the part and the way out.
"""

import importlib
import json
import os
import pickle
import re
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path

import torch
from diffusers import AutoencoderKL, SchedulerMixin, UNet2DConditionModel
from diffusers.utils import logging
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError, safe_open
from transformers import AutoTokenizer, ClapFeatureExtractor, ClapModel, PreTrainedTokenizerBase, SpeechT5HifiGan
from transformers.tokenization_utils_base import VERY_LARGE_INTEGER

from musicldm.models.context import expecting_context
from musicldm.models.original.checkpoint import OriginalCheckpoint, original_feature_extractor
from vocoder import install_matching

logger = logging.get_logger("diffusers.pipelines.pipeline_utils")  # as set by diffusers.utils.logging

PARTS = {
    "vae": AutoencoderKL,
    "text_encoder": ClapModel,
    "tokenizer": PreTrainedTokenizerBase,
    "feature_extractor": ClapFeatureExtractor,
    "unet": UNet2DConditionModel,
    "scheduler": SchedulerMixin,
    "vocoder": SpeechT5HifiGan,
}
OPTIONAL_PARTS = ("text_encoder", "tokenizer", "feature_extractor")
INDEX = "model_index.json"
# A file of weights, whole or the first of several, of a variant or of none: NAME[.VARIANT][-00001-of-00002].safetensors
WEIGHTS = re.compile(
    r"(diffusion_pytorch_model|pytorch_model|model)(?:\.(?P<variant>[^.]+?))?(-0+1-of-\d+)?\.(safetensors|bin)"
)
REPAIR = "save or download the model again, or take a complete one such as 'mini'"

# The hub's client changes its HTTP library from version to version; the base of its own error is that library's.
HUB_ERRORS = (OSError, ValueError, *HfHubHTTPError.__bases__)

TokenizerSource = PreTrainedTokenizerBase | str | os.PathLike | None  # an object, a folder, a name on the hub
ROBERTA, ROBERTA_PIECES = "roberta-base", 50265  # the tokenizer of the released CLAP
RELEASED_WIDTHS = [128, 256, 384, 640]
RELEASED_HEADS = [4, 8, 12, 20]  # 32 channels each


def bundled_models() -> dict[str, Path]:
    """Names of the models that the package carries, with their folders."""
    root = Path(str(resources.files("musicldm"))) / "pretrained"
    return {path.parent.name: path.parent for path in sorted(root.glob(f"*/{INDEX}"))}


def find_folder(name_or_path: str | os.PathLike, download: Callable[[str], str]) -> Path:
    """The model's folder: of a bundled model's name, a folder's path, or ``owner/name`` on the hub.

    ``download`` fetches a hub name and returns a folder (`DiffusionPipeline.download`). A bundled name wins over a
    folder of the same name (write ``./mini`` for that) and is never looked up on the hub.

    Raises:
        ValueError: for a name that is none of the three.
        FileNotFoundError: for a path that does not exist.
        OSError: if the hub cannot be reached or lacks the name.
    """
    name, bundled = os.fspath(name_or_path), bundled_models()
    if name in bundled:
        return bundled[name]
    if os.path.isdir(name):
        return Path(name)
    known = f"bundled models: {', '.join(bundled) or 'none in this installation'}"
    if os.path.exists(name):
        raise ValueError(f"{name!r} is a file, not a model folder ({known}); use from_original for a checkpoint file")
    if not isinstance(name_or_path, str) or name.startswith((".", "~", os.sep)) or name.count("/") > 1:
        raise FileNotFoundError(f"there is no model folder {name!r} ({known})")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise ValueError(f"{name!r} is no bundled model, no folder and no hub name of the form owner/name ({known})")
    try:
        return Path(download(name))
    except HUB_ERRORS as error:
        raise OSError(
            f"{name!r} is no bundled model and no folder, and the hub gave no such model: {one_line(error)} ({known})"
        ) from error


def read_index(folder: Path, given: Collection[str] = ()) -> dict[str, tuple[str, str]]:
    """``{part: (library, class name)}`` to be read from a model folder: what it has, less the parts already ``given``.

    Raises:
        FileNotFoundError: without a ``model_index.json``.
        ValueError: if that is no index of a MusicLDM model.
    """
    path = folder / INDEX
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is no model folder, it has no {INDEX}: {REPAIR}")
    index = read_json(path)
    parts = {}
    for name in PARTS:
        if name in given or name not in index:
            continue
        if not isinstance(index[name], list) or len(index[name]) != 2:
            raise ValueError(f"{path} must name library and class of {name!r}, got {index[name]!r}: {REPAIR}")
        if index[name][0] is not None:
            parts[name] = tuple(index[name])
    if missing := missing_parts((*parts, *given)):
        raise ValueError(
            f"{folder} holds a {index.get('_class_name', 'model of no class')} without {', '.join(missing)}; "
            "give a MusicLDM folder, or hand the missing parts over as keyword arguments"
        )
    return parts


def missing_parts(found: Iterable[str]) -> list[str]:
    """Names of the parts beside those ``found`` without which there is no music."""
    return [name for name in PARTS if name not in (*found, *OPTIONAL_PARTS)]


def read_json(path: Path) -> dict:
    """The object in a JSON file; ValueError naming the file if it is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}): {REPAIR}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold an object, got {type(content).__name__}: {REPAIR}")
    return content


def part_class(name: str, library: str, class_name: str) -> type:
    """The class that ``model_index.json`` names for a part, if it is one that can play the part."""
    if library in ("diffusers", "transformers"):
        found = getattr(importlib.import_module(library), class_name, None)
        if isinstance(found, type) and issubclass(found, PARTS[name]):
            return found
    raise ValueError(f"{name} is a {library}.{class_name} in {INDEX}; it must be a public {PARTS[name].__name__}")


def load_part(folder: Path, name: str, cls: type, dtype: torch.dtype, variant: str | None = None, **changes):
    """Part ``name`` of a model folder, read by its own class; a network in ``dtype``, complete, ready to run.

    ``changes`` replace entries of a network's configuration, or say which of its weight files to read.

    Raises:
        FileNotFoundError: if the part's folder is missing.
        ValueError: if its files are truncated, are not what the class reads, or leave weights unset.
    """
    path = folder / name
    if not path.is_dir():
        raise FileNotFoundError(f"{folder} lacks its part {name!r} (no folder {path}): {REPAIR}")
    for file in path.glob("*.json"):
        read_json(file)
    if issubclass(cls, torch.nn.Module) and (variant := chosen_variant(path, variant)) is not None:
        changes["variant"] = variant
    try:
        for file in path.glob("*.safetensors"):
            with safe_open(file, framework="pt"):  # reads the header and compares the file's size with it
                pass
        if not issubclass(cls, torch.nn.Module):
            return _with_vocabulary(cls.from_pretrained(path))
        with expecting_context():
            module, report = cls.from_pretrained(path, output_loading_info=True, **changes)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path} cannot be read as {cls.__name__} ({one_line(error)}): {REPAIR}") from error
    if missing := sorted(report["missing_keys"]):
        raise ValueError(
            f"{path} has no weights for {len(missing)} tensors of its {cls.__name__}, such as {missing[0]}: {REPAIR}"
        )
    if cls is SpeechT5HifiGan:
        install_matching(module)
    return torch.nn.Module.to(module, dtype).eval()  # diffusers' own `to` warns of a list that is empty here


def variants_of(path: Path) -> set[str]:
    """Variants in which the weights of a part's folder are there; "" for those of none."""
    found = (WEIGHTS.fullmatch(file.name) for file in path.iterdir())
    return {match["variant"] or "" for match in found if match is not None}


def chosen_variant(path: Path, variant: str | None) -> str | None:
    """The variant to read a part's folder in: ``variant`` if it is there, else none.

    Raises:
        ValueError: if its weights are only there in others.
    """
    found = variants_of(path)
    if found and not {variant or "", ""} & found:
        names = " or ".join(f"variant={name!r}" for name in sorted(found))
        raise ValueError(f"{path} has weights of {names} alone, not of variant={variant!r}; load the model with that")
    return variant if variant in found else None


def check_variant(folder: Path, variant: str | None, names: Iterable[str]) -> None:
    """ValueError unless one of the parts ``names`` of a model folder has weights in ``variant``, with what there is."""
    if variant is None:
        return
    if not isinstance(variant, str) or not variant:
        raise ValueError(f"variant must be a name such as 'fp16', or None, got {variant!r}")
    found = {name: variants_of(folder / name) for name in names if (folder / name).is_dir()}
    if not any(variant in there for there in found.values()):
        known = sorted(set().union(*found.values()) - {""})
        there = f"there are {', '.join(known)}" if known else "its weights are of no variant"
        raise ValueError(f"no part of {folder} has weights of variant={variant!r}; {there}, or leave variant out")


def dtypes_of(torch_dtype: torch.dtype | dict[str, torch.dtype] | None) -> Callable[[str], torch.dtype]:
    """The dtype of a part by its name; ``torch_dtype`` as of `MusicLDMPipeline.from_pretrained`.

    Raises:
        ValueError: for a dtype that networks cannot have, or a name that is no part.
    """
    by_part = torch_dtype if isinstance(torch_dtype, dict) else {"default": torch_dtype}
    if unknown := [name for name in by_part if name not in (*PARTS, "default")]:
        raise ValueError(f"torch_dtype names {unknown}; the parts are {', '.join(PARTS)}, and default for all others")
    for dtype in by_part.values():
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise ValueError(f"torch_dtype must be one floating point torch.dtype for all parts, got {dtype!r}")
    return lambda name: by_part.get(name, by_part.get("default", torch.float32))


def _with_vocabulary(part):
    """``part``, unless it is a tokenizer that transformers made up because its files are missing."""
    if isinstance(part, PreTrainedTokenizerBase) and len(part) <= len(part.all_special_ids):
        raise ValueError("there is no vocabulary")
    return part


def one_line(error: Exception) -> str:
    """What ``error`` says, without line breaks."""
    return " ".join(str(error).split())


def load_parts(
    folder: Path,
    given: dict,
    torch_dtype: torch.dtype | dict[str, torch.dtype],
    legacy_heads: bool = False,
    variant: str | None = None,
    use_safetensors: bool | None = None,
) -> dict:
    """All parts of a model folder, networks in ``torch_dtype``, one or by part; those ``given`` as they are.

    Optional ones are None if absent.

    Raises:
        ValueError: for a dtype that networks cannot have, a variant that is not there, or a folder of no whole model.
    """
    dtype_of, parts = dtypes_of(torch_dtype), dict.fromkeys(OPTIONAL_PARTS) | given
    read = read_index(folder, given)
    check_variant(folder, variant, read)
    for name, (library, class_name) in read.items():
        cls = part_class(name, library, class_name)
        changes = {}
        if use_safetensors is not None:
            changes["use_safetensors"] = use_safetensors
        config_path = folder / name / "config.json"
        heads = head_numbers(read_json(config_path)) if cls is UNet2DConditionModel and config_path.is_file() else None
        if heads is not None and not legacy_heads:
            warnings.warn(
                f"{folder} says 8 attention heads at every level of the UNet, a mistake of its conversion; "
                f"using {heads} as in training (legacy_heads=True keeps 8; saving the pipeline stores the list)",
                stacklevel=3,
            )
            changes["attention_head_dim"] = heads
        parts[name] = load_part(folder, name, cls, dtype_of(name), variant, **changes)
        logger.info("Loaded %s as %s from `%s` subfolder of %s.", name, class_name, name, folder)
    if "tokenizer" in read and parts["text_encoder"] is not None:
        limit_length(parts["tokenizer"], parts["text_encoder"])
    return parts


def limit_length(tokenizer: PreTrainedTokenizerBase, clap: ClapModel) -> None:
    """Let ``model_max_length`` of a tokenizer that has no limit be what its CLAP reads; padding to it is usual."""
    if tokenizer.model_max_length >= VERY_LARGE_INTEGER:
        tokenizer.model_max_length = (
            clap.config.text_config.max_position_embeddings - clap.config.text_config.pad_token_id - 1
        )


def original_parts(checkpoint: OriginalCheckpoint, tokenizer: TokenizerSource = None) -> dict:
    """All parts of a pipeline from the authors' checkpoint; see `MusicLDMPipeline.from_original`."""
    found = found_parts(checkpoint, tokenizer)
    if missing := missing_parts(found):
        raise ValueError(
            f"the checkpoint holds {', '.join(found) or 'no part'}, but music also needs {', '.join(missing)}; "
            "give the full checkpoint, or build a pipeline from the parts that load_original finds in several files"
        )
    return dict.fromkeys(OPTIONAL_PARTS) | found


def found_parts(checkpoint: OriginalCheckpoint, tokenizer: TokenizerSource = None) -> dict:
    """Those parts of a pipeline that a checkpoint in its authors' layout holds; with CLAP also what feeds it.

    The tokenizer is None where there is none; errors as of `MusicLDMPipeline.from_original`.
    """
    found = checkpoint.load()
    clap = found.pop("clap", None)
    if clap is None:
        return found
    fused = clap.config.audio_config.enable_fusion
    return found | {
        "text_encoder": clap,
        "tokenizer": find_tokenizer(tokenizer, clap.config.text_config.vocab_size),
        "feature_extractor": original_feature_extractor(checkpoint.clap_config, fused),
    }


def find_tokenizer(tokenizer: TokenizerSource, vocab_size: int) -> PreTrainedTokenizerBase | None:
    """A tokenizer for a text tower of ``vocab_size`` pieces: an object, a folder's, or one from the hub.

    None stands for RoBERTa's if the vocabulary is of its size. Where the hub and its cache lack that, the result is
    None, with a warning.

    Raises:
        OSError: if the tokenizer asked for cannot be read.
        ValueError: if it has more pieces than the text tower.
    """
    if tokenizer is None:
        if vocab_size != ROBERTA_PIECES:
            return None
        try:
            tokenizer = find_tokenizer(ROBERTA, vocab_size)
        except OSError as error:
            warnings.warn(f"the pipeline will take no prompts, only prompt_embeds: {error}", stacklevel=5)
            return None
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        folder = Path(tokenizer)
        if not folder.is_dir():
            try:  # fails at once without a network, where the tokenizer classes try again and again
                folder = snapshot_download(os.fspath(tokenizer), allow_patterns=["*.json", "*.txt"])
            except HUB_ERRORS as error:
                raise OSError(
                    f"the tokenizer {tokenizer!s} is no folder, and the hub gave none ({one_line(error)}); "
                    "give a folder with one"
                ) from error
        try:
            tokenizer = _with_vocabulary(AutoTokenizer.from_pretrained(folder))
        except (OSError, ValueError) as error:
            raise OSError(f"{folder} holds no tokenizer that can be read: {one_line(error)}") from error
    if len(tokenizer) > vocab_size:
        raise ValueError(
            f"the tokenizer has {len(tokenizer)} pieces, CLAP's text tower knows {vocab_size}; "
            "give the tokenizer that CLAP was trained with"
        )
    return tokenizer


@contextmanager
def listed_heads(unet: UNet2DConditionModel) -> Iterator[None]:
    """While inside, the UNet's configuration lists its head numbers level by level, as it is to be saved."""
    heads = unet.config.attention_head_dim
    try:
        if isinstance(heads, int):
            unet.register_to_config(attention_head_dim=[heads] * len(unet.config.block_out_channels))
        yield
    finally:
        unet.register_to_config(attention_head_dim=heads)


def head_numbers(unet_config: dict) -> list[int] | None:
    """The released model's head numbers where a UNet's configuration is that model's with 8 everywhere, else None.

    The published conversion to diffusers names no number of heads, so that the class's default of 8 applied to every
    level. The model was trained with heads of 32 channels.
    """
    is_released = unet_config.get("class_embeddings_concat") is True and (
        list(unet_config.get("block_out_channels") or []) == RELEASED_WIDTHS
    )
    says_eight = unet_config.get("attention_head_dim") in (None, 8) and unet_config.get("num_attention_heads") is None
    return RELEASED_HEADS if is_released and says_eight else None
