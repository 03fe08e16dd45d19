"""What the stereo VAE, and the vocoder if there is one, keep of recordings.

    python -m recipes.mini.round_trip_stereo --vae runs/stereo_vae --data data/stereo/held --pictures runs/pictures

`--vae` and `--vocoder` are folders of runs, of which the newest checkpoint counts, finished or not. Of planes: log-mel
errors of mid and side in nats, and of the balance where a band sounds; in decibels the errors of the side's level
beside the mid's, of the whole and of each third-octave that sounds, and of the left's beside the right's in each
third-octave. With a vocoder, the same of its waveforms' planes, and of the channels' correlation.
"""

import argparse
import json
import math
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from transformers import SpeechT5HifiGan

from musicldm.audio.files import read_audio
from musicldm.config import VAEConfig, VocoderConfig, load_config
from musicldm.train.run_folder import CONFIG_FILE, checkpoints, read_checkpoint
from musicldm.train.vae import AUDIBLE, Autoencoder, balance_error, make_vae, mel_of
from musicldm.train.vocoder import generate, initial_generator
from vocoder import MelConfig, match_mel, pack_rows, spectrogram_planes, unpack_rows, vocode_planes
from vocoder.hifigan import fold_weight_norm
from vocoder.mel import hz_to_mel, mel_to_hz

SECONDS = 10.24


def newest_vae(run: Path) -> tuple[AutoencoderKL, VAEConfig, int]:
    """The VAE of a run, its configuration, and the step that it is from."""
    config, newest = load_config(VAEConfig, run / CONFIG_FILE), checkpoints(run)[-1]
    saved, whole = read_checkpoint(newest), Autoencoder(make_vae(config))
    whole.load_state_dict(saved["parts"]["vae"])
    return whole.vae.eval(), config, saved["step"]


def newest_vocoder(run: Path) -> tuple[SpeechT5HifiGan, int]:
    """The vocoder of a run, and the step that it is from."""
    config, newest = load_config(VocoderConfig, run / CONFIG_FILE), checkpoints(run)[-1]
    config.init = ""
    saved, generator = read_checkpoint(newest), initial_generator(config)
    generator.apply_weight_norm()
    generator.load_state_dict(saved["parts"]["generator"])
    fold_weight_norm(generator)
    return generator.eval(), saved["step"]


def third_octaves(config: MelConfig) -> Tensor:
    """Which third-octave (F,) each band belongs to, from 0."""
    low, high = hz_to_mel(torch.tensor([config.f_min, config.f_max], dtype=torch.float64)).tolist()
    centres = mel_to_hz(torch.linspace(low, high, config.n_mels + 2, dtype=torch.float64))[1:-1]
    octaves = (3 * centres.log2()).round().long()
    return octaves.unique(return_inverse=True)[1]


def levels(planes: Tensor, octaves: Tensor) -> dict[str, Tensor]:
    """Decibels (N,) of ``planes (3, T, F)`` in third-octaves: side beside mid, left beside right, and the sum's."""
    mid, side = (planes[:2].double() * 2).exp()
    both, balance = mid + side, planes[2].double().clamp(-1, 1)
    parts = {"mid": mid, "side": side, "left": both * (1 + balance), "right": both * (1 - balance), "both": both}
    n = int(octaves.max()) + 1
    sums = {name: torch.zeros(n, dtype=torch.float64).index_add(0, octaves, p.sum(dim=0)) for name, p in parts.items()}
    db = {name: 10 * (power + 1e-12).log10() for name, power in sums.items()}
    total = {name: 10 * math.log10(float(power.sum()) + 1e-12) for name, power in sums.items()}
    whole = torch.tensor([total["side"] - total["mid"]])
    return {"side": db["side"] - db["mid"], "left": db["left"] - db["right"], "both": db["both"], "whole": whole}


def compared(true: Tensor, made: Tensor, config: MelConfig) -> dict[str, float]:
    """Errors of planes ``made`` beside ``true`` (3, T, F); see above."""
    octaves = third_octaves(config)
    wanted, found = levels(true, octaves), levels(made, octaves)
    sounds = wanted["both"] > wanted["both"].max() - 20 * AUDIBLE / math.log(10)
    images = (pack_rows(planes[None], config.bands_per_row) for planes in (true, made))
    side, left = ((found[name] - wanted[name]).abs()[sounds] for name in ("side", "left"))
    return {
        "mid": float((made[0] - true[0]).abs().mean()),
        "side": float((made[1] - true[1]).abs().mean()),
        "balance": float(balance_error(*images, config)),
        "side_to_mid_db": float((found["whole"] - wanted["whole"]).abs()),
        "side_to_mid_third_octaves_db": float(side.mean()),
        "left_to_right_third_octaves_db": float(left.mean()),
        "third_octaves_within_1.5_db": float((left < 1.5).double().mean()),
    }


def correlation(waveform: Tensor) -> float:
    """Of both channels of ``waveform (1, 2, L)``."""
    return float(np.corrcoef(waveform[0].double().numpy())[0, 1])


def heard(path: Path, config: MelConfig) -> Tensor:
    """The first `SECONDS` of a recording, (1, 2, L)."""
    waveform = torch.from_numpy(read_audio(path, config.sample_rate, channels=2)[0])
    return waveform[None, :, : round(SECONDS * config.sample_rate)]


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vae", type=Path, required=True, metavar="RUN")
    parser.add_argument("--vocoder", type=Path, metavar="RUN")
    parser.add_argument("--data", type=Path, required=True, help="folder of recordings")
    parser.add_argument("--clips", type=int, default=40, help="of them, evenly spread by name")
    parser.add_argument("--pictures", type=Path, metavar="DIR", help="spectrograms of the first four")
    parser.add_argument("--out", type=Path, metavar="JSON")
    options = parser.parse_args()
    vae, config, step = newest_vae(options.vae)
    generator = newest_vocoder(options.vocoder)[0] if options.vocoder else None
    found = sorted(p for p in options.data.rglob("*") if p.suffix in (".flac", ".ogg", ".wav"))
    paths = [found[k * len(found) // options.clips] for k in range(min(options.clips, len(found)))]
    rows: list[dict[str, float]] = []
    for path in paths:
        waveform = heard(path, config.mel)
        image = mel_of(waveform, config)
        back = vae.decode(vae.encode(image).latent_dist.mode()).sample
        true, made = (unpack_rows(each, config.mel.bands_per_row) for each in (image, back))
        row = compared(true[0], made[0], config.mel)
        if options.pictures and len(rows) < 4:
            draw(true[0], made[0], options.pictures / f"step-{step}-{path.stem[:40]}.png")
        if generator is not None:
            n = waveform.shape[-1]
            make = partial(vocoded, generator, n, config.mel)
            again = vocode_planes(make, made, config.mel)
            planes = spectrogram_planes(again, config.mel)[:, :, : true.shape[2]]
            of_waveform = compared(true[0], planes[0], config.mel)
            of_waveform["correlation"] = abs(correlation(again) - correlation(waveform))
            row |= {f"vocoded_{name}": value for name, value in of_waveform.items()}
        rows.append(row)
    means = {name: round(float(np.mean([row[name] for row in rows])), 4) for name in rows[0]}
    result = {"step": step, "clips": len(rows), "data": str(options.data), **means}
    print(json.dumps(result, indent=1))
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")


def vocoded(generator: SpeechT5HifiGan, n_samples: int, mel: MelConfig, log_mel: Tensor) -> Tensor:
    """Waveforms (N, L) of ``log_mel (N, T, F)``, matched to it as the finished vocoder's are."""
    return match_mel(generate(generator, log_mel, n_samples), log_mel, mel, generator.config.match_passes)


def draw(true: Tensor, made: Tensor, path: Path) -> None:
    """Mid, side and balance of planes (3, T, F): above as they were, below as they came back."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 3, figsize=(15, 7), constrained_layout=True)
    for row, planes, what in ((0, true, "recorded"), (1, made, "round trip")):
        for axis, plane, name in zip(axes[row], planes, ("mid", "side", "balance"), strict=True):
            limits = {"vmin": -1, "vmax": 1, "cmap": "RdBu"} if name == "balance" else {"vmin": -11.5, "vmax": 1}
            axis.imshow(plane.T, origin="lower", aspect="auto", **limits)
            axis.set_title(f"{name}, {what}")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=70)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
