"""The attention kernel against every backend of torch's own attention, flex_attention and the machine's limits.

    python -m benchmarks.attention --out benchmarks/results/attention.json

Needs a CUDA device, except with --tiny, which tries the script itself out at small sizes. All candidates run in the
same process on the same tensors, one after the other in turns; the table gives medians. The floor is the greatest of
three times: to move q, k, v and the result once, to do the products, at the bandwidth and the rate that this run
measures, and to take one exponential for each pair of a query and a key, 16 at each clock of a multiprocessor.
flex_attention is compiled, and joins in float16 only. The file is written after every row.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from benchmarks.results import keep
from musicldm.kernels.dot_product import attention, attention_reference

LEVELS = [(1024, 8), (256, 12), (64, 20)]  # tokens and heads for 10.24 s, from the released UNet
BATCHES = (2, 8, 32)
BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
WINDOW = 64  # latent frames to either side
MINUTES = [(4096, 8), (32_000, 8)]  # time positions times mel, and mel, with the window
REPETITIONS, TURNS = 20, 7
COPY_BYTES, PRODUCT = 2**31, 8192
EXPONENTIALS = 16  # at each clock of a multiprocessor of compute capability 7.0 to 9.0
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TINY_LEVELS, TINY_MINUTES = [(64, 2), (32, 1)], [(512, 2)]


def seconds(function, repetitions: int = REPETITIONS) -> float:
    """For one call, of ``repetitions`` in a captured graph, so that launching costs nothing."""
    if DEVICE == "cpu":
        began = time.perf_counter()
        function()
        return time.perf_counter() - began
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            function()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(repetitions):
            function()
    graph.replay()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    graph.replay()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000 / repetitions


def limits(dtype: torch.dtype, tiny: bool) -> dict[str, float]:
    """What the machine does in a second: bytes moved, floating-point operations of products, and exponentials."""
    n_bytes, size = (2**20, 64) if tiny else (COPY_BYTES, PRODUCT)
    source = torch.empty(n_bytes // 2, dtype=dtype, device=DEVICE)
    target = torch.empty_like(source)
    a, b = (torch.randn(size, size, device=DEVICE).to(dtype) for _ in range(2))
    copy = statistics.median(seconds(lambda: target.copy_(source), 3) for _ in range(5))
    product = statistics.median(seconds(lambda: a @ b, 3) for _ in range(5))
    found = {"bytes_per_s": 2 * n_bytes / copy, "flop_per_s": 2 * size**3 / product}
    if DEVICE == "cuda":
        gpu = torch.cuda.get_device_properties(0)
        found["exponentials_per_s"] = EXPONENTIALS * gpu.multi_processor_count * gpu.clock_rate * 1e3
    return found


def in_flex(q, k, v, window: int | None, mel: int | None):
    """The function that computes it through flex_attention."""
    run, mask = flex_attention, None
    if DEVICE == "cuda":
        torch._dynamo.reset()  # so that each shape is compiled for itself
        run = torch.compile(flex_attention, dynamic=False)
    if window is not None:

        def near(b, h, query, key):
            return (query // mel - key // mel).abs() <= window

        mask = create_block_mask(near, None, None, q.shape[1], k.shape[1], device=DEVICE)
    heads_first = [x.transpose(1, 2) for x in (q, k, v)]
    return lambda: run(*heads_first, block_mask=mask)


def candidates(q, k, v, window: int | None, grid: tuple[int, int] | None) -> dict:
    """Functions by name: the kernel, and torch's backends that take these tensors."""
    kernel = "cuda" if DEVICE == "cuda" else "torch"
    found = {"kernel": lambda: attention(q, k, v, window=window, grid=grid, backend=kernel)}
    rivals = {"flex": in_flex(q, k, v, window, grid and grid[1])} if q.dtype == torch.float16 else {}
    if window is not None:
        rivals["torch in pieces"] = lambda: attention(q, k, v, window=window, grid=grid, backend="torch")
    heads_first = [x.transpose(1, 2) for x in (q, k, v)]
    for name, backend in BACKENDS.items() if window is None else ():

        def run(backend=backend):
            with sdpa_kernel(backend):
                return functional.scaled_dot_product_attention(*heads_first)

        rivals[name] = run
    for name, run in rivals.items():
        try:
            run()
        except RuntimeError as error:
            print(f"{name} does not take these tensors: {str(error).splitlines()[0]}")
        else:
            found[name] = run
    return found


def measure(batch: int, tokens: int, heads: int, mel: int | None, dtype: torch.dtype, rates: dict) -> dict:
    """One row of the table; ``rates`` are the machine's `limits`."""
    wide = torch.randn(batch, tokens, 3 * heads * 32, device=DEVICE).to(dtype)
    q, k, v = (x.unflatten(-1, (heads, 32)) for x in wide.chunk(3, dim=-1))
    window, grid = (None, None) if mel is None else (WINDOW, (tokens // mel, mel))
    functions = candidates(q, k, v, window, grid)
    times = {name: [] for name in functions}
    for _ in range(TURNS):
        for name, function in functions.items():
            times[name].append(seconds(function))
    medians = {name: statistics.median(values) for name, values in times.items()}
    seen = tokens if mel is None else min(tokens, (2 * WINDOW + 1) * mel)
    pairs = batch * heads * tokens * seen
    work = {"bytes_per_s": 4 * q.nbytes, "flop_per_s": 4 * 32 * pairs, "exponentials_per_s": pairs}
    floors = {name.removesuffix("_per_s"): work[name] / rate for name, rate in rates.items()}
    best_other = min(value for name, value in medians.items() if name != "kernel")
    row = {
        "dtype": str(dtype).removeprefix("torch."),
        "batch": batch,
        "tokens": tokens,
        "heads": heads,
        "window": window,
        "seconds": medians,
        "spread": {name: [min(values), max(values)] for name, values in times.items()},
        "times_faster_than_best": best_other / medians["kernel"],
        "floor_seconds": floors,
        "share_of_floor": max(floors.values()) / medians["kernel"],
    }
    if tokens <= 4096:
        exact = attention_reference(q[:1], k[:1], v[:1], -1 if window is None else window, mel or 1)
        row["error"] = (functions["kernel"]()[:1] - exact).abs().max().item()
        torch_result = attention(q[:1], k[:1], v[:1], window=window, grid=grid, backend="torch")
        row["error_of_torch"] = (torch_result - exact).abs().max().item()
    return row


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="small sizes, on a CPU too, to try the script out")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    tiny = arguments.tiny
    if DEVICE == "cpu" and not tiny:
        parser.error("this needs a CUDA device, or --tiny")
    batches, levels, minutes = ((1,), TINY_LEVELS, TINY_MINUTES) if tiny else (BATCHES, LEVELS, MINUTES)
    rows, machine_limits = [], {}
    for dtype in (torch.float16, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        machine_limits[name] = limits(dtype, tiny)
        shapes = [(batch, *level, None) for level in levels for batch in batches]
        shapes += [(2, tokens, 8, mel) for tokens, mel in minutes]
        for batch, tokens, heads, mel in shapes:
            row = measure(batch, tokens, heads, mel, dtype, machine_limits[name])
            rows.append(row)
            times = ", ".join(f"{name} {1e6 * value:.1f}" for name, value in row["seconds"].items())
            print(
                f"{row['dtype']:9} {batch:3} x {tokens:5} tokens, {heads:2} heads"
                f"{'' if mel is None else f', window {WINDOW}'}: {times} us; {row['times_faster_than_best']:.2f} x "
                f"the best other, {100 * row['share_of_floor']:.0f} % of the limit",
                flush=True,
            )
            if arguments.out:
                keep(arguments.out, {"limits": machine_limits, "shapes": rows})
    print("for MEASURED in musicldm/kernels/dot_product.py:")
    for row in rows:
        if row["dtype"] == "float16" and row["window"] is None:
            print(f"    ({row['batch']}, {row['tokens']}, {row['heads']}): {row['times_faster_than_best']:.2f},")


if __name__ == "__main__":
    main()
