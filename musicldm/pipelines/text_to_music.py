"""Text to music: the pipeline.

    text -> CLAP -> embedding (B, D) -> UNet and scheduler -> latents (B, C, T/f, F/f)
         -> VAE -> log-mel (B, T, F) -> HiFi-GAN -> waveform (B, L)

B counts prompts times candidates, the candidates of one prompt side by side. Every size and rate comes from the
parts' configurations. Takes the place of ``diffusers.MusicLDMPipeline``, with the same parts and arguments.

Chen et al. (2023), MusicLDM. https://arxiv.org/abs/2308.01546
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Generator, Tensor

from musicldm import sampling
from musicldm.pipelines.calls import Callbacks, independent
from musicldm.pipelines.checks import OutputOptions, Prompts, SamplingOptions, check_latents
from musicldm.pipelines.contexts import ContextOptions
from musicldm.pipelines.outputs import MusicLDMPipelineOutput
from musicldm.pipelines.stages import MusicLDMStages
from musicldm.sampling.denoising import ALL_NOISE, Correct


class MusicLDMPipeline(MusicLDMStages):
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
        loop: bool = False,
        windows: bool = False,
        context: Any = None,
        context_kind: str | Sequence[str] | None = None,
        context_guidance_scale: float = 1.0,
        context_sampling_rate: int | None = None,
    ) -> MusicLDMPipelineOutput | tuple:
        """Music for each prompt.

        Args:
            prompt: one or several texts; or give ``prompt_embeds`` (P, D), or what CLAP's get_text_features returns.
            audio_length_in_s: seconds, from one mel frame upwards, exact to the sample; by default as much as
                ``latents`` give, else as long as ``context`` is, else what the UNet was trained on.
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
            loop: the end leads into the start: the music is made on a circle, of the nearest whole number of latent
                frames, and stretched round it to the exact length.
            windows: denoise what is longer than the UNet was trained on in overlapping windows of that length, whose
                predictions are blended: each is as the UNet knows music, memory is bounded and the cost linear. Twice
                the work at lengths where attention to everything is cheap.
            context: what the music follows beside the text, of a model that was trained with contexts: a
                `musicldm.scores.Sketch` (or a MIDI file), or audio: an array or tensor (L,) or (A, L), a file, or
                latents (1, C, T/f, F/f) as `encode_audio` makes them. One for all prompts, or a list of one for each
                (None for nothing). What sounds together is a dictionary by kind, ``{"along": audio, "click": sketch}``.
                It is given from the first sample on: of a longer one the beginning counts, after the end of a shorter
                one nothing is given. Music longer than what the UNet was trained on is then made in windows.
            context_kind: what the context is, one or several of the model's kinds: notes, melody, chords, bass, drums,
                click (sketches say it themselves), along.
            context_guidance_scale: how strongly the context is followed, from 0; 1 as the network predicts, at no
                further cost; as much as ``guidance_scale`` costs none either, other values half as much again.
            context_sampling_rate: of arrays, in Hz; files know theirs.

        Raises:
            OSError: for a file that cannot be read.
            ValueError: naming the argument that cannot be used, and what can; the part that is missing; or the part
                that made NaN or infinity.
        """
        # 1. Check inputs
        prompts = Prompts.of(prompt, negative_prompt, prompt_embeds, negative_prompt_embeds)
        given = ContextOptions(context, context_kind, context_guidance_scale, context_sampling_rate)
        given.check()
        options = SamplingOptions(
            num_inference_steps,
            guidance_scale,
            guidance_interval,
            eta,
            cross_attention_kwargs,
            correct,
            loop,
            windows,
            context_guidance_scale,
        )
        output = OutputOptions(num_waveforms_per_prompt, return_best, output_type, return_dict)
        callbacks = Callbacks.of(callback_on_step_end, callback_on_step_end_tensor_inputs, callback, callback_steps)
        n_items = self.check_call(prompts, options, output, callbacks)  # B
        check_latents(latents)
        heard = self.read_contexts(given, n_items // num_waveforms_per_prompt)  # P

        # 2. Plan sizes, randomness and time steps
        lengths = self.plan_lengths(n_items, audio_length_in_s, latents, loop, heard)
        n_samples, shape = lengths  # samples, and (B, C, T/f, F/f)
        in_windows = self.plan_evaluation(shape, options, heard is not None)
        generator = sampling.make_generators(seed, generator, n_items)
        sampling.prepare_timesteps(self.scheduler, num_inference_steps)

        # 3. Encode the prompts, and the context
        encoded = self.encode_for_call(prompts, options, num_waveforms_per_prompt)
        channels = self.encode_contexts(heard, lengths, loop, num_waveforms_per_prompt)
        condition = encoded.condition(options, shape[2:], context=channels)

        # 4. Draw the first noise
        latents = self.first_latents(shape, generator, latents)

        # 5. Denoise
        latents = self.run_steps(
            latents,
            condition,
            options,
            callbacks,
            n_steps=num_inference_steps,
            generator=generator,
            windows=in_windows,
        )

        # 6. Decode, and rank the candidates
        audios, scores = self.render(latents, n_samples, output, encoded.wanted, loop)
        self.maybe_free_model_hooks()

        # 7. Return
        return self.returned(audios, scores, output)
