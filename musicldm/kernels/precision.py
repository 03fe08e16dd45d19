"""The decoders in 16 bits, but for the layers whose rounding is heard.

    latents (B, C, T/f, F/f)  -> VAE's decoder ->  log-mel (B, T, F)  -> HiFi-GAN ->  waveform (B, L)

bfloat16 has 8 significant bits. A log-mel of -8 is then off by 0.03, and the vocoder chooses the phases of the waveform
in its first level, where small differences make other waveforms. So the decoder's last block and what follows, and the
vocoder's first level, stay in float32, as do both their results; the rest of the vocoder only refines. float16 has 11
bits, which are enough everywhere. `docs/speed.md` has the deviations.
"""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from transformers import SpeechT5HifiGan


def lower_decoders(vae: AutoencoderKL, vocoder: SpeechT5HifiGan, dtype: torch.dtype) -> None:
    """Change ``vae.decoder`` and ``vocoder`` in place: in ``dtype``, in bfloat16 with the exceptions above.

    The encoder is not touched. The decoder takes and gives what it did before, the vocoder float32 with bfloat16.
    """
    decoder, upsampler = vae.decoder, vocoder.upsampler
    if dtype == torch.bfloat16:
        last = decoder.up_blocks[-1].resnets[-1]
        first_level = upsampler[0], *vocoder.resblocks[: vocoder.num_kernels]
        exact = last, decoder.conv_norm_out, decoder.conv_out, vocoder.conv_pre, *first_level, vocoder.conv_post
        entrances = decoder.conv_in, last, vocoder.conv_pre, *upsampler[1:2], vocoder.conv_post
    else:
        exact, entrances = (), (decoder.conv_in, vocoder.conv_pre)
    for part in (*decoder.children(), *vocoder.children()):
        part.to(dtype)
    for part in exact:
        part.to(torch.float32)
    for part in entrances:
        if cast_to_weights not in part._forward_pre_hooks.values():
            part.register_forward_pre_hook(cast_to_weights)


def cast_to_weights(module: nn.Module, inputs: tuple) -> tuple:
    """A hook: floating inputs in the dtype of the module's weights, whatever they are now."""
    dtype = next(module.parameters()).dtype
    return tuple(x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x for x in inputs)
