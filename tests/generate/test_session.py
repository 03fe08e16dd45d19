"""Sessions: the same music alone, in batches and on threads; progress, cancelling, pieces."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch

from musicldm import MusicLDMPipeline
from musicldm.audio import read_recipe, write_audio
from musicldm.cli import main
from musicldm.config import LoraConfig
from musicldm.generate import Cancelled, Piece, Progress, Request, Session
from musicldm.models.adapters import add_adapter, save_adapter, save_concept
from musicldm.models.clap import clap_feature_extractor
from musicldm.models.clap_embedder import ClapEmbedder
from musicldm.novelty import CopyError
from musicldm.novelty.build import build_index
from musicldm.sampling.schedulers import make_scheduler
from tests.helpers.melodies import RATE, melody

WALTZ = Request("a waltz", seed=1, steps=4, seconds=0.4)


@pytest.fixture(scope="module")
def session(tiny_folder):
    return Session(tiny_folder, "cpu", fast=False)


@pytest.fixture(scope="module")
def adapters(tiny_folder, tmp_path_factory):
    """An adapter and the concept <mine>, with random weights."""
    folders = {}
    for seed, name in enumerate(("lora", "concept")):
        torch.manual_seed(seed)
        unet = MusicLDMPipeline.from_pretrained(tiny_folder).unet
        add_adapter(unet, LoraConfig(rank=2))
        for parameter in unet.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.3)
        folders[name] = folder = tmp_path_factory.mktemp("adapters")
        save_adapter(unet, folder) if name == "lora" else save_concept(folder, "<mine>", torch.randn(32), unet)
    return {name: (str(folder),) for name, folder in folders.items()}


def test_requests_on_threads_are_those_one_by_one(session, adapters):
    requests = [replace(WALTZ, scheduler=name, seed=i) for i, name in enumerate(("ddim", "euler-a", "dpm++", "heun"))]
    requests += [replace(WALTZ, **{name: folder}) for name, folder in adapters.items()]
    requests += [
        replace(WALTZ, guidance=1.0, candidates=2),
        replace(WALTZ, prompt="<mine>", concept=adapters["concept"]),
    ]
    alone = [session.run(request) for request in requests]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(session.run, requests * 2))
    for request, piece, expected in zip(requests * 2, together, alone * 2, strict=True):
        assert np.array_equal(piece.waveform, expected.waveform), request
        assert piece.recipe == expected.recipe
    differences = [np.abs(piece.waveform - alone[0].waveform).max() for piece in alone[1:]]
    assert min(differences) > 1e-3  # or nothing was compared


@pytest.mark.parametrize("fast", [True, False])
def test_the_command_makes_what_the_pipeline_makes_to_the_bit(fast, tiny_folder, tmp_path):
    pipeline = MusicLDMPipeline.from_pretrained(tiny_folder).optimize(bfloat16=None if fast else False)
    pipeline.scheduler = make_scheduler("dpm++", pipeline.scheduler)
    pipeline.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": 3, "guidance_scale": 4.0, "guidance_interval": (0.2, 0.7), "seed": 5}
    made = pipeline(["calm piano", "fast drums"], 0.5, **options).audios
    arguments = ["generate", "calm piano", "fast drums", "--model", tiny_folder, "--device", "cpu", "--seed", 5]
    arguments += ["--steps", 3, "--seconds", 0.5, "--out", tmp_path, "--no-figure", "--fast" if fast else "--no-fast"]
    assert main([str(argument) for argument in arguments]) == 0
    for name, waveform in zip(("calm-piano_seed5.wav", "fast-drums_seed6.wav"), made, strict=True):
        written, _ = soundfile.read(tmp_path / name, dtype="int16")
        assert np.array_equal(written, np.round(waveform * 32768).clip(-32768, 32767).astype(np.int16))
        assert written.std() > 100


def test_one_call_makes_requests_of_different_settings_in_their_order(session, adapters):
    requests = [
        WALTZ,
        replace(WALTZ, prompt="fast drums", seed=9),
        replace(WALTZ, seconds=0.2, negative="drums"),
        replace(WALTZ, lora=adapters["lora"]),
        replace(WALTZ, candidates=3),
        WALTZ,
    ]
    seen = []
    pieces = list(session.run_many(requests, progress=seen.append))
    assert [piece.recipe["prompt"] for piece in pieces] == [request.prompt for request in requests]
    for request, piece in zip(requests, pieces, strict=True):
        assert np.abs(piece.waveform - session.run(request).waveform).max() < 1e-4
    assert np.array_equal(pieces[0].waveform.shape, pieces[1].waveform.shape)
    groups = list(dict.fromkeys((one.first, one.last) for one in seen))
    assert groups == [(1, 2), (3, 3), (4, 4), (5, 5), (6, 6)]
    assert len(list(session.run_many([WALTZ] * 3, at_once=1))) == 3


@pytest.mark.parametrize("name", ["dpm++", "pndm", "heun"])
def test_progress_counts_every_step(session, name):
    seen = []
    session.run(replace(WALTZ, scheduler=name), progress=seen.append)
    assert seen == [Progress(step, 4, 1, 1, 1) for step in range(1, 5)]


@pytest.mark.parametrize("after", [0, 2])
def test_cancelling_stops_within_two_steps(session, after):
    cancel, seen = threading.Event(), []
    if not after:
        cancel.set()

    def progress(where):
        seen.append(where.step)
        if where.step == after:
            cancel.set()

    with pytest.raises(Cancelled, match=f"cancelled after step {after and after + 1} of 20"):
        session.run(replace(WALTZ, steps=20), progress, cancel)
    assert len(seen) == after
    with pytest.raises(Cancelled):
        list(session.run_many([WALTZ] * 2, cancel=lambda: True))
    session.run(WALTZ)  # the session goes on


def test_a_cancelled_call_gives_the_pieces_that_were_complete(session):
    requests = [replace(WALTZ, seconds=0.2), WALTZ]
    made, started = [], []

    def collect():
        for piece in session.run_many(requests, progress=started.append, cancel=lambda: len(made) == 1):
            made.append(piece)

    with pytest.raises(Cancelled):
        collect()
    assert len(made) == 1
    assert len(started) == WALTZ.steps


def test_adapters_leave_the_model_and_each_other_alone(session, adapters):
    plain = session.run(WALTZ).waveform
    changed = session.run(replace(WALTZ, lora=adapters["lora"]))
    halved = session.run(replace(WALTZ, lora=(f"{adapters['lora'][0]}:0.5",)))
    session.run(replace(WALTZ, concept=adapters["concept"], prompt="<mine>"))
    assert np.array_equal(session.run(WALTZ).waveform, plain)
    assert np.array_equal(session.run(replace(WALTZ, lora=adapters["lora"])).waveform, changed.waveform)
    assert np.abs(plain - changed.waveform).max() > 1e-3
    assert np.abs(halved.waveform - changed.waveform).max() > 1e-3
    assert set(changed.recipe["adapters"]) == set(adapters["lora"])
    assert session.run(WALTZ).recipe["adapters"] == {}


def test_a_piece_tells_how_to_make_it_again(session, tmp_path):
    piece = session.run(replace(WALTZ, seed=None, candidates=2, guidance_interval=(0.0, 0.5)))
    assert piece.score == piece.recipe["score"]
    assert piece.novelty is None
    piece.save(tmp_path / "a.flac")
    piece.figure(tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    recipe = read_recipe(tmp_path / "a.flac")
    assert recipe == piece.recipe
    again = session.run(Request.from_recipe(recipe))
    assert np.array_equal(again.waveform, piece.waveform)
    assert again.recipe == recipe


def test_all_channels_are_written_and_drawn(tmp_path):
    waveform = np.stack([np.linspace(-0.5, 0.5, 8000), np.zeros(8000)]).astype(np.float32)
    piece = Piece(waveform, 8000, {"prompt": "left only"})
    piece.save(tmp_path / "a.wav")
    piece.figure(tmp_path / "a.png")
    samples, rate = soundfile.read(tmp_path / "a.wav")
    assert (samples.shape, rate) == ((8000, 2), 8000)
    assert np.abs(samples.T - waveform).max() < 1 / 2**15
    assert (tmp_path / "a.png").exists()


def test_memory_is_that_of_the_largest_batch(session):
    short, long = session.memory([WALTZ]), session.memory([WALTZ, replace(WALTZ, seconds=4.0)])
    assert 0 < short < long
    with pytest.raises(ValueError, match="GiB of memory"):
        session.memory([replace(WALTZ, seconds=1e9)])


def test_the_guard_of_an_index_judges_some_requests_and_refuses_others(tiny_parts, tmp_path):
    front_end = clap_feature_extractor(16_000, 5, hop_length=640, n_mels=16, f_max=8000.0)
    MusicLDMPipeline(**tiny_parts | {"feature_extractor": front_end}).save_pretrained(tmp_path / "model")
    session = Session(tmp_path / "model", "cpu", fast=False)
    (tmp_path / "data").mkdir()
    for i in range(4):
        write_audio(tmp_path / "data" / f"{i}.wav", melody(i), RATE)
    clap = session.pipeline(WALTZ)
    embedder = ClapEmbedder(clap.text_encoder, clap.feature_extractor, clap.sampling_rate)
    build_index(tmp_path / "data", tmp_path / "index", embedder, progress=False)
    told = replace(WALTZ, seconds=2.5, novelty="report", index=tmp_path / "index")
    requests = [told, replace(told, novelty="avoid", max_similarity=-0.99), replace(WALTZ, seconds=2.5)]
    made = []

    def collect():
        for piece in session.run_many(requests):
            made.append(piece)

    with pytest.raises(CopyError) as error:
        collect()
    assert error.value.refused == (1,)
    reported, plain = made
    assert np.array_equal(reported.waveform, plain.waveform)
    assert reported.novelty["verdict"] in ("copy", "close", "new")
    assert reported.recipe["nearest_training_clips"] == reported.novelty
    assert plain.novelty is None
    with ThreadPoolExecutor(3) as pool:
        for piece in pool.map(session.run, [told] * 3):
            assert np.array_equal(piece.waveform, reported.waveform)
            assert piece.recipe == reported.recipe


def test_what_a_session_cannot_do_is_refused(session, tiny_folder):
    with pytest.raises(ValueError, match="dtype must be one of auto, float32"):
        Session(tiny_folder, "cpu", "float8")
    with pytest.raises(ValueError, match="no device 'abacus'"):
        Session(tiny_folder, "abacus")
    with pytest.raises(FileNotFoundError, match="no adapter at nowhere"):
        session.run(replace(WALTZ, lora=("nowhere",)))
    with pytest.raises(ValueError, match="the model carries none"):
        session.run(replace(WALTZ, novelty="avoid"))
