"""Training of the four parts: variational autoencoder, vocoder, CLAP and diffusion model; and of concepts."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path

from musicldm.config import STAGES, TrainConfig, find_config, load_config


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
        BlockingIOError: another process trains in ``OUT``.
        FileNotFoundError: no configuration file or no recordings.
    """
    if stage not in STAGES:
        raise ValueError(f"stage must be one of {', '.join(STAGES)}, got {stage!r}")
    file = None if config is None else find_config(config, stage)
    return run_stage(load_config(STAGES[stage], file, overrides), data, out, resume)


def run_stage(config: TrainConfig, data: str | Path, out: str | Path, resume: bool = False) -> Path:
    """`run` the stage of ``config``."""
    from accelerate.utils import set_seed

    from musicldm.audio.output import sole_writer
    from musicldm.data.collection import Collection
    from musicldm.train.common import make_accelerator
    from musicldm.train.run_folder import Run

    (stage,) = (name for name, kind in STAGES.items() if type(config) is kind)
    collection = Collection(data)
    set_seed(config.seed)  # for the first weights; everything later is drawn by step or item
    module = import_module(f"musicldm.train.{stage}")
    accelerator = make_accelerator(config, Path(out))
    with sole_writer(Path(out), f"train {stage}") if accelerator.is_main_process else nullcontext():
        return module.train(Run(config, Path(out), accelerator, resume), collection)
