"""Low-rank adapters (LoRA) of the UNet: small files that make a model play like a collection, and go away again.

    UNet --add_adapter--> trained on a collection --save_adapter--> FOLDER/pytorch_lora_weights.safetensors
    pipeline.load_lora_weights(FOLDER), set_adapters, fuse_lora, unload_lora_weights: as in diffusers

Hu et al. (2021), https://arxiv.org/abs/2106.09685. The layers are peft's, the file and the loading diffusers'.
"""

from __future__ import annotations

from pathlib import Path

from diffusers import UNet2DConditionModel
from diffusers.loaders import StableDiffusionLoraLoaderMixin
from torch import Tensor

from musicldm.config import LoraConfig
from musicldm.kernels.dot_product import separate_projections

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
RESIDUAL = ("time_emb_proj", "conv1", "conv2")  # the first is where time and condition enter


class LoraMixin(StableDiffusionLoraLoaderMixin):
    """diffusers' loading, combining, fusing and unloading of adapters, for a pipeline with adapters of the UNet only.

    A call scales them by ``cross_attention_kwargs={"scale": 0.5}``.
    """

    _lora_loadable_modules = ["unet"]  # noqa: RUF012 diffusers reads it from the class

    def load_lora_weights(
        self, path_or_dict: str | Path | dict[str, Tensor], adapter_name: str | None = None, **kwargs
    ):
        """Add the adapter of a folder, a file, a hub name or a state dict; arguments as in diffusers.

        Raises:
            ValueError: it holds no adapter of a UNet, or one for a UNet of other sizes.
        """
        path_or_dict = path_or_dict if isinstance(path_or_dict, dict) else str(path_or_dict)
        layers, alphas, metadata = self.lora_state_dict(
            path_or_dict, unet_config=self.unet.config, return_lora_metadata=True, **kwargs
        )
        if not any(name.startswith("unet.") for name in layers):
            raise ValueError(f"there are no adapters of a UNet in {_shown(path_or_dict)}")
        separate_projections(self.unet)
        try:
            self.load_lora_into_unet(layers, alphas, self.unet, adapter_name, metadata=metadata, _pipeline=self)
        except (RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(
                f"the adapter in {_shown(path_or_dict)} does not fit this UNet ({reason}); load the model that it was "
                "trained on, under an adapter_name that is still free"
            ) from error

    def fuse_lora(self, components: list[str] | None = None, **kwargs) -> None:
        """Add the active adapters into the UNet's weights; arguments as in diffusers."""
        super().fuse_lora(components or ["unet"], **kwargs)

    def unfuse_lora(self, components: list[str] | None = None, **kwargs) -> None:
        """Take them out again."""
        super().unfuse_lora(components or ["unet"], **kwargs)


def _shown(path_or_dict: str | dict) -> str:
    return path_or_dict if isinstance(path_or_dict, str) else "the given tensors"


def add_adapter(unet: UNet2DConditionModel, config: LoraConfig) -> None:
    """Freeze ``unet`` and give it an adapter, which leaves its output as it is at first.

    Raises:
        ImportError: without peft.
    """
    try:
        import peft
    except ImportError as error:
        raise ImportError("adapters need peft: pip install 'musicldm[lora]'") from error
    layers = ATTENTION if config.layers == "attention" else ATTENTION + RESIDUAL
    unet.requires_grad_(False)
    unet.add_adapter(
        peft.LoraConfig(
            r=config.rank, lora_alpha=config.rank, init_lora_weights="gaussian", target_modules=list(layers)
        )
    )


def save_adapter(unet: UNet2DConditionModel, folder: Path) -> None:
    """Write ``FOLDER/pytorch_lora_weights.safetensors`` in diffusers' layout."""
    from peft.utils import get_peft_model_state_dict

    layers = get_peft_model_state_dict(unet)  # under peft's names: diffusers' older ones know attention only
    layers = {name: value.detach().cpu().contiguous() for name, value in layers.items()}
    LoraMixin.save_lora_weights(folder, unet_lora_layers=layers)
