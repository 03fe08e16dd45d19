"""The bundled model: whole, small enough, and it plays."""

from pathlib import Path

import numpy as np
import pytest
import torch

import musicldm
from musicldm import MusicLDMPipeline
from vocoder import log_mel_spectrogram, mel_config

FOLDER = Path(musicldm.__file__).parent / "pretrained" / "mini"


@pytest.fixture(scope="module")
def mini() -> MusicLDMPipeline:
    pipeline = MusicLDMPipeline.from_pretrained("mini")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_it_is_small_free_of_pickles_and_documented():
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 60e6
    assert not [path for path in files if path.suffix in (".bin", ".pt", ".pkl", ".ckpt")]
    assert (FOLDER / "README.md").is_file()
    scores = (FOLDER / "scores.csv").read_text().splitlines()
    assert len(scores) > 100
    assert "licence" in scores[0]
    assert "pop909" not in "".join(scores)


def test_it_plays_something_that_changes_in_time_and_frequency(mini):
    output = mini("solo piano, slow", audio_length_in_s=5.0, num_inference_steps=8, seed=0)
    (waveform,) = output.audios
    assert waveform.shape == (5 * 16_000,)
    assert np.isfinite(waveform).all()
    assert 0.005 < np.sqrt(np.mean(waveform**2)) < 0.7
    mel = log_mel_spectrogram(torch.from_numpy(waveform)[None], mel_config(mini.vocoder))[0]
    assert mel.mean(dim=0).std() > 0.5  # bands differ
    assert mel.std(dim=0).mean() > 0.2  # and each of them moves


def test_the_prompt_matters_and_the_seed_repeats(mini):
    options = {"audio_length_in_s": 2.0, "num_inference_steps": 4, "output_type": "latent"}
    piano, again, drums = (
        mini(prompt, seed=3, **options).audios for prompt in ("solo piano", "solo piano", "drums, very fast")
    )
    assert np.array_equal(piano, again)
    assert np.abs(piano - drums).mean() > 0.01
