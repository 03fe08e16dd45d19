"""The training loss, its gradients and the average of the weights are those of the original."""

import json

import pytest
import torch
from diffusers import DDIMScheduler
from torch import nn

from musicldm.models.original import load_original
from musicldm.models.original.key_map import original_name, unet_names
from musicldm.train.diffusion.objectives import (
    add_noise,
    diffusion_losses,
    prediction_target,
    variational_weights,
)
from musicldm.train.run_folder import Average
from tests.helpers.golden import golden, relative_error, tensors


@pytest.fixture(scope="module")
def trained():
    """Losses of the reference batch, and the gradients by the original's names."""
    parts = load_original(golden("unet/weights.safetensors"), golden("training/config.yaml"))
    unet, scheduler, io = parts["unet"], parts["scheduler"], tensors("training/io.safetensors")
    noisy = add_noise(io["x_start"], io["noise"], io["t"], scheduler.alphas_cumprod)
    predicted = unet(noisy, io["t"], encoder_hidden_states=None, class_labels=io["cond"][:, 0]).sample
    target = prediction_target(io["x_start"], io["noise"], io["t"], scheduler.alphas_cumprod, "epsilon")
    losses = diffusion_losses(predicted, target, io["t"], variational_weights(scheduler.betas))
    losses["loss"].backward()
    table = unet_names(unet.config)
    gradients = {original_name(name, table): parameter.grad for name, parameter in unet.named_parameters()}
    return io, noisy, losses, gradients


def test_losses(trained):
    io, noisy, losses, _ = trained
    assert relative_error(noisy, io["x_noisy"]) < 1e-5
    assert relative_error(losses["loss"], io["loss"]) < 1e-5
    assert relative_error(losses["loss"], io["loss_simple"]) < 1e-5
    assert relative_error(losses["variational"], io["loss_vlb"]) < 5e-5


def test_gradients(trained):
    io, _, _, gradients = trained
    stored = {key.removeprefix("grad."): value for key, value in io.items() if key.startswith("grad.")}
    assert len(stored) >= 5
    for name, expected in stored.items():
        assert relative_error(gradients[name][: len(expected)], expected) < 1e-4, name


def test_gradient_norms(trained):
    norms = json.loads(golden("training/grad_norms.json").read_text())
    gradients = trained[3]
    assert norms.keys() == gradients.keys()
    rounding = 1e-5 * max(norms.values())
    compared = {name: norm for name, norm in norms.items() if norm > rounding}
    assert len(compared) > 600
    for name, norm in compared.items():
        assert float(gradients[name].norm()) == pytest.approx(norm, rel=1e-4), name
    for name in norms.keys() - compared.keys():  # true gradient zero
        assert float(gradients[name].norm()) < 2 * rounding, name


def test_variational_weights():
    betas = DDIMScheduler(1000, 0.0015, 0.0195, "scaled_linear").betas
    assert relative_error(variational_weights(betas), tensors("training/io.safetensors")["lvlb_weights"]) < 5e-5


def test_averaging():
    io = tensors("training/io.safetensors")
    module = nn.Module()
    module.vector = nn.Parameter(io["ema.params"][0].clone())
    average = Average(module, 0.9999)
    for parameters, expected in zip(io["ema.params"][1:], io["ema.shadow"], strict=True):
        with torch.no_grad():
            module.vector.copy_(parameters)
        average.update(module)
        assert relative_error(average.shadow["vector"], expected) < 1e-6
