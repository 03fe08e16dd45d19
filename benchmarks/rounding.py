"""What bfloat16 changes in the music: the waveform and its log-mel spectrogram against float32, part by part.

    python -m benchmarks.rounding --out benchmarks/results/rounding.json

A trained model plays a few prompts; then the same latents go through the decoders in several formats, and the same
noise through the UNet. The yardstick is what VAE and vocoder lose of a recording anyway: `round_trip_log_mel_error`
in `recipes/mini/results/mini.json`.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.results import keep
from musicldm.kernels.precision import lower_decoders
from musicldm.pipelines.text_to_music import MusicLDMPipeline
from musicldm.sampling.schedulers import make_scheduler
from recipes.mini.samplers import PROMPTS
from vocoder import log_mel_spectrogram, mel_config


def with_parts(pipeline: MusicLDMPipeline, **parts: torch.nn.Module) -> MusicLDMPipeline:
    """The pipeline with some parts in place of its own."""
    made = MusicLDMPipeline(**pipeline.components | parts)
    made.set_progress_bar_config(disable=True)
    return made


def in_bfloat16(module: torch.nn.Module) -> torch.nn.Module:
    """A copy, all of it."""
    return torch.nn.Module.to(copy.deepcopy(module), torch.bfloat16)


def differences(waveforms: Tensor, exact: Tensor, mel) -> dict:
    """Of waveforms (B, L) from ``exact``: signal over noise in dB (the least of all), natural log-mel."""
    noise = (waveforms - exact).square().sum(1)
    error = (log_mel_spectrogram(waveforms, mel) - log_mel_spectrogram(exact, mel)).abs()
    return {
        "least_signal_to_noise_db": (10 * torch.log10(exact.square().sum(1) / noise)).min().item(),
        "log_mel_error": error.mean().item(),
        "log_mel_error_of_the_worst_percent": error.flatten().kthvalue(round(0.99 * error.numel())).values.item(),
    }


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="mini")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    pipeline = with_parts(MusicLDMPipeline.from_pretrained(arguments.model))
    pipeline.scheduler = make_scheduler("dpm++", pipeline.scheduler)
    vae, vocoder = copy.deepcopy(pipeline.vae), copy.deepcopy(pipeline.vocoder)
    lower_decoders(vae, vocoder, torch.bfloat16)
    unet, whole_vae, whole_vocoder = (in_bfloat16(part) for part in (pipeline.unet, pipeline.vae, pipeline.vocoder))

    def play(played_by: MusicLDMPipeline, latents: Tensor | None = None) -> Tensor:
        if latents is None:
            options = {"num_inference_steps": arguments.steps, "seed": 1, "output_type": "latent"}
            latents = played_by(PROMPTS, **options).audios
        mel = played_by.decode_latents(latents)
        return played_by.vocode(mel.to(played_by.vocoder.dtype)).float()

    latents = pipeline(PROMPTS, num_inference_steps=arguments.steps, seed=1, output_type="latent").audios
    exact = play(pipeline, latents)
    waveforms = {
        "UNet": play(with_parts(pipeline, unet=unet)),
        "VAE": play(with_parts(pipeline, vae=whole_vae), latents),
        "VAE but the end": play(with_parts(pipeline, vae=vae), latents),
        "vocoder": play(with_parts(pipeline, vocoder=whole_vocoder), latents),
        "vocoder but the first level": play(with_parts(pipeline, vocoder=vocoder), latents),
        "UNet, VAE but the end, vocoder but the first level": play(
            with_parts(pipeline, unet=unet, vae=vae, vocoder=vocoder)
        ),
    }
    rows = {}
    for name, played in waveforms.items():
        rows[name] = differences(played, exact, mel_config(pipeline.vocoder))
        print(
            f"{name:52} {rows[name]['least_signal_to_noise_db']:5.1f} dB, log-mel {rows[name]['log_mel_error']:.4f}, "
            f"99 % below {rows[name]['log_mel_error_of_the_worst_percent']:.3f}",
            flush=True,
        )
    if arguments.out:
        result = {"model": arguments.model, "prompts": PROMPTS, "steps": arguments.steps, "in_bfloat16": rows}
        keep(arguments.out, {"rounding": result})


if __name__ == "__main__":
    main()
