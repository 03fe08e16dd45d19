"""What makes a pipeline faster on the device at hand, without another library and without compiling.

CPU: UNet, VAE decoder and vocoder in bfloat16 where the processor multiplies that natively, the VAE's images channels
last, no more threads than processors that may be used. CUDA: UNet and VAE channels last, decoders in the UNet's 16
bits, attention through `musicldm.kernels.attention` for good, fused projections, denoising steps as CUDA graphs.
"""

import logging
import math
import os
from pathlib import Path

import torch

from musicldm.kernels.precision import lower_decoders
from musicldm.kernels.unet_attention import fuse_projections, install
from musicldm.sampling.cuda_graphs import Record, StepGraphs, record_graph

log = logging.getLogger(__name__)

NATIVE_BFLOAT16 = ("avx512_bf16", "amx_bf16")  # names in torch.cpu.get_capabilities()


def optimize(pipeline, bfloat16: bool | None = None):
    """The ``pipeline``, changed in place: call it after moving the pipeline to its device. Logs what it does.

    ``bfloat16`` says whether float32 networks on a CPU become bfloat16: UNet, VAE decoder and vocoder, the latter two
    but for the layers whose rounding is heard (`musicldm.kernels.precision`). None leaves it to the processor. The
    noise prediction is then up to 2 % off. Everything else only changes rounding. One setting is of the whole process:
    on a CPU, torch uses no more threads than there are processors for it (`torch.set_num_threads`).

    Raises:
        ValueError: if bfloat16 is asked for where the UNet is not in float32 on a CPU.
    """
    device, done = pipeline.unet.device, []
    on_cpu = device.type == "cpu"
    if bfloat16 and not (on_cpu and pipeline.unet.dtype in (torch.float32, torch.bfloat16)):
        raise ValueError(
            f"bfloat16=True is for a float32 UNet on a CPU, this one is {pipeline.unet.dtype} on {device}; "
            "load the pipeline with torch_dtype instead"
        )
    if on_cpu and pipeline.unet.dtype == torch.float32 and (computes_bfloat16() if bfloat16 is None else bfloat16):
        torch.nn.Module.to(pipeline.unet, torch.bfloat16)
        done.append("UNet in bfloat16")
        if pipeline.vae.dtype == pipeline.vocoder.dtype == torch.float32:
            lower_decoders(pipeline.vae, pipeline.vocoder, torch.bfloat16)
            done.append("VAE decoder and vocoder in bfloat16 but for the layers whose rounding is heard")
    if device.type in ("cpu", "cuda"):
        pipeline.vae.to(memory_format=torch.channels_last)
        done.append("VAE channels last")
    if device.type == "cuda":
        pipeline.unet.to(memory_format=torch.channels_last)
        done.append("UNet channels last")
        if pipeline.unet.dtype in (torch.float16, torch.bfloat16):
            lower_decoders(pipeline.vae, pipeline.vocoder, pipeline.unet.dtype)
            done.append(f"VAE decoder and vocoder in {pipeline.unet.dtype}")
        prepare_launches(pipeline)
        done.append("projections fused, steps as CUDA graphs")
    if on_cpu and torch.get_num_threads() > (cores := usable_cores()):
        torch.set_num_threads(cores)
        done.append(f"{cores} threads")
    log.info("optimized for %s: %s", device, ", ".join(done) or "nothing to do")
    return pipeline


def prepare_launches(pipeline, record: Record = record_graph) -> None:
    """Fewer kernels, launched together: fused projections, and denoising steps that are recorded on first use."""
    install(pipeline.unet)
    fuse_projections(pipeline.unet)
    if pipeline.step_graphs is None or not pipeline.step_graphs.serves(pipeline.unet):
        pipeline.step_graphs = StepGraphs(record)


def computes_bfloat16() -> bool:
    """Whether the processor has instructions for bfloat16; others emulate it, slowly."""
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return any(capabilities.get(name) for name in NATIVE_BFLOAT16)


def usable_cores(control_groups: Path = Path("/sys/fs/cgroup")) -> int:
    """Processors that this process may use: its affinity, and a container's share, which torch does not know of."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:  # version 2 of control groups, then version 1
        if (limit := control_groups / "cpu.max").is_file():
            quota, period = limit.read_text().split()
        else:
            quota, period = (
                (control_groups / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period")
            )
    except OSError:  # no container, or one without a limit
        return cores
    if quota.strip() in ("max", "-1"):
        return cores
    return max(1, min(cores, math.ceil(int(quota) / int(period))))
