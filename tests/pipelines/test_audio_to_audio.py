"""Variations of recordings."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import soundfile
import torch

from musicldm import MusicLDMAudioToAudioPipeline, MusicLDMPipeline
from musicldm.sampling import FLOW_SCHEDULERS, SCHEDULERS, make_scheduler
from musicldm.train.diffusion.objectives import make_scheduler as trained_scheduler
from tests.helpers.tiny import CAPTIONS

# schedulers hand tensors to NumPy functions
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")

RATE = 8000
FAST = {"num_inference_steps": 4, "seed": 3}
SAMPLERS = [*((name, "noise") for name in SCHEDULERS), *((name, "flow") for name in FLOW_SCHEDULERS)]


def tone(seconds=0.32, rate=RATE, frequency=440.0, channels=None):
    """A decaying tone (L,), or (channels, L) of harmonics."""
    t = np.arange(round(seconds * rate)) / rate
    rows = [0.4 * np.sin(2 * np.pi * frequency * (i + 1) * t) * np.exp(-3 * t) for i in range(channels or 1)]
    return np.float32(rows[0] if channels is None else np.stack(rows))


@pytest.fixture
def pipeline(tiny_pipeline):
    return MusicLDMAudioToAudioPipeline.from_pipe(tiny_pipeline)


def with_sampler(pipeline, name, kind):
    if kind == "flow":
        from musicldm.config import DiffusionConfig

        pipeline.scheduler = trained_scheduler(DiffusionConfig(prediction="flow"))
    pipeline.scheduler = make_scheduler(name, pipeline.scheduler)
    return pipeline


@pytest.mark.parametrize(("name", "kind"), SAMPLERS)
def test_all_noise_is_text_to_music(tiny_pipeline, name, kind):
    plain = with_sampler(tiny_pipeline, name, kind)
    pipeline = MusicLDMAudioToAudioPipeline.from_pipe(plain)
    options = FAST | {"eta": 0.5, "negative_prompt": "hum"}
    made = pipeline(CAPTIONS[0], tone(0.3), RATE, init_noise_level=1.0, **options).audios
    assert np.array_equal(made, plain(CAPTIONS[0], 0.3, **options).audios)
    assert made.shape == (1, 2400)


@pytest.mark.parametrize(("name", "kind"), SAMPLERS)
def test_steps_follow_the_level(pipeline, name, kind):
    with_sampler(pipeline, name, kind)
    before = (0, -1.0)
    for level in (0.001, 0.3, 0.7, 1):
        times, updates = [], []
        pipeline(
            CAPTIONS[0],
            tone(),
            RATE,
            level,
            num_inference_steps=5,
            guidance_scale=1,
            output_type="latent",
            callback_on_step_end=lambda pipe, i, t, tensors, times=times: times.append(float(t)) or {},
            callback=lambda step, t, latents, updates=updates: updates.append(step),
        )
        assert (len(updates), times[0]) >= before
        assert updates == list(range(len(updates))) or name == "pndm"  # which evaluates its first step twice
        before = len(updates), times[0]
    assert before[0] == 5
    assert pipeline.num_timesteps == len(times)


@pytest.mark.parametrize("name", ["ddim", "dpm++", "euler-a", "heun"])
def test_little_noise_leaves_the_recording(exact_pipeline, name):
    exact_pipeline.scheduler = make_scheduler(name, exact_pipeline.scheduler)
    pipeline = MusicLDMAudioToAudioPipeline.from_pipe(exact_pipeline)
    x0 = pipeline.encode_audio(tone(), RATE)
    distances = []
    for level in (1e-3, 0.4, 1.0):
        made = pipeline(CAPTIONS[0], tone(), RATE, level, num_inference_steps=10, seed=1, output_type="latent").audios
        distances.append(float((made - x0).norm() / x0.norm()))
    assert distances[0] < distances[1] < distances[2]


@pytest.mark.parametrize("rate", [8000, 11025, 44100])
@pytest.mark.parametrize("channels", [None, 1, 2, 5])
def test_any_rate_and_channels(pipeline, rate, channels, tmp_path):
    audio = tone(0.32, rate, channels=channels)
    made = pipeline(CAPTIONS[1], audio, rate, 0.5, **FAST)
    assert made.audios.shape == (1, 2560)
    assert made.sampling_rate == RATE
    assert np.array_equal(pipeline(CAPTIONS[1], torch.from_numpy(audio), rate, 0.5, **FAST).audios, made.audios)
    file = tmp_path / "source.wav"
    soundfile.write(file, audio.T, rate, "FLOAT")
    of_file = pipeline(CAPTIONS[1], file, None, 0.5, **FAST).audios
    assert np.abs(of_file - made.audios).max() < 1e-4
    assert np.array_equal(pipeline(CAPTIONS[1], str(file), rate, 0.5, **FAST).audios, of_file)


def test_whole_numbers_are_samples_too(pipeline):
    audio = np.round(tone() * 32768).astype(np.int16)
    made = pipeline(CAPTIONS[1], audio, RATE, 0.5, **FAST).audios
    assert np.array_equal(made, pipeline(CAPTIONS[1], audio / np.float32(32768), RATE, 0.5, **FAST).audios)


def test_lengths(pipeline):
    assert pipeline("flute", tone(0.2), RATE, 0.5, **FAST).audios.shape == (1, 1600)
    assert pipeline("flute", tone(0.2), RATE, 0.5, 0.5, **FAST).audios.shape == (1, 4000)
    assert pipeline("flute", tone(0.4), RATE, 0.5, 0.1, **FAST).audios.shape == (1, 800)
    long = [pipeline("flute", tone(1.2), RATE, 0.5, windows=windows, **FAST).audios for windows in (False, True)]
    assert long[0].shape == long[1].shape == (1, 9600)
    assert not np.array_equal(*long)


def test_a_variation_does_not_depend_on_the_batch(exact_pipeline):
    pipeline = MusicLDMAudioToAudioPipeline.from_pipe(exact_pipeline)
    sources = [tone(), tone(frequency=300.0), tone(0.32, 16000, 250.0)[::2].copy()]
    generators = [torch.Generator().manual_seed(seed) for seed in range(6)]
    options = {"num_inference_steps": 3, "guidance_scale": 3.0, "num_waveforms_per_prompt": 2, "eta": 1.0}
    together = pipeline(CAPTIONS[:3], sources, RATE, 0.6, generator=generators, output_type="latent", **options).audios
    for i in range(3):
        generators = [torch.Generator().manual_seed(seed) for seed in (2 * i, 2 * i + 1)]
        alone = pipeline(CAPTIONS[i], sources[i], RATE, 0.6, generator=generators, output_type="latent", **options)
        torch.testing.assert_close(together[2 * i : 2 * i + 2], alone.audios, rtol=1e-9, atol=1e-9)


def test_variations_on_threads_and_in_callbacks(pipeline):
    pipeline.scheduler = make_scheduler("dpm++-sde", pipeline.scheduler)
    barrier = threading.Barrier(4)

    def vary(number, **more):
        level = (0.3, 0.5, 0.7, 1.0)[number % 4]
        return pipeline(CAPTIONS[number], tone(), RATE, level, num_inference_steps=6, seed=number, **more).audios

    def wait(pipe, step, timestep, tensors):
        if step == 0:
            barrier.wait(timeout=60)
        return {}

    alone = [vary(number) for number in range(4)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda number: vary(number, callback_on_step_end=wait), range(4)))
    assert all(np.array_equal(one, other) for one, other in zip(alone, together, strict=True))
    inner = []
    outer = vary(3, callback_on_step_end=lambda *_: inner.append(vary(1)) or {})
    assert np.array_equal(outer, alone[3])
    assert all(np.array_equal(each, alone[1]) for each in inner)


def test_one_recording_for_several_prompts(pipeline):
    made = pipeline(CAPTIONS[:2], tone(), RATE, 0.5, **FAST).audios
    listed = pipeline(CAPTIONS[:2], [tone(), tone()], RATE, 0.5, **FAST).audios
    stacked = pipeline(CAPTIONS[:2], np.stack([tone(channels=1)] * 2), RATE, 0.5, **FAST).audios
    assert np.array_equal(made, listed)
    assert np.array_equal(made, stacked)
    assert np.abs(made[0] - made[1]).max() > 1e-3


def test_given_noise_and_other_outputs(pipeline):
    noise = torch.randn(1, 4, 8, 4, generator=torch.Generator().manual_seed(3))
    made = pipeline("flute", tone(), RATE, 0.5, **FAST).audios
    given = pipeline("flute", tone(), RATE, 0.5, num_inference_steps=4, latents=noise, output_type="pt")
    assert np.array_equal(given.audios.numpy(), made)
    assert np.array_equal(pipeline("flute", tone(), RATE, 0.5, return_dict=False, **FAST)[0], made)
    ranked = pipeline("flute", tone(), RATE, 0.5, num_waveforms_per_prompt=3, return_best=2, **FAST)
    assert ranked.audios.shape == (2, 2560)
    assert ranked.scores.shape == (1, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"audio": None}, "audio must be an array or tensor"),
        ({"audio": 3.0}, r"audio must be an array or tensor .*got 3\.0"),
        ({"audio": [0.1, 0.2]}, r"got a list with 0\.1"),
        ({"audio": np.full(2560, np.nan, np.float32)}, "holds nan at 0.000 s"),
        ({"audio": np.zeros(2560, np.float32)}, "audio is silent throughout"),
        ({"audio": tone()[:79]}, r"shorter than one frame of the model, 0\.01 s"),
        ({"audio": np.zeros(0, np.float32)}, "not empty"),
        ({"audio": np.zeros((1, 1, 1, 9), np.float32)}, "audio must be"),
        ({"audio": np.arange(2560)}, "audio must be of float16"),
        ({"audio_sampling_rate": None}, "needs its audio_sampling_rate"),
        ({"audio_sampling_rate": 7}, "sampling rate must be"),
        ({"audio": [tone(), tone()]}, "2 recordings for 1 prompts"),
        ({"audio": [tone(), tone(0.2)], "prompt": ["a", "b"]}, "equally long, got 1600 to 2560 samples"),
        ({"init_noise_level": 0}, r"init_noise_level must be above 0 .* got 0"),
        ({"init_noise_level": 1.01}, r"init_noise_level must be a number from 0 to 1, got 1\.01"),
        ({"init_noise_level": float("nan")}, "init_noise_level must be a finite number"),
        ({"init_noise_level": None}, "init_noise_level must be a finite number"),
        ({"prompt": None}, "give either prompt or prompt_embeds"),
        ({"audio_length_in_s": 0.001}, "audio_length_in_s must be at least one frame"),
        ({"latents": torch.zeros(1, 4, 3, 4)}, r"need latents of shape \(1, 4, 8, 4\)"),
        ({"loop": "yes"}, "loop must be True or False"),
    ],
)
def test_what_cannot_be_used_is_refused(pipeline, changes, message):
    arguments = {"prompt": "flute", "audio": tone(), "audio_sampling_rate": RATE} | FAST | changes
    with pytest.raises(ValueError, match=message):
        pipeline(**arguments)


def test_files_that_cannot_be_used_are_refused(pipeline, tmp_path):
    text = tmp_path / "notes.txt"
    text.write_text("no music at all")
    with pytest.raises(ValueError, match="cannot be read as audio"):
        pipeline("flute", text, **FAST)
    with pytest.raises(FileNotFoundError):
        pipeline("flute", tmp_path / "none.wav", **FAST)
    soundfile.write(tmp_path / "quiet.wav", np.zeros(2560), RATE)
    with pytest.raises(ValueError, match=r"quiet\.wav is silent throughout"):
        pipeline("flute", tmp_path / "quiet.wav", **FAST)
    soundfile.write(tmp_path / "tone.wav", tone(), RATE)
    with pytest.raises(ValueError, match=r"tone\.wav has a rate of 8000 Hz, not 16000"):
        pipeline("flute", tmp_path / "tone.wav", 16000, **FAST)


def test_of_any_pipeline(tiny_pipeline):
    """The first pipeline's class plays no part."""
    pipeline = MusicLDMAudioToAudioPipeline.from_pipe(tiny_pipeline)
    back = MusicLDMPipeline.from_pipe(MusicLDMAudioToAudioPipeline.from_pipe(pipeline))
    assert np.array_equal(back("flute", 0.16, **FAST).audios, tiny_pipeline("flute", 0.16, **FAST).audios)
