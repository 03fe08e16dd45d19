"""Saving a pipeline and sending it to a hub: parts, card and novelty index in one folder.

pipeline -> FOLDER/model_index.json, one folder for each part   any of diffusers' and transformers' classes read them
         -> FOLDER/README.md                                    the card: what is known of the model
         -> FOLDER/novelty_index/                               of its training set, where there is one
"""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from diffusers import DiffusionPipeline
from diffusers.utils import hub_utils
from huggingface_hub import ModelCard
from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError
from torch import nn

from musicldm.attention import projections_apart
from musicldm.loading import PARTS, listed_heads, part_class

CARD = "README.md"
NOVELTY_INDEX = "novelty_index"
FRONT = "---\nlibrary_name: diffusers\npipeline_tag: text-to-audio\ntags: [text-to-music, musicldm, audio{more}]\n---\n"
USE = """```python
from musicldm import MusicLDMPipeline

pipeline = MusicLDMPipeline.from_pretrained("FOLDER OR HUB NAME")
output = pipeline("a calm piece for solo piano", num_inference_steps=25, seed=1)
```
"""
UNKNOWN = (
    "Nothing is recorded of what the parts were trained on and under which licence they come; whoever publishes this "
    "model should add it here.\n"
)


class PublishMixin(DiffusionPipeline):
    """`save_pretrained` and `push_to_hub` of a pipeline, with a card and the index of the training set."""

    card: str | None = None  # the text of README.md, as it was loaded or as a trainer wrote it
    novelty_index: Path | None = None  # the folder of the index that came with the model

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs) -> None:
        """Save to a folder whose parts diffusers' and transformers' own classes load; arguments as in diffusers.

        The UNet's head numbers are always saved as a list, one for each level, so that loading never doubts them. A
        card that came with the model is kept, as is an index that came with it or was loaded; without a card the parts
        are described.

        Raises:
            ValueError: if a part is of a class that is not public in diffusers or transformers, or the UNet carries
                adapters, which are files of their own.
        """
        if adapters := getattr(self.unet, "peft_config", None):
            raise ValueError(
                f"the UNet carries adapters ({', '.join(adapters)}); make them part of it by fuse_lora() and then "
                "unload_lora_weights(), or take them away by the latter alone"
            )
        for name in PARTS:
            library, class_name = self.config[name]
            if library is not None:
                part_class(name, library, class_name)
        hub = {name: kwargs.pop(name) for name in ("commit_message", "private", "token", "create_pr") if name in kwargs}
        repository = kwargs.pop("repo_id", Path(save_directory).name)
        with listed_heads(self.unet), projections_apart(self.unet):
            super().save_pretrained(save_directory, **kwargs)
        folder = Path(save_directory)
        (folder / CARD).write_text(self.card or plain_card(self), encoding="utf-8")
        index = self.novelty_index if self.copy_guard is None else self.copy_guard.index.folder
        if index is not None and index.resolve() != (folder / NOVELTY_INDEX).resolve():
            shutil.rmtree(folder / NOVELTY_INDEX, ignore_errors=True)
            shutil.copytree(index, folder / NOVELTY_INDEX)
        if push_to_hub:
            self._send(folder, repository, **hub)

    def push_to_hub(
        self,
        repo_id: str,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | None = None,
        create_pr: bool = False,
        safe_serialization: bool = True,
        variant: str | None = None,
        subfolder: str | None = None,
    ) -> str:
        """Upload the pipeline with its card and index; arguments as in diffusers. Returns the address of the commit.

        As there, a card that the repository has already is left as it is.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, safe_serialization=safe_serialization, variant=variant)
            return self._send(Path(folder), repo_id, commit_message, private, token, create_pr, subfolder)

    def _send(
        self,
        folder: Path,
        repo_id: str,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | None = None,
        create_pr: bool = False,
        subfolder: str | None = None,
    ) -> str:
        repo_id = hub_utils.create_repo(repo_id, private=private, token=token, exist_ok=True).repo_id
        text = (folder / CARD).read_text(encoding="utf-8")
        with suppress(EntryNotFoundError, RepositoryNotFoundError):
            ModelCard.load(repo_id, token=token).save(folder / CARD)
        try:
            return self._upload_folder(
                folder, repo_id, token=token, commit_message=commit_message, create_pr=create_pr, subfolder=subfolder
            )
        finally:
            (folder / CARD).write_text(text, encoding="utf-8")


def front_matter(*tags: str) -> str:
    """The lines that a hub reads a card's facts from."""
    return FRONT.format(more="".join(f", {tag}" for tag in tags))


def parts_table(parts: dict[str, object]) -> str:
    """Class and number of parameters of each network."""
    rows = [
        f"| {name} | `{type(part).__name__}` | {sum(p.numel() for p in part.parameters()) / 1e6:.3g} M |"
        for name, part in parts.items()
        if isinstance(part, nn.Module)
    ]
    return "\n".join(["| Part | Class | Parameters |", "| --- | --- | --- |", *rows, ""])


def plain_card(pipeline) -> str:
    """The card of a pipeline of which nothing is known but its parts."""
    heading = f"\n# MusicLDM\n\nText to music, {pipeline.sampling_rate} Hz mono.\n\n"
    return f"{front_matter()}{heading}{USE}\n{parts_table(pipeline.components)}\n{UNKNOWN}"


def read_card(folder: Path) -> str | None:
    """The card in a model's folder, if there is one."""
    file = folder / CARD
    return file.read_text(encoding="utf-8") if file.is_file() else None
