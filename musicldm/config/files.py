"""Configurations as files: found by name, read with overrides, written, compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from musicldm.audio import write_whole

T = TypeVar("T")


def load_config(schema: type[T], path: str | Path | None = None, overrides: Sequence[str] = ()) -> T:
    """Dataclass defaults, then the YAML file, then ``key=value`` overrides (``mel.n_mels=80`` reaches inside).

    Raises:
        ValueError: a key that the stage does not have, or a value of the wrong type or out of range.
        FileNotFoundError: no such file.
    """
    if bad := [override for override in overrides if "=" not in override]:
        raise ValueError(f"overrides are written key=value, got {bad[0]!r}")
    if path is not None and not Path(path).is_file():
        raise FileNotFoundError(f"no configuration file at {path}")
    try:
        changes = ([] if path is None else [OmegaConf.load(path)]) + [OmegaConf.from_dotlist(_as_words(overrides))]
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), *changes))
    except OmegaConfBaseException as error:
        raise ValueError(f"{'the overrides' if path is None else path}: {str(error).splitlines()[0]}") from error


def _as_words(overrides: Sequence[str]) -> list[str]:
    """``overrides`` in which no, off, yes and on stay words; YAML takes them for truth values, whatever the field."""
    pairs = (override.partition("=") for override in overrides)
    return [f"{key}='{value}'" if value in ("no", "off", "yes", "on") else f"{key}={value}" for key, _, value in pairs]


def configs_folder(package: Path = Path(__file__).parents[1]) -> Path:
    """The folder of bundled configurations: inside an installed ``package``, beside it in a checkout.

    Raises:
        FileNotFoundError: neither is there.
    """
    folders = [package / "configs", package.parent / "configs"]
    for folder in folders:
        if (folder / "original").is_dir():
            return folder
    raise FileNotFoundError(f"no bundled configurations in {' or '.join(map(str, folders))}: install the package again")


def find_config(name: str | Path, stage: str) -> Path:
    """The file at the path ``name``, or the bundled configuration of ``stage`` if ``name`` is original, mini or tiny.

    Raises:
        FileNotFoundError: neither, with the bundled names.
    """
    bundled = {folder.name: folder for folder in configs_folder().iterdir() if folder.is_dir()}
    bundled = {size: folder for size, folder in bundled.items() if (folder / f"{stage}.yaml").is_file()}
    if Path(name).is_file():
        return Path(name)
    if str(name) in bundled:
        return bundled[str(name)] / f"{stage}.yaml"
    raise FileNotFoundError(f"no configuration file at {name}, and none of the bundled {', '.join(sorted(bundled))}")


def save_config(config: object, path: Path) -> None:
    """Write ``config`` as YAML that `load_config` reads back, all of it or nothing."""
    write_whole(path, OmegaConf.to_yaml(OmegaConf.structured(config)).encode())


def differences(old: Any, new: Any, prefix: str = "") -> list[str]:
    """``key: old value -> new value`` of every field in which two configs of one kind differ."""
    lines = []
    for f in fields(old):
        before, after = getattr(old, f.name), getattr(new, f.name)
        if is_dataclass(before):
            lines += differences(before, after, f"{prefix}{f.name}.")
        elif before != after:
            lines.append(f"{prefix}{f.name}: {before} -> {after}")
    return lines
