"""The decoders in 16 bits: what stays exact, how far the results move, and that everything else goes on working."""

import copy

import pytest
import torch

from musicldm.kernels import tiled_decoding as tiles
from musicldm.kernels.precision import lower_decoders
from musicldm.pipelines.text_to_music import MusicLDMPipeline
from vocoder import log_mel_spectrogram, mel_config


@pytest.fixture(scope="module")
def mini():
    return MusicLDMPipeline.from_pretrained("mini")


def lowered(pipeline, dtype=torch.bfloat16):
    """Copies of its VAE and vocoder, changed."""
    vae, vocoder = copy.deepcopy(pipeline.vae), copy.deepcopy(pipeline.vocoder)
    lower_decoders(vae, vocoder, dtype)
    return vae, vocoder


def random_latents(pipeline, frames=16):
    bands = pipeline.vocoder.config.model_in_dim // pipeline.vae_scale_factor
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, pipeline.vae.config.latent_channels, frames, bands, generator=generator)


@torch.no_grad()
def test_bfloat16_is_far_nearer_than_the_round_trip(mini):
    vae, vocoder = lowered(mini)
    latents = random_latents(mini)
    mel = mini.decode_latents(latents)
    other = vae.decode(latents / vae.config.scaling_factor).sample.squeeze(1)
    assert other.dtype == torch.float32
    exact, near = mini.vocoder(mel), vocoder(other)
    assert near.dtype == torch.float32
    config = mel_config(mini.vocoder)
    error = (log_mel_spectrogram(near, config) - log_mel_spectrogram(exact, config)).abs().mean()
    assert 0 < error < 0.05  # of the round trip: 0.6


@torch.no_grad()
def test_the_vocoders_first_level_keeps_the_phases(mini):
    _, vocoder = lowered(mini)
    plain = copy.deepcopy(mini.vocoder).to(torch.bfloat16)
    mel = mini.decode_latents(random_latents(mini))
    exact = mini.vocoder(mel)

    def error(waveform):
        return ((waveform.float() - exact).norm() / exact.norm()).item()

    assert error(vocoder(mel)) < 0.02
    assert error(plain(mel.bfloat16())) > 2 * error(vocoder(mel))  # 3.5 to 4.1 times, as a processor sums in bfloat16


@torch.no_grad()
def test_pieces_give_what_the_whole_gives(mini):
    vae, vocoder = lowered(mini)
    latents = random_latents(mini, 24) / vae.config.scaling_factor
    whole = vae.decode(latents).sample
    in_pieces = tiles.decode(vae, latents, latent_frames=7)
    assert in_pieces.dtype == whole.dtype
    assert (in_pieces - whole).abs().mean() < 0.01
    mel = whole.squeeze(1)
    waveform = vocoder(mel)
    assert (tiles.vocode(vocoder, whole, mel_frames=64) - waveform).norm() < 0.03 * waveform.norm()


@torch.no_grad()
def test_float32_again_is_float32(tiny_pipeline):
    vae, vocoder = lowered(tiny_pipeline)
    for network in (vae, vocoder):
        torch.nn.Module.to(network, torch.float32)
    latents = random_latents(tiny_pipeline)
    mel, exact = (network.decode(latents).sample.squeeze(1) for network in (vae, tiny_pipeline.vae))
    assert 0 < (mel - exact).norm() < 0.01 * exact.norm()  # the weights stay rounded
    assert vocoder(mel).dtype == torch.float32


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_encoder_is_not_touched(tiny_pipeline, dtype):
    vae, _ = lowered(tiny_pipeline, dtype)
    mel = torch.randn(1, 1, 16, tiny_pipeline.vocoder.config.model_in_dim)
    latents = vae.encode(mel).latent_dist.mode()
    assert torch.equal(latents, tiny_pipeline.vae.encode(mel).latent_dist.mode())
    assert vae.decode(latents).sample.isfinite().all()


def test_twice_is_once(tiny_pipeline):
    vae, vocoder = lowered(tiny_pipeline)
    lower_decoders(vae, vocoder, torch.bfloat16)
    for network in (vae, vocoder):
        assert max(len(part._forward_pre_hooks) for part in network.modules()) == 1
