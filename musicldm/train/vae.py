"""Variational autoencoder: log-mel spectrograms to latents and back.

    mel (B, 1, T, F)  -> encode ->  latents (B, C, T/f, F/f)  -> decode ->  mel

Absolute error + KL divergence, and from a configurable step a patch discriminator with hinge losses, weighted by the
ratio of gradients at the last layer: Esser et al. (2021), https://arxiv.org/abs/2012.09841.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor, nn
from torch.nn import functional
from transformers import SpeechT5HifiGan

from musicldm.config import VAEConfig, load_config
from musicldm.data.clips import SegmentDataset
from musicldm.data.collection import load_clips, split_clips
from musicldm.data.items import Item, batch_items
from musicldm.train.common import (
    after_batch,
    batches,
    check_mel,
    fastest_layout,
    initial_folder,
    item_generators,
    make_accelerator,
    make_optimizer,
    step_size,
    update,
)
from musicldm.train.log import EXAMPLES, Log, announce
from musicldm.train.run_folder import CONFIG_FILE, State, final_folder, load_state, start
from vocoder import MelConfig, log_mel_spectrogram, mel_config
from vocoder.texture import texture_loss


def initial_vae(config: VAEConfig) -> AutoencoderKL:
    """The autoencoder to train: that of ``config.init``, or a fresh one.

    Raises:
        ValueError: the one of ``init`` has another downsampling factor than the configuration, or is known to have been
            trained on other spectrograms.
    """
    if not config.init:
        return make_vae(config)
    if trained := initial_mel(config):
        check_mel(config.init, trained, config)
    vae = AutoencoderKL.from_pretrained(initial_folder(config, "vae")).float()
    if (factor := 2 ** (len(vae.config.block_out_channels) - 1)) != config.factor:
        raise ValueError(f"{config.init} has factor {factor}, the configuration's channels make {config.factor}")
    return vae


def initial_mel(config: VAEConfig) -> MelConfig | None:
    """The spectrograms that the autoencoder of ``init`` was trained on, by its run or the vocoder beside it, if any."""
    recorded, vocoder = initial_folder(config, "vae") / CONFIG_FILE, initial_folder(config, "vocoder")
    if recorded.exists():
        return load_config(VAEConfig, recorded).mel
    return mel_config(SpeechT5HifiGan.from_pretrained(vocoder)) if vocoder.name == "vocoder" else None


def make_vae(config: VAEConfig) -> AutoencoderKL:
    """A freshly initialised autoencoder."""
    levels = len(config.channels)
    return AutoencoderKL(
        in_channels=1,
        out_channels=1,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=tuple(config.channels),
        layers_per_block=config.layers_per_level,
        latent_channels=config.latent_channels,
        norm_num_groups=config.norm_groups,
        sample_size=config.mel.clip_frames,
    )


class PatchDiscriminator(nn.Sequential):
    """Scores ``(B, 1, t, f)`` of patches of a log-mel ``(B, 1, T, F)``: Isola et al. (2017), three strided layers."""

    def __init__(self, channels: int):
        widths = [1, channels, 2 * channels, 4 * channels]
        layers: list[nn.Module] = []
        for k in range(3):
            layers += [nn.Conv2d(widths[k], widths[k + 1], 4, stride=2, padding=1)]
            layers += [nn.GroupNorm(8, widths[k + 1])] if k else []
            layers += [nn.LeakyReLU(0.2)]
        super().__init__(*layers, nn.Conv2d(widths[-1], 1, 4, padding=1))


def mel_of(waveform: Tensor, config: VAEConfig) -> Tensor:
    """Log-mel ``(B, 1, T, F)`` of ``waveform (B, L)``, T cut to a multiple of the VAE's factor."""
    mel = log_mel_spectrogram(waveform, config.mel)
    return mel[:, : mel.shape[1] // config.factor * config.factor].unsqueeze(1)


def latent_noise(vae: AutoencoderKL, mel: Tensor, generators: list[torch.Generator]) -> Tensor:
    """Noise (B, C, T/f, F/f) for the latents of ``mel (B, 1, T, F)``, each item's from its own generator."""
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    shape = vae.config.latent_channels, mel.shape[2] // factor, mel.shape[3] // factor
    return torch.stack([torch.randn(shape, generator=generator) for generator in generators]).to(mel.device)


def reconstruction_losses(vae: nn.Module, mel: Tensor, noise: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
    """Reconstruction of ``mel (B, 1, T, F)``, and its losses; from latents drawn with ``noise``, or their means.

    ``l1`` is the mean absolute error, ``kl`` the divergence from the unit normal in nats for each latent value.
    """
    reconstruction, posterior = vae(mel, noise)
    return reconstruction, {"l1": (reconstruction - mel).abs().mean(), "kl": kl_divergence(posterior)}


def kl_divergence(posterior: DiagonalGaussianDistribution) -> Tensor:
    """Divergence from the unit normal, 0.5 mean(mean^2 + var - 1 - logvar): nats for each latent value, a scalar."""
    return posterior.kl().mean() / posterior.mean[0].numel()


def discriminator_loss(discriminator: nn.Module, mel: Tensor, reconstruction: Tensor) -> Tensor:
    """Hinge loss that asks for scores above 1 on ``mel`` and below -1 on ``reconstruction``, both (B, 1, T, F)."""
    real, fake = discriminator(torch.cat([mel, reconstruction.detach()])).chunk(2)
    return 0.5 * (functional.relu(1 - real).mean() + functional.relu(1 + fake).mean())


class _Autoencode(nn.Module):
    """The VAE as one module whose forward pass does all: what data-parallel wrappers need."""

    def __init__(self, vae: AutoencoderKL):
        super().__init__()
        self.vae = vae

    def forward(self, mel: Tensor, noise: Tensor | None):
        posterior = self.vae.encode(mel).latent_dist
        latents = posterior.mode() if noise is None else posterior.mean + posterior.std * noise
        return self.vae.decode(latents).sample, posterior


def encoding_parts(vae: AutoencoderKL) -> list[nn.Module]:
    """What latents depend on."""
    return [part for part in (vae.encoder, vae.quant_conv) if part is not None]


def compiled_parts(vae: AutoencoderKL) -> list[nn.Module]:
    """What ``compile=true`` compiles: all but the last layer, whose gradient is wanted alone, to weigh the losses."""
    return [vae.encoder, vae.decoder.mid_block, *vae.decoder.up_blocks]


def train_step(state: State, waveform: Tensor, config: VAEConfig, accelerator: Accelerator) -> dict[str, Tensor]:
    """One batch for the autoencoder, and for the discriminator when it takes part."""
    vae, discriminator = state.parts["vae"], state.parts["discriminator"]
    mel = mel_of(waveform.to(accelerator.device), config)
    noise = latent_noise(accelerator.unwrap_model(vae).vae, mel, item_generators(config, state, "posterior"))
    with accelerator.autocast():
        reconstruction, losses = reconstruction_losses(vae, mel, noise)
        loss = losses["l1"] + config.kl_weight * losses["kl"]
        if config.texture_weight:
            losses["texture"] = texture_loss(mel, reconstruction)
            loss = loss + config.texture_weight * losses["texture"]
    adversarial = state.step >= config.adversarial_from
    if adversarial:
        judge = accelerator.unwrap_model(discriminator).requires_grad_(False)  # its own update comes below
        with accelerator.autocast():
            losses["generator"] = -judge(reconstruction).mean()
        judge.requires_grad_(True)
        last = accelerator.unwrap_model(vae).vae.decoder.conv_out.weight
        norms = []
        for name in ("l1", "generator"):
            (gradient,) = torch.autograd.grad(losses[name], last, retain_graph=True)
            norms.append(accelerator.reduce(gradient, "mean").norm())
        balance = (norms[0] / (norms[1] + 1e-4)).clamp(max=1e4)
        loss = loss + config.adversarial_weight * balance * losses["generator"]
    accelerator.backward(loss)
    losses |= update(accelerator, state.parts["vae_optimizer"], loss, vae, config, state)
    if state.step >= config.adversarial_from - config.discriminator_lead:
        with accelerator.autocast():
            losses["discriminator"] = discriminator_loss(discriminator, mel, reconstruction)
        optimizer = state.parts["discriminator_optimizer"]
        accelerator.backward(losses["discriminator"])
        update(accelerator, optimizer, losses["discriminator"], discriminator, config, state)
    return {"loss": loss.detach(), **{name: value.detach() for name, value in losses.items()}}


@torch.no_grad()
def validate(vae: nn.Module, dataset: SegmentDataset, config: VAEConfig, device: torch.device) -> dict[str, float]:
    """Mean losses on held-out segments; ``constant_l1`` is what each segment's own median would cost.

    With ``texture_weight`` first the sum that is trained for, by which the best is known: ``l1`` alone is lowest where
    all texture is lost.
    """
    vae.eval()
    sums = {"l1": 0.0, "kl": 0.0, "texture": 0.0, "constant_l1": 0.0}
    n = min(len(dataset), config.validation_batches * config.batch_size)
    for index in range(n):
        mel = mel_of(dataset[Item(0, index)][None].to(device), config)
        reconstruction, losses = reconstruction_losses(vae, mel)
        for name, loss in (losses | {"texture": texture_loss(mel, reconstruction)}).items():
            sums[name] += float(loss)
        sums["constant_l1"] += float((mel - mel.median()).abs().mean())
    vae.train()
    means = {name: total / n for name, total in sums.items()}
    if not config.texture_weight:
        return means
    loss = means["l1"] + config.kl_weight * means["kl"] + config.texture_weight * means["texture"]
    return {"loss": loss, **means}


@torch.no_grad()
def pictures(
    vae: nn.Module, dataset: SegmentDataset, config: VAEConfig, device: torch.device
) -> dict[str, dict[str, np.ndarray]]:
    """Log-mels (T, F) of the first held-out segments, and how they come back."""
    vae.eval()
    made = {}
    for index in range(min(EXAMPLES, len(dataset))):
        mel = mel_of(dataset[Item(0, index)][None].to(device), config)
        both = {"original": mel, "reconstruction": vae(mel, None)[0]}
        made[f"clip-{index}"] = {label: log_mel[0, 0].float().cpu().numpy() for label, log_mel in both.items()}
    vae.train()
    return made


def train(config: VAEConfig, data: Path, out: Path, *, resume: bool = False) -> Path:
    """Train an autoencoder on ``data``; returns ``OUT/final``, which `AutoencoderKL.from_pretrained` loads."""
    train_clips, held_out = split_clips(load_clips(data, config.mel.clip_s), config.share)
    plain = _Autoencode(initial_vae(config)).train()  # what from_pretrained loads is in evaluation mode
    if config.freeze_encoder:
        for part in encoding_parts(plain.vae):
            part.requires_grad_(False)
    judge = PatchDiscriminator(config.discriminator_channels)
    accelerator = make_accelerator(config, out)
    plain = fastest_layout(plain, accelerator)
    start(config, out, resume, accelerator)
    if config.gradient_checkpointing:
        plain.vae.enable_gradient_checkpointing()
    judging = make_optimizer(judge, config)
    judging.param_groups[0]["scale"] = config.discriminator_rate
    vae, vae_optimizer, discriminator, discriminator_optimizer = accelerator.prepare(
        plain, make_optimizer(plain, config), judge, judging
    )
    state = State(
        {
            "vae": vae,
            "vae_optimizer": vae_optimizer,
            "discriminator": discriminator,
            "discriminator_optimizer": discriminator_optimizer,
        },
        train_clips,
    )
    n_samples = round(config.segment_s * config.mel.sample_rate)
    segments = SegmentDataset(train_clips, config.mel.sample_rate, n_samples, config.seed)
    held_out_segments = SegmentDataset(held_out, config.mel.sample_rate, n_samples, config.seed, random_start=False)
    load_state(state, out, accelerator)
    if state.step == 0 and not config.init:
        # Start from the music's usual level instead of learning it over hundreds of steps.
        items = batch_items(len(segments), step_size(config, accelerator), config.seed, 0)
        first = torch.stack([segments[item] for item in items])
        plain.vae.decoder.conv_out.bias.data.fill_(float(mel_of(first, config).median()))

    joins = config.adversarial_from - config.discriminator_lead < config.steps

    def trial() -> Tensor:
        mel = mel_of(segments[Item(0, 0)][None].to(accelerator.device), config)
        reconstruction, losses = reconstruction_losses(plain, mel)
        if not joins:
            return losses["l1"]
        return losses["l1"] - judge(reconstruction).mean() + discriminator_loss(judge, mel, reconstruction)

    networks = {"vae": plain.vae} | ({"discriminator": judge} if joins else {})
    announce(config, train_clips, networks, trial, accelerator)
    if config.compile:
        for part in compiled_parts(plain.vae):
            part.compile()
    check = partial(validate, plain, held_out_segments, config, accelerator.device)
    show = partial(pictures, plain, held_out_segments, config, accelerator.device)
    with Log(config, out, state.step, config.segment_s, accelerator) as log:
        for waveform in batches(segments, config, accelerator, state):
            with accelerator.accumulate(vae, discriminator):
                losses = train_step(state, waveform, config, accelerator)
            after_batch(state, losses, config, out, log, check, pictures=show)
    if accelerator.is_main_process:
        final = final_folder(state, config, data, out, {"VAE": plain.vae})
        plain.vae.save_pretrained(final)
    return out / "final"
