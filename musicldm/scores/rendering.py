"""Scores to audio with captions: varied renderings through a General MIDI SoundFont.

    MIDI files -> Score -> a changed Score per variant -> windows -> FluidSynth -> FLAC clips + metadata.jsonl

The output is an audio folder: ``OUT/metadata.jsonl`` has one JSON object a clip (``file_name``, ``text`` and what
is true of the clip), ``OUT/audio/`` the clips. What is finished of each score is kept in ``OUT/.render/``, so a
run that was stopped continues where it was.
"""

import hashlib
import json
import os
import re
import signal
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
from tqdm import tqdm

from musicldm.scores.arranging import can_play, draw_rendering
from musicldm.scores.captions import write_captions
from musicldm.scores.facts import describe, read_index, score_facts
from musicldm.scores.general_midi import ORCHESTRATIONS
from musicldm.scores.reading import Score, change_score, read_score
from musicldm.scores.splits import drawn_split
from musicldm.scores.synthesis import BACKENDS, check_backend, check_soundfont, find_soundfont, synthesize
from musicldm.scores.windows import choose_windows, drop_silence, sounds

PREROLL_S = 1.5  # heard by the reverb, not by the listener

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
        if self.velocity_range[0] <= 0:
            raise ValueError(f"velocity_range must be positive, got {self.velocity_range}")
        if self.peak_db_range[1] > -0.1:
            raise ValueError(f"peak_db_range must end at -0.1 dB or lower, got {self.peak_db_range[1]}")
        for name in ("max_silence_s", "timeout_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("program_share", "drumless_share", "min_sound", "validation_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be from 0 to 1, got {getattr(self, name)}")
        orchestrations(self.orchestrate)


class RenderReport(NamedTuple):
    """What a run did."""

    written: int  # clips made by this run
    skipped: int  # clips that were already there
    failed: int  # scores that could not be rendered, see errors.jsonl
    scores: int
    audio_s: float  # of the clips made by this run
    seconds: float  # wall time


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
    scores: Sequence[Path], out: Path, config: RenderConfig, *, index: Path | None = None, workers: int = 1
) -> RenderReport:
    """Render ``scores`` (MIDI files, or folders of them) into the audio folder ``out``.

    ``index`` is a CSV of facts by path. The same config and scores give the same folder, with any number of workers
    and however often the run was stopped. Raises ValueError or FileNotFoundError before anything is written.
    """
    began = time.monotonic()
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    rows = read_index(index) if index else {}
    found = find_scores([Path(p) for p in scores], rows)
    fonts = [Path(p) for p in config.soundfonts] or [find_soundfont()]
    for font in fonts:
        check_soundfont(font)
    check_backend(config.backend)
    state = _open_out(Path(out), config, fonts)
    done = {name: _finished(state, name) for name in found}
    waiting = {name: path for name, path in found.items() if done[name] is None}
    skipped = sum(len(rows) for rows in done.values() if rows is not None)
    written, audio_s = 0, 0.0
    try:
        for result in _run(waiting, rows, Path(out), config, fonts, workers):
            written += len(result["rows"])
            audio_s += sum(row["duration_s"] for row in result["rows"])
    finally:
        failed = _assemble(Path(out), state)
    return RenderReport(written, skipped, failed, len(found), audio_s, time.monotonic() - began)


def find_scores(paths: Sequence[Path], rows: Mapping[str, Mapping[str, str]] = {}) -> dict[str, Path]:
    """Names of scores and where they are: paths as in the index, else relative to the folder that was given."""
    found: dict[str, Path] = {}
    for path in paths:
        if path.is_dir():
            files = sorted(p for p in path.rglob("*") if p.suffix.lower() in (".mid", ".midi") and p.is_file())
            if not files:
                raise FileNotFoundError(f"the folder {path} holds no *.mid or *.midi files")
        elif path.is_file():
            files = [path]
        else:
            raise FileNotFoundError(f"there is no score or folder {path}")
        for file in files:
            tails = ("/".join(file.resolve().parts[i:]) for i in range(1, len(file.resolve().parts)))
            local = file.relative_to(path).as_posix() if file != path else file.name
            name = next((tail for tail in tails if tail in rows), local)
            if found.setdefault(name, file) != file:
                raise ValueError(f"{found[name]} and {file} would both be called {name}; give their common folder")
    return dict(sorted(found.items()))


def _open_out(out: Path, config: RenderConfig, fonts: list[Path]) -> Path:
    state = out / ".render"
    settings = asdict(config) | {"soundfonts": [[font.name, font.stat().st_size] for font in fonts]}
    del settings["timeout_s"]
    text = json.dumps(settings, indent=1, sort_keys=True)
    path = state / "config.json"
    if path.exists():
        if path.read_text(encoding="utf-8") != text:
            raise ValueError(f"{out} holds renderings with other settings ({path}); choose another folder or remove it")
    else:
        if (out / "metadata.jsonl").exists():
            raise ValueError(f"{out} already holds an audio folder that was not rendered here; choose another folder")
        state.mkdir(parents=True, exist_ok=True)
        (out / "audio").mkdir(exist_ok=True)
        _write_text(path, text)
    for left in [*out.glob("audio/*.tmp"), *state.glob("*.tmp")]:
        left.unlink()
    return state


def _write_text(path: Path, text: str) -> None:
    """All or nothing."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def _slug(name: str) -> str:
    stem = re.sub(r"[^A-Za-z0-9]+", "_", name.rsplit(".", 1)[0]).strip("_")
    return f"{stem[:60]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _sidecar(state: Path, name: str) -> Path:
    return state / f"{_slug(name)}.json"


def _finished(state: Path, name: str) -> list[dict] | None:
    """The clips of a score that an earlier run has finished; a score that failed is tried again."""
    path = _sidecar(state, name)
    result: dict = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"error": "not begun"}
    return None if result["error"] else result["rows"]


def _run(waiting, rows, out: Path, config: RenderConfig, fonts: list[Path], workers: int):
    """Render every waiting score; yields what its sidecar holds."""
    jobs = [(name, path, rows.get(name), out, config, fonts) for name, path in waiting.items()]
    with ExitStack() as stack:
        bar = stack.enter_context(tqdm(total=len(jobs), unit="score", desc="render", disable=not jobs))
        if workers == 1:
            results = (_render_score(*job) for job in jobs)
        else:
            pool = ProcessPoolExecutor(workers, get_context("spawn"), _leave_interrupts_to_parent)
            stack.callback(pool.shutdown, cancel_futures=True)
            # The longest scores first, so that no worker is left with one at the end.
            jobs.sort(key=lambda job: -job[1].stat().st_size)
            results = (future.result() for future in as_completed([pool.submit(_render_score, *job) for job in jobs]))
        for result in results:
            bar.update()
            yield result


def _leave_interrupts_to_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _assemble(out: Path, state: Path) -> int:
    """Write metadata.jsonl and errors.jsonl from the sidecars; the number of scores that failed."""
    rows, errors = [], []
    for path in state.glob("*.json"):
        if path.name != "config.json":
            result = json.loads(path.read_text(encoding="utf-8"))
            rows += result["rows"]
            if result["error"]:
                errors.append({"score": result["score"], "error": result["error"]})
    rows.sort(key=lambda row: row["file_name"])
    errors.sort(key=lambda row: row["score"])
    for name, objects in (("metadata.jsonl", rows), ("errors.jsonl", errors)):
        if objects or (out / name).exists():
            _write_text(out / name, "".join(json.dumps(o, ensure_ascii=False) + "\n" for o in objects))
    return len(errors)


def _render_score(name: str, path: Path, row, out: Path, config: RenderConfig, fonts: list[Path]) -> dict:
    """All clips of one score; leaves a sidecar when done. Faults of the score end in its ``error``."""
    rows, error = [], None
    try:
        score = read_score(path)
        facts = score_facts(name, score, row)
        for variant in range(config.variants):
            rows += _render_variant(name, score, facts, variant, out, config, fonts)
        if not rows:
            raise ValueError(f"{path} has no stretch of music of {config.min_clip_s} s without a long silence")
    except ValueError as fault:
        error = str(fault)
    result = {"score": name, "rows": rows, "error": error}
    _write_text(_sidecar(out / ".render", name), json.dumps(result, ensure_ascii=False))
    return result


def _rng(config: RenderConfig, name: str, variant: int) -> np.random.Generator:
    digest = hashlib.sha256(f"{config.seed}|{name}|{variant}".encode()).digest()
    return np.random.default_rng(np.frombuffer(digest, np.uint32))


def _render_variant(
    name, score: Score, facts, variant: int, out: Path, config: RenderConfig, fonts: list[Path]
) -> list:
    choices = [target for target in orchestrations(config.orchestrate) if can_play(score, target)]
    if not choices:
        raise ValueError(f"{name} has no notes for {config.orchestrate}")
    target = _turn(choices, variant, _rng(config, name, -1))
    rng = _rng(config, name, variant)
    drawn = draw_rendering(score, target, rng, config)
    font = fonts[int(rng.integers(len(fonts)))]
    changed = change_score(score, drawn.change)
    windows = choose_windows(changed, config.clip_s, config.max_clips, config.min_clip_s, config.max_silence_s, rng)
    wanted = config.max_clips if config.clip_s is not None else 1
    rows: list[dict] = []
    while windows and len(rows) < wanted:
        batch, windows = sorted(windows[: wanted - len(rows)]), windows[wanted - len(rows) :]
        for window, audio in zip(batch, _play(changed, batch, font, drawn.effects, config), strict=True):
            if config.clip_s is None:
                audio = drop_silence(audio, config.sample_rate, config.max_silence_s)
            if not sounds(audio, config.sample_rate, config.min_sound, config.max_silence_s):
                continue
            file_name = f"audio/{_slug(name)}-v{variant:02d}-c{len(rows):02d}.flac"
            level = 10 ** (rng.uniform(*config.peak_db_range) / 20)
            _write_audio(out / file_name, audio * (level / np.abs(audio).max()), config.sample_rate)
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
                    "soundfont": font.name,
                    "orchestration": target,
                    "tempo_factor": round(drawn.change.tempo_factor, 4),
                    "transpose_semitones": drawn.change.transpose,
                }
            )
    return rows


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


def _write_audio(path: Path, audio: np.ndarray, sample_rate: int) -> None:
    temporary = path.with_name(path.name + ".tmp")
    soundfile.write(temporary, audio, sample_rate, format="FLAC", subtype="PCM_16")
    os.replace(temporary, path)
