"""How much audio each trainer learns from in a second, at the published size, against a plain script.

    python -m benchmarks.training --threads 1 --out benchmarks/results/training.json       # on a GPU: --batch 0

The plain steps are those of `benchmarks.plain_training`; both ways train networks of the same class and size on the
same inputs in memory, in turns in one process, in bfloat16. A step of the trainer is all that its loop does: its own
draws for each item, losses to the log, checks, clipping, update, average. Peak memory is that of a process of its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from benchmarks import plain_training
from benchmarks.memory import peak
from benchmarks.original import EMBEDDING
from benchmarks.results import keep
from benchmarks.timing import in_turns
from musicldm.config import STAGES, TrainConfig, find_config, load_config
from musicldm.kernels.unet_attention import install
from musicldm.models.clap import train_tokenizer
from musicldm.models.latents import latent_shape
from musicldm.train import clap, vae, vocoder
from musicldm.train.common import fastest_layout, make_accelerator, make_optimizer
from musicldm.train.diffusion import stage as diffusion
from musicldm.train.diffusion.cache import Cache
from musicldm.train.diffusion.latents import CachedLatents
from musicldm.train.diffusion.objectives import Objective, make_scheduler
from musicldm.train.loop import Stage
from musicldm.train.run_folder import Average, Run, State
from vocoder.losses import AdversarialLosses

WAYS = ("trainer", "plain")
CAPTIONS = [f"a {how} piece for {what}" for how in ("slow", "fast", "calm") for what in ("harp", "flute", "drums")]
Step = Callable[[], None]


class InMemory(torch.utils.data.Dataset):
    """Recordings, and what belongs to them, without reading: ``dataset[Item]`` is ``rows[item.index]``."""

    def __init__(self, rows: list):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, item):
        return self.rows[item.index]


def waveforms_of(config: TrainConfig, n_samples: int) -> torch.Tensor:
    """Brown noise (B, L), one row for each item of a batch."""
    noise = np.random.default_rng(0).standard_normal((config.batch_size, n_samples)).cumsum(axis=1)
    return torch.from_numpy((0.1 * noise / np.abs(noise).max()).astype(np.float32))


def loop(stage: Stage) -> Step:
    """One turn of the trainers' loop."""
    state, accelerator, stream = stage.state, stage.run.accelerator, stage.batches()
    networks = [part for part in state.parts.values() if isinstance(part, nn.Module)]
    kept: list = []

    def step() -> None:
        with accelerator.accumulate(*networks):
            kept.append({name: value.detach().float() for name, value in stage.step(next(stream)).items()})
        state.step += 1

    return step


def prepared(config: TrainConfig, network: nn.Module, accelerator: Accelerator):
    """The network, and its optimiser, as a trainer has them."""
    network = network if getattr(config, "on_device", False) else fastest_layout(network, accelerator)
    wrapped, optimizer = accelerator.prepare(network, make_optimizer(network, config))
    return wrapped.train(), optimizer


def diffusion_step(way: str, config, accelerator: Accelerator, size: str) -> Step:
    of_vae = vae.make_vae(load_config(STAGES["vae"], find_config(size, "vae")))
    channels, frames, bands = latent_shape(of_vae, config.mel, config.mel.clip_frames)
    unet, rng, n = diffusion.make_unet(config, channels, frames, EMBEDDING), np.random.default_rng(0), config.batch_size
    moments = rng.standard_normal((n, 2 * channels, frames, bands)).astype(np.float16)
    audio = rng.standard_normal((n, EMBEDDING)).astype(np.float32)
    empty = torch.zeros(EMBEDDING)
    if way == "plain":
        tensors = torch.from_numpy(moments), torch.from_numpy(audio), empty
        return plain_training.diffusion(unet, *tensors, config, accelerator.device)
    install(unet)
    dataset = CachedLatents(Cache(moments, audio, audio, np.arange(n + 1)), list(range(n)), config)
    average = Average(unet, config.ema_decay).to(accelerator.device)
    scheduler = make_scheduler(config, accelerator.device if config.on_device else None)
    wrapped, optimizer = prepared(config, unet, accelerator)
    compile_if_asked(config, unet)
    state = State({"unet": wrapped, "optimizer": optimizer, "average": average})
    objective, run = Objective(config, scheduler, 1.0), Run(config, Path(), accelerator)
    empty = empty.to(accelerator.device)
    return loop(diffusion.DiffusionStage(run, state, unet, dataset, dataset, objective, empty))


def vae_step(way: str, config, accelerator: Accelerator) -> Step:
    waveforms = waveforms_of(config, round(config.segment_s * config.mel.sample_rate))
    autoencoder, judge = vae.make_vae(config), vae.PatchDiscriminator(config.discriminator_channels)
    if way == "plain":
        return plain_training.vae(autoencoder, judge, waveforms, config, accelerator.device)
    whole = vae.Autoencoder(autoencoder)
    wrapped, optimizer = prepared(config, whole, accelerator)
    discriminator, of_judge = prepared(config, judge, accelerator)
    compile_if_asked(config, *vae.compiled_parts(autoencoder))
    parts = {"vae": wrapped, "vae_optimizer": optimizer}
    state = State(parts | {"discriminator": discriminator, "discriminator_optimizer": of_judge})
    run, rows = Run(config, Path(), accelerator), InMemory(list(waveforms))
    return loop(vae.VAEStage(run, state, whole, judge, rows, rows))


def vocoder_step(way: str, config, accelerator: Accelerator) -> Step:
    waveforms, generator = waveforms_of(config, config.segment_samples), vocoder.initial_generator(config)
    generator.apply_weight_norm()
    judge = AdversarialLosses()
    if way == "plain":
        return plain_training.vocoder(generator, judge, waveforms, config, accelerator.device)
    wrapped, optimizer = prepared(config, generator, accelerator)
    discriminators, of_judge = prepared(config, judge.discriminator, accelerator)
    compile_if_asked(config, generator)
    parts = {"generator": wrapped, "generator_optimizer": optimizer}
    state = State(parts | {"discriminators": discriminators, "discriminators_optimizer": of_judge})
    run, rows = Run(config, Path(), accelerator), InMemory(list(waveforms))
    return loop(vocoder.VocoderStage(run, state, generator, judge, rows, rows))


def clap_step(way: str, config, accelerator: Accelerator) -> Step:
    waveforms, tokenizer = waveforms_of(config, config.mel.clip_samples), train_tokenizer(CAPTIONS * 5, 400)
    model, front_end = clap.make_clap(config, config.vocabulary), clap.make_feature_extractor(config)
    captions = [CAPTIONS[k % len(CAPTIONS)] for k in range(config.batch_size)]
    towers = clap.Towers(model, tokenizer)
    if way == "plain":

        def features_of(batch: torch.Tensor) -> torch.Tensor:
            return clap.log_mel_of(towers, batch, config, front_end)

        return plain_training.clap(model, tokenizer, features_of, waveforms, captions, config, accelerator.device)
    model.logit_scale_t.requires_grad_(False)
    wrapped, optimizer = prepared(config, towers, accelerator)
    compile_if_asked(config, model.audio_model, model.text_model)
    state = State({"towers": wrapped, "optimizer": optimizer})
    rows = InMemory([(waveform, (caption,), ()) for waveform, caption in zip(waveforms, captions, strict=True)])
    run = Run(config, Path(), accelerator)
    return loop(clap.CLAPStage(run, state, towers, front_end, rows, rows))


STEPS = {"vae": vae_step, "vocoder": vocoder_step, "clap": clap_step, "diffusion": diffusion_step}


def make_step(stage: str, way: str, config: TrainConfig, accelerator: Accelerator, size: str) -> Step:
    """A step of ``stage`` as ``way`` does it; ``size`` says which VAE's latents the diffusion model is for."""
    return STEPS[stage](way, config, accelerator, *([size] if stage == "diffusion" else []))


def compile_if_asked(config: TrainConfig, *networks: nn.Module) -> None:
    for network in networks if config.compile else ():
        network.compile()


def stage_config(stage: str, options: argparse.Namespace) -> TrainConfig:
    """The published recipe with every part of it at work from the first step."""
    overrides = ["mixed_precision=bf16", "trackers=[]", f"device={options.device}", f"workers={options.workers}"]
    overrides += [f"compile={str(options.compile).lower()}"]
    overrides += ["on_device=true"] if stage == "diffusion" and options.on_device else []
    overrides += [f"batch_size={options.batch}"] if options.batch else []
    overrides += ["adversarial_from=0"] if stage in ("vae", "vocoder") else []
    overrides += [f"segment_s={options.segment_s}"] if stage == "vae" and options.segment_s else []
    return load_config(STAGES[stage], find_config(options.size, stage), overrides)


def audio_seconds(stage: str, config) -> float:
    """Seconds of audio in one step."""
    each = {"vae": lambda: config.segment_s, "vocoder": lambda: config.segment_samples / config.mel.sample_rate}
    return config.batch_size * each.get(stage, lambda: config.mel.clip_s)()


def measure_memory(stage: str, way: str) -> float:
    """Peak of two steps in a process of its own, GiB: of the GPU's memory, or resident in a CPU's."""
    command = [sys.executable, "-m", "benchmarks.training", *sys.argv[1:], "--stages", stage, "--way", way]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return json.loads(output.splitlines()[-1])["peak_gib"]


def alone(stage: str, options: argparse.Namespace) -> None:
    """Two steps of one way, and their peak memory as JSON on stdout."""
    config = stage_config(stage, options)
    accelerator = make_accelerator(config, Path())
    step = make_step(stage, options.way, config, accelerator, options.size)
    for _ in range(2):
        step()
    on_gpu = accelerator.device.type == "cuda"
    of_gpu = torch.cuda.max_memory_reserved if options.on_device else torch.cuda.max_memory_allocated  # a graph's too
    print(json.dumps({"peak_gib": (of_gpu() if on_gpu else peak()) / 2**30}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stages", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--size", default="original", help="of the bundled configurations")
    parser.add_argument("--device", choices=("auto", "cpu"), default="auto")
    parser.add_argument("--batch", type=int, default=1, help="clips a step; 0: as published")
    parser.add_argument("--segment-s", type=float, default=0.0, help="seconds of the VAE's items; 0: as published")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--workers", type=int, default=0, help="processes that draw ahead for the trainer")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--compile", action="store_true", help="the trainer with compile=true")
    parser.add_argument("--on-device", action="store_true", help="the diffusion trainer with on_device=true")
    parser.add_argument("--memory", action="store_true", help="measure peak memory too")
    parser.add_argument("--way", choices=WAYS, help="two steps of one way in this process, for --memory")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.way:
        alone(options.stages[0], options)
        return
    for stage in options.stages:
        config = stage_config(stage, options)
        accelerator = make_accelerator(config, Path())
        on_gpu = accelerator.device.type == "cuda"

        def settled(step: Step, on_gpu: bool = on_gpu) -> Step:
            return lambda: (step(), torch.cuda.synchronize() if on_gpu else None)

        steps = {way: settled(make_step(stage, way, config, accelerator, options.size)) for way in WAYS}
        times = in_turns(steps, options.repetitions)
        clock = "clock_s" if on_gpu else "processor_s"  # that of other programs does not count on a shared CPU
        seconds = audio_seconds(stage, config)
        result: dict = {"times": times, "batch": config.batch_size, "threads": options.threads, "clock": clock}
        result["audio_s_each"] = seconds / config.batch_size
        on_device_too = stage == "diffusion" and options.on_device
        result |= {"compile": options.compile, "on_device": on_device_too, "device": accelerator.device.type}
        result["audio_s_per_s"] = {way: seconds / times[way][clock]["median"] for way in WAYS}
        result["trainer_is_faster_by"] = times["plain"][clock]["median"] / times["trainer"][clock]["median"]
        if options.memory:
            result["peak_gib"] = {way: measure_memory(stage, way) for way in WAYS}
        print(stage, json.dumps({key: value for key, value in result.items() if key != "times"}), flush=True)
        if options.out:
            name = f"{options.size} {stage}, {accelerator.device.type}{', compiled' * options.compile}"
            name += ", on device" * on_device_too
            keep(options.out, {name: result})


if __name__ == "__main__":
    main()
