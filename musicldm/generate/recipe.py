"""Requests for music, and the recipe that every piece carries: from it the same piece can be made again.

    Request (prompt, seed, settings) -> Session -> Piece with a recipe: the request, the model and what was found

This module is the one place that names the fields of a recipe. It imports nothing large.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterable
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path

from musicldm.audio import read_recipe
from musicldm.config.values import check_kind, check_text, check_whole, shown
from musicldm.generate.environment import DTYPES
from musicldm.generate.metre import (
    METER,
    TEMPO_CANDIDATES,
    Take,
    beats_of,
    check_bars,
    check_bpm,
    check_fits_bars,
    check_tempos,
)
from musicldm.generate.settings import ContextSettings, Settings, check_above

GENERATED_BY = "AI (musicldm)"
HIGHEST_SEED = 2**63 - 1
RANDOM_SEEDS = 1_000_000  # few digits, as they become part of the file's name
EVERYWHERE = (0.0, 1.0)  # where recipes are guided that name no interval


@dataclass(frozen=True)
class Request(ContextSettings):
    """One piece of music that is wanted: ``Request("calm piano", seconds=5, seed=1)``.

    Without a seed a random one is drawn when the piece is made. Music of ``sections`` is as long as they are together;
    its ``prompt`` names it. Music with ``bpm`` is brought to that tempo: of the candidates, which are measured, the
    nearest is taken and stretched by at most 8 %; a model that takes clicks as a context is given them, too. A loop of
    ``bars`` begins on a downbeat. Music with a ``context`` follows the notes of that sketch and is as long as it is
    unless ``seconds`` says otherwise; its time is the sketch's, so that it is measured, but not stretched to a tempo.
    Music ``along`` a recording goes with it, likewise; beside a sketch the longer of both says how long.
    """

    prompt: str
    seed: int | None = None
    loop: bool = field(default=False, kw_only=True)  # the end leads into the beginning
    sections: tuple[tuple[str, float], ...] = field(default=(), kw_only=True)  # prompt and seconds of each in turn
    bpm: float | None = field(default=None, kw_only=True)  # beats a minute, octaves apart
    bars: int | None = field(default=None, kw_only=True)  # of a loop, which they make as long as they are
    meter: str | None = field(default=None, kw_only=True)  # of the bars, by default 4/4; the beats are its notes
    force: bool = field(default=False, kw_only=True)  # take the nearest tempo, however far it is
    take: Take | None = field(default=None, kw_only=True)  # the candidate to make again, instead of choosing one
    along: str | None = field(default=None, kw_only=True)  # the file of a recording that the music goes with
    along_sha256: str | None = field(default=None, kw_only=True)  # of that file; None: whichever it is

    def __post_init__(self):
        check_prompt(self.prompt)
        if self.seed is not None:
            check_whole("seed", self.seed, 0, HIGHEST_SEED)
        check_kind("loop", self.loop, bool, "True or False")
        self._check_tempo()
        super().__post_init__()
        self._check_context()
        object.__setattr__(self, "sections", check_sections(self.sections))
        if self.sections and self.seconds is not None:
            raise ValueError(f"the sections say how long the music is; leave seconds={self.seconds:g} out")
        if self.sections and self.bpm is not None:
            raise ValueError("music in sections cannot be brought to a tempo; leave bpm out")

    def _check_tempo(self) -> None:
        """What needs a tempo or bars has them; bars give their seconds."""
        check_kind("force", self.force, bool, "True or False")
        object.__setattr__(self, "take", Take.of(self.take))
        if self.bpm is None:
            for name in ("bars", "meter", "force", "take"):
                if getattr(self, name) not in (None, False):
                    raise ValueError(f"there is no tempo for {name}={shown(getattr(self, name))}; give bpm (--bpm) too")
            return
        check_bpm(self.bpm)
        if self.candidates is None and not self.keeps_time:
            object.__setattr__(self, "candidates", TEMPO_CANDIDATES)
        if self.loop != (self.bars is not None):
            raise ValueError("a loop at a tempo is counted in bars, and only loops are; give loop and bars, or neither")
        if self.bars is None:
            beats_of(self.meter)
            return
        object.__setattr__(self, "meter", METER if self.meter is None else self.meter)
        seconds = check_bars(self.bpm, self.bars, self.meter)
        if self.seconds not in (None, seconds):
            raise ValueError(f"the bars last {seconds:g} s; leave seconds={shown(self.seconds)} out")
        object.__setattr__(self, "seconds", seconds)

    @property
    def keeps_time(self) -> bool:
        """Whether the music's time is given, by notes or a recording, and not to be changed."""
        return self.context is not None or self.along is not None

    def _check_context(self) -> None:
        """The sketch and the recording go with everything else; a sketch says how long the music is."""
        check_kind("along", self.along, (str, Path, type(None)), "the path of a recording, or None")
        if self.along is not None:
            object.__setattr__(self, "along", str(self.along))
            if self.loop or self.sections:
                what = "a loop" if self.loop else "music in sections"
                raise ValueError(f"{what} cannot be made along with a recording; leave along={shown(self.along)} out")
        check_kind("along_sha256", self.along_sha256, (str, type(None)), "64 hexadecimal digits, or None")
        if self.along is None and self.along_sha256 is not None:
            raise ValueError("along_sha256 is for along, which is not given; give the recording, or leave it out")
        if self.context_guidance != 1 and not self.keeps_time and self.bpm is None:
            raise ValueError(
                "context_guidance is for music that follows something, and there is nothing to follow; give context "
                "(--chords, --midi or --melody), along or bpm, or leave it out"
            )
        if self.sketch is None:
            return
        if self.bpm is not None:
            check_tempos(self.sketch, self.bpm, self.meter)
        if self.bars is not None:
            check_fits_bars(self.sketch, self.bpm, self.bars, self.meter)
        elif self.seconds is None and not self.sections and self.along is None:
            object.__setattr__(self, "seconds", float(self.sketch.seconds))

    @classmethod
    def of_sections(cls, sections: Iterable[tuple[str, float]], seed: int | None = None, **settings) -> Request:
        """The request for music of ``sections`` (prompt, seconds), which is named by their prompts."""
        sections = check_sections(sections)
        return cls("; ".join(prompt for prompt, _ in sections), seed, sections=sections, **settings)

    @classmethod
    def from_recipe(cls, recipe: dict) -> Request:
        """The request that a piece was made of, also by earlier versions, which did not know all settings.

        Raises:
            ValueError: if a field is missing or cannot be.
        """
        return cls(**_taken(cls, complete(recipe)))

    @classmethod
    def for_prompts(cls, prompts: Iterable[str], seed: int | None = None, **settings) -> list[Request]:
        """A request for each prompt; that of prompt i has the seed ``seed + i * candidates``."""
        requests = [cls(prompt, **settings) for prompt in prompts]
        seed = random_seed() if seed is None else seed
        return [replace(request, seed=seed + i * request.candidates) for i, request in enumerate(requests)]


# What a recipe begins with, in this order: how the model was opened (`OPENING`), and the settings.
FIELDS = (
    *("model", "seconds", "steps", "guidance", "guidance_interval", "negative", "candidates", "scheduler"),
    *("dtype", "fast", "lora", "concept", "novelty", "index", "max_similarity"),
)
OPENING = {"model": "mini", "dtype": "auto", "fast": True}
SETTINGS = tuple(field.name for field in fields(Settings))
DEFAULTS = OPENING | {field.name: field.default for field in fields(Settings)}
DEFAULTS = {name: DEFAULTS[name] for name in FIELDS}
# Without which a file was not made by `musicldm generate`.
NEEDED = ("prompt", "seed", "model", "seconds", "steps", "guidance", "negative", "candidates", "scheduler", "dtype")
SOME = ("loop", "sections")  # fields of loops, and of music in sections
CONTEXT = ("context", "context_guidance", "along", "along_sha256")  # of music that follows a sketch or a recording
TEMPO = ("bpm", "bars", "meter", "force", "take")  # fields of music at a tempo that was asked for
# Music that follows something also has context_kinds, and midi: the name of the score beside the file.
# Edits have more: kind, source, source_sha256, regions_s, seams_s, and what `musicldm.generate.edit.OWN` names.


def random_seed() -> int:
    """A seed that nobody chose."""
    return random.SystemRandom().randrange(RANDOM_SEEDS)


def check_generated(recipe: dict, path: str | Path | None = None) -> None:
    """ValueError unless ``recipe``, of the file ``path``, is one of `musicldm generate`."""
    whose = "the recipe" if path is None else f"the recipe in {path}"
    if not isinstance(recipe, dict):
        raise ValueError(f"{whose} must be a dictionary of fields, got {shown(recipe)}")
    if (kind := recipe.get("kind")) is not None:
        raise ValueError(
            f"{whose} is that of an edit ({shown(kind)} of {shown(recipe.get('source'))}); make it again with "
            "`musicldm edit --from RESULT SOURCE`"
        )


def complete(recipe: dict, changes: dict | None = None) -> dict:
    """``recipe`` with what earlier versions did where it names nothing.

    Raises:
        ValueError: if a field that all versions wrote is missing, or one cannot be and ``changes`` do not replace it.
    """
    check_generated(recipe)
    for name in NEEDED:
        if recipe.get(name) is None:
            raise ValueError(f"its {name} is {shown(recipe.get(name))}")
    whole = with_defaults(recipe)
    used = whole | (changes or {})
    check_opening(**{name: used[name] for name in OPENING})
    Request(**_taken(Request, used))
    check_made(whole)
    return whole


def with_defaults(recipe: dict) -> dict:
    """``recipe`` with what earlier versions did where it names nothing."""
    return DEFAULTS | {"guidance_interval": list(EVERYWHERE)} | recipe


def check_made(whole: dict) -> None:
    """ValueError unless the fields of a complete recipe that say what made it are of their kinds."""
    for name, kind in (("adapters", dict), ("versions", dict), ("revision", str)):
        if not isinstance(whole.get(name), kind | None):
            raise ValueError(f"{name} must be a {kind.__name__} or null, got {shown(whole[name])}")


def _taken(cls: type[Request], recipe: dict) -> dict:
    """The values of the fields of ``cls`` in a complete ``recipe``."""
    values = {
        one.name: recipe[one.name] if one.default is MISSING else recipe.get(one.name, one.default)
        for one in fields(cls)
    }
    return values | ({"seconds": None} if values["sections"] or values["bars"] else {})


def check_prompt(prompt: str) -> None:
    """ValueError unless ``prompt`` is a text that says something."""
    check_text("prompt", prompt)
    if not prompt.strip():
        empty = shown(prompt)
        raise ValueError(f"the prompt {empty} is empty; describe the music, as in 'calm piano with strings'")


def check_sections(sections: Iterable[tuple[str, float]]) -> tuple[tuple[str, float], ...]:
    """``sections`` as pairs of a prompt and its seconds; ValueError for others."""
    check_kind("sections", sections, (list, tuple), "a list of pairs of a prompt and its seconds")
    for one in sections:
        check_kind("a section", one, (list, tuple), "a pair of a prompt and its seconds")
        if len(one) != 2:
            raise ValueError(f"a section must be a pair of a prompt and its seconds, got {shown(one)}")
        check_prompt(one[0])
        check_above(f"the seconds of {shown(one[0])}", one[1])
    return tuple((str(prompt), float(seconds)) for prompt, seconds in sections)


def check_opening(model: str | Path, dtype: str, fast: bool) -> None:
    """ValueError unless these can say how a model is opened."""
    if not isinstance(model, str | Path) or not str(model).strip():
        raise ValueError(f"model must be a bundled model, a folder, or owner/name on the hub, got {shown(model)}")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {shown(dtype)}")
    if not isinstance(fast, bool):
        raise ValueError(f"fast must be true or false, got {shown(fast)}")


def load_recipe(path: str | Path, changes: dict | None = None) -> dict:
    """The recipe inside a generated file, complete; fields that ``changes`` replace are not checked.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it is not one that `musicldm generate` wrote, or a field of it cannot be.
    """
    recipe = read_recipe(path)
    check_generated(recipe, path)
    if missing := [name for name in NEEDED if recipe.get(name) is None]:
        raise ValueError(
            f"{path} carries no recipe of `musicldm generate`: its {missing[0]} is {shown(recipe.get(missing[0]))}; "
            "give the options themselves"
        )
    try:
        return complete(recipe, changes)
    except ValueError as error:
        raise ValueError(f"the recipe in {path} cannot be followed: {error}; give the options themselves") from error


def compose(request: Settings, opened: dict, found: dict) -> dict:
    """The recipe of a piece: a `Request` or an edit, the model as it was ``opened`` (`Session.about`), and ``found``.

    What was found replaces what was asked for. Fields that belong to some pieces only are those of ``found``, and
    `SOME`, `TEMPO` and `CONTEXT` where they are not as they are without them.
    """
    wanted = {name: as_lists(value) for name, value in asdict(request).items()}
    first = {name: (wanted | opened)[name] for name in FIELDS}
    text = {name: wanted[name] for name in ("prompt", "seed")}
    some = {name: wanted[name] for name in (*SOME, *TEMPO) if wanted.get(name)}
    if found.get("context_kinds") or wanted.get("context_guidance", 1) != 1:
        some |= {name: wanted[name] for name in CONTEXT if wanted.get(name) is not None}
    return {"generated_by": GENERATED_BY} | first | opened | text | some | found


def as_lists(value):
    """``value`` as JSON gives it back: tuples become lists."""
    return [as_lists(one) for one in value] if isinstance(value, tuple | list) else value


def warn_of_changes(recipe: dict, made: dict) -> None:
    """Warn where the music of ``recipe`` is made again with another model or other adapters, as ``made`` names them."""
    pairs = [("its model", made["model"], recipe.get("revision"), made["revision"])]
    pairs += [(path, "this", old, made["adapters"].get(path)) for path, old in (recipe.get("adapters") or {}).items()]
    for what, now, before, revision in pairs:
        if before is not None and revision is not None and before != revision:
            warnings.warn(
                f"the recipe was made with revision {before} of {what}, {now} is {revision}: the music will differ",
                stacklevel=2,
            )
