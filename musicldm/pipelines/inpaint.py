"""Inpainting and extension: parts of a recording made new, in the same sound, with the rest as it was.

    recording, regions -> windows around the regions -> log-mel -> VAE -> latents
    latents, noise     -> UNet and scheduler, the kept part known at every step -> latents
    latents            -> VAE -> log-mel -> HiFi-GAN -> waveform -> joined to the recording, inside the regions

The kept part is known to the sampler as x0, so that it stays on its way from noise to itself while the new part is made
beside it; see `musicldm.sampling.known`. Kept samples of the recording are never computed anew.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Generator, Tensor

from musicldm import sampling
from musicldm.editing.joining import New, join
from musicldm.editing.patches import Patch, apply, seams
from musicldm.editing.source import Source
from musicldm.editing.windows import Window, plan_windows, read_window
from musicldm.models.context import HOLE, context_layout
from musicldm.models.latents import latent_shape
from musicldm.pipelines.calls import Callbacks, independent
from musicldm.pipelines.checks import OutputOptions, Prompts, SamplingOptions, check_latents
from musicldm.pipelines.contexts import ContextOptions, Heard
from musicldm.pipelines.holes import Surroundings, window_context
from musicldm.pipelines.outputs import MusicLDMInpaintPipelineOutput
from musicldm.pipelines.recordings import as_recordings, masked_regions, open_source
from musicldm.pipelines.stages import MusicLDMStages
from musicldm.sampling.denoising import ALL_NOISE, Correct
from musicldm.sampling.known import Known
from vocoder import mel_config

OUTPUT_TYPES = ("np", "pt", "latent", "patches")

Seconds = float | Sequence[float] | None


class Work(NamedTuple):
    """What is made at once: a window of each of some items, all of one length."""

    items: list[int]  # of the B edits of the call
    windows: list[Window]  # of each of them


class MusicLDMInpaintPipeline(MusicLDMStages):
    """Makes parts of recordings new; its parts are those of `MusicLDMBase`, and its calls are independent."""

    @torch.no_grad()
    @independent
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        audio: np.ndarray | Tensor | str | list | None = None,
        audio_sampling_rate: int | None = None,
        mask_start_seconds: Seconds = None,
        mask_end_seconds: Seconds = None,
        mask: np.ndarray | Tensor | None = None,
        snap: str = "none",
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
        guidance_interval: tuple[float, float] = ALL_NOISE,
        correct: Correct | None = None,
        windows: bool = False,
        context: Any = None,
        context_kind: str | Sequence[str] | None = None,
        context_guidance_scale: float = 1.0,
        context_sampling_rate: int | None = None,
    ) -> MusicLDMInpaintPipelineOutput | tuple:
        """``audio`` with new parts, for each prompt.

        Regions near each other are made in one window of the length that the UNet was trained on, or longer if they
        need it; others in windows of their own. What lies outside of the windows plays no part.

        Args:
            audio: a recording (L,) or (A, L) of A channels, NumPy or torch, floating point from -1 to 1 or int16 or
                int32 at full scale, or a file; one for all prompts, or a list or array (P, A, L) of one for each. Any
                rate and channels will do.
            audio_sampling_rate: of arrays, in Hz; files know theirs.
            mask_start_seconds: where each part that is made new begins; below 0, or at the recording's length or
                beyond, extends it to that side.
            mask_end_seconds: where each ends.
            mask: in place of both, (N,) values of N equal stretches of the recording, such as its samples: 1 makes a
                stretch new, 0 keeps it.
            snap: "beat" moves a border inside the recording to the nearest beat within 60 ms, inwards only.
            num_waveforms_per_prompt: candidates n for each prompt, in the order of their seeds.
            latents: first noise (P * n, C, T/f, F/f), if there is one window.
            output_type: "np" or "pt" for samples of the source's kind, "latent" for the latents of the windows,
                "patches" for the new samples alone, whatever the length of the recording.
            callback: told of each step of each window, as are the others.
            context: what is to be played in the new parts, such as a `musicldm.scores.Sketch`. It begins with the first
                new part and goes on in the recording's time: what of it lies beside new parts is not heard.
            context_guidance_scale: how strongly that is followed, and, by a model that knows contexts of kind hole, the
                kept part around it: such a model is given that by itself.

        The other arguments are as of `MusicLDMPipeline.__call__`; its ``windows`` bound the memory of long regions.

        Raises:
            OSError: for a file that cannot be read.
            ValueError: naming the argument that cannot be used, and what can; also for regions that are empty,
                reversed, overlap or leave nothing, and for recordings that are silent, hold NaN, or are no audio.
        """
        # 1. Check inputs
        prompts = Prompts.of(prompt, negative_prompt, prompt_embeds, negative_prompt_embeds)
        given = ContextOptions(context, context_kind, context_guidance_scale, context_sampling_rate)
        given.check(by_itself=self.knows_holes)
        options = SamplingOptions(
            num_inference_steps,
            guidance_scale,
            guidance_interval,
            eta,
            cross_attention_kwargs,
            correct,
            False,
            windows,
            context_guidance_scale,
        )
        output = OutputOptions(num_waveforms_per_prompt, None, output_type, return_dict, OUTPUT_TYPES)
        callbacks = Callbacks.of(callback_on_step_end, callback_on_step_end_tensor_inputs, callback, callback_steps)
        n_items = self.check_call(prompts, options, output, callbacks)  # B
        check_latents(latents)
        heard = self.read_contexts(given, n_items // num_waveforms_per_prompt)  # P
        recordings = as_recordings(audio, n_items // num_waveforms_per_prompt)
        opened = {id(each): open_source(each, audio_sampling_rate) for each in recordings}
        sources = [opened[id(each)] for each in recordings for _ in range(num_waveforms_per_prompt)]  # B
        places = mask_start_seconds, mask_end_seconds, mask, snap
        regions = {source: masked_regions(source, *places) for source in opened.values()}

        # 2. Plan windows, randomness and time steps
        planned = [self.plan(source, regions[source]) for source in sources]
        work = list(batches(planned))
        evaluations = [self.plan_evaluation(self.shape(each), options, heard is not None) for each in work]
        if latents is not None:
            self.check_noise(work, latents)
        generator = sampling.make_generators(seed, generator, n_items)
        sampling.prepare_timesteps(self.scheduler, num_inference_steps)  # says what is wrong before work begins

        # 3. Encode the prompts
        encoded = self.encode_for_call(prompts, options, num_waveforms_per_prompt)

        # 4. Make the windows: encode, draw noise, denoise, decode
        made: list[list[Tensor]] = [[] for _ in sources]  # of each item those of its windows, in order
        for each, in_windows in zip(work, evaluations, strict=True):
            sampling.prepare_timesteps(self.scheduler, num_inference_steps)
            own = [generator[item] for item in each.items] if isinstance(generator, list) else generator
            surroundings = self.encode_windows(each, sources, regions)
            known = kept(surroundings)
            beside = None if heard is None else [heard[item // num_waveforms_per_prompt] for item in each.items]
            channels = self.context_of_windows(surroundings, beside)
            condition = encoded.condition(options, self.shape(each)[2:], each.items, channels)
            found = self.first_latents(known.x0.shape, own, latents, known)
            found = self.run_steps(
                found,
                condition,
                options,
                callbacks,
                n_steps=num_inference_steps,
                generator=own,
                known=known,
                windows=in_windows,
            )
            found = known.keep(found)  # some samplers end at the training's first noise
            if output_type != "latent":
                found = self.decode(found)  # (b, L) or (b, A, L)
            for item, one in zip(each.items, found, strict=True):
                made[item].append(one)
        self.maybe_free_model_hooks()

        # 5. Join them to the recordings
        patches = []
        if output_type != "latent":
            patches = [self.join(*each) for each in zip(sources, planned, made, strict=True)]

        # 6. Return
        return edited(sources, made, patches, output)

    def plan(self, source: Source, regions: Sequence[tuple[int, int]]) -> list[Window]:
        """Windows of the length that the UNet was trained on, where ``regions`` need no more."""
        mel, frames = mel_config(self.vocoder), self.trained_frames
        length_s = None if frames is None else frames * self.vae_scale_factor * mel.hop_length / mel.sample_rate
        return plan_windows(source, regions, mel, self.vae_scale_factor, length_s)

    def shape(self, work: Work) -> tuple[int, int, int, int]:
        """Of the latents (b, C, T/f, F/f) of ``work``."""
        mel = mel_config(self.vocoder)
        n_frames = work.windows[0].n_samples // mel.hop_length
        return len(work.items), *latent_shape(self.vae, mel, n_frames)

    def check_noise(self, work: list[Work], latents: Tensor) -> None:
        """ValueError unless ``latents`` are of the shape of the only window of each edit."""
        if len(work) > 1 or latents.shape != self.shape(work[0]):
            shapes = " and ".join(str(self.shape(each)) for each in work)
            raise ValueError(f"the windows have latents of shape {shapes}, got {tuple(latents.shape)}; give a seed")

    @property
    def knows_holes(self) -> bool:
        """Whether the model is given what stays as a context of its own."""
        layout = None if self.unet is None else context_layout(self.unet)
        return layout is not None and HOLE in layout.kinds

    def encode_windows(
        self, work: Work, sources: list[Source], regions: dict[Source, list[tuple[int, int]]]
    ) -> list[Surroundings]:
        """What the model hears of each window; the same object for items of one recording."""
        mel, heard = mel_config(self.vocoder), {}
        for item, window in zip(work.items, work.windows, strict=True):
            source = sources[item]
            if (key := (source, window.start)) not in heard:
                waveform = torch.from_numpy(read_window(source, window, mel))
                latents = self.encode_audio(waveform[None], mel.sample_rate)
                heard[key] = Surroundings(window, waveform, latents, source.rate, regions[source][0][0])
        return [heard[sources[item], window.start] for item, window in zip(work.items, work.windows, strict=True)]

    def context_of_windows(self, surroundings: list[Surroundings], heard: list[Heard | None] | None) -> Tensor | None:
        """Channels (b, C + 1 + K, T/f, F/f) for each of b windows, of what stays and what is ``heard`` in its holes.

        None if the model is given neither.
        """
        layout, mel = context_layout(self.unet), mel_config(self.vocoder)
        if layout is None or (heard is None and not self.knows_holes):
            return None
        beside, made = [None] * len(surroundings) if heard is None else heard, {}
        for around, one in zip(surroundings, beside, strict=True):
            if (key := (id(around), id(one))) not in made:
                made[key] = window_context(around, one, layout, mel, self.encode_audio)
        return torch.cat([made[id(around), id(one)] for around, one in zip(surroundings, beside, strict=True)])

    def join(self, source: Source, windows: list[Window], made: list[Tensor]) -> list[Patch]:
        """The new parts of ``source``, of what was ``made`` in its ``windows``."""
        return [
            join(source, region, New(waveform.numpy(), self.sampling_rate, window.start)).patch
            for window, waveform in zip(windows, made, strict=True)
            for region in window.regions
        ]


def kept(surroundings: list[Surroundings]) -> Known:
    """The latents of b windows, and which of their frames stay."""
    x0 = torch.cat([around.latents for around in surroundings])  # (b, C, T/f, F/f)
    new = torch.from_numpy(np.stack([around.window.mask for around in surroundings]))  # (b, T/f)
    return Known(x0, (1 - new)[:, None, :, None].to(x0.device))


def batches(windows: list[list[Window]]) -> Iterator[Work]:
    """All windows of B items, each time one of each item, of one length.

    Which windows are made together, and in which order, depends for each item on its own windows alone.
    """
    for number in range(max(map(len, windows))):
        alike: dict[int, list[int]] = {}
        for item, own in enumerate(windows):
            if number < len(own):
                alike.setdefault(own[number].n_samples, []).append(item)
        for items in alike.values():
            yield Work(items, [windows[item][number] for item in items])


def edited(
    sources: list[Source], made: list[list[Tensor]], patches: list[list[Patch]], output: OutputOptions
) -> MusicLDMInpaintPipelineOutput | tuple:
    """What is asked for of the edits of ``sources``."""
    rates = [source.rate for source in sources]
    rate = rates[0] if len(set(rates)) == 1 else rates
    pairs = list(zip(sources, patches, strict=False))
    audios: list[Any] = []
    if output.output_type == "latent":
        audios = made
    elif output.output_type != "patches":
        audios = [apply(source, own) for source, own in pairs]
    if output.output_type == "pt":
        audios = [torch.from_numpy(audio) for audio in audios]
    if not output.return_dict:
        return (audios,)
    starts = [min([0, *(patch.start for patch in own)]) for own in patches]
    regions = [
        [((patch.start - start) / source.rate, (patch.stop - start) / source.rate) for patch in own]
        for (source, own), start in zip(pairs, starts, strict=True)
    ]
    return MusicLDMInpaintPipelineOutput(audios, rate, regions, [seams(*pair) for pair in pairs], patches)
