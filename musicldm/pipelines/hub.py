"""Saving a pipeline and sending it to a hub: parts, card and novelty index in one folder.

pipeline -> FOLDER/model_index.json, one folder for each part   any of diffusers' and transformers' classes read them
         -> FOLDER/README.md                                    the card: what is known of the model
         -> FOLDER/novelty_index/                               of its training set, where there is one

A hub name is loaded without card and index: the one is fetched when the model is saved, the other when it is asked for.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from diffusers.utils import hub_utils
from huggingface_hub import ModelCard, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError
from torch import nn

from musicldm.kernels.unet_attention import projections_apart
from musicldm.models.loading import HUB_ERRORS, PARTS, listed_heads, missing_parts, one_line, part_class
from vocoder import mel_config

CARD = "README.md"
NOVELTY_INDEX = "novelty_index"
COMPANIONS = (NOVELTY_INDEX,)  # folders beside the parts that belong to a model and go where it goes
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


class PublishMixin:
    """`save_pretrained` and `push_to_hub` of a `DiffusionPipeline`, with a card and the folders that belong to a model.

    Attributes:
        card: the text of README.md, as it was loaded or as a trainer wrote it.
        card_sections: texts by title, each written into the card when the model is saved.
        companions: the folders of `COMPANIONS` that are here, by name; `companion` looks further.
    """

    card: str | None = None
    card_sections: dict[str, str]
    companions: dict[str, Path]
    hub_source: dict | None = None  # arguments of `snapshot_download` where the model came from a hub

    def came_from(self, folder: Path, hub_options: dict) -> None:
        """Note what lies in the model's ``folder``; ``hub_options`` are for what has to be fetched later."""
        self.card = read_card(folder)
        self.companions = {name: folder / name for name in COMPANIONS if (folder / name).is_dir()}
        repository = re.fullmatch(r"models--(.+)--(.+)", folder.parent.parent.name)  # the hub's cache
        if repository is not None and folder.parent.name == "snapshots":
            here = {"repo_id": "/".join(repository.groups()), "revision": folder.name, "cache_dir": folder.parents[2]}
            self.hub_source = here | hub_options

    def companion(self, name: str) -> Path | None:
        """The folder ``name`` of the model, None if it has none; that of a hub is fetched, with its revision.

        Raises:
            OSError: if the hub refuses.
        """
        if name not in self.companions and self.hub_source is not None:
            try:
                folder = Path(snapshot_download(**self.hub_source, allow_patterns=[f"{name}/*"])) / name
            except HUB_ERRORS as error:
                raise OSError(
                    f"the {name} of {self.hub_source['repo_id']} cannot be fetched ({one_line(error)}); "
                    "give the folder of one that is here"
                ) from error
            if folder.is_dir():
                self.companions[name] = folder
        return self.companions.get(name)

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs) -> None:
        """Save to a folder whose parts diffusers' and transformers' own classes load; arguments as in diffusers.

        The UNet's head numbers are always saved as a list, one for each level, so that loading never doubts them. A
        card that came with the model is kept, as are its `companions`; without a card the parts are described.

        Raises:
            ValueError: if a part is of a class that is not public in diffusers or transformers, or is missing, or the
                UNet carries adapters, which are files of their own.
        """
        if missing := missing_parts([name for name in PARTS if getattr(self, name) is not None]):
            raise ValueError(f"a pipeline without {', '.join(missing)} is no model to be saved; give it these parts")
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
        card = self.card or self._card_on_the_hub() or plain_card(self)
        for title, text in self.card_sections.items():
            card = with_section(card, title, text)
        (folder / CARD).write_text(card, encoding="utf-8")
        for name, source in self.companions.items():
            if source.resolve() != (folder / name).resolve():
                shutil.rmtree(folder / name, ignore_errors=True)
                shutil.copytree(source, folder / name)
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
        """Upload the pipeline, card and companions; arguments as in diffusers. Returns the address of the commit.

        As there, a card that the repository has already is left as it is.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, safe_serialization=safe_serialization, variant=variant)
            return self._send(Path(folder), repo_id, commit_message, private, token, create_pr, subfolder)

    def _card_on_the_hub(self) -> str | None:
        """The card of the repository that the model came from, if it has one and can be reached."""
        if self.hub_source is None:
            return None
        with suppress(*HUB_ERRORS):
            return read_card(Path(snapshot_download(**self.hub_source, allow_patterns=[CARD])))
        return None

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
    channels = "mono" if mel_config(pipeline.vocoder).audio_channels == 1 else "stereo"
    heading = f"\n# MusicLDM\n\nText to music, {pipeline.sampling_rate} Hz {channels}.\n\n"
    return f"{front_matter()}{heading}{USE}\n{parts_table(pipeline.components)}\n{UNKNOWN}"


def with_section(card: str, title: str, text: str) -> str:
    """``card`` whose section ``title`` is ``text``: in the place of the old one, else before the licence or last."""
    section = f"## {title}\n\n{text.strip()}\n"
    old = re.compile(rf"^## {re.escape(title)}\n.*?(?=^## |\Z)", re.MULTILINE | re.DOTALL)
    if old.search(card):
        return old.sub(lambda _: section + "\n", card).rstrip() + "\n"
    before, licence, after = card.partition("\n## Licence\n")
    return f"{before.rstrip()}\n\n{section}{licence}{after}"


def read_card(folder: Path) -> str | None:
    """The card in a model's folder, if there is one."""
    file = folder / CARD
    return file.read_text(encoding="utf-8") if file.is_file() else None
