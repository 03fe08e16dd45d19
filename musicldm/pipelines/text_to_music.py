"""Text to music: the pipeline.

    text -> CLAP -> embedding (B, D) -> UNet and scheduler -> latents (B, C, T/f, F/f)
         -> VAE -> log-mel (B, T, F) -> HiFi-GAN -> waveform (B, L)

B counts prompts times candidates, the candidates of one prompt side by side. Every size and rate comes from the
parts' configurations. Takes the place of ``diffusers.MusicLDMPipeline``, with the same parts and arguments.

Chen et al. (2023), MusicLDM. https://arxiv.org/abs/2308.01546
"""

import os
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionMixin, UNet2DConditionModel
from diffusers.schedulers import KarrasDiffusionSchedulers
from torch import Generator, Tensor
from torch.nn import functional
from transformers import ClapFeatureExtractor, ClapModel, PreTrainedTokenizerBase, SpeechT5HifiGan

from musicldm.kernels import dot_product
from musicldm.kernels import tiled_decoding as tiles
from musicldm.models.clap import embed_audio, embed_text
from musicldm.models.latents import encode_log_mel, latent_factor, mono_waveforms, padded_log_mel
from musicldm.models.loading import OPTIONAL_PARTS, PARTS, find_folder, load_parts, original_parts
from musicldm.models.lora import LoraMixin
from musicldm.pipelines.checks import (
    check_callback_inputs,
    check_memory,
    check_options,
    check_texts,
    plan_lengths,
)
from musicldm.pipelines.hub import PublishMixin
from musicldm.pipelines.optimize import optimize
from musicldm.pipelines.output import MusicLDMPipelineOutput
from musicldm.sampling import denoising as sampling
from vocoder import install_matching, mel_config

HUB_OPTIONS = {"cache_dir", "force_download", "local_files_only", "proxies", "revision", "token"}


class MusicLDMPipeline(PublishMixin, StableDiffusionMixin, LoraMixin):
    """Generates music from text.

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
        if unet.config.in_channels != vae.config.latent_channels:
            channels = f"{unet.config.in_channels} channels, the VAE gives {vae.config.latent_channels}"
            raise ValueError(f"the UNet takes latents of {channels}; take both from one model")
        if (bands := vocoder.config.model_in_dim) % self.vae_scale_factor:
            raise ValueError(f"the vocoder's {bands} mel bands do not fit the VAE's factor {self.vae_scale_factor}")

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
    ) -> "MusicLDMPipeline":
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
    ) -> "MusicLDMPipeline":
        """A pipeline from the authors' checkpoint; the arguments are those of `musicldm.models.original.load_original`.

        ``tokenizer`` is CLAP's: an object, a folder, or a name on the hub; by default RoBERTa's from the hub or its
        cache if the vocabulary is of that size. Where there is none only ``prompt_embeds`` work.

        Raises:
            ValueError: for a checkpoint that lacks a part that generating needs, or a tokenizer of another vocabulary.
            OSError: for files or a tokenizer that cannot be read.
        """
        return cls(**original_parts(path_or_state_dict, config, vocoder_config, clap_config, use_ema, tokenizer))

    def enable_sequential_cpu_offload(self, *args, **kwargs) -> None:
        """As in diffusers, except that CLAP stays whole on the device: it is called through methods that hooks miss."""
        try:
            self._exclude_from_cpu_offload = ["text_encoder"]
            super().enable_sequential_cpu_offload(*args, **kwargs)
        finally:
            del self._exclude_from_cpu_offload

    def optimize(self, bfloat16: bool | None = None) -> "MusicLDMPipeline":
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

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        audio_length_in_s: float | None = None,
        num_inference_steps: int = 200,
        guidance_scale: float = 2.0,
        negative_prompt: str | list[str] | None = None,
        num_waveforms_per_prompt: int = 1,
        eta: float = 0.0,
        generator: Generator | list[Generator] | None = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        return_dict: bool = True,
        callback: Callable[[int, int, Tensor], None] | None = None,
        callback_steps: int = 1,
        cross_attention_kwargs: dict[str, Any] | None = None,
        output_type: str = "np",
        callback_on_step_end: Callable | None = None,
        callback_on_step_end_tensor_inputs: list[str] | tuple[str, ...] = ("latents",),
        seed: int | None = None,
        return_best: int | None = None,
        novelty: str | None = None,
        max_similarity: float | None = None,
        guidance_interval: tuple[float, float] = sampling.ALL_NOISE,
    ) -> MusicLDMPipelineOutput | tuple:
        """Music for each prompt.

        Args:
            prompt: one or several texts; or give ``prompt_embeds`` (P, D) in their place.
            audio_length_in_s: seconds, from one mel frame upwards, exact to the sample; by default what the UNet was
                trained on, or as much as ``latents`` give.
            num_inference_steps: of the scheduler.
            guidance_scale: how strongly the prompt is followed; up to 1 means no guidance, at half the work.
            negative_prompt: what to steer away from, one text for all prompts or one for each; by default the empty
                text. Or give ``negative_prompt_embeds`` (P, D).
            num_waveforms_per_prompt: candidates n for each prompt; above 1 they are returned best first.
            eta: noise that DDIM adds in each step, from 0 to 1; other schedulers ignore it.
            generator: one for everything, or one for each of the P * n waveforms.
            latents: first noise (P * n, C, T/f, F/f), before the scheduler scales it.
            return_dict: False gives the tuple ``(audios,)``.
            callback: called as ``callback(step, timestep, latents)`` every ``callback_steps`` steps.
            cross_attention_kwargs: for the UNet's attention processors: ``{"window": w}`` limits attention to w latent
                frames to either side, at a cost linear in the length.
            output_type: "np" or "pt" for waveforms, "latent" for latents, which are not ranked.
            callback_on_step_end: called as ``callback_on_step_end(pipeline, step, timestep, tensors)`` after each
                step; it may return a dictionary of tensors to go on with. ``tensors`` holds those named in
                ``callback_on_step_end_tensor_inputs``: latents, and prompt_embeds (rows of the negative prompts first
                when guided; returning only the others ends the guidance). A diffusers ``PipelineCallback`` will do.
            seed: gives waveform i a generator of its own on the CPU, seeded ``seed + i``, for its first noise and
                whatever a sampler adds: it then does not depend on the rest of the batch or on the device.
            return_best: how many candidates of each prompt to return, all by default.
            novelty: "report" compares each waveform with the training set (`load_novelty_index`); "avoid" also
                draws again what comes too near, steered away from what was rejected, up to four times; "least_similar"
                does too, but never raises CopyError.
            max_similarity: cosine similarity above which a clip of the training set is too near; by default what one
                clip in a hundred of other music exceeds. A passage that agrees too well is too near by itself.
            guidance_interval: the least and the most noise that is guided, of 0 (none) to 1 (nothing else). Guidance
                at the highest levels makes music less varied, at the lowest it does nothing but double the work.

        Raises:
            ValueError: naming the argument that cannot be used, and what can.
            OSError: if the index of a model from the hub cannot be fetched.
            CopyError: (a ValueError) if all draws for some prompt came too near to the training set.
        """
        if novelty is not None or max_similarity is not None:
            self.find_novelty_index()
            from musicldm.novelty.guard import guarded

            arguments = {name: value for name, value in locals().items() if name not in ("self", "guarded")}
            return guarded(self, arguments.pop("novelty"), arguments.pop("max_similarity"), arguments)
        if hasattr(callback_on_step_end, "tensor_inputs"):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs
        texts = prompt, negative_prompt, prompt_embeds, negative_prompt_embeds
        n_prompts = check_texts(*texts, self.unet.config.projection_class_embeddings_input_dim)
        check_options(
            guidance_scale=guidance_scale,
            guidance_interval=guidance_interval,
            eta=eta,
            num_waveforms_per_prompt=num_waveforms_per_prompt,
            callback_steps=callback_steps,
            output_type=output_type,
            return_best=return_best,
            can_rank=self.text_encoder is not None and self.feature_extractor is not None,
        )
        check_callback_inputs(callback_on_step_end_tensor_inputs, self._callback_tensor_inputs)
        device = self._execution_device
        n_items = n_prompts * num_waveforms_per_prompt  # B
        n_samples, latent_shape = plan_lengths(self.unet, self.vae, self.vocoder, n_items, audio_length_in_s, latents)
        check_memory(self.unet, self.vae, self.vocoder, latent_shape, device)
        if cross_attention_kwargs and "window" in cross_attention_kwargs:
            cross_attention_kwargs = {"grid": latent_shape[2:], **cross_attention_kwargs}
        generator = sampling.make_generators(seed, generator, n_items)
        timesteps = sampling.prepare_timesteps(self.scheduler, num_inference_steps)
        guided = guidance_scale > 1.0
        self._interrupt = False

        condition, unconditional = self.encode_prompt(*texts, guided)  # (P, D) each
        embedding = torch.cat([unconditional, condition]) if guided else condition
        embedding = embedding.repeat_interleave(num_waveforms_per_prompt, dim=0)  # (B, D) or (2B, D)

        # float32 at least: the noise is then the same in every dtype, and many steps do not add up rounding
        dtype = torch.promote_types(self.unet.dtype, torch.float32)
        latents = sampling.first_noise(self.scheduler, latent_shape, dtype, device, generator, latents)
        order = self.scheduler.order
        n_warmup = len(timesteps) - num_inference_steps * order

        with self.progress_bar(total=num_inference_steps) as progress_bar:

            def on_step(i: int, t: Tensor, latents: Tensor, embedding: Tensor) -> tuple[Tensor, Tensor] | None:
                if callback_on_step_end is not None:
                    tensors = {"latents": latents, "prompt_embeds": embedding}
                    shown = {name: tensors[name] for name in callback_on_step_end_tensor_inputs}
                    tensors |= callback_on_step_end(self, i, t, shown) or {}
                    latents, embedding = tensors["latents"], tensors["prompt_embeds"]
                # a scheduler of order 2 visits most noise levels twice, one visit alone is no step
                if i + 1 == len(timesteps) or (i + 1 > n_warmup and (i + 1) % order == 0):
                    progress_bar.update()
                    step = i // order
                    if callback is not None and step % callback_steps == 0:
                        callback(step, t, latents)
                return None if self._interrupt else (latents, embedding)

            latents = self.denoise(
                latents,
                embedding,
                timesteps,
                guidance_scale,
                guidance_interval=guidance_interval,
                eta=eta,
                generator=generator,
                on_step=on_step,
                cross_attention_kwargs=cross_attention_kwargs,
            )

        scores = None
        if output_type == "latent":
            audios = latents.to(self.vae.dtype)
        else:
            mel = self.decode_latents(latents)  # (B, T, F)
            audios = self.vocode(mel)[..., :n_samples].cpu().float()  # (B, L)
            if num_waveforms_per_prompt > 1:
                audios, scores = self.rank(audios, condition, return_best)
        self.maybe_free_model_hooks()

        if output_type == "np":
            audios, scores = audios.numpy(), None if scores is None else scores.numpy()
        if not return_dict:
            return (audios,)
        return MusicLDMPipelineOutput(audios=audios, sampling_rate=self.sampling_rate, scores=scores)

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

        Channels are averaged for a mono model; any ``sampling_rate``, in Hz, will do. Silence is added behind the
        audio until it fills whole latent frames. The mode of the VAE's posterior, in its dtype and on its device.

        Raises:
            ValueError: for audio of another shape, without samples or with NaN or infinity, or a rate that is none.
        """
        mel = mel_config(self.vocoder)
        waveform = mono_waveforms(audio, sampling_rate, mel.sample_rate)  # (B, L)
        log_mel = padded_log_mel(waveform, mel, self.vae_scale_factor)  # (B, T, F)
        posterior = encode_log_mel(self.vae, log_mel.to(self._execution_device))
        return self.vae.config.scaling_factor * posterior.mode()

    def denoise(self, latents: Tensor, embedding: Tensor, timesteps: Tensor, guidance_scale: float = 1.0, **options):
        """`musicldm.sampling.denoise` with the pipeline's UNet and scheduler: any window of latents, any steps."""
        if self.step_graphs is not None:
            options["evaluate"] = self.step_graphs.of(self.unet)
        return sampling.denoise(self.unet, self.scheduler, latents, embedding, timesteps, guidance_scale, **options)

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Log-mel spectrograms (B, T, F) of ``latents (B, C, T/f, F/f)``; long ones in pieces."""
        latents = 1 / self.vae.config.scaling_factor * latents.to(self.vae.dtype)  # rounded as by diffusers
        is_long = latents.shape[2] * self.vae_scale_factor > tiles.LONGEST_WHOLE
        if is_long and self.vae.device.type != "meta":  # with sequential offload each layer's weights come when called
            return tiles.one_by_one(partial(tiles.decode, _on_its_device(self.vae)), latents).squeeze(1)
        return tiles.one_by_one(lambda part: self.vae.decode(part, return_dict=False)[0], latents).squeeze(1)

    def vocode(self, mel: Tensor) -> Tensor:
        """Waveforms (B, L) of ``mel (B, T, F)``; long ones in tiles."""
        if mel.shape[1] > tiles.LONGEST_WHOLE:
            return tiles.one_by_one(partial(tiles.vocode, self.vocoder), mel)
        return tiles.one_by_one(self.vocoder, mel).reshape(len(mel), -1)

    def rank(self, audios: Tensor, condition: Tensor, return_best: int | None = None) -> tuple[Tensor, Tensor | None]:
        """Waveforms (P * n, L) sorted within each prompt, best first, and their scores (P, n).

        A score is the cosine similarity of a waveform's CLAP embedding and its prompt's, ``condition (P, D)``. With
        ``return_best`` only so many of each prompt are kept. Without CLAP or its front end nothing is sorted.
        """
        if self.text_encoder is None or self.feature_extractor is None:
            warnings.warn("candidates are not ranked: that needs text_encoder and feature_extractor", stacklevel=3)
            return audios, None
        clap = _on_its_device(self.text_encoder)
        heard = embed_audio(clap, self.feature_extractor, audios, self.sampling_rate).cpu().float()
        wanted = functional.normalize(condition.cpu().float(), dim=-1)
        similarity = torch.einsum("pnd,pd->pn", heard.unflatten(0, (len(wanted), -1)), wanted)
        scores, order = similarity.sort(dim=1, descending=True, stable=True)
        scores, order = scores[:, :return_best], order[:, :return_best]
        rows = torch.arange(len(wanted))[:, None]
        return audios.unflatten(0, similarity.shape)[rows, order].flatten(0, 1), scores


def _on_its_device(network: torch.nn.Module) -> torch.nn.Module:
    """A network where it is to run: model offload moves it when its forward runs, but these are called otherwise."""
    if hasattr(network, "_hf_hook"):
        network._hf_hook.pre_forward(network)
    return network
