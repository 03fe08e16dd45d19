"""Pictures (PNG) of waveforms and their mel spectrograms, with axes in seconds and Hz.

These spectrograms are finer than those of the models, and in dB below the loudest point.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from musicldm.audio import write_whole

DYNAMIC_RANGE_DB = 80.0
MAX_COLUMNS = 1600  # time steps of the picture; more would not be visible
NEW = "#f0820f"  # colour of regions that are marked as new
ROUND_HZ = (0, 250, 500, 1000, 2000, 4000, 8000, 16000)


@dataclass(frozen=True)
class Shown:
    """A waveform in a picture."""

    label: str
    waveform: np.ndarray  # (L,), or the mean of (A, L)
    starts_s: float = 0.0  # its start on the picture's time axis


@dataclass(frozen=True)
class Marks:
    """Marked regions and seams of a picture, in seconds on its time axis."""

    regions_s: Sequence[tuple[float, float]] = ()  # new sound, shaded
    seams_s: Sequence[float] = ()  # dashed lines: where new and kept sound meet


def new_figure(width: float, height: float, dpi: int = 120):
    """An empty matplotlib figure of this size in inches, without a window and without global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=dpi, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def png_bytes(figure) -> bytes:
    """``figure`` as a PNG file; characters that the font lacks are drawn as boxes."""
    png = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        figure.savefig(png, format="png")
    return png.getvalue()


def save_figure(path: str | Path, waveform: np.ndarray, sample_rate: int, title: str = "") -> None:
    """Write a PNG of ``waveform``, (L,) or the mean of (A, L): the samples over time above the mel spectrogram.

    Raises:
        ValueError: if the waveform has another shape, or is empty.
        OSError: if the file cannot be written; nothing is left behind.
    """
    save_comparison(path, {"": waveform}, sample_rate, title)


def spectrogram_png(waveform: np.ndarray, sample_rate: int) -> bytes:
    """A PNG, 7 inches wide, of the mel spectrogram alone of ``waveform``, (L,) or the mean of (A, L).

    Raises:
        ValueError: if the waveform has another shape, or is empty.
    """
    waveform = _mono(waveform, "")
    mel = _mel_db(waveform, sample_rate)
    figure = new_figure(7, 2.4, dpi=90)
    axes = figure.subplots()
    _draw_mel(axes, mel - mel.max(), (0.0, len(waveform) / sample_rate), sample_rate)
    axes.set_xlabel("time (s)", fontsize=11)
    return png_bytes(figure)


def save_comparison(path: str | Path, waveforms: dict[str, np.ndarray], sample_rate: int, title: str = "") -> None:
    """`save_figure` for several waveforms, one above the other with their labels; all spectrograms share one scale."""
    shown = [Shown(label, waveform) for label, waveform in waveforms.items()]
    write_whole(path, png_bytes(_drawn(shown, sample_rate, title, Marks())))


def save_edit(
    path: str | Path, old: Shown, new: Shown, sample_rate: int, marks: Marks | None = None, title: str = ""
) -> None:
    """Write a PNG of a recording above its edited version, on one time axis, with ``marks`` in both.

    Raises:
        ValueError: if a waveform has another shape than (L,) or (A, L), or is empty.
        OSError: if the file cannot be written; nothing is left behind.
    """
    write_whole(path, png_bytes(_drawn([old, new], sample_rate, title, marks or Marks())))


def _drawn(shown: Sequence[Shown], sample_rate: int, title: str, marks: Marks):
    """A figure of ``shown``, one above the other, each a waveform above its spectrogram."""
    waveforms = [_mono(one.waveform, one.label) for one in shown]
    mels = [_mel_db(waveform, sample_rate) for waveform in waveforms]
    loudest = max(mel.max() for mel in mels)

    figure = new_figure(10, 0.6 + 4.4 * len(shown))
    axes = figure.subplots(2 * len(shown), 1, sharex=True, height_ratios=[1, 2.4] * len(shown), squeeze=False)
    ends = [one.starts_s + len(waveform) / sample_rate for one, waveform in zip(shown, waveforms, strict=True)]
    for i, (one, above, below) in enumerate(zip(shown, axes[::2, 0], axes[1::2, 0], strict=True)):
        draw_waveform(above, waveforms[i], ends[i] - one.starts_s, one.starts_s)
        if one.label:
            above.set_title(one.label, loc="left", fontsize=11)
        image = _draw_mel(below, mels[i] - loudest, (one.starts_s, ends[i]), sample_rate)
        bar = figure.colorbar(image, ax=below, pad=0.01, aspect=18)
        bar.set_label("dB", fontsize=10)
        bar.outline.set_visible(False)
        _draw_marks(above, below, marks)
    words = [word for word, there in (("orange: new", marks.regions_s), ("dashed: seams", marks.seams_s)) if there]
    axes[0, 0].set_title("   ".join(words), loc="right", fontsize=10, color="0.35")
    axes[-1, 0].set_xlabel("time (s)", fontsize=11)
    axes[-1, 0].set_xlim(min(one.starts_s for one in shown), max(ends))
    if title:
        figure.suptitle(one_line(title), fontsize=13)
    return figure


def _draw_marks(above, below, marks: Marks) -> None:
    """Regions and seams over a waveform (``above``) and its spectrogram."""
    for start_s, end_s in marks.regions_s:
        above.axvspan(start_s, end_s, color=NEW, alpha=0.25, linewidth=0, zorder=0)
        below.axvspan(start_s, end_s, ymin=0.98, color=NEW, linewidth=0)
    for seam_s in marks.seams_s:
        above.axvline(seam_s, color="0.25", linewidth=1.0, linestyle=(0, (4, 3)))
        below.axvline(seam_s, color="white", linewidth=1.0, linestyle=(0, (4, 3)))


def save_log_mels(path: Path, log_mels: dict[str, np.ndarray]) -> None:
    """Write a PNG of log-mels (T, F), one above the other with their labels, on the colour scale of the first."""
    figure = new_figure(10, 2.6 * len(log_mels))
    first = next(iter(log_mels.values()))
    rows = figure.subplots(len(log_mels), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (label, log_mel) in zip(rows, log_mels.items(), strict=True):
        axes.imshow(log_mel.T, origin="lower", aspect="auto", cmap="magma", vmin=first.min(), vmax=first.max())
        axes.set_title(label, loc="left", fontsize=11)
        axes.set_ylabel("mel band")
    rows[-1].set_xlabel("frame")
    write_whole(path, png_bytes(figure))


def _mono(waveform: np.ndarray, label: str) -> np.ndarray:
    """``waveform (L,)``, or the mean over the channels of (A, L)."""
    if np.ndim(waveform) not in (1, 2) or not np.size(waveform):
        shape = f"{np.shape(waveform)} {label}".rstrip()
        raise ValueError(f"a waveform must be (samples,) or (channels, samples) and not empty, got {shape}")
    return waveform if np.ndim(waveform) == 1 else np.mean(waveform, axis=0)


def draw_waveform(axes, waveform: np.ndarray, duration_s: float, starts_s: float = 0.0) -> None:
    """``waveform (L,)`` over seconds: lowest and highest sample of each column of the picture."""
    columns = np.array_split(waveform, min(MAX_COLUMNS, len(waveform)))
    times = starts_s + np.linspace(0, duration_s, len(columns), endpoint=False)
    low, high = [c.min() for c in columns], [c.max() for c in columns]
    axes.fill_between(times, low, high, color="#3b528b", linewidth=0.4, edgecolor="#3b528b")
    axes.axhline(0, color="0.6", linewidth=0.5, zorder=0)
    axes.set_ylim(-1.02, 1.02)
    axes.set_yticks([-1, 0, 1])
    axes.set_ylabel("amplitude", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_mel(axes, mel_db: np.ndarray, stretch_s: tuple[float, float], sample_rate: int):
    """Draw ``mel_db (T, F)`` of a stretch of time; returns the image, which the colour bar needs."""
    import torch

    from vocoder.mel import hz_to_mel

    top = sample_rate / 2
    ticks = [hz for hz in ROUND_HZ if hz <= top]
    *positions, highest = hz_to_mel(torch.tensor([*ticks, top], dtype=torch.float64)).tolist()
    image = axes.imshow(
        mel_db.T,
        origin="lower",
        aspect="auto",
        cmap="magma",
        vmin=-DYNAMIC_RANGE_DB,
        vmax=0.0,
        extent=(*stretch_s, 0, highest),
        interpolation="nearest",
    )
    axes.set_yticks(positions, [f"{hz:,}".replace(",", " ") for hz in ticks])
    axes.set_ylabel("frequency (Hz)", fontsize=11)
    return image


def _mel_db(waveform: np.ndarray, sample_rate: int) -> np.ndarray:
    """Log-mel spectrogram ``(T, F)`` in dB, at most about MAX_COLUMNS frames."""
    import torch

    from vocoder import MelConfig, log_mel_spectrogram

    n_fft = 2 ** round(math.log2(sample_rate / 8))  # 2048 at 16 kHz: fine enough to tell harmonics apart
    config = MelConfig(
        sample_rate=sample_rate,
        n_fft=n_fft,
        hop_length=min(max(len(waveform) // MAX_COLUMNS, n_fft // 16), n_fft),
        n_mels=160,
        f_max=sample_rate / 2,
        floor=1e-7,
    )
    padded = np.pad(np.asarray(waveform, np.float32), (0, max(0, n_fft // 2 + 1 - len(waveform))))
    return log_mel_spectrogram(torch.from_numpy(padded)[None], config)[0].numpy() * (20 / math.log(10))


def one_line(title: str, longest: int = 90) -> str:
    """``title`` as matplotlib can show it in one line of ``longest`` characters."""
    title = " ".join(title.split()).replace("$", r"\$")  # a dollar sign starts a formula in matplotlib
    return title if len(title) <= longest else title[: longest - 1].rstrip() + "…"
