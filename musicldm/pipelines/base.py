"""What the pipelines share: loading, encoding, denoising, decoding, ranking, and calls that are independent.

    text    -> CLAP -> embedding (B, D)
    audio   -> log-mel -> VAE -> latents (B, C, T/f, F/f)
    latents -> UNet and scheduler -> latents -> VAE -> log-mel (B, T, F) -> HiFi-GAN -> waveform (B, L)

Mono models have waveforms (B, L) and log-mels (B, T, F); stereo models (B, 2, L) and planes (B, P, T, F) of them.

Chen et al. (2023), MusicLDM. https://arxiv.org/abs/2308.01546
"""

import os
import threading
import warnings
from collections.abc import Callable
from functools import partial
from typing import ClassVar

import numpy as np
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, UNet2DConditionModel
from diffusers.schedulers import KarrasDiffusionSchedulers
from torch import Tensor
from torch.nn import functional
from transformers import ClapFeatureExtractor, ClapModel, PreTrainedTokenizerBase, SpeechT5HifiGan

from musicldm import sampling
from musicldm.config.values import check_kind, shown
from musicldm.kernels import tiled_decoding as tiles
from musicldm.kernels import unet_attention
from musicldm.models.adapters import LoraMixin
from musicldm.models.circular import circular_decoder, circular_unet
from musicldm.models.clap import embed_audio, embed_text
from musicldm.models.context import latent_channels
from musicldm.models.latents import encode_image, latent_factor, model_waveform, padded_image
from musicldm.models.loading import OPTIONAL_PARTS, PARTS, find_folder, load_parts, original_parts
from musicldm.models.original.checkpoint import OriginalCheckpoint
from musicldm.pipelines.calls import taking_turns
from musicldm.pipelines.checks import as_embeds, check_texts
from musicldm.pipelines.finite import Watched, check_finite
from musicldm.pipelines.habits import HabitsMixin, LastRun, device_of
from musicldm.pipelines.hub import PublishMixin
from musicldm.pipelines.optimize import optimize
from musicldm.pipelines.outputs import MusicLDMPipelineOutput as MusicLDMPipelineOutput
from musicldm.pipelines.sharing import SharingMixin
from musicldm.sampling.condition import Condition, predict
from musicldm.sampling.denoising import Guidance, Noise, options_of_step
from vocoder import install_matching, mel_config, unpack_rows, vocode_planes

HUB_OPTIONS = {"cache_dir", "force_download", "local_files_only", "proxies", "revision", "token"}
ADAPTED = threading.RLock()  # held while a UNet with adapters runs: peft scales them in place


class MusicLDMBase(SharingMixin, PublishMixin, LoraMixin, HabitsMixin, DiffusionPipeline):
    """A pipeline without a call.

    Any part may be None: what needs it then says so. A pipeline of text_encoder and tokenizer alone encodes prompts.

    Args:
        vae: log-mel spectrograms to latents and back.
        text_encoder: CLAP, for prompts and for ranking; without it only ``prompt_embeds`` work.
        tokenizer: CLAP's; without it only ``prompt_embeds`` work.
        feature_extractor: CLAP's front end; without it candidates are not ranked.
        unet: predicts the noise in latents, conditioned by class embedding.
        scheduler: any of diffusers' Karras family.
        vocoder: log-mel spectrograms to waveforms.

    Raises:
        ValueError: if a part is of another kind, or the parts do not fit each other.
    """

    model_cpu_offload_seq = "text_encoder->unet->vae->vocoder"
    _optional_components: ClassVar[list[str]] = list(OPTIONAL_PARTS)
    _callback_tensor_inputs: ClassVar[list[str]] = ["latents", "prompt_embeds"]
    step_graphs = None  # set by optimize on CUDA

    def __init__(
        self,
        vae: AutoencoderKL | None,
        text_encoder: ClapModel | None,
        tokenizer: PreTrainedTokenizerBase | None,
        feature_extractor: ClapFeatureExtractor | None,
        unet: UNet2DConditionModel | None,
        scheduler: KarrasDiffusionSchedulers | None,
        vocoder: SpeechT5HifiGan | None,
    ):
        super().__init__()
        networks = {"vae": vae, "text_encoder": text_encoder, "unet": unet, "vocoder": vocoder}
        for name, part in networks.items():
            check_kind(name, part, (torch.nn.Module, type(None)), f"a {PARTS[name].__name__}, or None")
        if scheduler is not None and not hasattr(scheduler, "set_timesteps"):
            raise ValueError(f"scheduler must be one of diffusers' Karras family, or None, got {shown(scheduler)}")
        for name, part in (("tokenizer", tokenizer), ("feature_extractor", feature_extractor)):
            if part is not None and not callable(part):
                raise ValueError(f"{name} must be a {PARTS[name].__name__}, or None, got {shown(part)}")
        self.register_modules(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            feature_extractor=feature_extractor,
            unet=unet,
            scheduler=scheduler,
            vocoder=vocoder,
        )
        if vocoder is not None:
            install_matching(vocoder)
        self.vae_scale_factor = None if vae is None else latent_factor(vae)
        self.companions, self.card_sections, self.last_run = {}, {}, LastRun()
        if unet is not None and vae is not None and latent_channels(unet) != vae.config.latent_channels:
            channels = f"{latent_channels(unet)} channels, the VAE gives {vae.config.latent_channels}"
            raise ValueError(f"the UNet takes latents of {channels}; take both from one model")
        if vocoder is None or vae is None:
            return
        mel = mel_config(vocoder)
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
        torch_dtype: torch.dtype | dict[str, torch.dtype] | None = None,
        variant: str | None = None,
        use_safetensors: bool | None = None,
        device_map: str | torch.device | None = None,
        **kwargs,
    ) -> "MusicLDMBase":
        """A pipeline from a bundled model ("mini"), a model folder, or ``owner/name`` on the hub.

        All parts come in one dtype, float32 unless ``torch_dtype`` says otherwise; as a dictionary by part,
        ``{"unet": torch.float16, "default": torch.float32}``. Parts handed over by name (``unet=...``,
        ``scheduler=...``, None to leave one out) are used as they are.

        The published conversion of the released weights has a wrong number of attention heads; such a folder is read
        with the right ones, with a warning. ``legacy_heads=True`` keeps what it says, as diffusers does.

        ``variant`` and ``use_safetensors`` choose among a folder's weight files; parts that come in no variant at all
        are read as they are beside those that do. ``device_map`` moves all parts to a device, "balanced" to the
        accelerator if there is one. cache_dir, force_download, local_files_only, proxies, revision and token go to the
        hub. low_cpu_mem_usage is accepted and changes nothing: one part is read at a time.

        Raises:
            ValueError: for a name that is no model, or a folder that is damaged or no MusicLDM model.
            OSError: if the hub cannot be reached or lacks the name.
            TypeError: for an unknown argument.
        """
        device = device_of(device_map)
        given = {name: kwargs.pop(name) for name in PARTS if name in kwargs}
        kwargs.pop("low_cpu_mem_usage", None)
        dtype = kwargs.pop("dtype", None) or torch_dtype or torch.float32  # diffusers is renaming torch_dtype to dtype
        if unknown := sorted(set(kwargs) - HUB_OPTIONS):
            raise TypeError(f"from_pretrained has no arguments {unknown}; move or change the pipeline after loading")

        download = partial(cls.download, variant=variant, use_safetensors=use_safetensors, **kwargs)
        folder = find_folder(pretrained_model_name_or_path, download)
        pipeline = cls(**load_parts(folder, given, dtype, legacy_heads, variant, use_safetensors))
        pipeline.register_to_config(_name_or_path=os.fspath(pretrained_model_name_or_path))
        pipeline.came_from(folder, {name: kwargs[name] for name in ("token", "local_files_only") if name in kwargs})
        return pipeline if device is None else pipeline.to(device)

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

    def require(self, *names: str) -> None:
        """ValueError if the pipeline was made without one of the parts ``names``."""
        if missing := [name for name in names if getattr(self, name) is None]:
            way_out = f"set pipeline.{missing[0]}, or load the whole model"
            raise ValueError(f"the pipeline has no {' and no '.join(missing)}, which this needs; {way_out}")

    def encode_prompt(
        self,
        prompt: str | list[str] | None = None,
        negative_prompt: str | list[str] | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        guided: bool = True,
    ) -> tuple[Tensor, Tensor | None]:
        """Embeddings (P, D) of the prompts and, if guided, of what to steer away from; each distinct text once.

        Embeddings may be what CLAP's get_text_features returns. The UNet's dtype, or without one CLAP's.

        Raises:
            ValueError: if texts need a tokenizer or CLAP that the pipeline lacks, or the arguments do not fit.
        """
        prompt_embeds = as_embeds("prompt_embeds", prompt_embeds)
        negative_prompt_embeds = as_embeds("negative_prompt_embeds", negative_prompt_embeds)
        n_prompts = check_texts(prompt, negative_prompt, prompt_embeds, negative_prompt_embeds)
        prompts = [prompt] if isinstance(prompt, str) else prompt or []
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
        reader = self.text_encoder if self.unet is None else self.unet
        dtype = torch.float32 if reader is None else reader.dtype
        prompt_embeds = prompt_embeds.to(self._execution_device, dtype)
        negative_prompt_embeds = negative_prompt_embeds.to(self._execution_device, dtype) if guided else None
        return prompt_embeds, negative_prompt_embeds

    def embed_texts(self, texts: list[str]) -> Tensor:
        """CLAP's unit-norm embeddings (N, D) of ``texts``. Without a tokenizer only the empty text has one."""
        if self.text_encoder is None:
            raise ValueError(
                f"the pipeline has no text_encoder for {shown(texts)}; pass prompt_embeds and negative_prompt_embeds, "
                "or only prompt_embeds and guidance_scale=1"
            )
        embedded = embed_text(_on_its_device(self.text_encoder), self.tokenizer, texts)
        check_finite(embedded, "text_encoder", self.text_encoder)
        return embedded

    @torch.no_grad()
    def encode_audio(self, audio: np.ndarray | Tensor, sampling_rate: int) -> Tensor:
        """Scaled latents (B, C, T/f, F/f) of ``audio`` (L,), (B, L) or (B, A, L): what the UNet works on.

        Any ``sampling_rate``, in Hz, will do: soxr converts it in high quality. Channels are averaged for a mono model.
        Silence is added behind the audio until it fills whole latent frames. The mode of the VAE's posterior, in its
        dtype and on its device.

        Raises:
            ValueError: for audio of another shape, without samples or with NaN or infinity, or a rate that is none.
        """
        self.require("vae", "vocoder")
        mel = mel_config(self.vocoder)
        waveform = model_waveform(audio, sampling_rate, mel)  # (B, L) or (B, A, L)
        image = padded_image(waveform, mel, self.vae_scale_factor)  # (B, 1, T, F), or its planes (B, P, T, F)
        with taking_turns(self):
            posterior = encode_image(self.vae, image.to(self._execution_device))
            latents = self.vae.config.scaling_factor * posterior.mode()
            check_finite(latents, "vae", self.vae)
            return latents

    def denoise(
        self,
        latents: Tensor,
        condition: Condition,
        timesteps: Tensor,
        guidance: Guidance | None = None,
        *,
        eta: float = 0.0,
        generator: Noise = None,
        loop: bool = False,
        **options,
    ) -> Tensor:
        """`musicldm.sampling.denoise` with the pipeline's UNet and scheduler: any window of latents, any steps.

        ``eta`` and ``generator`` are for the noise that some schedulers add; with ``loop`` time is a circle;
        ``options`` are on_step, correct, known and evaluate.

        Raises:
            ValueError: if NaN or infinity come out, with the part that made them first, or for a window that is none.
        """
        unet = circular_unet(self.unet) if loop else self.unet
        watched = Watched(options.pop("evaluate", None) or self.evaluation(loop))
        options |= options_of_step(self.scheduler, latents, eta, generator)
        window = (condition.cross_attention_kwargs or {}).get("window")
        with unet_attention.serving(self.unet, window, latents.device.type):
            latents = sampling.denoise(
                unet, self.scheduler, latents, condition, timesteps, guidance, evaluate=watched, **options
            )
        others = [word for word, name in (("correct", "correct"), ("a callback", "on_step")) if options.get(name)]
        watched.check(latents, self.unet, type(self.scheduler).__name__, others)
        return latents

    def evaluation(self, loop: bool = False) -> Callable[..., Tensor]:
        """What evaluates the UNet in this run, with the arguments of `musicldm.sampling.condition.predict`."""
        plain = predict if loop or self.step_graphs is None else self.step_graphs.of(self.unet)
        return _predict_alone if getattr(self.unet, "peft_config", None) else plain

    def decode_latents(self, latents: Tensor, loop: bool = False) -> Tensor:
        """Log-mels (B, T, F), or planes (B, P, T, F), of ``latents (B, C, T/f, F/f)``; long ones in pieces.

        With ``loop`` time is a circle.
        """
        self.require("vae", "vocoder")
        latents = 1 / self.vae.config.scaling_factor * latents.to(self.vae.dtype)  # rounded as by diffusers
        is_long = latents.shape[2] * self.vae_scale_factor > tiles.LONGEST_WHOLE
        if is_long and self.vae.device.type != "meta":  # with sequential offload each layer's weights come when called
            around = {"loop": True} if loop else {}
            image = tiles.one_by_one(partial(tiles.decode, _on_its_device(self.vae), **around), latents)
        else:
            vae = circular_decoder(self.vae) if loop else self.vae
            image = tiles.one_by_one(lambda part: vae.decode(part, return_dict=False)[0], latents)
        check_finite(image, "vae", self.vae)
        mel = mel_config(self.vocoder)
        planes = unpack_rows(image, mel.bands_per_row)  # (B, P, T, F)
        return planes.squeeze(1) if mel.planes == 1 else planes

    def vocode(self, mel: Tensor, loop: bool = False) -> Tensor:
        """Waveforms (B, L), or (B, A, L), of what `decode_latents` gives; long ones in tiles. ``loop``: on a circle."""
        self.require("vocoder")
        planes = (mel if mel.ndim == 4 else mel.unsqueeze(1)).to(self.vocoder.conv_pre.weight.dtype)  # (B, P, T, F)
        make = partial(tiles.vocode, self.vocoder)
        if loop:
            make = partial(tiles.vocode, self.vocoder, loop=True)
        elif planes.shape[2] <= tiles.LONGEST_WHOLE:
            make = partial(vocode_planes, self.vocoder, config=mel_config(self.vocoder))
        waveform = tiles.one_by_one(make, planes)
        check_finite(waveform, "vocoder", self.vocoder)
        return waveform

    def rank(self, audios: Tensor, embedding: Tensor, return_best: int | None = None) -> tuple[Tensor, Tensor | None]:
        """Waveforms (P * n, L) or (P * n, A, L) sorted within each prompt, best first, and their scores (P, n).

        A score is the cosine similarity of a waveform's CLAP embedding and its prompt's, ``embedding (P, D)``. With
        ``return_best`` only so many of each prompt are kept. Without CLAP or its front end nothing is sorted.
        """
        if self.text_encoder is None or self.feature_extractor is None:
            warnings.warn("candidates are not ranked: that needs text_encoder and feature_extractor", stacklevel=5)
            return audios, None
        similarity = self.similarity(audios, embedding)
        scores, order = similarity.sort(dim=1, descending=True, stable=True)
        scores, order = scores[:, :return_best], order[:, :return_best]
        rows = torch.arange(len(similarity))[:, None]
        return audios.unflatten(0, similarity.shape)[rows, order].flatten(0, 1), scores

    def similarity(self, audios: Tensor, embedding: Tensor) -> Tensor:
        """Cosine similarity (P, n) in CLAP's space of waveforms (P * n, L) or (P * n, A, L) to ``embedding (P, D)``."""
        clap = _on_its_device(self.text_encoder)
        heard = embed_audio(clap, self.feature_extractor, audios, self.sampling_rate).cpu().float()
        check_finite(heard, "text_encoder", self.text_encoder)
        wanted = functional.normalize(embedding.cpu().float(), dim=-1)
        return torch.einsum("pnd,pd->pn", heard.unflatten(0, (len(wanted), -1)), wanted)


def _predict_alone(*arguments) -> Tensor:
    """`predict`, by one thread at a time."""
    with ADAPTED:
        return predict(*arguments)


def _on_its_device(network: torch.nn.Module) -> torch.nn.Module:
    """A network where it is to run: model offload moves it when its forward runs, but these are called otherwise."""
    if hasattr(network, "_hf_hook"):
        network._hf_hook.pre_forward(network)
    return network
