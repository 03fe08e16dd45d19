"""One pipeline made of another, of any class: with the same parts, and what belongs to the model."""

from __future__ import annotations

import torch
from diffusers import DiffusionPipeline

from musicldm.config.values import check_kind, shown
from musicldm.models.loading import PARTS

OWN = {"_internal_dict", "vae_scale_factor", "last_run", "_guidance_scale", "_interrupt"}  # of a pipeline or a call
OF_THE_UNET = {"card", "card_sections", "companions", "hub_source", "step_graphs"}  # and what it was trained on


class SharingMixin(DiffusionPipeline):
    """`from_pipe` of a pipeline whose parts are those of `MusicLDMBase`."""

    @classmethod
    def from_pipe(
        cls,
        pipeline: DiffusionPipeline,
        torch_dtype: torch.dtype | None = None,
        dtype: torch.dtype | None = None,
        **parts,
    ):
        """A pipeline of this class with the very parts of ``pipeline``: nothing is copied, cast or moved.

        What was done to the parts, as by `optimize`, adapters or offloading, serves both. The settings of the progress
        bar come along, and with the UNet its card and novelty index. The scheduler is the same object too, until one of
        both is given another.

        Args:
            pipeline: any with such parts, diffusers' own too.
            torch_dtype: that of its UNet, if it is given: diffusers casts to float32 without.
            dtype: another name for it.
            parts: some to use instead, by name; None leaves one out.

        Raises:
            ValueError: for something else than a pipeline, parts that do not fit each other, or another dtype. To cast,
                call ``to`` on one of both, which changes both.
            TypeError: for an argument that is no part.
        """
        check_kind("pipeline", pipeline, DiffusionPipeline, "a pipeline")
        if unknown := sorted(parts.keys() - PARTS.keys()):
            raise TypeError(
                f"from_pipe takes parts by name ({', '.join(PARTS)}), got {shown(unknown)}; the "
                "pipeline's are shared as they are"
            )
        own = {name: getattr(pipeline, name, None) for name in PARTS}
        made = cls(**own | parts)
        wanted, there = dtype or torch_dtype, getattr(made.unet, "dtype", None)
        if wanted is not None and there is not None and wanted != there:
            raise ValueError(f"parts are shared in {there}, got dtype {wanted}; cast them by the pipeline's `to`")
        if name_or_path := pipeline.config.get("_name_or_path"):
            made.register_to_config(_name_or_path=name_or_path)
        if isinstance(pipeline, SharingMixin):
            left = OWN if made.unet is pipeline.unet else OWN | OF_THE_UNET
            kept = vars(pipeline).keys() - PARTS.keys() - left
            made.__dict__.update({name: _of_its_own(vars(pipeline)[name]) for name in kept})
        return made


def _of_its_own(value):
    """Dictionaries are copied, as each pipeline may change its own."""
    return dict(value) if isinstance(value, dict) else value
