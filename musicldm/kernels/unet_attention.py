"""Attention in diffusers' UNet by the package's own function, with one product for queries, keys and values.

hidden states (B, N, D)  -> projections ->  q, k, v (B, N, H, d)  -> attention ->  hidden states (B, N, D)
"""

from __future__ import annotations

import inspect
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from musicldm.config.values import check_whole
from musicldm.kernels.dot_product import BACKENDS, attention


class AttentionProcessor:
    """diffusers' attention, computed by `attention`: queries, keys and values as the projections leave them.

    For self-attention without a mask, which is all that MusicLDM's UNet has. ``window`` and ``grid``, in latent frames
    at full resolution, come through the UNet's ``cross_attention_kwargs``; at coarser levels they are divided. So does
    ``circular``, for windows that go on at the other end of time.
    """

    def __init__(self, backend: str = "auto"):
        if backend not in BACKENDS:
            raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
        self.backend = backend

    def __call__(
        self,
        attn,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        window: int | None = None,
        grid: tuple[int, int] | None = None,
        circular: bool = False,
    ) -> Tensor:
        if attention_mask is not None:
            raise ValueError("this attention takes no mask; give the UNet diffusers' AttnProcessor2_0 for that")
        plain = not torch.is_grad_enabled() and not torch.compiler.is_compiling()
        if encoder_hidden_states is None and plain and projections_are_fused(attn):
            projected = attn.to_qkv(hidden_states).chunk(3, dim=-1)
        else:
            context = hidden_states if encoder_hidden_states is None else encoder_hidden_states  # (B, M, H * d)
            projected = attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context)
        q, k, v = (x.unflatten(-1, (attn.heads, -1)) for x in projected)  # (B, N, H, d)
        if window is not None and grid is not None:
            window, grid = at_level(window, grid, q.shape[1])
        result = attention(q, k, v, window=window, grid=grid, circular=circular, backend=self.backend).flatten(2)
        return attn.to_out[1](attn.to_out[0](result))


def at_level(window: int, grid: tuple[int, int], n_tokens: int) -> tuple[int, tuple[int, int]]:
    """Window and grid at the level of the UNet that has ``n_tokens``: halved, rounded up, as convolutions do.

    Raises:
        ValueError: if no level of that grid has so many.
    """
    time, mel = grid
    while time * mel > n_tokens and time * mel > 1:
        time, mel, window = -(-time // 2), -(-mel // 2), -(-window // 2)
    if time * mel != n_tokens:
        raise ValueError(f"latents of {tuple(grid)} have no level of {n_tokens} tokens")
    return window, (time, mel)


def install(unet: torch.nn.Module, *, others: bool = False) -> dict[torch.nn.Module, object]:
    """Let ``unet`` attend through `attention`, wherever diffusers' default processor does plain self-attention.

    ``others`` takes the place of diffusers' older default as well. Returns the processors that were there, by layer.
    """
    from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0

    usual = (AttnProcessor2_0, AttnProcessor) if others else (AttnProcessor2_0,)
    replaced = {}
    for module in unet.modules():
        if isinstance(module, Attention) and type(module.processor) in usual and _is_plain(module):
            replaced[module] = module.processor
            module.set_processor(AttentionProcessor())
    return replaced


@contextmanager
def serving(unet: torch.nn.Module, window: int | None = None, device: str = "cpu") -> Iterator[None]:
    """While inside, ``unet`` attends through `attention` if it runs on a ``device`` of CUDA or there is a ``window``.

    Else, and afterwards, it has the processors that it had, among them diffusers' own, which know slicing, fusing and
    more. Any number of threads may be inside; without a window both give the same numbers.

    Raises:
        ValueError: for a window that is none, or that a processor of the UNet does not know.
    """
    if window is not None:
        check_whole("window", window, least=0)
    if window is None and device != "cuda":
        yield
        return
    with SERVING:
        users, replaced = _served.get(unet, (0, {}))
        _served[unet] = users + 1, replaced | install(unet, others=window is not None)
    try:
        for name, processor in unet.attn_processors.items() if window is not None else ():
            if "window" not in inspect.signature(processor.__call__).parameters:
                raise ValueError(
                    f"the attention processor {type(processor).__name__} of {name} knows no window; leave the window "
                    "out, or give the UNet diffusers' default: unet.set_attn_processor(AttnProcessor2_0())"
                )
        yield
    finally:
        with SERVING:
            users, replaced = _served.pop(unet)
            if users > 1:
                _served[unet] = users - 1, replaced
            for module, processor in replaced.items() if users == 1 else ():
                if type(module.processor) is AttentionProcessor:  # or else somebody has set another meanwhile
                    module.set_processor(processor)


SERVING = threading.Lock()
_served: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()  # by UNet: how many are inside, what was replaced


def _is_plain(attn) -> bool:
    extras = "group_norm", "spatial_norm", "norm_cross", "norm_q", "norm_k", "added_kv_proj_dim", "residual_connection"
    usual_scales = attn.rescale_output_factor == 1 and attn.scale == (attn.inner_dim // attn.heads) ** -0.5
    return usual_scales and not any(getattr(attn, name, None) for name in extras)


def fuse_projections(unet: torch.nn.Module) -> int:
    """One product in place of those for queries, keys and values, where `AttentionProcessor` attends; how many.

    The three stay beside it, as views of its weights: what changes theirs in place changes its.
    """
    count = 0
    for module in unet.modules():
        if type(getattr(module, "processor", None)) is not AttentionProcessor or projections_are_fused(module):
            continue
        parts = module.to_q, module.to_k, module.to_v
        alike = len({(type(part), part.in_features, part.bias is None) for part in parts}) == 1
        if not alike or type(module.to_q) is not torch.nn.Linear:
            continue
        with torch.inference_mode(False), torch.no_grad():
            weight = torch.cat([part.weight for part in parts])
            fused = torch.nn.Linear(*weight.T.shape, bias=module.to_q.bias is not None, device="meta")
            fused.weight = torch.nn.Parameter(weight, requires_grad=False)
            if fused.bias is not None:
                fused.bias = torch.nn.Parameter(torch.cat([part.bias for part in parts]), requires_grad=False)
            for name, whole in fused.named_parameters():
                sizes = [len(getattr(part, name)) for part in parts]
                for part, view in zip(parts, whole.detach().split(sizes), strict=True):
                    getattr(part, name).data = view
        module.to_qkv = fused.train(module.training)
        count += 1
    return count


def projections_are_fused(attn: torch.nn.Module) -> bool:
    """Whether ``attn.to_qkv`` has the very weights of the three projections. Copies, moves and adapters part them."""
    if (fused := getattr(attn, "to_qkv", None)) is None:
        return False
    for name, whole in fused.named_parameters():
        start = whole.data_ptr()
        for part in (attn.to_q, attn.to_k, attn.to_v):
            if type(part) is not torch.nn.Linear or getattr(part, name).data_ptr() != start:
                return False
            start += getattr(part, name).nbytes
    return True


def separate_projections(unet: torch.nn.Module) -> int:
    """Undo `fuse_projections`; how many there were."""
    fused = [module for module in unet.modules() if hasattr(module, "to_qkv")]
    for module in fused:
        del module.to_qkv
    return len(fused)


@contextmanager
def projections_apart(unet: torch.nn.Module) -> Iterator[None]:
    """While inside, ``unet`` has no fused projections, as it is to be saved."""
    were_fused = separate_projections(unet)
    try:
        yield
    finally:
        if were_fused:
            fuse_projections(unet)
