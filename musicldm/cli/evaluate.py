"""``musicldm evaluate``: how good, how faithful and how new a model's music is, in numbers and to listen to."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from musicldm.audio.output import output_folder
from musicldm.cli.common import add_adapter_arguments, load_quietly, positive, report, seed_type, share
from musicldm.sampling.schedulers import GUIDANCE, GUIDANCE_INTERVAL, SAMPLER, STEPS

GENERATING = ("seed", "seconds", "steps", "guidance", "guidance_interval", "batch")
EVALUATING = ("reference", "index", "probe", "cache", "most")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="mini", help="a bundled model, a folder, or owner/name on the hub")
    add_adapter_arguments(parser)
    parser.add_argument("--prompts", type=Path, metavar="SOURCE", help="a text file, or an audio folder with captions")
    parser.add_argument("--audio", type=Path, metavar="FOLDER", help="judge these recordings; nothing is generated")
    parser.add_argument("--reference", type=Path, metavar="FOLDER", help="real music, for distances")
    parser.add_argument("--index", type=Path, metavar="INDEX", help="that `musicldm novelty index` wrote")
    parser.add_argument("--probe", type=Path, metavar="FOLDER", help="solo renderings that teach an instrument probe")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="keeps what other evaluations need again")
    parser.add_argument("--out", type=Path, metavar="DIR", help="for audio and report; a stopped run continues")
    parser.add_argument("--compare", nargs=2, type=Path, metavar="JSON", help="what differs in two metrics.json")
    parser.add_argument("--card", type=Path, metavar="JSON", help="put this metrics.json into the card of --model")
    parser.add_argument("--most", type=positive(int), metavar="N", help="use only the first N prompts and recordings")
    parser.add_argument("--seed", type=seed_type, help="of the first clip, 0 by default; clip i has seed + i")
    parser.add_argument("--seconds", type=positive(float), help="of each clip (default: as the model was trained)")
    parser.add_argument("--steps", type=positive(int), help=f"of the sampler {SAMPLER} (default: {STEPS})")
    parser.add_argument("--guidance", type=float, help=f"how strongly to follow the prompt (default: {GUIDANCE})")
    parser.add_argument(
        "--guidance-interval",
        type=share,
        nargs=2,
        metavar=("LEAST", "MOST"),
        help=f"noise at which (default: {' '.join(map(str, GUIDANCE_INTERVAL))})",
    )
    parser.add_argument("--batch", type=positive(int), help="clips generated at a time (default: 4)")
    parser.add_argument("--no-tempo", action="store_true", help="leave beat tracking out, the slowest measure")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ...")
    parser.add_argument("--json", action="store_true", help="the measures as JSON on stdout")


def run(args: argparse.Namespace) -> None:
    """Write metrics.json, report.html and report.md, or print a comparison, or write a model's card."""
    if args.compare:
        refuse(args, "--compare", ("card", "prompts", "audio", "out", *EVALUATING, *GENERATING))
        print_comparison(args)
        return
    if args.card:
        refuse(args, "--card", ("prompts", "audio", "out", *EVALUATING, *GENERATING))
        from musicldm.evaluate.card import write_card

        card = write_card(Path(args.model), args.card)
        report(args.json, {"card": str(card)}, str(card))
        return
    if args.audio:
        refuse(args, "--audio, which generates nothing,", GENERATING)
    if args.out is None or (args.prompts is None) == (args.audio is None):
        raise ValueError("give --out and either --prompts or --audio; or two files with --compare")
    with output_folder(args.out):
        evaluate(args)


def refuse(args: argparse.Namespace, what: str, others: tuple[str, ...]) -> None:
    """ValueError if one of the options ``others`` was given beside ``what``, which does not use it."""
    if given := [name for name in others if getattr(args, name) is not None]:
        raise ValueError(f"{what} does not use --{given[0].replace('_', '-')}; leave it out")


def print_comparison(args: argparse.Namespace) -> None:
    """One line for each measure that both evaluations have."""
    from musicldm.evaluate.card import read_metrics
    from musicldm.evaluate.compare import compare, incomparable

    sides = [read_metrics(path) for path in args.compare]
    for name, row in compare(*sides).items():
        word = "LARGER THAN CHANCE" if row["larger_than_chance"] else "within chance"
        text = (
            f"{name}: {row['a']:.4g} -> {row['b']:.4g}, difference {row['value']:+.4g} "
            f"({row['low']:+.4g} to {row['high']:+.4g}), p = {row['probability']:.3g}: {word}"
        )
        report(args.json, {"measure": name, **row}, text)
    for name, why in incomparable(*sides).items():
        print(f"musicldm: {name} is left out: the two were measured with {why}", file=sys.stderr)


def evaluate(args: argparse.Namespace) -> None:
    """The evaluation, and its table on stdout."""
    from musicldm.evaluate.collect import captioned_clips, read_prompts
    from musicldm.evaluate.report import markdown
    from musicldm.evaluate.run import EvaluationConfig, Judges, run_evaluation
    from musicldm.generate.recipe import Settings
    from musicldm.generate.session import Session

    pairs = prompts = None
    if args.prompts is not None and args.prompts.is_dir():
        pairs = captioned_clips(args.prompts, args.most)
        prompts = [clip.prompt for clip in pairs]
    elif args.prompts is not None:
        prompts = read_prompts(args.prompts, args.most)
    config = EvaluationConfig(
        prompts,
        args.audio,
        pairs,
        args.most,
        settings=Settings(**given(args, "seconds", "steps", "guidance", "guidance_interval", "lora", "concept")),
        judges=Judges(args.reference, args.index, args.probe, args.cache, tempo=not args.no_tempo),
        **given(args, "seed", batch="batch_size"),
    )
    load_quietly()
    made = run_evaluation(Session(args.model, args.device, fast=False), args.out, config)
    shown = {name: made[name] for name in ("metrics", "notes")}
    report(args.json, {"out": str(args.out), **shown}, markdown(made).rstrip())


def given(args: argparse.Namespace, *names: str, **renamed: str) -> dict:
    """Those of the options ``names`` that were given; of ``renamed`` under their new names."""
    found = {new: getattr(args, name) for name, new in {**dict(zip(names, names, strict=True)), **renamed}.items()}
    return {name: value for name, value in found.items() if value is not None}
