"""Verdicts of small collections: few false alarms, by a background of other music, and no copies lost."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from musicldm.audio import read_audio, write_audio
from musicldm.cli.novelty import load_embedder
from musicldm.novelty.alignment import best_match, pitch_frames
from musicldm.novelty.background import background, passage_test, similarity_test
from musicldm.novelty.build import build_index
from musicldm.novelty.check import check, record
from musicldm.novelty.index import NoveltyIndex
from tests.helpers.melodies import RATE, melody, tones
from tests.novelty.test_windows import Pitches

LENGTH_S = 45


class Collection:
    """What a test asks of an index: recordings of 45 s with ``scores`` among each other."""

    def __init__(self, scores, count=None, **base_rate):
        self.piece_of = np.arange(count or len(scores))
        self.n_frames = np.full(len(self.piece_of), 5 * LENGTH_S)
        own = {} if scores is None else {"piece_scores": list(scores)}
        self.about = {"base_rate": {"clips": len(self.piece_of), **own, **base_rate}}


def chance_scores(rng, count, more=0.0):
    """Scores (N, N) of recordings that have nothing to do with each other, with the tail of the background."""
    shipped = background()
    level, rate, scale = shipped["level"], shipped["rate"], shipped["scale"]
    scores = level + more + scale * np.log(rate / rng.uniform(size=(count, count)))
    scores = np.maximum(scores, 0.2)
    scores = np.triu(scores, 1)
    return scores + scores.T


@pytest.mark.parametrize("size", [8, 12, 20, 35, 50])
@pytest.mark.parametrize("more", [0.0, 0.15])  # music that is more alike than the background
def test_two_in_a_hundred_strangers_at_most_are_called_copies(size, more):
    rng = np.random.default_rng(size)
    called, largest = [], []
    for _ in range(200):
        scores = chance_scores(rng, size + 40, more)
        own, strangers = scores[:size, :size].max(axis=1), scores[size:, :size].max(axis=1)
        called.append((strangers > passage_test(Collection(own), LENGTH_S).threshold).mean())
        largest.append((strangers > own.max()).mean())
    assert np.mean(called) < 0.02
    if size == 8:
        assert np.mean(largest) > 0.1  # as it was when the largest value was the threshold


def test_what_is_judged_by_is_told_with_how_sure_it_is():
    few, many = np.full(8, 0.2), chance_scores(np.random.default_rng(0), 8, 0.3).max(axis=1)
    for own, basis in ((few, "background"), (many, "collection")):
        test = passage_test(Collection(own), LENGTH_S)
        assert test.basis == basis
        told = test.record(test.threshold + 0.2)
        assert told["chance"] < told["false_alarm_rate"] == pytest.approx(0.01, rel=0.2)
        low, high = told["false_alarm_interval"]
        assert low < 0.01 < high
        assert told["background"] == background()["name"]
    assert test.chance(1.0) > test.chance(1.2)


def test_longer_music_and_larger_collections_need_more():
    plain = [passage_test(Collection(None, size), LENGTH_S).threshold for size in (8, 20, 50)]
    assert plain == sorted(plain)
    assert plain[0] > background()["level"]
    assert plain[-1] < 0.7
    assert passage_test(Collection(None, 8), 10).threshold < plain[0] < passage_test(Collection(None, 8), 180).threshold


@pytest.mark.parametrize("size", [8, 16, 35])
def test_near_equal_pieces_raise_the_threshold_of_their_collection(size):
    """Their scores among each other have a tail four times as long as the background's, from 0.5 up."""
    rng, called, before = np.random.default_rng(size), [], []
    for _ in range(200):
        scores = 0.5 + np.maximum(0, 0.2 * np.log(0.1 / rng.uniform(size=(size + 40, size + 40))))
        own = (scores - np.diag(np.diag(scores)))[:size, :size].max(axis=1)
        strangers = scores[size:, :size].max(axis=1)
        test = passage_test(Collection(own), LENGTH_S)
        assert test.basis == "collection"
        called.append((strangers > test.threshold).mean())
        before.append((strangers > own.max()).mean())
    assert np.mean(called) < (0.03 if size > 8 else 0.06)  # eight pieces tell little of a tail
    assert np.mean(called) < np.mean(before)


@pytest.mark.parametrize("count", [8, 20, 35, 60, 98])
@pytest.mark.parametrize("dimension", [3, 12])
def test_one_in_a_hundred_is_nearer_than_the_similarity_threshold(count, dimension):
    """Also where fewer than 99 were seen, whatever the CLAP: near for all, or far for all."""
    rng = np.random.default_rng(count)
    for distance in (0.01, 0.4):
        shares, largest, intervals = [], [], []
        for _ in range(300):
            values, others = 1 - distance * rng.uniform(size=(2, count + 500)) ** (1 / dimension)
            found = similarity_test(values[:count])
            assert found.basis == "tail"
            shares.append((others > found.threshold).mean())
            largest.append((others > values[:count].max()).mean())
            intervals.append(found.false_alarms)
        assert 0.003 < np.mean(shares) < (0.02 if count > 8 else 0.035)  # eight values tell little of a tail
        assert np.mean(shares) < np.mean(largest) or count > 60
        low, high = np.mean(intervals, axis=0)
        assert low < 0.01 < high


def test_ninety_nine_similarities_are_counted():
    values = np.linspace(0.1, 0.9, 120)
    found = similarity_test(values)
    assert found.basis == "counted"
    assert found.threshold == np.quantile(values, 0.99, method="weibull")
    low, high = found.false_alarms
    assert 0 < low < 0.01 < high < 0.05


def test_copies_inside_and_alike_values_are_no_trouble_for_similarities():
    plain = 1 - 0.1 * np.random.default_rng(0).uniform(size=40) ** 0.1
    doubled = similarity_test(np.append(plain, [1.0, 1.0])).threshold
    assert similarity_test(plain).threshold < doubled < 0.995
    assert similarity_test(np.full(5, 0.9)) == (0.9, "tail", (0.0, 1.0))


def test_two_versions_of_a_piece_inside_do_not_hide_copies():
    scores = [0.3, 0.32, 0.35, 0.36, 0.38, 0.4, 1.9, 1.9]
    assert passage_test(Collection(scores), LENGTH_S).threshold < 1.0


def test_large_collections_are_judged_by_their_base_rate():
    test = passage_test(Collection([0.5] * 120, score_99=0.43), LENGTH_S)
    assert (test.basis, test.threshold) == ("base rate", 0.43)
    assert test.record(0.5)["chance"] is None


def test_silence_agrees_with_nothing():
    def chord(pitch, before):
        sound, silence = tones([pitch], 1.0), np.zeros(RATE, np.float32)
        return np.concatenate([silence] * before + [sound] + [silence] * (8 - before))

    for before in (0, 3, 6):
        one, other = (pitch_frames(chord(pitch, before), RATE) for pitch in (52, 71))
        assert best_match(one, [other]).score < 0.35
        assert best_match(one, [one]).score > 0.35
    silent = np.zeros((50, 60), np.uint8)
    assert best_match(silent, [silent]).score == 0


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """An index of 8 melodies of 10 s."""
    folder = tmp_path_factory.mktemp("small")
    for seed in range(8):
        write_audio(folder / f"{seed}.wav", melody(seed, 10), RATE)
    return build_index(folder, tmp_path_factory.mktemp("index") / "index", Pitches(), progress=False)


def test_strangers_of_eight_melodies_are_no_copies(small):
    verdicts = [check(melody(seed, 10), RATE, small, Pitches()).verdict for seed in range(100, 120)]
    assert verdicts.count("copy") == 0
    noise = np.random.default_rng(0).normal(size=10 * RATE)
    copied = [melody(seed, 10, semitones=seed - 3) for seed in range(7)]
    copied += [x + 0.3 * x.std() * noise for x in copied[:3]]
    assert {check(np.float32(x), RATE, small, Pitches()).verdict for x in copied} == {"copy"}


def test_indices_made_before_are_judged_by_the_background(small, tmp_path):
    folder = shutil.copytree(small.folder, tmp_path / "index")
    about = json.loads((folder / "index.json").read_text())
    assert len(about["base_rate"].pop("piece_scores")) == 8
    (folder / "index.json").write_text(json.dumps(about))
    found = check(melody(3, 10), RATE, NoveltyIndex(folder), Pitches())
    told = record("a.wav", found, small)
    assert (found.verdict, told["judgement"]["basis"]) == ("copy", "background")
    assert told["passage"]["threshold"] == found.test.threshold
    assert told["base_rate"]["score_99"] == about["base_rate"]["score_99"]


@pytest.mark.slow
def test_strangers_of_eight_recordings_are_no_copies(tmp_path):
    shared = os.environ.get("MUSICLDM_SHARED")
    if not shared:
        pytest.skip("needs recordings: set MUSICLDM_SHARED")
    folder = Path(__file__).parents[2] / shared / "audio"
    paths = sorted(path for path in folder.iterdir() if path.suffix in (".ogg", ".flac"))
    (tmp_path / "data").mkdir()
    for path in paths[:8]:
        (tmp_path / "data" / path.name).symlink_to(path)
    embedder = load_embedder("mini", "cpu")
    index = build_index(tmp_path / "data", tmp_path / "index", embedder, progress=False, windows=False)
    rng, verdicts = np.random.default_rng(0), {"copy": [], "stranger": []}
    for path in paths:
        music, rate = read_audio(path, embedder.feature_extractor.sampling_rate)
        kind = "copy" if path in paths[:8] else "stranger"
        changed = music[7 * rate : 19 * rate] if kind == "copy" else music
        changed = changed + 0.3 * changed.std() * rng.normal(size=len(changed))
        verdicts[kind].append(check(np.float32(changed), rate, index, embedder).verdict)
    assert set(verdicts["copy"]) == {"copy"}
    assert "copy" not in verdicts["stranger"]
