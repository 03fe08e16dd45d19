"""Parts between left and right: what is asked is heard, and nothing else of a rendering changes."""

import json
from dataclasses import replace
from pathlib import Path

import mido
import numpy as np
import pytest
import soundfile

from musicldm.cli import main
from musicldm.scores.mastering import loudness
from musicldm.scores.reading import read_score
from musicldm.scores.rendering import RenderConfig, render_scores
from musicldm.scores.staging import CENTRED, draw_stage, pan_score
from musicldm.scores.synthesis import Effects, synthesize
from tests.helpers.scores import band, small_soundfont, synthesizer, write_score  # noqa: F401  (fixtures)

DRY = Effects(0.0, 0.4, 0.0)


@pytest.fixture
def config(synthesizer) -> RenderConfig:  # noqa: F811
    backend, soundfont = synthesizer
    return RenderConfig(backend=backend, soundfonts=(soundfont,), clip_s=5.0, max_clips=1, channels=2)


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]


def sides_db(audio: np.ndarray) -> float:
    """Left over right of ``audio`` (L, 2)."""
    left, right = np.square(audio).mean(axis=0) + 1e-12
    return float(10 * np.log10(left / right))


def test_parts_are_heard_where_they_are_placed(tmp_path, synthesizer):  # noqa: F811
    said = [(0.0, mido.Message("control_change", channel=0, control=10, value=127))]  # right, says the score
    notes = [(at, 3.9, 60, 0) for at in range(0, 16, 4)]
    score = read_score(write_score(tmp_path / "a.mid", notes, programs={0: 73}, others=said))
    heard = {}
    for place in (0, 64, 127):
        (audio,) = synthesize(
            pan_score(score, {0: place}),
            [(2.0, 6.0)],
            Path(synthesizer.soundfont),
            sample_rate=24_000,
            effects=DRY,
            backend=synthesizer.backend,
        )
        heard[place] = sides_db(audio)
    assert heard[0] > 20
    assert abs(heard[64]) < 1.5
    assert heard[127] < -20


def test_a_place_does_not_touch_other_channels(tmp_path):
    said = [(0.0, mido.Message("control_change", channel=c, control=10, value=20)) for c in (0, 1)]
    said += [(1.0, mido.Message("control_change", channel=0, control=7, value=90))]
    notes = [(at, 1, 60, c) for at in range(8) for c in (0, 1)]
    score = read_score(write_score(tmp_path / "a.mid", notes, programs={0: 0, 1: 40}, others=said))
    placed = [(m.channel, m.control, m.value) for _, m in pan_score(score, {0: 100}).controls]
    assert sorted(placed) == [(0, 7, 90), (0, 10, 100), (1, 10, 20)]


def test_basses_drums_and_soloists_stand_near_the_middle(tmp_path):
    score = read_score(band(tmp_path / "a.mid"))
    alone = score._replace(notes=score.notes[score.notes["channel"] == 0])
    stages = [draw_stage(score, DRY, np.random.default_rng(seed)) for seed in range(200)]
    pans = {channel: np.array([stage.pans[channel] for stage in stages]) for channel in (0, 1, 2, 9)}
    for channel in (1, 9):
        assert np.abs(pans[channel] - 63.5).max() <= 63.5 * CENTRED + 0.5
    for channel in (0, 2):
        assert {0, 127} <= set(pans[channel].tolist())
        assert pans[channel].min() >= 0
        assert pans[channel].max() <= 127
    soloists = [draw_stage(alone, DRY, np.random.default_rng(seed)).pans[0] for seed in range(200)]
    assert max(abs(place - 63.5) for place in soloists) <= 63.5 * CENTRED + 0.5
    assert len({stage.effects.width for stage in stages}) == 200
    assert {stage.effects.room_size for stage in stages} == {DRY.room_size}


def test_placing_changes_nothing_else_of_a_rendering(tmp_path, config):
    score, made = band(tmp_path / "a.mid"), replace(config, variants=4)
    render_scores([score], tmp_path / "said", made)
    render_scores([score], tmp_path / "placed", replace(made, pan_share=0.6))
    before, after = rows(tmp_path / "said"), rows(tmp_path / "placed")
    moved = [row.pop("pan_spread", None) is not None for row in after]
    assert before == after
    assert len(set(moved)) == 2
    for row, elsewhere in zip(before, moved, strict=True):
        same = (tmp_path / "said" / row["file_name"]).read_bytes() == (
            tmp_path / "placed" / row["file_name"]
        ).read_bytes()
        assert same is not elsewhere


def test_folders_of_the_defaults_are_marked_as_before(tmp_path, config):
    score = band(tmp_path / "a.mid")
    render_scores([score], tmp_path / "out", config)
    marked = json.loads((tmp_path / "out" / ".render" / "config.json").read_text())
    assert not {"pan_share", "loudness_range", "timeout_s"} & set(marked)
    with pytest.raises(ValueError, match=r"pan_share None, now 0\.5"):
        render_scores([score], tmp_path / "out", replace(config, pan_share=0.5))


def test_the_command_renders_stereo_of_the_asked_loudness(tmp_path, config, capsys):
    given = ["--backend", config.backend, "--soundfont", config.soundfonts[0], "--clip-s", "5", "--variants", "3"]
    given += ["--channels", "2", "--sample-rate", "44100", "--pan-share", "1", "--loudness-range", "-20", "-12"]
    out = tmp_path / "out"
    assert main(["render", str(band(tmp_path / "a.mid")), "--out", str(out), "--workers", "1", *given]) == 0
    heard = []
    for row in rows(out):
        audio, rate = soundfile.read(out / row["file_name"])
        assert (rate, audio.shape) == (44_100, (220_500, 2))
        assert 0 <= row["pan_spread"] <= 1
        heard.append(loudness(audio, rate))
    assert -23 < min(heard) <= max(heard) < -11.5  # a limiter may leave it quieter than asked
    assert len(set(heard)) == len(heard) > 3


@pytest.mark.parametrize("wrong", [{"pan_share": 1.5}, {"loudness_range": (-10.0, -20.0)}, {"loudness_range": (-9, 0)}])
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        RenderConfig(**wrong)
