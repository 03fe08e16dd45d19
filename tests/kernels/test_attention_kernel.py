"""The CUDA kernel where there is no GPU: its source run on the CPU, and what the compiler makes of it."""

import ctypes
import itertools
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
KERNEL = build_kernel.SOURCES / "attention_kernel.h"
SCHEDULES = list(itertools.product((False, True), repeat=2))  # copies arrive early, the last warp goes first
UNIT_ROUNDOFF = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}


def compile_emulation(kernel: Path, library: Path):
    """The source in ``kernel`` compiled for the CPU, as a function."""
    compiler = shutil.which("g++") or shutil.which("c++")
    assert compiler, "these tests need a C++ compiler, as building madmom does"
    options = "-std=c++17", "-O2", "-shared", "-fPIC", f'-DKERNEL="{kernel}"', str(EMULATION), "-o", str(library)
    subprocess.run([compiler, *options], check=True)
    function = ctypes.CDLL(str(library)).attend_on_cpu
    function.restype = ctypes.c_char_p
    return function


@pytest.fixture(scope="module")
def emulation(tmp_path_factory):
    """The kernel's source compiled for the CPU."""
    return compile_emulation(KERNEL, tmp_path_factory.mktemp("emulation") / "attention.so")


def emulate(function, q, k, v, window=-1, mel=1, query_tiles=1, aligned=True, schedule=(False, False)):
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
        *(int(q.dtype == torch.bfloat16), query_tiles, int(aligned), *map(int, schedule)),
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
@pytest.mark.parametrize("query_tiles", [1, 2])
@pytest.mark.parametrize("length", [1, 63, 64, 65, 130, 321])
def test_odd_lengths(emulation, length, query_tiles, dtype):
    torch.manual_seed(length)
    q, k, v = random_qkv(1, length, length, 2, dtype)
    for schedule in SCHEDULES:
        assert_accurate(emulate(emulation, q, k, v, query_tiles=query_tiles, schedule=schedule), q, k, v)


@pytest.mark.parametrize("query_tiles", [1, 2])
@pytest.mark.parametrize(
    ("times", "mel", "window"),
    [(70, 4, 0), (70, 4, 3), (300, 1, 40), (45, 8, 7), (129, 2, 128), (129, 2, 500), (9, 30, 1)],
)
def test_windows(emulation, times, mel, window, query_tiles):
    torch.manual_seed(times)
    q, k, v = random_qkv(1, times * mel, times * mel, 1, torch.bfloat16)
    for schedule in ((False, False), (True, True)):
        result = emulate(emulation, q, k, v, window, mel, query_tiles, schedule=schedule)
        assert_accurate(result, q, k, v, window, mel)


@pytest.mark.parametrize("query_tiles", [1, 2])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("dtype", UNIT_ROUNDOFF)
def test_a_first_tile_that_is_wholly_masked(emulation, dtype, sign, query_tiles):
    """Of the block's keys those of the first tiles are outside of most rows' windows; scores are all far from 0."""
    torch.manual_seed(0)
    q, k, v = random_qkv(1, 200, 200, 1, dtype)
    q, k = q.abs() * 8, sign * k.abs() * 8
    for window in (0, 2, 30):
        assert_accurate(emulate(emulation, q, k, v, window, 1, query_tiles), q, k, v, window)


def test_a_window_that_holds_everything_changes_nothing(emulation):
    q, k, v = random_qkv(1, 192, 192, 1, torch.float16)
    assert torch.equal(emulate(emulation, q, k, v, 47, 4), emulate(emulation, q, k, v))


def test_other_keys_than_queries_batches_and_strides(emulation):
    torch.manual_seed(0)
    for padding, offset, aligned in ((0, 0, True), (64, 8, True), (1, 0, False), (4, 3, False)):
        q, k, v = random_qkv(2, 70, 90, 3, torch.float16, padding=padding, offset=offset)
        assert_accurate(emulate(emulation, q, k, v, aligned=aligned), q, k, v)


@pytest.mark.parametrize("dtype", UNIT_ROUNDOFF)
def test_windows_over_rows_that_are_not_aligned(emulation, dtype):
    torch.manual_seed(0)
    q, k, v = random_qkv(2, 320, 320, 2, dtype, padding=1)
    for schedule in SCHEDULES:
        assert_accurate(emulate(emulation, q, k, v, 20, 4, aligned=False, schedule=schedule), q, k, v, 20, 4)


def test_heads_before_tokens(emulation):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, 66, 32).half().transpose(1, 2) for _ in range(3))
    assert_accurate(emulate(emulation, q, k, v), q, k, v)


def test_scores_far_apart_neither_overflow_nor_vanish(emulation):
    torch.manual_seed(0)
    q, k, v = random_qkv(1, 64, 200, 1, torch.float16, spread=30.0)
    k[:, 150:] *= 8  # the greatest scores come late, so that what was summed before must be rescaled
    assert_accurate(emulate(emulation, q, k, v), q, k, v)


@pytest.mark.parametrize("query_tiles", [1, 2])
@pytest.mark.parametrize("dtype", UNIT_ROUNDOFF)
def test_scores_that_exceed_the_reference_late_in_a_row(emulation, dtype, query_tiles):
    """By more than 2^8, again and again, in some rows only; and by less, which moves nothing."""
    torch.manual_seed(0)
    q, k, v = random_qkv(1, 130, 400, 1, dtype, spread=0.5)
    q[:, ::7] = q[:, ::7].abs() * 4
    k = k * torch.linspace(0, 6, 400).square()[:, None, None].to(dtype)
    k[:, 300::31] = k[:, 300::31].abs()
    assert_accurate(emulate(emulation, q, k, v, query_tiles=query_tiles), q, k, v)
    scores = torch.einsum("bnhd,bmhd->bnm", q.double(), k.double()) * 32**-0.5 * 1.4427
    steps = scores.cummax(dim=2).values[..., 31::32].diff(dim=2)
    assert (steps > 8).any(dim=1).sum() >= 4  # of twelve steps
    assert ((steps > 0) & (steps < 8)).any()


def test_a_missing_number_in_one_query_stays_there(emulation):
    q, k, v = random_qkv(1, 80, 80, 1, torch.float16)
    q[0, 5, 0, 7] = torch.nan
    missing = emulate(emulation, q, k, v).isnan().flatten(2).any(dim=2)[0]
    assert missing.nonzero().flatten().tolist() == [5]


# --- that the emulator finds faults ----------------------------------------------------------------------------------

FAULTS = {
    "a load into a slot that other warps still read": [
        ("    load(tile + STAGES - 1);        // into that one's place\n", ""),
        ("    wait_for_copies<STAGES - 3>();", "    load(tile + STAGES - 1);\n    wait_for_copies<STAGES - 2>();"),
    ],
    "a missing barrier": [("    block_barrier();                // everyone's is", "    // everyone's is")],
    "a window off by one": [("(time + a.window + 1) * a.mel", "(time + a.window) * a.mel")],
    "a wrong stride": [("values_loader(v, a.v_strides.token", "values_loader(v, a.k_strides.token")],
    "shared memory that was never written": [
        ("copy_async(piece, from + i * stride, inside);", "if (inside) copy_async(piece, from + i * stride, inside);")
    ],
}


def all_ways(function) -> None:
    """AssertionError if the kernel ``function`` is wrong or breaks a rule anywhere."""
    torch.manual_seed(0)
    q, k, v = random_qkv(1, 321, 321, 1, torch.float16)
    v = torch.cat([v, v], dim=2)[:, :, :1]  # other strides than k's
    for schedule in SCHEDULES:
        for query_tiles, (window, mel) in itertools.product((1, 2), ((-1, 1), (20, 3))):
            result = emulate(function, q, k, v, window, mel, query_tiles, schedule=schedule)
            assert_accurate(result, q, k, v, window, mel)


def test_the_adversarial_emulator_passes_the_kernel(emulation):
    all_ways(emulation)


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_the_adversarial_emulator_catches_a_planted_fault(fault, tmp_path):
    source = KERNEL.read_text()
    for right, wrong in FAULTS[fault]:
        assert source.count(right) == 1
        source = source.replace(right, wrong)
    (tmp_path / KERNEL.name).write_text(source)
    function = compile_emulation(tmp_path / KERNEL.name, tmp_path / "attention.so")
    with pytest.raises(AssertionError, match=r"times the error|isnan|goes outside"):
        all_ways(function)


# --- what the compiler makes of it -----------------------------------------------------------------------------------

needs_nvcc = pytest.mark.skipif(build_kernel.find_nvcc() is None, reason="needs nvcc")
KERNELS = 12  # two formats, with a window and without; 32 or 16 rows a warp, and 16 where rows are not aligned
MOST_IN_LOOP = {72: 420, 36: 260}  # instructions, by products of tensor cores: at 32 and at 16 rows a warp


@pytest.fixture(scope="module", params=["80", "90", "100"])
def compiled(request, tmp_path_factory):
    """Machine code for one architecture, and the assembler's report on it."""
    nvcc = build_kernel.find_nvcc()
    known = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True, check=True).stdout.split()
    if f"sm_{request.param}" not in known:
        pytest.skip(f"this nvcc does not know sm_{request.param}")
    cubin = tmp_path_factory.mktemp("kernel") / "attention.cubin"
    options = f"-arch=sm_{request.param}", "-cubin", "-Xptxas=-v", "-Werror=all-warnings", "-o", str(cubin)
    command = build_kernel.compiler_command(nvcc, Path(torch.__file__).parent, *options)
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    return cubin, made.stderr


@pytest.mark.slow
@needs_nvcc
def test_nothing_is_spilled(compiled):
    report = compiled[1]
    frames = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", report)
    assert len(frames) == KERNELS
    assert set(frames) == {("0", "0", "0")}
    registers = [int(n) for n in re.findall(r"Used (\d+) registers", report)]
    assert max(registers) * 128 * 3 <= 65536  # so that three blocks of 128 threads are on a multiprocessor at once


def instructions_of(kernel: str) -> dict[int, str]:
    """Instructions by address."""
    found = re.findall(r"^\s+/\*([0-9a-f]{4,5})\*/\s+(?:@!?U?P\w+ )?(.*?);", kernel, flags=re.MULTILINE)
    return {int(address, 16): text for address, text in found}


def target_of(instruction: str) -> int | None:
    """Where it branches to."""
    found = re.match(r"BRA(?:\.\w+)* .*?0x([0-9a-f]+)", instruction)
    return int(found[1], 16) if found else None


def loop_of(instructions: dict[int, str]) -> list[str]:
    """The loop over tiles, without what it branches around: masks, and references that move, of few tiles each."""
    ((start, end),) = [(to, at) for at, text in instructions.items() if (to := target_of(text)) is not None and to < at]
    loop, skip_to = [], start
    for at, text in instructions.items():
        if not skip_to <= at <= end:
            continue
        loop.append(text)
        to = target_of(text)
        if to is not None and at < to <= end:
            around = [other for place, other in instructions.items() if at < place < to]
            if not any(other.startswith(("HMMA", "LDSM", "LDG", "STS")) for other in around):
                skip_to = to
    return loop


@pytest.mark.slow
@needs_nvcc
def test_the_loop_is_short_in_tensor_cores_and_without_local_memory(compiled):
    triton = pytest.importorskip("triton", reason="its package carries cuobjdump")
    tool = shutil.which("cuobjdump") or Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    code = subprocess.run([str(tool), "-sass", str(compiled[0])], capture_output=True, text=True, check=True).stdout
    kernels = code.split("Function :")[1:]
    assert len(kernels) == KERNELS
    lengths = []
    for kernel in kernels:
        instructions = instructions_of(kernel)
        names = {re.match(r"\w+", text)[0] for text in instructions.values()}
        assert not {"LDL", "STL"} & names
        loop = loop_of(instructions)
        products = sum(text.startswith("HMMA") for text in loop)  # (8 * 2 for q kᵀ, 4 * 5 for p v) for each 16 queries
        assert products in MOST_IN_LOOP
        assert sum(text.startswith("LDSM") for text in loop) == 16
        if "LDGSTS" in names:  # else element by element, for rows that are not aligned
            lengths.append((products, len(loop)))
    assert len(lengths) == 8
    assert all(length <= MOST_IN_LOOP[products] for products, length in lengths), lengths


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
