"""Render the recordings of `benchmarks.small_collections`: the first 45 s of scores of many sources, as they are.

    python -m benchmarks.small_collections_data SCORES --index index.csv --out DIR

SCORES is a folder of MIDI files in one folder for each source, ``index.csv`` has their ``path``, ``source``,
``piece_id`` and ``seconds``. No two recordings are of one piece. DIR/many gets some of every source, DIR/alike many of
two sources whose pieces are near-equal: tunes with chords on one piano, and drum patterns for one kit.
"""

from __future__ import annotations

import argparse
import csv
import random
import subprocess
from pathlib import Path

import numpy as np
import soundfile

RATE, RECORDING_S, SHORTEST_S = 22_050, 45, 20
SOUNDFONT = Path("/usr/share/sounds/sf2/TimGM6mb.sf2")  # of Debian's package timgm6mb-soundfont
MANY = {
    "freedoom": 30,
    "simutrans": 14,
    "openmsx": 10,
    "easyrpg_rtp": 6,
    "blasphemer": 8,
    "groove": 12,
    "nottingham_arranged": 22,
    "openewld_arranged": 22,
    "nottingham": 12,
    "openscore_orchestra": 22,
    "openscore_quartets": 18,
    "openscore_lieder": 18,
    "pop909": 14,
    "dmidiplayer": 2,
}
ALIKE = {"nottingham": 44, "groove": 44}


def draw(index: Path, wanted: dict[str, int], rng: random.Random, taken: set[str]) -> list[dict]:
    """As many rows of each source as are ``wanted``, of pieces that are not ``taken`` and longer than 25 s."""
    of_source: dict[str, list[dict]] = {}
    with index.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            of_source.setdefault(row["source"], []).append(row)
    chosen = []
    for source, count in wanted.items():
        rows = [row for row in of_source[source] if float(row["seconds"]) > 25]
        rng.shuffle(rows)
        for row in rows:
            if count and row["piece_id"] not in taken:
                taken.add(row["piece_id"])
                chosen.append(row)
                count -= 1
    return chosen


def render(score: Path, soundfont: Path) -> np.ndarray:
    """The first 45 s of ``score``, mono (L,)."""
    command = ["fluidsynth", "-q", "-ni", "-g", "0.5", "-r", str(RATE), "-O", "s16", "-T", "raw", "-F", "-"]
    process = subprocess.Popen([*command, soundfont, score], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    with process:
        content = process.stdout.read(RATE * 4 * RECORDING_S)
        process.kill()
    samples = np.frombuffer(content[: len(content) // 4 * 4], np.int16)
    return samples.reshape(-1, 2).mean(axis=1) / 32768


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scores", type=Path)
    parser.add_argument("--index", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--soundfont", type=Path, default=SOUNDFONT)
    options = parser.parse_args()
    rng, taken = random.Random(7), set()
    for folder, wanted in (("many", MANY), ("alike", ALIKE)):
        (options.out / folder).mkdir(parents=True, exist_ok=True)
        for row in draw(options.index, wanted, rng, taken):
            name = row["path"].replace("/", "__").rsplit(".", 1)[0]
            file = options.out / folder / f"{name}.flac"
            if file.exists():
                continue
            waveform = render(options.scores / row["path"], options.soundfont)
            if len(waveform) < SHORTEST_S * RATE or np.abs(waveform).max() < 1e-3:
                print(f"left out, too short or silent: {row['path']}")
                continue
            soundfile.write(file, waveform, RATE)


if __name__ == "__main__":
    main()
