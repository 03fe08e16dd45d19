"""Edits: what can be asked of a recording, and how an edited file is made again.

    Edit (kind, source, prompt, where, how much, settings) -> Session -> EditedPiece with a recipe

The kinds: "vary" makes all of it anew, near what it was; "inpaint" makes regions anew; "extend" adds time before and
after it; "retake" makes the music of one of our own files again, from noise turned towards that of another seed.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path

from musicldm.audio import read_recipe
from musicldm.config.values import check_kind, check_number, check_text, check_whole, shown
from musicldm.generate.recipe import (
    CONTEXT,
    HIGHEST_SEED,
    OPENING,
    SETTINGS,
    SOME,
    TEMPO,
    Request,
    as_lists,
    check_made,
    check_opening,
    check_prompt,
    complete,
    with_defaults,
)
from musicldm.generate.settings import ContextSettings

KINDS = ("vary", "inpaint", "extend", "retake")
AMOUNTS = {"vary": 0.6, "retake": 0.5}  # where none is given
SNAPS = ("beat", "none")
PLACES = {
    "regions_s": ("inpaint",),
    "before_s": ("extend",),
    "after_s": ("extend",),
    "amount": ("vary", "retake"),
    "context": ("vary", "inpaint", "extend"),
}
OWN = {
    "amount": ("vary", "retake"),
    "before_s": ("extend",),
    "after_s": ("extend",),
    "noise": ("retake",),
}  # in recipes
NEEDED = ("kind", "prompt", "seed", "model", "source_sha256", "regions_s")  # of an edited file's recipe

Region = tuple[float | None, float | None]  # seconds from the source's beginning; None: its beginning, its end


@dataclass(frozen=True)
class Edit(ContextSettings):
    """A change of a recording: ``Edit("inpaint", "take.wav", "soft strings", regions_s=[(4, 6.5)], seed=1)``.

    Without a seed a random one is drawn when the piece is made. A ``context`` is followed from the first new sample on,
    in the recording's time: what of it lies beside the new parts is not heard.

    Raises:
        ValueError: naming the first value that cannot be used, and what can.
    """

    kind: str  # one of `KINDS`
    source: str  # the recording's file
    prompt: str | None = None  # None: that of the source's own recipe
    seed: int | None = None
    regions_s: tuple[Region, ...] = ()  # of inpaint: what is made anew
    before_s: float = 0.0  # of extend: seconds before the beginning
    after_s: float = 0.0  # and after the end
    amount: float | None = None  # 0 to 1: of vary the noise that it starts from, of retake the share of a quarter turn
    snap: str | None = None  # beat or none: borders of regions move inwards to beats; None: if a tracker is installed
    noise: tuple[tuple[int, float], ...] = ()  # of retake: the source's, as seeds and turns; empty: by its recipe
    music: dict = field(default_factory=dict)  # of retake: what a `Request` for the source's music has beside the above

    def __post_init__(self):
        super().__post_init__()
        if not isinstance(self.kind, str) or self.kind not in KINDS:
            raise ValueError(f"unknown kind of edit {shown(self.kind)}; choose one of {', '.join(KINDS)}")
        check_kind("source", self.source, (str, Path), "the path of a recording")
        object.__setattr__(self, "source", str(self.source))
        if self.prompt is not None:
            check_prompt(self.prompt)
        if self.seed is not None:
            check_whole("seed", self.seed, 0, HIGHEST_SEED)
        if self.snap is not None and self.snap not in SNAPS:
            raise ValueError(f"snap must be one of {', '.join(SNAPS)}, got {shown(self.snap)}")
        if self.seconds is not None and self.kind != "retake":
            raise ValueError(f"{self.kind} takes its length from the recording; leave seconds={self.seconds:g} out")
        self._check_places()
        object.__setattr__(self, "noise", check_noise(self.noise))
        check_kind("music", self.music, dict, "a dictionary of fields of a Request")

    def _check_places(self) -> None:
        object.__setattr__(self, "regions_s", check_regions(self.regions_s))
        for name in ("before_s", "after_s"):
            check_number(name, getattr(self, name), 0)
        for name, kinds in PLACES.items():
            if getattr(self, name) and self.kind not in kinds:
                raise ValueError(f"{name} is for {' and '.join(kinds)}, not for {self.kind}")
        if self.context_guidance != 1 and self.context is None and self.kind in AMOUNTS:
            raise ValueError(f"there is nothing that {self.kind} follows; give context, or leave context_guidance out")
        if self.kind == "inpaint" and not self.regions_s:
            raise ValueError("inpaint needs a region to make anew; give one, such as 4:6.5 seconds (--region 4:6.5)")
        if self.kind == "extend" and not self.before_s and not self.after_s:
            raise ValueError("extend needs seconds to add; give before_s or after_s (--before 5, --after 10)")
        if self.kind not in AMOUNTS:
            return
        object.__setattr__(self, "amount", AMOUNTS[self.kind] if self.amount is None else self.amount)
        check_number("amount", self.amount, 0, 1)
        if self.kind == "vary" and self.amount == 0:
            raise ValueError("the amount of vary must be above 0 (all as it is) and at most 1 (all new), got 0")

    @classmethod
    def from_recipe(cls, recipe: dict, source: str | Path, **changes) -> Edit:
        """The edit that made a file with ``recipe`` of the recording ``source``, with ``changes``.

        Raises:
            OSError: if the source cannot be read.
            ValueError: if it is another recording, or a field of the recipe is missing or cannot be.
        """
        whole = complete_edit(recipe, changes)
        check_source(source, recipe)
        values = {one.name: whole[one.name] for one in fields(cls) if one.name in whole}
        kind = whole["kind"]
        values |= {"source": str(source), "snap": "none", "music": music_of(whole)}
        if kind != "retake":
            values |= {"seconds": None, "noise": ()}
        if kind != "inpaint":
            values["regions_s"] = ()
        return cls(**values | changes)


def complete_edit(recipe: dict, changes: dict | None = None) -> dict:
    """The recipe of an edited file, complete; fields that ``changes`` replace are not checked.

    Raises:
        ValueError: if it is none, or a field cannot be.
    """
    check_kind("the recipe", recipe, dict, "a dictionary of fields")
    for name in NEEDED:
        if recipe.get(name) is None:
            raise ValueError(f"its {name} is {shown(recipe.get(name))}, so it is not of an edited file")
    whole = with_defaults(recipe)
    used = whole | (changes or {})
    check_opening(**{name: used[name] for name in OPENING})
    check_made(whole)
    check_text("source_sha256", whole["source_sha256"])
    return whole


def load_edit_recipe(path: str | Path, changes: dict | None = None) -> dict:
    """The recipe inside a file that `musicldm edit` wrote, complete.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it is not such a file, or a field of its recipe cannot be.
    """
    recipe = read_recipe(path)
    try:
        return complete_edit(recipe, changes)
    except ValueError as error:
        raise ValueError(f"{path} carries no recipe of `musicldm edit` that can be followed: {error}") from error


def check_source(source: str | Path, recipe: dict) -> None:
    """ValueError, with both hashes, if ``source`` is another recording than that of an edited file's ``recipe``."""
    found, wanted = file_sha256(source), recipe["source_sha256"]
    if found != wanted:
        raise ValueError(
            f"{source} is another recording than the one that was edited ({shown(recipe.get('source'))}): its SHA-256 "
            f"is {found}, that of the recipe is {wanted}"
        )


def file_sha256(path: str | Path) -> str:
    """The SHA-256 of a file's content, 64 hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def resolved_retake(edit: Edit) -> Edit:
    """A retake with the settings of its source's recipe where its own are the usual ones.

    Raises:
        OSError: if the source cannot be read.
        ValueError: if it has no recipe that can be followed.
    """
    if edit.noise:
        return edit
    given = {name: getattr(edit, name) for name in (*SETTINGS, "prompt", "seed", "amount")}
    usual = Edit("retake", edit.source)
    changes = {name: value for name, value in given.items() if value != getattr(usual, name)}
    return retake_of(load_music_recipe(edit.source, changes), edit.source, changes)


def own_prompt(source: str | Path) -> str:
    """The prompt of the recipe in ``source``.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it carries none.
    """
    try:
        prompt = read_recipe(source).get("prompt")
        check_prompt(prompt)
    except ValueError as error:
        raise ValueError(
            f"there is no prompt, and {source} carries none of its own; describe the music, as in 'calm piano'"
        ) from error
    return prompt


def load_music_recipe(source: str | Path, changes: dict | None = None) -> dict:
    """The recipe of music that `retake` can make again, complete, with ``noise``: the seeds and turns that it is of.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it has no such recipe, or a field cannot be and ``changes`` do not replace it.
    """
    recipe = read_recipe(source)
    if recipe.get("kind") not in (None, "retake"):
        raise ValueError(
            f"retake makes music again that has no recording in it; {source} is an edit ({shown(recipe['kind'])} of "
            f"{shown(recipe.get('source'))}); retake a file of `musicldm generate`, or make the edit with another seed"
        )
    try:
        own = complete({name: value for name, value in recipe.items() if name != "kind"}, changes)
        noise = [[own["seed"], 1.0]]
        if recipe.get("kind") == "retake":
            noise = [*(recipe.get("noise") or []), [own["seed"], recipe.get("amount")]]
        return own | {"noise": as_lists(check_noise(noise))}
    except ValueError as error:
        raise ValueError(
            f"retake needs a file of `musicldm generate`, and the recipe in {source} cannot be followed: {error}"
        ) from error


def retake_of(recipe: dict, source: str | Path, given: dict) -> Edit:
    """The retake of ``source``, whose recipe `load_music_recipe` gave, with its settings where none are ``given``."""
    values = {name: recipe[name] for name in (*SETTINGS, "prompt", "noise")}
    return Edit("retake", str(source), **values | {"music": music_of(recipe)} | given)


def music_of(recipe: dict) -> dict:
    """The fields of ``recipe`` that a `Request` has beside those of a retake: loops, sections, tempo, contexts."""
    return {name: recipe[name] for name in (*SOME, *TEMPO, *CONTEXT) if name in recipe}


def request_of(edit: Edit) -> Request:
    """The request that made the source of a prepared retake, with the retake's settings."""
    seconds = None if edit.music.get("sections") or edit.music.get("bars") else edit.seconds
    settings = {name: getattr(edit, name) for name in SETTINGS} | {"seconds": seconds}
    return Request(edit.prompt, edit.noise[0][0], **settings, **edit.music)


def check_noise(noise: Iterable) -> tuple[tuple[int, float], ...]:
    """Pairs of a seed and the share of a quarter turn towards its noise; ValueError for anything else."""
    check_kind("noise", noise, (list, tuple), "a list of pairs of a seed and a share")
    for pair in noise:
        check_kind("an entry of noise", pair, (list, tuple), "a pair of a seed and a share")
        if len(pair) != 2:
            raise ValueError(f"an entry of noise must be a pair of a seed and a share, got {shown(pair)}")
        check_whole("a seed of noise", pair[0], 0, HIGHEST_SEED)
        check_number("a share of noise", pair[1], 0, 1)
    return tuple((int(seed), float(share)) for seed, share in noise)


def check_regions(regions: Iterable) -> tuple[Region, ...]:
    """Pairs of seconds, of which None is the beginning or the end; ValueError for anything else."""
    check_kind("regions_s", regions, (list, tuple), "a list of pairs of seconds")
    found = []
    for pair in regions:
        check_kind("a region", pair, (list, tuple), "a pair of seconds, of which None is the beginning or the end")
        if len(pair) != 2:
            raise ValueError(f"a region must be a pair of seconds, got {shown(pair)}")
        edges = tuple(None if edge == end else edge for edge, end in zip(pair, (-math.inf, math.inf), strict=True))
        for edge in edges:
            if edge is not None:
                check_number("a region's border", edge)
        found.append(edges)
    return tuple(found)
