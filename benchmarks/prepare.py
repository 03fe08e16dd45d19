"""Whether `musicldm prepare` loses anything, finds copies, and what it costs.

    python -m benchmarks.prepare --recordings FOLDER [--files 200]

FOLDER is what `musicldm render` wrote; five seconds of one clip of each piece are used. `kills`: a folder with bad
files and copies at other gains, rates and starts is prepared straight, and again while being killed five times; both
results are compared byte for byte, and the copies found with those planted. `speed`: processor time of one process,
beside madmom alone. Results: benchmarks/results/prepare.json.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import soundfile
import soxr

from augment.beats import track_beats
from benchmarks.results import keep
from musicldm.data.prepare import Job, Measure, PrepareConfig, find_files, prepare

RATE, SECONDS, KILLS = 16_000, 5.0, 5
SCRIPT = """\
import sys
from pathlib import Path
from musicldm.data.prepare import PrepareConfig, prepare
if __name__ == "__main__":
    prepare(Path(sys.argv[1]), Path(sys.argv[2]), PrepareConfig(), int(sys.argv[3]))
"""


def make_folder(folder: Path, recordings: Path, n_files: int, rng: np.random.Generator) -> dict[str, str]:
    """Write ``n_files``, of which ten are bad and one in six is a copy; returns the copies and their originals."""
    rows = [json.loads(line) for line in (recordings / "metadata.jsonl").read_text().splitlines()]
    by_piece = {row["piece_id"]: row["file_name"] for row in rows}
    n_copies = n_files // 6
    originals, copies = list(by_piece.values())[: n_files - 10 - n_copies], {}
    if len(originals) < n_files - 10 - n_copies:
        raise ValueError(f"{recordings} holds {len(by_piece)} pieces, {n_files - 10 - n_copies} are needed")
    for i, name in enumerate(originals):
        waveform, rate = soundfile.read(recordings / name, dtype="float32")
        waveform = waveform if waveform.ndim == 1 else waveform.mean(axis=1)
        start = max(0, (len(waveform) - round(SECONDS * rate)) // 2)
        part = waveform[start : start + round(SECONDS * rate)]
        soundfile.write(folder / f"{i:03d}.flac", part, rate)
        if i < n_copies:
            other = int(rng.choice([11_025, 22_050, 44_100]))
            changed = soxr.resample(part * rng.uniform(0.1, 0.9), rate, other)[round(rng.uniform(0, 1.2) * other) :]
            suffix = str(rng.choice(["wav", "mp3", "ogg"]))
            soundfile.write(folder / f"copy_{i:03d}.{suffix}", changed, other)
            copies[f"copy_{i:03d}.{suffix}"] = f"{i:03d}.flac"
    write_bad(folder, folder / "000.flac")
    return copies


def write_bad(folder: Path, good: Path) -> None:
    """Ten files that cannot be used."""
    waveform, rate = soundfile.read(good)
    (folder / "bad_empty.wav").touch()
    (folder / "bad_text.mp3").write_text("not music\n" * 200)
    (folder / "bad_folder.wav").mkdir()
    (folder / "bad_loop.wav").symlink_to(folder / "bad_loop.wav")
    soundfile.write(folder / "bad_none.wav", np.zeros(0), rate)
    soundfile.write(folder / "bad_rate.wav", waveform[:5000], 1000)
    soundfile.write(folder / "bad_channels.wav", np.repeat(waveform[:, None], 8, axis=1), rate)
    soundfile.write(folder / "bad_nan.wav", np.where(np.arange(len(waveform)) == 999, np.nan, waveform), rate, "FLOAT")
    (folder / "bad_cut.flac").write_bytes(good.read_bytes()[:20_000])
    soundfile.write(folder / "whole.wav", waveform, rate)
    (folder / "bad_cut.wav").write_bytes((folder / "whole.wav").read_bytes()[:20_000])
    (folder / "whole.wav").unlink()


def killed(folder: Path, out: Path, script: Path, n_files: int, workers: int, rng: np.random.Generator) -> int:
    """Prepare ``folder`` and kill it `KILLS` times at random amounts of work, then let it end; returns the kills."""
    count = 0
    for least in sorted(rng.integers(1, n_files, KILLS).tolist()):
        process = subprocess.Popen(
            [sys.executable, script, folder, out, str(workers)], start_new_session=True, stderr=subprocess.DEVNULL
        )
        while process.poll() is None and len(list((out / ".work").glob("*.json"))) <= least:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.5))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            count += 1
        process.wait()
    subprocess.run([sys.executable, script, folder, out, str(workers)], check=True, stderr=subprocess.DEVNULL)
    return count


def contents(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def measure_speed(folder: Path, scratch: Path, n: int = 20) -> dict:
    """Times real time of one process, and the part of its time that is not madmom's."""
    names = [name for name in find_files(folder) if name[0].isdigit()][:n]
    waveforms = [soundfile.read(folder / name, dtype="float32")[0] for name in names]
    track_beats(waveforms[0], RATE)  # loads the networks
    before = time.process_time()
    for waveform in waveforms:
        track_beats(waveform, RATE)
    beats = time.process_time() - before
    work = scratch / "speed"
    work.mkdir()
    measure = Measure(folder, work, PrepareConfig())
    measure(Job(names[0], work / names[0]))
    before = time.process_time()
    for name in names:
        measure(Job(name, work / name))
    whole = time.process_time() - before
    seconds = sum(len(waveform) for waveform in waveforms) / RATE
    return {
        "audio_s": seconds,
        "times_real_time": round(seconds / whole, 1),
        "times_real_time_madmom_alone": round(seconds / beats, 1),
        "share_added_to_madmom": round(whole / beats - 1, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recordings", type=Path, required=True, help="a folder that `musicldm render` wrote")
    parser.add_argument("--files", type=int, default=200)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/prepare.json"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder, scratch = Path(scratch) / "in", Path(scratch)
        folder.mkdir()
        rng = np.random.default_rng(0)
        planted = make_folder(folder, options.recordings, options.files, rng)
        keep(options.out, {"speed": measure_speed(folder, scratch)})
        script = scratch / "run.py"
        script.write_text(SCRIPT)
        kills = killed(folder, scratch / "killed", script, options.files, options.workers, rng)
        made = prepare(folder, scratch / "straight", PrepareConfig(), 1)
        rows = pq.read_table(scratch / "straight" / "index.parquet").to_pylist()
        found = {row["file_name"]: row["duplicate_of"] for row in rows if row["duplicate_of"]}
        right = {name for name, original in found.items() if planted.get(name) == original}
        errors = [json.loads(line) for line in (scratch / "straight" / "errors.jsonl").open()]
        result = {
            "files": len(find_files(folder)),
            **made._asdict(),
            "errors": {row["file_name"]: row["error"] for row in errors},
            "kills": kills,
            "equal_after_kills": contents(scratch / "killed") == contents(scratch / "straight"),
            "copies_planted": len(planted),
            "copies_recall": round(len(right) / len(planted), 4),
            "copies_precision": round(len(right) / max(1, len(found)), 4),
            "copies_wrong": {name: original for name, original in found.items() if name not in right},
        }
        keep(options.out, {"kills": result})


if __name__ == "__main__":
    main()
