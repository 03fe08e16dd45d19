"""Music that follows a context: what pipelines take as one, how long it is, and that nothing else of them changes."""

import copy
import functools

import numpy as np
import pytest
import soundfile
import torch
from accelerate import cpu_offload

from musicldm import (
    MusicLDMAudioToAudioPipeline,
    MusicLDMInpaintPipeline,
    MusicLDMLongFormPipeline,
    MusicLDMPipeline,
    Section,
)
from musicldm.models.context import KINDS, add_context, context_layout
from musicldm.pipelines.convert import convert
from musicldm.pipelines.optimize import prepare_launches
from musicldm.scores.sketches import Sketch

RATE, FRAME = 8000, 320  # of latents of the tiny model, in samples
FAST = {"num_inference_steps": 2, "seed": 3, "output_type": "pt"}
NEAR = {"rtol": 0, "atol": 1e-6}  # waveforms are returned in float32
FIRST_KIND = 4 + 4 + 1  # input channel of conv_in
CLICK = Sketch.click(240, seconds=0.32)  # as long as the clips of the tiny model, 8 latent frames
CHORDS = Sketch.from_chords("Am", bpm=400).cut(0, 0.32)
MELODY = np.float32(0.3 * np.sin(np.arange(8 * FRAME) * 0.3))


@pytest.fixture(scope="module")
def exact_parts(tiny_parts):
    """In float64, where two ways to the same music differ by 1e-10 on every processor."""
    parts = copy.deepcopy(tiny_parts)
    for part in parts.values():
        if isinstance(part, torch.nn.Module):
            part.double()
    return parts


@pytest.fixture
def plain(exact_parts):
    """Without channels for a context."""
    plain = MusicLDMPipeline(**exact_parts | {"unet": copy.deepcopy(exact_parts["unet"])})
    plain.set_progress_bar_config(disable=True)
    return plain


@pytest.fixture
def pipeline(plain):
    """With channels for a context, which count."""
    add_context(plain.unet)
    with torch.no_grad():
        columns = plain.unet.conv_in.weight[:, 4:]
        columns.copy_(0.3 * torch.randn(columns.shape, generator=torch.Generator().manual_seed(0)))
    return plain


@pytest.fixture
def without(pipeline):
    """Music without a context."""
    return pipeline("solo flute", 0.32, **FAST).audios


class Seen(list):
    """What a UNet is given while a call runs, each call's input (R, C, T, F)."""

    def __init__(self, unet):
        unet.register_forward_pre_hook(lambda module, inputs: self.append(inputs[0].clone()))

    def flags(self, frame=0):
        """Of the last call's last row: the kinds of context that are given in a latent frame."""
        return {kind for i, kind in enumerate(KINDS) if self[-1][-1, FIRST_KIND + i, frame].any()}


def test_without_a_context_the_music_is_that_of_the_model_before(plain):
    before = plain("drums", 0.64, **FAST).audios
    add_context(plain.unet)
    torch.testing.assert_close(plain("drums", 0.64, **FAST).audios, before, **NEAR)


def test_a_sketch_says_its_kinds_and_its_length(pipeline, without):
    seen = Seen(pipeline.unet)
    made = pipeline("solo flute", context=CHORDS + CLICK, **FAST).audios
    assert made.shape == without.shape == (1, 8 * FRAME)
    assert seen.flags() == {"chords", "click"}
    assert (made - without).abs().max() > 1e-3 * without.abs().max()


def test_what_it_is_may_be_said_otherwise(pipeline):
    seen = Seen(pipeline.unet)
    pipeline("solo flute", context=CHORDS, context_kind=["notes", "bass"], **FAST)
    assert seen.flags() == {"notes", "bass"}


def test_audio_comes_as_array_tensor_file_or_latents(pipeline, tmp_path):
    options = FAST | {"context_kind": "along"}
    rated = options | {"context_sampling_rate": RATE}
    expected = pipeline("a waltz", context=MELODY, **rated).audios
    soundfile.write(tmp_path / "a.wav", MELODY, RATE, subtype="FLOAT")
    for context in (torch.from_numpy(MELODY), np.stack([MELODY, MELODY]), MELODY.astype(np.float64), [MELODY]):
        torch.testing.assert_close(pipeline("a waltz", context=context, **rated).audios, expected, **NEAR)
    for context in (tmp_path / "a.wav", str(tmp_path / "a.wav"), pipeline.encode_audio(MELODY, RATE)):
        torch.testing.assert_close(pipeline("a waltz", context=context, **options).audios, expected, **NEAR)


def test_a_midi_file_is_a_sketch(pipeline, tmp_path):
    CHORDS.to_midi(tmp_path / "tune.mid")
    read = Sketch.from_midi(tmp_path / "tune.mid")
    made = pipeline("a waltz", context=tmp_path / "tune.mid", **FAST).audios
    torch.testing.assert_close(made, pipeline("a waltz", context=read, **FAST).audios, **NEAR)


def test_several_things_sound_together_each_as_long_as_it_is(pipeline):
    seen, short = Seen(pipeline.unet), CLICK.cut(0, 0.16)
    made = pipeline(
        "a waltz",
        context={"along": MELODY, ("click", "drums"): short},
        context_sampling_rate=RATE,
        **FAST | {"output_type": "latent"},
    ).audios
    assert made.shape[2] == 8
    assert (seen.flags(3), seen.flags(4)) == ({"along", "click", "drums"}, {"along"})
    mixed = MELODY.copy()
    mixed[: len(mixed) // 2] += short.render(RATE)
    given = pipeline.encode_audio(mixed, RATE)
    torch.testing.assert_close(seen[-1][-1, 4:8], given[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("loop", [False, True])
def test_longer_contexts_are_cut_and_after_shorter_ones_nothing_is_given(pipeline, loop):
    seen, long = Seen(pipeline.unet), Sketch.from_chords("Am F", bpm=400)
    options = {"context_kind": "chords", "context_sampling_rate": RATE, "loop": loop, **FAST}
    made = pipeline("a waltz", 0.32, context=long.render(RATE), **options).audios
    assert {seen.flags(frame) == {"chords"} for frame in range(8)} == {True}
    cut = pipeline("a waltz", context=long.render(RATE)[: 8 * FRAME], **options).audios
    torch.testing.assert_close(made, cut, **NEAR)
    seen.clear()
    pipeline("a waltz", 0.32, context=CHORDS.cut(0, 0.16), loop=loop, **FAST)
    given = seen[-1][-1, 4:]
    assert given[:, :4].any()
    assert not given[:, 4:].any()


def test_prompts_and_candidates_are_made_as_alone(pipeline):
    prompts, contexts = ["solo flute", "drums"], [CHORDS, {"click": CLICK}]
    options = {"num_waveforms_per_prompt": 2, "context_guidance_scale": 3.0, "num_inference_steps": 2}
    options |= {"output_type": "latent"}
    made = pipeline(prompts, context=contexts, seed=4, **options).audios
    for i in range(2):
        alone = pipeline(prompts[i], context=contexts[i], seed=4 + 2 * i, **options).audios
        torch.testing.assert_close(made[2 * i : 2 * i + 2], alone, rtol=0, atol=1e-9)
    shared = pipeline(prompts, context=CHORDS, seed=4, **options).audios
    torch.testing.assert_close(shared[:2], made[:2], rtol=0, atol=1e-9)


def test_some_prompts_may_have_no_context(pipeline, without):
    made = pipeline(["solo flute", "solo flute"], context=[None, CHORDS], **FAST).audios
    torch.testing.assert_close(made[:1], without, **NEAR)


@pytest.mark.parametrize(
    ("guidance", "own", "rows"), [(2, 1, 2), (2, 2, 2), (1, 1, 1), (1, 3, 3), (0.5, 2, 3), (2, 3, 3)]
)
def test_no_evaluation_too_many(pipeline, guidance, own, rows):
    seen = Seen(pipeline.unet)
    options = FAST | {"guidance_scale": guidance, "context_guidance_scale": own}
    pipeline("a waltz", 0.32, context=CHORDS, negative_prompt="noise", **options)
    assert {len(each) for each in seen} == {rows}
    assert [bool(row[4:].any()) for row in seen[-1]] == [own == 1] + [True] * (rows - 1)


def test_callbacks_may_change_the_guidance(pipeline):
    seen, scales = Seen(pipeline.unet), iter([3.0, 1.0, 4.0, 4.0])

    def change(pipe, step, timestep, tensors):
        assert tensors["prompt_embeds"].shape[0] == 2
        pipe.guidance_scale = next(scales)
        return {}

    options = {"guidance_scale": 2.0, "context_guidance_scale": 3.0, "callback_on_step_end": change}
    options |= {"callback_on_step_end_tensor_inputs": ["prompt_embeds"], "num_inference_steps": 4}
    pipeline("a waltz", 0.32, context=CHORDS, **options)
    assert [len(each) for each in seen] == [3, 2, 3, 3]


def test_music_beyond_the_trained_length_is_made_in_windows(pipeline):
    long = Sketch.click(240, seconds=4 * 0.32)
    options = FAST | {"context_guidance_scale": 3.0}
    seen = Seen(pipeline.unet)
    made = pipeline("a waltz", context=long, **options).audios
    assert {each.shape[2] for each in seen} == {8}
    torch.testing.assert_close(pipeline("a waltz", context=long, windows=True, **options).audios, made, **NEAR)
    whole = MusicLDMLongFormPipeline.from_pipe(pipeline)
    sections = whole([Section("a waltz", 4 * 0.32)], context=long, **options).audios
    torch.testing.assert_close(sections, made, **NEAR)


def test_a_unet_that_names_no_length_takes_any_at_once(pipeline):
    pipeline.unet.register_to_config(sample_size=None)
    seen = Seen(pipeline.unet)
    pipeline("a waltz", context=Sketch.click(240, seconds=0.64), **FAST)
    assert {each.shape[2] for each in seen} == {16}


@pytest.mark.parametrize("frames", [8, 24])
def test_loops_turn_with_their_context(pipeline, frames):
    """The latents of a turned circle, whose context is turned as far."""
    noise = torch.randn(1, 4, frames, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    context = 0.5 * torch.randn(noise.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    options = {"context_kind": "along", "loop": True, "output_type": "latent", "num_inference_steps": 2}
    step = 2 if frames == 8 else 6  # of the UNet's stride; of the windows'
    made, turned = (
        pipeline("drums", latents=noise.roll(by, 2), context=context.roll(by, 2), **options).audios for by in (0, step)
    )
    torch.testing.assert_close(turned, made.roll(step, 2), rtol=0, atol=1e-8)


def test_around_a_loop_the_end_of_a_context_is_heard_before_its_start(pipeline):
    seen = Seen(pipeline.unet)
    sound = np.random.default_rng(0).standard_normal(8 * FRAME).astype(np.float32) / 4
    options = FAST | {"context_kind": "along", "context_sampling_rate": RATE, "loop": True}
    errors = []
    for loop in (True, False):
        given = []
        for by in (0, 2 * FRAME):
            pipeline("drums", context=np.roll(sound, by), **options | {"loop": loop})
            given.append(seen[-1][-1, 4:8])
        errors.append((given[0].roll(2, 1) - given[1]).abs().max())
    assert errors[0] < 0.2 * errors[1]  # norms and attention of the VAE see what else is there


def test_a_loop_of_any_length_stretches_its_context_with_it(pipeline):
    seen, samples = Seen(pipeline.unet), 8 * FRAME + 100
    pipeline("drums", samples / RATE, context=CLICK, loop=True, **FAST)
    assert seen[-1].shape[2] == 8
    assert {seen.flags(frame) == {"click"} for frame in range(8)} == {True}


def test_long_contexts_are_encoded_in_pieces(pipeline):
    """Of 8 latent frames, of which the middle 4 count."""
    seen, sound = Seen(pipeline.unet), np.random.default_rng(0).standard_normal(12 * FRAME).astype(np.float32) / 4
    options = FAST | {"context_kind": "along", "context_sampling_rate": RATE}
    pipeline("drums", context=sound, **options)
    assert seen[0].shape[2] == 8
    of_windows = seen[0][-2:, 4:8]  # frames 0 to 7, and 4 to 11
    for window, start, first, last in ((0, 0, 0, 6), (1, 4, 2, 10), (1, 8, 6, 12)):
        piece = pipeline.encode_audio(sound[first * FRAME : last * FRAME], RATE)[0]
        at = start - 4 * window
        expected = piece[:, start - first : start - first + 4]
        torch.testing.assert_close(of_windows[window, :, at : at + 4], expected, rtol=0, atol=1e-9)


def test_variations_follow_a_context(pipeline):
    vary = MusicLDMAudioToAudioPipeline.from_pipe(pipeline)
    seen = Seen(pipeline.unet)
    plain = vary("drums", MELODY, RATE, **FAST).audios
    assert not seen[-1][:, 4:].any()
    made = vary("drums", MELODY, RATE, context=CLICK, **FAST).audios
    assert seen.flags() == {"click"}
    assert made.shape == plain.shape
    assert not torch.equal(made, plain)


def holes(seen, frame):
    """The mask, and the kinds, of a latent frame."""
    return bool(seen[-1][-1, FIRST_KIND - 1, frame].all()), seen.flags(frame)


def test_inpainting_is_given_what_stays_as_a_context(pipeline):
    inpaint, seen = MusicLDMInpaintPipeline.from_pipe(pipeline), Seen(pipeline.unet)
    made = inpaint("drums", MELODY, RATE, 0.12, 0.2, **FAST).audios[0]
    assert np.array_equal(made[:960], MELODY[:960])
    given = [holes(seen, frame) for frame in range(8)]
    assert given == [(True, {"hole"})] * 3 + [(False, {"hole"})] * 2 + [(True, {"hole"})] * 3
    context = seen[-1][-1, 4:8]
    assert context[:, :3].any()
    assert not context[:, 3:5].any()


def test_a_sketch_may_lie_in_the_hole(pipeline):
    inpaint, seen = MusicLDMInpaintPipeline.from_pipe(pipeline), Seen(pipeline.unet)
    sketch = Sketch.click(240, seconds=0.04)  # one click, of one latent frame
    inpaint("drums", MELODY, RATE, 0.12, 0.2, context=sketch, **FAST)
    assert holes(seen, 2) == (True, {"hole"})
    assert holes(seen, 3) == (False, {"hole", "click"})
    assert holes(seen, 4) == (False, {"hole"})
    beside = MELODY.copy()
    beside[3 * FRAME : 5 * FRAME] = 0
    beside[3 * FRAME : 4 * FRAME] += sketch.render(RATE)
    expected = pipeline.encode_audio(beside, RATE)[0]
    expected[:, 4] = 0
    torch.testing.assert_close(seen[-1][-1, 4:8], expected, rtol=0, atol=1e-6)


def test_a_sketch_goes_on_from_hole_to_hole(pipeline):
    inpaint, seen = MusicLDMInpaintPipeline.from_pipe(pipeline), Seen(pipeline.unet)
    inpaint("drums", MELODY, RATE, [0.04, 0.2], [0.08, 0.24], context=CLICK.cut(0, 0.2), **FAST)
    kinds = [holes(seen, frame)[1] - {"hole"} for frame in range(8)]
    assert kinds == [set(), {"click"}, set(), set(), set(), {"click"}, set(), set()]
    inpaint("drums", MELODY, RATE, [0.04, 0.2], [0.08, 0.24], context=CLICK.cut(0, 0.1), **FAST)
    assert holes(seen, 5)[1] == {"hole"}


def test_a_model_without_holes_hears_the_sketch_alone(plain):
    add_context(plain.unet, ("click",))
    inpaint, seen = MusicLDMInpaintPipeline.from_pipe(plain), Seen(plain.unet)
    inpaint("drums", MELODY, RATE, 0.12, 0.2, context=CLICK, **FAST)
    given = seen[-1][-1, 4:]
    assert not given[:, :3].any()
    assert given[:, 3:5].any()
    assert not given[:, 5:].any()
    with pytest.raises(ValueError, match="context_guidance_scale=2 without a context"):
        inpaint("drums", MELODY, RATE, 0.12, 0.2, context_guidance_scale=2, **FAST)


def test_candidates_of_edits_are_made_as_alone(pipeline):
    inpaint = MusicLDMInpaintPipeline.from_pipe(pipeline)
    options = {"context": [CHORDS, None], "context_guidance_scale": 2.5, "num_inference_steps": 2}
    options |= {"output_type": "latent"}
    both = inpaint(["drums", "solo flute"], MELODY, RATE, 0.1, 0.3, num_waveforms_per_prompt=2, seed=3, **options)
    for i in range(4):
        own = options | {"context": options["context"][i // 2]}
        alone = inpaint(["drums", "solo flute"][i // 2], MELODY, RATE, 0.1, 0.3, seed=3 + i, **own)
        torch.testing.assert_close(both.audios[i][0], alone.audios[0][0], rtol=0, atol=1e-9)


def test_a_folder_makes_the_same_music_also_after_conversion(pipeline, tmp_path):
    saved = MusicLDMPipeline.from_pipe(pipeline, text_encoder=None, tokenizer=None, feature_extractor=None)
    options = FAST | {"prompt_embeds": torch.ones(1, 24), "guidance_scale": 1, "context": CHORDS}
    expected = saved(**options).audios
    saved.save_pretrained(tmp_path / "saved")
    convert(tmp_path / "saved", tmp_path / "converted", dtype=torch.float64)
    for name in ("saved", "converted"):
        read = MusicLDMPipeline.from_pretrained(tmp_path / name, torch_dtype=torch.float64)
        assert context_layout(read.unet) == context_layout(pipeline.unet)
        torch.testing.assert_close(read(**options).audios, expected, **NEAR)


def test_offloaded_parts_make_the_same_music(pipeline):
    expected = pipeline("drums", context=CHORDS, **FAST).audios
    layers = copy.deepcopy(pipeline)
    for part in (layers.unet, layers.vae, layers.vocoder):
        cpu_offload(part, torch.device("cpu"))
    torch.testing.assert_close(layers("drums", context=CHORDS, **FAST).audios, expected, **NEAR)
    parts = copy.deepcopy(pipeline)
    parts.enable_model_cpu_offload(device="cpu")
    for _ in range(2):
        torch.testing.assert_close(parts("drums", context=CHORDS, **FAST).audios, expected, **NEAR)


def test_recorded_steps_make_the_same_music(pipeline):
    expected = pipeline("drums", context=CHORDS, context_guidance_scale=3, **FAST).audios

    def record(function):
        result = function()
        return lambda: result.copy_(function()), result

    prepare_launches(pipeline, record)
    made = pipeline("drums", context=CHORDS, context_guidance_scale=3, **FAST).audios
    torch.testing.assert_close(made, expected, **NEAR)
    assert len(pipeline.step_graphs.recordings) == 1


def test_adapters_go_with_a_context(pipeline):
    from peft import LoraConfig

    without = pipeline("drums", context=CHORDS, **FAST).audios
    pipeline.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    made = pipeline("drums", context=CHORDS, **FAST).audios
    assert not torch.equal(made, without)
    pipeline.unload_lora_weights()
    torch.testing.assert_close(pipeline("drums", context=CHORDS, **FAST).audios, without, **NEAR)


AUDIO = functools.partial(dict, context=MELODY, context_kind="along", context_sampling_rate=RATE)
BAD = {
    "silent": (AUDIO(context=0 * MELODY), "context: audio is silent throughout"),
    "NaN": (AUDIO(context=MELODY * np.nan), "context: audio holds nan"),
    "empty": (AUDIO(context=MELODY[:0]), "context: audio must be .* not empty"),
    "too short": (AUDIO(context=MELODY[:50]), "context: .* shorter than one frame"),
    "other shape": (AUDIO(context=np.zeros((2, 2, 2, 2))), "context: audio must be"),
    "no kind": (AUDIO(context_kind=None), "context_kind must say what the context is"),
    "unknown kind": (AUDIO(context_kind="lyrics"), "no context of kind 'lyrics'; it knows notes"),
    "one unknown kind": (AUDIO(context_kind=["along", "lyrics"]), "no context of kind 'lyrics'"),
    "no kinds": (AUDIO(context_kind=[]), r"one or several of notes, .*, got \[\]"),
    "kind that is no name": (AUDIO(context_kind=3), "one or several of notes, .*, got 3"),
    "hole": (AUDIO(context_kind="hole"), "MusicLDMInpaintPipeline makes it by itself"),
    "no rate": (AUDIO(context_sampling_rate=None), "needs its context_sampling_rate"),
    "rate": (AUDIO(context_sampling_rate=1.5), "context: .*rate"),
    "no context": ({"context": 3, "context_kind": "along"}, "context must be a Sketch, an array"),
    "two contexts": ({"context": [CLICK, CLICK]}, "2 contexts for 1 prompts"),
    "nothing": ({"context": [None]}, "all contexts are None"),
    "empty dictionary": ({"context": {}}, "empty dictionary"),
    "dictionary and kind": ({"context": {"click": CLICK}, "context_kind": "click"}, "leave context_kind out"),
    "kind alone": ({"context_kind": "click"}, "context_kind='click' without a context"),
    "rate alone": ({"context_sampling_rate": 8000}, "context_sampling_rate=8000 without a context"),
    "guidance alone": ({"context_guidance_scale": 2.0}, "context_guidance_scale=2.0 without a context"),
    "guidance": (AUDIO(context_guidance_scale=-1), "context_guidance_scale must be .* got -1"),
    "guidance that is none": (AUDIO(context_guidance_scale=float("nan")), "context_guidance_scale must be"),
    "silent sketch": ({"context": Sketch.from_chords("N.C.", 120)}, "silent"),
    "latents of 3 channels": (
        {"context": torch.ones(1, 3, 8, 4), "context_kind": "along"},
        r"tensor \(1, 4, T, F\)",
    ),
    "latents of other rows": ({"context": torch.ones(1, 4, 8, 5), "context_kind": "along"}, "must have 4 rows"),
    "latents of nothing": ({"context": torch.zeros(1, 4, 8, 4), "context_kind": "along"}, "all zero"),
    "latents with NaN": ({"context": torch.full((1, 4, 8, 4), torch.nan), "context_kind": "along"}, "NaN"),
    "mixed latents": ({"context": {"along": torch.ones(1, 4, 8, 4), "click": CLICK}}, "latents cannot be mixed"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_used_is_refused_in_one_line(pipeline, name):
    arguments, message = BAD[name]
    with pytest.raises(ValueError, match=message) as error:
        pipeline("drums", **FAST | arguments)
    assert "\n" not in str(error.value)


def test_contexts_of_different_lengths_need_a_length(pipeline):
    contexts = [CHORDS, CLICK.cut(0, 0.16)]
    with pytest.raises(ValueError, match=r"last 0\.16 and 0\.32 s; give audio_length_in_s"):
        pipeline(["drums", "flute"], context=contexts, **FAST)
    assert pipeline(["drums", "flute"], 0.24, context=contexts, **FAST).audios.shape == (2, 6 * FRAME)


def test_a_missing_file_is_named(pipeline, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.wav"):
        pipeline("drums", context=tmp_path / "none.wav", context_kind="along", **FAST)


def test_a_model_without_the_channels_refuses_a_context(plain):
    vary, inpaint, whole = (
        cls.from_pipe(plain)
        for cls in (MusicLDMAudioToAudioPipeline, MusicLDMInpaintPipeline, MusicLDMLongFormPipeline)
    )
    with pytest.raises(ValueError, match="the model takes no context"):
        plain("drums", context=CHORDS, **FAST)
    with pytest.raises(ValueError, match="the model takes no context"):
        vary("drums", MELODY, RATE, context=CHORDS, **FAST)
    with pytest.raises(ValueError, match="the model takes no context"):
        inpaint("drums", MELODY, RATE, 0.1, 0.2, context=CHORDS, **FAST)
    with pytest.raises(ValueError, match="the model takes no context"):
        whole([Section("drums", 1.0)], context=CHORDS, **FAST)
