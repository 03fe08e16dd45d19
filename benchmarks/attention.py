"""The attention kernel against every backend of torch's own attention, and against the machine's limits.

    python -m benchmarks.attention --out benchmarks/results/attention.json

Needs a CUDA device. All candidates run in the same process on the same tensors, one after the other in turns; the
table gives medians. The floor is the greater of the time to move q, k, v and the result once and of the time to do the
products, at the bandwidth and the rate that this run measures.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

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


def seconds(function, repetitions: int = REPETITIONS) -> float:
    """For one call, of ``repetitions`` in a captured graph, so that launching costs nothing."""
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


def limits(dtype: torch.dtype) -> tuple[float, float]:
    """Bytes and floating-point operations that the machine moves and does in a second."""
    source = torch.empty(COPY_BYTES // 2, dtype=dtype, device="cuda")
    target = torch.empty_like(source)
    a, b = (torch.randn(PRODUCT, PRODUCT, device="cuda").to(dtype) for _ in range(2))
    copy = statistics.median(seconds(lambda: target.copy_(source), 3) for _ in range(5))
    product = statistics.median(seconds(lambda: a @ b, 3) for _ in range(5))
    return 2 * COPY_BYTES / copy, 2 * PRODUCT**3 / product


def candidates(q, k, v, window: int | None, grid: tuple[int, int] | None) -> dict:
    """Functions by name: the kernel, and torch's backends that take these tensors."""
    found = {"kernel": lambda: attention(q, k, v, window=window, grid=grid, backend="cuda")}
    if window is not None:
        return found | {"torch in pieces": lambda: attention(q, k, v, window=window, grid=grid, backend="torch")}
    heads_first = [x.transpose(1, 2) for x in (q, k, v)]
    for name, backend in BACKENDS.items():

        def run(backend=backend):
            with sdpa_kernel(backend):
                return functional.scaled_dot_product_attention(*heads_first)

        try:
            run()
        except RuntimeError:  # this backend does not take these tensors
            continue
        found[name] = run
    return found


def measure(batch: int, tokens: int, heads: int, dtype: torch.dtype, bandwidth: float, rate: float, mel=None) -> dict:
    """One row of the table."""
    wide = torch.randn(batch, tokens, 3 * heads * 32, device="cuda").to(dtype)
    q, k, v = (x.unflatten(-1, (heads, 32)) for x in wide.chunk(3, dim=-1))
    window, grid = (None, None) if mel is None else (WINDOW, (tokens // mel, mel))
    functions = candidates(q, k, v, window, grid)
    times = {name: [] for name in functions}
    for _ in range(TURNS):
        for name, function in functions.items():
            times[name].append(seconds(function))
    medians = {name: statistics.median(values) for name, values in times.items()}
    seen = tokens if mel is None else min(tokens, (2 * WINDOW + 1) * mel)
    floor = max(4 * q.numel() * q.element_size() / bandwidth, 4 * batch * heads * tokens * seen * 32 / rate)
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
        "share_of_floor": floor / medians["kernel"],
    }
    if tokens <= 4096:
        exact = attention_reference(q[:1], k[:1], v[:1], -1 if window is None else window, mel or 1)
        row["error"] = (functions["kernel"]()[:1] - exact).abs().max().item()
        torch_result = attention(q[:1], k[:1], v[:1], window=window, grid=grid, backend="torch")
        row["error_of_torch"] = (torch_result - exact).abs().max().item()
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("this needs a CUDA device")
    rows, machine_limits = [], {}
    for dtype in (torch.float16, torch.bfloat16):
        bandwidth, rate = limits(dtype)
        machine_limits[str(dtype).removeprefix("torch.")] = {"bytes_per_s": bandwidth, "flop_per_s": rate}
        shapes = [(batch, *level, None) for batch in BATCHES for level in LEVELS]
        shapes += [(2, tokens, 8, mel) for tokens, mel in MINUTES]
        for batch, tokens, heads, mel in shapes:
            row = measure(batch, tokens, heads, dtype, bandwidth, rate, mel)
            rows.append(row)
            times = ", ".join(f"{name} {1e6 * value:.1f}" for name, value in row["seconds"].items())
            print(
                f"{row['dtype']:9} {batch:3} x {tokens:5} tokens, {heads:2} heads"
                f"{'' if mel is None else f', window {WINDOW}'}: {times} us; {row['times_faster_than_best']:.2f} x "
                f"the best other, {100 * row['share_of_floor']:.0f} % of the limit"
            )
    if arguments.out:
        keep(arguments.out, {"limits": machine_limits, "shapes": rows})


if __name__ == "__main__":
    main()
