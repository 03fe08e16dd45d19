"""``musicldm reconstruct``: recordings through the vocoder and the autoencoder, and what is lost on the way."""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import mean

from musicldm.audio import FORMATS, read_audio, write_audio
from musicldm.audio.figures import save_comparison
from musicldm.audio.marks import CHANGED
from musicldm.audio.output import free_name, output_folder
from musicldm.cli.common import each, load_quietly, refuse, report
from musicldm.generate.environment import DTYPES, choose_device, choose_dtype


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description += (
        " The log-mel error is the mean absolute difference of the two log-mel spectrograms, in the natural logarithm,"
        " over all frames and bands: 0.1 is about 10 percent of the magnitude."
    )
    parser.add_argument("recordings", nargs="+", type=Path, metavar="AUDIO", help="WAV, FLAC, Ogg, MP3, ...")
    parser.add_argument("--mel-only", action="store_true", help="leave the autoencoder out: the vocoder alone")
    parser.add_argument("--model", default="mini", help="a bundled model, a folder, or owner/name on the hub")
    parser.add_argument(
        "--vae", type=Path, metavar="DIR", help="another autoencoder than the model's, as `train vae` leaves it"
    )
    parser.add_argument("--vocoder", type=Path, metavar="DIR", help="another vocoder, as `train vocoder` leaves it")
    parser.add_argument("--out", type=Path, default=Path("."), metavar="DIR", help="folder for the results")
    parser.add_argument("--format", choices=FORMATS, default="wav")
    parser.add_argument("--device", default="auto", help="auto (the fastest there is), cpu, cuda, cuda:1, mps, ...")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="number format")
    parser.add_argument("--no-figure", action="store_true", help="no picture beside the audio")
    parser.add_argument("--json", action="store_true", help="one JSON object for each file on stdout")
    parser.set_defaults(several="recordings")


def run(args: argparse.Namespace) -> None:
    """Write ``NAME_reconstructed.wav`` and its picture for each recording, and print the errors."""
    with output_folder(args.out):
        vae, vocoder = load(args)
        errors, bad = each(args.recordings, lambda path: reconstruct_file(path, vae, vocoder, args))
    if len(errors) > 1 and not args.json:
        print(f"mean of {len(errors)} recordings: log-mel error {mean(errors):.4f}")
    refuse(bad, len(args.recordings))


def load(args: argparse.Namespace):
    """The autoencoder (None with --mel-only) and the vocoder."""
    from diffusers import AutoencoderKL
    from transformers import SpeechT5HifiGan

    from musicldm.models.loading import find_folder, load_part
    from musicldm.pipelines.text_to_music import MusicLDMPipeline

    device = choose_device(args.device)
    dtype = choose_dtype(args.dtype, device)

    def part(name: str, cls: type, folder: Path | None):
        at = find_folder(args.model, MusicLDMPipeline.download) / name if folder is None else folder.absolute()
        load_quietly()
        return load_part(at.parent, at.name, cls, dtype).to(device)

    vae = None if args.mel_only else part("vae", AutoencoderKL, args.vae)
    return vae, part("vocoder", SpeechT5HifiGan, args.vocoder)


def reconstruct_file(path: Path, vae, vocoder, args: argparse.Namespace) -> float:
    """Write what comes back of ``path``; returns its log-mel error."""
    from musicldm.generate.reconstruct import reconstruct
    from vocoder import mel_config

    original, rate = read_audio(path, vocoder.config.sampling_rate, mel_config(vocoder).audio_channels)
    try:
        result = reconstruct(original, vae, vocoder)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    stem = free_name(args.out, f"{path.stem}_reconstructed", (*(f".{kind}" for kind in FORMATS), ".png"))
    audio, figure = (stem.with_name(f"{stem.name}.{suffix}") for suffix in (args.format, "png"))
    about = {"source": path.name, "model": args.model, "mel_only": args.mel_only, "log_mel_error": result.log_mel_error}
    recipe = {"generated_by": "AI (musicldm reconstruct)", **about}
    write_audio(audio, result.waveform.T, rate, recipe, CHANGED)
    if not args.no_figure:
        pair = {"original": original, "reconstruction": result.waveform}
        save_comparison(figure, pair, rate, title=f"{path.name}: log-mel error {result.log_mel_error:.3f}")
    record = {
        "file": str(path),
        "audio": str(audio),
        "figure": None if args.no_figure else str(figure),
        "seconds": original.shape[-1] / rate,
        "log_mel_error": result.log_mel_error,
        "vae_error": result.vae_error,
    }
    alone = "" if result.vae_error is None else f" (autoencoder alone {result.vae_error:.4f})"
    report(args.json, record, f"{path}: log-mel error {result.log_mel_error:.4f}{alone}, {audio}")
    return result.log_mel_error
