"""Vocoder: log-mel spectrograms to waveforms.

    log-mel (B, T, F)  -> generator ->  waveform (B, L)

One generator serves mid and side of stereo, so it learns from both: each item of stereo is two of its waveforms.
Mel and multi-resolution STFT losses, and from a configurable step the adversarial recipe of HiFi-GAN:
https://arxiv.org/abs/2010.05646. The losses themselves are in `vocoder.losses`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import SpeechT5HifiGan

from musicldm.config import VocoderConfig
from musicldm.data.clips import SegmentDataset
from musicldm.data.collection import Collection, split_clips
from musicldm.data.items import Item
from musicldm.train.common import (
    Batch,
    check_mel,
    initial_folder,
    loaded_batches,
    make_optimizer,
    refuse_checkpointing,
    update,
)
from musicldm.train.log import EXAMPLES, Examples
from musicldm.train.loop import Stage, fit
from musicldm.train.run_folder import Run, State, load_state, start
from vocoder import log_mel_spectrogram, make_generator, match_mel, mel_config, spectrogram_planes, vocode_planes
from vocoder.hifigan import fold_weight_norm
from vocoder.losses import AdversarialLosses, mel_loss, multi_resolution_stft_loss
from vocoder.match import match_passes
from vocoder.planes import mid_and_side
from vocoder.texture import texture_loss


def initial_generator(config: VocoderConfig) -> SpeechT5HifiGan:
    """The generator to train, in training mode: that of ``config.init``, or a fresh one.

    The waveform's correction, which no weight depends on, is always the configuration's.

    Raises:
        FileNotFoundError: ``init`` names nothing.
        ValueError: the generator there was trained on other spectrograms.
    """
    if not config.init:
        generator = make_generator(
            config.mel,
            config.channels,
            tuple(config.upsample_rates),
            tuple(config.upsample_kernel_sizes),
            tuple(config.resblock_kernel_sizes),
            (tuple(config.resblock_dilations),) * len(config.resblock_kernel_sizes),
        )
    else:
        generator = SpeechT5HifiGan.from_pretrained(initial_folder(config, "vocoder")).float()
        check_mel(config.init, mel_config(generator), config)
    generator.config.match_passes = config.match_passes
    return generator.train()  # what from_pretrained loads is in evaluation mode


def signals(waveform: Tensor) -> Tensor:
    """What the generator is to make of ``waveform``: of (B, L) itself, of stereo (B, 2, L) mid and side, (2B, L)."""
    return waveform if waveform.ndim == 2 else torch.cat(mid_and_side(waveform))


def generator_input(waveform: Tensor, config: VocoderConfig) -> Tensor:
    """Log-mel ``(B, T, F)`` from which ``waveform (B, L)`` is to be made again: T frames cover L = hop * T samples."""
    mel = log_mel_spectrogram(waveform, config.mel)
    return mel[:, : waveform.shape[1] // config.mel.hop_length]


def generate(generator: nn.Module, mel: Tensor, n_samples: int) -> Tensor:
    """Waveform ``(B, n_samples)``; the generator may make a few samples more or fewer than hop * T."""
    waveform = generator(mel)[:, :n_samples]
    return functional.pad(waveform, (0, n_samples - waveform.shape[1]))


def spectral_losses(fake: Tensor, real: Tensor, config: VocoderConfig) -> tuple[Tensor, dict[str, Tensor]]:
    """Weighted sum of the losses that need no discriminator, and each of them; waveforms (B, L)."""
    losses = {"mel": mel_loss(fake, real, config.mel)}
    loss = config.mel_weight * losses["mel"]
    if config.stft_weight:
        losses["stft"] = multi_resolution_stft_loss(fake, real, config.stft_scale)
        loss = loss + config.stft_weight * losses["stft"]
    if config.texture_weight:
        losses["texture"] = mel_texture_loss(fake, real, config)
        loss = loss + config.texture_weight * losses["texture"]
    return loss, losses


def mel_texture_loss(fake: Tensor, real: Tensor, config: VocoderConfig) -> Tensor:
    """`texture_loss` of the log-mels of waveforms (B, L)."""
    true, made = (log_mel_spectrogram(waveform, config.mel).unsqueeze(1) for waveform in (real, fake))
    return texture_loss(true, made)


@dataclass
class VocoderStage(Stage):
    """The generator, and its discriminators if they ever take part."""

    run: Run
    state: State  # generator and discriminators, as they are spread over processes, and their optimisers
    generator: SpeechT5HifiGan
    judge: AdversarialLosses | None
    training: SegmentDataset
    held_out: SegmentDataset
    held_out_clips: SegmentDataset | None = None  # whole ones, to be heard

    def __post_init__(self):
        self.item_s = self.run.config.segment_samples / self.run.config.mel.sample_rate
        self.described = {"vocoder": self.generator}
        self.networks = {"vocoder": self.generator}
        if self.judge is not None:
            self.networks["discriminators"] = self.judge.discriminator

    def batches(self) -> Iterator[Batch]:
        return loaded_batches(self.training, self.run, self.state)

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """One batch, (B, L) or (B, 2, L), for the generator, and for the discriminators when they take part."""
        run, config, state, accelerator = self.run, self.run.config, self.state, self.run.accelerator
        generator, real = state.parts["generator"], signals(batch.data.to(accelerator.device))
        with accelerator.autocast():
            fake = generate(generator, generator_input(real, config), real.shape[1]).float()
        adversarial = state.step >= config.adversarial_from
        of_discriminators = {}
        if adversarial:
            judge, optimizer = self.judge, state.parts["discriminators_optimizer"]
            judge.discriminator = state.parts["discriminators"]
            of_discriminators["discriminator"] = loss = judge.discriminator_loss(fake, real)
            accelerator.backward(loss)
            update(run, state, batch.items, optimizer, loss, judge.discriminator)
        loss, losses = spectral_losses(fake, real, config)
        if adversarial:
            judge.discriminator = accelerator.unwrap_model(judge.discriminator).requires_grad_(False)
            losses |= judge.generator_losses(fake, real)
            judge.discriminator.requires_grad_(True)
            loss = loss + losses["adversarial"] + config.features_weight * losses["features"]
        accelerator.backward(loss)
        losses |= of_discriminators
        losses |= update(run, state, batch.items, state.parts["generator_optimizer"], loss, generator)
        return {"loss": loss.detach(), **{name: value.detach() for name, value in losses.items()}}

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Mean losses on held-out segments; ``constant_mel`` is the mel distance of each segment to its own median.

        With ``texture_weight`` first the sum of spectral losses that is trained for, by which the best is known.
        """
        config, generator = self.run.config, self.generator.eval()
        sums = {"loss": 0.0} if config.texture_weight else {}
        sums |= {"mel": 0.0, "stft": 0.0, "texture": 0.0, "constant_mel": 0.0}
        n = min(len(self.held_out), config.validation_batches * config.batch_size)
        for index in range(n):
            real = self.one(self.held_out, index)
            mel = generator_input(real, config)
            fake = generate(generator, mel, real.shape[1])
            if config.texture_weight:
                sums["loss"] += float(spectral_losses(fake, real, config)[0])
            sums["mel"] += float(mel_loss(fake, real, config.mel))
            sums["texture"] += float(mel_texture_loss(fake, real, config))
            sums["stft"] += float(multi_resolution_stft_loss(fake, real, config.stft_scale))
            sums["constant_mel"] += float((mel - mel.median()).abs().mean())
        generator.train()
        return {name: total / n for name, total in sums.items()}

    @torch.no_grad()
    def examples(self) -> Examples:
        """The first held-out clips as they come back from their spectrograms."""
        config, generator, made = self.run.config, self.generator.eval(), {}
        for index in range(min(EXAMPLES, len(self.held_out_clips))):
            real = self.held_out_clips[Item(0, index)][None].to(self.run.accelerator.device)
            planes = spectrogram_planes(real, config.mel)[:, :, : real.shape[-1] // config.mel.hop_length]
            waveform = vocode_planes(partial(self.matched, real.shape[-1]), planes, config.mel)
            made[f"clip-{index}"] = waveform[0].cpu().numpy()
        generator.train()
        return Examples(made, config.mel.sample_rate)

    def matched(self, n_samples: int, mel: Tensor) -> Tensor:
        """What the finished vocoder will make of ``mel (B, T, F)``: waveforms (B, n_samples)."""
        waveform = generate(self.generator, mel, n_samples)
        return match_mel(waveform, mel, self.run.config.mel, match_passes(self.generator))

    def one(self, dataset: SegmentDataset, index: int) -> Tensor:
        """The `signals` of one item of ``dataset``."""
        return signals(dataset[Item(0, index)][None].to(self.run.accelerator.device))

    def dry_run(self) -> Tensor:
        config, judge = self.run.config, self.judge
        real = self.one(self.training, 0)
        fake = generate(self.generator, generator_input(real, config), real.shape[1]).float()
        loss = spectral_losses(fake, real, config)[0]
        if judge is None:
            return loss
        return loss + judge.discriminator_loss(fake, real) + sum(judge.generator_losses(fake, real).values())

    def compile(self) -> None:
        self.generator.compile()

    def export(self, final: Path) -> None:
        fold_weight_norm(self.generator)
        self.generator.save_pretrained(final)


def train(run: Run, collection: Collection) -> Path:
    """Train a vocoder on ``collection``; returns ``OUT/final``, which `SpeechT5HifiGan.from_pretrained` loads.

    Raises:
        ValueError: gradient checkpointing is asked for, which this network does not know.
    """
    config, accelerator = run.config, run.accelerator
    refuse_checkpointing(config, "vocoder")
    clips, held_out = split_clips(collection.clips(config.mel.clip_s), config.share)
    plain = initial_generator(config)
    judge = AdversarialLosses() if config.adversarial_from < config.steps else None
    start(run)
    plain.apply_weight_norm()
    generator, generator_optimizer = accelerator.prepare(plain, make_optimizer(plain, config))
    state = State({"generator": generator, "generator_optimizer": generator_optimizer}, clips)
    if judge is not None:
        optimizer = make_optimizer(judge.discriminator, config)
        discriminators, optimizer = accelerator.prepare(judge.discriminator, optimizer)
        of_judge = {"discriminators": discriminators, "discriminators_optimizer": optimizer}
        state.parts |= of_judge
        state.later = tuple(of_judge)  # a run that was to end before adversarial_from saved none
    load_state(state, run.out, accelerator)
    rate, seed = config.mel.sample_rate, config.seed
    channels = config.mel.audio_channels
    training = SegmentDataset(clips, rate, config.segment_samples, seed, channels=channels)
    whole = {"random_start": False, "channels": channels}
    held_out_segments = SegmentDataset(held_out, rate, config.segment_samples, seed, **whole)
    held_out_clips = SegmentDataset(held_out, rate, config.mel.clip_samples, seed, **whole)
    stage = VocoderStage(run, state, plain, judge, training, held_out_segments, held_out_clips)
    return fit(stage, run, collection)
