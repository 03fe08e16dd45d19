"""Attention: torch against the definition, the operator, the UNet's processor; on a GPU, the kernel against both."""

import copy
import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0, SlicedAttnProcessor
from hypothesis import given, settings
from hypothesis import strategies as st

from musicldm.kernels import build as build_kernel
from musicldm.kernels import dot_product as module
from musicldm.kernels.dot_product import attention, attention_reference
from musicldm.kernels.unet_attention import (
    AttentionProcessor,
    at_level,
    fuse_projections,
    install,
    separate_projections,
    serving,
)
from tests.helpers.tiny import make_unet

ROOT = Path(__file__).parents[2]


def random_qkv(batch=2, length=60, heads=3, channels=32, dtype=torch.float32, device="cpu"):
    """Views into one projection of queries, keys and values, as a fused layer leaves them."""
    wide = torch.randn(batch, length, 3 * heads * channels, device=device, dtype=torch.float32).to(dtype)
    return [x.unflatten(-1, (heads, channels)) for x in wide.chunk(3, dim=-1)]


@settings(max_examples=30, deadline=None)
@given(
    times=st.integers(1, 400),
    mel=st.integers(1, 8),
    window=st.none() | st.integers(0, 450),
    channels=st.sampled_from([1, 8, 32]),
    seed=st.integers(0, 999),
)
def test_torch_follows_the_definition(times, mel, window, channels, seed):
    torch.manual_seed(seed)
    q, k, v = random_qkv(1, times * mel, 2, channels)
    grid = None if window is None else (times, mel)
    exact = attention(q, k, v, window=window, grid=grid, backend="reference")
    torch.testing.assert_close(attention(q, k, v, window=window, grid=grid).double(), exact, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize(
    ("times", "mel", "window"), [(1, 3, 0), (12, 3, 0), (12, 3, 2), (13, 1, 5), (12, 2, 6), (9, 4, 40)]
)
def test_a_circular_window_is_a_mask_of_distances_round_the_circle(times, mel, window):
    q, k, v = (x.double() for x in random_qkv(2, times * mel, 2, 8))
    time = torch.arange(times * mel) // mel
    ahead = (time[:, None] - time) % times
    near = torch.minimum(ahead, times - ahead) <= window
    heads = (x.transpose(1, 2) for x in (q, k, v))
    expected = torch.nn.functional.scaled_dot_product_attention(*heads, attn_mask=near).transpose(1, 2)
    for backend in ("auto", "reference"):
        made = attention(q, k, v, window=window, grid=(times, mel), circular=True, backend=backend)
        torch.testing.assert_close(made, expected)
    torch.testing.assert_close(attention(q, k, v, circular=True), attention(q, k, v))  # no window, no ends


def test_a_window_reaches_as_far_as_it_says():
    q, k, v = random_qkv(1, 5 * 3, 1)
    changed = v.clone()
    changed[:, 2 * 3 + 1] += 1.0  # at time 2
    for backend in ("torch", "reference"):
        before, after = (attention(q, k, x, window=1, grid=(5, 3), backend=backend) for x in (v, changed))
        differs = (before != after).flatten(2).any(dim=2)[0].unflatten(0, (5, 3)).all(dim=1)
        assert differs.tolist() == [False, True, True, True, False]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"window": -1, "grid": (4, 3)}, "window must be a number of time positions from 0"),
        ({"window": 2}, r"window=2 needs grid=\(time, mel\)"),
        ({"window": 2, "grid": (5, 3)}, r"a grid of \(5, 3\) does not hold 12 queries"),
        ({"backend": "fast"}, "backend must be one of auto, cuda, torch, reference, got 'fast'"),
    ],
)
def test_what_cannot_be_computed_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        attention(*random_qkv(1, 12), **changes)


def test_shapes_that_do_not_fit_are_refused():
    q, k, v = random_qkv(1, 12)
    for wrong in ((q[0], k, v), (q, k[:, :5], v), (q, k[:, :, :2], v[:, :, :2]), (q[:, :0], k, v)):
        with pytest.raises(ValueError, match="attention needs"):
            attention(*wrong)


def test_asking_for_the_kernel_where_it_cannot_run_says_why():
    with pytest.raises(RuntimeError, match="needs q, k and v on one CUDA device, they are on cpu, cpu, cpu"):
        attention(*random_qkv(), backend="cuda")


def test_the_table_is_what_was_measured():
    rows = json.loads((ROOT / "benchmarks" / "results" / "attention.json").read_text())["shapes"]
    measured = {
        (row["batch"], row["tokens"], row["heads"]): round(row["times_faster_than_best"], 2)
        for row in rows
        if row["dtype"] == "float16" and row["window"] is None
    }
    assert measured == module.MEASURED


@pytest.mark.parametrize(
    ("shape", "window", "mel", "faster"),
    [
        ((2, 1024, 8), -1, 1, True),
        ((2, 256, 12), -1, 1, False),
        ((8, 256, 12), -1, 1, True),
        ((2, 4096, 8), -1, 1, True),
        ((1, 2, 3), -1, 1, False),
        ((2, 1024, 8), 20, 8, False),  # the kernel gains most with a window
        ((2, 1024, 8), 127, 8, True),  # which holds everything
    ],
)
def test_where_torch_was_faster_it_serves(monkeypatch, shape, window, mel, faster):
    """A kernel that would run is taken or not; calls of it are seen in its operator."""
    calls = []
    monkeypatch.setattr(module, "kernel_problem", lambda *tensors: None)
    monkeypatch.setattr(torch.ops.musicldm, "attention", lambda q, *rest: calls.append(rest) or q)
    q = torch.empty(*shape, 32, device="meta")
    assert module.torch_is_faster(q, window, mel) == faster
    q = torch.zeros(1, 1, 1, 1).expand(*shape, 32)
    attention(q, q, q, window=None if window < 0 else window, grid=None if window < 0 else (shape[1] // mel, mel))
    assert len(calls) == (not faster)


@pytest.mark.parametrize("dynamic", [False, True])
def test_the_choice_compiles(dynamic):
    chosen = torch.compile(lambda q: q * module.torch_is_faster(q), backend="eager", fullgraph=True, dynamic=dynamic)
    for shape, faster in (((2, 1024, 8), 1), ((2, 64, 20), 0)):
        assert (chosen(torch.ones(*shape, 4)) == faster).all()


@pytest.mark.parametrize("dtype", module.DTYPES)
def test_a_right_kernel_passes_its_check(dtype):
    assert module.fault(torch.ops.musicldm.attention, torch.device("cpu"), dtype) is None


def without_last_key(q, k, v, window, mel, rows):
    kept = slice(None) if window != module.NO_WINDOW else slice(-1)
    return module.attention_torch(q, k[:, kept], v[:, kept], window, mel)


def with_a_narrow_window(q, k, v, window, mel, rows):
    return module.attention_torch(q, k, v, window if window == module.NO_WINDOW else window - 1, mel)


def with_contiguous_strides(q, k, v, window, mel, rows):
    as_if_side_by_side = torch.as_strided(k, k.shape, torch.empty(k.shape).stride())
    return module.attention_torch(q, as_if_side_by_side, v, window, mel)


def without_some_rows(q, k, v, window, mel, rows):
    result = module.attention_torch(q, k, v, window, mel).clone()
    result[:, 256:] = result[:, 256:] if rows == 64 else torch.nan
    return result


@pytest.mark.parametrize(
    ("kernel", "case"),
    [
        (without_last_key, "65 tokens, window -1, 64 rows"),
        (with_contiguous_strides, "65 tokens, window -1, 64 rows"),
        (without_some_rows, "300 tokens, window -1, 128 rows"),
        (with_a_narrow_window, "300 tokens, window 40, 64 rows"),
    ],
)
@pytest.mark.parametrize("dtype", module.DTYPES)
def test_a_wrong_kernel_is_found_out(kernel, case, dtype):
    found = module.fault(kernel, torch.device("cpu"), dtype)
    assert f"{dtype} results are off by" in found
    assert case in found


@pytest.fixture
def wrong_kernel(monkeypatch):
    """A device that has a kernel, which is wrong: all of it on the CPU."""
    fault, calls = module.fault, []

    def planted(kernel, device, dtype):
        calls.append(dtype)
        return fault(without_last_key, torch.device("cpu"), dtype)

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(module, "load_kernel", lambda: None)
    monkeypatch.setattr(module, "_checked", {})
    monkeypatch.setattr(module, "fault", planted)
    return calls


def test_a_wrong_kernel_is_reported_once_and_refused(wrong_kernel, caplog):
    for _ in range(2):
        assert "results are off by" in module.device_problem(0, torch.float16)
    assert wrong_kernel == [torch.float16]
    assert caplog.text.count("the attention kernel is wrong on cuda:0, torch's attention serves") == 1
    assert "torch.bfloat16 results" in module.device_problem(0, torch.bfloat16)


def test_a_kernel_is_not_checked_while_a_graph_is_recorded(wrong_kernel, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert "call it once before capturing" in module.device_problem(0, torch.float16)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    assert "results are off by" in module.device_problem(0, torch.float16)


def test_without_nvcc_the_kernel_is_absent_and_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setattr(build_kernel, "SOURCES", tmp_path)
    assert "there is no nvcc to compile it" in module.load_kernel.__wrapped__()


def test_a_compiler_that_fails_is_reported_and_leaves_nothing(monkeypatch, tmp_path):
    failing_nvcc(monkeypatch, tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "find_library", lambda: None)
    assert "nvcc failed: out of order" in module.load_kernel.__wrapped__()
    assert list((tmp_path / "cache" / "musicldm").iterdir()) == []


def failing_nvcc(monkeypatch, folder):
    """An nvcc in CUDA_HOME that only complains."""
    nvcc = folder / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text("#!/bin/sh\necho out of order\nexit 1\n")
    nvcc.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(folder))


def test_the_library_is_made_anew_for_changed_sources(monkeypatch, tmp_path):
    before = build_kernel.library_name()
    for path in build_kernel.SOURCES.glob("*.[ch]*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(build_kernel, "SOURCES", tmp_path)
    assert build_kernel.library_name() == before
    with (tmp_path / "primitives.cuh").open("a") as file:
        file.write("\n")
    assert build_kernel.library_name() != before


@pytest.mark.parametrize(("window", "mel"), [(-1, 1), (2, 4)])
def test_the_operator_keeps_the_rules_of_operators(window, mel):
    q, k, v = (x.detach().requires_grad_() for x in random_qkv(1, 40, 2, 8))
    torch.library.opcheck(torch.ops.musicldm.attention.default, (q, k, v, window, mel, 0))


def test_gradients_are_those_of_the_definition():
    inputs = [x.detach().double().requires_grad_() for x in random_qkv(1, 24, 2, 4)]
    weights = torch.randn(1, 24, 2, 4, dtype=torch.float64)
    results = torch.ops.musicldm.attention(*inputs, 2, 4), attention_reference(*inputs, 2, 4)
    ours, exact = (torch.autograd.grad((result * weights).sum(), inputs) for result in results)
    torch.testing.assert_close(ours, exact)


def test_the_operator_compiles_into_one_graph_with_its_gradient():
    inputs = [x.detach().requires_grad_() for x in random_qkv(1, 40, 2, 8)]

    def loss(q, k, v):
        return torch.ops.musicldm.attention(2 * q, k, v, 2, 4).square().sum()

    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    ours, plain = (torch.autograd.grad(function(*inputs), inputs) for function in (compiled, loss))
    torch.testing.assert_close(ours, plain)


# --- in the UNet -----------------------------------------------------------------------------------------------------


def run_unet(unet, frames=8, **kwargs):
    torch.manual_seed(0)
    latents, condition = torch.randn(2, 4, frames, 4), torch.randn(2, 24)
    with torch.no_grad():
        return unet(latents, 7, encoder_hidden_states=None, class_labels=condition, **kwargs).sample


def processors(unet) -> set[type]:
    return {type(processor) for processor in unet.attn_processors.values()}


def test_installing_it_changes_nothing():
    torch.manual_seed(0)
    unet = make_unet()
    before = run_unet(unet)
    install(unet)
    assert processors(unet) == {AttentionProcessor}
    torch.testing.assert_close(run_unet(unet), before, atol=0, rtol=0)


def test_it_serves_where_it_is_needed():
    unet = make_unet()
    with serving(unet):  # on a CPU, without a window
        assert processors(unet) == {AttnProcessor2_0}
    with serving(unet, window=2):
        with serving(unet, window=3):
            assert processors(unet) == {AttentionProcessor}
        assert processors(unet) == {AttentionProcessor}
    assert processors(unet) == {AttnProcessor2_0}
    unet.set_default_attn_processor()
    with serving(unet, window=2):
        assert processors(unet) == {AttentionProcessor}
    assert processors(unet) == {AttnProcessor}
    unet.set_attention_slice(1)
    with pytest.raises(ValueError, match=r"SlicedAttnProcessor of down.* knows no window"), serving(unet, 2):
        pass
    assert processors(unet) == {SlicedAttnProcessor}
    with (
        pytest.raises(ValueError, match=r"window must be a whole number of at least 0, got 2\.5"),
        serving(unet, 2.5),
    ):
        pass


def test_other_processors_are_left_alone():
    class Mine(AttnProcessor2_0):
        pass

    unet = make_unet()
    unet.set_attn_processor(Mine())
    install(unet)
    assert {type(processor) for processor in unet.attn_processors.values()} == {Mine}


def in_place(unet, layer):
    with torch.no_grad():
        layer.to_k.weight.mul_(3)


def loaded(unet, layer):
    changed = {name: 2 * value for name, value in unet.state_dict().items() if "to_v" in name}
    unet.load_state_dict(changed, strict=False)


def another(unet, layer):
    layer.to_q.weight = torch.nn.Parameter(2 * layer.to_q.weight.detach())


def converted_and_changed(unet, layer):
    torch.nn.Module.to(unet, torch.float64)
    in_place(unet, layer)
    torch.nn.Module.to(unet, torch.float32)


@pytest.mark.parametrize("change", [in_place, loaded, another, converted_and_changed])
def test_fused_projections_follow_changes_of_their_parts(change):
    torch.manual_seed(0)
    unet = make_unet()
    install(unet)
    n_fused = fuse_projections(unet)
    assert n_fused == len(unet.attn_processors)
    assert fuse_projections(unet) == 0  # as they are still
    before, copied = run_unet(unet), copy.deepcopy(unet)
    for one in (unet, copied):
        layer = next(module for module in one.modules() if hasattr(module, "to_qkv"))
        change(one, layer)
        changed = run_unet(one)
        assert (changed - before).abs().max() > 1e-4
        separate_projections(one)
        torch.testing.assert_close(changed, run_unet(one), atol=1e-6, rtol=1e-6)
        fuse_projections(one)
        torch.testing.assert_close(changed, run_unet(one), atol=1e-6, rtol=1e-6)


def test_gradients_go_to_the_parts_of_fused_projections():
    unet = make_unet()
    install(unet)
    fuse_projections(unet)
    unet(
        torch.randn(2, 4, 8, 4), 7, encoder_hidden_states=None, class_labels=torch.randn(2, 24)
    ).sample.sum().backward()
    assert all(parameter.grad is not None for name, parameter in unet.named_parameters() if "to_v" in name)


def test_a_window_in_the_unet_is_one_at_every_level():
    unet = make_unet()
    install(unet)
    whole = run_unet(unet, frames=9)
    wide = run_unet(unet, frames=9, cross_attention_kwargs={"window": 20, "grid": (9, 4)})
    narrow = run_unet(unet, frames=9, cross_attention_kwargs={"window": 1, "grid": (9, 4)})
    torch.testing.assert_close(wide, whole)
    assert (narrow - whole).abs().max() > 1e-4
    with pytest.raises(ValueError, match=r"latents of \(8, 3\) have no level of 10 tokens"):
        run_unet(unet, frames=9, cross_attention_kwargs={"window": 1, "grid": (8, 3)})


@pytest.mark.parametrize(
    ("tokens", "expected"), [(255 * 16, (9, (255, 16))), (128 * 8, (5, (128, 8))), (64 * 4, (3, (64, 4)))]
)
def test_coarser_levels_have_smaller_windows(tokens, expected):
    assert at_level(9, (255, 16), tokens) == expected


def test_the_pipeline_takes_a_window(tiny_pipeline):
    options = {"num_inference_steps": 2, "seed": 1, "output_type": "latent", "audio_length_in_s": 1.28}
    whole, wide, narrow = (
        tiny_pipeline("solo flute", cross_attention_kwargs=kwargs, **options).audios
        for kwargs in (None, {"window": 99}, {"window": 1})
    )
    torch.testing.assert_close(wide, whole)
    assert (narrow - whole).abs().max() > 1e-4


# --- on a GPU --------------------------------------------------------------------------------------------------------

SHAPES = [(1, None, None), (63, None, None), (64, None, None), (65, None, None), (1000, None, None), (4096, None, None)]
SHAPES += [(1000, 7, (125, 8)), (30_000, 100, (3750, 8))]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("length", "window", "grid"), SHAPES)
def test_cuda_is_as_accurate_as_torch(length, window, grid, dtype):
    torch.manual_seed(length)
    q, k, v = random_qkv(1, length, 8 if length < 10_000 else 2, dtype=dtype, device="cuda")
    options = {"window": window, "grid": grid}
    if length < 10_000:
        exact = attention(q, k, v, backend="reference", **options)
    else:  # the definition's matrix does not fit; torch's pieces are held to it elsewhere
        exact = attention(q.double(), k.double(), v.double(), backend="torch", **options)
    allowed = 2 * (attention(q, k, v, backend="torch", **options) - exact).abs().max() + 1e-5
    assert (attention(q, k, v, backend="cuda", **options) - exact).abs().max() <= allowed
    for rows in (64, 128):
        result = torch.ops.musicldm.attention(q, k, v, -1 if window is None else window, grid[1] if grid else 1, rows)
        assert (result - exact).abs().max() <= allowed


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", module.DTYPES)
def test_cuda_passes_its_own_check(dtype):
    assert module.device_problem(torch.cuda.current_device(), dtype) is None


@pytest.mark.gpu
def test_cuda_compiles_with_the_check_inside(monkeypatch):
    monkeypatch.setattr(module, "_checked", {})
    q, k, v = random_qkv(2, 64, dtype=torch.float16, device="cuda")
    compiled = torch.compile(lambda q, k, v: attention(q, k, v), fullgraph=True)
    torch.testing.assert_close(compiled(q, k, v), attention(q, k, v))


@pytest.mark.gpu
def test_cuda_takes_any_strides():
    torch.manual_seed(0)
    q, k, v = random_qkv(2, 100, dtype=torch.float16, device="cuda")
    expected = attention(*(x.contiguous() for x in (q, k, v)), backend="cuda")
    heads_first = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
    padded = [torch.cat([x, x[..., :1]], dim=-1)[..., :32] for x in (q, k, v)]  # rows of 33: no row starts aligned
    for inputs in ((q, k, v), heads_first, padded):
        assert torch.equal(attention(*inputs, backend="cuda"), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("window", [None, 3])
def test_cuda_gradients(window):
    torch.manual_seed(0)
    inputs = [x.detach().requires_grad_() for x in random_qkv(1, 200, dtype=torch.float16, device="cuda")]
    weights = torch.randn(1, 200, 3, 32, device="cuda")
    options = {"window": window, "grid": (50, 4)}
    exact, other, ours = (
        torch.autograd.grad((attention(*inputs, backend=backend, **options) * weights).sum(), inputs)
        for backend in ("reference", "torch", "cuda")
    )
    for e, o, u in zip(exact, other, ours, strict=True):
        assert (u - e).abs().max() <= 2 * (o - e).abs().max() + 1e-5


@pytest.mark.gpu
def test_cuda_in_a_graph():
    q, k, v = random_qkv(2, 256, dtype=torch.float16, device="cuda")
    attention(q, k, v, backend="cuda")  # loaded, and compiled if need be, before the capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = attention(q, k, v, backend="cuda")
    for _ in range(2):
        for x in (q, k, v):
            x.normal_()
        graph.replay()
        assert torch.equal(result, attention(q, k, v, backend="cuda"))


@pytest.mark.gpu
def test_cuda_operator_keeps_the_rules_of_operators():
    q, k, v = (x.detach().requires_grad_() for x in random_qkv(1, 80, dtype=torch.float16, device="cuda"))
    attention(q, k, v, backend="cuda")
    checks = "test_schema", "test_autograd_registration", "test_faketensor"
    torch.library.opcheck(torch.ops.musicldm.attention.default, (q, k, v, 2, 4, 0), test_utils=checks)


@pytest.mark.gpu
def test_cuda_memory_accesses_are_clean():
    tool = build_kernel.shutil.which("compute-sanitizer")
    if tool is None:
        pytest.skip("needs compute-sanitizer")
    program = (
        "import torch; from musicldm.kernels.dot_product import attention\n"
        "for n in (1, 65, 1000):\n"
        "    q, k, v = (torch.randn(2, n, 3, 32, device='cuda').half() for _ in range(3))\n"
        "    attention(q, k, v, backend='cuda'), attention(q, k, v, window=2, grid=(n, 1), backend='cuda')\n"
        "torch.cuda.synchronize()\n"
    )
    gc.collect()
    command = [tool, "--error-exitcode=9", sys.executable, "-c", program]
    made = subprocess.run(
        command, env=os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}, capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stdout + made.stderr
