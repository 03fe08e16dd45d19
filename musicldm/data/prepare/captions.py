"""Captions of recordings: existing ones, or sentences made from tags and measurements.

    metadata.jsonl | metadata.csv | NAME.txt | NAME.json  ->  texts, tags, piece_id, split, licence
    tags, tempo, metre, key  ->  "A fast rock track in 4/4, 140 BPM."

Keywords become captions through templates, as in LAION-Audio-630K (Wu et al., 2023, https://arxiv.org/abs/2211.06687).
"""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from musicldm.audio.text import is_text, read_text
from musicldm.data.metadata import (
    all_texts,
    by_known_names,
    licence_of,
    listed,
    named_split,
    read_metadata,
    row_texts,
)
from musicldm.scores.captions import tempo_words

CAPTIONS = ("keep", "tags", "none")
SURE_BEATS, SURE_KEY = 0.4, 0.04  # least confidence of a tempo, and clarity of a key, to be mentioned
TEMPLATES = (
    "{A} {kind}{details}.",
    "{Kind}{details}.",
    "This is {a} {kind}{details}.",
    "The music is {a} {kind}{details}.",
)


def find_metadata(folder: Path) -> dict[str, dict]:
    """Rows of ``metadata.jsonl`` or ``metadata.csv`` in ``folder``, by file name.

    Raises:
        ValueError: if a row cannot be read, has no ``file_name``, or has an unknown split.
    """
    rows: dict[str, dict] = {}
    for row in read_metadata(folder) or []:
        split = named_split(row)  # errors are raised before the slow part
        if (before := rows.get(row["file_name"])) is not None:
            other = named_split(before)
            if split and other and split != other:
                raise ValueError(f"the metadata in {folder} has {row['file_name']} in the splits {other} and {split}")
            texts = [text for one in (before, row) for text in all_texts(one)]
            row = before | row | {"split": split or other, "text": None, "caption": None, "texts": texts}
        rows[row["file_name"]] = row
    return rows


def metadata_of(path: Path, row: Mapping | None) -> dict:
    """Texts, tags, piece, split and licence of the recording at ``path``, from its ``row`` or from a sidecar file.

    Raises:
        ValueError: if a sidecar is not JSON, captions or tags are not strings, or the split is unknown.
    """
    row = dict(row or {})
    if (file := path.with_suffix(".json")).is_file():
        try:
            row |= by_known_names(file, 1, json.loads(read_text(file)))
        except (AttributeError, RecursionError, TypeError, ValueError) as error:
            raise ValueError(f"{file.name} beside it is not a JSON object") from error
    texts = row_texts(row)
    if (file := path.with_suffix(".txt")).is_file():
        try:
            texts.append(read_text(file))
        except ValueError as error:
            raise ValueError(f"{file.name} beside it is not in UTF-8") from error
    tags = row.get("tags")
    tags = [*(tags.split(",") if isinstance(tags, str) else listed(tags)), row.get("genre")]
    if other := [value for value in (*texts, *tags) if not isinstance(value, str | None)]:
        raise ValueError(f"its captions and tags must be strings, got {other[0]!r}")
    known = {
        "texts": list(dict.fromkeys(text.strip() for text in texts if text and text.strip())),
        "tags": list(dict.fromkeys(tag.strip() for tag in tags if tag and tag.strip())),
        "piece_id": str(row["piece_id"]) if row.get("piece_id") else None,
        "split": named_split({"file_name": path.name} | row),
    }
    known |= {"licence": licence} if (licence := licence_of(row)) else {}
    if not is_text(json.dumps(known, ensure_ascii=False)):
        raise ValueError("its metadata have an unpaired surrogate; write the file as UTF-8 again")
    return known


def write_caption(row: Mapping) -> str:
    """A caption for a row of the index. The template is chosen by the digest, so that results are reproducible."""
    rng = np.random.default_rng(int(hashlib.sha256(row["digest"].encode()).hexdigest()[:16], 16))
    words = list(row["tags"][:2])
    details = []
    if row["tempo_bpm"] and row["confidence"] >= SURE_BEATS:
        words.insert(0, str(rng.choice(tempo_words(row["tempo_bpm"]))))
        if row["beats_per_bar"]:
            details.append(f" in {row['beats_per_bar']}/4")
        details.append(f", {round(row['tempo_bpm'])} BPM")
    if row["key"] and row["key_clarity"] >= SURE_KEY:
        details.append(f", in {row['key']}")
    kind = " ".join([*words, str(rng.choice(("piece of music", "track", "piece")))])
    article = "an" if kind[0].lower() in "aeiou" else "a"
    text = str(rng.choice(TEMPLATES)).format(
        A=article.capitalize(), a=article, kind=kind, Kind=kind[0].upper() + kind[1:], details="".join(details)
    )
    return text


def caption_function(name: str) -> Callable[[dict], list[str]]:
    """The function ``module:function``, which takes a row of the index with its ``path`` and returns captions.

    Raises:
        ValueError: if there is no such function.
    """
    module, _, function = name.partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"there is no function {name!r}; give MODULE:FUNCTION, with the module on Python's path"
        ) from error


def texts_of(row: Mapping, captions: str, own: Callable[[dict], list[str]] | None, path: Path) -> list[str]:
    """The captions of a row for the recording at ``path``: from ``own`` if given, otherwise as ``captions`` says.

    Raises:
        ValueError: if ``own`` does not return a list of strings.
    """
    if own:
        texts = own(dict(row) | {"path": str(path)})
        if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"a caption function must return a list of strings, got {texts!r} for {row['file_name']}")
        return list(texts)
    if captions == "none":
        return []
    if captions == "keep" and row["texts"]:
        return list(row["texts"])
    return [write_caption(row)]
