"""Attention: one signature over a CUDA kernel, torch and a reference in float64.

    q (B, N, H, d), k and v (B, M, H, d)  ->  softmax(q kᵀ / √d) v (B, N, H, d)

The kernel (csrc/) is for heads of 32 channels in float16 or bfloat16. It is the operator ``musicldm::attention``, which
`torch.compile` and CUDA graphs know; its gradient is recomputed through torch. A window limits attention to a band in
latent time, at a cost that grows linearly with the length. Before the kernel serves on a device, a small problem is
computed with it and compared with the definition; where it is wrong, it is not used.

Vaswani et al. (2017), https://arxiv.org/abs/1706.03762; Beltagy et al. (2020), Longformer (the band),
https://arxiv.org/abs/2004.05150
"""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from musicldm.kernels import build as build_kernel

HEAD_CHANNELS = 32
DTYPES = (torch.float16, torch.bfloat16)
OLDEST_CAPABILITY = (8, 0)
BACKENDS = ("auto", "cuda", "torch", "reference")
NO_WINDOW = -1
# How many times as fast as the best of torch's backends the kernel was without a window, by batch, tokens and heads, in
# its version before this one, which has not been measured yet: benchmarks/results/attention.json, float16.
MEASURED = {
    (2, 1024, 8): 0.86,
    (2, 256, 12): 1.35,
    (2, 64, 20): 1.61,
    (8, 1024, 8): 0.91,
    (8, 256, 12): 0.99,
    (8, 64, 20): 1.54,
    (32, 1024, 8): 0.87,
    (32, 256, 12): 0.86,
    (32, 64, 20): 1.47,
}
FEW = 256  # tokens up to which the gradient of torch's attention on a CPU takes longer in bfloat16 than in float32

log = logging.getLogger(__name__)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    window: int | None = None,
    grid: tuple[int, int] | None = None,
    circular: bool = False,
    backend: str = "auto",
) -> Tensor:
    """softmax(q kᵀ / √d) v for ``q (B, N, H, d)``, ``k`` and ``v (B, M, H, d)``, views of any strides.

    With a ``window`` of w, a token attends to those at most w time positions away; ``grid = (time, mel)`` says how the
    N = M = time * mel tokens lie: token n at ``(n // mel, n % mel)``. ``circular`` windows go on at the other end.

    ``backend`` is "cuda" (the kernel), "torch", "reference" (float64) or "auto": the kernel where it runs, else torch;
    and torch where a gradient is wanted, for which the kernel would compute everything twice, and where it was measured
    to be faster.

    Raises:
        ValueError: for shapes or a window that do not fit.
        RuntimeError: if the kernel is asked for and cannot run; it says why.
    """
    window, mel = check_inputs(q, k, v, window, grid)
    if circular and window != NO_WINDOW:
        return attention_round_a_circle(q, k, v, window, mel, backend)
    if backend == "auto":
        slow = needs_gradient(q, k, v) or torch_is_faster(q, window, mel)
        backend = "torch" if slow or kernel_problem(q, k, v) else "cuda"
    if backend == "torch":
        return attention_torch(q, k, v, window, mel)
    if backend == "reference":
        return attention_reference(q, k, v, window, mel)
    if backend != "cuda":
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    if problem := kernel_problem(q, k, v):
        raise RuntimeError(f"the attention kernel cannot run: {problem}; use backend='auto' or 'torch'")
    return torch.ops.musicldm.attention(q, k, v, window, mel)


def check_inputs(q: Tensor, k: Tensor, v: Tensor, window: int | None, grid: tuple[int, int] | None) -> tuple[int, int]:
    """Window and tokens for each time position, as the operator takes them: (-1, 1) for no window."""
    if q.ndim != 4 or k.shape != v.shape or q.shape[::2] != k.shape[::2] or q.shape[3] != k.shape[3]:
        shapes = ", ".join(str(tuple(x.shape)) for x in (q, k, v))
        raise ValueError(f"attention needs q (B, N, H, d), k and v (B, M, H, d), got {shapes}")
    if not q.shape[1] or not k.shape[1]:
        raise ValueError(f"attention needs tokens, got {q.shape[1]} queries and {k.shape[1]} keys")
    if window is None:
        return NO_WINDOW, 1
    if window < 0:
        raise ValueError(f"window must be a number of time positions from 0, or None for all, got {window}")
    if grid is None:
        raise ValueError(f"window={window} needs grid=(time, mel), how the {q.shape[1]} tokens lie")
    if not q.shape[1] == k.shape[1] == grid[0] * grid[1]:
        raise ValueError(f"a grid of {tuple(grid)} does not hold {q.shape[1]} queries and {k.shape[1]} keys")
    return window, grid[1]


def needs_gradient(*tensors: Tensor) -> bool:
    """Whether autograd is on and follows any of the tensors."""
    return torch.is_grad_enabled() and any(x.requires_grad for x in tensors)


def torch_is_faster(q: Tensor, window: int = NO_WINDOW, mel: int = 1) -> bool:
    """Whether `MEASURED` says so of the shape that is nearest to that of ``q (B, N, H, d)``; never with a window."""
    batch, tokens, heads, _ = q.shape
    if window != NO_WINDOW and window < tokens // mel - 1:
        return False
    nearest, least = 1.0, float("inf")
    for (b, n, h), times_as_fast in MEASURED.items():
        away = max(n / tokens, tokens / n) * max(b * h / (batch * heads), batch * heads / (b * h))
        if away < least:
            nearest, least = times_as_fast, away
    return nearest < 1.0


def attention_reference(q: Tensor, k: Tensor, v: Tensor, window: int = NO_WINDOW, mel: int = 1) -> Tensor:
    """The definition, in float64."""
    q, k, v = q.double(), k.double(), v.double()
    scores = torch.einsum("bnhd,bmhd->bhnm", q, k) / q.shape[3] ** 0.5
    if window != NO_WINDOW:
        time = torch.arange(q.shape[1], device=q.device) // mel
        scores = scores.masked_fill((time[:, None] - time).abs() > window, -torch.inf)
    return torch.einsum("bhnm,bmhd->bnhd", scores.softmax(dim=-1), v)


def attention_torch(q: Tensor, k: Tensor, v: Tensor, window: int = NO_WINDOW, mel: int = 1) -> Tensor:
    """Through torch's own attention; with a window in pieces of time, each with the keys that it sees."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (B, H, N, d)
    n_times = q.shape[2] // mel
    if window == NO_WINDOW or window >= n_times - 1:
        if q.dtype == torch.bfloat16 and q.device.type == "cpu" and q.shape[2] <= FEW and needs_gradient(q, k, v):
            with torch.autocast("cpu", enabled=False):
                result = functional.scaled_dot_product_attention(q.float(), k.float(), v.float())
            return result.to(q.dtype).transpose(1, 2)
        return functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)
    piece = max(window, -(-256 // mel))  # time positions; small pieces would keep no processor busy
    time = torch.arange(q.shape[2], device=q.device) // mel
    results = []
    for start in range(0, n_times, piece):
        queries = slice(start * mel, min(start + piece, n_times) * mel)
        keys = slice(max(0, start - window) * mel, min(start + piece + window, n_times) * mel)
        near = (time[queries, None] - time[keys]).abs() <= window
        results.append(
            functional.scaled_dot_product_attention(q[:, :, queries], k[:, :, keys], v[:, :, keys], attn_mask=near)
        )
    return torch.cat(results, dim=2).transpose(1, 2)


def attention_round_a_circle(q: Tensor, k: Tensor, v: Tensor, window: int, mel: int, backend: str) -> Tensor:
    """`attention` with a window on a circle: on a line, with a window's length of the other end beside both ends."""
    n_times = q.shape[1] // mel
    if 2 * window + 1 >= n_times:  # everything, once
        return attention(q, k, v, backend=backend)
    beyond = window * mel
    if not beyond:
        return attention(q, k, v, window=window, grid=(n_times, mel), backend=backend)
    q, k, v = (torch.cat([x[:, -beyond:], x, x[:, :beyond]], dim=1) for x in (q, k, v))
    grid = n_times + 2 * window, mel
    return attention(q, k, v, window=window, grid=grid, backend=backend)[:, beyond:-beyond]


# --- the operator ----------------------------------------------------------------------------------------------------

# ``rows``: queries for each block of the kernel, 64 or 128; 0 lets it choose.
torch.library.define(
    "musicldm::attention", "(Tensor q, Tensor k, Tensor v, int window=-1, int mel=1, int rows=0) -> Tensor"
)


@torch.library.impl("musicldm::attention", "CPU")
def _attention_cpu(q, k, v, window=NO_WINDOW, mel=1, rows=0):
    return attention_torch(q, k, v, window, mel).contiguous()


@torch.library.register_fake("musicldm::attention")
def _attention_fake(q, k, v, window=NO_WINDOW, mel=1, rows=0):
    return q.new_empty(q.shape)


def _save_inputs(ctx, inputs, output):
    q, k, v, ctx.window, ctx.mel, _ = inputs
    ctx.save_for_backward(q, k, v)


def _recompute_gradients(ctx, gradient):
    with torch.enable_grad():
        inputs = [x.detach().requires_grad_() for x in ctx.saved_tensors]
        result = attention_torch(*inputs, ctx.window, ctx.mel)
        gradients = torch.autograd.grad(result, inputs, gradient)
    return *gradients, None, None, None


torch.library.register_autograd("musicldm::attention", _recompute_gradients, setup_context=_save_inputs)


# --- the kernel ------------------------------------------------------------------------------------------------------


def kernel_problem(q: Tensor, k: Tensor, v: Tensor) -> str | None:
    """Why the kernel cannot run on these tensors here; None if it can. May compile it, which takes half a minute."""
    if not all(x.is_cuda and x.device == q.device for x in (q, k, v)):
        return f"it needs q, k and v on one CUDA device, they are on {', '.join(str(x.device) for x in (q, k, v))}"
    if q.dtype not in DTYPES or not q.dtype == k.dtype == v.dtype:
        return f"it needs float16 or bfloat16, q, k and v are {', '.join(str(x.dtype) for x in (q, k, v))}"
    if q.shape[3] != HEAD_CHANNELS:
        return f"it is made for heads of {HEAD_CHANNELS} channels, these have {q.shape[3]}"
    if not all(x.stride(3) == 1 for x in (q, k, v)):
        return "the channels of q, k and v must lie side by side"
    return device_problem(q.device.index, q.dtype)


@torch.compiler.assume_constant_result
def device_problem(index: int, dtype: torch.dtype) -> str | None:
    """Why the kernel cannot run on CUDA device ``index`` in ``dtype``; None if it can, and has shown it."""
    if (capability := torch.cuda.get_device_capability(index)) < OLDEST_CAPABILITY:
        return f"it needs compute capability 8.0 or more, cuda:{index} has {'.'.join(map(str, capability))}"
    with LOADING:
        if (problem := load_kernel()) is not None:
            return problem
        device = torch.device("cuda", index)
        if (device, dtype) not in _checked:
            if torch.cuda.is_current_stream_capturing():  # comparing waits for the device, which a capture forbids
                unchecked = "it is checked before its first use, which a CUDA graph cannot record"
                return f"{unchecked}; call it once before capturing"
            _checked[device, dtype] = problem = fault(torch.ops.musicldm.attention, device, dtype)
            if problem is not None:
                log.error("the attention kernel is wrong on %s, torch's attention serves: %s", device, problem)
        return _checked[device, dtype]


LOADING = threading.RLock()  # held by the thread that loads, compiles or checks the kernel
_checked: dict[tuple[torch.device, torch.dtype], str | None] = {}  # what `fault` said

# Tokens, window, tokens for each time position, queries for each block, whether rows are aligned: all ways through it.
PROBES = [
    (65, NO_WINDOW, 1, 64, True),
    (300, NO_WINDOW, 1, 64, True),
    (300, NO_WINDOW, 1, 128, True),
    (300, NO_WINDOW, 1, 64, False),
    (300, 40, 4, 64, True),
    (300, 40, 4, 128, True),
    (300, 40, 4, 64, False),
]
TIMES_TORCHS_ERROR = 4.0


@torch.no_grad()
def fault(kernel: Callable[..., Tensor], device: torch.device, dtype: torch.dtype) -> str | None:
    """What is wrong with ``kernel``, called as the operator is, on small problems; None if nothing is.

    It may err four times as much as torch's attention does on the same numbers, at most, against the definition.
    """
    generator = torch.Generator().manual_seed(0)
    for n_tokens, window, mel, rows, aligned in PROBES:
        wide = torch.randn(2, n_tokens, 3, 3, HEAD_CHANNELS + (not aligned), generator=generator)
        q, k, v = wide.to(device, dtype)[..., :HEAD_CHANNELS].unbind(2)  # (2, N, 3, d)
        with torch.autocast(device.type, enabled=False):
            exact = attention_reference(q, k, v, window, mel)
            allowed = TIMES_TORCHS_ERROR * (attention_torch(q, k, v, window, mel) - exact).abs().max().item()
            error = (kernel(q, k, v, window, mel, rows) - exact).abs().max().item()
        if not error <= allowed:  # not a number is a fault too
            case = f"{n_tokens} tokens, window {window}, {rows} rows" + ("" if aligned else ", unaligned")
            return f"{dtype} results are off by {error:.2g}, at most {allowed:.2g} is rounding ({case})"
    return None


@functools.cache
def load_kernel() -> str | None:
    """Load the kernel's library, compiled now if there is none; why there is none, or None."""
    library = find_library()
    try:
        if library is None:
            if (nvcc := build_kernel.find_nvcc()) is None:
                return "it was not compiled with the package, and there is no nvcc to compile it with"
            library = build_kernel.cache_folder() / build_kernel.library_name()
            log.warning("compiling the attention kernel, once: about half a minute")
            build_kernel.compile_kernel(nvcc, Path(torch.__file__).parent, library)
        torch.ops.load_library(str(library))
    except (OSError, RuntimeError) as error:
        log.warning("no attention kernel, torch's attention serves: %s", error)
        return str(error)
    return None


def find_library() -> Path | None:
    """The compiled kernel: of the installation, else of the cache."""
    for folder in (build_kernel.SOURCES, build_kernel.cache_folder()):
        if (path := folder / build_kernel.library_name()).is_file():
            return path
    return None


def describe() -> str:
    """What attention runs on here, in one line; compiles nothing."""
    torch_does = "torch scaled_dot_product_attention"
    if not torch.cuda.is_available():
        return f"{torch_does} (the CUDA kernel needs a CUDA device)"
    if (library := find_library()) is not None:
        return f"CUDA kernel for heads of {HEAD_CHANNELS} channels in 16 bits ({library}), else {torch_does}"
    if build_kernel.find_nvcc() is not None:
        return f"{torch_does} until the CUDA kernel is compiled, on first use"
    return f"{torch_does} (the CUDA kernel is not compiled, and there is no nvcc)"
