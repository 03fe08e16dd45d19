"""Decoding in pieces gives what decoding at once gives."""

import copy

import pytest
import torch

from musicldm.config import VAEConfig, VocoderConfig, find_config, load_config
from musicldm.kernels import tiled_decoding as tiles
from musicldm.kernels.precision import lower_decoders
from musicldm.kernels.tiled_decoding import decode, reach, vocode
from musicldm.models.latents import latent_shape
from musicldm.pipelines.memory import decoding_memory
from musicldm.train.vae import make_vae
from tests.helpers.tiny import MEL
from vocoder import make_generator, mel_config

CPU = torch.device("cpu")


@pytest.mark.parametrize(("frames", "piece"), [(1, 4), (4, 4), (9, 4), (23, 1), (40, 7)])
def test_the_vae_in_pieces(tiny_parts, frames, piece):
    torch.manual_seed(frames)
    vae, latents = tiny_parts["vae"], torch.randn(2, 4, frames, 4)
    with torch.no_grad():
        whole = vae.decode(latents).sample
        torch.testing.assert_close(decode(vae, latents, piece), whole, atol=1e-5 * whole.abs().max(), rtol=0)


def test_statistics_are_those_of_the_whole_clip(tiny_parts):
    """Loud pieces beside silent ones: what pieces decoded by themselves would get wrong."""
    latents = torch.randn(1, 4, 32, 4)
    latents[:, :, :16] *= 0.01
    vae = tiny_parts["vae"]
    with torch.no_grad():
        whole = vae.decode(latents).sample
        alone = torch.cat([vae.decode(part).sample for part in latents.split(8, dim=2)], dim=2)
        assert (alone - whole).abs().max() > 0.01 * whole.abs().max()
        torch.testing.assert_close(decode(vae, latents, 8), whole, atol=1e-5 * whole.abs().max(), rtol=0)


@pytest.mark.parametrize(("frames", "tile"), [(1, 10), (50, 10), (64, 64), (131, 30)])
@pytest.mark.parametrize("kernels", [(9, 8, 8), (16, 8, 8)])  # 16 - 5 is odd, as in the published vocoder
def test_the_vocoder_in_tiles(frames, tile, kernels):
    torch.manual_seed(frames)
    vocoder, mel = make_generator(MEL, 16, (5, 4, 4), kernels).eval(), torch.randn(2, frames, 16)
    with torch.no_grad():
        vocoder.conv_post.weight.mul_(0.3 / vocoder(mel).std())
        torch.testing.assert_close(vocode(vocoder, mel[:, None], tile), vocoder(mel), atol=1e-5, rtol=0)


def test_a_sample_depends_on_no_frame_beyond_the_reach(tiny_parts):
    vocoder = copy.deepcopy(tiny_parts["vocoder"]).double()
    far = reach(vocoder)
    mel = torch.randn(1, 2 * far + 41, 16, dtype=torch.float64, requires_grad=True)
    middle = far + 20
    vocoder(mel)[:, 80 * middle : 80 * (middle + 1)].sum().backward()
    heard = mel.grad.abs().sum(dim=2)[0].nonzero().flatten()
    assert middle - far <= heard.min() < middle < heard.max() <= middle + far
    assert middle - heard.min() > far / 3  # or tiles overlap by far too much


def test_the_pipeline_decodes_long_music_in_pieces(tiny_pipeline, monkeypatch):
    options = {"num_inference_steps": 1, "seed": 1, "audio_length_in_s": 2.0, "output_type": "pt"}
    whole = tiny_pipeline("solo flute", **options).audios
    calls = []
    monkeypatch.setattr(tiles, "LONGEST_WHOLE", 100)
    monkeypatch.setattr("musicldm.pipelines.base.tiles.decode", lambda *args: calls.append("vae") or decode(*args, 9))
    monkeypatch.setattr(
        "musicldm.pipelines.base.tiles.vocode", lambda *args: calls.append("vocoder") or vocode(*args, 33)
    )
    torch.testing.assert_close(tiny_pipeline("solo flute", **options).audios, whole, atol=1e-4, rtol=0)
    assert calls == ["vae", "vocoder"]


def test_pieces_need_less_memory_than_the_whole(tiny_parts, monkeypatch):
    vae, vocoder, shape = tiny_parts["vae"], tiny_parts["vocoder"], (1, 4, 1100, 4)
    in_pieces = decoding_memory(vae, vocoder, shape, CPU)
    monkeypatch.setattr(tiles, "LONGEST_WHOLE", 10_000)
    assert in_pieces < decoding_memory(vae, vocoder, shape, CPU) / 2


def test_the_command_line_says_how_much_memory_it_will_take(tiny_folder, tmp_path, monkeypatch, capsys):
    from musicldm.cli import main

    monkeypatch.setattr("musicldm.cli.generate.MEMORY_TO_MENTION", 1000)
    assert not main(["generate", "a", "--model", str(tiny_folder), "--steps", "1", "--out", str(tmp_path)])
    assert "musicldm: decoding will take about 0.0 GiB of memory" in capsys.readouterr().err


def test_ten_minutes_of_the_published_size_fit_into_four_gigabytes():
    with torch.device("meta"):
        vae = make_vae(load_config(VAEConfig, find_config("original", "vae")))
        sizes = load_config(VocoderConfig, find_config("original", "vocoder"))
        vocoder = make_generator(sizes.mel, sizes.channels, sizes.upsample_rates, sizes.upsample_kernel_sizes)
    shape = (1, vae.config.latent_channels, 15_000, 16)
    assert 3e9 < decoding_memory(vae, vocoder, shape, CPU) < 4 * 2**30
    lower_decoders(vae, vocoder, torch.bfloat16)
    assert decoding_memory(vae, vocoder, shape, CPU) < 3.1e9  # the last block is in float32


def test_a_cpu_decodes_waveforms_one_by_one(tiny_pipeline, monkeypatch):
    sizes, vae, vocoder = [], tiny_pipeline.vae, tiny_pipeline.vocoder
    hooks = [
        module.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
        for module in (vae.decoder, vocoder)
    ]
    music = tiny_pipeline(["solo flute", "drums"], num_inference_steps=1, seed=1, output_type="pt").audios
    for hook in hooks:
        hook.remove()
    assert sizes == [1, 1, 1, 1]
    assert len(music) == 2
    mel = mel_config(vocoder)
    shapes = [(n, *latent_shape(vae, mel, mel.clip_frames)) for n in (1, 2)]
    assert decoding_memory(vae, vocoder, shapes[0], CPU) == decoding_memory(vae, vocoder, shapes[1], CPU)
    of_gpu = [decoding_memory(vae, vocoder, shape, torch.device("cuda")) for shape in shapes]
    assert abs(of_gpu[1] - 2 * of_gpu[0]) <= 1
