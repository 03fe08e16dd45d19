"""Audio to audio: variations of a recording, as near to it or as far from it as is asked for.

    recording -> log-mel -> VAE -> latents, noised up to a level -> UNet and scheduler, from there on -> latents
              -> VAE -> log-mel -> HiFi-GAN -> waveform

Meng et al. (2022), SDEdit. https://arxiv.org/abs/2108.01073
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from musicldm import sampling
from musicldm.pipelines.calls import Callbacks, independent
from musicldm.pipelines.checks import OutputOptions, Prompts, SamplingOptions, check_latents
from musicldm.pipelines.contexts import ContextOptions
from musicldm.pipelines.outputs import MusicLDMPipelineOutput
from musicldm.pipelines.recordings import as_recordings, common_length, fitted, model_waveforms
from musicldm.pipelines.stages import MusicLDMStages
from musicldm.sampling.denoising import ALL_NOISE, Correct
from musicldm.sampling.known import Known
from vocoder import mel_config


class MusicLDMAudioToAudioPipeline(MusicLDMStages):
    """Makes variations of recordings; its parts are those of `MusicLDMBase`, and its calls are independent."""

    @torch.no_grad()
    @independent
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        audio: np.ndarray | Tensor | str | list | None = None,
        audio_sampling_rate: int | None = None,
        init_noise_level: float = 0.6,
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
        """Variations of ``audio`` in the direction of each prompt.

        Args:
            audio: a recording (L,) or (A, L) of A channels, NumPy or torch, floating point from -1 to 1 or int16 or
                int32 at full scale, or a file; one for all prompts, or a list or array (P, A, L) of one for each. Any
                rate and channels will do.
            audio_sampling_rate: of arrays, in Hz; files know theirs.
            init_noise_level: where denoising begins, as a share of the training's time steps, above 0. 1 forgets the
                recording: the music is that of `MusicLDMPipeline` for the same arguments. Of ``num_inference_steps``
                those at this level and below are taken, one at least.
            audio_length_in_s: seconds to return, the recording being cut or followed by silence; by default its own.
            latents: noise (P * n, C, T/f, F/f) that is added to the recording's latents.

        The other arguments are as of `MusicLDMPipeline.__call__`; a ``context`` is followed beside the recording.

        Raises:
            OSError: for a file that cannot be read.
            ValueError: naming the argument that cannot be used, and what can; also for recordings that are silent,
                shorter than a frame, hold NaN, or are no audio.
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
        recordings = as_recordings(audio, n_items // num_waveforms_per_prompt)  # P
        heard = self.read_contexts(given, n_items // num_waveforms_per_prompt)  # P
        mel = mel_config(self.vocoder)
        waveforms = [model_waveforms(each, audio_sampling_rate, mel) for each in recordings]  # (1, L) or (1, A, L)

        # 2. Plan sizes, randomness and time steps
        if audio_length_in_s is None:
            audio_length_in_s = common_length(waveforms) / mel.sample_rate
        lengths = self.plan_lengths(n_items, audio_length_in_s, latents, loop)
        n_samples, shape = lengths  # samples, and (B, C, T/f, F/f)
        in_windows = self.plan_evaluation(shape, options, heard is not None)
        generator = sampling.make_generators(seed, generator, n_items)
        _, n_steps = sampling.prepare_later_timesteps(self.scheduler, num_inference_steps, init_noise_level)

        # 3. Encode the prompts, the context, and the recordings unless they are forgotten
        encoded = self.encode_for_call(prompts, options, num_waveforms_per_prompt)
        channels = self.encode_contexts(heard, lengths, loop, num_waveforms_per_prompt)
        condition = encoded.condition(options, shape[2:], context=channels)
        source = None
        if init_noise_level < 1:
            clips = [self.encode_audio(fitted(each, n_samples), mel.sample_rate) for each in waveforms]
            x0 = torch.cat(clips).repeat_interleave(num_waveforms_per_prompt, dim=0)[:, :, : shape[2]]
            source = Known(x0, torch.ones(()))  # (B, C, T/f, F/f), all of it

        # 4. Draw the noise, and add it
        latents = self.first_latents(shape, generator, latents, source)

        # 5. Denoise
        latents = self.run_steps(
            latents, condition, options, callbacks, n_steps=n_steps, generator=generator, windows=in_windows
        )

        # 6. Decode, and rank the candidates
        audios, scores = self.render(latents, n_samples, output, encoded.wanted, loop)
        self.maybe_free_model_hooks()

        # 7. Return
        return self.returned(audios, scores, output)
