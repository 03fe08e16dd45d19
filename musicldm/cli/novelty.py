"""``musicldm novelty``: an index of a training set, and recordings checked against it."""

from __future__ import annotations

import argparse
from pathlib import Path

from musicldm.audio import read_audio
from musicldm.audio.output import free_name, output_folder
from musicldm.cli.common import each, load_quietly, positive, refuse, report
from musicldm.generate.environment import choose_device


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "Both actions take --json; see `musicldm novelty index --help` and `musicldm novelty check --help`. "
        + parser.epilog
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    index = actions.add_parser("index", help="embed a collection into an index")
    index.add_argument("data", type=Path, metavar="FOLDER", help="recordings, or what `musicldm prepare` made of them")
    index.add_argument("--out", type=Path, required=True, metavar="INDEX", help="folder to write the index to")
    index.add_argument("--batch", type=positive(int), default=16, help="clips embedded at a time")
    index.add_argument("--base-clips", type=positive(int), default=200, help="clips that the base rate is taken from")
    index.add_argument("--split", choices=("train", "validation"), help="only these recordings (default: all)")
    index.add_argument(
        "--windows",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="embed windows of 2 s too, in which short copies are found; takes CLAP up to five times as long",
    )
    index.add_argument("--ray", metavar="ADDRESS", help="embed on a Ray cluster: HOST:PORT of its head, or auto")
    check = actions.add_parser("check", help="compare recordings with an index")
    check.add_argument("recordings", nargs="+", type=Path, metavar="AUDIO", help="WAV, FLAC, Ogg, MP3, ...")
    check.add_argument("--index", type=Path, required=True, help="that `musicldm novelty index` wrote")
    check.add_argument("--nearest", type=positive(int, most=100), default=5, help="how many neighbours to name")
    check.add_argument("--figures", type=Path, metavar="DIR", help="folder for a picture of each match")
    for action in (index, check):
        action.add_argument(
            "--model", default="mini", help="whose CLAP to use: a bundled model, a folder or a hub name"
        )
        action.add_argument("--device", default="auto", help="auto, cpu, cuda, ...")
        action.add_argument("--json", action="store_true", help="JSON on stdout")


def run(args: argparse.Namespace) -> None:
    """Build an index, or print a verdict for each recording."""
    load_quietly()
    device = choose_device(args.device)
    if args.action == "index":
        build(args, device)
    else:
        check_recordings(args, device)


def load_embedder(model: str, device):
    """The CLAP of a bundled model, a folder or a hub name."""
    from musicldm.models.clap_embedder import ClapEmbedder
    from musicldm.models.loading import find_folder
    from musicldm.pipelines.text_to_music import MusicLDMPipeline

    embedder = ClapEmbedder.from_model(find_folder(model, MusicLDMPipeline.download))
    embedder.clap.to(device)
    return embedder


def build(args: argparse.Namespace, device) -> None:
    """The index of a folder, and one line about it."""
    from musicldm.novelty.build import build_index

    embedder = load_embedder(args.model, device)
    chosen = {"split": args.split, "ray": args.ray, "windows": args.windows}
    index = build_index(args.data, args.out, embedder, args.batch, args.base_clips, **chosen)
    about = {key: value for key, value in index.about.items() if key not in ("files", "base_rate")}
    base_rate = {
        key: value for key, value in index.about["base_rate"].items() if key not in ("similarities", "piece_scores")
    }
    rare = "one clip in a hundred" if base_rate["clips"] >= 99 else f"none of {base_rate['clips']} clips tried"
    text = (
        f"{args.out}: {len(index)} clips of {len(index.recordings)} recordings, {about['windows'] or 'no'} windows of "
        f"2 s; {rare} comes nearer than {index.similarity_threshold:.3f} to other pieces"
    )
    report(args.json, {"index": str(args.out), **about, "base_rate": base_rate}, text)


def check_recordings(args: argparse.Namespace, device) -> None:
    """A line for each recording."""
    from musicldm.novelty.check import check, record, save_match_figure
    from musicldm.novelty.index import NoveltyIndex

    index = NoveltyIndex(args.index)
    embedder = load_embedder(args.model, device)
    index.check_embedder(embedder.name)

    def check_file(path: Path) -> None:
        waveform, rate = read_audio(path, embedder.feature_extractor.sampling_rate)
        found, figure = check(waveform, rate, index, embedder, args.nearest), None
        if args.figures:
            with output_folder(args.figures) as folder:
                figure = folder / f"{free_name(folder, f'{path.stem}_match', ('.png',)).name}.png"
                save_match_figure(figure, waveform, rate, found, index)
        told = record(path, found, index) | {"figure": None if figure is None else str(figure)}
        report(args.json, told, verdict_text(told))

    _, bad = each(args.recordings, check_file)
    refuse(bad, len(args.recordings))


def verdict_text(told: dict) -> str:
    """A verdict as one line: what is nearest, and how near other music comes."""
    first, passage, window, usual = told["nearest"][0], told["passage"], told["window"], told["base_rate"]
    text = (
        f"{told['file']}: {told['verdict']}; nearest {first['recording']} at {first['start_s']:.1f} s, similarity "
        f"{told['similarity']:.3f} (1 % of other music: {usual['similarity_99']:.3f}); best passage "
        f"{passage['query_start_s']:.1f} s as {passage['recording']} at {passage['start_s']:.1f} s, score "
        f"{passage['score']:.2f} (a copy above {passage['threshold']:.2f}, by the {told['judgement']['basis']}); "
    )
    if window is None:
        return text + "no windows of 2 s were compared"
    return text + (
        f"nearest window of 2 s {window['query_start_s']:.1f} s as {window['recording']} at "
        f"{window['start_s']:.1f} s, similarity {window['similarity']:.3f} (1 %: {window['threshold']:.3f})"
    )
