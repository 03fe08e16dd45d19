"""Music on a GPU at the published size: this package against diffusers' pipeline on the same weights, and its parts.

    python -m benchmarks.generate_gpu calls --out benchmarks/results/generate_gpu.json
    python -m benchmarks.generate_gpu stages --out benchmarks/results/generate_gpu.json
    python -m benchmarks.generate_gpu profile --out benchmarks/results/generate_gpu.json
    python -m benchmarks.generate_gpu windows --out benchmarks/results/generate_gpu.json

Needs a CUDA device, except with --tiny, which tries the script itself out at small sizes. Equal steps, float16, random
weights, the same embeddings and noise; "diffusers" is its pipeline with torch's attention, "plain" ours as loaded,
"optimized" ours after `optimize()`: fused projections, steps as CUDA graphs, both with the attention kernel where it
is the faster one. calls: 10.24 s, batches are equal prompts in one call; the clock runs from the call until the
waveform is on the CPU. stages: one guided step, the decoder of the VAE, the vocoder. profile: the kernels that take
longest. windows: long music with attention limited to 64 latent frames to either side. --table names results of
`benchmarks.attention` by which the attention chooses between kernel and torch. The file is written after every row.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import diffusers
import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.generate import SECONDS
from benchmarks.original import EMBEDDING, as_diffusers_has_it, original_pipeline
from benchmarks.results import keep
from musicldm.kernels import dot_product
from musicldm.sampling.condition import Condition, predict

STEPS = 20
BATCHES = (1, 8, 32, 64, 128)
STAGE_BATCHES = (1, 32)
PROFILED_BATCH, PROFILED_KERNELS = 32, 30
LONG = (10.24, 60.0, 300.0)  # seconds of music
WINDOW = 64  # latent frames to either side
FEW = 8  # items, up to which calls are short and are repeated more often, and all three pipelines are timed
TINY_SECONDS = 0.64
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPE = torch.float16 if DEVICE == "cuda" else torch.float32


def make_pipelines(names: tuple[str, ...], size: str = "original") -> dict[str, diffusers.DiffusionPipeline]:
    """diffusers' pipeline, and ours, plain and optimized, with the same weights."""
    ours, made = original_pipeline(size), {}
    for name in names:
        parts = {part: copy.deepcopy(getattr(ours, part)) for part in ("vae", "vocoder", "unet")}
        if name == "diffusers":
            parts["unet"] = as_diffusers_has_it(parts["unet"])
        of = diffusers.MusicLDMPipeline if name == "diffusers" else type(ours)
        made[name] = of(**ours.components | parts).to(DEVICE, DTYPE)
        made[name].set_progress_bar_config(disable=True)
    if "optimized" in made:
        made["optimized"].optimize()
    return made


def choose_by(table: Path) -> None:
    """Let attention choose by these results of `benchmarks.attention`."""
    for row in json.loads(table.read_text())["shapes"]:
        if row["dtype"] == "float16" and row["window"] is None:
            dot_product.MEASURED[row["batch"], row["tokens"], row["heads"]] = row["times_faster_than_best"]


def settle() -> None:
    """Wait for the device."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def clock(function: Callable[[], object], repetitions: int) -> dict[str, float]:
    """Seconds of ``function``, after one call that does not count: median, least and greatest."""
    function()
    times = []
    for _ in range(repetitions):
        settle()
        began = time.perf_counter()
        function()
        settle()
        times.append(time.perf_counter() - began)
    return {"median": statistics.median(times), "least": min(times), "greatest": max(times)}


def peak() -> int:
    """The most bytes of the GPU's memory in use since the last call of this."""
    if DEVICE == "cpu":
        return 0
    most = torch.cuda.max_memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    return most


def play(pipeline, embeddings: torch.Tensor, batch: int, seconds: float, steps: int, **options) -> torch.Tensor:
    """Waveforms (B, L) on the CPU."""
    return pipeline(
        prompt_embeds=embeddings[:1].expand(batch, -1),
        negative_prompt_embeds=embeddings[1:].expand(batch, -1),
        audio_length_in_s=seconds,
        num_inference_steps=steps,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
        **options,
    ).audios.cpu()


def calls(options: argparse.Namespace, embeddings: torch.Tensor, rows: list, write: Callable[[], None]) -> None:
    pipelines = make_pipelines(("diffusers", "plain", "optimized"), options.size)
    for batch in options.batches or ((1, 2) if options.tiny else BATCHES):
        names = [name for name in pipelines if batch <= FEW or name != "plain"]
        row: dict = {"batch": batch, "seconds": {}, "peak_bytes": {}}
        waveforms = {}
        for name in names:
            peak()
            call = partial(play, pipelines[name], embeddings, batch, options.seconds, options.steps)
            row["seconds"][name] = clock(call, (5 if batch <= FEW else 2) if DEVICE == "cuda" else 1)
            waveforms[name] = call().float()
            row["peak_bytes"][name] = peak()  # with the weights of all pipelines
        medians = {name: times["median"] for name, times in row["seconds"].items()}
        exact = waveforms["diffusers"]
        row["relative_difference"] = {name: ((w - exact).norm() / exact.norm()).item() for name, w in waveforms.items()}
        row["times_faster"] = {name: medians["diffusers"] / value for name, value in medians.items()}
        row["music_seconds_per_second"] = {name: batch * options.seconds / value for name, value in medians.items()}
        rows.append(row)
        for name, value in medians.items():
            print(f"batch {batch:3} {name:10} {value:.3f} s, {row['times_faster'][name]:.2f} x diffusers", flush=True)
        write()


def parts_of(pipeline, embeddings: torch.Tensor, batch: int, seconds: float) -> dict[str, Callable[[], object]]:
    """A guided step, the VAE's decoder and the vocoder, on so many ``seconds`` of music."""
    vae, vocoder, unet = pipeline.vae, pipeline.vocoder, pipeline.unet
    frames, bands = round(seconds * 100), vocoder.config.model_in_dim
    factor = pipeline.vae_scale_factor
    latents = torch.randn(batch, unet.config.in_channels, frames // factor, bands // factor, device=DEVICE, dtype=DTYPE)
    condition = Condition(embeddings.repeat_interleave(batch, dim=0).to(unet.dtype))
    at, mel = torch.tensor(500, device=DEVICE), torch.randn(batch, frames, bands, device=DEVICE, dtype=DTYPE)
    graphs = getattr(pipeline, "step_graphs", None)
    step = predict if graphs is None else graphs.of(unet)
    return {
        "guided step": lambda: step(unet, latents, at, condition, 2.0),
        "vae": lambda: vae.decode(latents),
        "vocoder": lambda: vocoder(mel),
    }


def stages(options: argparse.Namespace, embeddings: torch.Tensor, rows: list, write: Callable[[], None]) -> None:
    pipelines = make_pipelines(("diffusers", "optimized"), options.size)
    for batch in options.batches or ((1,) if options.tiny else STAGE_BATCHES):
        for name, pipeline in pipelines.items():
            for part, function in parts_of(pipeline, embeddings, batch, options.seconds).items():
                times = clock(function, 5 if DEVICE == "cuda" else 1)
                rows.append({"batch": batch, "pipeline": name, "stage": part, "seconds": times})
                print(f"batch {batch:3} {name:10} {part:12} {1e3 * times['median']:.2f} ms", flush=True)
                write()


def kernels(options: argparse.Namespace, embeddings: torch.Tensor, rows: list, write: Callable[[], None]) -> None:
    pipeline = make_pipelines(("optimized",), options.size)["optimized"]
    batch = 1 if options.tiny else PROFILED_BATCH
    activities = [ProfilerActivity.CUDA] if DEVICE == "cuda" else [ProfilerActivity.CPU]
    for part, function in parts_of(pipeline, embeddings, batch, options.seconds).items():
        function()
        with profile(activities=activities) as found:
            function()
            settle()
        time_of = "self_device_time_total" if DEVICE == "cuda" else "self_cpu_time_total"
        events = sorted(found.key_averages(), key=lambda event: getattr(event, time_of), reverse=True)
        whole = sum(getattr(event, time_of) for event in events)
        for event in events[:PROFILED_KERNELS]:
            spent = getattr(event, time_of)
            rows.append({"stage": part, "kernel": event.key[:160], "calls": event.count, "us": spent})
            rows[-1]["share"] = spent / whole if whole else 0.0
        print(f"{part}: {whole / 1e3:.2f} ms in {sum(event.count for event in events)} kernels", flush=True)
        write()


def windows(options: argparse.Namespace, embeddings: torch.Tensor, rows: list, write: Callable[[], None]) -> None:
    pipeline = make_pipelines(("optimized",), options.size)["optimized"]
    window = {"window": 2 if options.tiny else WINDOW}
    for seconds in (TINY_SECONDS, 2 * TINY_SECONDS) if options.tiny else LONG:
        peak()
        call = partial(play, pipeline, embeddings, 1, seconds, options.steps, cross_attention_kwargs=window)
        times = clock(call, 2 if DEVICE == "cuda" else 1)
        row = {"music_seconds": seconds, **window, "seconds": times, "peak_bytes": peak()}
        row["seconds_per_music_second"] = times["median"] / seconds
        rows.append(row)
        print(f"{seconds:6.2f} s of music in {times['median']:.3f} s", flush=True)
        write()


MEASUREMENTS = {"calls": calls, "stages": stages, "profile": kernels, "windows": windows}


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=MEASUREMENTS)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--batches", type=int, nargs="+", help="of calls and stages")
    parser.add_argument("--tiny", action="store_true", help="small sizes, on a CPU too, to try the script out")
    parser.add_argument("--table", type=Path, help="results of benchmarks.attention, if there are any")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if DEVICE == "cpu" and not options.tiny:
        parser.error("this needs a CUDA device, or --tiny")
    options.size, options.seconds = ("tiny", TINY_SECONDS) if options.tiny else ("original", SECONDS)
    if options.table and options.table.exists():
        choose_by(options.table)
    torch.manual_seed(0)
    embeddings = torch.nn.functional.normalize(torch.randn(2, EMBEDDING), dim=-1).to(DEVICE, DTYPE)
    rows: list[dict] = []

    def write() -> None:
        if options.out:
            keep(options.out, {options.what: {"steps": options.steps, "dtype": str(DTYPE), "rows": rows}})

    MEASUREMENTS[options.what](options, embeddings, rows, write)


if __name__ == "__main__":
    main()
