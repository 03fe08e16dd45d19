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
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from musicldm.audio.output import check_mark, full_disk_named, sole_writer
from musicldm.audio.workers import Crash, Workers
from musicldm.scores.arranging import can_play, draw_rendering
from musicldm.scores.captions import write_captions
from musicldm.scores.facts import describe, score_facts
from musicldm.scores.general_midi import ORCHESTRATIONS
from musicldm.scores.index import Index, plain_path, read_index
from musicldm.scores.limits import limited
from musicldm.scores.mastering import master
from musicldm.scores.reading import Score, change_score, read_score
from musicldm.scores.render_folder import MARK, WRITES, RenderFolder, fingerprint, font_identity, printable, slug
from musicldm.scores.splits import drawn_split
from musicldm.scores.staging import draw_stage, pan_score
from musicldm.scores.synthesis import BACKENDS, check_backend, check_soundfont, find_soundfont, synthesize
from musicldm.scores.windows import choose_windows, drop_silence, sounds

SUFFIXES = (".mid", ".midi")
LEAST_LIMIT_S = 30.0  # for what is done to a score beside synthesis
PREROLL_S = 1.5  # heard by the reverb, not by the listener
ADDED = ("pan_share", "loudness_range")  # settings that folders of earlier versions do not, and need not, name

# What a damaged or absurd score can end in. Errors of files are not among them: they are of the disk.
FAULTS = (ValueError, ArithmeticError, LookupError, TypeError, MemoryError)

__all__ = ["RenderConfig", "RenderReport", "find_soundfont", "render_scores"]


@dataclass(frozen=True)
class RenderConfig:
    """What to make of every score."""

    soundfonts: tuple[str, ...] = ()  # files; empty: the one that find_soundfont() finds
    backend: str = "fluidsynth"  # or "tinysoundfont"
    sample_rate: int = 16_000  # Hz of the clips
    channels: int = 1  # 1 mono, 2 stereo
    clip_s: float | None = 10.24  # None: whole pieces
    max_clips: int = 2  # of one rendering, spread over the piece
    min_clip_s: float = 4.0  # a piece with less music than a clip gives one shorter clip, but not shorter than this
    variants: int = 1  # renderings of each score
    orchestrate: str = "original"  # "original", families or "all", joined by commas: see _turn
    seed: int = 0
    tempo_range: tuple[float, float] = (0.87, 1.15)
    transpose_range: tuple[int, int] = (-5, 6)  # semitones
    velocity_range: tuple[float, float] = (0.7, 1.2)
    program_share: float = 0.5  # how often a part gets another program of its kind
    drumless_share: float = 0.0  # how often a rendering for the original instruments leaves the drums out
    peak_db_range: tuple[float, float] = (-9.0, -1.0)  # of each clip, relative to full scale
    pan_share: float = 0.0  # how often a rendering places its parts anew between left and right, in a room drawn for it
    loudness_range: tuple[float, float] | None = None  # LUFS of each clip, limited as records are; None: peak_db_range
    min_sound: float = 0.85  # share of a clip in which something sounds
    max_silence_s: float = 1.0  # longest silence inside a clip
    validation_share: float = 0.05  # of the pieces
    captions: int = 4  # alternatives in ``texts``
    timeout_s: float = 120.0  # for one call of the synthesizer

    def __post_init__(self):
        if self.backend not in BACKENDS:
            raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {self.backend!r}")
        if not 8_000 <= self.sample_rate <= 96_000:
            raise ValueError(f"sample_rate must be from 8000 to 96000 Hz, got {self.sample_rate}")
        if self.channels not in (1, 2):
            raise ValueError(f"channels must be 1 or 2, got {self.channels}")
        for name in ("max_clips", "variants", "captions"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.min_clip_s >= 0.5:
            raise ValueError(f"min_clip_s must be at least 0.5 s, got {self.min_clip_s}")
        if self.clip_s is not None and not self.min_clip_s <= self.clip_s <= 3600:
            raise ValueError(f"clip_s must be from min_clip_s={self.min_clip_s} to 3600 s, got {self.clip_s}")
        for name in ("tempo_range", "transpose_range", "velocity_range", "peak_db_range"):
            low, high = getattr(self, name)
            if not low <= high:
                raise ValueError(f"{name} must go from low to high, got {low} to {high}")
        if not 0.25 <= self.tempo_range[0] <= self.tempo_range[1] <= 4:
            raise ValueError(f"tempo_range must lie within 0.25 and 4, got {self.tempo_range}")
        if not -24 <= self.transpose_range[0] <= self.transpose_range[1] <= 24:
            raise ValueError(f"transpose_range must lie within -24 and 24 semitones, got {self.transpose_range}")
        if not 0 < self.velocity_range[0] <= self.velocity_range[1] <= 127:
            raise ValueError(f"velocity_range must be positive, up to 127, got {self.velocity_range}")
        if not -200 <= self.peak_db_range[0] <= self.peak_db_range[1] <= -0.1:
            raise ValueError(f"peak_db_range must end at -0.1 dB or lower, and begin at -200, got {self.peak_db_range}")
        if self.loudness_range and not -60 <= self.loudness_range[0] <= self.loudness_range[1] <= -5:
            raise ValueError(
                f"loudness_range must go from low to high within -60 and -5 LUFS, got {self.loudness_range}"
            )
        for name in ("max_silence_s", "timeout_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("program_share", "drumless_share", "pan_share", "min_sound", "validation_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be from 0 to 1, got {getattr(self, name)}")
        orchestrations(self.orchestrate)


class RenderReport(NamedTuple):
    """What a run did."""

    written: int  # clips made by this run
    skipped: int  # clips that were already there
    failed: int  # scores of this run that could not be rendered, see errors.jsonl
    scores: int
    audio_s: float  # of the clips made by this run
    seconds: float  # wall time
    changed: int = 0  # scores that had changed since an earlier run and were rendered anew


def orchestrations(text: str) -> tuple[str, ...]:
    """``"original,all"`` -> every choice. Raises ValueError naming the choices."""
    chosen: list[str] = []
    for name in text.split(","):
        name = name.strip()
        if name == "all":
            chosen += ORCHESTRATIONS
        elif name == "original" or name in ORCHESTRATIONS:
            chosen.append(name)
        else:
            raise ValueError(f"orchestrate knows original, all, {', '.join(ORCHESTRATIONS)}; got {name!r}")
    return tuple(dict.fromkeys(chosen))


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


def _render_variant(
    name, score: Score, facts, variant: int, folder: RenderFolder, config: RenderConfig, fonts: list[Path]
) -> list:
    choices = [target for target in orchestrations(config.orchestrate) if can_play(score, target)]
    if not choices:
        raise ValueError(f"{name} has no notes for {config.orchestrate}")
    target = _turn(choices, variant, _rng(config, name, -1))
    rng = _rng(config, name, variant)
    drawn = draw_rendering(score, target, rng, config)
    font = fonts[int(rng.integers(len(fonts)))]
    changed, effects, panned = change_score(score, drawn.change), drawn.effects, {}
    stage_rng = _rng(config, name, variant, "|stage")
    if config.pan_share and stage_rng.random() < config.pan_share:
        stage = draw_stage(changed, effects, stage_rng)
        changed, effects, panned = pan_score(changed, stage.pans), stage.effects, {"pan_spread": round(stage.spread, 3)}
    windows = choose_windows(changed, config.clip_s, config.max_clips, config.min_clip_s, config.max_silence_s, rng)
    wanted = config.max_clips if config.clip_s is not None else 1
    rows: list[dict] = []
    while windows and len(rows) < wanted:
        batch, windows = sorted(windows[: wanted - len(rows)]), windows[wanted - len(rows) :]
        for window, audio in zip(batch, _play(changed, batch, font, effects, config), strict=True):
            if config.clip_s is None:
                audio = drop_silence(audio, config.sample_rate, config.max_silence_s)
            if not sounds(audio, config.sample_rate, config.min_sound, config.max_silence_s):
                continue
            file_name = f"audio/{slug(name)}-v{variant:02d}-c{len(rows):02d}.flac"
            folder.write_clip(file_name, _at_level(audio, rng, config), config.sample_rate)
            attributes = describe(
                facts,
                changed,
                *window,
                tempo_factor=drawn.change.tempo_factor,
                transpose=drawn.change.transpose,
                rescored=None if target == "original" else target,
            )
            attributes["drums_left_out"] = target == "original" and drawn.change.parts is not None
            texts = write_captions(attributes, rng, config.captions)
            rows.append(
                {"file_name": file_name, "text": texts[0], "texts": texts}
                | attributes
                | facts.labels()
                | {
                    "score": name,
                    "split": drawn_split(facts.piece_id, config.validation_share),
                    "start_s": round(window[0], 3),
                    "duration_s": len(audio) / config.sample_rate,
                    "sample_rate": config.sample_rate,
                    "soundfont": printable(font.name),
                    "orchestration": target,
                    "tempo_factor": round(drawn.change.tempo_factor, 4),
                    "transpose_semitones": drawn.change.transpose,
                }
                | panned
            )
    return rows


def _at_level(audio: np.ndarray, rng: np.random.Generator, config: RenderConfig) -> np.ndarray:
    """``audio`` (L, channels) with a drawn peak, or a drawn loudness."""
    if config.loudness_range:
        return master(audio, config.sample_rate, rng.uniform(*config.loudness_range))
    level = 10 ** (rng.uniform(*config.peak_db_range) / 20)
    return audio * (level / np.abs(audio).max())


def _turn(choices: Sequence[str], variant: int, rng: np.random.Generator) -> str:
    """Which of ``choices`` a variant is for: the original every other time, the families in drawn order."""
    families = [choice for choice in choices if choice != "original"]
    order = rng.permutation(len(families))
    if len(families) < len(choices):
        if not families or (variant + rng.integers(2)) % 2 == 0:
            return "original"
        variant //= 2
    return families[order[variant % len(families)]]


def _play(score: Score, windows, font: Path, effects, config: RenderConfig) -> list[np.ndarray]:
    """Audio (L, channels) of each window, after music that only the reverb hears."""
    before = [min(PREROLL_S, start_s) for start_s, _ in windows]
    with limited(2 * max(config.timeout_s, LEAST_LIMIT_S), "synthesis"):
        audio = synthesize(
            score,
            [(start_s - lead, end_s) for lead, (start_s, end_s) in zip(before, windows, strict=True)],
            font,
            sample_rate=config.sample_rate,
            effects=effects,
            backend=config.backend,
            timeout_s=config.timeout_s,
        )
    result = []
    for lead, (start_s, end_s), piece in zip(before, windows, audio, strict=True):
        piece = piece[round(lead * config.sample_rate) :][: round((end_s - start_s) * config.sample_rate)]
        result.append(piece.mean(axis=1, keepdims=True) if config.channels == 1 else piece)
    return result
