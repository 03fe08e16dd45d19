"""Two recordings and their beats, before and after alignment, as a picture (PNG)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from augment.pairing import Recording
from musicldm.audio import write_whole
from musicldm.audio.figures import draw_waveform, new_figure, one_line, png_bytes
from musicldm.data.mixup import MixedPair

BEAT, DOWNBEAT = "#e08214", "#b2182b"


def save_mixup_figure(path: str | Path, pair: MixedPair, names: tuple[str, str]) -> None:
    """Write a PNG: both recordings around their cuts, the two parts as they were mixed, and the mixture.

    Thin lines are beats, thick lines downbeats; in the lower half those of both parts should coincide.

    Raises:
        OSError: if the file cannot be written; nothing is left behind.
    """
    mixture, fit = pair.mixture, pair.mixture.alignment
    seconds = len(mixture.waveform) / pair.sample_rate
    cuts = ((fit.a_start_s + mixture.crop_s, 1.0), (fit.b_start_s + mixture.crop_s * fit.speed, fit.speed))
    figure = new_figure(11, 9.5, dpi=110)
    rows = figure.subplots(5, 1)
    for axes, recording, waveform, (start_s, speed), name in zip(
        rows[:2], pair.recordings, pair.waveforms, cuts, names, strict=True
    ):
        draw_waveform(axes, waveform / max(1e-9, np.abs(waveform).max()), recording.duration_s)
        _draw_beats(axes, recording, 0.0, 1.0, recording.duration_s, (-1, 1))
        axes.axvspan(start_s, start_s + seconds * speed, color="#4dac26", alpha=0.25, zorder=0)
        axes.set_xlim(0, recording.duration_s)
        title = f"{name}: {recording.tempo_bpm:.1f} BPM, {recording.beats_per_bar} beats to the bar; green: what is cut"
        axes.set_title(one_line(title, 110), loc="left", fontsize=10)
    loudest = max(np.abs(mixture.a).max(), np.abs(mixture.b).max(), 1e-9)
    for axes, own, waveform in zip(rows[2:4], (0, 1), (mixture.a, mixture.b), strict=True):
        draw_waveform(axes, waveform / loudest, seconds)
        for which, height in ((own, (0, 1)), (1 - own, (-1, 0))):
            _draw_beats(axes, pair.recordings[which], *cuts[which], seconds, height)
        speed = cuts[own][1]
        changed = "" if speed == 1 else f", {speed:.3f} times as fast"
        title = f"{names[own]}, aligned{changed}; upper half: its own beats, lower half: those of the other"
        axes.set_title(one_line(title, 110), loc="left", fontsize=10)
    draw_waveform(rows[4], mixture.waveform, seconds)
    rows[4].set_title(f"mixture, λ = {mixture.lam:.2f}", loc="left", fontsize=10)
    rows[4].set_xlabel("time (s)", fontsize=11)
    for axes in rows[2:]:
        axes.set_xlim(0, seconds)
    write_whole(path, png_bytes(figure))


def _draw_beats(
    axes, recording: Recording, start_s: float, speed: float, seconds: float, height: tuple[float, float]
) -> None:
    """Draw lines at the beats of ``recording`` when it is cut at ``start_s`` and played at ``speed``."""
    for times, color, width in ((recording.beats_s, BEAT, 0.7), (recording.downbeats_s, DOWNBEAT, 1.8)):
        at = (times - start_s) / speed
        axes.vlines(at[(at >= 0) & (at <= seconds)], *height, color=color, linewidth=width)
