"""Calls of one pipeline on several threads, or within one another, make the music that they make one by one."""

import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np
import pytest
import torch

from musicldm.models.clap import embed_text
from musicldm.pipelines.optimize import prepare_launches
from musicldm.pipelines.text_to_music import MusicLDMPipeline
from musicldm.sampling import FLOW_SCHEDULERS, SCHEDULERS, make_scheduler
from musicldm.train.diffusion.objectives import make_scheduler as trained_scheduler
from tests.helpers.tiny import CAPTIONS

# schedulers hand tensors to NumPy functions
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")

THREADS, REQUESTS = 4, 8


def request(number: int) -> dict:
    """Requests of different texts, lengths, seeds, guidance and candidates, all of three steps."""
    prompts = [CAPTIONS[number % 4], *CAPTIONS[: number % 3]]
    return {
        "prompt": prompts,
        "negative_prompt": "hum" if number % 2 else None,
        "audio_length_in_s": 0.16 * (1 + number % 2),
        "num_inference_steps": 3,
        "guidance_scale": 1.0 + number % 3,
        "num_waveforms_per_prompt": 2 if number == 5 else 1,
        "eta": 0.5,
        "seed": number,
    }


def in_step(barrier: threading.Barrier):
    """A callback that lets no thread take its next step before all have taken theirs."""

    def wait(pipe, step, timestep, tensors):
        barrier.wait(timeout=60)
        return {}

    return wait


def on_threads(call) -> list:
    """``call(number)`` of all requests, four at a time, changing threads as often as can be."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(THREADS) as pool:
            return list(pool.map(call, range(REQUESTS)))
    finally:
        sys.setswitchinterval(interval)


def check_calls(pipeline) -> None:
    """All requests on threads, all steps interleaved, equal the same one by one."""
    barrier = threading.Barrier(THREADS)
    alone = [pipeline(**request(number)) for number in range(REQUESTS)]
    together = on_threads(lambda number: pipeline(**request(number), callback_on_step_end=in_step(barrier)))
    for one, other in zip(alone, together, strict=True):
        assert np.array_equal(one.audios, other.audios)
        assert np.array_equal(one.scores, other.scores) or one.scores is None is other.scores
    assert len({one.audios[0, :80].tobytes() for one in alone}) == REQUESTS


def pipeline_of(tiny_pipeline, name: str, kind: str) -> MusicLDMPipeline:
    if kind == "flow":
        from musicldm.config import DiffusionConfig

        tiny_pipeline.scheduler = trained_scheduler(DiffusionConfig(prediction="flow"))
    tiny_pipeline.scheduler = make_scheduler(name, tiny_pipeline.scheduler)
    return tiny_pipeline


SAMPLERS = [*((name, "noise") for name in SCHEDULERS), *((name, "flow") for name in FLOW_SCHEDULERS)]


@pytest.mark.parametrize(("name", "kind"), SAMPLERS)
def test_eight_requests_on_four_threads(tiny_pipeline, name, kind):
    check_calls(pipeline_of(tiny_pipeline, name, kind))


@pytest.mark.parametrize(("name", "kind"), SAMPLERS)
def test_a_call_within_a_callback(tiny_pipeline, name, kind):
    pipeline = pipeline_of(tiny_pipeline, name, kind)
    outer, inner = pipeline(**request(1)).audios, pipeline(**request(2) | {"num_inference_steps": 5}).audios
    made = []

    def call_again(pipe, step, timestep, tensors):
        made.append((pipeline if step % 2 else pipe)(**request(2) | {"num_inference_steps": 5}).audios)
        return {}

    assert np.array_equal(pipeline(**request(1), callback_on_step_end=call_again).audios, outer)
    assert len(made) >= 3
    assert all(np.array_equal(one, inner) for one in made)


@pytest.mark.slow
def test_several_torch_threads_change_rounding_alone(tiny_pipeline):
    def call(number):
        return tiny_pipeline(CAPTIONS[number], 0.16, num_inference_steps=2, guidance_scale=1, seed=number).audios

    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        alone = [call(number) for number in range(2)]
        with ThreadPoolExecutor(2) as pool:
            together = list(pool.map(call, range(2)))
    finally:
        torch.set_num_threads(threads)
    for one, other in zip(alone, together, strict=True):
        assert np.abs(one - other).max() <= 1e-4 * np.abs(one).max()


def test_a_call_changes_nothing_of_the_pipeline(tiny_folder):
    pipeline = MusicLDMPipeline.from_pretrained(tiny_folder)  # whose progress bar was never set up
    before, settings = dict(vars(pipeline)), dict(vars(pipeline.scheduler))
    pipeline(**request(0), callback_on_step_end=lambda pipe, *_: setattr(pipe, "_interrupt", True) or {})
    assert vars(pipeline) == before
    assert all(vars(pipeline.scheduler)[name] is value for name, value in settings.items())


def test_interrupting_ends_one_call(tiny_pipeline):
    alone = tiny_pipeline(**request(1)).audios
    steps = {0: 0, 1: 0}
    barrier = threading.Barrier(2)

    def call(number):
        def count(pipe, step, timestep, tensors):
            steps[number] += 1
            if step == 0:
                pipe._interrupt = number == 0
                barrier.wait(timeout=60)
            return {}

        return tiny_pipeline(**request(number), callback_on_step_end=count).audios

    with ThreadPoolExecutor(2) as pool:
        _, made = pool.map(call, range(2))
    assert steps == {0: 1, 1: 3}
    assert np.array_equal(made, alone)


def meeting():
    """A barrier for two threads, and what waits there for half a second: only one comes if they have to take turns."""
    barrier = threading.Barrier(2)

    def meet(*_):
        with suppress(threading.BrokenBarrierError):
            barrier.wait(timeout=0.5)

    return barrier, meet


def test_recorded_steps_take_turns(tiny_folder):
    """Recordings have one set of buffers; without CUDA each is computed anew into them."""
    pipeline = MusicLDMPipeline.from_pretrained(tiny_folder)
    pipeline.set_progress_bar_config(disable=True)
    barrier, meet = meeting()
    meets = []

    def record(function):
        result = function()
        return lambda: (result.copy_(function()), *(wait() for wait in meets)), result

    prepare_launches(pipeline, record)
    options = [request(1) | {"seed": seed} for seed in range(2)]
    alone = [pipeline(**each).audios for each in options]
    meets.append(meet)
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(lambda each: pipeline(**each).audios, options))
    assert barrier.broken
    for one, other in zip(alone, together, strict=True):
        assert np.array_equal(one, other)
    meets.clear()
    check_calls(pipeline)


def test_adapters_are_scaled_for_one_call(tiny_folder):
    pytest.importorskip("peft")
    from musicldm.config import LoraConfig
    from musicldm.models.adapters import add_adapter

    pipeline = MusicLDMPipeline.from_pretrained(tiny_folder)
    pipeline.set_progress_bar_config(disable=True)
    torch.manual_seed(0)
    add_adapter(pipeline.unet, LoraConfig(rank=2))
    for name, weight in pipeline.unet.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight)
    options = [request(1) | {"cross_attention_kwargs": {"scale": scale}} for scale in (0.2, 1.0)]
    alone = [pipeline(**each).audios for each in options]
    assert np.abs(alone[0] - pipeline(**options[0] | {"cross_attention_kwargs": None}).audios).max() > 1e-3
    barrier, meet = meeting()
    hook = pipeline.unet.mid_block.register_forward_pre_hook(meet)
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(lambda each: pipeline(**each).audios, options))
    hook.remove()
    assert barrier.broken
    for one, other in zip(alone, together, strict=True):
        assert np.array_equal(one, other)


def test_parts_that_move_serve_one_call_at_a_time(tiny_folder):
    pipeline = MusicLDMPipeline.from_pretrained(tiny_folder)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.enable_model_cpu_offload(device="cpu")
    alone = [pipeline(**request(number)).audios for number in range(REQUESTS)]
    running, most = set(), []

    def call(number):
        def count(pipe, step, timestep, tensors):
            running.add(number)
            most.append(len(running))
            if step == 0:  # within its turn
                pipeline(**request(number) | {"num_inference_steps": 1})
            if step == 2:
                running.discard(number)
            return {}

        return pipeline(**request(number), callback_on_step_end=count).audios

    together = on_threads(call)
    assert max(most) == 1
    for one, other in zip(alone, together, strict=True):
        assert np.array_equal(one, other)


@pytest.mark.filterwarnings("ignore:only the first")
def test_texts_of_all_lengths_are_read_side_by_side(tiny_parts):
    """A tokenizer keeps the padding and the cut of its last call, and no two threads may set them at once."""
    clap, tokenizer = tiny_parts["text_encoder"], tiny_parts["tokenizer"]
    texts = [[" ".join(["waltz"] * (1 + 5 * number)), "drums"][: 1 + number % 2] for number in range(REQUESTS)]
    with torch.no_grad():
        alone = [embed_text(clap, tokenizer, each) for each in texts]

    @torch.no_grad()
    def read(number):
        return [embed_text(clap, tokenizer, texts[number]) for _ in range(20)]

    for one, others in zip(alone, on_threads(read), strict=True):
        assert all(torch.equal(one, other) for other in others)
