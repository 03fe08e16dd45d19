"""A VAE of stereo to begin training with, whose inner layers are those of a trained VAE of mono sound.

    python -m recipes.mini.start_stereo --config configs/stereo/vae.yaml --init mini --out runs/stereo_start

Both have as many rows, frames of the same length and the same widths. The first layer takes the mid's log-mels for
those of mono sound, each of the bands of a row alike; the last gives them to mid and side. What is new, the planes that
mono sound has not and further channels of the latents, begins as in a fresh VAE.
"""

import argparse
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from musicldm.config import VAEConfig, load_config
from musicldm.train.common import model_folder
from musicldm.train.vae import make_vae

FRESH = 0.3  # share of a fresh layer's weights that new channels of the latents begin with


def started(config: VAEConfig, mono: AutoencoderKL) -> AutoencoderKL:
    """A VAE of ``config``'s stereo with the layers of ``mono``. Raises RuntimeError if their inner layers differ."""
    vae, bands = make_vae(config), config.mel.bands_per_row
    weights, old = vae.state_dict(), dict(mono.state_dict())
    for name in ("encoder.conv_in.weight", "decoder.conv_out.weight", "decoder.conv_out.bias"):
        image, value = weights[name].clone(), old[name]  # not 0, where neither end would tell the other what to learn
        if name.startswith("encoder"):
            image[:, :bands] = value / bands  # the mean of mid's bands
        else:
            image[: 2 * bands] = value
        old[name] = image
    before, now = mono.config.latent_channels, config.latent_channels
    means = torch.arange(before)
    both = torch.cat([means, now + means])  # of the posterior: means, then log variances
    places: dict[str, tuple[Tensor, ...]] = {
        "encoder.conv_out": (both,),
        "quant_conv": (both, both),
        "post_quant_conv": (means, means),
        "decoder.conv_in": (torch.arange(weights["decoder.conv_in.weight"].shape[0]), means),
    }
    for layer, where in places.items():
        for part in ("weight", "bias"):
            name = f"{layer}.{part}"
            old[name] = placed(weights[name], old[name], where if part == "weight" else where[:1])
    vae.load_state_dict(old)
    return vae


def placed(fresh: Tensor, old: Tensor, where: tuple[Tensor, ...]) -> Tensor:
    """``fresh`` with ``old`` at the channels ``where`` (of its outputs, and its inputs)."""
    result = fresh.clone()
    if len(where) == 1:
        result[where[0]] = old
    else:
        result[where[0]] *= FRESH  # what new channels add to old ones begins small
        result[where[0][:, None], where[1]] = old
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, default=Path("configs/stereo/vae.yaml"))
    parser.add_argument("--init", default="mini", help="a model of mono sound, or its folder")
    parser.add_argument("--out", type=Path, default=Path("runs/stereo_start"))
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="of the configuration")
    options = parser.parse_args()
    config = load_config(VAEConfig, options.config, options.overrides)
    mono = AutoencoderKL.from_pretrained(model_folder("init", options.init) / "vae").float()
    torch.manual_seed(config.seed)
    started(config, mono).save_pretrained(options.out)


if __name__ == "__main__":
    main()
