"""How music is made, whatever its prompt and seed, and the sketch of a score that it follows.

This module imports nothing large.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, fields
from numbers import Real
from pathlib import Path

from musicldm.config.values import check_kind, check_number, check_text, check_whole, shown
from musicldm.sampling.schedulers import GUIDANCE, GUIDANCE_INTERVAL, SAMPLER, SCHEDULERS, STEPS
from musicldm.scores.packing import pack, unpack
from musicldm.scores.sketches import Sketch

MOST_CANDIDATES = 1000


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How music is made, whatever its prompt and seed.

    Raises:
        ValueError: naming the first value that cannot be used, and what can.
    """

    seconds: float | None = None  # None: the length that the model was trained on
    steps: int = STEPS  # of the sampler
    guidance: float = GUIDANCE  # how strongly to follow the prompt; up to 1 not at all
    guidance_interval: tuple[float, float] = GUIDANCE_INTERVAL  # the least and the most noise at which it is guided
    negative: str = ""  # what the music should not be like
    candidates: int | None = (
        None  # for each prompt, of which the one that fits it best is kept; None: 1, or 16 for a tempo
    )
    scheduler: str = SAMPLER  # a name in `musicldm.sampling.schedulers.SCHEDULERS`
    lora: tuple[str, ...] | None = None  # folders of adapters, each ``FOLDER`` or ``FOLDER:WEIGHT``
    concept: tuple[str, ...] | None = None  # folders of concepts, likewise
    novelty: str | None = None  # report, avoid or least_similar: how music is compared with the training set
    index: str | None = None  # folder of the index to compare with; None: the one that the model carries
    max_similarity: float | None = None  # cosine that is too near; None: what 1 % of other music exceeds

    def __post_init__(self):
        for name in ("guidance_interval", "lora", "concept"):  # recipes have lists
            if isinstance(value := getattr(self, name), list | tuple):
                object.__setattr__(self, name, tuple(str(one) if isinstance(one, Path) else one for one in value))
        if isinstance(self.index, Path):
            object.__setattr__(self, "index", str(self.index))
        if self.seconds is not None:
            check_above("seconds", self.seconds)
        check_whole("steps", self.steps)
        check_number("guidance", self.guidance)
        shares = self.guidance_interval
        pair = isinstance(shares, tuple) and len(shares) == 2 and all(_is_number(share) for share in shares)
        if not pair or not 0 <= shares[0] <= shares[1] <= 1:
            raise ValueError(f"guidance_interval must be two shares of the noise from 0 to 1, got {shown(shares)}")
        check_text("negative", self.negative)
        if self.candidates is None:
            object.__setattr__(self, "candidates", 1)
        check_whole("candidates", self.candidates, 1, MOST_CANDIDATES)
        if not isinstance(self.scheduler, str) or self.scheduler not in SCHEDULERS:
            raise ValueError(f"unknown scheduler {shown(self.scheduler)}; choose one of {', '.join(SCHEDULERS)}")
        for name in ("lora", "concept"):
            folders = getattr(self, name)
            if not isinstance(folders, tuple | None) or not all(isinstance(one, str) for one in folders or ()):
                raise ValueError(f"{name} must be a list of folders, got {shown(folders)}")
        self._check_novelty()

    def _check_novelty(self) -> None:
        if self.novelty is None:
            for name, what in (("index", "what it finds"), ("max_similarity", "what is nearer")):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name} is for novelty (--novelty), which says what to do with {what}")
            return
        from musicldm.novelty.guard import MODES

        if self.novelty not in MODES:
            raise ValueError(f"novelty must be one of {', '.join(MODES)}, got {shown(self.novelty)}")
        check_kind("index", self.index, (str, type(None)), "the folder of an index, or None")
        if self.max_similarity is not None:
            check_number("max_similarity", self.max_similarity)
            if not -1 <= self.max_similarity <= 1:
                raise ValueError(f"max_similarity is a cosine from -1 to 1, got {self.max_similarity}")

    @property
    def settings(self) -> Settings:
        """These alone, of a `Request` too."""
        return Settings(**{field.name: getattr(self, field.name) for field in fields(Settings)})


@dataclass(frozen=True, kw_only=True)
class ContextSettings(Settings):
    """The same, with a sketch that is followed.

    ``context`` may be given as a `Sketch`; it is kept as text, from which recipes remake it to the bit.
    """

    context: Sketch | str | None = None  # a sketch, as `musicldm.scores.packing.pack` writes it
    context_guidance: float = 1.0  # how strongly to follow it; 0 is not at all

    def __post_init__(self):
        super().__post_init__()
        if isinstance(self.context, Sketch):
            object.__setattr__(self, "context", pack(self.context))
        if self.context is not None:
            try:
                unpack(self.context)
            except ValueError as error:
                raise ValueError(f"context must be a Sketch, or None: {error}") from error
        check_number("context_guidance", self.context_guidance, 0)

    @property
    def sketch(self) -> Sketch | None:
        """What is followed."""
        return unpack(self.context) if isinstance(self.context, str) else self.context


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def check_above(name: str, value: float) -> None:
    if not _is_number(value) or not 0 < value <= sys.float_info.max:
        raise ValueError(f"{name} must be a finite number above 0, got {shown(value)}")
