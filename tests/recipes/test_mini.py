"""The bundled model: whole, small enough, and it plays."""

from pathlib import Path

import numpy as np
import pytest
import torch

import musicldm
from musicldm import MusicLDMPipeline
from musicldm.models.clap import embed_audio
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


@torch.no_grad()
def test_what_it_plays_is_what_the_prompts_ask_for_and_moves(mini):
    """Heard by its own CLAP; at seeds 0, 3 and 6 each prompt is nearer by 0.37 or more to its own music."""
    prompts = ["solo piano, slow", "drums, very fast", "a string quartet plays a calm waltz"]
    made = mini(prompts, audio_length_in_s=5.0, num_inference_steps=8, seed=0, output_type="pt").audios
    assert made.shape == (3, 5 * 16_000)
    heard = embed_audio(mini.text_encoder, mini.feature_extractor, made, 16_000)
    similarity = heard @ mini.embed_texts(prompts).T  # (music, prompt)
    others = similarity - 2 * torch.eye(3)
    assert (similarity.diagonal() - others.amax(dim=1)).min() > 0.2
    assert (similarity.diagonal() - others.amax(dim=0)).min() > 0.2
    mel = log_mel_spectrogram(made, mel_config(mini.vocoder))  # (3, T, F)
    assert mel.mean(dim=1).std(dim=1).min() > 0.5  # bands differ
    assert mel.std(dim=1).mean(dim=1).min() > 0.2  # and each of them moves


def test_the_prompt_matters_and_the_seed_repeats(mini):
    options = {"audio_length_in_s": 2.0, "num_inference_steps": 4, "output_type": "latent"}
    piano, again, drums = (
        mini(prompt, seed=3, **options).audios for prompt in ("solo piano", "solo piano", "drums, very fast")
    )
    assert np.array_equal(piano, again)
    assert np.abs(piano - drums).mean() > 0.01
