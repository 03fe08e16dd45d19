"""One dataclass per training stage; that of the diffusion model, the largest, is in `musicldm.config.diffusion`.

Defaults live here, so that an installed package works without files; they are those of the published model.
"""

from __future__ import annotations

from dataclasses import dataclass

from musicldm.config.common import TrainConfig, not_negative, positive
from musicldm.config.diffusion import ConceptConfig, DiffusionConfig


@dataclass
class VAEConfig(TrainConfig):
    """Variational autoencoder of log-mel spectrograms (published: factor 4, 8 channels, 128-256-512 wide)."""

    learning_rate: float = 4.5e-5
    segment_s: float = 10.24  # seconds of one training item
    channels: tuple[int, ...] = (128, 256, 512)  # one width for each level; each but the last halves both axes
    layers_per_level: int = 2
    norm_groups: int = 32
    latent_channels: int = 8
    freeze_encoder: bool = False  # train the decoder of init alone: latents stay what they are
    kl_weight: float = 1.5e-5  # times nats for each latent value (published: 1 beside an error summed over 65,536)
    texture_weight: float = 0.0  # of differences in roughness, which a mean absolute error smooths away
    balance_weight: float = 0.0  # of errors in left and right of stereo, which beside log-mels count little
    adversarial_from: int = 50_001  # step from which the patch discriminator takes part
    adversarial_weight: float = 0.5
    discriminator_channels: int = 64
    discriminator_lead: int = 0  # steps by which it begins to learn before it takes part
    discriminator_rate: float = 1.0  # its learning rate, over that of the autoencoder

    def __post_init__(self):
        super().__post_init__()
        positive(self, "segment_s", "layers_per_level", "latent_channels", "norm_groups", "discriminator_rate")
        not_negative(self, "texture_weight", "balance_weight", "kl_weight")
        not_negative(self, "discriminator_lead", "adversarial_weight", "adversarial_from")
        if self.balance_weight and self.mel.planes == 1:
            raise ValueError("balance_weight is for stereo, but mel.audio_channels is 1: leave it at 0")
        if self.freeze_encoder and not self.init:
            raise ValueError("freeze_encoder needs a trained encoder: say which with init=MODEL")
        if bad := [width for width in self.channels if width % self.norm_groups]:
            raise ValueError(f"channels must be multiples of norm_groups ({self.norm_groups}), got {bad[0]}")
        if self.mel.n_mels // self.mel.bands_per_row % self.factor:
            raise ValueError(
                f"n_mels ({self.mel.n_mels}) over bands_per_row ({self.mel.bands_per_row}) must be a multiple of the "
                f"VAE's factor {self.factor}"
            )

    @property
    def factor(self) -> int:
        """Mel frames (and bands) of one latent."""
        return 2 ** (len(self.channels) - 1)


@dataclass
class VocoderConfig(TrainConfig):
    """HiFi-GAN (published: 1024 channels, rates 5-4-2-2-2, Adam 2e-4 with betas 0.8 and 0.99)."""

    learning_rate: float = 2e-4
    betas: tuple[float, float] = (0.8, 0.99)
    max_grad_norm: float = 1000.0
    segment_samples: int = 8192
    channels: int = 1024
    upsample_rates: tuple[int, ...] = (5, 4, 2, 2, 2)
    upsample_kernel_sizes: tuple[int, ...] = (16, 16, 8, 4, 4)
    resblock_kernel_sizes: tuple[int, ...] = (3, 7, 11)
    resblock_dilations: tuple[int, ...] = (1, 3, 5)
    mel_weight: float = 45.0
    stft_weight: float = 0.0
    stft_scale: int = 1  # of its frames in samples, which are for rates of about 20 kHz: 2 for 44.1 kHz
    features_weight: float = 2.0
    texture_weight: float = 0.0  # of differences in roughness, which a mean absolute error smooths away
    adversarial_from: int = 0  # step from which the discriminators take part
    match_passes: int = 0  # how often the finished vocoder corrects its waveform by the spectrogram (vocoder.match_mel)

    def __post_init__(self):
        super().__post_init__()
        positive(self, "channels", "stft_scale")
        not_negative(self, "match_passes", "texture_weight")
        if self.segment_samples < self.mel.n_fft:
            raise ValueError(f"segment_samples must be at least n_fft ({self.mel.n_fft}), got {self.segment_samples}")
        if self.stft_weight and self.segment_samples <= (longest := 1024 * self.stft_scale):
            raise ValueError(f"segment_samples must be above {longest}, 1024 x stft_scale, got {self.segment_samples}")


@dataclass
class CLAPConfig(TrainConfig):
    """Contrastive language-audio pretraining (published: HTSAT-base and RoBERTa-base, 512-dimensional)."""

    caption_views: int = 1  # captions of each clip that are contrasted at a time, with the audio and with one another
    # Of telling captions from such as differ in tempo or drums (musicldm.scores.hard_negatives).
    contrary_weight: float = 0.0
    tempo_weight: float = 0.0  # of reading the tempo that captions state from their embeddings, and from the audio's
    vocabulary: int = 50_265  # byte-level BPE pieces, at most
    embedding_size: int = 512
    text_width: int = 768
    text_layers: int = 12
    text_heads: int = 12
    text_positions: int = 512  # tokens
    audio_width: int = 128  # of the first HTSAT stage; doubles at each later one
    audio_depths: tuple[int, ...] = (2, 2, 12, 2)
    audio_heads: tuple[int, ...] = (4, 8, 16, 32)
    audio_image: int = 256  # side of the square image that the log-mel is folded to
    audio_patch: int = 4  # side of one patch of that image
    audio_sample_rate: int = 48_000  # Hz
    audio_hop_length: int = 480  # samples
    audio_n_fft: int = 1024  # samples
    audio_n_mels: int = 64
    audio_f_min: float = 50.0  # Hz
    audio_f_max: float = 14_000.0  # Hz
    audio_s: float = 10.0  # seconds; shorter clips are repeated, longer ones cut
    fusion: bool = False  # longer clips are heard whole: shrunk, with a clip of each third
    freeze_audio: bool = False  # train the text tower of init alone: embeddings of audio stay what they are
    distill: str = ""  # a model or a folder of this stage, whose embeddings are learned instead of the contrast
    dropout: float = 0.1

    def __post_init__(self):
        super().__post_init__()
        positive(self, "caption_views")
        not_negative(self, "contrary_weight", "tempo_weight")
        if self.freeze_audio and not self.init:
            raise ValueError("freeze_audio needs a trained audio tower: say which with init=MODEL")
        if self.fusion and not self.mel.clip_s > self.audio_s:
            raise ValueError(
                f"fusion is for clips longer than audio_s ({self.audio_s} s), but they are {self.mel.clip_s} s: "
                "raise mel.clip_s or lower audio_s"
            )
        if self.text_width % self.text_heads:
            raise ValueError(f"text_width ({self.text_width}) must be a multiple of text_heads ({self.text_heads})")
        if len(self.audio_depths) != len(self.audio_heads):
            raise ValueError(f"audio_depths {self.audio_depths} and audio_heads {self.audio_heads} differ in length")
        # patches, halved by each stage
        smallest = self.audio_image // (self.audio_patch * 2 ** (len(self.audio_depths) - 1))
        if smallest < 8:
            raise ValueError(
                f"the last of {len(self.audio_depths)} stages would see {smallest} x {smallest} patches, less than its "
                "window of 8: raise audio_image or take fewer stages"
            )
        frames = self.audio_image**2 // self.audio_n_mels
        if 1 + int(self.audio_s * self.audio_sample_rate) // self.audio_hop_length > frames:
            raise ValueError(
                f"{self.audio_s} s are more than the {frames} frames that an image of {self.audio_image} holds: "
                "raise audio_image or audio_hop_length"
            )


STAGES: dict[str, type[TrainConfig]] = {
    "vae": VAEConfig,
    "vocoder": VocoderConfig,
    "clap": CLAPConfig,
    "diffusion": DiffusionConfig,
    "concept": ConceptConfig,
}
