"""DDIM sampling with the loaded parts gives the original's latents, spectrograms and waveforms."""

import pytest
import torch
from diffusers import DDIMScheduler

from musicldm import MusicLDMPipeline
from musicldm.models.original import load_original
from musicldm.models.original.config_map import read_config, scheduler_config
from musicldm.sampling import Condition, Guidance, denoise, prepare_timesteps
from tests.helpers.golden import golden, relative_error, tensors

STEPS = 10


@pytest.fixture(scope="module")
def io():
    return tensors("ddim/io.safetensors")


@pytest.fixture(scope="module")
def parts():
    """All parts as one checkpoint would hold them, with the scale factor of the run."""
    state = {}
    for name in ("unet/weights.safetensors", "vae/weights.safetensors", "vocoder/weights_plain.safetensors"):
        state |= tensors(name)
    state["scale_factor"] = tensors("ddim/io.safetensors", "scale_factor")["scale_factor"]
    return load_original(state, golden("ddim/config.yaml"), golden("vocoder/config.json"))


@torch.no_grad()
def sample(parts, io, guidance_scale, eta=0.0, noises=None):
    """The latents after each step, by diffusers' scheduler alone."""
    scheduler, unet, latents = parts["scheduler"], parts["unet"], io["x_T"]
    scheduler.set_timesteps(STEPS)
    conditions = torch.cat([io["uncond"], io["cond"]])[:, 0]
    steps = []
    for i, timestep in enumerate(scheduler.timesteps):
        if guidance_scale == 1:
            eps = unet(latents, timestep, encoder_hidden_states=None, class_labels=io["cond"][:, 0]).sample
        else:
            both = unet(torch.cat([latents] * 2), timestep, encoder_hidden_states=None, class_labels=conditions).sample
            unconditional, conditional = both.chunk(2)
            eps = unconditional + guidance_scale * (conditional - unconditional)
        noise = None if noises is None else noises[i]
        latents = scheduler.step(eps, timestep, latents, eta=eta, variance_noise=noise).prev_sample
        steps.append(latents)
    return torch.stack(steps)


@pytest.fixture(scope="module")
def schedule():
    """The scheduler of the configuration, which needs no weights."""
    return DDIMScheduler(**scheduler_config(read_config(golden("ddim/config.yaml"), {})))


def test_training_schedule(io, schedule):
    assert relative_error(schedule.betas, io["schedule.betas"]) < 1e-6
    assert relative_error(schedule.alphas_cumprod, io["schedule.alphas_cumprod"]) < 5e-6
    before = torch.cat([torch.ones(1), schedule.alphas_cumprod[:-1]])
    assert relative_error(before, io["schedule.alphas_cumprod_prev"]) < 5e-6


def test_sampling_schedule(io, schedule):
    schedule.set_timesteps(STEPS)
    ascending = schedule.timesteps.flip(0)
    assert ascending.tolist() == io["schedule.ddim_timesteps"].tolist()
    alphas = schedule.alphas_cumprod[ascending]
    before = torch.cat([schedule.alphas_cumprod[:1], alphas[:-1]])
    assert schedule.final_alpha_cumprod == schedule.alphas_cumprod[0]
    assert relative_error(alphas, io["schedule.ddim_alphas"]) < 5e-6
    assert relative_error(before, io["schedule.ddim_alphas_prev"]) < 5e-6
    assert relative_error((1 - alphas).sqrt(), io["schedule.ddim_sqrt_one_minus_alphas"]) < 5e-6
    still, moved = (
        torch.stack(
            [
                schedule.step(torch.zeros(1), t, torch.zeros(1), eta=1.0, variance_noise=torch.full([1], noise))[0][0]
                for t in ascending
            ]
        )
        for noise in (0.0, 1.0)
    )
    assert relative_error(moved - still, io["schedule.ddim_sigmas_eta1"]) < 1e-5


@pytest.mark.parametrize("steps", [10, 20, 25, 50, 200, 250])
def test_timesteps(io, schedule, steps):
    schedule.set_timesteps(steps)
    assert schedule.timesteps.flip(0).tolist() == io[f"timesteps_for.{steps}"].tolist()


def test_scale_factor_reaches_the_vae(parts, io):
    assert parts["vae"].config.scaling_factor == pytest.approx(float(io["scale_factor"]), rel=1e-7)


def test_deterministic_sampling(parts, io):
    steps = sample(parts, io, float(io["guidance_scale"]))
    for step, expected in zip(steps, io["eta0.x_inter"], strict=True):
        assert relative_error(step, expected) < 5e-5
    assert relative_error(steps[-1], io["eta0.samples"]) < 5e-5
    with torch.no_grad():
        mel = parts["vae"].decode(steps[-1] / parts["vae"].config.scaling_factor).sample
        waveform = parts["vocoder"](mel[:, 0])
    assert relative_error(mel, io["eta0.mel"]) < 5e-5
    assert relative_error(waveform[:, None], io["eta0.wav"]) < 5e-5


def test_noisy_sampling(parts, io):
    steps = sample(parts, io, float(io["guidance_scale"]), eta=1.0, noises=io["eta1.noises"])
    assert relative_error(steps[-1], io["eta1.samples"]) < 5e-5


def test_sampling_without_guidance(parts, io):
    assert relative_error(sample(parts, io, 1)[-1], io["noguidance.samples"]) < 5e-5


@pytest.fixture(scope="module")
def pipeline(parts):
    pipeline = MusicLDMPipeline(text_encoder=None, tokenizer=None, feature_extractor=None, **parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize(("key", "guidance_scale"), [("eta0.samples", 2.0), ("noguidance.samples", 1.0)])
def test_pipeline_latents(pipeline, io, key, guidance_scale):
    latents = pipeline(
        prompt_embeds=io["cond"][:, 0],
        negative_prompt_embeds=io["uncond"][:, 0],
        latents=io["x_T"],
        num_inference_steps=STEPS,
        guidance_scale=guidance_scale,
        output_type="latent",
    ).audios
    assert relative_error(latents, io[key]) < 5e-5


def test_pipeline_waveforms(pipeline, io):
    n_samples = 128 * 160  # the frames of these latents; the vocoder makes 32 more
    audios = pipeline(
        prompt_embeds=io["cond"][:, 0],
        negative_prompt_embeds=io["uncond"][:, 0],
        latents=io["x_T"],
        num_inference_steps=STEPS,
        output_type="pt",
    ).audios
    assert relative_error(audios, io["eta0.wav"][:, 0, :n_samples]) < 5e-5


@torch.no_grad()
def test_a_known_part(parts, io):
    """Masked sampling as the authors do it: mask 1 keeps."""
    timesteps = prepare_timesteps(parts["scheduler"], STEPS)
    made = denoise(
        parts["unet"],
        parts["scheduler"],
        io["x_T"],
        Condition(torch.cat([io["uncond"], io["cond"]])[:, 0]),
        timesteps,
        Guidance(float(io["guidance_scale"])),
        known=(io["inpaint.x0"], io["inpaint.mask"], io["inpaint.q_noises"]),
    )
    assert relative_error(made, io["inpaint.samples"]) < 5e-5
