"""Ten seconds of music at the published size: this package against diffusers' pipeline on the same weights.

    python -m benchmarks.generate --out benchmarks/results/generate.json
    python -m benchmarks.generate --case defaults --out benchmarks/results/generate.json
    python -m benchmarks.generate --case musicgen --out benchmarks/results/generate.json

The first case takes equal steps; the second compares the defaults of ``musicldm generate`` (bfloat16) with those of
diffusers (200 steps of DDIM); the third with MusicGen-small (its size, random weights) through transformers, as what a
user would take instead. Random weights; diffusers gets embeddings, because its text path does not run with
transformers 5, and the same noise and the head numbers of the published model. "float32" is
`optimize(bfloat16=False)`, "bfloat16" what `optimize()` makes of the pipeline where the processor has the instructions.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path

import diffusers
import torch

from benchmarks.original import EMBEDDING, as_diffusers_has_it, original_pipeline
from benchmarks.results import keep
from benchmarks.timing import in_turns, ratio
from musicldm.pipelines.text_to_music import MusicLDMPipeline
from musicldm.sampling.schedulers import SAMPLER, STEPS, make_scheduler

SECONDS = 10.24
THEIR_STEPS = 200  # diffusers' default
MUSICGEN_RATE = 50  # tokens a second
FORMATS = ("float32", "bfloat16")


def make_pipelines() -> dict[str, diffusers.DiffusionPipeline]:
    """diffusers' pipeline and ours in two formats, with the same weights."""
    ours = original_pipeline()
    theirs = diffusers.MusicLDMPipeline(
        **ours.components | {"unet": as_diffusers_has_it(ours.unet), "vae": copy.deepcopy(ours.vae)}
    )
    theirs.set_progress_bar_config(disable=True)
    fast = MusicLDMPipeline(
        **ours.components | {name: copy.deepcopy(getattr(ours, name)) for name in ("unet", "vae", "vocoder")}
    )
    fast.set_progress_bar_config(disable=True)
    return {
        "diffusers float32": theirs,
        "float32": ours.optimize(bfloat16=False),
        "bfloat16": fast.optimize(bfloat16=True),
    }


def play(pipeline, embeddings: torch.Tensor, steps: int) -> torch.Tensor:
    """Ten seconds."""
    return pipeline(
        prompt_embeds=embeddings[:1],
        negative_prompt_embeds=embeddings[1:],
        audio_length_in_s=SECONDS,
        num_inference_steps=steps,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
    ).audios


def musicgen() -> Callable[[float], torch.Tensor]:
    """MusicGen-small as published (T5-base, 24 layers of 1024 channels, EnCodec for 32 kHz): seconds to audio."""
    from transformers import (
        EncodecConfig,
        MusicgenConfig,
        MusicgenDecoderConfig,
        MusicgenForConditionalGeneration,
        T5Config,
    )

    torch.manual_seed(0)
    text = T5Config(d_model=768, d_kv=64, d_ff=3072, num_layers=12, num_heads=12)
    codec = EncodecConfig(
        sampling_rate=32_000,
        target_bandwidths=[2.2],
        codebook_size=2048,
        codebook_dim=128,
        num_filters=64,
        upsampling_ratios=[8, 5, 4, 4],
        use_causal_conv=False,
    )
    decoder = MusicgenDecoderConfig(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, ffn_dim=4096)
    config = MusicgenConfig(text_encoder=text.to_dict(), audio_encoder=codec.to_dict(), decoder=decoder.to_dict())
    model = MusicgenForConditionalGeneration(config).eval()
    ids = torch.arange(2, 14)[None]  # a prompt of twelve tokens

    def generate(seconds: float) -> torch.Tensor:
        tokens = round(seconds * MUSICGEN_RATE)
        options = {"guidance_scale": 3.0, "do_sample": True, "pad_token_id": decoder.pad_token_id}
        options |= {"min_new_tokens": tokens, "max_new_tokens": tokens, "decoder_start_token_id": decoder.vocab_size}
        return model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)

    return generate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", choices=("equal", "defaults", "musicgen"), default="equal")
    parser.add_argument("--steps", type=int, default=20, help="of the case of equal steps")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    pipelines = make_pipelines()
    peer, our_steps = "diffusers float32", STEPS
    steps = dict.fromkeys(pipelines, arguments.steps if arguments.case == "equal" else our_steps)
    formats = FORMATS
    if arguments.case != "equal":
        pipelines["bfloat16"].scheduler = make_scheduler(SAMPLER, pipelines["bfloat16"].scheduler)
        steps[peer], formats = THEIR_STEPS, ("bfloat16",)
        del pipelines["float32"]
    embeddings = torch.nn.functional.normalize(torch.randn(2, EMBEDDING), dim=-1)
    waveforms = {}

    def call(name: str) -> None:
        waveforms[name] = play(pipelines[name], embeddings, steps[name])

    functions = {name: partial(call, name) for name in pipelines}
    warm_ups = {name: partial(play, pipeline, embeddings, 2) for name, pipeline in pipelines.items()}
    if arguments.case == "musicgen":
        del functions[peer], warm_ups[peer]
        peer = "MusicGen-small float32"
        their_music = musicgen()
        functions[peer], warm_ups[peer] = partial(their_music, SECONDS), partial(their_music, 0.2)
    times = in_turns(functions, arguments.repetitions, warm_ups)
    result = {
        "seconds_of_music": SECONDS,
        "threads": arguments.threads,
        "repetitions": arguments.repetitions,
        "steps": {name: count for name, count in steps.items() if name in functions},
        "times": times,
        "times_faster": {name: ratio(times, peer, name) for name in formats},
    }
    if arguments.case == "equal":
        exact = waveforms[peer]
        result |= {
            "largest_difference": {name: (waveforms[name] - exact).abs().max().item() for name in FORMATS},
            "standard_deviation": exact.std().item(),
            "noise_prediction_off_by": deviation(pipelines["float32"].unet, pipelines["bfloat16"].unet, embeddings),
        }
    for name, seconds in times.items():
        processor, clock = (seconds[kind]["median"] for kind in ("processor_s", "clock_s"))
        print(f"{name:24} {processor:7.2f} s of processor time, {clock:.2f} s")
    print(", ".join(f"{name} {value:.2f} x {peer}" for name, value in result["times_faster"].items()))
    if arguments.out:
        keep(arguments.out, {"generate" if arguments.case == "equal" else arguments.case: result})


@torch.no_grad()
def deviation(exact, fast, embeddings: torch.Tensor) -> float:
    """Relative difference of two UNets' predictions in the middle of the schedule."""
    latents = torch.randn(2, exact.config.in_channels, 256, 16)
    one, other = (
        unet(latents.to(unet.dtype), 500, encoder_hidden_states=None, class_labels=embeddings.to(unet.dtype)).sample
        for unet in (exact, fast)
    )
    return ((other - one).norm() / one.norm()).item()


if __name__ == "__main__":
    main()
