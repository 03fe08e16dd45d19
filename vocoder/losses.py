"""Losses of vocoder training, on waveforms ``(B, L)``.

Mel distance and the adversarial recipe: Kong et al. (2020), HiFi-GAN, https://arxiv.org/abs/2010.05646, with
SpeechBrain's discriminators and losses. Multi-resolution STFT: Yamamoto et al. (2020), https://arxiv.org/abs/1910.11480.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor, nn

from vocoder.mel import MelConfig, log_mel_spectrogram

RESOLUTIONS = (
    (512, 50, 240),
    (1024, 120, 600),
    (2048, 240, 1200),
)  # FFT, hop and window in samples, for rates of about 20 kHz


def mel_loss(generated: Tensor, real: Tensor, config: MelConfig) -> Tensor:
    """Mean absolute difference of the log-mel spectrograms (natural logarithm)."""
    return (log_mel_spectrogram(generated, config) - log_mel_spectrogram(real, config)).abs().mean()


def multi_resolution_stft_loss(generated: Tensor, real: Tensor, scale: int = 1) -> Tensor:
    """Spectral convergence plus mean absolute log-magnitude difference, averaged over `RESOLUTIONS` times ``scale``.

    Spectral convergence is a ratio of norms over the whole batch; for a silent item alone it would be very large.
    """
    losses = []
    for resolution in RESOLUTIONS:
        n_fft, hop, window_length = (scale * size for size in resolution)
        window = torch.hann_window(window_length, device=real.device, dtype=real.dtype)
        fake, true = (
            torch.stft(x, n_fft, hop, window_length, window, return_complex=True).abs().clamp(min=1e-5)
            for x in (generated, real)
        )
        convergence = (true - fake).norm() / true.norm()
        losses.append(convergence + (true.log() - fake.log()).abs().mean())
    return torch.stack(losses).mean()


class AdversarialLosses(nn.Module):
    """Multi-period and multi-scale discriminators with least-squares and feature-matching losses."""

    def __init__(self):
        super().__init__()
        try:
            from speechbrain.lobes.models import HifiGAN as hifigan
        except (ImportError, OSError) as error:  # OSError: torchaudio's library does not fit this torch
            raise ImportError(
                "adversarial vocoder training needs speechbrain and a matching torchaudio: "
                "pip install 'musicldm[train]', or set adversarial_from to a step beyond the last"
            ) from error
        _drop_redirects()
        self.discriminator = hifigan.HifiganDiscriminator()
        self.least_squares_generator = hifigan.MSEGLoss()
        self.least_squares_discriminator = hifigan.MSEDLoss()
        self.feature_matching = hifigan.MelganFeatureLoss()

    def discriminator_loss(self, generated: Tensor, real: Tensor) -> Tensor:
        """Least-squares loss with targets 1 for ``real`` and 0 for ``generated``, both (B, L), summed over parts.

        Both go through the discriminators as one batch, so that weights are normalised once.
        """
        scores, _ = self.discriminator(torch.cat([generated.detach(), real]).unsqueeze(1))
        pairs = (score.chunk(2) for score in scores)
        return sum(self.least_squares_discriminator(fake, true)[0] for fake, true in pairs)

    def generator_losses(self, generated: Tensor, real: Tensor) -> dict[str, Tensor]:
        """``adversarial`` (summed over discriminators) and ``features`` losses of the generator."""
        fake_scores, fake_features = self.discriminator(generated.unsqueeze(1))
        with torch.no_grad():
            _, real_features = self.discriminator(real.unsqueeze(1))
        return {
            "adversarial": sum(self.least_squares_generator(score) for score in fake_scores),
            "features": self.feature_matching(fake_features, real_features),
        }


def _drop_redirects() -> None:
    """Remove speechbrain's redirects of old names from ``sys.modules``.

    They import when any attribute of them is read, as happens in code that inspects all loaded modules, and fail if k2
    or spacy is not installed.
    """
    from speechbrain.utils.importutils import LazyModule

    for name, module in list(sys.modules.items()):
        if isinstance(module, LazyModule) and module.lazy_module is None:
            del sys.modules[name]
