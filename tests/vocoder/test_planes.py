"""Stereo as three planes: where sounds lie survives a vocoder that invents its phases, and the mono sum is the mid."""

import math
from dataclasses import replace

import pytest
import torch
from transformers import SpeechT5HifiGan

from musicldm.models.loading import bundled_models
from vocoder import (
    MelConfig,
    install_matching,
    log_mel_spectrogram,
    make_generator,
    mel_config,
    pack_rows,
    spectrogram_planes,
    unpack_rows,
    vocode_planes,
)
from vocoder.match import CEILING
from vocoder.planes import mid_and_side

MEL = MelConfig(sample_rate=24_000, n_fft=1024, hop_length=240, n_mels=64, f_max=12_000.0, audio_channels=2)
LENGTH = MEL.sample_rate  # one second
THIRDS = [100 * 2 ** (k / 3) for k in range(20)]  # Hz, 100 to 8064


def tone(hz, level=0.25):
    return level * torch.sin(2 * torch.pi * hz * torch.arange(LENGTH) / MEL.sample_rate)


def noise(seed, level=0.1):
    return level * torch.randn(LENGTH, generator=torch.Generator().manual_seed(seed))


def other_phases(waveform):
    """What a vocoder gives: the same short-time magnitudes, but phases that know nothing of the other channel's."""
    spectrum = torch.fft.rfft(waveform)
    turn = torch.rand(spectrum.shape[-1] // 200 + 2, generator=torch.Generator().manual_seed(9)) * 2 * math.pi
    place = torch.arange(spectrum.shape[-1]) / 200
    low, share = place.long(), place % 1
    phases = turn[low] * (1 - share) + turn[low + 1] * share  # smooth in frequency: hardly any smear in time
    return torch.fft.irfft(spectrum * torch.polar(torch.ones_like(phases), phases), n=LENGTH)


def there_and_back(stereo, side_as=lambda side: side):
    """``stereo (B, 2, L)`` through its planes, with a vocoder that knows the mid and, but for ``side_as``, the side."""
    mid, side = mid_and_side(stereo)
    planes = spectrogram_planes(stereo, MEL)

    def vocoder(log_mels):
        torch.testing.assert_close(log_mels, planes[:, :2].transpose(0, 1).flatten(0, 1))
        return torch.cat([mid, side_as(side)])

    return vocode_planes(vocoder, planes, MEL)


def levels_db(waveform):
    """Levels (..., 20) in third octaves of ``waveform (..., L)``, in dB."""
    power = torch.fft.rfft(waveform * torch.hann_window(LENGTH)).abs().square()
    hz = torch.fft.rfftfreq(LENGTH, 1 / MEL.sample_rate)
    bands = [power[..., (hz >= f * 2 ** (-1 / 6)) & (hz < f * 2 ** (1 / 6))].sum(-1) for f in THIRDS]
    return 10 * torch.stack(bands, dim=-1).clamp(min=1e-12).log10()


@pytest.mark.parametrize("hz", [220.0, 1000.0, 5000.0])
@pytest.mark.parametrize("phases", [lambda side: side, torch.neg, other_phases], ids=["true", "opposite", "other"])
def test_a_tone_on_one_side_stays_there(hz, phases):
    for left, right in ((1.0, 0.0), (0.0, 1.0)):
        stereo = torch.stack([left * tone(hz), right * tone(hz)])[None]
        made = there_and_back(stereo, phases)
        here, elsewhere = (0, 1) if left else (1, 0)
        energy = made[0, :, 1200:-1200].square().mean(dim=1)
        assert energy[elsewhere] < 1e-4 * energy[here]  # 40 dB
        torch.testing.assert_close(made[0, here, 1200:-1200], stereo[0, here, 1200:-1200], atol=5e-3, rtol=0)


@pytest.mark.parametrize("place", [-0.8, -0.4, 0.0, 0.3, 0.9])
@pytest.mark.parametrize(
    ("room", "phases", "most", "usual"),
    [(0.0, other_phases, 0.1, 0.05), (0.02, lambda side: side, 1.0, 0.2), (0.02, other_phases, 3.0, 1.1)],
    ids=["panned", "in a room", "in a room, other phases"],
)
def test_panned_sounds_keep_their_levels_in_both_channels(place, room, phases, most, usual):
    """Third octaves of both channels, in dB: what is only panned comes back within 0.1 dB, whatever the side's phases.

    In a room, a noise of its own in each channel, the rest has phases that the planes do not know: short-time cross
    terms of other ones do not average out in a second, most of all 26 dB below the other channel (place 0.9).
    """
    panned = noise(1) + tone(400) + tone(3000, 0.1)
    sides = [(1 + place) / 2 * panned + noise(2, room), (1 - place) / 2 * panned + noise(3, room)]
    stereo = torch.stack(sides)[None]
    errors = (levels_db(there_and_back(stereo, phases)) - levels_db(stereo)).abs()
    assert float(errors.max()) < most
    assert float(errors.mean(dim=2).max()) < usual


@torch.no_grad()
def test_a_vocoder_of_mono_makes_stereo():
    """The bundled one: what is left or between stays there, and what is wide is as loud on both sides."""
    vocoder = SpeechT5HifiGan.from_pretrained(bundled_models()["mini"] / "vocoder").float().eval()
    mel = replace(mel_config(install_matching(vocoder)), audio_channels=2)
    time = torch.arange(mel.sample_rate) / mel.sample_rate
    chord = sum(0.08 * torch.sin(2 * torch.pi * hz * time) for hz in (220.0, 330.0, 550.0, 1760.0))
    wide = [noise(seed, 0.05)[: mel.sample_rate] for seed in (1, 2)]
    stereo = torch.stack([torch.stack(sides) for sides in ((chord, 0 * chord), (0.3 * chord, 0.7 * chord), wide)])
    planes = spectrogram_planes(stereo, mel)
    made = vocode_planes(vocoder, planes, mel)
    levels = 10 * made.square().mean(dim=2).log10()  # dB, (3, 2)
    left, right, both = (levels[:, 0] - levels[:, 1]).tolist()
    assert left > 35
    assert abs(right - 20 * math.log10(0.3 / 0.7)) < 0.5
    assert abs(both) < 1
    torch.testing.assert_close(made.mean(dim=1), vocoder(planes[:, 0]), atol=1e-3, rtol=0)  # of another batch


def test_sounds_in_different_bands_lie_in_different_places():
    stereo = torch.stack([tone(300) + 0.2 * tone(4000), 0.3 * tone(300) + tone(4000)])[None]
    made = levels_db(there_and_back(stereo, other_phases))[0]
    low, high = 5, 16  # third octaves of 317 and 4032 Hz
    assert abs(float(made[0, low] - made[1, low]) - 20 * math.log10(1 / 0.3)) < 0.5
    assert abs(float(made[1, high] - made[0, high]) - 20 * math.log10(1 / 0.2)) < 0.5


@pytest.mark.parametrize("stereo", ["panned", "wide", "side", "silence"])
def test_the_mono_sum_is_the_vocoded_mid(stereo):
    channels = {
        "panned": (noise(1), 0.2 * noise(1)),
        "wide": (noise(1), noise(2)),
        "side": (noise(1), -noise(1)),
        "silence": (torch.zeros(LENGTH),) * 2,
    }[stereo]
    stereo = torch.stack(channels)[None]
    made = there_and_back(stereo, other_phases)
    torch.testing.assert_close(made.mean(dim=1), mid_and_side(stereo)[0], atol=1e-7, rtol=0)


def test_what_is_in_the_side_alone_stays_wide():
    stereo = torch.stack([noise(1), -noise(1)])[None]
    made = there_and_back(stereo, other_phases)
    torch.testing.assert_close(made[:, 0], -made[:, 1])
    assert float((levels_db(made) - levels_db(stereo)).abs().max()) < 1.0


@pytest.mark.parametrize("hz", [0.0, 11_990.0])
def test_what_lies_outside_all_bands_follows_the_nearest(hz):
    """A vocoder may make sounds where the spectrogram has no band."""
    mel = replace(MEL, f_min=100.0, f_max=6000.0)
    stereo = torch.stack([tone(100.0) + tone(5900.0), 0 * tone(1.0)])[None]
    mid, side = mid_and_side(stereo)
    outside = torch.full_like(mid, 0.1) if hz == 0 else tone(hz)
    made = vocode_planes(lambda _: torch.cat([mid + outside, side]), spectrogram_planes(stereo, mel), mel)
    assert float(made[0, 1, 1200:-1200].square().mean()) < 1e-3 * float(made[0, 0].square().mean())  # 30 dB


def test_silence_is_balanced_and_has_a_gradient():
    stereo = torch.zeros(1, 2, LENGTH, requires_grad=True)
    planes = spectrogram_planes(stereo, MEL)
    assert torch.equal(planes[:, :2], torch.full_like(planes[:, :2], MEL.floor).log())
    assert not planes[:, 2].any()
    planes.sum().backward()
    assert torch.isfinite(stereo.grad).all()
    assert not there_and_back(stereo.detach()).any()


def test_planes_are_mid_side_and_balance():
    stereo = torch.stack([noise(1), 0.5 * noise(2)])[None].requires_grad_()
    planes = spectrogram_planes(stereo, MEL)
    assert planes.shape == (1, 3, 1 + LENGTH // MEL.hop_length, MEL.n_mels)
    for k, signal in enumerate(mid_and_side(stereo)):
        assert torch.equal(planes[:, k], log_mel_spectrogram(signal, MEL))
    balance = planes[:, 2].detach()
    assert float(balance.abs().max()) <= 1
    assert abs(float(balance.mean()) - (1 - 0.25) / (1 + 0.25)) < 0.1
    torch.testing.assert_close(spectrogram_planes(stereo.flip(1), MEL)[:, 2], -planes[:, 2])
    planes[:, 2].sum().backward()
    assert float(stereo.grad.abs().max()) > 0
    halves = spectrogram_planes(stereo.detach().bfloat16(), MEL)
    assert halves.dtype == torch.float32
    torch.testing.assert_close(halves, planes.detach(), atol=0.1, rtol=0)


def test_a_balance_that_cannot_be_does_no_harm():
    """What a network says need not fit together: the side is never louder than its plane asks for."""
    stereo = torch.stack([noise(1) + 0.01 * noise(2), -noise(1)])[None]
    planes = spectrogram_planes(stereo, MEL)
    planes[:, 2] = 3.0
    mid, side = mid_and_side(stereo)
    made = vocode_planes(lambda _: torch.cat([mid, side]), planes, MEL)
    assert torch.isfinite(made).all()
    assert float(mid_and_side(made)[1].square().mean()) < 1.1 * float(side.square().mean())


def test_both_channels_are_turned_down_together():
    stereo = torch.stack([tone(500, 0.9), 0.3 * tone(500, 0.9)])[None]
    mid, side = mid_and_side(stereo)
    made = vocode_planes(lambda _: 1.5 * torch.cat([mid, side]), spectrogram_planes(stereo, MEL), MEL)
    assert float(made.abs().max()) < CEILING + 1e-6
    inside = made[0, :, 1200:-1200]
    torch.testing.assert_close(inside[1], 0.3 * inside[0], atol=5e-3, rtol=0)


def test_a_batch_is_its_items():
    stereo = torch.stack(
        [torch.stack([a * noise(k), (1 - a) * noise(k) + noise(9, 0.01)]) for k, a in enumerate((0.1, 0.5, 1))]
    )
    together = there_and_back(stereo)
    torch.testing.assert_close(torch.cat([there_and_back(one[None]) for one in stereo]), together, atol=1e-5, rtol=0)


@pytest.mark.parametrize("bands_per_row", [1, 2, 4])
def test_packing_puts_neighbours_side_by_side_and_comes_apart_again(bands_per_row):
    planes = torch.arange(2 * 3 * 5 * 8.0).reshape(2, 3, 5, 8)
    packed = pack_rows(planes, bands_per_row)
    assert packed.shape == (2, 3 * bands_per_row, 5, 8 // bands_per_row)
    assert torch.equal(packed[:, 0], planes[:, 0, :, ::bands_per_row])
    assert torch.equal(packed[:, -1], planes[:, 2, :, bands_per_row - 1 :: bands_per_row])
    assert torch.equal(unpack_rows(packed, bands_per_row), planes)


def test_mono_is_what_it_was():
    mono = MelConfig()
    waveform = noise(1)[None].repeat(2, 1)
    planes = spectrogram_planes(waveform, mono)
    assert torch.equal(planes[:, 0], log_mel_spectrogram(waveform, mono))
    assert torch.equal(spectrogram_planes(waveform[:, None], mono), planes)
    generator = make_generator(mono, 32, (5, 4, 2, 2, 2), (15, 16, 8, 4, 4)).eval()
    with torch.no_grad():
        assert torch.equal(vocode_planes(generator, planes, mono), generator(planes[:, 0]))


@pytest.mark.parametrize(("mel", "shape"), [(MEL, (1, 4000)), (MEL, (1, 1, 4000)), (MelConfig(), (1, 2, 4000))])
def test_other_channels_than_the_models_are_refused(mel, shape):
    with pytest.raises(ValueError, match=r"the model's waveforms are .* got shape"):
        spectrogram_planes(torch.zeros(shape), mel)
