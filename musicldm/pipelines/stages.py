"""The stages of a call, from its arguments to its output, which all pipelines share.

    check -> plan -> encode prompts -> (noise, in each pipeline) -> denoise -> decode and rank -> return

What the parts do by themselves is in `musicldm.pipelines.base`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from musicldm.editing.stretching import stretch_loop
from musicldm.models.context import context_layout
from musicldm.pipelines.base import MusicLDMBase
from musicldm.pipelines.calls import Callbacks
from musicldm.pipelines.checks import Lengths, OutputOptions, Prompts, SamplingOptions, plan_lengths
from musicldm.pipelines.contexts import (
    ContextOptions,
    Heard,
    Place,
    common_seconds,
    encode_contexts,
    read_contexts,
)
from musicldm.pipelines.memory import check_memory
from musicldm.pipelines.outputs import MusicLDMPipelineOutput
from musicldm.sampling.condition import Condition
from musicldm.sampling.denoising import Guidance, Noise, draw_noise
from musicldm.sampling.known import Known, add_noise, noise_level
from musicldm.sampling.windows import Layout, Windows, lay_out, windows_at_once
from vocoder import mel_config


class Encoded(NamedTuple):
    """The prompts of a call, for P prompts of n candidates, B = P * n."""

    embedding: Tensor  # (B, D), or for guidance (2B, D) with the unconditional rows first
    wanted: Tensor  # (P, D): what candidates are ranked by
    n_items: int  # B

    def condition(
        self,
        options: SamplingOptions,
        grid: tuple[int, ...],
        items: Sequence[int] | None = None,
        context: Tensor | None = None,
    ) -> Condition:
        """What latents of ``grid`` (T/f, F/f) are conditioned on: all items, or some; and their ``context``, if any."""
        embedding, attention = self.embedding, options.cross_attention_kwargs
        if items is not None:
            embedding = torch.cat([part[list(items)] for part in embedding.split(self.n_items)])
        if attention and "window" in attention:
            attention = {"grid": grid, **attention}
        return Condition(embedding, attention, context)


class MusicLDMStages(MusicLDMBase):
    """A pipeline with the stages that its calls go through."""

    def check_call(
        self, prompts: Prompts, sampling: SamplingOptions, output: OutputOptions, callbacks: Callbacks
    ) -> int:
        """The number of waveforms, B; ValueError naming the argument that cannot be used, or a part that is missing."""
        self.require("unet", "scheduler", "vae", "vocoder")
        callbacks.check(self._callback_tensor_inputs)
        n_prompts = prompts.check(self.unet.config.projection_class_embeddings_input_dim)
        sampling.check()
        output.check(can_rank=self.text_encoder is not None and self.feature_extractor is not None)
        return n_prompts * output.num_waveforms_per_prompt

    def encode_for_call(self, prompts: Prompts, sampling: SamplingOptions, n: int) -> Encoded:
        """The embeddings of ``n`` candidates of each prompt."""
        wanted, unconditional = self.encode_prompt(*prompts.arguments, sampling.is_guided)  # (P, D) each
        embedding = torch.cat([unconditional, wanted]) if sampling.is_guided else wanted
        return Encoded(embedding.repeat_interleave(n, dim=0), wanted, len(wanted) * n)

    def first_latents(
        self, shape: tuple[int, ...], generator: Noise = None, noise: Tensor | None = None, source: Known | None = None
    ) -> Tensor:
        """What is denoised: noise of ``shape (B, C, T/f, F/f)``, and where it is kept ``source``, as noisy.

        In float32 at least, so that noise is the same in every dtype and rounding does not add up.
        """
        dtype, device = torch.promote_types(self.unet.dtype, torch.float32), self._execution_device
        noise = draw_noise(shape, dtype, device, generator, noise)
        state = noise * getattr(self.scheduler, "init_noise_sigma", 1.0)  # flows start from noise as it is
        if source is None:
            return state
        level = noise_level(self.scheduler, self.scheduler.timesteps[0], 0)
        return source._replace(x0=add_noise(source.x0.to(noise), noise, level)).keep(state)

    @property
    def trained_frames(self) -> int | None:
        """Latent frames of what the UNet was trained on; None if it does not say."""
        size = self.unet.config.sample_size
        return size if isinstance(size, int) or size is None else size[0]

    def read_contexts(self, given: ContextOptions, n_prompts: int) -> list[Heard | None] | None:
        """What is heard beside each of P prompts, None if nothing is ``given``; errors as of `read_contexts`."""
        if given.context is None:
            return None
        return read_contexts(given, self.unet, mel_config(self.vocoder), n_prompts)

    def plan_lengths(
        self,
        n_items: int,
        audio_length_in_s: float | None,
        latents: Tensor | None,
        loop: bool,
        heard: list[Heard | None] | None = None,
    ) -> Lengths:
        """`musicldm.pipelines.checks.plan_lengths`; without a length or ``latents`` as long as what is ``heard``."""
        if heard is not None and audio_length_in_s is None and latents is None:
            audio_length_in_s = common_seconds(heard, mel_config(self.vocoder), self.vae_scale_factor)
        return plan_lengths(self.unet, self.vae, self.vocoder, n_items, audio_length_in_s, latents, loop)

    def encode_contexts(
        self, heard: list[Heard | None] | None, lengths: Lengths, loop: bool, n: int = 1
    ) -> Tensor | None:
        """Channels (P * n, C + 1 + K, T/f, F/f) of what is heard beside P prompts of n candidates; None for nothing."""
        layout, mel = context_layout(self.unet), mel_config(self.vocoder)
        if heard is None or layout is None:
            return None
        size = self.vae_scale_factor * mel.hop_length
        at_once = self.trained_frames or lengths.latent_shape[2]
        place = Place(lengths.latent_shape, lengths.n_samples, loop, at_once, size, mel.sample_rate)
        like = torch.empty(0, dtype=self.unet.dtype, device=self._execution_device)
        return encode_contexts(heard, layout, place, self.encode_audio, like).repeat_interleave(n, dim=0)

    def plan_windows(self, shape: tuple[int, ...], loop: bool, evaluations: int = 2) -> Layout:
        """Windows as long as what the UNet was trained on, for latents of ``shape (B, C, T/f, F/f)``.

        Raises:
            ValueError: if the device has not enough memory for the music, or the UNet does not say its length.
        """
        parts, device = (self.unet, self.vae, self.vocoder), self._execution_device
        length = plan_lengths(*parts, 1).latent_shape[2]
        check_memory(*parts, shape, device, max(windows_at_once(device.type), shape[0]) * length, evaluations)
        return lay_out(shape[2], length, loop)

    def plan_evaluation(
        self, shape: tuple[int, ...], options: SamplingOptions, has_context: bool = False
    ) -> Windows | None:
        """The windows that latents of ``shape (B, C, T/f, F/f)`` are denoised in, if the call asks for them.

        With a context also if they are longer than what the UNet was trained on.

        Raises:
            ValueError: if the device has not enough memory for the music.
        """
        if options.windows or (has_context and shape[2] > (self.trained_frames or shape[2])):
            return self.windows(self.plan_windows(shape, options.loop, options.evaluations), options.loop)
        parts = self.unet, self.vae, self.vocoder
        check_memory(*parts, shape, self._execution_device, evaluations=options.evaluations)
        return None

    def windows(
        self, layout: Layout, loop: bool, embeddings: Tensor | None = None, negatives: Tensor | None = None
    ) -> Windows:
        """What evaluates the UNet on windows; with conditions (N, D) of each window, or those of the items."""
        return Windows(layout, embeddings, negatives, self.evaluation(loop and layout.is_whole))

    def run_steps(
        self,
        latents: Tensor,
        condition: Condition,
        sampling: SamplingOptions,
        callbacks: Callbacks,
        *,
        n_steps: int,
        generator: Noise = None,
        known: Known | None = None,
        windows: Windows | None = None,
    ) -> Tensor:
        """``latents`` denoised over the time steps that the scheduler was prepared for, ``n_steps`` of them.

        At once, or in ``windows``. Callbacks and a progress bar are told.
        """
        self._guidance_scale = sampling.guidance_scale
        scales = max(sampling.guidance_scale, 1.0), sampling.context_guidance_scale
        guidance = Guidance(scales[0], sampling.guidance_interval, scales[1])
        timesteps = self.scheduler.timesteps
        n_warm_up = len(timesteps) - n_steps * self.scheduler.order
        with self.progress_bar(total=n_steps) as progress_bar:
            return self.denoise(
                latents,
                condition,
                timesteps,
                guidance,
                eta=sampling.eta,
                generator=generator,
                on_step=callbacks.reporter(self, guidance, progress_bar, n_warm_up),
                correct=sampling.correct,
                known=known,
                loop=sampling.loop and (windows is None or windows.layout.is_whole),  # others go round by themselves
                evaluate=windows,
            )

    def decode(self, latents: Tensor, loop: bool = False) -> Tensor:
        """Waveforms (B, L) or (B, A, L) of ``latents (B, C, T/f, F/f)``: float32, on the CPU, whole latent frames."""
        mel = self.decode_latents(latents, loop)  # (B, T, F), or planes (B, P, T, F)
        n_samples = latents.shape[2] * self.vae_scale_factor * mel_config(self.vocoder).hop_length
        return self.vocode(mel, loop)[..., :n_samples].cpu().float()

    def render(
        self, latents: Tensor, n_samples: int, output: OutputOptions, wanted: Tensor, loop: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """What is asked for of ``latents``: waveforms of ``n_samples``, ranked if there are several, and their scores.

        Or the latents themselves.
        """
        if output.output_type == "latent":
            return latents.to(self.vae.dtype), None
        audios = self.decode(latents, loop)  # (B, L) or (B, A, L)
        if loop and audios.shape[-1] != n_samples:
            loops = [stretch_loop(audio.numpy(), self.sampling_rate, n_samples) for audio in audios]
            audios = torch.from_numpy(np.stack(loops))
        audios = audios[..., :n_samples]
        if output.num_waveforms_per_prompt == 1:
            return audios, None
        return self.rank(audios, wanted, output.return_best)

    def returned(self, audios: Tensor, scores: Tensor | None, output: OutputOptions) -> MusicLDMPipelineOutput | tuple:
        """The call's output, in the form that is asked for."""
        made, ranked = audios, scores
        if output.output_type == "np":
            made, ranked = audios.numpy(), None if scores is None else scores.numpy()
        if not output.return_dict:
            return (made,)
        return MusicLDMPipelineOutput(audios=made, sampling_rate=self.sampling_rate, scores=ranked)
