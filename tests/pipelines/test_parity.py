"""The pipeline against the class of the same name in diffusers, which it replaces: same parts, same waveform."""

import inspect

import diffusers
import pytest
import torch
from torch.nn import functional

from musicldm.pipelines.text_to_music import MusicLDMPipeline
from musicldm.sampling.schedulers import SCHEDULERS, make_scheduler

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers.*"),
    pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning"),
]

TOLERANCE = 1e-4  # of waveforms of standard deviation 0.2; rounding alone gives about 1e-6


@pytest.fixture
def peer(tiny_pipeline):
    """diffusers' pipeline of the same parts."""
    pipeline = diffusers.MusicLDMPipeline(**tiny_pipeline.components)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def embeds():
    """Unit vectors for two prompts and two negative prompts, by the names of the arguments.

    diffusers' own text path does not run with transformers 5.
    """
    vectors = functional.normalize(torch.randn(4, 24, generator=torch.Generator().manual_seed(1)), dim=-1)
    return {"prompt_embeds": vectors[:2], "negative_prompt_embeds": vectors[2:]}


def compare(ours: MusicLDMPipeline, peer, **arguments) -> float:
    """Largest difference of the two waveforms, both from generators of seed 5."""
    results = [
        pipeline(generator=torch.Generator().manual_seed(5), output_type="pt", **arguments).audios
        for pipeline in (ours, peer)
    ]
    assert results[0].shape == results[1].shape
    assert results[1].std() > 0.02
    return (results[0] - results[1]).abs().max().item()


def test_arguments_are_those_of_diffusers_and_more():
    ours = list(inspect.signature(MusicLDMPipeline.__call__).parameters.values())
    theirs = list(inspect.signature(diffusers.MusicLDMPipeline.__call__).parameters.values())
    assert [(p.name, p.default) for p in ours[: len(theirs)]] == [(p.name, p.default) for p in theirs]
    assert [p.name for p in ours[len(theirs) :]] == [
        "callback_on_step_end",
        "callback_on_step_end_tensor_inputs",
        "seed",
        "return_best",
        "guidance_interval",
        "correct",
        "loop",
        "windows",
        "context",
        "context_kind",
        "context_guidance_scale",
        "context_sampling_rate",
    ]
    constructors = [inspect.signature(cls).parameters for cls in (MusicLDMPipeline, diffusers.MusicLDMPipeline)]
    assert list(constructors[0]) == list(constructors[1])


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_same_waveform_with_every_scheduler(tiny_pipeline, peer, embeds, name, guidance_scale):
    tiny_pipeline.scheduler = make_scheduler(name, tiny_pipeline.scheduler)
    peer.scheduler = make_scheduler(name, peer.scheduler)
    assert compare(tiny_pipeline, peer, num_inference_steps=4, guidance_scale=guidance_scale, **embeds) <= TOLERANCE


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_same_waveform_when_ddim_adds_noise(tiny_pipeline, peer, embeds, eta):
    assert compare(tiny_pipeline, peer, num_inference_steps=5, eta=eta, **embeds) <= TOLERANCE


@pytest.mark.parametrize("latent_frames", [1, 3, 7, 25])  # odd numbers, which the UNet halves and doubles again
def test_same_waveform_for_whole_latent_frames(tiny_pipeline, peer, embeds, latent_frames):
    seconds = latent_frames * 4 * 80 / 8000
    assert compare(tiny_pipeline, peer, audio_length_in_s=seconds, num_inference_steps=3, **embeds) <= TOLERANCE


def test_same_waveform_from_given_latents(tiny_pipeline, peer, embeds):
    latents = torch.randn(2, 4, 8, 4, generator=torch.Generator().manual_seed(2))
    assert compare(tiny_pipeline, peer, latents=latents, num_inference_steps=3, **embeds) <= TOLERANCE


def test_same_waveform_of_the_bundled_model():
    """Its attention and its vocoder's last correction come with the modules, whoever calls them."""
    mini = MusicLDMPipeline.from_pretrained("mini")
    theirs = diffusers.MusicLDMPipeline(**mini.components)
    prompt, negative = mini.embed_texts(["solo piano, slow", ""]).split(1)
    options = {"prompt_embeds": prompt, "negative_prompt_embeds": negative, "num_inference_steps": 5}
    assert mini.vocoder.config.match_passes > 0
    assert compare(mini, theirs, audio_length_in_s=2.56, **options) <= TOLERANCE


def test_same_latents(tiny_pipeline, peer, embeds):
    ours, theirs = (
        pipeline(generator=torch.Generator().manual_seed(0), num_inference_steps=3, output_type="latent", **embeds)
        for pipeline in (tiny_pipeline, peer)
    )
    assert isinstance(ours, type(theirs))  # an AudioPipelineOutput
    torch.testing.assert_close(ours.audios, theirs.audios, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("name", "every"), [("ddim", 1), ("ddim", 2), ("pndm", 2), ("heun", 1)])
def test_callback_is_called_as_by_diffusers(tiny_pipeline, peer, embeds, name, every):
    calls = []
    for pipeline in (tiny_pipeline, peer):
        pipeline.scheduler = make_scheduler(name, pipeline.scheduler)
        calls.append([])

        def note(step, timestep, latents):
            calls[-1].append((step, float(timestep), latents.mean().item()))

        generator = torch.Generator().manual_seed(0)
        pipeline(num_inference_steps=5, generator=generator, callback=note, callback_steps=every, **embeds)
    assert len(calls[0]) >= 2
    assert calls[0] == [pytest.approx(call, abs=1e-4) for call in calls[1]]
