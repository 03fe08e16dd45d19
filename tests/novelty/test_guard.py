"""The copy guard, on a tiny model whose training set holds what it makes from one seed."""

import copy
import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from accelerate import cpu_offload

from musicldm.audio import read_recipe, write_audio
from musicldm.cli import main
from musicldm.models.clap import clap_feature_extractor
from musicldm.models.clap_embedder import ClapEmbedder
from musicldm.models.context import add_context
from musicldm.novelty import CopyError
from musicldm.novelty.build import build_index
from musicldm.novelty.guard import ROUNDS, CopyGuard
from musicldm.novelty.index import NoveltyIndex
from musicldm.novelty.steering import FLOOR_DB
from musicldm.pipelines.text_to_music import MusicLDMPipeline
from musicldm.scores.sketches import Sketch
from tests.helpers.melodies import melody
from tests.novelty.test_steering import Oracle

PROMPT = "a slow waltz for solo piano"
OPTIONS = {"audio_length_in_s": 3, "num_inference_steps": 2}
COPIED_SEED = 0


def make_pipeline(parts):
    front_end = clap_feature_extractor(16_000, 5, hop_length=640, n_mels=16, f_max=8000.0)
    pipeline = MusicLDMPipeline(**parts | {"feature_extractor": front_end})
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def index_folder(tiny_parts, tmp_path_factory):
    pipeline, data = make_pipeline(tiny_parts), tmp_path_factory.mktemp("data")
    made = pipeline(PROMPT, seed=COPIED_SEED, **OPTIONS)
    write_audio(data / "learned.wav", made.audios[0], made.sampling_rate)
    for i in range(6):
        write_audio(data / f"{i}.wav", melody(i), 16_000)
    folder = tmp_path_factory.mktemp("index") / "index"
    build_index(
        data,
        folder,
        ClapEmbedder(pipeline.text_encoder, pipeline.feature_extractor, pipeline.sampling_rate),
        progress=False,
    )
    return folder


@pytest.fixture(scope="module")
def guard(tiny_parts, index_folder):
    return CopyGuard(make_pipeline(tiny_parts), index_folder)


@pytest.fixture(scope="module")
def pipeline(guard):
    return guard.pipeline


def test_report_names_the_training_clip_and_changes_nothing(guard, pipeline):
    plain = pipeline(PROMPT, seed=COPIED_SEED, **OPTIONS)
    told = guard(PROMPT, seed=COPIED_SEED, mode="report", **OPTIONS)
    assert plain.novelty is None
    assert np.array_equal(plain.audios, told.audios)
    (found,) = told.novelty
    assert (found["verdict"], found["too_close"], found["draws"]) == ("copy", True, 1)
    assert found["passage"]["recording"] == "learned.wav"


def test_avoid_draws_again_only_what_is_too_close(guard, pipeline):
    # prompt 0 starts from the seed that was learned, prompt 1 from the next one
    plain = pipeline([PROMPT, PROMPT], seed=COPIED_SEED, **OPTIONS)
    avoided = guard([PROMPT, PROMPT], seed=COPIED_SEED, mode="avoid", **OPTIONS)
    assert [found["draws"] for found in avoided.novelty] == [2, 1]
    assert not any(found["too_close"] for found in avoided.novelty)
    assert not np.allclose(avoided.audios[0], plain.audios[0], atol=0.05)
    assert np.allclose(avoided.audios[1], plain.audios[1], atol=1e-4)
    again = guard([PROMPT, PROMPT], seed=COPIED_SEED, mode="avoid", **OPTIONS)
    assert np.array_equal(again.audios, avoided.audios)


class RejectsTheFirst(CopyGuard):
    """Finds the first waveform that it hears too close."""

    heard = 0

    def judge(self, waveform, sample_rate, max_similarity=None):
        self.heard += 1
        return super().judge(waveform, sample_rate, max_similarity) | {"too_close": self.heard == 1}


def test_a_prompt_that_is_drawn_again_keeps_its_context(tiny_parts, index_folder):
    parts = tiny_parts | {"unet": copy.deepcopy(tiny_parts["unet"])}
    add_context(parts["unet"], ("click",))
    shown = []  # for each call of the UNet, which rows have a context
    parts["unet"].register_forward_pre_hook(lambda _, inputs: shown.append(inputs[0][:, 9].flatten(1).any(1).tolist()))
    contexts = [None, Sketch.click(240, seconds=3)]
    options = {"num_inference_steps": 2, "guidance_scale": 1, "seed": 1}
    made = RejectsTheFirst(make_pipeline(parts), index_folder)([PROMPT, PROMPT], context=contexts, **options)
    assert [found["draws"] for found in made.novelty] == [2, 1]
    assert made.audios.shape == (2, 24000)
    assert any(any(rows) for rows in shown[: len(shown) // 2])
    assert not any(any(rows) for rows in shown[-2:])
    made = RejectsTheFirst(make_pipeline(parts), index_folder)([PROMPT, PROMPT], context=contexts[::-1], **options)
    assert [found["draws"] for found in made.novelty] == [2, 1]
    assert all(shown[-1])


def test_the_best_of_the_new_candidates_comes_back(guard):
    options = OPTIONS | {"num_waveforms_per_prompt": 3, "seed": COPIED_SEED}
    made = guard(PROMPT, return_best=2, mode="avoid", **options)
    told = guard(PROMPT, mode="report", **options)
    new = [score for score, found in zip(told.scores[0], told.novelty, strict=True) if not found["too_close"]]
    assert made.scores.shape == (1, 2)
    assert made.scores[0].tolist() == pytest.approx(new[:2])
    assert [found["draws"] for found in made.novelty] == [3, 3]


def test_without_a_new_draw_there_is_an_error_that_names_the_clip(guard):
    with pytest.raises(CopyError, match=r"\.wav.*similarity") as caught:
        guard([PROMPT, PROMPT], seed=COPIED_SEED, mode="avoid", max_similarity=-0.99, **OPTIONS)
    assert caught.value.refused == (0, 1)
    made = guard(PROMPT, seed=COPIED_SEED, mode="least_similar", max_similarity=-0.99, **OPTIONS)
    assert made.novelty[0]["draws"] == ROUNDS
    assert made.novelty[0]["verdict"] != "copy"


def test_a_window_of_the_training_set_is_too_close(guard, pipeline, monkeypatch):
    made = pipeline(PROMPT, seed=COPIED_SEED + 1, **OPTIONS)
    assert not guard.judge(made.audios[0], made.sampling_rate)["too_close"]
    monkeypatch.setitem(guard.index.about["base_rate"], "window_similarity_99", -0.99)
    found = guard.judge(made.audios[0], made.sampling_rate)
    assert (found["verdict"], found["too_close"], found["window"]["threshold"]) == ("close", True, -0.99)
    # a limit of one's own is on clips
    assert not guard.judge(made.audios[0], made.sampling_rate, max_similarity=1.0)["too_close"]
    with pytest.raises(CopyError, match=rf"{PROMPT}': .*\.wav .*that of 2 s \d\.\d+, at most -0\.990"):
        guard(PROMPT, seed=COPIED_SEED + 1, mode="avoid", **OPTIONS)


def test_what_cannot_be_guarded_is_refused(tiny_parts, guard, pipeline, index_folder):
    with pytest.raises(ValueError, match="the model carries none; give the folder of one"):
        CopyGuard(make_pipeline(tiny_parts))
    for options, message in (
        ({"mode": "prevent"}, "avoid"),
        ({"mode": None, "max_similarity": 0.9}, "mode must be one of report, avoid, least_similar, got None"),
        ({"max_similarity": 2.0}, "cosine"),
        ({"max_similarity": "0.9"}, "max_similarity must be a finite number"),
        ({"mode": ["avoid"]}, "mode must be one of"),
        ({"num_waveforms_per_prompt": "2"}, "num_waveforms_per_prompt must be a whole number"),
        ({"return_best": 2}, "return_best must be a whole number from 1 to 1, got 2"),
        ({"audio_length_in_s": "5"}, "audio_length_in_s must be a finite number"),
        ({"generator": 7}, "generator must be"),
        ({"guidance_interval": None}, "guidance_interval must be"),
        ({"output_type": "latent"}, "latents"),
        ({"latents": object()}, "seed"),
        ({"mode": "report", "audio_length_in_s": 1.0}, "too short"),
    ):
        with pytest.raises(ValueError, match=message):
            guard(PROMPT, **OPTIONS | options)
    with pytest.raises(TypeError, match="stepz"):
        guard(PROMPT, stepz=3)
    full = ClapEmbedder(pipeline.text_encoder, pipeline.feature_extractor)
    index = NoveltyIndex(index_folder)
    index.about["embedder"] = full.name
    with pytest.raises(ValueError, match="full rate of CLAP"):
        index.check_embedder(guard.embedder.name)
    rounded = make_pipeline(tiny_parts)
    rounded.text_encoder = copy.deepcopy(rounded.text_encoder).bfloat16()
    with pytest.raises(ValueError, match="bfloat16"):
        CopyGuard(rounded, index_folder)
    other = make_pipeline(tiny_parts)
    other.text_encoder = type(other.text_encoder)(other.text_encoder.config)  # other weights
    with pytest.raises(ValueError, match="was made with the embedding"):
        CopyGuard(other, index_folder)


@pytest.mark.slow
def test_what_is_judged_is_checked(guard, pipeline, index_folder):
    noise = np.zeros(8000, np.float32)
    for waveform, rate, most, message in (
        ("music.wav", 8000, None, "waveform must be floats"),
        (np.zeros(8000, np.int16), 8000, None, "waveform must be floats .* int16"),
        (np.zeros((1, 1, 9)), 8000, None, r"waveform must be floats .* \(1, 1, 9\)"),
        (np.full(8000, np.nan), 8000, None, "waveform holds NaN"),
        (noise, "8000", None, "sample_rate must be a whole number"),
        (noise, 8000, float("nan"), "max_similarity must be a finite number"),
    ):
        with pytest.raises(ValueError, match=message):
            guard.judge(waveform, rate, most)
    assert guard.judge(torch.zeros(8000), 8000)["verdict"] == "silent"
    for arguments, message in (
        ((pipeline, 3), r"index must be a NoveltyIndex, its folder, or None, got 3 \(int\)"),
        (("mini", index_folder), "pipeline must be a MusicLDMPipeline, got 'mini'"),
        ((pipeline, index_folder, float("nan")), "strength must be a finite number of at least 0"),
        ((pipeline, index_folder, -1), "strength must be a number of at least 0, got -1"),
    ):
        with pytest.raises(ValueError, match=message):
            CopyGuard(*arguments)


def test_command_keeps_what_is_new_and_exits_with_3(pipeline, index_folder, tmp_path, capsys):
    pipeline.save_pretrained(tmp_path / "model")
    capsys.readouterr()
    options = ["--model", tmp_path / "model", "--seconds", 3, "--steps", 2, "--scheduler", "ddim", "--no-figure"]
    options += ["--seed", 0, "--index", index_folder, "--novelty"]

    def run(out, *arguments):
        return main(["generate", PROMPT, "--out", str(tmp_path / out), "--json", *map(str, [*options, *arguments])])

    assert run("a", "report") == 0
    told = json.loads(capsys.readouterr().out)
    assert read_recipe(told["file"])["nearest_training_clips"] == told["nearest_training_clips"]
    assert told["nearest_training_clips"]["nearest"][0]["recording"].endswith(".wav")
    assert run("b", "avoid", "--max-similarity", -0.99) == 3
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert PROMPT in err
    assert not (tmp_path / "b").exists()
    assert run("c", "least_similar", "--max-similarity", -0.99) == 0
    capsys.readouterr()
    assert main(["generate", PROMPT, "--novelty", "report"]) == 2
    assert "--index" in capsys.readouterr().err
    assert main(["generate", PROMPT, "--max-similarity", "0.9"]) == 2
    assert "--novelty" in capsys.readouterr().err


def test_only_what_is_drawn_again_is_steered(guard, pipeline):
    steered = guard([PROMPT, PROMPT], seed=COPIED_SEED, **OPTIONS)
    plain = CopyGuard(pipeline, guard.index, strength=0.0)([PROMPT, PROMPT], seed=COPIED_SEED, **OPTIONS)
    assert [found["draws"] for found in steered.novelty] == [2, 1]
    assert np.abs(steered.audios[0] - plain.audios[0]).max() > 0.01
    assert np.allclose(steered.audios[1], plain.audios[1], atol=1e-4)


@pytest.mark.slow
def test_eight_requests_on_four_threads(guard):
    """Of one guard: half of them are drawn again."""

    def run(number):
        return guard(PROMPT, seed=number % 2, mode="least_similar" if number % 3 else "avoid", **OPTIONS)

    alone = [run(number) for number in range(8)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(run, range(8)))
    assert [one.novelty[0]["draws"] for one in alone] == [2, 1] * 4
    for one, other in zip(alone, together, strict=True):
        assert np.array_equal(one.audios, other.audios)
        assert one.novelty == other.novelty


def test_a_correction_of_ones_own_stays(guard, pipeline):
    def halve(prediction, model_input, timestep):
        return prediction / 2

    plain = pipeline(PROMPT, seed=COPIED_SEED + 1, **OPTIONS).audios
    halved = pipeline(PROMPT, seed=COPIED_SEED + 1, correct=halve, **OPTIONS).audios
    assert np.abs(halved - plain).max() > 0.01
    assert np.array_equal(guard(PROMPT, mode="report", seed=COPIED_SEED + 1, correct=halve, **OPTIONS).audios, halved)


def test_music_is_drawn_again_where_layers_come_when_called(tiny_parts, index_folder):
    """Sequential offload on the CPU, which the pipeline's method refuses for want of an accelerator."""
    expected = CopyGuard(make_pipeline(tiny_parts), index_folder)(PROMPT, seed=COPIED_SEED, **OPTIONS)
    copied = copy.deepcopy({name: tiny_parts[name] for name in ("unet", "vae", "vocoder")})
    pipeline = make_pipeline(tiny_parts | copied)
    for part in copied.values():
        cpu_offload(part, torch.device("cpu"))
    made = CopyGuard(pipeline, index_folder)(PROMPT, seed=COPIED_SEED, **OPTIONS)
    assert made.novelty[0]["draws"] == 2
    np.testing.assert_allclose(made.audios, expected.audios, atol=1e-4)


@pytest.mark.parametrize("seconds", [2, 3.001])
def test_rejected_music_becomes_latents_as_long_as_those_it_came_from(pipeline, seconds):
    options = {"seed": 1, "audio_length_in_s": seconds, "num_inference_steps": 2}
    latents = pipeline(PROMPT, output_type="latent", **options).audios
    made = pipeline(PROMPT, **options)
    assert pipeline.encode_audio(made.audios, made.sampling_rate).shape == latents.shape


@pytest.fixture
def memory(tmp_path, monkeypatch):
    """A guard of `mini` whose UNet knows nothing but one clip of the index."""
    pipeline = MusicLDMPipeline.from_pretrained("mini")
    pipeline.set_progress_bar_config(disable=True)
    for i in range(7):
        write_audio(tmp_path / f"{i}.wav", melody(i), 16_000)
    embedder = ClapEmbedder(pipeline.text_encoder, pipeline.feature_extractor, pipeline.sampling_rate)
    build_index(tmp_path, tmp_path / "index", embedder, progress=False)
    learned = pipeline.encode_audio(melody(0)[: 4 * 16_000], 16_000)
    monkeypatch.setattr(pipeline.unet, "forward", Oracle(pipeline.scheduler, learned).forward)
    return CopyGuard(pipeline, tmp_path / "index", strength=1.0)


MEMORY_OPTIONS = {"audio_length_in_s": 4, "num_inference_steps": 4, "guidance_scale": 1.0, "seed": 0}


def test_weaker_steering_is_preferred_to_a_hum(memory, monkeypatch):
    (found,) = memory(PROMPT, **MEMORY_OPTIONS).novelty
    assert (found["too_close"], found["hum"], found["steering"]) == (False, False, 0.5)
    assert found["movement_db"] > FLOOR_DB
    # as it begins by default
    default = CopyGuard(memory.pipeline, memory.index)
    assert default.strength == 0.5
    (found,) = default(PROMPT, **MEMORY_OPTIONS).novelty
    assert (found["too_close"], found["hum"]) == (False, False)
    assert 0 < found["steering"] <= 0.5
    # with one draw after the copy there is nothing but a hum
    monkeypatch.setattr("musicldm.novelty.guard.ROUNDS", 2)
    with pytest.raises(CopyError, match=r"0\.wav at .*; .* a hum in 1 of its draws") as caught:
        memory(PROMPT, **MEMORY_OPTIONS)
    (refused,) = caught.value.output.novelty
    (filled,) = memory(PROMPT, mode="least_similar", **MEMORY_OPTIONS).novelty
    for found in (refused, filled):
        assert (found["too_close"], found["hum"], found["steering"], found["draws"]) == (False, True, 1.0, 2)
        assert found["movement_db"] < FLOOR_DB
    # what nothing was taken out of is never a hum, however little it moves
    (told,) = memory(PROMPT, mode="report", **MEMORY_OPTIONS).novelty
    assert (told["verdict"], told["hum"], told["steering"]) == ("copy", False, 0.0)
