"""Reading checkpoint files from elsewhere: safetensors and torch pickles, the latter without running their code."""

import pickle
import re
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor


class Ignored:
    """Stands for an object beside the weights (a metric, a training option); its content is dropped unread."""

    def __new__(cls, *args):
        return super().__new__(cls)

    def __setstate__(self, state):
        pass


def _plain_dict(*default_factory) -> dict:
    """The unpickler fills plain dictionaries only; a missing-key rule means nothing to a checkpoint."""
    return {}


# What real checkpoints hold beside tensors, by the names in their pickles; nothing here runs foreign code.
ALLOWED = [
    (_plain_dict, "collections.defaultdict"),
    (dict, "pytorch_lightning.utilities.parsing.AttributeDict"),
    (dict, "lightning_fabric.utilities.data.AttributeDict"),
    (dict, "lightning.fabric.utilities.data.AttributeDict"),
    *[
        (Ignored, name)
        for name in (
            "numpy.core.multiarray.scalar",  # NumPy < 2
            "numpy._core.multiarray.scalar",  # NumPy >= 2
            "numpy.core.multiarray._reconstruct",
            "numpy._core.multiarray._reconstruct",
            "numpy.ndarray",
            "numpy.dtype",
            "pytorch_lightning.callbacks.early_stopping.EarlyStopping",  # Lightning < 1.5 keys its callbacks by class
            "pytorch_lightning.callbacks.lr_monitor.LearningRateMonitor",
            "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
            "omegaconf.base.ContainerMetadata",
            "omegaconf.base.Metadata",
            "omegaconf.dictconfig.DictConfig",
            "omegaconf.listconfig.ListConfig",
            "omegaconf.nodes.AnyNode",
            "omegaconf.nodes.BooleanNode",
            "omegaconf.nodes.FloatNode",
            "omegaconf.nodes.IntegerNode",
            "omegaconf.nodes.StringNode",
            "typing.Any",
            "builtins.bool",
            "builtins.dict",
            "builtins.float",
            "builtins.int",
            "builtins.list",
            "builtins.str",
            "builtins.tuple",
        )
    ],
]


def read_file(path: str | Path) -> Any:
    """The content of a ``.safetensors`` file or a torch pickle (zip or legacy), on the CPU, memory-mapped if possible.

    Raises:
        FileNotFoundError, OSError: if the file cannot be opened.
        ValueError: if it is no checkpoint, truncated, or holds objects that are not on the allow-list.
    """
    path = Path(path)
    with path.open("rb") as file:  # an honest OSError first: the readers below report unreadable files in several ways
        beginning = file.read(4)
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        is_zip = zipfile.is_zipfile(path)
        if beginning == b"PK\x03\x04" and not is_zip:
            raise EOFError("its end is missing")
        known = torch.serialization.get_safe_globals()
        with torch.serialization.safe_globals([entry for entry in ALLOWED if entry not in known]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError as error:
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if refused is None:
            raise ValueError(f"{path} is truncated or no checkpoint: its pickle cannot be read") from error
        raise ValueError(
            f"{path} is refused: it asks to load {refused[1]}, which is not needed for weights and could run code. "
            "Save its state_dict alone, as safetensors, where you trust it"
        ) from error
    except (
        SafetensorError,
        zipfile.BadZipFile,
        struct.error,
        AssertionError,
        AttributeError,
        EOFError,
        LookupError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:  # what damaged bytes make of the unpickler and of the readers of zip files and safetensors
        says_why = isinstance(error, SafetensorError | zipfile.BadZipFile | EOFError | RuntimeError) and str(error)
        reason = str(error).splitlines()[0] if says_why else "its pickle cannot be read"
        raise ValueError(f"{path} is truncated or no checkpoint: {reason}") from error


def find_tensors(checkpoint: Any, origin: str) -> dict[str, Tensor]:
    """The state dictionary inside ``checkpoint``: itself, or what it holds under ``state_dict`` or ``generator``.

    A ``module.`` before every name (data-parallel training) is taken off.
    """
    for _ in range(2):  # Lightning and LAION: state_dict; HiFi-GAN: generator
        if isinstance(checkpoint, Mapping):
            checkpoint = next((checkpoint[key] for key in ("state_dict", "generator") if key in checkpoint), checkpoint)
    if not isinstance(checkpoint, Mapping) or not checkpoint:
        raise ValueError(f"{origin} holds {type(checkpoint).__name__} instead of named tensors: it is no checkpoint")
    if strange := [
        key for key, value in checkpoint.items() if not isinstance(key, str) or not isinstance(value, Tensor)
    ]:
        raise ValueError(
            f"{origin} holds {len(strange)} entries that are no named tensors, first {strange[:3]}: it is no checkpoint"
        )
    if all(key.startswith("module.") for key in checkpoint):
        return {key.removeprefix("module."): value for key, value in checkpoint.items()}
    return dict(checkpoint)
