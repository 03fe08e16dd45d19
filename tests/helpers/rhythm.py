"""Rhythms whose beats are known."""

import importlib.util
import os

import numpy as np
import pytest

RATE = 22050


def needs_madmom(test):
    """Mark ``test``; skipped without madmom, except where MUSICLDM_SHARED says that everything should be there."""
    missing = importlib.util.find_spec("madmom") is None and not os.environ.get("MUSICLDM_SHARED")
    return pytest.mark.madmom(pytest.mark.skipif(missing, reason="needs madmom: run `make beats`")(test))


def drum_track(bpm, beats_per_bar, pickup=0, start_s=0.3, rate=RATE):
    """A kick on downbeats, a hi-hat on the other beats, for 4 bars and at least 6 s: waveform, beats, downbeats.

    ``pickup`` beats come before the first downbeat.
    """
    duration_s = max(6.0, 4 * beats_per_bar * 60 / bpm + start_s)
    beats = np.arange(start_s, duration_s - 0.15, 60 / bpm)
    t = np.arange(round(0.12 * rate)) / rate
    kick = 0.8 * np.sin(2 * np.pi * (50 * t - 0.4 * np.exp(-t / 0.02))) * np.exp(-t / 0.04)
    hat = 0.3 * np.random.default_rng(0).normal(size=len(t)) * np.exp(-t / 0.015)
    waveform = np.zeros(round(duration_s * rate), dtype=np.float32)
    for i, beat in enumerate(beats):
        at = round(beat * rate)
        waveform[at : at + len(t)] += kick if (i - pickup) % beats_per_bar == 0 else hat
    return waveform, beats, beats[pickup::beats_per_bar]
