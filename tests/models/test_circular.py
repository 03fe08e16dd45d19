"""Networks in which time is a circle: what they make of a rotated input is rotated, and the plain ones stay plain."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from accelerate import cpu_offload
from diffusers.models.attention_processor import AttnProcessor2_0
from peft import LoraConfig
from torch import nn

from musicldm.kernels import tiled_decoding as tiles
from musicldm.kernels.precision import lower_decoders
from musicldm.kernels.unet_attention import AttentionProcessor, fuse_projections, install
from musicldm.models.circular import CircularConvolution, circular_decoder, circular_unet
from tests.helpers.tiny import EMBEDDING, make_unet, make_vae

EXACT = {"atol": 1e-9, "rtol": 0}
STRIDE = 2  # of the tiny UNet


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    return make_unet().double()


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    return make_vae().double()


def latents(frames, items=2, seed=0):
    return torch.randn(items, 4, frames, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def evaluate(unet, x, **options):
    embedding = torch.randn(len(x), EMBEDDING, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    embedding = embedding.to(next(unet.parameters()).dtype)
    return unet(x, torch.tensor(500), encoder_hidden_states=None, class_labels=embedding, **options).sample


@pytest.mark.parametrize("frames", [2, 8, 30])
def test_a_rotated_input_gives_a_rotated_prediction(unet, frames):
    circle, x = circular_unet(unet), latents(frames)
    made = evaluate(circle, x)
    for turn in range(STRIDE, frames, STRIDE):
        torch.testing.assert_close(evaluate(circle, x.roll(turn, 2)), made.roll(turn, 2), **EXACT)
    assert (made - evaluate(unet, x)).abs().max() > 0.01  # the plain one has ends


@pytest.mark.parametrize("frames", [1, 3, 9])
def test_other_lengths_are_closed_too(unet, frames):
    """The last frame is heard by the first as much as by its other neighbour; a plain convolution hears nothing."""
    first, x = unet.conv_in, latents(frames)
    assert evaluate(circular_unet(unet), x).shape == x.shape
    circle = CircularConvolution(first, first)
    changed = x.clone()
    changed[:, :, -1] += 1
    heard = (circle(changed) - circle(x)).abs().amax(dim=(0, 1, 3))
    assert heard[0] > 1e-3
    assert frames <= 2 or (first(changed) - first(x))[:, :, 0].abs().max() == 0


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation"), [(3, 1, 1, 1), (5, 1, 2, 1), (3, 2, 1, 1), (3, 1, 2, 2), (4, 2, 1, 1)]
)
def test_convolutions_of_any_size_go_round(kernel, stride, padding, dilation):
    plain = nn.Conv2d(4, 3, kernel, stride, padding, dilation).double()
    expected = copy.deepcopy(plain)
    x = latents(12)
    expected.padding = (0, padding)
    turns = x.roll(padding, 2), x.roll(padding, 2)
    expected = expected(torch.cat(turns, dim=2))[:, :, : 12 // stride]
    torch.testing.assert_close(CircularConvolution(plain, plain)(x), expected, **EXACT)


@pytest.mark.parametrize("frames", [1, 3, 8])
def test_the_decoder_at_once_and_in_pieces(vae, frames):
    x = latents(frames)
    made = circular_decoder(vae).decode(x).sample
    for turn in range(frames):
        rotated = circular_decoder(vae).decode(x.roll(turn, 2)).sample
        torch.testing.assert_close(rotated, made.roll(4 * turn, 2), **EXACT)
    for piece in (1, 3, 64):
        torch.testing.assert_close(tiles.decode(vae, x, piece, loop=True), made, **EXACT)
    assert (made - vae.decode(x).sample).abs().max() > 0.01


def test_tiling_of_diffusers_is_left_out(vae):
    tiled = copy.deepcopy(vae)
    tiled.enable_tiling()
    tiled.tile_latent_min_size = 8
    x = latents(24)
    torch.testing.assert_close(circular_decoder(tiled).decode(x).sample, circular_decoder(vae).decode(x).sample)
    assert tiled.use_tiling


def test_the_plain_network_is_as_it_was(unet, vae):
    before = [(name, id(module), dict(vars(module))) for net in (unet, vae) for name, module in net.named_modules()]
    x = latents(8)
    plain = evaluate(unet, x), vae.decode(x).sample
    circle, decoder = circular_unet(unet), circular_decoder(vae)
    evaluate(circle, x, cross_attention_kwargs=None)
    decoder.decode(x)
    after = [(name, id(module), dict(vars(module))) for net in (unet, vae) for name, module in net.named_modules()]
    assert after == before
    assert torch.equal(evaluate(unet, x), plain[0])
    assert torch.equal(vae.decode(x).sample, plain[1])
    own = {id(x) for x in circle.parameters()} | {id(x) for x in decoder.parameters()}
    assert own == {id(x) for net in (unet, vae) for x in net.parameters()}  # no copies


def test_both_at_a_time_on_threads(unet):
    circle, x = circular_unet(unet), latents(16)
    networks = [unet, circle] * 8
    alone = [evaluate(network, x) for network in networks[:2]]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda network: evaluate(network, x), networks))
    assert all(torch.equal(made, alone[i % 2]) for i, made in enumerate(together))


def test_with_fused_projections_and_channels_last(unet):
    fast, x = copy.deepcopy(unet), latents(8)
    install(fast)
    assert fuse_projections(fast)
    fast.to(memory_format=torch.channels_last)
    made = evaluate(circular_unet(fast), x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(made, evaluate(circular_unet(unet), x), **EXACT)


@pytest.mark.parametrize("use_dora", [False, True])
def test_with_adapters_of_convolutions(unet, use_dora):
    """Adapters beside the weights do what they do when they are part of them, and turned off they do nothing."""
    adapted, x = copy.deepcopy(unet), latents(8)
    plain = evaluate(circular_unet(unet), x)
    targets = ["conv_in", "conv1", "conv", "conv_shortcut", "to_q", "to_v"]
    adapted.add_adapter(LoraConfig(r=2, target_modules=targets, init_lora_weights=False, use_dora=use_dora), "one")
    beside = evaluate(circular_unet(adapted), x)
    torch.testing.assert_close(evaluate(circular_unet(adapted), x.roll(4, 2)), beside.roll(4, 2), **EXACT)
    assert (beside - plain).abs().max() > 1e-3
    adapted.disable_adapters()
    torch.testing.assert_close(evaluate(circular_unet(adapted), x), plain, **EXACT)
    adapted.enable_adapters()
    adapted.fuse_lora()
    torch.testing.assert_close(evaluate(circular_unet(adapted), x), beside, **EXACT)


def test_in_sixteen_bits(unet, vae, tiny_parts):
    """Decoders in bfloat16 but for some layers: the hooks that join both kinds work on the circle."""
    x = latents(8).float()
    low, vocoder = copy.deepcopy(tiny_parts["vae"]), copy.deepcopy(tiny_parts["vocoder"])
    exact = circular_decoder(low).decode(x).sample
    lower_decoders(low, vocoder, torch.bfloat16)
    made = circular_decoder(low).decode(x).sample
    error = (made - exact).abs().mean() / exact.abs().mean()
    assert 0 < error < 0.05
    torch.testing.assert_close(tiles.decode(low, x, 3, loop=True), made, atol=0.1 * float(made.abs().max()), rtol=0)
    half = copy.deepcopy(unet).to(torch.bfloat16)
    made, exact = evaluate(circular_unet(half), x.to(torch.bfloat16)), evaluate(circular_unet(unet), x.double())
    assert (made - exact).norm() / exact.norm() < 0.05


def test_with_weights_that_come_when_they_are_needed(unet, vae):
    x = latents(8)
    expected = evaluate(circular_unet(unet), x), circular_decoder(vae).decode(x).sample
    far, far_vae = copy.deepcopy(unet), copy.deepcopy(vae)
    for network in (far, far_vae):
        cpu_offload(network, torch.device("cpu"))
    assert next(far.parameters()).device.type == "meta"
    torch.testing.assert_close(evaluate(circular_unet(far), x), expected[0], **EXACT)
    torch.testing.assert_close(circular_decoder(far_vae).decode(x).sample, expected[1], **EXACT)


def test_a_compiled_network_is_taken_as_it_was_written(unet):
    x = latents(8)
    compiled = torch.compile(unet, backend="eager")
    torch.testing.assert_close(evaluate(circular_unet(compiled), x), evaluate(circular_unet(unet), x), **EXACT)


@pytest.mark.parametrize("window", [0, 2, 5, 40])
def test_windows_of_attention_go_round(unet, window):
    windowed, frames = copy.deepcopy(unet), 16
    windowed.set_attn_processor(AttentionProcessor())
    circle, x = circular_unet(windowed), latents(frames)
    options = {"cross_attention_kwargs": {"window": window, "grid": (frames, 4)}}
    made = evaluate(circle, x, **options)
    torch.testing.assert_close(evaluate(circle, x.roll(6, 2), **options), made.roll(6, 2), **EXACT)
    whole = evaluate(circular_unet(unet), x)
    assert torch.allclose(made, whole, **EXACT) == (window == 40)


def test_what_cannot_go_round_is_refused(unet):
    class Plain(AttnProcessor2_0):
        def __call__(self, attn, hidden_states, *arguments, window=None, grid=None, **options):
            return super().__call__(attn, hidden_states, *arguments, **options)

    x, other = latents(8), copy.deepcopy(unet)
    other.set_attn_processor(Plain())
    evaluate(circular_unet(other), x)
    with pytest.raises(ValueError, match=r"Plain of .* knows no window that goes round a loop"):
        evaluate(circular_unet(other), x, cross_attention_kwargs={"window": 2, "grid": (8, 4)})
    with pytest.raises(ValueError, match="ConvTranspose2d"):
        circular_unet(nn.Sequential(nn.ConvTranspose2d(4, 4, 3)))
    with pytest.raises(ValueError, match="convolutions that pad by themselves"):
        circular_unet(make_unet(downsample_padding=0))
