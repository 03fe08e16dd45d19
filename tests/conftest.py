"""Tiny real models: the classes, structure and connections of the released ones, at sizes that run in milliseconds.

8 kHz, 16 mel bands, 0.32 s: nothing here has the released model's rates and sizes, so whatever assumes them fails.
"""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before the hub's client is imported; set to 0 for `network` tests

import pytest
import torch
from diffusers import DDIMScheduler
from hypothesis import settings

from musicldm.models.clap import clap_feature_extractor, train_tokenizer
from musicldm.pipelines.text_to_music import MusicLDMPipeline
from tests.helpers.tiny import CAPTIONS, MEL, make_clap, make_context_unet, make_unet, make_vae
from vocoder import make_generator

settings.register_profile("same every time", derandomize=True, deadline=None)
settings.load_profile("same every time")  # --hypothesis-profile=default looks for new cases

torch.set_num_threads(1)  # on tensors this small, threads mostly wait for each other


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    if item.get_closest_marker("network") and os.environ["HF_HUB_OFFLINE"] != "0":
        pytest.skip("needs a model hub, and HF_HUB_OFFLINE=0")


@pytest.fixture(scope="session")
def tiny_parts() -> dict:
    """Parts of a tiny pipeline, shared: tests that change one make a copy first."""
    torch.manual_seed(0)
    tokenizer = train_tokenizer(CAPTIONS * 5, 300)
    vae, vocoder = make_vae(), make_generator(MEL, 16, (5, 4, 4), (9, 8, 8))
    with torch.no_grad():  # fresh weights give flat spectrograms and a whisper: differences would not show
        vae.decoder.conv_out.weight.mul_(20)
        mel = vae.decode(torch.randn(1, 4, 8, 4)).sample.squeeze(1)
        vocoder.conv_post.weight.mul_(0.3 / vocoder(mel)[:, 100:-100].std())
    return {
        "vae": vae,
        "text_encoder": make_clap(len(tokenizer)),
        "tokenizer": tokenizer,
        "feature_extractor": clap_feature_extractor(16_000, 0.5, n_fft=512, hop_length=160, n_mels=16, f_max=8000.0),
        "unet": make_unet(),
        "scheduler": DDIMScheduler(
            beta_start=0.0015,
            beta_end=0.0195,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        ),
        "vocoder": vocoder.eval(),
    }


@pytest.fixture
def exact_pipeline(tiny_folder) -> MusicLDMPipeline:
    """The tiny pipeline in float64, where two ways to the same music differ by 1e-10 on every processor."""
    pipeline = MusicLDMPipeline.from_pretrained(tiny_folder, torch_dtype=torch.float64)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def tiny_pipeline(tiny_parts) -> MusicLDMPipeline:
    """A pipeline of the tiny parts, with a scheduler of its own and no progress bar."""
    parts = tiny_parts | {"scheduler": DDIMScheduler.from_config(tiny_parts["scheduler"].config)}
    pipeline = MusicLDMPipeline(**parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="session")
def tiny_folder(tiny_parts, tmp_path_factory):
    """The tiny pipeline saved as a model folder; not to be changed."""
    folder = tmp_path_factory.mktemp("model")
    MusicLDMPipeline(**tiny_parts).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def context_folder(tiny_parts, tmp_path_factory):
    """The same with a UNet that takes contexts of all kinds; not to be changed."""
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("context-model")
    MusicLDMPipeline(**tiny_parts | {"unet": make_context_unet()}).save_pretrained(folder)
    return folder
