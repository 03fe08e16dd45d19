"""A classifier of instrument families: a support-vector machine on log-mel statistics, trained on rendered solos.

    waveform -> `log_mel_statistics`, minus the overall level (B, 4 F) -> SVM -> probability of each family (B, K)

It is independent of the model that is evaluated. Cortes and Vapnik (1995); probabilities after Platt (1999).
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from torch import Tensor

from musicldm.analysis.embedders import JUDGE_MEL, log_mel_statistics
from musicldm.audio.resampling import resample
from musicldm.data.metadata import metadata_rows
from vocoder import MelConfig


class FamilyProbe:
    """A classifier of instrument families.

    Args:
        features: of the training clips (N, 4 F), from `probe_features`.
        families: names of their families (N,).

    Attributes:
        classes: names of the families, in the order of the columns of `probabilities`.
        name: identifies the probe; it depends on the training data.

    Raises:
        ValueError: for fewer than two families, or fewer than two clips of one.
    """

    def __init__(self, features: np.ndarray, families: np.ndarray):
        from sklearn.calibration import CalibratedClassifierCV
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
        from sklearn.svm import SVC

        if len(features) != len(families) or len(set(families)) < 2:
            raise ValueError(f"a probe needs training clips of two or more families, got {sorted(set(families))}")
        fewest = min(np.unique(families, return_counts=True)[1])
        if fewest < 2:
            raise ValueError(
                "a probe needs two or more training clips of each family; add some to the folder of --probe"
            )
        machine = make_pipeline(StandardScaler(), SVC(C=10.0, gamma="scale"))
        self.classifier = CalibratedClassifierCV(machine, ensemble=False, cv=min(5, int(fewest)))
        self.classifier.fit(features, families)
        self.classes = tuple(str(name) for name in self.classifier.classes_)
        learned = np.ascontiguousarray(features, np.float32).tobytes() + "".join(families).encode()
        self.name = f"family-probe-{hashlib.sha256(learned).hexdigest()[:12]}"

    @classmethod
    def train(cls, folder: str | Path, mel: MelConfig = JUDGE_MEL, cache: Path | None = None) -> FamilyProbe:
        """Train a probe on an audio folder whose ``metadata.jsonl`` names each clip's family as ``orchestration``.

        Args:
            folder: with the recordings and their metadata.
            mel: parameters of the log-mel spectrograms.
            cache: a folder that keeps the features for the next time.

        Raises:
            FileNotFoundError: if there are no metadata or recordings.
            ValueError: if no row names a family.
        """
        return cls(*folder_features(folder, mel, cache))

    def __call__(self, waveforms: Tensor, sample_rate: int) -> np.ndarray:
        """`probabilities` of ``waveforms (B, L)`` at any rate."""
        mel = JUDGE_MEL
        return self.probabilities(resample(waveforms, sample_rate, mel.sample_rate)[:, : mel.clip_samples], mel)

    def probabilities(self, waveforms: Tensor, mel: MelConfig = JUDGE_MEL) -> np.ndarray:
        """Probability of each family ``(B, K)`` for ``waveforms (B, L)`` at the rate of ``mel``."""
        return self.classifier.predict_proba(probe_features(waveforms, mel))

    def families(self, waveforms: Tensor, mel: MelConfig = JUDGE_MEL) -> np.ndarray:
        """The most probable family (B,) of ``waveforms (B, L)``."""
        return np.array(self.classes)[self.probabilities(waveforms, mel).argmax(axis=1)]


def probe_features(waveforms: Tensor, mel: MelConfig = JUDGE_MEL) -> np.ndarray:
    """Log-mel statistics ``(B, 4 F)`` of ``waveforms (B, L)``, minus each clip's mean level (loudness)."""
    features = log_mel_statistics(waveforms, mel)
    features[:, : mel.n_mels] -= features[:, : mel.n_mels].mean(dim=1, keepdim=True)
    return features.numpy()


class ProbeFeatures:
    """`probe_features` as an embedder."""

    def __init__(self, mel: MelConfig = JUDGE_MEL):
        self.mel, self.name = mel, f"probe-features {mel}"

    def __call__(self, waveforms: Tensor, sample_rate: int) -> np.ndarray:
        heard = resample(waveforms, sample_rate, self.mel.sample_rate)[:, : self.mel.clip_samples]
        return probe_features(heard, self.mel)


def folder_features(
    folder: str | Path, mel: MelConfig = JUDGE_MEL, cache: Path | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Features (N, 4 F) and families (N,) of the clips in an audio folder; see `FamilyProbe.train`."""
    from musicldm.evaluate.collect import Clip, embed_clips

    folder = Path(folder)
    if not (folder / "metadata.jsonl").is_file():
        raise FileNotFoundError(
            f"{folder / 'metadata.jsonl'} is missing; train the probe on a folder that `musicldm render` wrote"
        )
    rows = [row for row in metadata_rows(folder) if row.get("orchestration", "original") != "original"]
    if not rows:
        raise ValueError(
            f"no row of {folder} names an instrument family as its orchestration; render with --orchestrate FAMILIES"
        )
    clips = [Clip(folder / row["file_name"], row.get("text")) for row in rows]
    features, heard = embed_clips(clips, ProbeFeatures(mel), mel.sample_rate, cache)
    return features, np.array([row["orchestration"] for row in rows])[heard]
