"""A context beside the text: two scales of guidance with no evaluation too many, windows, circles, recordings."""

import math

import pytest
import torch
from diffusers import DDIMScheduler

from musicldm.models.circular import circular_unet
from musicldm.models.context import add_context
from musicldm.sampling import Condition, Guidance, Known, denoise, predict, prepare_timesteps
from musicldm.sampling.cuda_graphs import StepGraphs
from musicldm.sampling.windows import Windows, lay_out
from tests.helpers.tiny import EMBEDDING, make_unet

EXACT = {"rtol": 0, "atol": 1e-10}
TIME = torch.tensor(500)
KINDS = ("chords", "click", "hole")
CHANNELS = 4 + 1 + len(KINDS)


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    unet = make_unet().double()
    add_context(unet, KINDS)
    with torch.no_grad():
        unet.conv_in.weight[:, 4:].normal_(0, 0.3)
    return unet


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def latents(items=2, frames=8, seed=0):
    return random(items, 4, frames, 4, seed=seed)


def contexts(items=2, frames=8, seed=5):
    return random(items, CHANNELS, frames, 4, seed=seed)


def condition_of(items=2, frames=8):
    """For guidance: unconditional rows, then those of the text."""
    return Condition(random(2 * items, EMBEDDING, seed=1), context=contexts(items, frames))


class Counted(torch.nn.Module):
    """A UNet that notes how many rows it is called with."""

    def __init__(self, unet):
        super().__init__()
        self.unet, self.config, self.dtype, self.rows = unet, unet.config, unet.dtype, []

    def forward(self, x, *arguments, **options):
        self.rows.append(len(x))
        return self.unet(x, *arguments, **options)


def evaluate(unet, noisy, embedding, context):
    return predict(unet, noisy, TIME, Condition(embedding, context=context))


@pytest.mark.parametrize(
    ("g", "c", "evaluations"),
    [(2.0, 1.0, 2), (3.0, 3.0, 2), (1.0, 1.0, 1), (2.0, 3.0, 3), (1.0, 2.5, 3), (3.0, 0.0, 3), (0.0, 1.0, 2)],
)
def test_the_scales_weigh_three_evaluations_of_which_only_those_that_count_are_made(unet, g, c, evaluations):
    x, condition, counted = latents(), condition_of(), Counted(unet)
    made = predict(counted, x, TIME, condition, g, c)
    assert counted.rows == [2 * evaluations]
    nothing, text = condition.embedding.chunk(2)
    zeros = torch.zeros_like(condition.context)
    expected = (
        (1 - c) * evaluate(unet, x, nothing, zeros)
        + (c - g) * evaluate(unet, x, nothing, condition.context)
        + g * evaluate(unet, x, text, condition.context)
    )
    torch.testing.assert_close(made, expected, **EXACT)


def test_without_a_context_such_a_unet_is_guided_as_any(unet):
    x, embedding, counted = latents(), condition_of().embedding, Counted(unet)
    made = predict(counted, x, TIME, Condition(embedding), 2.0, 3.0)
    assert counted.rows == [4]
    nothing, text = (evaluate(unet, x, rows, torch.zeros(2, CHANNELS, 8, 4)) for rows in embedding.chunk(2))
    torch.testing.assert_close(made, nothing + 2 * (text - nothing), **EXACT)


def test_the_context_is_heard(unet):
    x, condition = latents(), condition_of()
    without = predict(unet, x, TIME, Condition(condition.embedding), 2.0)
    assert (predict(unet, x, TIME, condition, 2.0) - without).abs().max() > 1e-2


def test_items_do_not_hear_one_another(unet):
    x, condition = latents(), condition_of()
    made = predict(unet, x, TIME, condition, 2.0, 3.0)
    for i in range(2):
        alone = Condition(condition.embedding[[i, i + 2]], context=condition.context[i : i + 1])
        torch.testing.assert_close(predict(unet, x[i : i + 1], TIME, alone, 2.0, 3.0), made[i : i + 1], **EXACT)


def test_a_context_that_does_not_fit_is_refused(unet):
    x, embedding = latents(), random(2, EMBEDDING)
    with pytest.raises(ValueError, match="the model takes no context"):
        evaluate(make_unet().double(), x, embedding, contexts())
    with pytest.raises(ValueError, match=r"must be \(2, 8, 8, 4\), got \(2, 8, 9, 4\)"):
        evaluate(unet, x, embedding, contexts(frames=9))
    with pytest.raises(ValueError, match=r"must be \(2, 8, 8, 4\), got \(2, 7, 8, 4\)"):
        evaluate(unet, x, embedding, contexts()[:, :7])


@pytest.mark.parametrize("c", [1.0, 3.0])
def test_one_window_is_the_whole(unet, c):
    x, condition = latents(frames=7), condition_of(frames=7)
    made = Windows(lay_out(7, 8))(unet, x, TIME, condition, 2.0, c)
    torch.testing.assert_close(made, predict(unet, x, TIME, condition, 2.0, c), **EXACT)


@pytest.mark.parametrize("loop", [False, True])
@pytest.mark.parametrize("c", [1.0, 3.0])
def test_each_window_has_its_part_of_the_context(unet, loop, c):
    layout = lay_out(20, 8, loop)
    x, condition = latents(frames=20), condition_of(frames=20)
    expected, weights = torch.zeros_like(x), layout.weights()
    for i in range(len(layout.starts)):
        frames = layout.frames(i)
        part = Condition(condition.embedding, context=condition.context[:, :, frames])
        expected[:, :, frames] += weights[i, :, None] * predict(unet, x[:, :, frames], TIME, part, 2.0, c)
    for at_once in (2, 100):
        made = Windows(layout, at_once=at_once)(unet, x, TIME, condition, 2.0, c)
        torch.testing.assert_close(made, expected, **EXACT)


def test_on_a_circle_what_is_rotated_stays_so(unet):
    circle, x, condition = circular_unet(unet), latents(), condition_of()
    turned = Condition(condition.embedding, context=condition.context.roll(2, 2))
    made = predict(circle, x, TIME, condition, 2.0, 3.0).roll(2, 2)
    torch.testing.assert_close(predict(circle, x.roll(2, 2), TIME, turned, 2.0, 3.0), made, **EXACT)


def run(unet, condition, guidance, evaluate=predict, **options):
    scheduler = DDIMScheduler(clip_sample=False)
    timesteps = prepare_timesteps(scheduler, 4)
    with torch.no_grad():
        return denoise(unet, scheduler, latents(), condition, timesteps, guidance, evaluate=evaluate, **options)


def test_outside_of_the_interval_nothing_is_guided(unet):
    counted = Counted(unet)
    run(counted, condition_of(), Guidance(2.0, (0.3, 0.6), 3.0))  # time steps 750, 500, 250, 0
    assert counted.rows == [2, 6, 2, 2]


def test_scales_may_change_while_a_run_goes_on(unet):
    counted, guidance = Counted(unet), Guidance(3.0, context_scale=3.0)
    scales = iter([2.0, 1.0, 3.0, 3.0])

    def on_step(i, t, latents, condition):
        guidance.scale = next(scales)
        return latents, condition

    run(counted, condition_of(), guidance, on_step=on_step)
    assert counted.rows == [4, 6, 6, 4]


def test_a_part_is_kept_beside_a_context(unet):
    known = Known(latents(seed=9), (torch.arange(8) < 3).double().view(1, 1, 8, 1))
    made = run(unet, condition_of(), Guidance(2.0, context_scale=3.0), known=known)
    torch.testing.assert_close(made[:, :, :3], known.x0[:, :, :3], rtol=0, atol=1e-6)
    assert (made[:, :, 3:] - known.x0[:, :, 3:]).abs().max() > 0.1


def test_recordings_serve_other_contexts_and_scales(unet):
    count = 0

    def record(function):
        nonlocal count
        count += 1
        result = function()
        return lambda: result.copy_(function()), result

    graphs = StepGraphs(record)
    with torch.no_grad():
        replayed = graphs.of(unet)
        assert replayed is not predict
        for seed, g, c in ((5, 2.0, 1.0), (6, 4.0, 4.0), (7, 2.0, 3.0), (8, 5.0, 1.5), (9, 1.0, 1.0)):
            condition = Condition(random(4, EMBEDDING, seed=seed), context=contexts(seed=seed))
            made = replayed(unet, latents(seed=seed), TIME, condition, g, c)
            expected = predict(unet, latents(seed=seed), TIME, condition, g, c)
            torch.testing.assert_close(made, expected, **EXACT)
        replayed(unet, latents(), TIME, Condition(random(4, EMBEDDING)), 2.0)
    assert count == 4  # of one, two and three evaluations, and without a context
    assert math.prod(len(recording.inputs) - 2 for recording in graphs.recordings.values()) == 2**3
