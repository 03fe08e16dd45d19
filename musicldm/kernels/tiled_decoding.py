"""Decoding minutes of music in bounded memory, with the result of decoding it at once.

    latents (B, C, T/f, F/f)  -> VAE, layer by layer in pieces of time ->  log-mel (B, 1, T, F), or planes (B, P, T, F)
    the same  -> HiFi-GAN, tile by tile ->  waveform (B, L), or (B, 2, L)

The VAE's group norms see the whole clip: each layer goes through all pieces, with a column of the neighbours for its
convolution, and the next norm takes its statistics from all of them. The values of two layers are held, and pieces of
what is in between. The middle attention needs all positions at once, at the latents' size. The vocoder sees a few
frames to either side only, so that its tiles overlap by as many.

With ``loop`` time is a circle: the neighbour of the last piece is the first one.
"""

from collections.abc import Callable, Iterable, Iterator

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.nn import functional
from transformers import SpeechT5HifiGan

from vocoder import mel_config, vocode_planes
from vocoder.match import match_passes, match_reach
from vocoder.planes import planes_reach

LONGEST_WHOLE = 4096  # mel frames, 41 s: what is longer is decoded in pieces
LATENT_FRAMES = 64  # of a piece
MEL_FRAMES = 1024  # of a tile of the vocoder

Pieces = list[Tensor]  # (B, C, T_i, F) each, side by side in time


def one_by_one(run: Callable[[Tensor], Tensor], batch: Tensor) -> Tensor:
    """``run(batch)``; on a CPU of each item alone, as the activations of several leave its caches."""
    return torch.cat([run(part) for part in batch.split(1 if batch.device.type == "cpu" else len(batch))])


def around(x: Tensor, reach: int) -> Tensor:
    """``x (B, C, T, ...)``, whose time is a circle, with ``reach`` more positions at both ends."""
    rounds, rest = divmod(reach, x.shape[2])
    parts = [x] * (2 * rounds + 1)
    if rest:
        parts = [x[:, :, -rest:], *parts, x[:, :, :rest]]
    return torch.cat(parts, dim=2)  # which keeps channels last


def decode(vae: AutoencoderKL, latents: Tensor, latent_frames: int = LATENT_FRAMES, loop: bool = False) -> Tensor:
    """What ``vae.decode`` gives, (B, P, T, F), up to rounding, in pieces of ``latent_frames``.

    With ``loop``, what its decoder as `musicldm.models.circular.circular_decoder` gives.
    """
    decoder, middle = vae.decoder, vae.decoder.mid_block
    if vae.post_quant_conv is not None:
        latents = vae.post_quant_conv(latents)
    first = decoder.conv_in(around(latents, 1))[:, :, 1:-1] if loop else decoder.conv_in(latents)
    pieces = cut(first, latent_frames)
    pieces = residual(pieces, middle.resnets[0], loop)
    for attention, block in zip(middle.attentions, middle.resnets[1:], strict=True):
        if attention is not None:
            pieces = cut(attention(torch.cat(pieces, dim=2)), latent_frames)
        pieces = residual(pieces, block, loop)
    upsampler = None
    for level in decoder.up_blocks:
        for block in level.resnets:
            pieces, upsampler = residual(pieces, block, loop, upsampler), None
        upsampler = level.upsamplers[0] if level.upsamplers else None
    last, column = normalize(pieces, decoder.conv_norm_out, decoder.conv_act), last_column(pieces) if loop else None
    return torch.cat(list(convolve(emptying(pieces), decoder.conv_out, last, column)), dim=2)


def cut(whole: Tensor, frames: int) -> Pieces:
    """Copies, so that each can be freed by itself."""
    return [piece.clone() for piece in whole.split(frames, dim=2)]


def emptying(pieces: Pieces) -> Iterator[Tensor]:
    """The pieces from the first on, each removed from the list as it is taken."""
    while pieces:
        yield pieces.pop(0)


def last_column(pieces: Pieces) -> Tensor:
    """The neighbour of the first column (B, C, 1, F), where time is a circle."""
    return pieces[-1][:, :, -1:].clone()


def double(x: Tensor) -> Tensor:
    """Every value four times, two by two."""
    return functional.interpolate(x, scale_factor=2.0, mode="nearest")


def residual(pieces: Pieces, block: nn.Module, loop: bool, upsampler: nn.Module | None = None) -> Pieces:
    """A `ResnetBlock2D` without a time embedding, in the dtype of its weights, of ``pieces``, upsampled if asked.

    What the upsampler gives is the widest there is, and is computed again for each of three passes instead of held.
    """

    dtype = block.conv1.weight.dtype
    end = last_column(pieces) if loop else None

    def entries() -> Iterator[Tensor]:
        whole = pieces if upsampler is None else convolve(iter(pieces), upsampler.conv, double, end, factor=2)
        return (piece.to(dtype) for piece in whole)

    before = end
    if end is not None and upsampler is not None:  # the last column that the upsampler makes
        both_ends = torch.cat([end, pieces[0][:, :, :1]], dim=2)
        before = next(convolve(iter([both_ends]), upsampler.conv, double, end, factor=2))[:, :, 1:2]
    before = None if before is None else before.to(dtype)
    hidden = list(convolve(entries(), block.conv1, normalize(entries(), block.norm1, block.nonlinearity), before))
    before = None if before is None else last_column(hidden)
    changes = convolve(emptying(hidden), block.conv2, normalize(hidden, block.norm2, block.nonlinearity), before)
    results = []
    for x, change in zip(entries(), changes, strict=True):
        change += x if block.conv_shortcut is None else block.conv_shortcut(x)
        results.append(change.div_(block.output_scale_factor))
    return results


def normalize(pieces: Iterable[Tensor], norm: nn.GroupNorm, activation: nn.Module) -> Callable[[Tensor], Tensor]:
    """Group norm with the statistics of all ``pieces``, then the activation, as a function of any part of them."""
    sums, count = torch.zeros(()), 0
    for piece in pieces:
        values = piece.unflatten(1, (norm.num_groups, -1)).flatten(2).double()  # (B, groups, ...)
        sums = sums.to(values) + torch.stack([values.sum(dim=2), values.square().sum(dim=2)])
        count += values.shape[2]
    mean, mean_square = sums / count
    deviation = (mean_square - mean.square()).clamp(min=0).add(norm.eps).sqrt()
    mean, deviation = (x.repeat_interleave(norm.num_channels // norm.num_groups, dim=1) for x in (mean, deviation))
    scale = norm.weight / deviation
    shift = norm.bias - mean * scale
    scale, shift = (x.to(norm.weight.dtype)[..., None, None] for x in (scale, shift))  # (B, C, 1, 1)
    return lambda x: activation(x * scale + shift)


def convolve(
    pieces: Iterator[Tensor],
    conv: nn.Conv2d,
    prepare: Callable[[Tensor], Tensor],
    before: Tensor | None = None,
    factor: int = 1,
) -> Iterator[Tensor]:
    """A 3 x 3 convolution of ``prepare`` of the whole, which makes ``factor`` columns of each, piece by piece.

    ``before`` is the whole's last column where time is a circle.
    """
    piece = next(pieces)
    end = None if before is None else piece[:, :, :1].clone()  # the neighbour of the last column
    while piece is not None:
        following = next(pieces, None)
        after = end if following is None else following[:, :, :1]
        x = prepare(torch.cat([part for part in (before, piece, after) if part is not None], dim=2))
        # one prepared column of each neighbour; zeros where there is none, as at the ends of the whole
        first = 0 if before is None else factor - 1
        last = x.shape[2] - (0 if after is None else factor - 1)
        x = functional.pad(x[:, :, first:last], (1, 1, int(before is None), int(after is None)))
        before, piece = piece[:, :, -1:].clone(), following
        yield functional.conv2d(x, conv.weight, conv.bias)


def vocode(vocoder: SpeechT5HifiGan, planes: Tensor, mel_frames: int = MEL_FRAMES, loop: bool = False) -> Tensor:
    """What `vocode_planes` gives for ``planes (B, P, T, F)``, (B, L) or (B, 2, L), in overlapping tiles.

    With ``loop`` the last sample borders on the first, and L is T times the hop.
    """
    config = mel_config(vocoder)
    n_frames, overlap, hop = planes.shape[2], reach(vocoder), config.hop_length
    if loop:
        waveform = vocode(vocoder, around(planes, overlap), mel_frames)
        return waveform[..., overlap * hop : (overlap + n_frames) * hop]
    tiles = []
    for start in range(0, n_frames, mel_frames):
        first, end = max(0, start - overlap), min(n_frames, start + mel_frames + overlap)
        # the last tile goes on to its end: kernels of odd excess over their rate make a few samples more
        last = None if start + mel_frames >= n_frames else (start + mel_frames - first) * hop
        tile = vocode_planes(vocoder, planes[:, :, first:end], config)
        tiles.append(tile[..., (start - first) * hop : last])
    return torch.cat(tiles, dim=-1)


def reach(vocoder: SpeechT5HifiGan) -> int:
    """Mel frames to either side that a sample depends on, or a few more."""
    config = vocoder.config
    samples = vocoder.conv_post.kernel_size[0] // 2
    blocks = zip(config.resblock_kernel_sizes, config.resblock_dilation_sizes, strict=True)
    block = max(sum((kernel - 1) // 2 * (dilation + 1) for dilation in dilations) for kernel, dilations in blocks)
    for rate, kernel in zip(reversed(config.upsample_rates), reversed(config.upsample_kernel_sizes), strict=True):
        samples = -(-(samples + block + kernel) // rate)
    mel = mel_config(vocoder)
    joined = -(-(match_reach(match_passes(vocoder), mel) + planes_reach(mel)) // mel.hop_length)
    return samples + vocoder.conv_pre.kernel_size[0] // 2 + joined
