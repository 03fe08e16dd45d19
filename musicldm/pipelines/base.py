"""What the pipelines share: loading, encoding, denoising, decoding, ranking, and calls that are independent.

    text    -> CLAP -> embedding (B, D)
    audio   -> log-mel -> VAE -> latents (B, C, T/f, F/f)
    latents -> UNet and scheduler -> latents -> VAE -> log-mel (B, T, F) -> HiFi-GAN -> waveform (B, L)

Mono models have waveforms (B, L) and log-mels (B, T, F); stereo models (B, 2, L) and planes (B, P, T, F) of them.

Chen et al. (2023), MusicLDM. https://arxiv.org/abs/2308.01546
"""

import copy
import functools
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import numpy as np
import torch
from diffusers import AudioPipelineOutput, AutoencoderKL, DiffusionPipeline, StableDiffusionMixin, UNet2DConditionModel
from diffusers.schedulers import KarrasDiffusionSchedulers
from torch import Tensor
from torch.nn import functional
from transformers import ClapFeatureExtractor, ClapModel, PreTrainedTokenizerBase, SpeechT5HifiGan

from musicldm import sampling
from musicldm.kernels import dot_product
from musicldm.kernels import tiled_decoding as tiles
from musicldm.models.adapters import LoraMixin
from musicldm.models.clap import embed_audio, embed_text
from musicldm.models.latents import encode_image, latent_factor, model_waveform, padded_image
from musicldm.models.loading import OPTIONAL_PARTS, PARTS, find_folder, load_parts, original_parts
from musicldm.models.original.checkpoint import OriginalCheckpoint
from musicldm.pipelines.hub import PublishMixin
from musicldm.pipelines.optimize import optimize
from musicldm.sampling.condition import Condition, predict
from musicldm.sampling.denoising import NO_GUIDANCE, Guidance, Noise, OnStep, options_of_step
from vocoder import install_matching, mel_config, unpack_rows, vocode_planes

HUB_OPTIONS = {"cache_dir", "force_download", "local_files_only", "proxies", "revision", "token"}
OFFLOADED = threading.RLock()  # held by a call whose parts move between devices
ADAPTED = threading.RLock()  # held while a UNet with adapters runs: peft scales them in place


@dataclass
class MusicLDMPipelineOutput(AudioPipelineOutput):
    """What a pipeline returns.

    audios: waveforms (B, L), or (B, A, L) of models that are not mono, NumPy or torch, float32; or latents
        (B, C, T/f, F/f) if those were asked for.
    sampling_rate: of the waveforms, in Hz.
    scores: (prompts, candidates), cosine similarity of each waveform and its prompt in CLAP's space, best first;
        None where nothing was ranked, as with one candidate for each prompt.
    novelty: for each waveform its nearest clips of the training set, a verdict and more; None unless a copy guard
        made the music.
    """

    audios: np.ndarray | Tensor
    sampling_rate: int | None = None
    scores: np.ndarray | Tensor | None = None
    novelty: list[dict] | None = None


@dataclass(frozen=True)
class Callbacks:
    """Functions of a call that are told of its steps; see `MusicLDMPipeline.__call__`."""

    on_step_end: Callable | None = None
    tensor_inputs: tuple[str, ...] | list[str] = ("latents",)
    callback: Callable[[int, int, Tensor], None] | None = None
    every: int = 1  # steps between two calls of ``callback``


@contextmanager
def taking_turns(pipeline: DiffusionPipeline) -> Iterator[None]:
    """While inside, no other thread uses a pipeline whose parts are moved on and off the device as they are needed."""
    parts = pipeline.components.values()
    if any(hasattr(part, "_hf_hook") or hasattr(part, "_diffusers_hook") for part in parts):
        with OFFLOADED:
            yield
    else:
        yield


def independent(call: Callable) -> Callable:
    """A pipeline's ``__call__`` that runs on a copy of the pipeline, which has the same parts and its own scheduler.

    So any number of calls, on any threads or within callbacks, do not notice one another, and none changes the
    pipeline. Callbacks are given the copy: ``pipe._interrupt = True`` ends that call alone.
    """

    @functools.wraps(call)
    def run(self, *args, **options):
        own = copy.copy(self)
        own.scheduler, own._interrupt = copy.deepcopy(self.scheduler), False
        with taking_turns(own):
            return call(own, *args, **options)

    return run


class MusicLDMBase(PublishMixin, LoraMixin, StableDiffusionMixin, DiffusionPipeline):
    """A pipeline without a call.

    Args:
        vae: log-mel spectrograms to latents and back.
        text_encoder: CLAP, for prompts and for ranking; without it only ``prompt_embeds`` work.
        tokenizer: CLAP's; without it only ``prompt_embeds`` work.
        feature_extractor: CLAP's front end; without it candidates are not ranked.
        unet: predicts the noise in latents, conditioned by class embedding.
        scheduler: any of diffusers' Karras family.
        vocoder: log-mel spectrograms to waveforms.

    Raises:
        ValueError: if the parts do not fit each other.
    """

    model_cpu_offload_seq = "text_encoder->unet->vae->vocoder"
    _optional_components: ClassVar[list[str]] = list(OPTIONAL_PARTS)
    _callback_tensor_inputs: ClassVar[list[str]] = ["latents", "prompt_embeds"]
    _interrupt = False
    step_graphs = None  # set by optimize on CUDA

    def __init__(
        self,
        vae: AutoencoderKL,
        text_encoder: ClapModel | None,
        tokenizer: PreTrainedTokenizerBase | None,
        feature_extractor: ClapFeatureExtractor | None,
        unet: UNet2DConditionModel,
        scheduler: KarrasDiffusionSchedulers,
        vocoder: SpeechT5HifiGan,
    ):
        super().__init__()
        self.register_modules(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            feature_extractor=feature_extractor,
            unet=unet,
            scheduler=scheduler,
            vocoder=vocoder,
        )
        dot_product.install(unet)
        install_matching(vocoder)
        self.vae_scale_factor = latent_factor(vae)
        self.companions, self.card_sections = {}, {}
        mel = mel_config(vocoder)
        if unet.config.in_channels != vae.config.latent_channels:
            channels = f"{unet.config.in_channels} channels, the VAE gives {vae.config.latent_channels}"
            raise ValueError(f"the UNet takes latents of {channels}; take both from one model")
        if (rows := mel.n_mels // mel.bands_per_row) % self.vae_scale_factor:
            raise ValueError(f"the vocoder's {rows} mel bands do not fit the VAE's factor {self.vae_scale_factor}")
        if vae.config.in_channels != (planes := mel.planes * mel.bands_per_row):
            taken = f"{vae.config.in_channels} planes, the vocoder's spectrograms have {planes}"
            raise ValueError(f"the VAE takes {taken}; take both from one model")

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        *,
        legacy_heads: bool = False,
        torch_dtype: torch.dtype | None = None,
        variant: str | None = None,
        use_safetensors: bool | None = None,
        **kwargs,
    ) -> "MusicLDMBase":
        """A pipeline from a bundled model ("mini"), a model folder, or ``owner/name`` on the hub.

        All parts come in one dtype, float32 unless ``torch_dtype`` says otherwise. Parts handed over by name
        (``unet=...``, ``scheduler=...``, None to leave an optional one out) are used as they are.

        The published conversion of the released weights has a wrong number of attention heads; such a folder is read
        with the right ones, with a warning. ``legacy_heads=True`` keeps what it says, as diffusers does.

        ``variant`` and ``use_safetensors`` choose among a folder's weight files; cache_dir, force_download,
        local_files_only, proxies, revision and token go to the hub.

        Raises:
            ValueError: for a name that is no model, or a folder that is damaged or no MusicLDM model.
            OSError: if the hub cannot be reached or lacks the name.
            TypeError: for an unknown argument.
        """
        given = {name: kwargs.pop(name) for name in PARTS if name in kwargs}
        dtype = kwargs.pop("dtype", None) or torch_dtype or torch.float32  # diffusers is renaming torch_dtype to dtype
        if unknown := sorted(set(kwargs) - HUB_OPTIONS):
            raise TypeError(f"from_pretrained has no arguments {unknown}; move or change the pipeline after loading")

        download = partial(cls.download, variant=variant, use_safetensors=use_safetensors, **kwargs)
        folder = find_folder(pretrained_model_name_or_path, download)
        pipeline = cls(**load_parts(folder, given, dtype, legacy_heads, variant, use_safetensors))
        pipeline.register_to_config(_name_or_path=os.fspath(pretrained_model_name_or_path))
        pipeline.came_from(folder, {name: kwargs[name] for name in ("token", "local_files_only") if name in kwargs})
        return pipeline

    @classmethod
    def from_original(
        cls,
        path_or_state_dict,
        config,
        vocoder_config=None,
        clap_config=None,
        use_ema: bool = True,
        tokenizer: PreTrainedTokenizerBase | str | os.PathLike | None = None,
    ) -> "MusicLDMBase":
        """A pipeline from the authors' checkpoint; the arguments are those of `musicldm.models.original.load_original`.

        ``tokenizer`` is CLAP's: an object, a folder, or a name on the hub; by default RoBERTa's from the hub or its
        cache if the vocabulary is of that size. Where there is none only ``prompt_embeds`` work.

        Raises:
            ValueError: for a checkpoint that lacks a part that generating needs, or a tokenizer of another vocabulary.
            OSError: for files or a tokenizer that cannot be read.
        """
        checkpoint = OriginalCheckpoint(path_or_state_dict, config, vocoder_config, clap_config, use_ema)
        return cls(**original_parts(checkpoint, tokenizer))

    def enable_sequential_cpu_offload(self, *args, **kwargs) -> None:
        """As in diffusers, except that CLAP stays whole on the device: it is called through methods that hooks miss."""
        try:
            self._exclude_from_cpu_offload = ["text_encoder"]
            super().enable_sequential_cpu_offload(*args, **kwargs)
        finally:
            del self._exclude_from_cpu_offload

    def optimize(self, bfloat16: bool | None = None) -> "MusicLDMBase":
        """`musicldm.pipelines.optimize.optimize`: this pipeline, made faster on its device."""
        return optimize(self, bfloat16)

    @property
    def sampling_rate(self) -> int:
        """Of the waveforms, in Hz."""
        return self.vocoder.config.sampling_rate

    @property
    def num_timesteps(self) -> int:
        """Of the run in progress; for callbacks."""
        return len(self.scheduler.timesteps)

    def encode_prompt(
        self,
        prompt: str | list[str] | None = None,
        negative_prompt: str | list[str] | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        guided: bool = True,
    ) -> tuple[Tensor, Tensor | None]:
        """Embeddings (P, D) of the prompts and, if guided, of what to steer away from; each distinct text once.

        Raises:
            ValueError: if texts need a tokenizer or CLAP that the pipeline lacks.
        """
        prompts = [prompt] if isinstance(prompt, str) else prompt or []
        n_prompts = len(prompts) or len(prompt_embeds)
        negatives = []
        if guided and negative_prompt_embeds is None:
            shared = "" if negative_prompt is None else negative_prompt
            negatives = [shared] * n_prompts if isinstance(shared, str) else shared
        texts = list(dict.fromkeys([*prompts, *negatives]))
        embedded = dict(zip(texts, self.embed_texts(texts), strict=True)) if texts else {}
        if prompts:
            prompt_embeds = torch.stack([embedded[text] for text in prompts])
        if negatives:
            negative_prompt_embeds = torch.stack([embedded[text] for text in negatives])
        place = {"device": self._execution_device, "dtype": self.unet.dtype}
        return prompt_embeds.to(**place), negative_prompt_embeds.to(**place) if guided else None

    def embed_texts(self, texts: list[str]) -> Tensor:
        """CLAP's unit-norm embeddings (N, D) of ``texts``. Without a tokenizer only the empty text has one."""
        if self.text_encoder is None:
            raise ValueError(
                f"the pipeline has no text_encoder for {texts}; pass prompt_embeds and negative_prompt_embeds, "
                "or only prompt_embeds and guidance_scale=1"
            )
        return embed_text(_on_its_device(self.text_encoder), self.tokenizer, texts)

    @torch.no_grad()
    def encode_audio(self, audio: np.ndarray | Tensor, sampling_rate: int) -> Tensor:
        """Scaled latents (B, C, T/f, F/f) of ``audio`` (L,), (B, L) or (B, A, L): what the UNet works on.

        Any ``sampling_rate``, in Hz, will do: soxr converts it in high quality. Channels are averaged for a mono model.
        Silence is added behind the audio until it fills whole latent frames. The mode of the VAE's posterior, in its
        dtype and on its device.

        Raises:
            ValueError: for audio of another shape, without samples or with NaN or infinity, or a rate that is none.
        """
        mel = mel_config(self.vocoder)
        waveform = model_waveform(audio, sampling_rate, mel)  # (B, L) or (B, A, L)
        image = padded_image(waveform, mel, self.vae_scale_factor)  # (B, 1, T, F), or its planes (B, P, T, F)
        with taking_turns(self):
            posterior = encode_image(self.vae, image.to(self._execution_device))
            return self.vae.config.scaling_factor * posterior.mode()

    def denoise(
        self,
        latents: Tensor,
        condition: Condition,
        timesteps: Tensor,
        guidance: Guidance = NO_GUIDANCE,
        *,
        eta: float = 0.0,
        generator: Noise = None,
        **options,
    ) -> Tensor:
        """`musicldm.sampling.denoise` with the pipeline's UNet and scheduler: any window of latents, any steps.

        ``eta`` and ``generator`` are for the noise that some schedulers add; ``options`` are on_step and correct.
        """
        evaluate: Callable[..., Tensor] = predict if self.step_graphs is None else self.step_graphs.of(self.unet)
        if getattr(self.unet, "peft_config", None):
            evaluate = _predict_alone
        step_options = options_of_step(self.scheduler, latents, eta, generator)
        options |= {"step_options": step_options, "evaluate": evaluate}
        return sampling.denoise(self.unet, self.scheduler, latents, condition, timesteps, guidance, **options)

    def step_reporter(self, callbacks: Callbacks, progress_bar, n_warm_up: int) -> OnStep:
        """What tells ``callbacks`` and the progress bar of each step, and ends the run when a callback asks for it.

        ``n_warm_up``: evaluations of the network before the first step is complete.
        """
        order, n_evaluations = self.scheduler.order, self.num_timesteps

        def on_step(i: int, t: Tensor, latents: Tensor, condition: Condition) -> tuple[Tensor, Condition] | None:
            if callbacks.on_step_end is not None:
                tensors = {"latents": latents, "prompt_embeds": condition.embedding}
                shown = {name: tensors[name] for name in callbacks.tensor_inputs}
                tensors |= callbacks.on_step_end(self, i, t, shown) or {}
                latents, condition = tensors["latents"], replace(condition, embedding=tensors["prompt_embeds"])
            # a scheduler of order 2 visits most noise levels twice, one visit alone is no step
            if i + 1 == n_evaluations or (i + 1 > n_warm_up and (i + 1) % order == 0):
                progress_bar.update()
                step = i // order
                if callbacks.callback is not None and step % callbacks.every == 0:
                    callbacks.callback(step, t, latents)
            return None if self._interrupt else (latents, condition)

        return on_step

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Log-mels (B, T, F), or planes (B, P, T, F), of ``latents (B, C, T/f, F/f)``; long ones in pieces."""
        latents = 1 / self.vae.config.scaling_factor * latents.to(self.vae.dtype)  # rounded as by diffusers
        is_long = latents.shape[2] * self.vae_scale_factor > tiles.LONGEST_WHOLE
        if is_long and self.vae.device.type != "meta":  # with sequential offload each layer's weights come when called
            image = tiles.one_by_one(partial(tiles.decode, _on_its_device(self.vae)), latents)
        else:
            image = tiles.one_by_one(lambda part: self.vae.decode(part, return_dict=False)[0], latents)
        mel = mel_config(self.vocoder)
        planes = unpack_rows(image, mel.bands_per_row)  # (B, P, T, F)
        return planes.squeeze(1) if mel.planes == 1 else planes

    def vocode(self, mel: Tensor) -> Tensor:
        """Waveforms (B, L), or (B, A, L), of what `decode_latents` gives; long ones in tiles."""
        planes = mel if mel.ndim == 4 else mel.unsqueeze(1)  # (B, P, T, F)
        if planes.shape[2] > tiles.LONGEST_WHOLE:
            return tiles.one_by_one(partial(tiles.vocode, self.vocoder), planes)
        config = mel_config(self.vocoder)
        return tiles.one_by_one(lambda part: vocode_planes(self.vocoder, part, config), planes)

    def rank(self, audios: Tensor, embedding: Tensor, return_best: int | None = None) -> tuple[Tensor, Tensor | None]:
        """Waveforms (P * n, L) or (P * n, A, L) sorted within each prompt, best first, and their scores (P, n).

        A score is the cosine similarity of a waveform's CLAP embedding and its prompt's, ``embedding (P, D)``. With
        ``return_best`` only so many of each prompt are kept. Without CLAP or its front end nothing is sorted.
        """
        if self.text_encoder is None or self.feature_extractor is None:
            warnings.warn("candidates are not ranked: that needs text_encoder and feature_extractor", stacklevel=5)
            return audios, None
        clap = _on_its_device(self.text_encoder)
        heard = embed_audio(clap, self.feature_extractor, audios, self.sampling_rate).cpu().float()
        wanted = functional.normalize(embedding.cpu().float(), dim=-1)
        similarity = torch.einsum("pnd,pd->pn", heard.unflatten(0, (len(wanted), -1)), wanted)
        scores, order = similarity.sort(dim=1, descending=True, stable=True)
        scores, order = scores[:, :return_best], order[:, :return_best]
        rows = torch.arange(len(wanted))[:, None]
        return audios.unflatten(0, similarity.shape)[rows, order].flatten(0, 1), scores


def _predict_alone(*arguments) -> Tensor:
    """`predict`, by one thread at a time."""
    with ADAPTED:
        return predict(*arguments)


def _on_its_device(network: torch.nn.Module) -> torch.nn.Module:
    """A network where it is to run: model offload moves it when its forward runs, but these are called otherwise."""
    if hasattr(network, "_hf_hook"):
        network._hf_hook.pre_forward(network)
    return network
