"""Text to music: the pipeline.

    text -> CLAP -> embedding (B, D) -> UNet and scheduler -> latents (B, C, T/f, F/f)
         -> VAE -> log-mel (B, T, F) -> HiFi-GAN -> waveform (B, L)

B counts prompts times candidates, the candidates of one prompt side by side. Every size and rate comes from the
parts' configurations. Takes the place of ``diffusers.MusicLDMPipeline``, with the same parts and arguments.

Chen et al. (2023), MusicLDM. https://arxiv.org/abs/2308.01546
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor

from musicldm import sampling
from musicldm.pipelines.base import MusicLDMBase, MusicLDMPipelineOutput
from musicldm.pipelines.calls import Callbacks, independent
from musicldm.pipelines.checks import as_embeds, check_options, check_texts, plan_lengths
from musicldm.pipelines.memory import check_memory
from musicldm.sampling.condition import Condition
from musicldm.sampling.denoising import ALL_NOISE, Correct, Guidance


class MusicLDMPipeline(MusicLDMBase):
    """Generates music from text; its parts are those of `MusicLDMBase`.

    Calls are independent: several threads may call one pipeline at a time, also from within callbacks, and get what
    they would get one after another. Changes of the pipeline itself (its scheduler, adapters, device) belong between
    calls.
    """

    @torch.no_grad()
    @independent
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
        guidance_interval: tuple[float, float] = ALL_NOISE,
        correct: Correct | None = None,
    ) -> MusicLDMPipelineOutput | tuple:
        """Music for each prompt.

        Args:
            prompt: one or several texts; or give ``prompt_embeds`` (P, D), or what CLAP's get_text_features returns.
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
            callback_on_step_end: called as ``callback_on_step_end(pipe, step, timestep, tensors)`` after each step; it
                may return a dictionary of tensors to go on with. ``pipe`` is this call's copy of the pipeline:
                ``pipe._interrupt = True`` ends this call. ``tensors`` holds those named in
                ``callback_on_step_end_tensor_inputs``: latents, and prompt_embeds (rows of the negative prompts first
                when guided; returning only the others ends the guidance). It may set ``pipe.guidance_scale``, which
                holds from the next step on. A diffusers ``PipelineCallback`` will do.
            seed: gives waveform i a generator of its own on the CPU, seeded ``seed + i``, for its first noise and
                whatever a sampler adds: it then does not depend on the rest of the batch or on the device.
            return_best: how many candidates of each prompt to return, all by default.
            guidance_interval: the least and the most noise that is guided, of 0 (none) to 1 (nothing else). Guidance
                at the highest levels makes music less varied, at the lowest it does nothing but double the work.
            correct: a function of ``(prediction, model_input, timestep)``, tensors (B, C, T/f, F/f), that returns the
                prediction to go on with, guidance included; `musicldm.novelty.CopyGuard` steers by it.

        Raises:
            ValueError: naming the argument that cannot be used, and what can; the part that is missing; or the part
                that made NaN or infinity.
        """
        # 1. Check inputs
        self.require("unet", "scheduler", "vae", "vocoder")
        if hasattr(callback_on_step_end, "tensor_inputs"):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs
        callbacks = Callbacks(callback_on_step_end, callback_on_step_end_tensor_inputs, callback, callback_steps)
        callbacks.check(self._callback_tensor_inputs)
        prompt_embeds = as_embeds("prompt_embeds", prompt_embeds)
        negative_prompt_embeds = as_embeds("negative_prompt_embeds", negative_prompt_embeds)
        texts = prompt, negative_prompt, prompt_embeds, negative_prompt_embeds
        n_prompts = check_texts(*texts, self.unet.config.projection_class_embeddings_input_dim)
        check_options(
            guidance_scale=guidance_scale,
            guidance_interval=guidance_interval,
            eta=eta,
            num_waveforms_per_prompt=num_waveforms_per_prompt,
            output_type=output_type,
            return_best=return_best,
            return_dict=return_dict,
            latents=latents,
            cross_attention_kwargs=cross_attention_kwargs,
            correct=correct,
            can_rank=self.text_encoder is not None and self.feature_extractor is not None,
        )

        # 2. Plan sizes, randomness and time steps
        device = self._execution_device
        n_items = n_prompts * num_waveforms_per_prompt  # B
        n_samples, latent_shape = plan_lengths(self.unet, self.vae, self.vocoder, n_items, audio_length_in_s, latents)
        check_memory(self.unet, self.vae, self.vocoder, latent_shape, device)
        generator = sampling.make_generators(seed, generator, n_items)
        timesteps = sampling.prepare_timesteps(self.scheduler, num_inference_steps)

        # 3. Encode the prompts
        guided = guidance_scale > 1.0
        wanted, unconditional = self.encode_prompt(*texts, guided)  # (P, D) each
        embedding = torch.cat([unconditional, wanted]) if guided else wanted
        embedding = embedding.repeat_interleave(num_waveforms_per_prompt, dim=0)  # (B, D) or (2B, D)
        if cross_attention_kwargs and "window" in cross_attention_kwargs:
            cross_attention_kwargs = {"grid": latent_shape[2:], **cross_attention_kwargs}
        condition = Condition(embedding, cross_attention_kwargs)

        # 4. Draw the first noise: float32 at least, so that it is the same in every dtype and rounding does not add up
        dtype = torch.promote_types(self.unet.dtype, torch.float32)
        latents = sampling.first_noise(self.scheduler, latent_shape, dtype, device, generator, latents)

        # 5. Denoise
        self._guidance_scale, guidance = guidance_scale, Guidance(guidance_scale, guidance_interval)
        n_warm_up = len(timesteps) - num_inference_steps * self.scheduler.order
        with self.progress_bar(total=num_inference_steps) as progress_bar:
            latents = self.denoise(
                latents,
                condition,
                timesteps,
                guidance,
                eta=eta,
                generator=generator,
                on_step=callbacks.reporter(self, guidance, progress_bar, n_warm_up),
                correct=correct,
            )

        # 6. Decode, and rank the candidates
        scores = None
        if output_type == "latent":
            audios = latents.to(self.vae.dtype)
        else:
            mel = self.decode_latents(latents)  # (B, T, F), or planes (B, P, T, F)
            audios = self.vocode(mel)[..., :n_samples].cpu().float()  # (B, L) or (B, A, L)
            if num_waveforms_per_prompt > 1:
                audios, scores = self.rank(audios, wanted, return_best)
        self.maybe_free_model_hooks()

        # 7. Return
        if output_type == "np":
            audios, scores = audios.numpy(), None if scores is None else scores.numpy()
        if not return_dict:
            return (audios,)
        return MusicLDMPipelineOutput(audios=audios, sampling_rate=self.sampling_rate, scores=scores)
