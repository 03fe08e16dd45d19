"""A stretch of a score to a waveform, by FluidSynth or tinysoundfont."""

import errno
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soxr

from musicldm.audio.output import is_full
from musicldm.scores.general_midi import DRUM_CHANNEL
from musicldm.scores.reading import Score, write_windows

BACKENDS = ("fluidsynth", "tinysoundfont")
FOLDERS = (
    "/usr/share/sounds/sf2",
    "/usr/share/soundfonts",
    "/usr/local/share/soundfonts",
    "/opt/homebrew/share/soundfonts",
)
NAMES = ("FluidR3_GM.sf2", "TimGM6mb.sf2", "default-GM.sf2")
# FluidSynth does not filter what lies above half its rate, and samples reach up to 22 kHz. Played at 16 kHz, the band
# from 4 to 8 kHz gains up to 0.5 dB of mirrored cymbals; played at 24 kHz and then resampled, 0.15 dB.
MIN_SYNTH_RATE = 24_000
LONGEST_S = 3 * 3600.0  # of music in one call, which is held in memory: 2 GB at 24 kHz
FULL_BYTES = 2**16  # a disk with less that is free is taken for full
MISSING_S = 0.1  # of its end that a synthesizer may leave out


class Effects(NamedTuple):
    """What the synthesizer adds, in FluidSynth's units."""

    reverb_level: float = 0.3  # 0 is off
    room_size: float = 0.4
    chorus_level: float = 0.8  # 0 is off
    damp: float = 0.0  # of the room's high frequencies, 0 to 1
    width: float = 0.5  # of the room between left and right: 0 is mono


def find_soundfont(folders: tuple[str, ...] = FOLDERS) -> Path:
    """The system's General MIDI SoundFont. Raises FileNotFoundError saying how to get one."""
    for folder in folders:
        for path in [*(Path(folder) / name for name in NAMES), *sorted(Path(folder).glob("*.sf2"))]:
            if path.is_file():
                return path
    raise FileNotFoundError(
        f"no SoundFont (*.sf2) in {', '.join(folders)}; run `apt install fluid-soundfont-gm` or "
        "`apt install timgm6mb-soundfont`, or name one with --soundfont"
    )


def named_soundfont(name: str, given: Sequence[Path] = (), folders: tuple[str, ...] = FOLDERS) -> Path:
    """The SoundFont file called ``name``: one that is ``given``, or the system's. Raises FileNotFoundError."""
    for path in [*given, *(Path(folder) / name for folder in folders)]:
        if path.name == name and path.is_file():
            return path
    raise FileNotFoundError(
        f"there is no SoundFont {name}, with which these clips were rendered, among those given or in "
        f"{', '.join(folders)}; put it there, or name it"
    )


def check_soundfont(path: Path) -> None:
    """Raise FileNotFoundError or ValueError when there is no SoundFont 2 file at ``path``."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no SoundFont {path}")
    with open(path, "rb") as file:
        head = file.read(12)
    if head[:4] != b"RIFF" or head[8:] != b"sfbk":
        raise ValueError(f"{path} is not a SoundFont 2 file (*.sf2)")
    if (declared := 8 + int.from_bytes(head[4:8], "little")) > (size := path.stat().st_size):
        raise ValueError(f"{path} is cut off: it says that it has {declared:,} bytes, and has {size:,}")


def check_backend(backend: str) -> None:
    """Raise ImportError or FileNotFoundError, with the way out, when ``backend`` is not installed."""
    if backend == "fluidsynth" and shutil.which("fluidsynth") is None:
        raise FileNotFoundError(
            "fluidsynth is not installed: run `apt install fluidsynth`, or use --backend tinysoundfont"
        )
    if backend == "tinysoundfont":
        _tinysoundfont()


def _tinysoundfont():
    try:
        import tinysoundfont
    except ImportError as error:
        raise ImportError(
            "tinysoundfont is not installed: run `pip install --no-deps tinysoundfont`, or use --backend fluidsynth"
        ) from error
    return tinysoundfont


def synthesize(
    score: Score,
    windows: Sequence[tuple[float, float]],
    soundfont: Path,
    *,
    sample_rate: int,
    effects: Effects,
    backend: str = "fluidsynth",
    timeout_s: float = 120.0,
) -> list[np.ndarray]:
    """The music of each window (start_s, end_s), which go by their starts: float32 (L, 2) of any level.

    Raises ValueError when the synthesizer fails or needs more than ``timeout_s``.
    """
    rate = max(sample_rate, MIN_SYNTH_RATE)
    length_s = sum(end_s - start_s for start_s, end_s in windows)
    if length_s > LONGEST_S:
        raise ValueError(
            f"{length_s / 3600:.1f} h, silences included, are more than the {LONGEST_S / 3600:g} h that are played in "
            "one go; give --clip-s, fewer clips, or a score without stray events"
        )
    with temporary_folder() as folder:
        midi = folder / "windows.mid"
        write_windows(score, windows, midi)
        play = _fluidsynth if backend == "fluidsynth" else _play_tinysoundfont
        audio = play(midi, soundfont, rate, effects, timeout_s)
        if len(audio) < (length_s - MISSING_S) * rate:
            if shutil.disk_usage(folder).free < FULL_BYTES:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            raise ValueError(f"{backend} wrote {len(audio) / rate:.2f} s of {length_s:.2f} s of music")
    results, begin_s = [], 0.0
    for start_s, end_s in windows:
        seconds = end_s - start_s
        piece = audio[round(begin_s * rate) :][: round(seconds * rate)]
        if rate != sample_rate:
            piece = soxr.resample(piece, rate, sample_rate)
        n = round(seconds * sample_rate)
        results.append(np.pad(piece, ((0, max(0, n - len(piece))), (0, 0)))[:n])
        begin_s += seconds
    return results


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder for the synthesizer's files. Raises OSError that names it when its disk is full."""
    try:
        with tempfile.TemporaryDirectory(prefix="render-") as folder:
            yield Path(folder)
    except (OSError, ValueError) as error:  # FluidSynth's words come as a ValueError
        if not is_full(error):
            raise
        raise OSError(
            f"the disk of the folder for temporary files, {tempfile.gettempdir()}, is full: make room there, or name "
            "another folder in the environment variable TMPDIR"
        ) from error


def _fluidsynth(midi: Path, soundfont: Path, rate: int, effects: Effects, timeout_s: float) -> np.ndarray:
    raw = midi.with_suffix(".raw")
    settings = {
        "synth.dynamic-sample-loading": 1,
        "synth.lock-memory": 0,
        "synth.polyphony": 1024,  # an orchestra with pedal and long releases needs more than the usual 256
        "synth.reverb.active": int(effects.reverb_level > 0),
        "synth.reverb.level": f"{effects.reverb_level:.4f}",
        "synth.reverb.room-size": f"{effects.room_size:.4f}",
        "synth.reverb.damp": f"{effects.damp:.4f}",
        "synth.reverb.width": f"{effects.width:.4f}",
        "synth.chorus.active": int(effects.chorus_level > 0),
        "synth.chorus.level": f"{effects.chorus_level:.4f}",
    }
    command = ["fluidsynth", "-n", "-i", "-q", "-g", "0.2", "-r", str(rate), "-T", "raw", "-O", "float", "-F", str(raw)]
    for name, value in settings.items():
        command += ["-o", f"{name}={value}"]
    try:
        done = subprocess.run(
            [*command, str(soundfont), str(midi)], stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout_s
        )
    except subprocess.TimeoutExpired as error:
        raise ValueError(f"fluidsynth needed more than {timeout_s:g} s") from error
    if done.returncode != 0 or not raw.is_file() or not raw.stat().st_size:
        message = done.stderr.decode(errors="replace").strip().splitlines() or ["it wrote nothing"]
        raise ValueError(f"fluidsynth failed with {soundfont}: {message[-1]}")
    return np.fromfile(raw, "<f4").reshape(-1, 2)


def _play_tinysoundfont(midi: Path, soundfont: Path, rate: int, effects: Effects, timeout_s: float) -> np.ndarray:
    """The same in this process. It has neither reverb nor chorus, so ``effects`` do not apply."""
    import mido

    synth = _tinysoundfont().Synth(samplerate=rate, gain=-12)
    font = synth.sfload(str(soundfont))
    for channel in range(16):
        synth.program_select(channel, font, 0, 0, channel == DRUM_CHANNEL)
    blocks, done, at_s, began = [], 0, 0.0, time.monotonic()
    for m in mido.MidiFile(midi):
        at_s += m.time
        n = round(at_s * rate) - done
        if n > 0:
            blocks.append(np.frombuffer(synth.generate(n), "<f4").reshape(-1, 2))
            done += n
        if time.monotonic() - began > timeout_s:
            raise ValueError(f"tinysoundfont needed more than {timeout_s:g} s")
        if m.type == "note_on":
            synth.noteon(m.channel, m.note, m.velocity)
        elif m.type == "note_off":
            synth.noteoff(m.channel, m.note)
        elif m.type == "program_change":
            try:
                synth.program_change(m.channel, m.program, m.channel == DRUM_CHANNEL)
            except RuntimeError as error:
                raise ValueError(f"{soundfont} has no program {m.program}: {error}") from error
        elif m.type == "control_change":
            synth.control_change(m.channel, m.control, m.value)
        elif m.type == "pitchwheel":
            synth.pitchbend(m.channel, m.pitch + 8192)
    return np.concatenate(blocks)
