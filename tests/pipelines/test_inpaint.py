"""Parts of recordings made new, and recordings made longer."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import soundfile
import torch

from musicldm import MusicLDMInpaintPipeline
from musicldm.editing import Region, Source
from musicldm.editing.beats import beats_near
from musicldm.sampling import FLOW_SCHEDULERS, SCHEDULERS, make_scheduler
from musicldm.train.diffusion.objectives import make_scheduler as trained_scheduler
from tests.helpers.tiny import CAPTIONS

# schedulers hand tensors to NumPy functions
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")

RATE = 8000
FAST = {"num_inference_steps": 3, "seed": 3}
SAMPLERS = [*((name, "noise") for name in SCHEDULERS), *((name, "flow") for name in FLOW_SCHEDULERS)]


def music(seconds=2.0, rate=RATE, channels=None, seed=0):
    """Noisy tones (L,) or (channels, L), of which no two samples are alike."""
    generator = np.random.default_rng(seed)
    t = np.arange(round(seconds * rate)) / rate
    rows = [
        0.3 * np.sin(2 * np.pi * 330 * (i + 1) * t) + 0.02 * generator.standard_normal(len(t))
        for i in range(channels or 1)
    ]
    return np.float32(rows[0] if channels is None else np.stack(rows))


@pytest.fixture
def pipeline(tiny_pipeline):
    return MusicLDMInpaintPipeline.from_pipe(tiny_pipeline)


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int16, np.int32, torch.float32])
@pytest.mark.parametrize(("rate", "channels"), [(8000, None), (22050, 2), (44100, 1)])
def test_kept_samples_are_the_same_to_the_bit(pipeline, kind, rate, channels):
    audio = music(2.0, rate, channels)
    if kind is torch.float32:
        audio = torch.from_numpy(audio)
    elif np.dtype(kind).kind == "i":
        audio = np.round(audio * np.iinfo(kind).max).astype(kind)
    else:
        audio = audio.astype(kind)
    output = pipeline(CAPTIONS[0], audio, rate, 0.8, 1.1, **FAST)
    made, audio = output.audios[0], np.asarray(audio)
    start, stop = round(0.8 * rate), round(1.1 * rate)
    assert made.dtype == audio.dtype
    assert made.shape == audio.shape
    assert np.array_equal(made[..., :start], audio[..., :start])
    assert np.array_equal(made[..., stop:], audio[..., stop:])
    assert not np.array_equal(made[..., start:stop], audio[..., start:stop])
    assert output.sampling_rate == rate
    assert output.regions_s == [[pytest.approx((0.8, 1.1), abs=1e-4)]]
    assert output.seams_s == [pytest.approx([0.8, 1.1], abs=1e-4)]
    assert output.patches[0][0].start == start


def test_extension_to_both_sides(pipeline):
    audio = music(channels=2)
    output = pipeline(CAPTIONS[0], audio, RATE, [-0.5, 2.0], [0, 2.75], **FAST)
    made = output.audios[0]
    assert made.shape == (2, 26000)
    assert np.array_equal(made[:, 4000:20000], audio)
    assert output.seams_s == [[0.5, 2.5]]
    assert output.regions_s == [[(0.0, 0.5), (2.5, 3.25)]]
    again = pipeline(CAPTIONS[0], made, RATE, 3.25, 3.5, **FAST).audios[0]  # never touches what was there before
    assert np.array_equal(again[:, :26000], made)


def test_an_extension_may_begin_inside(pipeline):
    audio = music()
    output = pipeline(CAPTIONS[0], audio, RATE, 1.8, 2.4, **FAST)
    assert output.audios[0].shape == (19200,)
    assert np.array_equal(output.audios[0][:14400], audio[:14400])
    assert output.seams_s == [[1.8]]


def test_several_regions_near_and_far(pipeline):
    audio = music(12.0)
    starts, ends = [1.0, 1.5, 10.0], [1.2, 1.6, 10.4]
    output = pipeline(CAPTIONS[0], audio, RATE, starts, ends, **FAST)
    new = np.zeros(len(audio), bool)
    for start, end in zip(starts, ends, strict=True):
        new[round(start * RATE) : round(end * RATE)] = True
    assert np.array_equal(output.audios[0][~new], audio[~new])
    assert [patch.start for patch in output.patches[0]] == [8000, 12000, 80000]
    latents = pipeline(CAPTIONS[0], audio, RATE, starts, ends, output_type="latent", **FAST).audios
    assert len(latents[0]) == 2  # windows
    of_mask = pipeline(CAPTIONS[0], audio, RATE, mask=new, **FAST)
    assert np.array_equal(of_mask.audios[0], output.audios[0])
    assert of_mask.regions_s == output.regions_s


@pytest.mark.parametrize("name", ["dpm++", "unipc", "lms", "dpm2", "pndm"])
def test_windows_do_not_depend_on_each_other(exact_pipeline, name):
    exact_pipeline.scheduler = make_scheduler(name, exact_pipeline.scheduler)
    pipeline = MusicLDMInpaintPipeline.from_pipe(exact_pipeline)
    steps, call = [], {"num_inference_steps": 3, "output_type": "latent"}
    generator = torch.Generator().manual_seed(1)
    both = pipeline(
        CAPTIONS[0], music(12.0), RATE, [1.0, 10.0], [1.2, 10.4], generator=[generator],
        callback=lambda step, *_: steps.append(step), **call,
    ).audios[0]  # fmt: skip
    assert steps == [0, 1, 2] * 2 or name == "pndm"
    generator = torch.Generator().manual_seed(1)
    for start, stop, latents in zip([1.0, 10.0], [1.2, 10.4], both, strict=True):
        alone = pipeline(CAPTIONS[0], music(12.0), RATE, start, stop, generator=[generator], **call).audios[0][0]
        torch.testing.assert_close(alone, latents, rtol=1e-9, atol=1e-9)


def test_a_region_longer_than_the_model_was_trained_on(pipeline):
    audio = music(4.0)
    for windows in (False, True):
        made = pipeline(CAPTIONS[0], audio, RATE, 1.0, 3.0, windows=windows, **FAST).audios[0]
        assert np.array_equal(made[:8000], audio[:8000])
        assert np.array_equal(made[24000:], audio[24000:])


def test_what_lies_far_away_plays_no_part(pipeline):
    short = music(8.0)
    long = np.concatenate([short, music(20.0, seed=1)])
    one = pipeline(CAPTIONS[0], short, RATE, 2.0, 2.3, output_type="latent", **FAST).audios[0][0]
    other = pipeline(CAPTIONS[0], long, RATE, 2.0, 2.3, output_type="latent", **FAST).audios[0][0]
    assert one.shape == other.shape
    assert torch.equal(one, other)


@pytest.mark.parametrize(("name", "kind"), SAMPLERS)
def test_kept_latents_stay_with_every_sampler(exact_pipeline, name, kind):
    if kind == "flow":
        from musicldm.config import DiffusionConfig

        exact_pipeline.scheduler = trained_scheduler(DiffusionConfig(prediction="flow"))
    exact_pipeline.scheduler = make_scheduler(name, exact_pipeline.scheduler)
    pipeline = MusicLDMInpaintPipeline.from_pipe(exact_pipeline)
    seen = []
    made = pipeline(
        CAPTIONS[0],
        music(1.0),
        RATE,
        0.4,
        0.6,
        output_type="latent",
        callback_on_step_end=lambda pipe, i, t, tensors: seen.append(tensors["latents"]) or {},
        **FAST | {"num_inference_steps": 5},
    ).audios[0][0]
    other = pipeline(
        CAPTIONS[1], music(1.0), RATE, 0.4, 0.6, output_type="latent", num_inference_steps=5, seed=8
    ).audios[0][0]
    new = (made - other).abs().sum(dim=(0, 2)) > 1e-6  # (T,)
    assert new.sum() in (5, 6)  # of 0.04 s each
    assert not new[0]
    assert not new[-1]
    assert (seen[-1][0] - made).abs()[:, ~new].max() < 0.3  # the sampler itself arrived there


def test_an_edit_does_not_depend_on_the_batch(exact_pipeline):
    pipeline = MusicLDMInpaintPipeline.from_pipe(exact_pipeline)
    audios = [music(2.0), music(2.0, seed=1), music(9.0, seed=2)]

    def seeded(*seeds):
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    options = {"num_inference_steps": 3, "guidance_scale": 3.0, "num_waveforms_per_prompt": 2, "eta": 1.0}
    regions = {"mask_start_seconds": [0.5, 7.9], "mask_end_seconds": [0.9, 8.2]}
    audios = [np.pad(audio, (0, 9 * RATE - len(audio)), "reflect") for audio in audios]
    audios[2] = np.concatenate([audios[2], music(1.0, seed=4)])
    call = {"audio_sampling_rate": RATE, "output_type": "latent", **regions, **options}
    together = pipeline(CAPTIONS[:3], audios, generator=seeded(*range(6)), **call).audios
    for i in range(3):
        alone = pipeline(CAPTIONS[i], audios[i], generator=seeded(2 * i, 2 * i + 1), **call).audios
        for k in range(2):
            for one, other in zip(together[2 * i + k], alone[k], strict=True):
                torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_edits_on_threads_and_in_callbacks(pipeline):
    barrier = threading.Barrier(4)

    def edit(number, **more):
        start = 0.4 + 0.1 * number
        call = {"seed": number, "num_inference_steps": 3, "output_type": "latent", "eta": 1.0} | more
        return pipeline(CAPTIONS[number], music(2.0), RATE, start, start + 0.2, **call).audios[0][0]

    def wait(pipe, step, timestep, tensors):
        barrier.wait(timeout=60)
        return {}

    alone = [edit(number) for number in range(4)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda number: edit(number, callback_on_step_end=wait), range(4)))
    assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=True))
    inner = []
    outer = edit(0, callback_on_step_end=lambda *_: inner.append(edit(1)) or {})
    assert torch.equal(outer, alone[0])
    assert all(torch.equal(each, alone[1]) for each in inner)


def test_files_come_back_in_their_own_samples(pipeline, tmp_path):
    audio = np.round(music(2.0, 16000, 2) * 32767).astype(np.int16)
    soundfile.write(tmp_path / "take.wav", audio.T, 16000, "PCM_16")
    before = (tmp_path / "take.wav").read_bytes()
    output = pipeline(CAPTIONS[0], tmp_path / "take.wav", None, 0.8, 1.1, **FAST)
    assert output.audios[0].dtype == np.int16
    assert np.array_equal(output.audios[0][:, 17600:], audio[:, 17600:])
    assert np.array_equal(output.audios[0], pipeline(CAPTIONS[0], audio, 16000, 0.8, 1.1, **FAST).audios[0])
    assert (tmp_path / "take.wav").read_bytes() == before
    patches = pipeline(CAPTIONS[0], tmp_path / "take.wav", None, 0.8, 1.1, output_type="patches", **FAST)
    assert patches.audios == []
    assert np.array_equal(patches.patches[0][0].samples, output.patches[0][0].samples)
    tensors = pipeline(CAPTIONS[0], tmp_path / "take.wav", None, 0.8, 1.1, output_type="pt", **FAST).audios
    assert np.array_equal(tensors[0].numpy(), output.audios[0])
    assert np.array_equal(
        pipeline(CAPTIONS[0], audio, 16000, 0.8, 1.1, return_dict=False, **FAST)[0][0], output.audios[0]
    )


def test_borders_move_inwards_to_beats(pipeline):
    t = np.arange(6 * RATE) / RATE
    clicks = np.float32(0.5 * np.sin(2 * np.pi * 900 * t) * np.exp(-60 * (t % 0.5)))  # 120 beats a minute
    audio = clicks + 0.01 * music(6.0)
    beats = beats_near(Source.of(audio, RATE), [Region(2.0, 4.0)])
    inside = [beat for beat in beats if 1.5 < beat < 4.5]
    start, stop = inside[0] - 0.03, inside[-1] + 0.03
    output = pipeline(CAPTIONS[0], audio, RATE, start, stop, snap="beat", output_type="patches", **FAST)
    assert output.seams_s == [pytest.approx([inside[0], inside[-1]], abs=1e-3)]
    as_asked = pipeline(CAPTIONS[0], audio, RATE, start, stop, output_type="patches", **FAST)
    assert as_asked.seams_s == [pytest.approx([start, stop], abs=1e-3)]


def test_candidates_and_sources_of_several_rates(pipeline):
    output = pipeline(
        CAPTIONS[:2], [music(2.0), music(2.0, 16000, 2)[:, ::2]], RATE, 0.5, 0.8, num_waveforms_per_prompt=2, **FAST
    )
    assert [audio.shape for audio in output.audios] == [(16000,)] * 2 + [(2, 16000)] * 2
    assert not np.array_equal(output.audios[0], output.audios[1])


def test_given_noise(pipeline):
    shape = pipeline(CAPTIONS[0], music(), RATE, 0.5, 0.8, output_type="latent", **FAST).audios[0][0].shape
    noise = torch.randn(1, *shape, generator=torch.Generator().manual_seed(3))
    made = pipeline(CAPTIONS[0], music(), RATE, 0.5, 0.8, **FAST).audios[0]
    given = pipeline(
        CAPTIONS[0], music(), RATE, 0.5, 0.8, num_inference_steps=3, latents=noise[:, :, : made.size // 320]
    )
    assert np.array_equal(given.audios[0], made)


def test_attention_windows_and_correction(pipeline):
    plain = pipeline(CAPTIONS[0], music(), RATE, 0.5, 0.8, **FAST).audios[0]
    limited = pipeline(CAPTIONS[0], music(), RATE, 0.5, 0.8, cross_attention_kwargs={"window": 2}, **FAST).audios[0]
    halved = pipeline(CAPTIONS[0], music(), RATE, 0.5, 0.8, correct=lambda p, x, t: p / 2, **FAST).audios[0]
    assert not np.array_equal(plain, limited)
    assert not np.array_equal(plain, halved)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"audio": None}, "audio must be an array or tensor"),
        ({"audio": np.zeros(16000, np.float32)}, "silent throughout"),
        ({"audio": np.full(16000, np.inf, np.float32)}, "holds inf"),
        ({"audio_sampling_rate": None}, "needs its audio_sampling_rate"),
        ({"audio": [music(), music()]}, "2 recordings for 1 prompts"),
        ({"mask_start_seconds": None}, "give mask_start_seconds and mask_end_seconds, or mask"),
        ({"mask": np.ones(4)}, "give mask_start_seconds and mask_end_seconds, or mask"),
        ({"mask_start_seconds": [0.5, 1.0]}, "2 values and mask_end_seconds 1"),
        ({"mask_start_seconds": 0.9}, "ends before it begins"),
        ({"mask_start_seconds": 0.8}, "is empty"),
        ({"mask_start_seconds": 2.5, "mask_end_seconds": 3.0}, "lies outside the recording"),
        ({"mask_start_seconds": 0.0, "mask_end_seconds": 2.0}, "covers all"),
        ({"mask_start_seconds": [0.2, 0.5], "mask_end_seconds": [0.6, 0.9]}, "overlap"),
        ({"mask_start_seconds": float("nan")}, "must be two numbers"),
        ({"mask_start_seconds": "0.5"}, "must be two numbers"),
        ({"mask_start_seconds": [], "mask_end_seconds": []}, "at least one region"),
        ({"mask_start_seconds": None, "mask_end_seconds": None, "mask": np.array([0, 2, 0])}, "mask must have"),
        ({"mask_start_seconds": None, "mask_end_seconds": None, "mask": np.zeros(9)}, "at least one region"),
        ({"snap": "bar"}, "snap must be one of none, beat, got 'bar'"),
        ({"output_type": "wav"}, "output_type must be one of np, pt, latent, patches"),
        ({"latents": torch.zeros(1, 4, 3, 4)}, r"latents of shape \(1, 4, \d\d, 4\), got \(1, 4, 3, 4\)"),
        ({"prompt": None}, "give either prompt or prompt_embeds"),
        ({"num_inference_steps": 0}, "num_inference_steps must be"),
    ],
)
def test_what_cannot_be_used_is_refused(pipeline, changes, message):
    arguments = {
        "prompt": "flute",
        "audio": music(),
        "audio_sampling_rate": RATE,
        "mask_start_seconds": 0.5,
        "mask_end_seconds": 0.8,
    }
    with pytest.raises(ValueError, match=message):
        pipeline(**arguments | FAST | changes)
