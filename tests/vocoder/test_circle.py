"""Waveforms on a circle of time: generator, matching passes, panning and limiter go round the end."""

from dataclasses import replace

import pytest
import torch

from musicldm.kernels.tiled_decoding import vocode
from tests.helpers.tiny import MEL
from vocoder import install_matching, make_generator
from vocoder.match import CEILING

HOP = MEL.hop_length


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("frames", [1, 3, 41, 150])
@pytest.mark.parametrize("kernels", [(9, 8, 8), (16, 8, 8)])  # 16 - 5 is odd, as in the published vocoder
@torch.no_grad()
def test_rotated_planes_give_a_rotated_waveform(channels, frames, kernels):
    torch.manual_seed(frames)
    mel = replace(MEL, audio_channels=channels)
    vocoder = install_matching(make_generator(mel, 16, (5, 4, 4), kernels)).eval().double()
    vocoder.config.match_passes = 2
    planes = torch.randn(1, mel.planes, frames, 16, dtype=torch.float64)
    planes[:, 0] += 3  # loud enough for the limiter
    if channels == 2:
        planes[:, 2].clamp_(-1, 1)  # balance
    music = vocode(vocoder, planes, loop=True)
    assert music.shape == ((1, frames * HOP) if channels == 1 else (1, 2, frames * HOP))
    assert music.abs().max() > 0.99 * CEILING
    for turn in {1, frames // 2}:
        rotated = vocode(vocoder, planes.roll(turn, 2), 30, loop=True)  # in tiles that lie elsewhere
        torch.testing.assert_close(rotated, music.roll(turn * HOP, -1), atol=1e-4, rtol=0)  # matched in float32
    if frames * HOP > MEL.n_fft:  # shorter lines have no whole frame for the matching
        line = vocode(vocoder, planes)[..., : frames * HOP]
        assert (line - music)[..., :HOP].abs().max() > 0.01
