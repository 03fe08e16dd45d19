"""Training of the four parts: variational autoencoder, vocoder, CLAP and diffusion model; and of concepts."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from musicldm.config import STAGES, find_config, load_config


def run(
    stage: str,
    config: str | Path | None,
    data: str | Path,
    out: str | Path,
    resume: bool = False,
    overrides: Sequence[str] = (),
) -> Path:
    """Train ``stage`` (vae, vocoder, clap, diffusion or concept) on the collection ``data``; returns ``OUT/final``.

    Leaves ``OUT/checkpoint-N/`` while it runs and ``OUT/final/`` in diffusers layout when done. ``resume`` continues
    from the newest checkpoint of the same configuration. ``config`` is a YAML file or the name of a bundled size.

    Raises:
        ValueError: unknown stage, wrong configuration, or ``OUT`` holds another run.
        FileNotFoundError: no configuration file or no recordings.
    """
    if stage not in STAGES:
        raise ValueError(f"stage must be one of {', '.join(STAGES)}, got {stage!r}")
    from accelerate.utils import set_seed

    file = None if config is None else find_config(config, stage)
    settings = load_config(STAGES[stage], file, overrides)
    set_seed(settings.seed)  # for the first weights; everything later is drawn by step or item
    return import_module(f"musicldm.train.{stage}").train(settings, Path(data), Path(out), resume=resume)
