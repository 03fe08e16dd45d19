"""What users of diffusers' pipelines do with one beside calling it."""

from dataclasses import dataclass

import torch
from diffusers import StableDiffusionMixin
from diffusers.models.attention_processor import AttnProcessor2_0

from musicldm.kernels.unet_attention import fuse_projections, install, separate_projections


@dataclass
class LastRun:
    """What the run that ended last had at its end; None before there was one."""

    guidance_scale: float | None = None
    num_timesteps: int | None = None


class HabitsMixin(StableDiffusionMixin):
    """For pipelines whose calls run on copies of them, with `last_run` shared among these."""

    last_run: LastRun
    fusing_unet = fusing_vae = False
    _interrupt = False
    _guidance_scale: float | None = None  # of the run in progress, on the call's copy of the pipeline

    def to(self, *args, **kwargs):
        """As in diffusers; ``torch_dtype=``, the former name of ``dtype=``, will do too."""
        if "torch_dtype" in kwargs:
            if "dtype" in kwargs:
                raise ValueError("dtype and torch_dtype are two names of one argument; give one of them")
            kwargs["dtype"] = kwargs.pop("torch_dtype")
        return super().to(*args, **kwargs)

    @property
    def num_timesteps(self) -> int:
        """Of the run in progress, in callbacks; afterwards of the run that ended last."""
        ended = self._guidance_scale is None and self.last_run.num_timesteps
        return ended or len(self.scheduler.timesteps)

    @property
    def guidance_scale(self) -> float:
        """Of the run in progress, in callbacks; afterwards of the run that ended last, 1 before there was one.

        Callbacks may set it, from the next step on: up to 1 ends the guidance.
        """
        if self._guidance_scale is not None:
            return self._guidance_scale
        return 1.0 if self.last_run.guidance_scale is None else self.last_run.guidance_scale

    @guidance_scale.setter
    def guidance_scale(self, value: float) -> None:
        self._guidance_scale = value

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether a run with this `guidance_scale` is guided; for callbacks."""
        return self.guidance_scale > 1.0

    @property
    def interrupt(self) -> bool:
        """Whether the run in progress is to end; for callbacks, which set ``_interrupt``."""
        return self._interrupt

    def enable_vae_slicing(self) -> None:
        """Decode one item of a batch at a time, for less memory."""
        self.vae.enable_slicing()

    def disable_vae_slicing(self) -> None:
        """Undo `enable_vae_slicing`."""
        self.vae.disable_slicing()

    def enable_vae_tiling(self) -> None:
        """Decode in overlapping tiles, for less memory; they are blended, so the music differs a little."""
        self.vae.enable_tiling()

    def disable_vae_tiling(self) -> None:
        """Undo `enable_vae_tiling`."""
        self.vae.disable_tiling()

    def fuse_qkv_projections(self, unet: bool = True, vae: bool = True) -> None:
        """One product in place of those for queries, keys and values; the same music up to rounding."""
        fusing_unet, fusing_vae = self.fusing_unet, self.fusing_vae
        super().fuse_qkv_projections(unet=False, vae=vae)
        self.fusing_unet, self.fusing_vae = fusing_unet or unet, fusing_vae or vae
        if unet:  # diffusers takes attention to the latents themselves for cross-attention, which MusicLDM has none of
            install(self.unet, others=True)
            fuse_projections(self.unet)

    def unfuse_qkv_projections(self, unet: bool = True, vae: bool = True) -> None:
        """Undo `fuse_qkv_projections`."""
        if unet and self.fusing_unet:
            separate_projections(self.unet)
            self.unet.set_attn_processor(AttnProcessor2_0())
            self.fusing_unet = False
        super().unfuse_qkv_projections(unet=False, vae=vae and self.fusing_vae)


def device_of(device_map: str | torch.device | None) -> torch.device | None:
    """Where ``device_map`` puts all parts, as they fit one device: itself, or for "balanced" the accelerator, if any.

    Raises:
        ValueError: for something else, as a dictionary by part.
    """
    if device_map is None:
        return None
    if isinstance(device_map, str) and device_map == "balanced":
        return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    if isinstance(device_map, str | torch.device):
        try:
            return torch.device(device_map)
        except RuntimeError:
            pass
    raise ValueError(f"device_map must be a device such as 'cuda:0' or 'cpu', or 'balanced', got {device_map!r}")
