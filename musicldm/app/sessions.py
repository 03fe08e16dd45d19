"""Models that are opened when they are asked for, and closed when memory is short."""

from __future__ import annotations

import gc
import threading

import psutil

from musicldm.app.options import Options
from musicldm.app.schemas import Model
from musicldm.generate.edit import Edit, request_of
from musicldm.generate.recipe import Request, Settings
from musicldm.generate.session import Session
from musicldm.novelty import index_of
from vocoder import mel_config

SHORT = 0.15  # of the memory left free: fewer models stay open
CAN = ("generate", "loop", "bpm", "vary", "inpaint", "extend", "retake")


class Sessions:
    """Sessions of ``options.models`` by name; safe for several threads."""

    def __init__(self, options: Options):
        self.options = options
        self._lock = threading.RLock()
        self._open: dict[str, Session] = {}

    @property
    def names(self) -> tuple[str, ...]:
        return self.options.models

    def named(self, name: str | None) -> str:
        """``name`` if it is listed, the default for None.

        Raises:
            ValueError: if it is not listed.
        """
        if name is None:
            return self.names[0]
        if name not in self.names:
            raise ValueError(f"there is no model {name!r} here; choose one of {', '.join(self.names)}")
        return name

    def get(self, name: str) -> Session:
        """The session of a listed model, opened if it is not open; others may be closed for it.

        Raises:
            ValueError, OSError: if it cannot be opened.
        """
        with self._lock:
            if name in self._open:
                self._open[name] = self._open.pop(name)  # the last used stands last
                return self._open[name]
            self._make_room()
            self._open[name] = Session(name, device=self.options.device, fast=self.options.fast)
            return self._open[name]

    def _make_room(self) -> None:
        """Close what was not used for longest, until there is room for one more and memory is not short."""
        while self._open:
            memory = psutil.virtual_memory()
            if len(self._open) < self.options.models_open and memory.available > SHORT * memory.total:
                return
            del self._open[next(iter(self._open))]
            gc.collect()

    def check(self, name: str, requests: list[Request]) -> None:
        """ValueError if ``requests`` need more memory than there is, or something that the model does not have."""
        session = self.get(name)
        session.memory(requests)
        for request in requests:
            if request.novelty is not None and index_of(session.pipeline(request)) is None:
                raise ValueError(
                    f"{name} has no index of its training set to compare with; leave novelty out, or choose a model "
                    "with one"
                )

    def check_edits(self, name: str, edits: list[Edit]) -> None:
        """ValueError if the model cannot follow what ``edits`` ask for, or make music that is made again."""
        if any(edit.context is not None for edit in edits):
            self.get(name).checked(edits)
        if again := [request_of(edit) for edit in edits if edit.kind == "retake"]:
            self.get(name).memory(again)

    def about(self, name: str) -> Model:
        """What is known of a listed model.

        Raises:
            ValueError, OSError: if it cannot be opened.
        """
        is_loaded = name in self._open
        session = self.get(name)
        return Model(
            name=name,
            default=name == self.names[0],
            loaded=is_loaded,
            **description(session),
            can=list(CAN),
        )


def description(session: Session) -> dict:
    """Rate, channels, trained length, licence of a session's model, what it follows, and whether it has an index."""
    from huggingface_hub import ModelCard

    pipeline = session.pipeline(Settings())
    mel, size = mel_config(pipeline.vocoder), pipeline.unet.config.sample_size
    frames = (size if isinstance(size, int) else size[0]) * pipeline.vae_scale_factor
    card = session.folder / "README.md"
    return {
        "sampling_rate": mel.sample_rate,
        "channels": mel.audio_channels,
        "seconds": frames * mel.hop_length / mel.sample_rate,
        "license": ModelCard.load(card).data.to_dict().get("license") if card.is_file() else None,
        "novelty": index_of(pipeline) is not None,
        "context_kinds": list(session.context_kinds),
    }
