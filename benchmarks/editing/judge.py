"""Can a classifier tell joined places from true ones? Its features and its area under the curve on held-out pieces.

    waveform (L,), a time -> what changes there, beside how much changes nearby (D,) -> boosted trees -> score

Every feature compares what lies before the place with what lies after it; nothing describes one side alone, since the
question is whether there is a joint, not whether music was generated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy.linalg import solve_toeplitz
from scipy.signal import lfilter

from musicldm.analysis.key import pitch_bands
from musicldm.evaluate.intervals import Estimate, bootstrap
from vocoder import MelConfig, log_mel_spectrogram

FRAMES_PER_S = 100
MEL = MelConfig(sample_rate=16_000, n_fft=512, hop_length=160, n_mels=64, f_min=0.0, f_max=8000.0, floor=1e-4)
FINE = MelConfig(sample_rate=16_000, n_fft=256, hop_length=32, n_mels=24, f_min=0.0, f_max=8000.0, floor=1e-4)
SPANS_S = (0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0)  # compared on either side
REACHES = (0.1, 0.5, 2.0)  # of three judges: how far to either side they hear
NEARBY_S = (-1.9, -1.5, -1.2, -0.9, -0.6, 0.6, 0.9, 1.2, 1.5, 1.9)  # where change is usual, from the place
BANDS = ((0, 16), (16, 32), (32, 48), (48, 64))  # of the 64
ORDER = 32  # of the linear prediction
FOLDS = 8


class Place(NamedTuple):
    """A place in a piece with its features."""

    piece_id: str
    joined: bool
    features: np.ndarray  # (D,)


class Heard:
    """What the features are taken from, computed once a waveform (L,)."""

    def __init__(self, waveform: np.ndarray, rate: int):
        self.waveform, self.rate = np.asarray(waveform, np.float32), rate
        if rate != MEL.sample_rate:
            raise ValueError(f"places are judged at {MEL.sample_rate} Hz, got {rate}")
        samples = torch.from_numpy(self.waveform)[None]
        self.mel = log_mel_spectrogram(samples, MEL)[0].numpy()  # (T, F)
        self.fine = log_mel_spectrogram(samples, FINE)[0].numpy()  # 500 frames a second
        self.pitches = np.log(pitch_bands(self.waveform, rate, FRAMES_PER_S / 4) + 1e-3)
        self.total = np.concatenate([np.zeros((1, self.mel.shape[1])), np.cumsum(self.mel, axis=0)])
        spectrum = torch.stft(samples[0], 512, 160, window=torch.hann_window(512), return_complex=True).numpy()
        self.unforeseen = unforeseen(spectrum)

    def features(self, time_s: float) -> np.ndarray:
        """What changes at ``time_s``: as it is, and relative to what changes nearby. (D,)"""
        here = self._changes(time_s)
        around = np.array([self._changes(time_s + offset) for offset in NEARBY_S])
        typical, spread = np.median(around, axis=0), around.std(axis=0)
        rank = (around < here).mean(axis=0)
        return np.concatenate([here, here - typical, (here - typical) / (spread + 1e-3), rank])

    def _changes(self, time_s: float) -> np.ndarray:
        values: list[float] = []
        for span_s in SPANS_S:
            difference = self._mean(time_s, span_s) - self._mean(time_s - span_s, span_s)
            values += [np.abs(difference).mean(), difference.std(), np.abs(difference).max(), abs(difference.mean())]
            values += [np.abs(difference[low:high]).mean() for low, high in BANDS]
        frame = round(time_s * FRAMES_PER_S)
        near = self.unforeseen[max(0, frame - 3) : frame + 4]
        values += [near.max(), near.mean()] if len(near) else [0.0, 0.0]
        values += self._dip(time_s) + self._residual(time_s) + self._harmony(time_s) + self._pulse(time_s)
        return np.nan_to_num(np.array(values))

    def _mean(self, from_s: float, span_s: float) -> np.ndarray:
        first, last = (round(t * FRAMES_PER_S) for t in (from_s, from_s + span_s))
        first, last = max(0, min(first, len(self.mel) - 1)), min(len(self.mel), max(last, 1))
        last = max(last, first + 1)
        return (self.total[last] - self.total[first]) / (last - first)

    def _dip(self, time_s: float) -> list[float]:
        """How far the level falls, and how sharply bands move, within some milliseconds of the place."""
        frames, at = self.fine, round(time_s * 500)
        near, wide = (frames[max(0, at - half) : at + half] for half in (20, 50))
        if len(near) < 3 or len(wide) < 3:
            return [0.0] * 4
        level = wide.mean(axis=1)
        return [
            level.mean() - near.mean(axis=1).min(),
            near.mean(axis=1).max() - level.mean(),
            np.abs(np.diff(near, axis=0)).mean(axis=1).max(),
            np.diff(near, axis=0)[:, 12:].mean(axis=1).max(),
        ]

    def _residual(self, time_s: float) -> list[float]:
        """How badly the samples at the place are foretold from those before, and from those after it."""
        at, length = round(time_s * self.rate), round(0.05 * self.rate)
        found = []
        for waveform in (self.waveform, self.waveform[::-1]):
            middle = at if waveform is self.waveform else len(waveform) - at
            part = waveform[max(0, middle - length) : max(0, middle + length // 4)].astype(np.float64)
            if len(part) < length + length // 4:
                found += [0.0, 0.0]
                continue
            known = part[: -(length // 4)] * np.hanning(len(part) - length // 4)
            correlation = np.correlate(known, known, "full")[len(known) - 1 : len(known) + ORDER]
            correlation[0] = correlation[0] * (1 + 1e-6) + 1e-9
            taps = solve_toeplitz(correlation[:-1], correlation[1:])
            error = np.square(lfilter(np.r_[1.0, -taps], [1.0], part)[ORDER:]) + 1e-12
            seam = error[-(length // 4) - 8 :]
            found += [np.log(seam.max() / error.mean()), np.log(seam.mean() / error[: -len(seam)].mean())]
        return found

    def _harmony(self, time_s: float) -> list[float]:
        """Change of the levels of semitones over half a second and over two."""
        at, values = round(time_s * FRAMES_PER_S / 4), []
        for frames in (12, 50):
            before, after = self.pitches[max(0, at - frames) : at], self.pitches[at : at + frames]
            if not len(before) or not len(after):
                return [0.0] * 4
            a, b = np.exp(before).mean(axis=0), np.exp(after).mean(axis=0)
            values += [1 - float(a @ b / np.sqrt(a @ a * (b @ b)))]
            a, b = (np.bincount(np.arange(len(x)) % 12, x) for x in (a, b))
            values += [1 - float(a @ b / np.sqrt(a @ a * (b @ b)))]
        return values

    def _pulse(self, time_s: float) -> list[float]:
        """How differently the onsets repeat before and after the place."""
        flux = np.maximum(np.diff(self.mel, axis=0), 0).mean(axis=1)
        at, sides = round(time_s * FRAMES_PER_S), []
        for part in (flux[max(0, at - 300) : at], flux[at : at + 300]):
            if len(part) < 150:
                return [0.0, 0.0]
            part = part - part.mean()
            sides.append(np.correlate(part, part, "full")[len(part) :][:140] / (part @ part + 1e-9))
        a, b = sides
        return [float(np.abs(a - b).mean()), 1 - float(np.corrcoef(a, b)[0, 1])]


def columns(reach_s: float) -> np.ndarray:
    """Which features (D,) hear no farther than ``reach_s`` to either side of the place."""
    spans = [span for span in SPANS_S for _ in range(4 + len(BANDS))]
    reaches = [*spans, *6 * [0.05], *4 * [0.0625], 0.5, 0.5, 2.0, 2.0, 2.0, 2.0]  # in the order of `Heard._changes`
    return np.tile(np.array(reaches) <= reach_s, 4)


def unforeseen(spectrum: np.ndarray) -> np.ndarray:
    """Share of a short-time spectrum (K, T) that steady partials do not foretell, (T,).

    Bello et al. (2004), On the use of phase and energy for musical onset detection in the complex domain.
    """
    phase, size = np.angle(spectrum), np.abs(spectrum)
    expected = size[:, 1:-1] * np.exp(1j * (2 * phase[:, 1:-1] - phase[:, :-2]))
    error = np.abs(spectrum[:, 2:] - expected).sum(axis=0) / (size[:, 2:].sum(axis=0) + 1e-3)
    return np.concatenate([[0.0, 0.0], error])


def folds(piece_ids: Sequence[str], count: int = FOLDS) -> np.ndarray:
    """For each place the fold that its piece belongs to; no piece is in two."""
    names = sorted(set(piece_ids))
    order = np.random.default_rng(0).permutation(len(names))
    fold_of = {names[i]: rank % count for rank, i in enumerate(order)}
    return np.array([fold_of[name] for name in piece_ids])


def held_out_scores(places: Sequence[Place]) -> np.ndarray:
    """How joined each place seems to classifiers that heard other pieces only, ranked within each fold, (N,)."""
    from sklearn.ensemble import ExtraTreesClassifier, HistGradientBoostingClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import QuantileTransformer

    data = np.array([place.features for place in places])
    joined = np.array([place.joined for place in places])
    fold, scores = folds([place.piece_id for place in places]), np.zeros(len(places))
    for i in range(FOLDS):
        train, test = fold != i, fold == i
        if not test.any():
            continue
        heard = []
        for model in (
            HistGradientBoostingClassifier(
                max_iter=100, learning_rate=0.08, max_leaf_nodes=8, class_weight="balanced", random_state=0
            ),
            ExtraTreesClassifier(200, min_samples_leaf=3, class_weight="balanced", random_state=0),
            make_pipeline(
                QuantileTransformer(n_quantiles=min(100, int(train.sum())), output_distribution="normal"),
                LogisticRegression(C=0.02, max_iter=2000, class_weight="balanced"),
            ),
        ):
            model.fit(data[train], joined[train])
            heard.append(ranks(model.predict_proba(data[test])[:, 1]))
        scores[test] = np.mean(heard, axis=0)
    return scores


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks of ``values`` from 0 to 1."""
    from scipy.stats import rankdata

    return rankdata(values) / len(values)


def area(places: Sequence[Place]) -> Estimate:
    """Area under the curve of `held_out_scores`, with an interval over pieces."""
    from sklearn.metrics import roc_auc_score

    scores, joined = held_out_scores(places), np.array([place.joined for place in places])
    names = sorted({place.piece_id for place in places})
    rows = {name: [i for i, place in enumerate(places) if place.piece_id == name] for name in names}

    def statistic(chosen: np.ndarray) -> float:
        at = np.concatenate([rows[names[i]] for i in chosen])
        return 0.5 if joined[at].all() or not joined[at].any() else float(roc_auc_score(joined[at], scores[at]))

    return bootstrap(statistic, np.arange(len(names)), draws=400)
