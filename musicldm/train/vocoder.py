"""Vocoder: log-mel spectrograms to waveforms.

    log-mel (B, T, F)  -> generator ->  waveform (B, L)

Mel and multi-resolution STFT losses, and from a configurable step the adversarial recipe of HiFi-GAN:
https://arxiv.org/abs/2010.05646. The losses themselves are in `vocoder.losses`.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional
from transformers import SpeechT5HifiGan

from musicldm.config import VocoderConfig
from musicldm.data.clips import Item, SegmentDataset, load_clips, split_clips
from musicldm.train.common import (
    Log,
    State,
    after_step,
    batches,
    final_folder,
    initial_folder,
    load_state,
    make_accelerator,
    make_optimizer,
    optimise,
    seed_step,
    start,
)
from vocoder import log_mel_spectrogram, make_generator, mel_config
from vocoder.hifigan import fold_weight_norm
from vocoder.losses import AdversarialLosses, mel_loss, multi_resolution_stft_loss


def initial_generator(config: VocoderConfig) -> SpeechT5HifiGan:
    """The generator to train: that of ``config.init``, or a fresh one.

    Raises:
        FileNotFoundError: ``init`` names nothing.
        ValueError: the generator there was trained on other spectrograms.
    """
    if not config.init:
        return make_generator(
            config.mel,
            config.channels,
            tuple(config.upsample_rates),
            tuple(config.upsample_kernel_sizes),
            tuple(config.resblock_kernel_sizes),
            (tuple(config.resblock_dilations),) * len(config.resblock_kernel_sizes),
        )
    generator = SpeechT5HifiGan.from_pretrained(initial_folder(config, "vocoder")).float()
    if mel_config(generator) != config.mel:
        raise ValueError(f"{config.init} was trained on {mel_config(generator)}, the configuration says {config.mel}")
    return generator


def generator_input(waveform: Tensor, config: VocoderConfig) -> Tensor:
    """Log-mel ``(B, T, F)`` from which ``waveform (B, L)`` is to be made again: T frames cover L = hop * T samples."""
    mel = log_mel_spectrogram(waveform, config.mel)
    return mel[:, : waveform.shape[1] // config.mel.hop_length]


def generate(generator: nn.Module, mel: Tensor, n_samples: int) -> Tensor:
    """Waveform ``(B, n_samples)``; the generator may make a few samples more or fewer than hop * T."""
    waveform = generator(mel)[:, :n_samples]
    return functional.pad(waveform, (0, n_samples - waveform.shape[1]))


def train_step(state: State, waveform: Tensor, config: VocoderConfig, accelerator: Accelerator) -> dict[str, Tensor]:
    """One update of the generator, and of the discriminators when they take part."""
    seed_step(config, state.step)
    generator = state.parts["generator"]
    real = waveform.to(accelerator.device)
    with accelerator.autocast():
        fake = generate(generator, generator_input(real, config), real.shape[1]).float()
    adversarial = state.step >= config.adversarial_from
    losses = {}
    if adversarial:
        discriminators = state.parts["discriminators"]
        losses["discriminator"] = discriminators.discriminator_loss(fake, real)
        optimizer = state.parts["discriminators_optimizer"]
        optimise(accelerator, optimizer, losses["discriminator"], discriminators, config, state.step)
    losses["mel"] = mel_loss(fake, real, config.mel)
    loss = config.mel_weight * losses["mel"]
    if config.stft_weight:
        losses["stft"] = multi_resolution_stft_loss(fake, real)
        loss = loss + config.stft_weight * losses["stft"]
    if adversarial:
        losses |= discriminators.generator_losses(fake, real)
        loss = loss + losses["adversarial"] + config.features_weight * losses["features"]
    losses["grad_norm"] = optimise(accelerator, state.parts["generator_optimizer"], loss, generator, config, state.step)
    return {"loss": loss.detach(), **{name: value.detach() for name, value in losses.items()}}


@torch.no_grad()
def validate(
    generator: nn.Module, dataset: SegmentDataset, config: VocoderConfig, device: torch.device
) -> dict[str, float]:
    """Mean losses on held-out segments; ``constant_mel`` is the mel distance of each segment to its own median."""
    generator.eval()
    sums = {"mel": 0.0, "stft": 0.0, "constant_mel": 0.0}
    n = min(len(dataset), config.validation_batches * config.batch_size)
    for index in range(n):
        real = dataset[Item(0, index)][None].to(device)
        mel = generator_input(real, config)
        fake = generate(generator, mel, real.shape[1])
        sums["mel"] += float(mel_loss(fake, real, config.mel))
        sums["stft"] += float(multi_resolution_stft_loss(fake, real))
        sums["constant_mel"] += float((mel - mel.median()).abs().mean())
    generator.train()
    return {name: total / n for name, total in sums.items()}


def train(config: VocoderConfig, data: Path, out: Path, *, resume: bool = False) -> Path:
    """Train a vocoder on ``data``; returns ``OUT/final``, which `SpeechT5HifiGan.from_pretrained` loads."""
    train_clips, held_out = split_clips(load_clips(data, config.mel.clip_s))
    generator = initial_generator(config)
    discriminators = AdversarialLosses() if config.adversarial_from < config.steps else None
    start(config, out, resume)
    accelerator = make_accelerator(config)
    generator.apply_weight_norm()
    generator, generator_optimizer = accelerator.prepare(generator, make_optimizer(generator, config))
    state = State({"generator": generator, "generator_optimizer": generator_optimizer})
    if discriminators is not None:
        optimizer = make_optimizer(discriminators, config)
        discriminators.discriminator, optimizer = accelerator.prepare(discriminators.discriminator, optimizer)
        state.parts |= {"discriminators": discriminators, "discriminators_optimizer": optimizer}
    load_state(state, out)
    rate = config.mel.sample_rate
    segments = SegmentDataset(train_clips, rate, config.segment_samples, config.seed)
    held_out_segments = SegmentDataset(held_out, rate, config.segment_samples, config.seed, random_start=False)
    check = partial(validate, generator, held_out_segments, config, accelerator.device)
    with Log(config, out, state.step, config.segment_samples / rate) as log:
        for waveform in batches(segments, config, state.step):
            losses = train_step(state, waveform, config, accelerator)
            state.step += 1
            after_step(state, losses, config, out, log, check)
    generator = accelerator.unwrap_model(generator)
    fold_weight_norm(generator)
    final = final_folder(out)
    generator.save_pretrained(final)
    return final
