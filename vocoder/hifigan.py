"""The HiFi-GAN generator (`transformers.SpeechT5HifiGan`) with the mel parameters in its config.

    log-mel (B, T, F)  -> transposed convolutions ->  waveform (B, hop * T)

Kong, Kim, Bae (2020), HiFi-GAN. https://arxiv.org/abs/2010.05646
"""

from __future__ import annotations

from math import prod

from torch import nn
from torch.nn.utils import parametrize
from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

from vocoder.mel import MelConfig, mel_from_dict, mel_to_dict

RESBLOCK_KERNELS = (3, 7, 11)
RESBLOCK_DILATIONS = ((1, 3, 5), (1, 3, 5), (1, 3, 5))


def make_generator(
    mel: MelConfig,
    channels: int,
    upsample_rates: tuple[int, ...],
    upsample_kernel_sizes: tuple[int, ...],
    resblock_kernel_sizes: tuple[int, ...] = RESBLOCK_KERNELS,
    resblock_dilation_sizes: tuple[tuple[int, ...], ...] = RESBLOCK_DILATIONS,
) -> SpeechT5HifiGan:
    """A newly initialised generator whose config contains ``mel``.

    Args:
        mel: parameters of the log-mel spectrograms.
        channels: of the first layer; halved at each level.
        upsample_rates: of the levels; their product is the hop length.
        upsample_kernel_sizes: of the levels.
        resblock_kernel_sizes: of the residual blocks.
        resblock_dilation_sizes: of the residual blocks.

    Raises:
        ValueError: if the upsampling rates do not multiply to the hop length, or sizes disagree.
    """
    if prod(upsample_rates) != mel.hop_length:
        raise ValueError(
            f"upsample_rates {tuple(upsample_rates)} multiply to {prod(upsample_rates)}, "
            f"but the hop length is {mel.hop_length} samples: they must be equal"
        )
    if len(upsample_rates) != len(upsample_kernel_sizes):
        raise ValueError(f"{len(upsample_rates)} upsample_rates need as many kernel sizes, got {upsample_kernel_sizes}")
    if channels % 2 ** len(upsample_rates):
        raise ValueError(f"channels must be a multiple of {2 ** len(upsample_rates)}, got {channels}")
    generator = SpeechT5HifiGan(
        SpeechT5HifiGanConfig(
            model_in_dim=mel.n_mels,
            sampling_rate=mel.sample_rate,
            upsample_initial_channel=channels,
            upsample_rates=list(upsample_rates),
            upsample_kernel_sizes=list(upsample_kernel_sizes),
            resblock_kernel_sizes=list(resblock_kernel_sizes),
            resblock_dilation_sizes=[list(dilations) for dilations in resblock_dilation_sizes],
            normalize_before=False,
            mel=mel_to_dict(mel),
        )
    )
    # transformers initialises with 0.01 everywhere; narrow generators then stay silent for thousands of steps.
    for module in generator.modules():
        if isinstance(module, nn.Conv1d | nn.ConvTranspose1d):
            module.reset_parameters()
    return generator


def mel_config(generator: SpeechT5HifiGan) -> MelConfig:
    """The mel parameters that ``generator`` was trained with: ``mel`` of its config.

    Published vocoders have no such entry. Their rate, hop length and bands follow from their sizes; for the rest the
    values of MusicLDM's authors are assumed (1024-point frames, 0 Hz to half the rate).
    """
    config = generator.config
    if getattr(config, "mel", None) is not None:
        return mel_from_dict(config.mel)
    return MelConfig(
        sample_rate=config.sampling_rate,
        hop_length=prod(config.upsample_rates),
        n_mels=config.model_in_dim,
        f_max=config.sampling_rate / 2,
    )


def fold_weight_norm(generator: nn.Module) -> None:
    """Replace every weight-normalised weight by its value, in place; needed before saving or generating."""
    for module in generator.modules():
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight")
