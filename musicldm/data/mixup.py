"""Mixtures of recordings, as training items.

    analysed collection  ->  partner, alignment, loudness, lambda  ->  Mixture

``plain`` mixes clips of random recordings. ``audio`` and ``latent`` mix recordings of the same tempo, aligned at their
downbeats: as waveforms, or (in `musicldm.train.diffusion.mixtures`) as latents. All random choices follow from seed,
epoch and item, so an item does not depend on the process or on other items.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from augment.captions import mixed_caption
from augment.mixup import (
    SILENCE_LUFS,
    block_loudness,
    draw_lambda,
    excerpt_loudness,
    loudness_gain,
    mix_waveforms,
    normalise_peak,
    stretch,
)
from augment.pairing import Alignment, Pairing, Recording, align_paper, align_synchronous, check_fit
from musicldm.audio import read_audio
from musicldm.data.analysis import Analysed, analyse, as_analysed
from musicldm.data.clips import Clip, fitted
from musicldm.data.items import Item, item_rng
from musicldm.data.shards import read_recording

KINDS = ("plain", "audio", "latent")
WHOLE = 3  # recordings of at most so many clips are stretched as a whole, longer ones only where needed
KEEP_BYTES = 2 * 2**30  # decoded and stretched recordings in memory


class Mixture(NamedTuple):
    """Two aligned parts of recordings and their mixture, one clip of L samples, padded with zeros.

    Waveforms are (L,), or (2, L) for stereo.
    """

    a: np.ndarray  # (L,) float32, of the anchor
    b: np.ndarray  # (L,) of the partner, at the loudness of ``a`` in mode synchronous
    lam: float  # the anchor's share
    waveform: np.ndarray  # (L,) lam a + (1 - lam) b, without mean, peak 0.5
    partner: str  # the partner's file
    alignment: Alignment
    crop_s: float  # seconds after the aligned cuts at which ``a`` and ``b`` begin
    text: str  # "" if neither has a caption


class Playing(NamedTuple):
    """A recording from a cut onwards, at some speed."""

    waveform: np.ndarray  # (L,) or (2, L) from the cut on
    blocks: np.ndarray  # (K,) LUFS of the gating blocks of a longer stretch
    start_s: float  # of the cut in that stretch


class ArrayCache:
    """A cache of arrays by key; the least recently used ones are dropped above ``most_bytes``."""

    def __init__(self, most_bytes: int = KEEP_BYTES):
        self.most_bytes, self.n_bytes = most_bytes, 0
        self.arrays: OrderedDict[Hashable, np.ndarray] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], np.ndarray]) -> np.ndarray:
        if key in self.arrays:
            self.arrays.move_to_end(key)
            return self.arrays[key]
        array = self.arrays[key] = make()
        self.n_bytes += array.nbytes
        while self.n_bytes > self.most_bytes and len(self.arrays) > 1:
            self.n_bytes -= self.arrays.popitem(last=False)[1].nbytes
        return array


@dataclass(frozen=True)
class MixupSettings:
    """Settings of mixtures.

    Raises:
        ValueError: for an unknown kind.
    """

    kind: str = "audio"  # or plain, or latent, which draws the same pairs as audio in mode synchronous
    mode: str = "synchronous"  # or paper
    seed: int = 0  # of all random choices
    per_clip: int = 1  # mixtures anchored in each clip
    max_stretch: float = 0.04  # largest relative change of a partner's speed
    same_key: bool = False  # whether partners must be in a compatible key

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {self.kind!r}")


class BeatSynchronousMixup(torch.utils.data.Dataset):
    """``dataset[Item(epoch, index)]`` is the `Mixture` anchored in clip ``index // per_clip``, or None without partner.

    Args:
        clips: the training clips; all partners come from their recordings.
        analysis: of at least these recordings, in any order.
        sample_rate: of the mixtures, in Hz.
        n_samples: length of the mixtures.
        settings: such as kind, mode and seed.
        keep_bytes: limit for decoded recordings in memory.
        channels: of the mixtures.

    Raises:
        ValueError: for an unknown mode, or a recording without analysis.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        analysis: Sequence[Analysed],
        sample_rate: int,
        n_samples: int,
        settings: MixupSettings,
        keep_bytes: int = KEEP_BYTES,
        channels: int = 1,
    ):
        by_path = {analysed.path: analysed for analysed in analysis}
        self.paths = list(dict.fromkeys(clip.path for clip in clips))
        if missing := [path for path in self.paths if path not in by_path]:
            raise ValueError(f"{len(missing)} recordings are not analysed, the first is {missing[0].name}")
        self.clips, self.settings, self.sample_rate, self.n_samples = list(clips), settings, sample_rate, n_samples
        self.clip_s, self.channels = n_samples / sample_rate, channels
        self.analysed = [by_path[path] for path in self.paths]
        self.pairing = Pairing(
            _without_duplicates(self.analysed),
            self.clip_s,
            settings.mode,
            max_stretch=settings.max_stretch,
            same_key=settings.same_key,
        )
        self.index_of = {path: i for i, path in enumerate(self.paths)}
        self.texts = {clip.path: clip.texts for clip in clips}
        self.kept = ArrayCache(keep_bytes)

    def __len__(self) -> int:
        return len(self.clips) * self.settings.per_clip

    def __getitem__(self, item: Item) -> Mixture | None:
        if not 0 <= item.index < len(self):
            raise IndexError(f"item {item.index} is out of range: there are {len(self)} mixtures")
        rng = item_rng(self.settings.seed, item, "mixup")
        clip = self.clips[item.index // self.settings.per_clip]
        anchor = self.index_of[clip.path]
        drawn = self._draw_plain(clip, rng) if self.settings.kind == "plain" else self._draw(clip, anchor, rng)
        if drawn is None:
            return None
        return self.mix(anchor, *drawn, rng)

    def mix(
        self, anchor: int, partner: int, alignment: Alignment, rng: np.random.Generator, lam: float | None = None
    ) -> Mixture | None:
        """The mixture of recordings ``anchor`` and ``partner``; None where one of them is silent.

        ``lam`` is drawn if it is not given.
        """
        cut = self._cut(anchor, partner, alignment)
        if cut is None:
            return None
        a, b = cut
        lam = draw_lambda(rng) if lam is None else lam
        waveform = normalise_peak(mix_waveforms(a, b, lam))
        start = 0
        if waveform.shape[-1] > self.n_samples:  # what the authors' waveforms are
            start = int(rng.integers(waveform.shape[-1] - self.n_samples + 1))
        a, b, waveform = (fitted(part[..., start:], self.n_samples) for part in (a, b, waveform))
        text = self._caption(anchor, partner, lam, rng)
        return Mixture(a, b, lam, waveform, self.paths[partner].name, alignment, start / self.sample_rate, text)

    def _draw_plain(self, clip: Clip, rng: np.random.Generator) -> tuple[int, Alignment] | None:
        """A clip of another piece, cut as it is."""
        group = self.pairing.recordings[self.index_of[clip.path]].group
        for index in rng.integers(len(self.clips), size=24).tolist():
            other = self.clips[index]
            partner = self.index_of[other.path]
            if self.pairing.recordings[partner].group != group:
                return partner, Alignment(clip.start_s, other.start_s, 1.0)
        return None

    def _draw(self, clip: Clip, anchor: int, rng: np.random.Generator) -> tuple[int, Alignment] | None:
        return self.pairing.draw(anchor, rng, (clip.start_s, clip.start_s + self.clip_s))

    def _cut(self, anchor: int, partner: int, alignment: Alignment) -> tuple[np.ndarray, np.ndarray] | None:
        """Both aligned parts, cut to the shorter, in mode synchronous at equal loudness; None if one is silent.

        At most one clip long, except for waveforms in mode paper, where a clip is cut from the mixture at random.
        """
        whole = self.settings.mode == "paper" and self.settings.kind == "audio"
        first = self._play(anchor, alignment.a_start_s, 1.0)
        second = self._play(partner, alignment.b_start_s, alignment.speed)
        length = min(first.waveform.shape[-1], second.waveform.shape[-1])
        length = length if whole else min(length, self.n_samples)
        if not length:
            return None
        a, b = first.waveform[..., :length], second.waveform[..., :length]
        if self.settings.mode == "paper" or self.settings.kind == "plain":
            return a, b
        seconds = length / self.sample_rate
        of_a, of_b = (excerpt_loudness(part.blocks, part.start_s, part.start_s + seconds) for part in (first, second))
        if min(of_a, of_b) < SILENCE_LUFS:
            return None
        return a, b * np.float32(loudness_gain(of_b, of_a))

    def _play(self, index: int, start_s: float, speed: float) -> Playing:
        """Recording ``index`` at ``speed``, from what is at ``start_s`` in its own time."""
        path = self.paths[index]
        waveform = self.kept.get(path, lambda: read_recording(path, self.sample_rate, self.channels))
        blocks = self.analysed[index].loudness_lufs
        if speed != 1:  # which changes the loudness too, by up to 1 dB where attacks are sharp
            start, n = round(start_s * self.sample_rate), round(self.n_samples * speed)
            whole = waveform.shape[-1] <= WHOLE * self.n_samples
            key = (index, speed) if whole else (index, speed, start)
            part = waveform if whole else waveform[..., start : start + n]
            waveform = self.kept.get(key, lambda: stretch(part, self.sample_rate, speed))
            blocks = self.kept.get((*key, "loudness"), lambda: self._loudness(waveform))
            start_s = start_s / speed if whole else 0.0
        return Playing(waveform[..., round(start_s * self.sample_rate) :], blocks, start_s)

    def _loudness(self, waveform: np.ndarray) -> np.ndarray:
        """LUFS (K,) of the gating blocks of the mean of the channels, as analyses have them."""
        return block_loudness(waveform if waveform.ndim == 1 else waveform.mean(axis=0), self.sample_rate)

    def _caption(self, anchor: int, partner: int, lam: float, rng: np.random.Generator) -> str:
        """The anchor's caption in mode paper, else both."""
        texts = [self.texts[self.paths[index]] for index in (anchor, partner)]
        first, second = (choices[rng.integers(len(choices))] if choices else "" for choices in texts)
        return first if self.settings.mode == "paper" else mixed_caption(first, second, lam)


class MixedPair(NamedTuple):
    """The mixture of two files, with their analyses."""

    mixture: Mixture
    recordings: tuple[Recording, Recording]
    waveforms: tuple[np.ndarray, np.ndarray]  # (L,) each, whole
    sample_rate: int


def mix_files(
    a: Path,
    b: Path,
    seconds: float,
    mode: str = "synchronous",
    lam: float | None = None,
    seed: int = 0,
    tracker: str = "madmom",
    max_stretch: float = 0.04,
) -> MixedPair:
    """Mix the recordings ``a`` and ``b`` as training would, at the rate of ``a``; ``lam`` is drawn if it is not given.

    Raises:
        ValueError: if a file cannot be used, or the two do not fit together in mode synchronous.
        OSError: if a file cannot be read.
        ImportError: if the tracker, or the package that changes the speed, is not installed.
    """
    if a.resolve() == b.resolve():
        raise ValueError(f"{a} would be mixed with itself: give two recordings")
    if lam is not None and not 0 <= lam <= 1:
        raise ValueError(f"lambda is a share from 0 to 1, got {lam}")
    first, sample_rate = read_audio(a)
    waveforms = {a: first, b: read_audio(b, sample_rate)[0]}
    analysed = []
    for path, waveform in waveforms.items():
        try:
            measured = analyse(waveform, sample_rate, tracker)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        analysed.append(as_analysed(path, {"file_name": path.name, "group": str(path), "key": None} | measured))
    clips = [Clip(path, 0.0, len(waveform) / sample_rate, (), "train") for path, waveform in waveforms.items()]
    settings = MixupSettings(mode=mode, max_stretch=max_stretch)
    dataset = BeatSynchronousMixup(clips, analysed, sample_rate, round(seconds * sample_rate), settings)
    for path, waveform in waveforms.items():
        dataset.kept.get(path, lambda waveform=waveform: waveform)
    rng, recordings = np.random.default_rng(seed), tuple(one.recording for one in analysed)
    if mode == "paper":
        alignment = align_paper(*recordings, rng)
    else:
        check_fit(*recordings, max_stretch)
        alignment = align_synchronous(*recordings, rng, dataset.clip_s, max_stretch)
        if alignment is None:
            raise ValueError(
                f"no downbeats of {a.name} and {b.name} were found after which the beats of both stay within 20 ms "
                f"for {seconds:g} s: one changes its tempo or is too short; give other recordings, fewer seconds, "
                "or mode paper"
            )
    mixture = dataset.mix(0, 1, alignment, rng, lam)
    if mixture is None:
        raise ValueError(f"{a.name} or {b.name} is silent where their bars meet: try another seed")
    return MixedPair(mixture, recordings, tuple(waveforms.values()), sample_rate)


def _without_duplicates(analysed: Sequence[Analysed]) -> list[Recording]:
    """The recordings; exact copies get the same group, so that they are never mixed."""
    group_of: dict[str, str] = {}
    recordings = []
    for one in analysed:
        group = group_of.setdefault(one.digest, one.recording.group)
        recordings.append(one.recording._replace(group=group))
    return recordings
