"""One dataclass per training stage.

Defaults live here, so that an installed package works without files; they are those of the published model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from augment.beats import TRACKERS
from augment.pairing import MODES
from vocoder.mel import MelConfig

PRECISIONS = ("no", "bf16", "fp16")
SCHEDULES = ("constant", "cosine")
PREDICTIONS = ("epsilon", "v_prediction", "flow")
MIXUPS = ("none", "plain", "audio", "latent")
LORA_LAYERS = ("all", "attention")
CHANGEABLE, LOCAL = "changeable", "local"


def _changeable(default: object, local: bool = False) -> Any:
    """A field that a resumed run may change, as no weight depends on it."""
    return field(default=default, metadata={CHANGEABLE: True, LOCAL: local})


def _local(default: object) -> Any:
    """A field that is of one machine, which a model's card leaves out."""
    return field(default=default, metadata={LOCAL: True})


def marked(config: Any, mark: str) -> set[str]:
    """The names of the fields of ``config`` that are `CHANGEABLE` or `LOCAL`."""
    return {f.name for f in fields(config) if f.metadata.get(mark)}


def _positive(config: object, *names: str) -> None:
    for name in names:
        if not getattr(config, name) > 0:
            raise ValueError(f"{name} must be positive, got {getattr(config, name)}")


def _not_negative(config: object, *names: str) -> None:
    for name in names:
        if getattr(config, name) < 0:
            raise ValueError(f"{name} must not be negative, got {getattr(config, name)}")


def _finite(config: TrainConfig) -> None:
    """ValueError for infinity and NaN, and for sizes in lists that are none."""
    for f in fields(config):
        value = getattr(config, f.name)
        values = value if isinstance(value, tuple) else (value,)
        if any(isinstance(each, float) and not math.isfinite(each) for each in values):
            raise ValueError(f"{f.name} must be finite, got {value}")
        if f.type == "tuple[int, ...]" and (not values or min(values) < 1):
            raise ValueError(f"{f.name} must be sizes of at least 1, got {list(values)}")


def _one_of(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")


@dataclass
class TrainConfig:
    """What all stages share."""

    seed: int = 0
    # Weights to start from, whose sizes then count: a stage's final folder, a model folder or "mini".
    init: str = _local("")
    share: float = 1.0  # of the training recordings that are used; the same ones in every run
    steps: int = 100_000  # optimiser steps
    batch_size: int = 16  # clips for each process at a time
    accumulate: int = 1  # batches of each process whose gradients make one step
    learning_rate: float = 1e-4
    warmup_steps: int = 0  # the learning rate rises linearly from 0
    schedule: str = "constant"  # or cosine, to 0 at the last step
    cooldown_steps: int = 0  # a constant learning rate falls linearly to 0 over the last of these
    decay_per_epoch: float = 1.0  # factor of the learning rate after each pass over the clips
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    max_grad_norm: float = 1.0
    mixed_precision: str = "no"  # no, bf16 or fp16
    gradient_checkpointing: bool = _changeable(False)  # compute activations again instead of keeping them
    compile: bool = _changeable(False)  # by torch.compile
    device: str = _changeable("auto", local=True)  # auto or cpu
    workers: int = _changeable(0, local=True)  # processes that read ahead
    log_every: int = _changeable(50, local=True)  # steps
    save_every: int = _changeable(5000)  # steps
    keep_checkpoints: int = _changeable(2)  # the newest; that of the best validation is kept beside them
    export: str = _changeable("last")  # or best: which weights OUT/final gets
    trackers: tuple[str, ...] = _changeable(("tensorboard",), local=True)  # any that accelerate knows
    validate_every: int = _changeable(5000)  # steps
    validation_batches: int = _changeable(8)
    mel: MelConfig = field(default_factory=MelConfig)

    def __post_init__(self):
        _finite(self)
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must be from 0 to {2**32 - 1}, got {self.seed}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must be from 0 to below 1, got {self.betas}")
        _not_negative(self, "weight_decay")
        _positive(self, "steps", "batch_size", "accumulate", "learning_rate", "max_grad_norm")
        _positive(self, "log_every", "save_every", "keep_checkpoints", "validate_every", "validation_batches")
        _one_of("mixed_precision", self.mixed_precision, PRECISIONS)
        _one_of("schedule", self.schedule, SCHEDULES)
        _one_of("device", self.device, ("auto", "cpu"))
        _one_of("export", self.export, ("last", "best"))
        if not 0 < self.share <= 1:
            raise ValueError(f"share is a share of the recordings, above 0 and at most 1, got {self.share}")
        _not_negative(self, "workers")
        if not 0 < self.decay_per_epoch <= 1:
            raise ValueError(f"decay_per_epoch must be above 0 and at most 1, got {self.decay_per_epoch}")
        for name in ("warmup_steps", "cooldown_steps"):
            if not 0 <= getattr(self, name) <= self.steps:
                raise ValueError(f"{name} must be from 0 to steps ({self.steps}), got {getattr(self, name)}")
        if self.cooldown_steps and self.schedule == "cosine":
            raise ValueError(f"cooldown_steps={self.cooldown_steps} is for schedule=constant; cosine falls by itself")


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
        _positive(self, "segment_s", "layers_per_level", "latent_channels", "norm_groups", "discriminator_rate")
        _not_negative(self, "texture_weight", "balance_weight", "kl_weight")
        _not_negative(self, "discriminator_lead", "adversarial_weight", "adversarial_from")
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
        _positive(self, "channels", "stft_scale")
        _not_negative(self, "match_passes", "texture_weight")
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
        _positive(self, "caption_views")
        _not_negative(self, "contrary_weight", "tempo_weight")
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


@dataclass
class LoraConfig:
    """Low-rank adapters of the UNet."""

    rank: int = 0  # of the adapter that is trained in place of the whole UNet; 0: none
    layers: str = "all"  # or attention: all are also the convolutions, and where the condition enters

    def __post_init__(self):
        if self.rank < 0:
            raise ValueError(f"lora.rank must not be negative, got {self.rank}")
        _one_of("lora.layers", self.layers, LORA_LAYERS)


@dataclass
class DiffusionConfig(TrainConfig):
    """Latent diffusion conditioned on CLAP (published: UNet 128-256-384-640, AdamW 3e-5, batch 24, EMA 0.9999)."""

    learning_rate: float = 3e-5
    vae: str = _local("")  # folder with the trained VAE
    clap: str = _local("")  # folder with the trained CLAP: text_encoder, tokenizer and feature_extractor
    vocoder: str = _changeable("", local=True)  # folder with the trained vocoder
    # Folder for what is computed once of each clip, which several runs may share; else OUT/cache.
    cache: str = _changeable("")
    channels: tuple[int, ...] = (128, 256, 384, 640)
    head_channels: int = 32  # width of one attention head
    attention_from_level: int = 1  # levels below it have convolutions only
    layers_per_level: int = 2
    norm_groups: int = 32
    prediction: str = "epsilon"  # or v_prediction, or flow: the velocity of a rectified flow
    min_snr: float = 0.0  # limit of the signal-to-noise ratio that errors are weighted by, usually 5; 0: no weighting
    whiten_condition: bool = True  # the condition's projection begins by evening out CLAP's directions, of a new CLAP
    drop_condition: float = 0.1  # share of items trained without a condition, for classifier-free guidance
    text_condition: float = 0.0  # share of items conditioned on the caption instead of the audio
    text_condition_last: float | None = None  # that share in the last epoch, if it is to change linearly until then
    captions: str = _changeable("expected")  # or none: metadata without any is meant so
    ema_decay: float = 0.9999
    on_device: bool = False  # clips lie, and are drawn, in the GPU's memory, and both passes are one CUDA graph
    lora: LoraConfig = field(default_factory=LoraConfig)  # needs init=MODEL
    # Whether the model carries a novelty index of its training set (musicldm novelty index).
    index: bool = _changeable(False)
    # To be heard at each validation; without any, held-out clips' conditions.
    validation_prompts: tuple[str, ...] = _changeable(())
    train_timesteps: int = 1000
    beta_start: float = 0.0015
    beta_end: float = 0.0195
    mixup: str = "none"  # none, plain (random pairs), audio or latent (pairs of one tempo, downbeat on downbeat)
    mixup_probability: float = 0.5  # share of items that are mixtures
    mixup_mode: str = "synchronous"  # or paper: pairs as the authors of MusicLDM make them
    mixup_per_clip: int = 1  # mixtures made ahead with each clip
    mixup_fresh: bool = False  # whether every epoch gets new ones
    mixup_seed: int | None = None  # of the mixtures; the run's seed if not given
    mixup_stretch: float = 0.04  # by how much of its speed a partner may change (synchronous)
    mixup_same_key: bool = False  # whether partners must be in a compatible key (synchronous)
    mixup_tracker: str = "madmom"  # or librosa, beat_this: what finds the beats of recordings not yet analysed

    def __post_init__(self):
        super().__post_init__()
        _one_of("prediction", self.prediction, PREDICTIONS)
        _one_of("captions", self.captions, ("expected", "none"))
        _one_of("mixup", self.mixup, MIXUPS)
        _one_of("mixup_mode", self.mixup_mode, MODES)
        _one_of("mixup_tracker", self.mixup_tracker, TRACKERS)
        _positive(self, "mixup_per_clip")
        if not 0 <= self.mixup_stretch <= 0.04:
            raise ValueError(
                f"mixup_stretch must be from 0 to 0.04, beyond which it is heard, got {self.mixup_stretch}"
            )
        for name in ("drop_condition", "text_condition", "text_condition_last", "mixup_probability"):
            if not 0 <= (getattr(self, name) or 0) <= 1:
                raise ValueError(f"{name} is a share between 0 and 1, got {getattr(self, name)}")
        if self.lora.rank and not self.init:
            raise ValueError(f"lora.rank={self.lora.rank} adapts a model: name it by init=MODEL")
        if self.lora.rank and self.index:
            raise ValueError("index=true is for whole models; make an adapter's by `musicldm novelty index`")
        if self.on_device:
            for name in ("mixup_fresh", "accumulate", "gradient_checkpointing", "compile"):
                if (given := getattr(self, name)) != (usual := getattr(DiffusionConfig, name)):
                    raise ValueError(f"on_device=true goes with {name}={usual} only, got {given}".lower())
            if self.mixed_precision == "fp16":
                raise ValueError("on_device=true cannot look for float16's scale: set mixed_precision=bf16, or no")
        if self.min_snr < 0 or (self.min_snr and self.prediction == "flow"):
            raise ValueError(f"min_snr is a limit above 0 for noise and v, or 0, got {self.min_snr}")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must be at least 0 and below 1, got {self.ema_decay}")
        if bad := [width for width in self.channels if width % self.head_channels or width % self.norm_groups]:
            raise ValueError(
                f"channels must be multiples of head_channels ({self.head_channels}) "
                f"and norm_groups ({self.norm_groups}), got {bad[0]}"
            )


@dataclass
class ConceptConfig(DiffusionConfig):
    """A word and an adapter for a kind of music, from a few minutes of it."""

    name: str = ""  # such as <mine>
    init: str = _local("mini")
    steps: int = 100  # of the adapter
    batch_size: int = 4
    learning_rate: float = 1e-3
    warmup_steps: int = 10
    schedule: str = "cosine"
    weight_decay: float = 0.0
    drop_condition: float = 0.0  # the empty text is among prior_captions instead, so that guidance stays as it was
    log_every: int = _changeable(10, local=True)
    save_every: int = _changeable(50)
    validate_every: int = _changeable(50)
    lora: LoraConfig = field(default_factory=lambda: LoraConfig(rank=4))
    word_steps: int = 200  # of the word, before the adapter's
    word_rate: float = 0.01  # its learning rate, which falls to 0
    prior_weight: float = 1.0  # of staying as before for other captions
    prior_captions: tuple[str, ...] = (  # those
        "",
        "solo piano, slow",
        "a rock band with drums and electric guitar",
        "a string quartet plays a calm waltz",
        "a flute and a harp",
        "a brass band plays a fast march",
        "electronic music with a steady beat",
        "a choir",
        "a jazz trio with double bass",
    )

    def __post_init__(self):
        super().__post_init__()
        _positive(self.lora, "rank")
        _positive(self, "word_rate", "word_steps")
        if not self.prior_captions or self.prior_weight < 0:
            raise ValueError("prior_captions must not be empty, and prior_weight not negative")
        unused = ("ema_decay", "text_condition_last", "validation_batches")
        for name in ("mixup", "compile", "on_device", "drop_condition", "text_condition", *unused):
            if (given := getattr(self, name)) != (usual := getattr(ConceptConfig, name)):
                raise ValueError(f"concepts are learned with the default {name}={usual}, got {given}")


STAGES: dict[str, type[TrainConfig]] = {
    "vae": VAEConfig,
    "vocoder": VocoderConfig,
    "clap": CLAPConfig,
    "diffusion": DiffusionConfig,
    "concept": ConceptConfig,
}
