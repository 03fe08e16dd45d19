"""Minutes of music from several texts, one after another.

    sections (text, seconds)  -> CLAP -> embeddings (S, D), blended where windows see two of them -> (N, D)
    noise (B, C, T/f, F/f)  -> N overlapping windows, denoised together -> latents (B, C, T/f, F/f)
                            -> VAE, HiFi-GAN, both in pieces -> waveform (B, L)

A window is as long as what the UNet was trained on. Work grows linearly with the length, memory with what decoding
holds of the whole: 2 MB a second of the bundled model.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor

from musicldm import sampling
from musicldm.config.values import check_kind, check_number, check_text
from musicldm.pipelines.calls import Callbacks, independent
from musicldm.pipelines.checks import OutputOptions, Prompts, SamplingOptions, as_embeds, check_latents
from musicldm.pipelines.contexts import ContextOptions
from musicldm.pipelines.outputs import MusicLDMPipelineOutput
from musicldm.pipelines.stages import MusicLDMStages
from musicldm.sampling.denoising import ALL_NOISE, Correct
from musicldm.sampling.windows import blend


@dataclass(frozen=True)
class Section:
    """A part of a piece: what it is to be like, and how long it lasts.

    prompt: a text, or its embedding (D,), or (1, D).
    seconds: above 0.

    Raises:
        ValueError: for a prompt or a number of seconds that is none.
    """

    prompt: str | Tensor
    seconds: float

    def __post_init__(self):
        check_number("seconds of a section", self.seconds)
        if self.seconds <= 0:
            raise ValueError(f"seconds of a section must be above 0, got {self.seconds}")
        if isinstance(self.prompt, Tensor):
            as_embeds("prompt of a section", self.prompt)
        else:
            check_text("prompt of a section", self.prompt)


class MusicLDMLongFormPipeline(MusicLDMStages):
    """Generates a piece of several sections; its parts are those of `MusicLDMBase`. Calls are independent."""

    _callback_tensor_inputs: ClassVar[list[str]] = ["latents"]

    @torch.no_grad()
    @independent
    def __call__(
        self,
        sections: Sequence[Section],
        num_inference_steps: int = 200,
        guidance_scale: float = 2.0,
        negative_prompt: str | list[str] | None = None,
        num_waveforms_per_prompt: int = 1,
        eta: float = 0.0,
        generator: Generator | list[Generator] | None = None,
        latents: Tensor | None = None,
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
        context: Any = None,
        context_kind: str | Sequence[str] | None = None,
        context_guidance_scale: float = 1.0,
        context_sampling_rate: int | None = None,
    ) -> MusicLDMPipelineOutput | tuple:
        """One piece, or several candidates n of it.

        Args:
            sections: what follows what; a single one will do. Together they last as long as the piece.
            negative_prompt: what to steer away from, one text for the piece or one for each section; by default the
                empty text. Or give ``negative_prompt_embeds`` (S, D).
            num_waveforms_per_prompt: candidates n of the whole piece; above 1 they are returned best first, by the mean
                similarity of their sections to these sections' prompts.
            latents: first noise (n, C, T/f, F/f) of the whole piece, before the scheduler scales it.
            callback_on_step_end: as of `MusicLDMPipeline`; the only tensor that it can name is latents.
            loop: the end leads into the start, also from the last section into the first.
            context: what the whole piece follows, one, as of `MusicLDMPipeline`, as are the arguments after it.

        The other arguments and errors are those of `MusicLDMPipeline`.
        """
        # 1. Check inputs
        texts, embeds = _prompts_of(sections)
        prompts = Prompts.of(texts, negative_prompt, embeds, negative_prompt_embeds)
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
            context_guidance_scale=context_guidance_scale,
        )
        output = OutputOptions(num_waveforms_per_prompt, return_best, output_type, return_dict)
        callbacks = Callbacks.of(callback_on_step_end, callback_on_step_end_tensor_inputs, callback, callback_steps)
        self.check_call(prompts, options, output, callbacks)
        check_latents(latents)
        heard = self.read_contexts(given, 1)

        # 2. Plan sizes, windows, randomness and time steps
        ends = list(itertools.accumulate(section.seconds for section in sections))  # in seconds
        lengths = self.plan_lengths(num_waveforms_per_prompt, ends[-1], latents, loop)
        n_samples, shape = lengths
        layout = self.plan_windows(shape, loop, options.evaluations)
        generator = sampling.make_generators(seed, generator, num_waveforms_per_prompt)
        sampling.prepare_timesteps(self.scheduler, num_inference_steps)

        # 3. Encode the prompts, and blend them for windows that see several sections
        encoded = self.encode_for_call(prompts, options, 1)
        shares = layout.shares([0.0, *(min(end / ends[-1], 1.0) * shape[2] for end in ends)])  # (N, S)
        of_windows = [blend(rows, shares) for rows in encoded.embedding.split(len(sections))]  # (N, D) each
        windows = self.windows(layout, loop, of_windows[-1], of_windows[0])
        channels = self.encode_contexts(heard, lengths, loop, num_waveforms_per_prompt)
        # of as many rows as there are candidates, in whose place windows have their own
        condition = encoded.condition(options, shape[2:], [0] * num_waveforms_per_prompt, channels)

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
            windows=windows,
        )

        # 6. Decode, and rank the candidates
        single = replace(output, num_waveforms_per_prompt=1, return_best=None)
        audios, scores = self.render(latents, n_samples, single, encoded.wanted, loop)
        if num_waveforms_per_prompt > 1 and output_type != "latent":
            borders = [0, *(round(end / ends[-1] * n_samples) for end in ends)]
            audios, scores = self.rank_sections(audios, encoded.wanted, borders, return_best)
        self.maybe_free_model_hooks()

        # 7. Return
        return self.returned(audios, scores, output)

    def rank_sections(
        self, audios: Tensor, wanted: Tensor, borders: list[int], return_best: int | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Candidates (n, L) or (n, A, L) of one piece, best first, and their scores (1, n).

        A score is the mean similarity of the sections, between ``borders`` in samples, to their prompts' embeddings
        ``wanted (S, D)``. Without CLAP or its front end nothing is sorted.
        """
        if self.text_encoder is None or self.feature_extractor is None:
            return self.rank(audios, wanted[:1])  # which says so
        parts = zip(itertools.pairwise(borders), wanted, strict=True)
        scores = torch.stack(
            [self.similarity(audios[..., first:last], row[None])[0] for (first, last), row in parts if last > first]
        ).mean(dim=0)
        order = scores.argsort(descending=True, stable=True)[:return_best]
        return audios[order], scores[order][None]


def _prompts_of(sections: Sequence[Section]) -> tuple[list[str] | None, Tensor | None]:
    """The texts of ``sections``, or their embeddings (S, D); ValueError for none, or some of both kinds."""
    check_kind("sections", sections, (list, tuple), "a list of musicldm.Section(prompt, seconds)")
    if not sections:
        raise ValueError("sections is empty; give at least one Section(prompt, seconds)")
    for section in sections:
        check_kind("each of sections", section, Section, "a musicldm.Section(prompt, seconds)")
    prompts = [section.prompt for section in sections]
    embeds = [prompt.reshape(1, -1) for prompt in prompts if isinstance(prompt, Tensor)]
    if not embeds:
        return prompts, None
    if len(embeds) < len(prompts) or len({rows.shape for rows in embeds}) > 1:
        sizes = sorted({rows.shape[1] for rows in embeds})
        raise ValueError(
            "prompts of sections must be all texts, or all embeddings of one size, got "
            f"{len(prompts) - len(embeds)} texts and {len(embeds)} embeddings of sizes {sizes}"
        )
    return None, torch.cat(embeds)
