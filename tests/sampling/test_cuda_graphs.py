"""Denoising steps as recordings. Without CUDA a recording is computed anew into the same buffers, which is all that
differs: buffers, keys and checks are the ones that a GPU gets."""

import copy
import logging
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from torch._subclasses.fake_tensor import FakeTensorMode

from musicldm.pipelines.optimize import prepare_launches
from musicldm.pipelines.text_to_music import MusicLDMPipeline
from musicldm.sampling import cuda_graphs as module
from musicldm.sampling.condition import Condition
from musicldm.sampling.cuda_graphs import MOST_RECORDINGS, Recording, Watch, record_graph
from tests.helpers.tiny import make_unet

OPTIONS = {"num_inference_steps": 3, "seed": 3, "output_type": "latent", "audio_length_in_s": 0.64}


class Recorder:
    """Records without a graph, and counts."""

    def __init__(self):
        self.count = 0

    def __call__(self, function):
        self.count += 1
        result = function()
        return lambda: result.copy_(function()), result


@pytest.fixture
def pipeline(tiny_folder):
    pipeline = MusicLDMPipeline.from_pretrained(tiny_folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def recorder(pipeline):
    recorder = Recorder()
    prepare_launches(pipeline, recorder)
    return recorder


def test_replayed_steps_make_the_same_music(pipeline, tiny_folder, recorder):
    plain = MusicLDMPipeline.from_pretrained(tiny_folder)
    for scale in (2.0, 5.0, 1.0):
        for prompt in ("solo flute", "a fast waltz"):
            expected = plain(prompt, guidance_scale=scale, **OPTIONS).audios
            torch.testing.assert_close(pipeline(prompt, guidance_scale=scale, **OPTIONS).audios, expected)
    assert recorder.count == 2  # with and without guidance


@pytest.mark.parametrize(
    ("changes", "recordings"),
    [
        ({"prompt": "drums", "seed": 9, "guidance_scale": 7.0, "num_inference_steps": 5}, 0),
        ({"audio_length_in_s": 1.28}, 1),
        ({"prompt": ["drums", "flute"]}, 1),
        ({"cross_attention_kwargs": {"window": 2}}, 1),
    ],
)
def test_only_other_shapes_are_recorded_again(pipeline, recorder, changes, recordings):
    pipeline(**{"prompt": "solo flute", **OPTIONS})
    before = recorder.count
    pipeline(**{"prompt": "solo flute", **OPTIONS, **changes})
    assert recorder.count - before == recordings


def test_old_recordings_make_room(pipeline, recorder):
    for i in range(MOST_RECORDINGS + 1):
        pipeline("flute", **OPTIONS | {"audio_length_in_s": 0.64 * (i + 1)})
    assert len(pipeline.step_graphs.recordings) <= MOST_RECORDINGS


@pytest.mark.parametrize("change", ["weights", "place of weights", "module", "processor", "setting"])
def test_what_is_baked_in_counts(pipeline, recorder, change):
    pipeline("solo flute", **OPTIONS)
    if change == "weights":
        pipeline.unet.conv_out.weight = torch.nn.Parameter(pipeline.unet.conv_out.weight * 2)
    elif change == "place of weights":
        pipeline.unet.conv_out.weight.data = pipeline.unet.conv_out.weight.data * 2
    elif change == "module":
        pipeline.unet.conv_out = torch.nn.Conv2d(8, 4, 3, padding=1)
    elif change == "processor":
        pipeline.unet.set_attn_processor(AttnProcessor2_0())
    else:
        pipeline.enable_freeu(0.9, 0.2, 1.5, 1.6)
    again = pipeline("solo flute", **OPTIONS).audios
    assert recorder.count == 2
    pipeline.step_graphs = None
    torch.testing.assert_close(pipeline("solo flute", **OPTIONS).audios, again)


def test_looking_for_changes_does_not_walk_through_the_modules(pipeline, recorder, monkeypatch):
    made = []
    monkeypatch.setattr(module, "Watch", lambda unet: made.append(Watch(unet)) or made[-1])
    for _ in range(3):
        pipeline("solo flute", **OPTIONS)
    assert len(made) == 1
    pipeline.unet.eval()  # sets what is set already
    assert made[0].same(pipeline.unet)
    assert not made[0].same(copy.deepcopy(pipeline.unet))


def test_recordings_made_in_inference_mode_serve_outside_of_it(pipeline, recorder):
    with torch.inference_mode():
        expected = pipeline("solo flute", **OPTIONS).audios
    torch.testing.assert_close(pipeline("solo flute", **OPTIONS).audios, expected)
    with torch.inference_mode():
        torch.testing.assert_close(pipeline("solo flute", **OPTIONS).audios, expected)
    assert recorder.count == 1


def test_optimizing_again_keeps_the_recordings(pipeline, recorder):
    expected, graphs = pipeline("solo flute", **OPTIONS).audios, pipeline.step_graphs
    prepare_launches(pipeline, recorder)
    torch.testing.assert_close(pipeline("solo flute", **OPTIONS).audios, expected)
    assert recorder.count == 1
    assert pipeline.step_graphs is graphs
    other = copy.copy(pipeline)
    other.unet = copy.deepcopy(pipeline.unet)
    prepare_launches(other, recorder)
    torch.testing.assert_close(other("solo flute", **OPTIONS).audios, expected)
    assert pipeline.step_graphs is graphs is not other.step_graphs
    assert len(graphs.recordings) == len(other.step_graphs.recordings) == 1


class FailsAtFirst(Recorder):
    """Runs out of memory so many times."""

    def __init__(self, failures: int):
        super().__init__()
        self.left, self.tries = failures, 0

    def __call__(self, function):
        self.tries += 1
        if self.tries <= self.left:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().__call__(function)


@pytest.mark.parametrize(("failures", "tries", "recordings"), [(1, 2, 1), (2, 3, 1), (99, 4, 0)])
def test_a_failure_that_passes_is_forgotten(pipeline, caplog, failures, tries, recordings):
    recorder = FailsAtFirst(failures)
    prepare_launches(pipeline, recorder)
    for _ in range(10):
        pipeline("solo flute", **OPTIONS)
    assert (recorder.tries, recorder.count) == (tries, recordings)  # for good: in runs 1, 2, 4 and 8
    assert caplog.text.count("cannot be recorded and run plainly: CUDA out of memory") == 1


class CurrentDevice:
    """Imagined devices: which one is current."""

    def __init__(self):
        self.index, self.used = 0, []

    def __call__(self, device):
        @contextmanager
        def inside():
            before, self.index = self.index, device.index
            yield
            self.index = before

        return inside()

    def use(self, *args, **kwargs):
        self.used.append(self.index)
        return self

    wait_stream = record_event = wait = use


def test_recordings_are_made_and_replayed_on_the_device_of_the_unet(monkeypatch):
    devices = CurrentDevice()
    for name in ("Stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, devices.use)
    monkeypatch.setattr(torch.cuda, "device", devices)

    def record(function):
        devices.use()
        return devices.use, function()

    with FakeTensorMode(), torch.no_grad():
        with torch.device("cuda:1"):
            unet = make_unet()
            noisy, time, embedding = torch.zeros(1, 4, 8, 4), torch.tensor(1), torch.zeros(2, 24)
        recording = Recording(unet, noisy, time, Condition(embedding), record)
        for _ in range(2):
            assert recording(noisy, time, Condition(embedding), 2.0).device == torch.device("cuda:1")
    assert devices.used == [1] * 8  # a recording; two replays, streams and events; one wait
    assert devices.index == 0


def test_a_capture_has_a_stream_of_its_device_and_leaves_other_threads_alone(monkeypatch):
    """Torch keeps one stream for all captures, of the device that was current at the first."""
    devices, captures = CurrentDevice(), []

    def capture(graph, **options):
        captures.append(options)
        return nullcontext()

    for name in ("Stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, devices.use)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay="again"))
    monkeypatch.setattr(torch.cuda, "graph", capture)
    assert record_graph(lambda: 3) == ("again", 3)
    assert captures == [{"stream": devices, "capture_error_mode": "thread_local"}]


def stale(function):
    """A recording that never looks at its inputs again."""
    return lambda: None, function()


def impossible(function):
    raise RuntimeError("operation not permitted when stream is capturing")


@pytest.mark.parametrize(
    ("record", "message"),
    [(stale, "deviates by"), (impossible, "cannot be recorded and run plainly: operation not permitted")],
)
def test_a_recording_that_is_wrong_is_not_used(pipeline, tiny_folder, caplog, record, message):
    expected = MusicLDMPipeline.from_pretrained(tiny_folder)("solo flute", **OPTIONS).audios
    prepare_launches(pipeline, record)
    for _ in range(2):
        torch.testing.assert_close(pipeline("solo flute", **OPTIONS).audios, expected)
    assert caplog.text.count(message) == 1


def test_adapters_are_not_recorded(pipeline, recorder, caplog):
    pytest.importorskip("peft")
    from musicldm.config import LoraConfig
    from musicldm.models.adapters import add_adapter

    add_adapter(pipeline.unet, LoraConfig(rank=2))
    with caplog.at_level(logging.INFO):
        pipeline("solo flute", **OPTIONS)
    assert recorder.count == 0
    assert "it has adapters" in caplog.text


def test_a_saved_model_is_as_before(pipeline, recorder, tmp_path):
    expected = pipeline("solo flute", **OPTIONS).audios
    pipeline.save_pretrained(tmp_path)
    again = MusicLDMPipeline.from_pretrained(tmp_path)
    assert not any("to_qkv" in name for name in again.unet.state_dict())
    torch.testing.assert_close(again("solo flute", **OPTIONS).audios, expected)
    torch.testing.assert_close(pipeline("solo flute", **OPTIONS).audios, expected)
    assert any("to_qkv" in name for name in pipeline.unet.state_dict())


# --- on a GPU --------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_graphs_replay_the_step_and_nothing_waits(tiny_folder, dtype, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # which rounds each layout's sums in its own way
    plain = MusicLDMPipeline.from_pretrained(tiny_folder, torch_dtype=dtype).to("cuda")
    fast = MusicLDMPipeline.from_pretrained(tiny_folder, torch_dtype=dtype).to("cuda").optimize()
    for prompt in ("solo flute", "a fast waltz"):
        expected, made = (pipeline(prompt, **OPTIONS).audios for pipeline in (plain, fast))
        assert (made - expected).norm() <= max(1e-4, 8 * torch.finfo(dtype).eps) * expected.norm()
    (recording,) = fast.step_graphs.recordings.values()
    assert isinstance(recording, Recording)
    wanted, unconditional = fast.encode_prompt("solo flute")
    condition = Condition(torch.cat([unconditional, wanted]))
    latents = torch.randn(recording.inputs[0].shape, device="cuda")
    fast.scheduler.set_timesteps(3, device="cpu")
    timesteps = fast.scheduler.timesteps
    torch.cuda.set_sync_debug_mode("error")
    try:
        step = fast.step_graphs.of(fast.unet)
        for t in timesteps.to("cuda", non_blocking=True):
            step(fast.unet, latents, t, condition, 2.0)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
def test_a_graph_of_a_step_is_a_graph():
    x = torch.ones(8, device="cuda")
    replay, result = record_graph(lambda: 2 * x)
    x.fill_(3.0)
    replay()
    assert result.tolist() == [6.0] * 8
