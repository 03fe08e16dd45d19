"""Networks in which time is a circle, so that what they make is a loop.

    latents (B, C, T, F)  -> UNet whose last frame borders on its first ->  noise, v or velocity (B, C, T, F)
    latents (B, C, T/f, F/f)  -> VAE decoder of the same kind ->  image (B, P, T, F)

Attention in these networks knows no positions, norms and interpolation know no ends: only convolutions do, which see
zeros before the first frame and after the last. Here they see the other end. For T of whole strides (2 to the number of
the UNet's downsamplings) what they make of a rotated input is rotated by as much; every other T is closed as well.

A circular network is a view of the plain one: its layers are the plain one's own, and nothing of them is changed, so
that calls of both may run at the same time. It serves for one call: what is done to the plain network afterwards, such
as adding adapters, may not be seen.
"""

from __future__ import annotations

import copy
import inspect
from typing import TypeVar

from accelerate.hooks import AlignDevicesHook
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from musicldm.kernels.tiled_decoding import around

NetworkT = TypeVar("NetworkT", bound=nn.Module)

OF_THE_ORIGINAL = ("forward", "_old_forward", "_hf_hook", "_compiled_call_impl")  # bound to it, where a module has them


class CircularConvolution(nn.Module):
    """A 2-d convolution (B, C, T, F) -> (B, C', T / stride, F') in which time is a circle and bands have ends.

    ``layer`` is called with the neighbours of both ends beside them, and what it makes of these is left out: it may be
    a convolution with adapters or with hooks, and no number of it is touched.
    """

    def __init__(self, layer: nn.Module, convolution: nn.Conv2d):
        super().__init__()
        self.layer = layer
        self.stride, before = convolution.stride[0], _padding(convolution)
        after = max(0, convolution.dilation[0] * (convolution.kernel_size[0] - 1) - before)
        self.reach = -(-max(before, after) // self.stride) * self.stride  # whole strides keep the phase

    def forward(self, x: Tensor, *arguments, **options) -> Tensor:
        frames, first = -(-x.shape[2] // self.stride), self.reach // self.stride
        return self.layer(around(x, self.reach), *arguments, **options)[:, :, first : first + frames]


def circular_unet(unet: NetworkT) -> NetworkT:
    """A view of ``unet`` in which time is a circle; also windows of attention then go round it.

    Raises:
        ValueError: for layers that cannot be made circular, or weights that are brought to the device in groups.
    """
    unet = getattr(unet, "_orig_mod", unet)  # of torch.compile
    _bring(unet)
    view = _circular(unet)
    forward = view.forward

    def run(*arguments, cross_attention_kwargs: dict | None = None, **options):
        if (cross_attention_kwargs or {}).get("window") is not None:
            _check_processors(view)
            cross_attention_kwargs = cross_attention_kwargs | {"circular": True}
        return forward(*arguments, cross_attention_kwargs=cross_attention_kwargs, **options)

    view.forward = run
    return view


def circular_decoder(vae: AutoencoderKL) -> AutoencoderKL:
    """A view of ``vae`` whose ``decode`` takes time for a circle, always at once; errors as of `circular_unet`.

    `musicldm.kernels.tiled_decoding.decode` does the same in pieces.
    """
    _bring(vae)
    view = _with_children(vae, dict(vae._modules) | {"decoder": _circular(vae.decoder)})
    view.use_tiling = False  # blended tiles have ends
    return view


def _bring(network: nn.Module) -> None:
    """Bring the weights of an offloaded ``network`` as a call of it would, where its layers do not by themselves."""
    hook = getattr(network, "_hf_hook", None)
    if hook is not None and not isinstance(hook, AlignDevicesHook):
        hook.pre_forward(network)


def _circular(module: nn.Module) -> nn.Module:
    """``module`` itself if nothing in it knows ends, else a view of it."""
    convolution = module
    while hasattr(convolution, "base_layer"):  # of adapters
        convolution = convolution.base_layer
    if isinstance(convolution, nn.Conv2d):
        return module if convolution.kernel_size[0] == 1 else CircularConvolution(module, convolution)
    if isinstance(convolution, _ConvNd):
        raise ValueError(f"loop=True knows no way round a {type(convolution).__name__}; take a UNet and VAE of Conv2d")
    children = {name: child if child is None else _circular(child) for name, child in module._modules.items()}
    if all(child is module._modules[name] for name, child in children.items()):
        return module
    return _with_children(module, children)


def _with_children(module: NetworkT, children: dict[str, nn.Module | None]) -> NetworkT:
    """A view of ``module``, which shares its attributes, parameters and buffers, with other ``children``."""
    if hasattr(module, "_diffusers_hook"):
        raise ValueError("loop=True does not go with group offloading; use enable_model_cpu_offload instead")
    view = copy.copy(module)
    attributes = vars(view)
    for name in OF_THE_ORIGINAL:
        attributes.pop(name, None)
    attributes["_modules"] = children
    return view


def _padding(convolution: nn.Conv2d) -> int:
    """Frames before the first that ``convolution`` takes for zeros; ValueError if it leaves padding to its caller."""
    padding = convolution.padding
    if padding == "same":
        return convolution.dilation[0] * (convolution.kernel_size[0] - 1) // 2
    if padding in ("valid", (0, 0)) or isinstance(padding, str) or not padding[0]:
        raise ValueError(f"loop=True needs convolutions that pad by themselves, got one of padding {padding!r}")
    return padding[0]


def _check_processors(unet: nn.Module) -> None:
    for name, processor in unet.attn_processors.items():
        if "circular" not in inspect.signature(processor.__call__).parameters:
            raise ValueError(
                f"the attention processor {type(processor).__name__} of {name} knows no window that goes round a loop; "
                "leave the window or loop=True out"
            )
