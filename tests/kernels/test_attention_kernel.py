"""The CUDA kernel where there is no GPU: its source run on the CPU, and what the compiler makes of it."""

import ctypes
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from musicldm.kernels import build as build_kernel
from musicldm.kernels.dot_product import attention_reference

EMULATION = Path(__file__).parent / "emulation" / "attention.cpp"
QUERY_TILES_AND_STAGES = [(1, 3), (1, 5), (2, 3)]
UNIT_ROUNDOFF = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}


@pytest.fixture(scope="module")
def emulation(tmp_path_factory):
    """The kernel's source compiled for the CPU."""
    library = tmp_path_factory.mktemp("emulation") / "attention.so"
    compiler = shutil.which("g++") or shutil.which("c++")
    assert compiler, "these tests need a C++ compiler, as building madmom does"
    subprocess.run([compiler, "-std=c++17", "-O2", "-shared", "-fPIC", str(EMULATION), "-o", str(library)], check=True)
    function = ctypes.CDLL(str(library)).attend_on_cpu
    function.restype = ctypes.c_char_p
    return function


def emulate(function, q, k, v, window=-1, mel=1, query_tiles=1, stages=3, aligned=True, early=False):
    """The kernel's result for CPU tensors; AssertionError for whatever would be an error on a GPU."""
    o = torch.full(q.shape, torch.nan, dtype=q.dtype)
    tensors = q, k, v, o
    last = [sum((size - 1) * step for size, step in zip(x.shape, x.stride(), strict=True)) for x in tensors]
    ends = (ctypes.c_void_p * 4)(*(x.data_ptr() + 2 * (end + 1) for x, end in zip(tensors, last, strict=True)))
    strides = (ctypes.c_int64 * 12)(*(step for x in tensors for step in x.stride()[:3]))
    error = function(
        *(ctypes.c_void_p(x.data_ptr()) for x in tensors),
        ends,
        strides,
        *(len(q), q.shape[2], q.shape[1], k.shape[1], window, mel),
        *(int(q.dtype == torch.bfloat16), query_tiles, stages, int(aligned), int(early)),
    )
    assert error is None, error.decode()
    return o


def random_qkv(batch, n_queries, n_keys, heads, dtype, spread=2.0, padding=0, offset=0):
    """Views such as projections leave them: channels of all heads side by side, ``padding`` more in each row."""
    rows = (n_queries, n_keys, n_keys)
    wide = [torch.randn(batch, n, heads * 32 + padding + offset).to(dtype) * spread for n in rows]
    return [x[..., offset : offset + heads * 32].unflatten(-1, (heads, 32)) for x in wide]


def assert_accurate(result, q, k, v, window=-1, mel=1):
    """Two roundings of values (to 16 bits, weights and results), and a little for the sums in float32."""
    exact = attention_reference(q, k, v, window, mel)
    magnitude = attention_reference(q, k, v.abs(), window, mel)
    allowed = 2.5 * UNIT_ROUNDOFF[q.dtype] * magnitude + 1e-5
    assert not result.isnan().any()
    excess = ((result.double() - exact).abs() / allowed).max()
    assert excess <= 1, f"{excess:.2f} times the error that rounding explains"


@pytest.mark.parametrize("dtype", UNIT_ROUNDOFF)
@pytest.mark.parametrize(("query_tiles", "stages"), QUERY_TILES_AND_STAGES)
@pytest.mark.parametrize("length", [1, 63, 64, 65, 130, 257])
def test_odd_lengths(emulation, length, query_tiles, stages, dtype):
    torch.manual_seed(length)
    q, k, v = random_qkv(1, length, length, 2, dtype)
    for early in (False, True):
        result = emulate(emulation, q, k, v, query_tiles=query_tiles, stages=stages, early=early)
        assert_accurate(result, q, k, v)


@pytest.mark.parametrize(("query_tiles", "stages"), QUERY_TILES_AND_STAGES)
@pytest.mark.parametrize(
    ("times", "mel", "window"),
    [(70, 4, 0), (70, 4, 3), (300, 1, 40), (45, 8, 7), (129, 2, 128), (129, 2, 500), (9, 30, 1)],
)
def test_windows(emulation, times, mel, window, query_tiles, stages):
    torch.manual_seed(times)
    q, k, v = random_qkv(1, times * mel, times * mel, 1, torch.bfloat16)
    result = emulate(emulation, q, k, v, window, mel, query_tiles, stages)
    assert_accurate(result, q, k, v, window, mel)


def test_a_window_that_holds_everything_changes_nothing(emulation):
    q, k, v = random_qkv(1, 192, 192, 1, torch.float16)
    assert torch.equal(emulate(emulation, q, k, v, 47, 4), emulate(emulation, q, k, v))


def test_other_keys_than_queries_batches_and_strides(emulation):
    torch.manual_seed(0)
    for padding, offset, aligned in ((0, 0, True), (64, 8, True), (1, 0, False), (4, 3, False)):
        q, k, v = random_qkv(2, 70, 90, 3, torch.float16, padding=padding, offset=offset)
        assert_accurate(emulate(emulation, q, k, v, aligned=aligned), q, k, v)


def test_heads_before_tokens(emulation):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, 66, 32).half().transpose(1, 2) for _ in range(3))
    assert_accurate(emulate(emulation, q, k, v), q, k, v)


def test_scores_far_apart_neither_overflow_nor_vanish(emulation):
    torch.manual_seed(0)
    q, k, v = random_qkv(1, 64, 200, 1, torch.float16, spread=30.0)
    k[:, 150:] *= 8  # the greatest scores come late, so that what was summed before must be rescaled
    assert_accurate(emulate(emulation, q, k, v), q, k, v)


def test_a_missing_number_in_one_query_stays_there(emulation):
    q, k, v = random_qkv(1, 80, 80, 1, torch.float16)
    q[0, 5, 0, 7] = torch.nan
    missing = emulate(emulation, q, k, v).isnan().flatten(2).any(dim=2)[0]
    assert missing.nonzero().flatten().tolist() == [5]


# --- what the compiler makes of it -----------------------------------------------------------------------------------

needs_nvcc = pytest.mark.skipif(build_kernel.find_nvcc() is None, reason="needs nvcc")


@pytest.fixture(scope="module", params=["80", "90"])
def compiled(request, tmp_path_factory):
    """Machine code for one architecture, and the assembler's report on it."""
    cubin = tmp_path_factory.mktemp("kernel") / "attention.cubin"
    options = f"-arch=sm_{request.param}", "-cubin", "-Xptxas=-v", "-Werror=all-warnings", "-o", str(cubin)
    command = build_kernel.compiler_command(build_kernel.find_nvcc(), Path(torch.__file__).parent, *options)
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    return cubin, made.stderr


@pytest.mark.slow
@needs_nvcc
def test_nothing_is_spilled(compiled):
    report = compiled[1]
    frames = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", report)
    assert len(frames) == 8  # two formats, four kernels each
    assert set(frames) == {("0", "0", "0")}


@pytest.mark.slow
@needs_nvcc
def test_tensor_cores_do_the_work_and_local_memory_is_not_touched(compiled):
    triton = pytest.importorskip("triton", reason="its package carries cuobjdump")
    tool = shutil.which("cuobjdump") or Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    code = subprocess.run([str(tool), "-sass", str(compiled[0])], capture_output=True, text=True, check=True).stdout
    kernels = code.split("Function :")[1:]
    assert len(kernels) == 8
    for kernel in kernels:
        instructions = re.findall(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+ )?(\w+)", kernel, flags=re.MULTILINE)
        assert instructions.count("HMMA") in (32, 64)  # (8 * 2 for q kᵀ, 4 * 4 for p v) for each 16 queries
        assert instructions.count("LDSM") == 16
        assert not {"LDL", "STL"} & set(instructions)


@pytest.mark.slow
@needs_nvcc
def test_a_library_is_compiled_that_torch_loads(tmp_path):
    library = tmp_path / build_kernel.library_name()
    build_kernel.compile_kernel(build_kernel.find_nvcc(), Path(torch.__file__).parent, library)
    assert library.is_file()
    program = (
        "import torch, musicldm.kernels.dot_product\n"
        f"torch.ops.load_library({str(library)!r})\n"
        "assert torch._C._dispatch_has_kernel_for_dispatch_key('musicldm::attention', 'CUDA')\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
