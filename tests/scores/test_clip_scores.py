"""The notes beside a clip are those that are heard in it, and their beats those of the music."""

import json
from dataclasses import replace
from pathlib import Path

import mido
import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import stft

from musicldm.scores.beats import Beats, beat_grid, clip_score, on_grid, tempo_map
from musicldm.scores.general_midi import DRUM_CHANNEL
from musicldm.scores.reading import NOTE, Score, midi_file, read_score
from musicldm.scores.rendering import RenderConfig, render_scores
from musicldm.scores.synthesis import Effects, synthesize
from tests.helpers.scores import band, small_soundfont, synthesizer, write_score  # noqa: F401  (fixtures)


@pytest.fixture
def config(synthesizer) -> RenderConfig:  # noqa: F811
    backend, soundfont = synthesizer
    return RenderConfig(backend=backend, soundfonts=(soundfont,), clip_s=5.0, max_clips=2, contexts=True)


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]


@st.composite
def scores(draw) -> Score:
    """Up to three channels whose notes do not overlap on one key, in changing tempos and metres."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    notes = []
    for channel in rng.choice(16, 3, replace=False).tolist():
        for pitch in rng.choice(np.arange(30, 90), 4, replace=False).tolist():
            times = np.sort(rng.uniform(0, 30, 2 * int(rng.integers(1, 8))))
            for start, end in zip(times[::2], times[1::2], strict=True):
                notes.append((start, end, pitch, int(rng.integers(1, 128)), channel, pitch % 3, 1.0))
    table = np.sort(np.array(notes, dtype=NOTE), order=["start_s", "pitch"])
    controls = [(0.0, mido.Message("control_change", channel=c, control=7, value=127)) for c in range(16)]
    changes = [0.0, *np.sort(rng.uniform(0, 30, 2)).tolist()]
    tempos = np.array([(time, float(rng.uniform(30, 300))) for time in changes])
    beats = tempo_map(Score(table, [], tempos, [], []))
    bar = float(rng.integers(2, 8))
    later = float(beats.seconds(bar * float(rng.integers(1, 5))))
    return Score(table, controls, tempos, [(0.0, int(bar), 4), (later, int(rng.integers(2, 8)), 4)], [])


def bars(score: Score, seconds: float) -> np.ndarray:
    """Beats and downbeats, counted one by one from each metre."""
    tempos, found = tempo_map(score), []
    for i, (time, numerator, _) in enumerate(score.metres):
        begin = round(float(tempos.quarters(time)))
        end = float(tempos.quarters(score.metres[i + 1][0] if i + 1 < len(score.metres) else seconds))
        found += [
            (float(tempos.seconds(q)), (q - begin) % numerator == 0) for q in range(begin, int(np.ceil(end - 1e-6)))
        ]
    return np.array(found)


@settings(max_examples=30, deadline=None)
@given(scores(), st.floats(0, 20), st.floats(1, 10))
def test_a_clip_has_the_notes_and_beats_of_its_window(tmp_path_factory, score, start_s, seconds):
    path = tmp_path_factory.mktemp("clip") / "a.mid"
    clip = clip_score(score, [(start_s, start_s + seconds)], Beats(tempo_map(score), score.metres))
    path.write_bytes(midi_file(clip, seconds))
    notes = score.notes[(score.notes["start_s"] < start_s + seconds) & (score.notes["end_s"] > start_s)]
    if not len(notes):
        with pytest.raises(ValueError, match="holds no notes"):
            read_score(path)
        return
    found = read_score(path)
    assert len(found.notes) == len(notes)
    by_key = found.notes[np.lexsort((found.notes["start_s"], found.notes["pitch"], found.notes["channel"]))]
    expected = notes[np.lexsort((notes["start_s"], notes["pitch"], notes["channel"]))]
    for name in ("pitch", "velocity", "channel", "program"):
        assert (by_key[name] == expected[name]).all()
    assert by_key["start_s"] == pytest.approx(np.maximum(expected["start_s"] - start_s, 0), abs=1e-3)
    assert by_key["end_s"] == pytest.approx(np.minimum(expected["end_s"] - start_s, seconds), abs=1e-3)

    beats = bars(score, 60.0)
    beats = beats[(beats[:, 0] > start_s + 0.01) & (beats[:, 0] < start_s + seconds - 0.01)]
    heard = beat_grid(found, 0.0, seconds).clicks
    heard = heard[(heard[:, 0] > 0.01) & (heard[:, 0] < seconds - 0.01)]
    assert heard[:, 0] == pytest.approx(beats[:, 0] - start_s, abs=1e-3)
    assert (heard[:, 1] == beats[:, 1]).all()


def test_a_piece_whose_silences_were_cut_out_keeps_its_beats():
    notes = [
        (at, at + 0.4, 60, 90, 0, 0, 1.0) for at in np.concatenate([np.arange(0, 4, 0.5), np.arange(11.5, 16, 0.5)])
    ]
    score = Score(np.array(notes, dtype=NOTE), [], np.array([[0.0, 120.0]]), [(0.0, 4, 4)], [])
    clip = clip_score(score, [(0.0, 5.2), (11.3, 16.0)], Beats(tempo_map(score), score.metres))
    heard = beat_grid(clip, 0.0, 5.2 + 4.7).clicks
    assert np.isin(np.round(clip.notes["start_s"], 6), np.round(heard[:, 0], 6)).all()
    assert heard[heard[:, 1] == 1, 0] == pytest.approx([0, 2, 4, 5.9, 7.9])  # 12 and 14 s of the piece


def test_a_performance_is_told_from_written_music():
    rng = np.random.default_rng(0)
    times = np.sort(rng.uniform(0, 60, 400))
    tempos = np.array([[0.0, 120.0]])
    free = Score(np.array([(t, t + 0.1, 60, 90, 0, 0, 1.0) for t in times], dtype=NOTE), [], tempos, [], [])
    written = free._replace(notes=free.notes.copy())
    written.notes["start_s"] = np.round(times * 8) / 8
    assert not on_grid(free, tempo_map(free))
    assert on_grid(written, tempo_map(written))


def test_the_audio_is_the_same_with_and_without_notes(tmp_path, config):
    score = band(tmp_path / "a.mid")
    for name, contexts in (("plain", False), ("noted", True)):
        for loudness in (None, (-20.0, -14.0)):
            made = replace(config, contexts=contexts, variants=2, pan_share=0.5, channels=2, loudness_range=loudness)
            render_scores([score], tmp_path / f"{name}{loudness is None}", made)
    for loud in (True, False):
        plain, noted = (rows(tmp_path / f"{name}{loud}") for name in ("plain", "noted"))
        assert len(plain) == len(noted) == 4
        for one, other in zip(plain, noted, strict=True):
            files = [tmp_path / f"{name}{loud}" / one["file_name"] for name in ("plain", "noted")]
            assert files[0].read_bytes() == files[1].read_bytes()
            assert {**one, "midi": other["midi"], "render": other["render"]} == other
            assert other["midi"] == one["file_name"].replace(".flac", ".mid")
        assert not list((tmp_path / f"plain{loud}").rglob("*.mid"))


def test_the_notes_beside_a_clip_play_it_again(tmp_path, config, synthesizer):  # noqa: F811
    render_scores(
        [band(tmp_path / "a.mid")], tmp_path / "out", replace(config, variants=2, max_clips=1, drumless_share=0.5)
    )
    for row in rows(tmp_path / "out"):
        audio, rate = soundfile.read(tmp_path / "out" / row["file_name"])
        score = read_score(tmp_path / "out" / row["midi"])
        again = row["render"]
        assert (again["soundfont"], again["backend"]) == (Path(synthesizer.soundfont).name, synthesizer.backend)
        assert bool((score.notes["channel"] == DRUM_CHANNEL).any()) is not row["drums_left_out"]
        effects = Effects(**again["effects"])
        (played,) = synthesize(
            score,
            [(0.0, 5.0)],
            Path(synthesizer.soundfont),
            sample_rate=rate,
            effects=effects,
            backend=again["backend"],
        )
        played = played.mean(axis=1) * again["gain"]
        late = slice(rate, None)  # what sounded before the clip has faded
        assert np.std(played[late]) == pytest.approx(np.std(audio[late]), rel=0.1)
        # Synthesizers begin notes at the next block of samples, so waves differ in phase, which spectra do not.
        levels = [np.abs(stft(x[late], rate, nperseg=512)[2]) ** 0.3 for x in (played, audio)]
        assert np.corrcoef(levels[0].ravel(), levels[1].ravel())[0, 1] > 0.95
        tempo = 60 / np.diff(beat_grid(score, 0.0, 5.0).times_s).mean()
        assert tempo == pytest.approx(row["tempo_bpm"], abs=0.1)


def test_a_whole_piece_without_its_silences_has_its_notes_in_place(tmp_path, config):
    notes = [(at, 1, 60, 0) for at in [*range(8), *range(48, 56)]]
    score = write_score(tmp_path / "a.mid", notes, programs={0: 16})
    exact = {"tempo_range": (1.0, 1.0), "transpose_range": (0, 0), "program_share": 0.0}
    render_scores([score], tmp_path / "out", replace(config, clip_s=None, **exact))
    (row,) = rows(tmp_path / "out")
    found = read_score(tmp_path / "out" / row["midi"])
    assert len(found.notes) == 16
    audio, rate = soundfile.read(tmp_path / "out" / row["file_name"])
    loud = np.abs(audio) > 0.02 * np.abs(audio).max()
    second = found.notes["start_s"][8]
    assert 4.0 < second < row["duration_s"] - 3.9
    assert loud[round((second + 0.02) * rate) : round((second + 0.2) * rate)].any()
    assert not loud[round((second - 0.3) * rate) : round((second - 0.01) * rate)].any()


def test_a_clip_that_is_made_anew_leaves_no_notes_of_before(tmp_path, config):
    score = band(tmp_path / "a.mid")
    render_scores([score], tmp_path / "out", replace(config, max_clips=2))
    assert len(list((tmp_path / "out").rglob("*.mid"))) == 2
    band(score, beats=12)
    assert render_scores([score], tmp_path / "out", replace(config, max_clips=2)).changed == 1
    assert [p.name for p in sorted((tmp_path / "out").rglob("*.mid"))] == [Path(rows(tmp_path / "out")[0]["midi"]).name]
