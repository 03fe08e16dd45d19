"""Denoising steps as recordings. Without CUDA a recording is computed anew into the same buffers, which is all that
differs: buffers, keys and checks are the ones that a GPU gets."""

import logging

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0

from musicldm.pipelines.optimize import prepare_launches
from musicldm.pipelines.text_to_music import MusicLDMPipeline
from musicldm.sampling.condition import Condition
from musicldm.sampling.cuda_graphs import MOST_RECORDINGS, record_graph

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


@pytest.mark.parametrize("change", ["weights", "processor", "setting"])
def test_what_is_baked_in_counts(pipeline, recorder, change):
    pipeline("solo flute", **OPTIONS)
    if change == "weights":
        pipeline.unet.conv_out.weight = torch.nn.Parameter(pipeline.unet.conv_out.weight * 2)
    elif change == "processor":
        pipeline.unet.set_attn_processor(AttnProcessor2_0())
    else:
        pipeline.enable_freeu(0.9, 0.2, 1.5, 1.6)
    again = pipeline("solo flute", **OPTIONS).audios
    assert recorder.count == 2
    pipeline.step_graphs = None
    torch.testing.assert_close(pipeline("solo flute", **OPTIONS).audios, again)


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
    assert recording is not None
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
