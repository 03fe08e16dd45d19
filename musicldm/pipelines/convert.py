"""Conversion of checkpoints to model folders.

    the authors' file, or a model folder -> parts -> FOLDER/model_index.json, one folder for each part

A file of some parts only, such as LAION's CLAP, becomes a folder of these, from which they can be trained on.
"""

from __future__ import annotations

import secrets
import shutil
from pathlib import Path
from typing import NamedTuple

import torch

from musicldm.models.loading import OPTIONAL_PARTS, found_parts, missing_parts
from musicldm.models.original import OriginalCheckpoint
from musicldm.pipelines.text_to_music import MusicLDMPipeline


class Converted(NamedTuple):
    """What a new folder holds."""

    parts: list[str]
    missing: list[str]  # without which it is no model by itself; empty for a whole one

    @property
    def lacks_tokenizer(self) -> bool:
        """Whether its text tower can read no prompts."""
        return "tokenizer" not in self.parts and (not self.missing or "text_encoder" in self.parts)


def convert(
    source: Path | OriginalCheckpoint, out: Path, tokenizer=None, dtype: torch.dtype = torch.float32
) -> Converted:
    """Write the folder ``out`` from a model folder or a checkpoint, whole or not at all.

    ``tokenizer`` is as of `MusicLDMPipeline.from_original`, ``dtype`` that of the networks.

    Raises:
        ValueError: if the source cannot be read as a model, or as parts of one.
        OSError: if something cannot be read or written, or ``out`` exists and holds something.
    """
    if isinstance(source, OriginalCheckpoint):
        parts = found_parts(source, tokenizer)
        missing = missing_parts(parts)
        whole = None if missing else MusicLDMPipeline(**dict.fromkeys(OPTIONAL_PARTS) | parts)
    else:
        whole = MusicLDMPipeline.from_pretrained(source)
        parts, missing = whole.components, []
    parts = {name: part for name, part in parts.items() if part is not None}
    for part in parts.values():
        if isinstance(part, torch.nn.Module):
            part.to(dtype)
    scratch = out.absolute().parent / f".{secrets.token_hex(8)}.part"
    try:
        if whole is not None:
            whole.save_pretrained(scratch)
        else:
            for name, part in parts.items():
                part.save_pretrained(scratch / name)
        scratch.replace(out)  # an empty folder of that name may be there
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return Converted(list(parts), missing)
