"""What a plain training script does, on diffusers' and transformers' classes: the measure of `benchmarks.training`.

Everything that such scripts usually do: bfloat16 autocast, torch's scaled_dot_product_attention (the classes'
default), fused AdamW, channels last, gradients set to None, diffusers' average of the weights; inputs are in memory.
Each function returns a step on one batch of the given inputs: forward, backward, clipping, update.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.nn import functional
from transformers import ClapModel, PreTrainedTokenizerBase, SpeechT5HifiGan

from vocoder import MelConfig, log_mel_spectrogram
from vocoder.losses import AdversarialLosses

Step = Callable[[], None]


def autocast(device: torch.device):
    return torch.autocast(device.type, torch.bfloat16)


def fused_adamw(network: nn.Module, config) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        network.parameters(), config.learning_rate, tuple(config.betas), weight_decay=config.weight_decay, fused=True
    )


def update(loss: Tensor, network: nn.Module, optimizer: torch.optim.Optimizer, config) -> None:
    loss.backward()
    nn.utils.clip_grad_norm_(network.parameters(), config.max_grad_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def diffusion(
    unet: UNet2DConditionModel, moments: Tensor, embeddings: Tensor, empty: Tensor, config, device: torch.device
) -> Step:
    """``moments (B, 2C, T/f, F/f)`` of the VAE, ``embeddings (B, D)`` and ``empty (D,)`` of CLAP."""
    unet = unet.to(device, memory_format=torch.channels_last).train()
    optimizer, scheduler = fused_adamw(unet, config), DDIMScheduler(1000, 0.0015, 0.0195, "scaled_linear")
    average = EMAModel(unet.parameters(), decay=config.ema_decay, foreach=True)

    def step() -> None:
        mean, log_variance = moments.to(device, torch.float32, non_blocking=True).chunk(2, dim=1)
        latents = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
        noise = torch.randn_like(latents)
        time = torch.randint(1000, (len(latents),), device=device)
        dropped = torch.rand(len(latents), 1, device=device) < config.drop_condition
        condition = torch.where(dropped, empty.to(device), embeddings.to(device, non_blocking=True))
        with autocast(device):
            noisy = scheduler.add_noise(latents, noise, time)
            predicted = unet(noisy, time, encoder_hidden_states=None, class_labels=condition).sample
        loss = functional.mse_loss(predicted.float(), noise)
        update(loss, unet, optimizer, config)
        average.step(unet.parameters())
        loss.item()  # for the progress bar

    return step


def vae(autoencoder: AutoencoderKL, judge: nn.Module, waveforms: Tensor, config, device: torch.device) -> Step:
    """``waveforms (B, L)``; ``judge`` scores patches of (B, 1, T, F)."""
    autoencoder = autoencoder.to(device, memory_format=torch.channels_last).train()
    judge = judge.to(device, memory_format=torch.channels_last).train()
    optimizers = fused_adamw(autoencoder, config), fused_adamw(judge, config)

    def step() -> None:
        mel = log_mel_spectrogram(waveforms.to(device, non_blocking=True), config.mel)[:, :-1].unsqueeze(1)
        with autocast(device):
            posterior = autoencoder.encode(mel).latent_dist
            made = autoencoder.decode(posterior.sample()).sample
            l1, kl = (made - mel).abs().mean(), posterior.kl().mean() / posterior.mean[0].numel()
            judge.requires_grad_(False)
            fooled = -judge(made).mean()
            judge.requires_grad_(True)
        last = autoencoder.decoder.conv_out.weight
        norms = [torch.autograd.grad(part, last, retain_graph=True)[0].norm() for part in (l1, fooled)]
        balance = (norms[0] / (norms[1] + 1e-4)).clamp(max=1e4)
        loss = l1 + config.kl_weight * kl + config.adversarial_weight * balance * fooled
        update(loss, autoencoder, optimizers[0], config)
        with autocast(device):
            real, fake = judge(mel), judge(made.detach())
            judged = 0.5 * (functional.relu(1 - real).mean() + functional.relu(1 + fake).mean())
        update(judged, judge, optimizers[1], config)
        loss.item()

    return step


def vocoder(
    generator: SpeechT5HifiGan, judge: AdversarialLosses, waveforms: Tensor, config, device: torch.device
) -> Step:
    """``waveforms (B, L)``; the discriminators are SpeechBrain's."""
    mel_config: MelConfig = config.mel
    generator, judge = generator.to(device).train(), judge.to(device).train()
    optimizers = fused_adamw(generator, config), fused_adamw(judge.discriminator, config)

    def step() -> None:
        real = waveforms.to(device, non_blocking=True)
        mel = log_mel_spectrogram(real, mel_config)
        with autocast(device):
            fake = generator(mel[:, : real.shape[1] // mel_config.hop_length])
        fake = functional.pad(fake.float(), (0, real.shape[1] - fake.shape[1]))
        with autocast(device):
            scores = (judge.discriminator(x.unsqueeze(1))[0] for x in (fake.detach(), real))
            judged = sum(judge.least_squares_discriminator(*pair)[0] for pair in zip(*scores, strict=True))
        update(judged, judge.discriminator, optimizers[1], config)
        distance = (log_mel_spectrogram(fake, mel_config) - mel).abs().mean()
        judge.discriminator.requires_grad_(False)
        with autocast(device):
            fooled = judge.generator_losses(fake, real)
        judge.discriminator.requires_grad_(True)
        loss = config.mel_weight * distance + fooled["adversarial"] + config.features_weight * fooled["features"]
        update(loss, generator, optimizers[0], config)
        loss.item()

    return step


def clap(
    model: ClapModel,
    tokenizer: PreTrainedTokenizerBase,
    features_of: Callable[[Tensor], Tensor],
    waveforms: Tensor,
    captions: list[str],
    config,
    device: torch.device,
) -> Step:
    """``waveforms (B, L)``, of which ``features_of`` makes the audio tower's input; the loss is the class's own."""
    model = model.to(device).train()
    optimizer = fused_adamw(model, config)

    def step() -> None:
        tokens = tokenizer(captions, padding="longest", return_tensors="pt").to(device)
        features = features_of(waveforms.to(device, non_blocking=True))
        with autocast(device):
            loss = model(**tokens, input_features=features, return_loss=True).loss
        update(loss, model, optimizer, config)
        loss.item()

    return step
