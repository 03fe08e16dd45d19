"""The channels of a context: what a UNet says of them, new columns, and what is put into them."""

import logging

import pytest
import torch
from diffusers import UNet2DConditionModel

from musicldm import MusicLDMPipeline
from musicldm.models.context import KINDS, ContextLayout, add_context, context_channels, context_layout, latent_channels
from tests.helpers.tiny import EMBEDDING, make_unet


def predicted(unet, latents, context=None):
    given = [latents] if context is None else [latents, context]
    embedding = torch.randn(len(latents), EMBEDDING, generator=torch.Generator().manual_seed(1)).to(latents)
    with torch.no_grad():
        return unet(torch.cat(given, dim=1), 500, encoder_hidden_states=None, class_labels=embedding).sample


def exact_unet():
    """In float64, with a first layer whose sums of sixteenths are exact in every order."""
    torch.manual_seed(0)
    unet = make_unet().double()
    with torch.no_grad():
        for weight in unet.conv_in.parameters():
            weight.copy_((16 * weight).round() / 16)
    return unet


def sixteenths(*shape):
    return torch.randint(-32, 33, shape, generator=torch.Generator().manual_seed(0)).double() / 16


def test_new_columns_change_nothing_to_the_bit():
    unet, latents = exact_unet(), sixteenths(2, 4, 8, 4)
    before = predicted(unet, latents)
    layout = add_context(unet)
    assert unet.conv_in.weight.shape[1] == unet.config.in_channels == 4 + layout.channels == 4 + 4 + 1 + len(KINDS)
    assert torch.equal(before, predicted(unet, latents, sixteenths(2, layout.channels, 8, 4)))
    assert not unet.training
    assert unet.conv_in.weight.dtype == torch.float64
    assert unet.conv_in.weight.requires_grad


def test_a_unet_says_which_channels_it_has():
    unet = make_unet()
    assert context_layout(unet) is None
    assert latent_channels(unet) == 4
    assert add_context(unet, ("chords", "hole")) == context_layout(unet) == ContextLayout(4, ("chords", "hole"))
    assert latent_channels(unet) == 4
    with pytest.raises(ValueError, match="takes a context already"):
        add_context(unet)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"latents": 3, "mask": 1, "kinds": ["chords"]}, "needs in_channels of 8 .* has 10"),
        ({"latents": 4, "mask": 2, "kinds": ["chords"]}, "must name latents, mask"),
        ({"latents": 4, "kinds": ["chords"]}, "must name latents, mask"),
        ({"latents": 4, "mask": 1, "kinds": "chords"}, "list of names"),
        ({"latents": 4, "mask": 1, "kinds": ["chords", "chords"]}, "different names"),
        ({"latents": 0, "mask": 1, "kinds": ["chords"]}, "1 latent channel or more"),
        (["chords"], "must name latents, mask"),
    ],
)
def test_a_configuration_that_contradicts_itself_is_refused(entry, message):
    unet = make_unet(in_channels=10)
    unet.register_to_config(context=entry)
    with pytest.raises(ValueError, match=message):
        context_layout(unet)


def test_only_a_plain_first_layer_is_widened():
    unet = make_unet()
    unet.conv_in = torch.nn.Sequential(unet.conv_in)
    with pytest.raises(ValueError, match="plain Conv2d, got Sequential"):
        add_context(unet)


def test_what_is_given_is_put_where_it_is_given():
    layout = ContextLayout(2, ("chords", "click", "along", "hole"))
    latents = torch.randn(2, 2, 5, 3, dtype=torch.float64)
    chords, click = torch.tensor([1, 1, 0, 0, 0]), torch.tensor([[0, 0, 1, 0, 0], [0, 0, 0, 0, 0]])
    kept = torch.tensor([[0, 0, 0, 0, 1], [0, 0, 0, 0, 0]])
    made = context_channels(layout, latents, {"chords": chords, "click": click}, kept)
    assert made.shape == (2, layout.channels, 5, 3)
    assert made.dtype == torch.float64
    given = torch.tensor([[1, 1, 1, 0, 1], [1, 1, 0, 0, 0]])
    assert torch.equal(made[:, :2], latents * given[:, None, :, None])
    flags = made[:, 2:]
    assert torch.equal(flags, flags[..., :1].expand(-1, -1, -1, 3))
    expected = [[[0, 0, 0, 0, 1], [1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0] * 5, [1] * 5]]
    expected += [[[0] * 5, [1, 1, 0, 0, 0], [0] * 5, [0] * 5, [0] * 5]]
    assert flags[..., 0].tolist() == expected


def test_without_a_context_all_channels_are_zero():
    layout = ContextLayout(4)
    made = context_channels(layout, torch.randn(1, 4, 8, 2), dict.fromkeys(KINDS, torch.zeros(8)), torch.zeros(8))
    assert not made.any()
    assert not context_channels(layout, torch.randn(1, 4, 8, 2), {}).any()


def test_a_hole_counts_for_all_frames_and_gives_no_sound_by_itself():
    layout, latents = ContextLayout(4, ("click", "hole")), torch.randn(1, 4, 6, 2)
    named = context_channels(layout, latents, {"hole": torch.tensor([0, 1, 0, 0, 0, 0])}, torch.ones(6))
    assert torch.equal(named, context_channels(layout, latents, {}, torch.ones(6)))
    assert torch.equal(named[:, :4], latents)
    assert named[:, 4:].sum() == 2 * 12  # mask and hole, of 6 x 2 places
    alone = context_channels(layout, latents, {"hole": torch.ones(6)})
    assert not alone[:, :4].any()


@pytest.mark.parametrize(
    ("latents", "frames", "kept", "message"),
    [
        (torch.zeros(1, 3, 5, 2), {}, None, r"must be \(B, 4, T, F\)"),
        (torch.zeros(4, 5, 2), {}, None, r"must be \(B, 4, T, F\)"),
        (torch.zeros(1, 4, 5, 2), {"melody": torch.ones(5)}, None, "no context of kind 'melody'; it knows chords"),
        (torch.zeros(1, 4, 5, 2), {}, torch.ones(5), "no context of kind 'hole'"),
        (torch.zeros(2, 4, 5, 2), {"chords": torch.ones(3, 5)}, None, r"chords must be \(5,\) or \(2, 5\)"),
    ],
)
def test_what_does_not_fit_is_refused(latents, frames, kept, message):
    with pytest.raises(ValueError, match=message):
        context_channels(ContextLayout(4, ("chords",)), latents, frames, kept)


def test_a_folder_keeps_the_channels_and_is_read_without_a_warning(tiny_parts, tmp_path, caplog):
    unet = make_unet()
    add_context(unet, ("notes", "hole"))
    with torch.no_grad():
        unet.conv_in.weight[:, 4:].normal_()
    MusicLDMPipeline(**tiny_parts | {"unet": unet}).save_pretrained(tmp_path)
    logging.getLogger("diffusers").addHandler(caplog.handler)
    try:
        read = MusicLDMPipeline.from_pretrained(tmp_path)
        assert not [record for record in caplog.records if "context" in record.getMessage()]
        plain = UNet2DConditionModel.from_pretrained(tmp_path / "unet")
        assert [record for record in caplog.records if "'context'" in record.getMessage()]
    finally:
        logging.getLogger("diffusers").removeHandler(caplog.handler)
    assert context_layout(read.unet) == context_layout(plain) == ContextLayout(4, ("notes", "hole"))
    assert torch.equal(read.unet.conv_in.weight, unet.conv_in.weight)
    assert (read.unet.config.in_channels, read.unet.config.out_channels) == (4 + 4 + 1 + 2, 4)


def test_other_unknown_entries_are_still_warned_of(tiny_parts, tmp_path, caplog):
    unet = make_unet()
    add_context(unet, ("notes",))
    unet.register_to_config(mistake=1)
    MusicLDMPipeline(**tiny_parts | {"unet": unet}).save_pretrained(tmp_path)
    logging.getLogger("diffusers").addHandler(caplog.handler)
    try:
        MusicLDMPipeline.from_pretrained(tmp_path)
    finally:
        logging.getLogger("diffusers").removeHandler(caplog.handler)
    assert [record for record in caplog.records if "mistake" in record.getMessage()]


def test_the_latents_of_unet_and_vae_must_fit(tiny_parts):
    unet = make_unet(in_channels=3)
    add_context(unet)
    with pytest.raises(ValueError, match="takes latents of 3 channels, the VAE gives 4"):
        MusicLDMPipeline(**tiny_parts | {"unet": unet})
