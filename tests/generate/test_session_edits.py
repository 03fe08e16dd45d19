"""Sessions edit: the same alone, in lists and on threads; progress, cancelling, candidates, the guard, pictures."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import soundfile

from musicldm import MusicLDMPipeline
from musicldm.audio import read_recipe, write_audio
from musicldm.generate import Cancelled, Edit, EditedPiece, Request, Session
from musicldm.models.clap import clap_feature_extractor
from musicldm.models.clap_embedder import ClapEmbedder
from musicldm.novelty import CopyError
from musicldm.novelty.build import build_index
from musicldm.sampling.schedulers import SCHEDULERS
from tests.helpers.melodies import RATE, melody

SOURCE_RATE = 11_025
WALTZ = Request("a waltz", seed=1, steps=2, seconds=0.4)


@pytest.fixture(scope="module")
def session(tiny_folder):
    return Session(tiny_folder, "cpu", fast=False)


@pytest.fixture(scope="module")
def take(tmp_path_factory):
    """Two seconds of two channels of noise."""
    path = tmp_path_factory.mktemp("sources") / "take.wav"
    soundfile.write(path, 0.2 * np.random.default_rng(0).standard_normal((2 * SOURCE_RATE, 2)), SOURCE_RATE)
    return str(path)


@pytest.fixture(scope="module")
def own(session, tmp_path_factory):
    """A file of the session's own."""
    path = tmp_path_factory.mktemp("sources") / "own.wav"
    session.run(WALTZ).save(path)
    return str(path)


def edits(take, own):
    settings = {"seed": 4, "steps": 2}
    return [
        Edit("inpaint", take, "strings", regions_s=[(0.5, 0.9), (1.5, 1.7)], snap="none", **settings),
        Edit("extend", take, "strings", before_s=0.3, after_s=0.4, **settings),
        Edit("vary", take, "strings", amount=1.0, **settings),
        Edit("retake", own, amount=0.4, **settings),
    ]


def test_edits_in_lists_and_on_threads_are_those_one_by_one(session, take, own):
    wanted = edits(take, own)
    alone = [session.run(edit) for edit in wanted]
    together = list(session.run_many([wanted[0], WALTZ, *wanted[1:], wanted[0]]))
    with ThreadPoolExecutor(3) as pool:
        at_once = list(pool.map(session.run, wanted))
    assert not isinstance(together.pop(1), EditedPiece)
    for piece, expected in zip(together + at_once, [*alone, alone[0], *alone], strict=True):
        assert isinstance(piece, EditedPiece)
        assert np.array_equal(piece.waveform, expected.waveform), piece.recipe["kind"]
        assert piece.recipe == expected.recipe
    assert [piece.waveform.shape for piece in alone[:2]] == [(2, 22_050), (2, 22_050 + 3308 + 4410)]
    assert np.abs(alone[2].waveform).max() > 0.01


def test_an_edited_piece_is_saved_and_drawn(session, take, tmp_path):
    piece = session.run(edits(take, take)[0])
    piece.save(tmp_path / "a.wav")
    piece.save(tmp_path / "a.flac", "flac")
    piece.figure(tmp_path / "a.png")
    assert read_recipe(tmp_path / "a.wav") == read_recipe(tmp_path / "a.flac") == piece.recipe
    old, new = (soundfile.read(path, dtype="int16")[0] for path in (take, tmp_path / "a.wav"))
    changed = np.flatnonzero((old != new).any(axis=1)) / SOURCE_RATE
    assert piece.recipe["regions_s"] == [[0.5, 0.9], [1.5, 1.7]]
    assert changed.min() >= 0.5 - 1 / SOURCE_RATE
    assert changed.max() < 1.7
    assert not ((changed > 0.9) & (changed < 1.5 - 1 / SOURCE_RATE)).any()
    assert np.abs(new / 32768 - piece.waveform.T).max() < 1e-6
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_long_recordings_are_drawn_around_what_is_new(session, tmp_path):
    rate = 8000
    soundfile.write(tmp_path / "long.wav", 0.1 * np.random.default_rng(0).standard_normal(150 * rate), rate)
    edit = Edit("inpaint", tmp_path / "long.wav", "strings", 1, regions_s=[(100, 100.3)], snap="none", steps=1)
    session.run(edit).figure(tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 10_000


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_variation_counts_the_steps_that_it_takes(session, take, name):
    seen = []
    edit = Edit("vary", take, "strings", seed=1, steps=6, amount=0.5, scheduler=name)
    session.run(edit, progress=seen.append)
    assert [one.step for one in seen] == list(range(1, seen[0].steps + 1))
    assert 1 <= len(seen) < 6


def test_an_edit_can_be_cancelled(session, take, own):
    cancel = threading.Event()
    for edit in edits(take, own):
        with pytest.raises(Cancelled):
            session.run(edit, progress=lambda _: cancel.set(), cancel=cancel)
        cancel.clear()


def test_the_best_of_several_candidates_is_kept(session, take, own):
    for edit in edits(take, own):
        best = session.run(replace(edit, candidates=2))
        others = [session.run(replace(edit, seed=edit.seed + k)) for k in range(2)]
        if edit.kind == "retake":
            assert best.score is not None
            continue
        assert best.recipe["score"] == best.score
        near = [np.abs(best.waveform - other.waveform).max() for other in others]
        assert min(near) < 1e-3 < max(near), edit.kind


@pytest.mark.parametrize("name", ["dpm++", "euler-a", "dpm++-sde"])
def test_a_retake_goes_from_one_seed_to_the_other(session, tmp_path, name):
    first = replace(WALTZ, scheduler=name, candidates=2)
    session.run(first).save(tmp_path / "a.wav")
    retakes = {}
    for amount in (0.0, 0.4, 1.0):
        retakes[amount] = session.run(Edit("retake", tmp_path / "a.wav", amount=amount, seed=7))
        retakes[amount].save(tmp_path / f"{amount}.wav")
    assert (tmp_path / "a.wav").read_bytes() != (tmp_path / "0.0.wav").read_bytes()  # the recipe differs
    samples = {key: soundfile.read(tmp_path / f"{key}.wav", dtype="int16")[0] for key in ("a", *retakes)}
    assert np.array_equal(samples[0.0], samples["a"])
    session.run(replace(first, seed=7)).save(tmp_path / "b.wav")
    assert np.array_equal(samples[1.0], soundfile.read(tmp_path / "b.wav", dtype="int16")[0])
    assert min(np.abs(samples[0.4] - samples[end]).max() for end in (0.0, 1.0)) > 100
    again = session.run(Edit("retake", tmp_path / "0.4.wav", amount=0.0, seed=9))
    again.save(tmp_path / "again.wav")
    assert np.array_equal(soundfile.read(tmp_path / "again.wav", dtype="int16")[0], samples[0.4])
    assert again.recipe["noise"] == [[1, 1.0], [7, 0.4]]


def test_loops_and_sections_are_taken_again(session, tmp_path):
    wanted = [
        replace(WALTZ, loop=True, seconds=0.5),
        Request.of_sections([("a waltz", 0.4), ("fast drums", 0.5)], seed=1, steps=2),
    ]
    for i, request in enumerate(wanted):
        piece = session.run(request)
        piece.save(tmp_path / f"{i}.wav")
        assert Request.from_recipe(piece.recipe) == replace(
            request, seconds=piece.recipe["seconds"] if i == 0 else None
        )
        again = session.run(Request.from_recipe(piece.recipe))
        assert np.array_equal(again.waveform, piece.waveform)
        edit = Edit("retake", tmp_path / f"{i}.wav", amount=0.0, seed=3)
        samples = soundfile.read(tmp_path / f"{i}.wav", dtype="float32", always_2d=True)[0].T
        assert np.abs(session.run(edit).waveform - samples).max() < 1e-4
        assert np.abs(session.run(replace(edit, amount=0.5)).waveform - samples).max() > 1e-2


@pytest.fixture(scope="module")
def compared(tiny_parts, tmp_path_factory):
    """A session and the index of a training set for its CLAP."""
    folder = tmp_path_factory.mktemp("compared")
    front_end = clap_feature_extractor(16_000, 5, hop_length=640, n_mels=16, f_max=8000.0)
    MusicLDMPipeline(**tiny_parts | {"feature_extractor": front_end}).save_pretrained(folder / "model")
    session = Session(folder / "model", "cpu", fast=False)
    (folder / "data").mkdir()
    for i in range(4):
        write_audio(folder / "data" / f"{i}.wav", melody(i), RATE)
    clap = session.pipeline(WALTZ)
    embedder = ClapEmbedder(clap.text_encoder, clap.feature_extractor, clap.sampling_rate)
    build_index(folder / "data", folder / "index", embedder, progress=False)
    return session, str(folder / "index")


def test_the_copy_guard_judges_what_is_new(compared, tmp_path):
    session, index = compared
    soundfile.write(tmp_path / "a.wav", 0.2 * np.random.default_rng(0).standard_normal(6 * RATE), RATE)
    edit = Edit("inpaint", tmp_path / "a.wav", "strings", 1, regions_s=[(1, 3.5)], snap="none", steps=1)
    plain = session.run(edit)
    told = session.run(replace(edit, novelty="report", index=index))
    assert plain.novelty is None
    assert told.novelty["verdict"] in ("copy", "close", "new", "silent")
    assert told.recipe["nearest_training_clips"] == told.novelty
    assert np.array_equal(told.waveform, plain.waveform)
    with pytest.raises(CopyError, match=r"a\.wav, 'strings'.*after|after .* draws"):
        session.run(replace(edit, novelty="avoid", index=index, max_similarity=-0.99))
    least = session.run(replace(edit, novelty="least_similar", index=index, max_similarity=-0.99))
    assert least.novelty["draws"] == 4
    sections = Request.of_sections([("a waltz", 1.0), ("drums", 1.5)], seed=1, steps=1, novelty="report", index=index)
    assert session.run(sections).novelty["verdict"] in ("copy", "close", "new", "silent")
    made = list(session.run_many([edit, WALTZ]))
    assert len(made) == 2


def test_what_a_session_cannot_edit_is_refused(session, take, tmp_path):
    with pytest.raises(ValueError, match="GiB of memory"):
        session.run(Edit("extend", take, "strings", after_s=1e9))
    with pytest.raises(ValueError, match=r"a request must be a musicldm\.generate\.Request, or an Edit"):
        session.run("strings")
    with pytest.raises(ValueError, match="the model carries none"):
        session.run(Edit("extend", take, "strings", after_s=3, novelty="avoid"))
    soundfile.write(tmp_path / "short.wav", np.full(10, 0.1), SOURCE_RATE)
    with pytest.raises(ValueError, match="short"):
        session.run(Edit("vary", tmp_path / "short.wav", "strings"))
