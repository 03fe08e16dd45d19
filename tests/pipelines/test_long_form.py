"""Pieces of several sections: windows denoised together, each with the prompts of what it sees."""

import threading

import numpy as np
import pytest
import torch

import musicldm
from musicldm import MusicLDMLongFormPipeline, Section
from musicldm.config import DiffusionConfig
from musicldm.generate import Request, Session
from musicldm.models.clap import embed_text
from musicldm.pipelines.text_to_music import MusicLDMPipeline
from musicldm.sampling import FLOW_SCHEDULERS, make_scheduler
from musicldm.train.diffusion.objectives import make_scheduler as trained_scheduler
from tests.helpers.tiny import CAPTIONS
from tests.pipelines.test_independent_calls import in_step, on_threads

FAST = {"num_inference_steps": 3, "guidance_scale": 3.0, "output_type": "pt", "seed": 0}
SECTIONS = [Section(CAPTIONS[0], 0.6), Section(CAPTIONS[1], 0.8)]  # the tiny UNet was trained on 0.32 s
HOP, RATE = 80, 8000


@pytest.fixture
def long_form(tiny_pipeline):
    pipeline = MusicLDMLongFormPipeline.from_pipe(tiny_pipeline)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def exact(exact_pipeline):
    pipeline = MusicLDMLongFormPipeline.from_pipe(exact_pipeline)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_a_piece_is_as_long_as_its_sections(long_form):
    output = long_form(SECTIONS, **FAST | {"output_type": "np"})
    assert output.audios.shape == (1, round(1.4 * RATE))
    assert output.audios.dtype == np.float32
    assert output.sampling_rate == RATE
    assert output.scores is None
    (audios,) = long_form(SECTIONS, return_dict=False, **FAST)
    torch.testing.assert_close(audios, torch.from_numpy(output.audios))


def test_a_short_piece_is_what_text_to_music_makes(exact, exact_pipeline):
    """One window, one section: the same noise, the same condition."""
    made = exact([Section("drums", 0.3)], **FAST).audios
    torch.testing.assert_close(made, exact_pipeline("drums", 0.3, **FAST).audios, atol=1e-7, rtol=0)
    loop = exact([Section("drums", 0.32)], loop=True, **FAST).audios
    torch.testing.assert_close(loop, exact_pipeline("drums", 0.32, loop=True, **FAST).audios, atol=1e-7, rtol=0)


def test_text_to_music_in_windows_is_a_piece_of_one_section(exact, exact_pipeline):
    whole = exact([Section("drums", 1.4)], **FAST).audios
    made = exact_pipeline(["drums", "flute"], 1.4, windows=True, **FAST).audios
    torch.testing.assert_close(made[:1], whole, atol=1e-7, rtol=0)
    assert (made[:1] - exact_pipeline("drums", 1.4, **FAST).audios).abs().max() > 1e-3
    short = exact_pipeline("drums", 0.3, windows=True, **FAST).audios
    torch.testing.assert_close(short, exact_pipeline("drums", 0.3, **FAST).audios, atol=1e-7, rtol=0)
    loop = exact_pipeline("drums", 1.28, windows=True, loop=True, **FAST).audios
    torch.testing.assert_close(loop, exact([Section("drums", 1.28)], loop=True, **FAST).audios, atol=1e-7, rtol=0)
    with pytest.raises(ValueError, match="windows must be True or False, got 8"):
        exact_pipeline("drums", windows=8)


def test_a_session_makes_long_music_in_windows(tiny_folder, tiny_pipeline, monkeypatch):
    monkeypatch.setattr("musicldm.generate.session.WINDOWS_FROM_S", 1.0)
    session = Session(tiny_folder, device="cpu", fast=False)
    options = {"num_inference_steps": 2, "guidance_scale": 2.0, "guidance_interval": (0.0, 1.0), "seed": 1}
    tiny_pipeline.scheduler = make_scheduler("dpm++", tiny_pipeline.scheduler)
    for seconds in (1.0, 1.4):
        piece = session.run(Request("drums", 1, seconds=seconds, steps=2, guidance=2.0, guidance_interval=(0.0, 1.0)))
        expected = tiny_pipeline("drums", seconds, windows=seconds > 1, **options).audios[0]
        np.testing.assert_allclose(piece.waveform, expected, atol=1e-4)
        other = tiny_pipeline("drums", seconds, windows=seconds <= 1, **options).audios[0]
        assert np.abs(other - expected).max() > 1e-3


def test_a_prompt_is_heard_where_its_section_lies(exact):
    """Another text from frame 48 on changes what windows share with it: a step of windows further in each of three."""
    texts = [Section(text, 0.96) for text in CAPTIONS[:3]]
    options = FAST | {"output_type": "latent"}
    one = exact(texts, **options).audios
    other = exact([*texts[:2], Section(CAPTIONS[3], 0.96)], **options).audios
    changed = (one - other).abs().amax(dim=(0, 1, 3))
    assert len(changed) == 72
    assert changed[: 48 - 3 * 6].max() == 0
    assert changed[48:].min() > 1e-3


def test_equal_sections_are_one(exact):
    whole = exact([Section("drums", 1.4)], **FAST).audios
    parts = exact([Section("drums", 0.6), Section("drums", 0.8)], **FAST).audios
    torch.testing.assert_close(parts, whole, atol=1e-6, rtol=0)


def test_embeddings_take_the_place_of_texts(exact):
    embeds = embed_text(exact.text_encoder, exact.tokenizer, CAPTIONS[:2]).double()
    made = exact([Section(row, part.seconds) for row, part in zip(embeds, SECTIONS, strict=True)], **FAST).audios
    torch.testing.assert_close(made, exact(SECTIONS, **FAST).audios, atol=1e-7, rtol=0)
    silent = MusicLDMLongFormPipeline.from_pipe(exact, text_encoder=None, tokenizer=None, feature_extractor=None)
    silent.set_progress_bar_config(disable=True)
    made_without = silent([Section(embeds[:1], 0.5)], **FAST | {"guidance_scale": 1.0}).audios
    assert made_without.shape == (1, 4000)


def test_negative_prompts_are_of_the_piece_or_of_each_section(exact):
    one = exact(SECTIONS, negative_prompt="hum", **FAST).audios
    each = exact(SECTIONS, negative_prompt=["hum", "hum"], **FAST).audios
    torch.testing.assert_close(each, one, atol=1e-7, rtol=0)
    assert (exact(SECTIONS, negative_prompt=["hum", "noise"], **FAST).audios - one)[:, -2000:].abs().max() > 1e-4
    assert (exact(SECTIONS, **FAST).audios - one).abs().max() > 1e-4


def test_candidates_are_ranked_by_their_sections(exact):
    options = FAST | {"num_waveforms_per_prompt": 3}
    alone = [exact(SECTIONS, **FAST | {"seed": seed}).audios[0] for seed in range(3)]
    output = exact(SECTIONS, **options)
    assert output.scores.shape == (1, 3)
    assert (output.scores[0].diff() <= 0).all()
    for made in output.audios:
        assert min((made - one).abs().max() for one in alone) < 1e-6
    best = exact(SECTIONS, return_best=1, **options)
    torch.testing.assert_close(best.audios, output.audios[:1])
    embeds, border = embed_text(exact.text_encoder, exact.tokenizer, CAPTIONS[:2]), round(0.6 * RATE)
    for made, score in zip(output.audios, output.scores[0], strict=True):
        parts = made[None, :border], made[None, border:]
        expected = sum(exact.similarity(part, row[None]) for part, row in zip(parts, embeds, strict=True)) / 2
        torch.testing.assert_close(score, expected[0, 0])


def test_a_long_loop_goes_round_in_windows(exact):
    """32 frames, windows lie alike in both halves: noise rotated by a half gives music rotated by as much."""
    noise = torch.randn(1, 4, 32, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    options, section = FAST | {"loop": True}, [Section("drums", 1.28)]
    made = exact(section, latents=noise, **options).audios
    rotated = exact(section, latents=noise.roll(16, 2), **options).audios
    torch.testing.assert_close(rotated, made.roll(16 * 4 * HOP, 1), atol=1e-7, rtol=0)
    odd = exact([Section("drums", 0.6), Section("harp", 0.71)], **options).audios
    assert odd.shape == (1, round(1.31 * RATE))


@pytest.mark.parametrize("kind", ["noise", "flow"])
def test_samplers_and_the_interval_of_guidance(long_form, kind):
    if kind == "flow":
        long_form.scheduler = trained_scheduler(DiffusionConfig(prediction="flow"))
    for name in FLOW_SCHEDULERS:
        long_form.scheduler = make_scheduler(name, long_form.scheduler)
        made = long_form(SECTIONS, guidance_interval=(0.2, 0.7), **FAST).audios
        assert torch.isfinite(made).all()
        assert (made - long_form(SECTIONS, guidance_interval=(0.0, 0.0), **FAST).audios).abs().max() > 1e-4


def test_callbacks_see_the_whole_piece_and_may_end_it(long_form):
    seen, told = [], []

    def stop(pipe, step, timestep, tensors):
        seen.append(tensors["latents"].shape)
        pipe._interrupt = step == 1
        return {}

    long_form(SECTIONS, callback_on_step_end=stop, callback=lambda step, *_: told.append(step), **FAST)
    assert seen == [(1, 4, 35, 4)] * 2
    assert told == [0, 1]

    def unguided(pipe, step, timestep, tensors):
        pipe.guidance_scale = 1.0
        return {}

    options = FAST | {"output_type": "latent"}
    changed = long_form(SECTIONS, callback_on_step_end=unguided, **options).audios
    assert (changed - long_form(SECTIONS, **options).audios).abs().max() > 1e-3


def test_the_network_sees_a_few_windows_at_a_time(long_form, monkeypatch):
    """However long the piece is, no call of the UNet is of more than 4 windows, twice for guidance."""
    sizes = []
    hook = long_form.unet.register_forward_pre_hook(lambda _, args: sizes.append(tuple(args[0].shape)))
    try:
        long_form([Section("drums", 6.4)], **FAST)
    finally:
        hook.remove()
    assert {shape[2] for shape in sizes} == {8}
    assert max(shape[0] for shape in sizes) == 8
    assert sum(shape[0] for shape in sizes) == 3 * 2 * 27  # of 160 frames, a window begins at every sixth


def test_pieces_at_a_time(long_form, tiny_pipeline):
    """On threads with other music, steps interleaved: each is what it is alone."""

    def make(number, **options):
        options |= FAST | {"seed": number}
        if number % 2:
            return tiny_pipeline("drums", 0.3, **options).audios
        return long_form([Section(CAPTIONS[number % 4], 0.3 * (1 + number % 3)), *SECTIONS], **options).audios

    barrier = threading.Barrier(4)
    alone = [make(number) for number in range(8)]
    together = on_threads(lambda number: make(number, callback_on_step_end=in_step(barrier)))
    for one, other in zip(alone, together, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sections": []}, "sections is empty; give at least one Section"),
        ({"sections": "drums"}, "sections must be a list of musicldm.Section"),
        ({"sections": [("drums", 3.0)]}, "each of sections must be a musicldm.Section"),
        ({"sections": [Section("a", 1), Section(torch.ones(24), 1)]}, "all texts, or all embeddings of one size"),
        ({"sections": [Section(torch.ones(7), 1)]}, "prompt_embeds must be"),
        ({"sections": [Section("a", 1e-4)]}, "audio_length_in_s must be at least one frame"),
        ({"sections": [Section("a", 1e9)]}, "ask for at most about"),
        ({"sections": SECTIONS, "negative_prompt": ["a"]}, "1 negative prompts for 2 prompts"),
        ({"sections": SECTIONS, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}, "can be of latents, got"),
        ({"sections": SECTIONS, "latents": torch.zeros(1, 4, 3, 4)}, "need latents of shape"),
        ({"sections": SECTIONS, "seed": 0, "generator": torch.Generator()}, "give either seed or generator"),
        ({"sections": SECTIONS, "num_waveforms_per_prompt": 0}, "num_waveforms_per_prompt must be"),
    ],
)
def test_what_cannot_be_made_is_refused(long_form, arguments, message):
    options = {"num_inference_steps": 1} | arguments
    with pytest.raises(ValueError, match=message) as caught:
        long_form(**options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("prompt", "seconds", "message"),
    [
        (3, 1.0, "prompt of a section must be a text"),
        (torch.tensor([float("nan")]), 1.0, "holds NaN"),
        ("a", 0, "seconds of a section must be above 0, got 0"),
        ("a", "3", "seconds of a section must be a finite number"),
        ("a", float("inf"), "seconds of a section must be a finite number"),
    ],
)
def test_sections_check_themselves(prompt, seconds, message):
    with pytest.raises(ValueError, match=message):
        Section(prompt, seconds)


def test_it_is_saved_and_loaded_as_any_pipeline(long_form, tmp_path):
    long_form.save_pretrained(tmp_path)
    for kind in (MusicLDMLongFormPipeline, MusicLDMPipeline):
        assert type(kind.from_pretrained(tmp_path)) is kind
    assert musicldm.MusicLDMLongFormPipeline is MusicLDMLongFormPipeline


@pytest.mark.slow
def test_sections_of_the_bundled_model_are_nearest_to_their_own_prompts():
    pipeline = MusicLDMLongFormPipeline.from_pretrained("mini")
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = make_scheduler("dpm++", pipeline.scheduler)
    prompts = ["solo piano, slow and calm", "a funky bass and drums groove, 120 BPM"]
    sections = [Section(prompt, 12.0) for prompt in prompts]
    options = {"num_inference_steps": 8, "guidance_scale": 4.0, "output_type": "pt", "seed": 0}
    music = pipeline(sections, guidance_interval=(0.2, 0.7), **options).audios
    halves = music.unflatten(1, (2, -1)).flatten(0, 1)
    similarity = torch.stack([pipeline.similarity(halves, row[None])[0] for row in pipeline.embed_texts(prompts)])
    assert similarity.argmax(dim=0).tolist() == [0, 1]
