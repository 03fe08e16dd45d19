"""What is installed and at work: versions, devices, models, attention, beat tracker."""

from __future__ import annotations

import hashlib
import platform
from importlib import metadata
from pathlib import Path

from musicldm._version import __version__

PACKAGES = ("torch", "diffusers", "transformers", "numpy")
OPTIONAL_PACKAGES = ("accelerate", "speechbrain", "madmom", "beat_this", "librosa", "tinysoundfont", "laion-clap")
DTYPES = ("auto", "float32", "float16", "bfloat16")
MADMOM_LICENCE = "madmom's model files are licensed CC BY-NC-SA 4.0: not for commercial use"


def package_versions() -> dict[str, str]:
    """Versions of Python, this package and those that music depends on."""
    return {
        "musicldm": __version__,
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in PACKAGES},
    }


def model_revision(folder: str | Path) -> str:
    """12 hexadecimal digits that change with any file of a model folder, and with nothing else."""
    digest = hashlib.sha256()
    for path in sorted(path for path in Path(folder).rglob("*") if path.suffix in (".json", ".safetensors", ".bin")):
        with path.open("rb") as file:
            digest.update(path.relative_to(folder).as_posix().encode() + b"\0")
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:12]


def context_kinds(folder: str | Path) -> tuple[str, ...]:
    """Kinds of context that the model in ``folder`` takes, by its UNet's configuration; empty if it takes none.

    Raises:
        FileNotFoundError: if it has no UNet.
        ValueError: if its configuration is no JSON object.
    """
    from musicldm.models.loading import read_json

    entry = read_json(Path(folder) / "unet" / "config.json").get("context")
    return tuple(entry["kinds"]) if isinstance(entry, dict) and isinstance(entry.get("kinds"), list) else ()


def describe_model(name: str, folder: str | Path) -> dict:
    """What `musicldm info` says of the model in ``folder``: its revision, sound, and the contexts that it takes.

    Raises:
        OSError: if it is no model folder.
        ValueError: if a part of it is damaged.
    """
    from musicldm.models.loading import read_index, read_json

    folder = Path(folder)
    read_index(folder)
    vocoder = read_json(folder / "vocoder" / "config.json")
    mel = vocoder.get("mel") or {}
    return {
        "model": name,
        "folder": str(folder),
        "revision": model_revision(folder),
        "sampling_rate": vocoder.get("sampling_rate"),
        "channels": mel.get("audio_channels", 1),
        "context_kinds": list(context_kinds(folder)),
    }


def choose_device(name: str):
    """The torch device called ``name``; "auto" is the fastest there is.

    Raises:
        ValueError: if it is not known or not here.
    """
    import torch

    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # one each for names, CUDA and the others
        reason = str(error).splitlines()[0]
        raise ValueError(f"there is no device {name!r} here ({reason}); use --device cpu, or auto") from error
    return device


def choose_dtype(name: str, device=None):
    """The torch dtype called ``name``; "auto" is float16 where ``device`` is of CUDA, float32 elsewhere.

    Raises:
        ValueError: if it is not one of `DTYPES`.
    """
    import torch

    if name not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {name!r}")
    if name == "auto":
        name = "float16" if device is not None and device.type == "cuda" else "float32"
    return getattr(torch, name)


def environment() -> dict:
    """Everything that a report of a problem should hold."""
    import torch

    from musicldm.kernels import dot_product as attention
    from musicldm.models.loading import bundled_models

    return {
        "versions": package_versions() | {name: _version(name) for name in OPTIONAL_PACKAGES},
        "platform": platform.platform(),
        "devices": _devices(torch),
        "threads": torch.get_num_threads(),
        "models": {name: model_revision(folder) for name, folder in bundled_models().items()},
        "attention": attention.describe(),
        "beat_tracker": _beat_tracker(),
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _devices(torch) -> list[str]:
    names = [f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        names.append("mps")
    return [*names, f"cpu ({platform.processor() or platform.machine()})"]


def _beat_tracker() -> str:
    if version := _version("madmom"):
        return f"madmom {version} ({MADMOM_LICENCE})"
    return "none: madmom is not installed, run `make beats`"
