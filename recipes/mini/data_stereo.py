"""Render the music that the 44.1 kHz stereo model learns from and is judged by, split by piece as `mini`'s.

    python -m recipes.mini.data_stereo SCORES --index index.csv --out data/stereo

makes two audio folders which share no piece with one another, nor with `mini`'s: ``train``, and ``held`` (the
evaluation set). It continues where it was stopped. Training can begin with
what `--share 0.05` renders, and go on when there is more.
"""

from dataclasses import replace
from pathlib import Path

from musicldm.scores.rendering import RenderConfig
from recipes.mini.data import ALL, COMMON, SOUNDFONTS, render_folders

TO_LEARN = (*SOUNDFONTS, "/usr/share/sounds/sf3/MuseScore_General_Full.sf3")
FINISHED = RenderConfig(
    **COMMON,
    sample_rate=44_100,
    channels=2,
    orchestrate=ALL,
    pan_share=0.85,
    loudness_range=(-22.0, -10.0),
)
FOLDERS = {
    "train": replace(FINISHED, soundfonts=TO_LEARN, max_clips=2, variants=2, drumless_share=0.33, seed=3),
    "held": replace(FINISHED, soundfonts=SOUNDFONTS, max_clips=1, variants=1, seed=4),
}


if __name__ == "__main__":
    render_folders(__doc__, FOLDERS, Path("data/stereo"))
