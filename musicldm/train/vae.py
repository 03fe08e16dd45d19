"""Variational autoencoder: log-mel spectrograms to latents and back.

    mel (B, P, T, F)  -> encode ->  latents (B, C, T/f, F/f)  -> decode ->  mel

P is 1 for mono sound; else the planes of stereo, times the bands that are packed into one row.

Absolute error + KL divergence, and from a configurable step a patch discriminator with hinge losses, weighted by the
ratio of gradients at the last layer: Esser et al. (2021), https://arxiv.org/abs/2012.09841.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor, nn
from torch.nn import functional
from transformers import SpeechT5HifiGan

from musicldm.config import VAEConfig, load_config
from musicldm.data.clips import SegmentDataset
from musicldm.data.collection import Collection, split_clips
from musicldm.data.items import Item, batch_items
from musicldm.models.latents import latent_factor, spectrogram_image
from musicldm.train.common import (
    Batch,
    check_mel,
    fastest_layout,
    initial_folder,
    item_generators,
    loaded_batches,
    make_optimizer,
    update,
)
from musicldm.train.log import EXAMPLES, Examples
from musicldm.train.loop import Stage, fit
from musicldm.train.run_folder import CONFIG_FILE, Run, State, load_state, start
from vocoder import MelConfig, mel_config, unpack_rows
from vocoder.texture import texture_loss

AUDIBLE = math.log(1000)  # nats of magnitude: 60 dB
ABOVE_FLOOR = 1.0  # nats, below which rounding of samples is heard rather than music


def initial_vae(config: VAEConfig) -> AutoencoderKL:
    """The autoencoder to train: that of ``config.init``, or a fresh one.

    Raises:
        ValueError: the one of ``init`` has another downsampling factor than the configuration, or takes other planes,
            or is known to have been trained on other spectrograms.
    """
    if not config.init:
        return make_vae(config)
    if trained := initial_mel(config):
        check_mel(config.init, trained, config)
    vae = AutoencoderKL.from_pretrained(initial_folder(config, "vae")).float()
    if (factor := latent_factor(vae)) != config.factor:
        raise ValueError(f"{config.init} has factor {factor}, the configuration's channels make {config.factor}")
    if (planes := vae.config.in_channels) != planes_of(config.mel):
        raise ValueError(f"{config.init} takes {planes} planes, the configuration's mel makes {planes_of(config.mel)}")
    return vae


def planes_of(mel: MelConfig) -> int:
    """Planes of the image that the autoencoder sees, P."""
    return mel.planes * mel.bands_per_row


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
        in_channels=planes_of(config.mel),
        out_channels=planes_of(config.mel),
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=tuple(config.channels),
        layers_per_block=config.layers_per_level,
        latent_channels=config.latent_channels,
        norm_num_groups=config.norm_groups,
        sample_size=config.mel.clip_frames,
    )


class PatchDiscriminator(nn.Sequential):
    """Scores ``(B, 1, t, f)`` of patches of ``mel (B, P, T, F)``: Isola et al. (2017), three strided layers."""

    def __init__(self, channels: int, planes: int = 1):
        widths = [planes, channels, 2 * channels, 4 * channels]
        layers: list[nn.Module] = []
        for k in range(3):
            layers += [nn.Conv2d(widths[k], widths[k + 1], 4, stride=2, padding=1)]
            layers += [nn.GroupNorm(8, widths[k + 1])] if k else []
            layers += [nn.LeakyReLU(0.2)]
        super().__init__(*layers, nn.Conv2d(widths[-1], 1, 4, padding=1))


def mel_of(waveform: Tensor, config: VAEConfig) -> Tensor:
    """What the VAE sees: (B, P, T, F) of ``waveform`` (B, L) or (B, A, L), T cut to a multiple of its factor."""
    image = spectrogram_image(waveform, config.mel)
    return image[:, :, : image.shape[2] // config.factor * config.factor]


def usual_level(mel: Tensor) -> Tensor:
    """Median (P,) of each plane of ``mel (B, P, T, F)``."""
    return mel.transpose(0, 1).flatten(1).median(dim=1).values


def latent_noise(vae: AutoencoderKL, mel: Tensor, generators: list[torch.Generator]) -> Tensor:
    """Noise (B, C, T/f, F/f) for the latents of ``mel (B, P, T, F)``, each item's from its own generator."""
    factor = latent_factor(vae)
    shape = vae.config.latent_channels, mel.shape[2] // factor, mel.shape[3] // factor
    return torch.stack([torch.randn(shape, generator=generator) for generator in generators]).to(mel.device)


def reconstruction_losses(vae: nn.Module, mel: Tensor, noise: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
    """Reconstruction of ``mel (B, P, T, F)``, and its losses; from latents drawn with ``noise``, or their means.

    ``l1`` is the mean absolute error, ``kl`` the divergence from the unit normal in nats for each latent value.
    """
    reconstruction, posterior = vae(mel, noise)
    return reconstruction, {"l1": (reconstruction - mel).abs().mean(), "kl": kl_divergence(posterior)}


def balance_error(mel: Tensor, reconstruction: Tensor, config: MelConfig) -> Tensor:
    """Mean absolute error of the balance of stereo images (B, P, T, F) where a band sounds.

    That is where mid or side is above the floor, and at most `AUDIBLE` below what is loudest of the item: elsewhere
    nobody hears on which side a band is, and it may be of noise alone.
    """
    planes, made = (unpack_rows(image, config.bands_per_row) for image in (mel, reconstruction.float()))
    louder = planes[:, :2].amax(dim=1)  # (B, T, F)
    least = (louder.amax(dim=(1, 2), keepdim=True) - AUDIBLE).clamp(min=math.log(config.floor) + ABOVE_FLOOR)
    sounds = louder > least
    return ((made[:, 2] - planes[:, 2]).abs() * sounds).sum() / sounds.sum().clamp(min=1)


def kl_divergence(posterior: DiagonalGaussianDistribution) -> Tensor:
    """Divergence from the unit normal, 0.5 mean(mean^2 + var - 1 - logvar): nats for each latent value, a scalar."""
    return posterior.kl().mean() / posterior.mean[0].numel()


def discriminator_loss(discriminator: nn.Module, mel: Tensor, reconstruction: Tensor) -> Tensor:
    """Hinge loss that asks for scores above 1 on ``mel`` and below -1 on ``reconstruction``, both (B, P, T, F)."""
    real, fake = discriminator(torch.cat([mel, reconstruction.detach()])).chunk(2)
    return 0.5 * (functional.relu(1 - real).mean() + functional.relu(1 + fake).mean())


class Autoencoder(nn.Module):
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


def weighted_sum(losses: dict, config: VAEConfig):
    """What the autoencoder is trained for, without its discriminator."""
    loss = losses["l1"] + config.kl_weight * losses["kl"]
    for name in ("texture", "balance"):
        if weight := getattr(config, f"{name}_weight"):
            loss = loss + weight * losses[name]
    return loss


@dataclass
class VAEStage(Stage):
    """The autoencoder against its discriminator."""

    run: Run
    state: State  # vae and discriminator, as they are spread over processes, and their optimisers
    autoencoder: Autoencoder
    discriminator: PatchDiscriminator
    training: SegmentDataset
    held_out: SegmentDataset

    def __post_init__(self):
        config = self.run.config
        self.item_s = config.segment_s
        self.described = {"VAE": self.autoencoder.vae}
        self.learns_from = config.adversarial_from - config.discriminator_lead  # step in which the discriminator begins
        self.networks = {"vae": self.autoencoder.vae}
        if self.learns_from < config.steps:
            self.networks["discriminator"] = self.discriminator

    def batches(self) -> Iterator[Batch]:
        return loaded_batches(self.training, self.run, self.state)

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """One batch of waveforms (B, L) for the autoencoder, and for the discriminator when it takes part."""
        run, config, state, accelerator = self.run, self.run.config, self.state, self.run.accelerator
        vae, discriminator = state.parts["vae"], state.parts["discriminator"]
        mel = mel_of(batch.data.to(accelerator.device), config)
        noise = latent_noise(self.autoencoder.vae, mel, item_generators(config, batch.items, "posterior"))
        with accelerator.autocast():
            reconstruction, losses = reconstruction_losses(vae, mel, noise)
            if config.texture_weight:
                losses["texture"] = texture_loss(mel, reconstruction)
            if config.balance_weight:
                losses["balance"] = balance_error(mel, reconstruction, config.mel)
            loss = weighted_sum(losses, config)
        if state.step >= config.adversarial_from:
            losses["generator"], balance = self.adversarial(reconstruction, losses["l1"])
            loss = loss + config.adversarial_weight * balance * losses["generator"]
        accelerator.backward(loss)
        losses |= update(run, state, batch.items, state.parts["vae_optimizer"], loss, vae)
        if state.step >= self.learns_from:
            with accelerator.autocast():
                losses["discriminator"] = discriminator_loss(discriminator, mel, reconstruction)
            accelerator.backward(losses["discriminator"])
            optimizer = state.parts["discriminator_optimizer"]
            update(run, state, batch.items, optimizer, losses["discriminator"], discriminator)
        return {"loss": loss.detach(), **{name: value.detach() for name, value in losses.items()}}

    def adversarial(self, reconstruction: Tensor, l1: Tensor) -> tuple[Tensor, Tensor]:
        """The generator's loss, and the ratio of gradients of ``l1`` and of it at the decoder's last layer."""
        accelerator, discriminator = self.run.accelerator, self.discriminator.requires_grad_(False)  # not its update
        with accelerator.autocast():
            loss = -discriminator(reconstruction).mean()
        discriminator.requires_grad_(True)
        last, norms = self.autoencoder.vae.decoder.conv_out.weight, []
        for each in (l1, loss):
            (gradient,) = torch.autograd.grad(each, last, retain_graph=True)
            norms.append(accelerator.reduce(gradient, "mean").norm())
        return loss, (norms[0] / (norms[1] + 1e-4)).clamp(max=1e4)

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Mean losses on held-out segments; ``constant_l1`` is what the median of each of their planes would cost.

        Of stereo there is the ``balance`` error. With a weight of it or of texture first the sum that is trained for,
        by which the best is known: ``l1`` alone is lowest where all texture is lost.
        """
        config, vae = self.run.config, self.autoencoder.eval()
        stereo = config.mel.planes > 1
        sums = dict.fromkeys(("l1", "kl", "texture", *["balance"] * stereo, "constant_l1"), 0.0)
        n = min(len(self.held_out), config.validation_batches * config.batch_size)
        for index in range(n):
            mel = self.held_out_mel(index)
            reconstruction, losses = reconstruction_losses(vae, mel)
            losses["texture"] = texture_loss(mel, reconstruction)
            if stereo:
                losses["balance"] = balance_error(mel, reconstruction, config.mel)
            for name, loss in losses.items():
                sums[name] += float(loss)
            sums["constant_l1"] += float((mel - usual_level(mel)[:, None, None]).abs().mean())
        vae.train()
        means = {name: total / n for name, total in sums.items()}
        if not config.texture_weight and not config.balance_weight:
            return means
        return {"loss": weighted_sum(means, config), **means}

    @torch.no_grad()
    def examples(self) -> Examples:
        """Log-mels (of stereo, the mid's) of the first held-out segments, and how they come back."""
        self.autoencoder.eval()
        made = {}
        for index in range(min(EXAMPLES, len(self.held_out))):
            mel = self.held_out_mel(index)
            both = {"original": mel, "reconstruction": self.autoencoder(mel, None)[0]}
            made[f"clip-{index}"] = {label: log_mel[0, 0].float().cpu().numpy() for label, log_mel in both.items()}
        self.autoencoder.train()
        return Examples(log_mels=made)

    def held_out_mel(self, index: int) -> Tensor:
        """Planes (1, P, T, F) of a held-out segment."""
        return mel_of(self.held_out[Item(0, index)][None].to(self.run.accelerator.device), self.run.config)

    def dry_run(self) -> Tensor:
        config = self.run.config
        mel = mel_of(self.training[Item(0, 0)][None].to(self.run.accelerator.device), config)
        reconstruction, losses = reconstruction_losses(self.autoencoder, mel)
        if "discriminator" not in self.networks:
            return losses["l1"]
        adversarial = -self.discriminator(reconstruction).mean()
        return losses["l1"] + adversarial + discriminator_loss(self.discriminator, mel, reconstruction)

    def compile(self) -> None:
        for part in compiled_parts(self.autoencoder.vae):
            part.compile()

    def export(self, final: Path) -> None:
        self.autoencoder.vae.save_pretrained(final)


def train(run: Run, collection: Collection) -> Path:
    """Train an autoencoder on ``collection``; returns ``OUT/final``, which `AutoencoderKL.from_pretrained` loads."""
    config, accelerator = run.config, run.accelerator
    clips, held_out = split_clips(collection.clips(config.mel.clip_s), config.share)
    plain = Autoencoder(initial_vae(config)).train()  # what from_pretrained loads is in evaluation mode
    if config.freeze_encoder:
        for part in encoding_parts(plain.vae):
            part.requires_grad_(False)
    judge = PatchDiscriminator(config.discriminator_channels, planes_of(config.mel))
    plain = fastest_layout(plain, accelerator)
    start(run)
    if config.gradient_checkpointing:
        plain.vae.enable_gradient_checkpointing()
    of_judge = make_optimizer(judge, config)
    of_judge.param_groups[0]["scale"] = config.discriminator_rate
    names = ("vae", "vae_optimizer", "discriminator", "discriminator_optimizer")
    spread = accelerator.prepare(plain, make_optimizer(plain, config), judge, of_judge)
    state = State(dict(zip(names, spread, strict=True)), clips)
    rate, channels = config.mel.sample_rate, config.mel.audio_channels
    n_samples = round(config.segment_s * rate)
    training = SegmentDataset(clips, rate, n_samples, config.seed, channels=channels)
    load_state(state, run.out, accelerator)
    if state.step == 0 and not config.init:
        # Start from the music's usual level instead of learning it over hundreds of steps.
        items = batch_items(len(training), run.step_size, config.seed, 0)
        first = torch.stack([training[item] for item in items])
        plain.vae.decoder.conv_out.bias.data.copy_(usual_level(mel_of(first, config)))
    held_out = SegmentDataset(held_out, rate, n_samples, config.seed, random_start=False, channels=channels)
    return fit(VAEStage(run, state, plain, judge, training, held_out), run, collection)
