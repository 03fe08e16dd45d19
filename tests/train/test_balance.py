"""The balance of stereo in the VAE's loss: known errors, where they count, and what a run is then trained for."""

import json
import math

import numpy as np
import pytest
import soundfile
import torch

from musicldm.config import VAEConfig
from musicldm.train import run
from musicldm.train.vae import AUDIBLE, balance_error
from vocoder import MelConfig, pack_rows

MEL = MelConfig(
    24_000, n_fft=512, hop_length=120, n_mels=32, f_max=12_000.0, clip_s=0.64, audio_channels=2, bands_per_row=2
)


def planes() -> torch.Tensor:
    """Mid and side at -2 and -5 nats everywhere, on the left by half."""
    values = torch.tensor([-2.0, -5.0, 0.5])
    return values[None, :, None, None].expand(1, 3, 8, 32).clone()


def error(true: torch.Tensor, made: torch.Tensor) -> float:
    return float(balance_error(pack_rows(true, 2), pack_rows(made, 2), MEL))


def test_it_is_the_mean_distance_of_the_balances():
    true, made = planes(), planes()
    assert error(true, made) == 0
    made[:, 2, :, :8] -= 0.4  # in a quarter of the bands
    made[:, :2] += 1.0  # errors of levels are another's
    assert error(true, made) == pytest.approx(0.1)


def test_bands_that_nobody_hears_do_not_count():
    true, made = planes(), planes()
    made[:, 2, :, 16:] = -1.0
    assert error(true, made) == pytest.approx(0.75)
    true[:, :2, :, 16:] = -2.0 - AUDIBLE - 0.1
    assert error(true, made) == 0
    true[:, 1, :, 16:24] = -2.0 - AUDIBLE + 0.1  # the side alone is heard, in a third of what sounds
    assert error(true, made) == pytest.approx(0.5)
    true[:, :2] = math.log(MEL.floor)
    assert error(true, made) == 0  # silence


def test_each_item_has_its_own_level():
    loud, soft = planes(), planes()
    soft[:, :2] -= 6.0
    made = torch.cat([loud, soft])
    made[1, 2] += 0.3
    assert error(torch.cat([loud, soft]), made) == pytest.approx(0.15)


def test_a_run_is_trained_for_it_and_tells_of_it(tmp_path):
    rng = np.random.default_rng(0)
    data = tmp_path / "data"
    data.mkdir()
    for index in range(6):
        sound = rng.normal(0, 0.1, (15_360, 2)) * [1, 0.2]
        soundfile.write(data / f"{index}.flac", sound, 24_000)
    mel = [f"mel.{name}={getattr(MEL, name)}" for name in MEL.__dataclass_fields__]
    settings = ["steps=2", "batch_size=2", "log_every=1", "validate_every=2", "segment_s=0.32", "adversarial_from=9"]
    run("vae", "tiny", data, tmp_path / "out", overrides=[*mel, *settings, "texture_weight=0.5", "balance_weight=2"])
    rows = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert {row["group"] for row in rows} == {"train", "validation"}
    for row in rows:
        parts = row["l1"] + 1e-4 * row["kl"] + 0.5 * row["texture"] + 2 * row["balance"]
        assert row["loss"] == pytest.approx(parts, rel=1e-5)
        assert row["balance"] > 0


def test_it_is_refused_for_mono_sound():
    with pytest.raises(ValueError, match="balance_weight is for stereo"):
        VAEConfig(balance_weight=1.0)
    with pytest.raises(ValueError, match="balance_weight must not be negative"):
        VAEConfig(balance_weight=-1.0, mel=MEL)
