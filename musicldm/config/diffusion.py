"""The configuration of the diffusion model, and of what adapts one: low-rank adapters and concepts."""

from __future__ import annotations

from dataclasses import dataclass, field

from augment.beats import TRACKERS
from augment.pairing import MODES
from musicldm.config.common import TrainConfig, changeable, local, one_of, positive

PREDICTIONS = ("epsilon", "v_prediction", "flow")
MIXUPS = ("none", "plain", "audio", "latent")
LORA_LAYERS = ("all", "attention")


@dataclass
class LoraConfig:
    """Low-rank adapters of the UNet."""

    rank: int = 0  # of the adapter that is trained in place of the whole UNet; 0: none
    layers: str = "all"  # or attention: all are also the convolutions, and where the condition enters

    def __post_init__(self):
        if self.rank < 0:
            raise ValueError(f"lora.rank must not be negative, got {self.rank}")
        one_of("lora.layers", self.layers, LORA_LAYERS)


@dataclass
class DiffusionConfig(TrainConfig):
    """Latent diffusion conditioned on CLAP (published: UNet 128-256-384-640, AdamW 3e-5, batch 24, EMA 0.9999)."""

    learning_rate: float = 3e-5
    vae: str = local("")  # folder with the trained VAE
    clap: str = local("")  # folder with the trained CLAP: text_encoder, tokenizer and feature_extractor
    vocoder: str = changeable("", local=True)  # folder with the trained vocoder
    # Folder for what is computed once of each clip, which several runs may share; else OUT/cache.
    cache: str = changeable("")
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
    captions: str = changeable("expected")  # or none: metadata without any is meant so
    ema_decay: float = 0.9999
    on_device: bool = False  # clips lie, and are drawn, in the GPU's memory, and both passes are one CUDA graph
    lora: LoraConfig = field(default_factory=LoraConfig)  # needs init=MODEL
    context: bool = False  # whether the UNet is given a context: notes to play, other tracks, the music around a hole
    context_draws: int = 4  # contexts made ahead of each clip
    drop_context: float = 0.3  # share of items trained without a context, whether or not they have a condition
    hole_share: float = 0.1  # share of items whose context is their own music with a hole
    soundfonts: tuple[str, ...] = local(())  # files that clips were rendered with and contexts are, beside the system's
    context_learning_rate: float | None = None  # of the UNet's first layer, whose columns for contexts are new
    context_keep: float = 0.0  # how far the answer to items without a context is held to that of init: 1 wholly, 0 not
    # Whether the model carries a novelty index of its training set (musicldm novelty index).
    index: bool = changeable(False)
    # To be heard at each validation; without any, held-out clips' conditions.
    validation_prompts: tuple[str, ...] = changeable(())
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
        one_of("prediction", self.prediction, PREDICTIONS)
        one_of("captions", self.captions, ("expected", "none"))
        one_of("mixup", self.mixup, MIXUPS)
        one_of("mixup_mode", self.mixup_mode, MODES)
        one_of("mixup_tracker", self.mixup_tracker, TRACKERS)
        positive(self, "mixup_per_clip")
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
        _check_context(self)
        if self.min_snr < 0 or (self.min_snr and self.prediction == "flow"):
            raise ValueError(f"min_snr is a limit above 0 for noise and v, or 0, got {self.min_snr}")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must be at least 0 and below 1, got {self.ema_decay}")
        if bad := [width for width in self.channels if width % self.head_channels or width % self.norm_groups]:
            raise ValueError(
                f"channels must be multiples of head_channels ({self.head_channels}) "
                f"and norm_groups ({self.norm_groups}), got {bad[0]}"
            )


def _check_context(config: DiffusionConfig) -> None:
    """ValueError for settings of contexts that are out of range, or set without any."""
    shares = ("drop_context", "hole_share", "context_keep")
    for name in shares:
        if not 0 <= getattr(config, name) <= 1:
            raise ValueError(f"{name} is a share between 0 and 1, got {getattr(config, name)}")
    positive(config, "context_draws")
    if config.context_learning_rate is not None:
        positive(config, "context_learning_rate")
    if config.drop_context + config.hole_share > 1:
        raise ValueError(
            f"drop_context ({config.drop_context}) and hole_share ({config.hole_share}) are shares of all items: "
            "their sum must be at most 1"
        )
    if config.context_keep and not config.init:
        raise ValueError(f"context_keep={config.context_keep} holds on to a model: name it by init=MODEL")
    for name in () if config.context else ("context_draws", *shares, "context_learning_rate"):
        if (given := getattr(config, name)) != getattr(DiffusionConfig, name):
            raise ValueError(f"{name}={given} is for training with contexts: set context=true")


@dataclass
class ConceptConfig(DiffusionConfig):
    """A word and an adapter for a kind of music, from a few minutes of it."""

    name: str = ""  # such as <mine>
    init: str = local("mini")
    steps: int = 100  # of the adapter
    batch_size: int = 4
    learning_rate: float = 1e-3
    warmup_steps: int = 10
    schedule: str = "cosine"
    weight_decay: float = 0.0
    drop_condition: float = 0.0  # the empty text is among prior_captions instead, so that guidance stays as it was
    log_every: int = changeable(10, local=True)
    save_every: int = changeable(50)
    validate_every: int = changeable(50)
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
        positive(self.lora, "rank")
        positive(self, "word_rate", "word_steps")
        if not self.prior_captions or self.prior_weight < 0:
            raise ValueError("prior_captions must not be empty, and prior_weight not negative")
        unused = ("ema_decay", "text_condition_last", "validation_batches")
        for name in ("mixup", "compile", "on_device", "context", "drop_condition", "text_condition", *unused):
            if (given := getattr(self, name)) != (usual := getattr(ConceptConfig, name)):
                raise ValueError(f"concepts are learned with the default {name}={usual}, got {given}")
