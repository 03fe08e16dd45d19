"""Configurations as files: found by name, read with overrides, written, compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from musicldm.audio.output import write_whole

T = TypeVar("T")


def load_config(schema: type[T], path: str | Path | None = None, overrides: Sequence[str] = ()) -> T:
    """Dataclass defaults, then the YAML file, then ``key=value`` overrides (``mel.n_mels=80`` reaches inside).

    Raises:
        ValueError: a file that is no YAML, a key that the stage does not have or that is there twice, or a value of the
            wrong type or out of range; the message names the key, and the file or override that it comes from.
        FileNotFoundError: no such file.
    """
    if bad := [override for override in overrides if not override.partition("=")[0] or "=" not in override]:
        raise ValueError(f"overrides are written key=value, got {bad[0]!r}")
    if path is not None and not Path(path).is_file():
        raise FileNotFoundError(f"no configuration file at {path}")
    config = OmegaConf.structured(schema)
    if path is not None:
        config = _merged(config, lambda: _read_yaml(Path(path)), str(path))
    for override in overrides:
        config = _merged(config, lambda: OmegaConf.from_dotlist([_as_words(override)]), override)  # noqa: B023
    try:
        return OmegaConf.to_object(config)
    except (ValueError, OmegaConfBaseException) as error:
        reason = _reason(error)
        key = reason.partition(" ")[0].rstrip(":")
        known = [f.name for f in fields(cast(Any, schema))]
        inner = {f.name: f"{name}.{f.name}" for name in known for f in _fields_of(config, name)}
        if key not in known and key in inner:
            reason, key = reason.replace(key, inner[key], 1), inner[key]
        given = {override.partition("=")[0] for override in overrides}
        raise ValueError(reason if path is None or key in given else f"{path}: {reason}") from error


def _fields_of(config: DictConfig, name: str) -> tuple:
    """The fields of the dataclass in the field ``name`` of ``config``; none of anything else."""
    kind = OmegaConf.get_type(config, name)
    return fields(kind) if is_dataclass(kind) else ()


def _read_yaml(path: Path) -> DictConfig:
    """The mapping in the file ``path``."""
    content = OmegaConf.load(path)
    if not isinstance(content, DictConfig):
        raise ValueError("a configuration is lines of `key: value`")
    return content


def _merged(config: DictConfig, read: Callable[[], DictConfig], source: str) -> DictConfig:
    """``config`` with what ``read`` returns; ValueError that names ``source`` and the key if that does not go."""
    content = {}
    try:
        content = read()
        return OmegaConf.merge(config, content)
    except UnicodeDecodeError as error:
        raise ValueError(f"{source} is not a text in UTF-8 ({error.reason} at byte {error.start})") from error
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        place = f", line {mark.line + 1}" if mark is not None and Path(source).is_file() else ""
        raise ValueError(f"{source}{place}: {problem or str(error).splitlines()[0]}") from error
    except (ValueError, OSError, OmegaConfBaseException) as error:
        reason = _reason(error)
        if Path(source).is_file() and not getattr(error, "full_key", None):  # which OmegaConf does not always say
            for key in content:
                _merged(config, lambda: OmegaConf.masked_copy(content, key), f"{source}: {key}")  # noqa: B023
        raise ValueError(f"{source}: {reason}") from error


def _reason(error: Exception) -> str:
    """What is wrong, with the key."""
    reason = str(error).splitlines()[0].replace("Value '$VALUE' of type '$VALUE_TYPE'", "one of its values")
    key = getattr(error, "full_key", None)
    return reason if not key or f"'{key}'" in reason else f"{key}: {reason}"


def _as_words(override: str) -> str:
    """``override`` in which no, off, yes and on stay words; YAML takes them for truth values, whatever the field."""
    key, _, value = override.partition("=")
    return f"{key}='{value}'" if value in ("no", "off", "yes", "on") else override


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
    """The file at the path ``name``, or the bundled configuration of ``stage`` if ``name`` is mini, original, ...

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
