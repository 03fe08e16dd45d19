"""A stretch of a score to a waveform, by FluidSynth or tinysoundfont."""

import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soxr

from musicldm.data.score import Score, write_window

BACKENDS = ("fluidsynth", "tinysoundfont")
FOLDERS = (
    "/usr/share/sounds/sf2",
    "/usr/share/soundfonts",
    "/usr/local/share/soundfonts",
    "/opt/homebrew/share/soundfonts",
)
NAMES = ("FluidR3_GM.sf2", "TimGM6mb.sf2", "default-GM.sf2")
# The samples of a SoundFont reach up to 22 kHz. Played below 32 kHz they would fold back into the audible band.
MIN_SYNTH_RATE = 32_000


class Effects(NamedTuple):
    """What the synthesizer adds, in FluidSynth's units."""

    reverb_level: float = 0.3  # 0 is off
    room_size: float = 0.4
    chorus_level: float = 0.8  # 0 is off


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
    start_s: float,
    end_s: float,
    soundfont: Path,
    *,
    sample_rate: int,
    effects: Effects,
    backend: str = "fluidsynth",
    timeout_s: float = 120.0,
) -> np.ndarray:
    """The music between two times: float32 (L, 2), L = round((end_s - start_s) * sample_rate), of any level."""
    rate = sample_rate
    while rate < MIN_SYNTH_RATE:
        rate += sample_rate
    with tempfile.TemporaryDirectory(prefix="render-") as folder:
        midi = Path(folder) / "window.mid"
        write_window(score, start_s, end_s, midi)
        play = _fluidsynth if backend == "fluidsynth" else _play_tinysoundfont
        audio = play(midi, soundfont, rate, effects, timeout_s)
    n = round((end_s - start_s) * rate)
    audio = np.pad(audio, ((0, max(0, n - len(audio))), (0, 0)))[:n]
    if rate != sample_rate:
        audio = soxr.resample(audio, rate, sample_rate)
    n = round((end_s - start_s) * sample_rate)
    return np.pad(audio, ((0, max(0, n - len(audio))), (0, 0)))[:n]


def _fluidsynth(midi: Path, soundfont: Path, rate: int, effects: Effects, timeout_s: float) -> np.ndarray:
    raw = midi.with_suffix(".raw")
    settings = {
        "synth.dynamic-sample-loading": 1,
        "synth.lock-memory": 0,
        "synth.reverb.active": int(effects.reverb_level > 0),
        "synth.reverb.level": f"{effects.reverb_level:.4f}",
        "synth.reverb.room-size": f"{effects.room_size:.4f}",
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
    import mido

    synth = _tinysoundfont().Synth(samplerate=rate, gain=-12)
    font = synth.sfload(str(soundfont))
    for channel in range(16):
        synth.program_select(channel, font, 0, 0, channel == 9)
    blocks, done, at = [], 0, 0.0
    for message in mido.MidiFile(midi):
        at += message.time
        n = round(at * rate) - done
        if n > 0:
            blocks.append(np.frombuffer(bytes(synth.generate(n)), "<f4").reshape(-1, 2))
            done += n
        if message.type == "note_on":
            synth.noteon(message.channel, message.note, message.velocity)
        elif message.type == "note_off":
            synth.noteoff(message.channel, message.note)
        elif message.type == "program_change":
            synth.program_change(message.channel, message.program, message.channel == 9)
        elif message.type == "control_change":
            synth.control_change(message.channel, message.control, message.value)
        elif message.type == "pitchwheel":
            synth.pitchbend(message.channel, message.pitch + 8192)
    return np.concatenate(blocks)
