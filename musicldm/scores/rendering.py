"""Scores to audio with captions: varied renderings through a General MIDI SoundFont.

    MIDI files -> Score -> a changed Score per variant -> windows -> FluidSynth -> FLAC clips + metadata.jsonl

The output is an audio folder (see `render_folder`): ``OUT/metadata.jsonl`` has ``file_name``, ``text`` and what is true
of each clip. A run that was stopped continues where it was. A score that cannot be rendered costs itself only.
"""

import hashlib
import importlib.util
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from musicldm.audio.output import check_mark, full_disk_named, sole_writer
from musicldm.audio.workers import Crash, Workers
from musicldm.scores.arranging import can_play, draw_rendering
from musicldm.scores.beats import clip_score, known_beats
from musicldm.scores.captions import write_captions
from musicldm.scores.facts import Facts, describe, score_facts
from musicldm.scores.index import Index, plain_path, read_index
from musicldm.scores.limits import limited
from musicldm.scores.mastering import LOOK_AHEAD_S, limit, master_gain
from musicldm.scores.reading import Change, Score, change_score, midi_file, read_score
from musicldm.scores.render_config import RenderConfig, orchestrations
from musicldm.scores.render_folder import MARK, WRITES, RenderFolder, fingerprint, font_identity, printable, slug
from musicldm.scores.splits import drawn_split
from musicldm.scores.staging import draw_stage, pan_score
from musicldm.scores.synthesis import Effects, check_backend, check_soundfont, find_soundfont, synthesize
from musicldm.scores.windows import choose_windows, heard, sounds

SUFFIXES = (".mid", ".midi")
LEAST_LIMIT_S = 30.0  # for what is done to a score beside synthesis
PREROLL_S = 1.5  # heard by the reverb, not by the listener
ADDED = (
    "pan_share",
    "loudness_range",
    "contexts",
)  # settings that folders of earlier versions do not, and need not, name

# What a damaged or absurd score can end in. Errors of files are not among them: they are of the disk.
FAULTS = (ValueError, ArithmeticError, LookupError, TypeError, MemoryError)

__all__ = ["RenderConfig", "RenderReport", "find_soundfont", "orchestrations", "render_scores"]


class RenderReport(NamedTuple):
    """What a run did."""

    written: int  # clips made by this run
    skipped: int  # clips that were already there
    failed: int  # scores of this run that could not be rendered, see errors.jsonl
    scores: int
    audio_s: float  # of the clips made by this run
    seconds: float  # wall time
    changed: int = 0  # scores that had changed since an earlier run and were rendered anew


def render_scores(
    scores: Sequence[Path],
    out: Path,
    config: RenderConfig,
    *,
    index: Path | None = None,
    workers: int = 1,
    isolated: bool = False,
) -> RenderReport:
    """Render ``scores`` (MIDI files, or folders of them) into the audio folder ``out``.

    ``index`` is a table of facts by path. The same config and scores give the same folder, with any number of workers
    and however often the run was stopped. One worker is this process, unless ``isolated``: a score that ends its
    process then costs itself only, as with several workers.

    Raises:
        ValueError, OSError, ImportError: before anything is written, for what is given; OSError later when the disk is
            full.
    """
    began = time.monotonic()
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    table = read_index(index) if index else Index({}, [])
    names = table.by_name()
    found = find_scores([Path(p) for p in scores], names)
    if index and (alone := [name for name in found if name not in names.values()]):
        warnings.warn(f"{len(alone)} of {len(found)} scores have no row in {index}: {alone[0]}, ...", stacklevel=2)
    fonts = [Path(p) for p in config.soundfonts] or [find_soundfont()]
    for font in fonts:
        check_soundfont(font)
    check_backend(config.backend)
    if config.loudness_range and importlib.util.find_spec("pyloudnorm") is None:
        raise ImportError("loudness_range needs pyloudnorm: run `pip install 'musicldm[render]'`")
    settings = asdict(config) | {"soundfonts": [font_identity(font) for font in fonts]}
    of_default = asdict(RenderConfig())
    for name in ("timeout_s", *(name for name in ADDED if settings[name] == of_default[name])):
        del settings[name]
    folder = RenderFolder(Path(out))
    check_mark(folder.path, MARK, WRITES, "render")
    faults = dict(table.faults)
    jobs = [_Job(name, path, table.rows.get(name), faults.get(name)) for name, path in found.items()]
    written, audio_s, changed = 0, 0.0, 0
    with full_disk_named(folder.path), sole_writer(folder.path, "render"):
        folder.begin(settings)
        done = [folder.finished(job.name, job.path, job.row) for job in jobs]
        waiting = [job for job, rows in zip(jobs, done, strict=True) if rows is None]
        try:
            for result in _run(waiting, folder, config, fonts, workers if workers > 1 or isolated else 0):
                changed += result["changed"]
                written += len(result["rows"])
                audio_s += sum(row["duration_s"] for row in result["rows"])
        finally:
            errors = folder.assemble([fault for fault in table.faults if not fault[0]])
    skipped = sum(len(rows) for rows in done if rows is not None)
    failed = len({*found} & {*errors})
    return RenderReport(written, skipped, failed, len(found), audio_s, time.monotonic() - began, changed)


def find_scores(paths: Sequence[Path], names: Mapping[str, str] = MappingProxyType({})) -> dict[str, Path]:
    """Names of scores and where they are: as in ``names``, else relative to the folder that was given.

    ``names`` are those of an index by their plain spelling (`Index.by_name`).
    """
    found: dict[str, Path] = {}
    for path in paths:
        if path.is_dir():
            # Macs leave ._song.mid beside song.mid on other systems' disks, which holds no music.
            files = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.name[:2] != "._")
            if not (files := [p for p in files if p.is_file()]):
                raise FileNotFoundError(f"the folder {path} holds no *.mid or *.midi files")
        elif path.is_file():
            files = [path]
        elif path.exists():
            raise FileNotFoundError(f"{path} is neither a file nor a folder (a pipe?); save the score as a file")
        else:
            raise FileNotFoundError(f"there is no score or folder {path}")
        for file in files:
            parts = file.resolve().parts
            tails = (plain_path(printable("/".join(parts[i:]))) for i in range(1, len(parts)))
            local = file.relative_to(path).as_posix() if file != path else file.name
            name = next((names[tail] for tail in tails if tail in names), printable(local))
            if found.setdefault(name, file) != file:
                raise ValueError(f"{found[name]} and {file} would both be called {name}; give their common folder")
    return dict(sorted(found.items()))


class _Job(NamedTuple):
    """A score to render."""

    name: str
    path: Path
    row: dict[str, str] | None  # of the index
    fault: str | None  # of that row


def _run(waiting: list[_Job], folder: RenderFolder, config: RenderConfig, fonts: list[Path], processes: int):
    """Render every waiting score in ``processes``, or for 0 in this one; yields what became of each."""
    render = partial(_render_score, folder, config, fonts)
    with tqdm(total=len(waiting), unit="score", desc="render", disable=not waiting) as bar:
        if not processes:
            for job in waiting:
                yield render(job)
                bar.update()
            return
        # The longest scores first, so that no worker is left with one at the end.
        waiting = sorted(waiting, key=lambda job: -job.path.stat().st_size if job.path.exists() else 0)
        with Workers(render, min(processes, len(waiting))) as pool:
            for place, result in pool.map(waiting):
                if isinstance(result, Crash):
                    result = _refuse(folder, waiting[place], result.reason.replace("read", "rendered"))
                yield result
                bar.update()


def _refuse(folder: RenderFolder, job: _Job, error: str) -> dict:
    """What is kept of a score that ended its process."""
    changed = folder.clear(job.name)
    result = {"score": job.name, "rows": [], "error": f"{job.path}: it {error}"}
    folder.keep(result)
    return result | {"changed": changed}


def _render_score(folder: RenderFolder, config: RenderConfig, fonts: list[Path], job: _Job) -> dict:
    """All clips of one score, and what is kept of it. Faults of the score end in its ``error``."""
    rows, error, source = [], None, None
    changed = folder.clear(job.name)
    try:
        if job.fault:
            raise ValueError(job.fault)
        source = fingerprint(job.path, job.row)
        limit_s = max(config.timeout_s, LEAST_LIMIT_S)
        with limited(limit_s, f"reading {job.path}"):
            score = read_score(job.path)
            facts = score_facts(job.name, score, job.row)
        for variant in range(config.variants):
            with limited(limit_s, f"working on {job.path}, synthesis apart,"):
                rows += _render_variant(job.name, score, facts, variant, folder, config, fonts)
        if not rows:
            raise ValueError(f"{job.path} has no stretch of music of {config.min_clip_s} s without a long silence")
    except FAULTS as fault:
        error = printable(str(fault) if type(fault) is ValueError else f"{job.path}: {type(fault).__name__} {fault}")
    result = {"score": job.name, "rows": rows, "error": error, "source": source}
    folder.keep(result)
    return result | {"changed": changed}


def _rng(config: RenderConfig, name: str, variant: int, purpose: str = "") -> np.random.Generator:
    digest = hashlib.sha256(f"{config.seed}|{name}|{variant}{purpose}".encode()).digest()
    return np.random.default_rng(np.frombuffer(digest, np.uint32))


class _Variant(NamedTuple):
    """One rendering of a score, drawn."""

    name: str
    target: str  # "original", or the family that it is re-scored for
    change: Change
    score: Score  # changed
    font: Path
    effects: Effects
    labels: dict  # of every row


def _draw_variant(
    name: str, score: Score, variant: int, config: RenderConfig, fonts: list[Path], rng: np.random.Generator
) -> _Variant:
    choices = [target for target in orchestrations(config.orchestrate) if can_play(score, target)]
    if not choices:
        raise ValueError(f"{name} has no notes for {config.orchestrate}")
    target = _turn(choices, variant, _rng(config, name, -1))
    drawn = draw_rendering(score, target, rng, config)
    font = fonts[int(rng.integers(len(fonts)))]
    changed, effects, panned = change_score(score, drawn.change), drawn.effects, {}
    stage_rng = _rng(config, name, variant, "|stage")
    if config.pan_share and stage_rng.random() < config.pan_share:
        stage = draw_stage(changed, effects, stage_rng)
        changed, effects, panned = pan_score(changed, stage.pans), stage.effects, {"pan_spread": round(stage.spread, 3)}
    labels = {
        "sample_rate": config.sample_rate,
        "soundfont": printable(font.name),
        "orchestration": target,
        "tempo_factor": round(drawn.change.tempo_factor, 4),
        "transpose_semitones": drawn.change.transpose,
    }
    return _Variant(name, target, drawn.change, changed, font, effects, labels | panned)


def _render_variant(
    name, score: Score, facts: Facts, variant: int, folder: RenderFolder, config: RenderConfig, fonts: list[Path]
) -> list[dict]:
    rng = _rng(config, name, variant)
    drawn = _draw_variant(name, score, variant, config, fonts, rng)
    windows = choose_windows(drawn.score, config.clip_s, config.max_clips, config.min_clip_s, config.max_silence_s, rng)
    wanted = config.max_clips if config.clip_s is not None else 1
    rows: list[dict] = []
    while windows and len(rows) < wanted:
        batch, windows = sorted(windows[: wanted - len(rows)]), windows[wanted - len(rows) :]
        for window, audio in zip(batch, _play(drawn, batch, config), strict=True):
            stretches = [(0, len(audio))]
            if config.clip_s is None:
                stretches = heard(audio, config.sample_rate, config.max_silence_s)
                audio = np.concatenate([audio[:0], *(audio[a:b] for a, b in stretches)])
            if not sounds(audio, config.sample_rate, config.min_sound, config.max_silence_s):
                continue
            stem = f"audio/{slug(name)}-v{variant:02d}-c{len(rows):02d}"
            audio, gain = _at_level(audio, rng, config)
            folder.write_clip(f"{stem}.flac", audio, config.sample_rate)
            attributes = describe(
                facts,
                drawn.score,
                *window,
                tempo_factor=drawn.change.tempo_factor,
                transpose=drawn.change.transpose,
                rescored=None if drawn.target == "original" else drawn.target,
            )
            attributes["drums_left_out"] = drawn.target == "original" and drawn.change.parts is not None
            texts = write_captions(attributes, rng, config.captions)
            seconds = len(audio) / config.sample_rate
            row = {"file_name": f"{stem}.flac", "text": texts[0], "texts": texts} | attributes | facts.labels()
            row |= {"score": name, "split": drawn_split(facts.piece_id, config.validation_share)}
            row |= {"start_s": round(window[0], 3), "duration_s": seconds} | drawn.labels
            if config.contexts:
                at_s = [(window[0] + a / config.sample_rate, window[0] + b / config.sample_rate) for a, b in stretches]
                beats = known_beats(drawn.score, facts, attributes, drawn.change.tempo_factor)
                folder.write_midi(f"{stem}.mid", midi_file(clip_score(drawn.score, at_s, beats), seconds))
                row |= {"midi": f"{stem}.mid", "render": _again(drawn, gain, config)}
            rows.append(row)
    return rows


def _again(drawn: _Variant, gain: float, config: RenderConfig) -> dict:
    """What plays parts of a clip as they are in it: ``gain`` leads from `synthesize` to the clip, before a limiter."""
    return {
        "soundfont": printable(drawn.font.name),
        "backend": config.backend,
        "effects": drawn.effects._asdict(),
        "gain": gain,
    }


def _at_level(audio: np.ndarray, rng: np.random.Generator, config: RenderConfig) -> tuple[np.ndarray, float]:
    """``audio`` (L, channels) with a drawn peak, or a drawn loudness; and the gain that it took."""
    if config.loudness_range:
        gain = master_gain(audio, config.sample_rate, rng.uniform(*config.loudness_range))
        return limit(audio * gain, round(LOOK_AHEAD_S * config.sample_rate)), float(gain)
    level = 10 ** (rng.uniform(*config.peak_db_range) / 20)
    gain = level / np.abs(audio).max()
    return audio * gain, float(gain)


def _turn(choices: Sequence[str], variant: int, rng: np.random.Generator) -> str:
    """Which of ``choices`` a variant is for: the original every other time, the families in drawn order."""
    families = [choice for choice in choices if choice != "original"]
    order = rng.permutation(len(families))
    if len(families) < len(choices):
        if not families or (variant + rng.integers(2)) % 2 == 0:
            return "original"
        variant //= 2
    return families[order[variant % len(families)]]


def _play(drawn: _Variant, windows: list[tuple[float, float]], config: RenderConfig) -> list[np.ndarray]:
    """Audio (L, channels) of each window, after music that only the reverb hears."""
    before = [min(PREROLL_S, start_s) for start_s, _ in windows]
    with limited(2 * max(config.timeout_s, LEAST_LIMIT_S), "synthesis"):
        audio = synthesize(
            drawn.score,
            [(start_s - lead, end_s) for lead, (start_s, end_s) in zip(before, windows, strict=True)],
            drawn.font,
            sample_rate=config.sample_rate,
            effects=drawn.effects,
            backend=config.backend,
            timeout_s=config.timeout_s,
        )
    result = []
    for lead, (start_s, end_s), piece in zip(before, windows, audio, strict=True):
        piece = piece[round(lead * config.sample_rate) :][: round((end_s - start_s) * config.sample_rate)]
        result.append(piece.mean(axis=1, keepdims=True) if config.channels == 1 else piece)
    return result
