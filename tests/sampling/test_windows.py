"""Long latents in windows of what a network was trained on: blended, each with its own condition, at linear cost."""

import copy
from itertools import pairwise

import pytest
import torch
from diffusers import DDIMScheduler

from musicldm import sampling
from musicldm.kernels.unet_attention import AttentionProcessor
from musicldm.models.circular import circular_unet
from musicldm.sampling import SCHEDULERS, Condition, Guidance, make_scheduler, predict
from musicldm.sampling.windows import Windows, blend, lay_out
from tests.helpers.tiny import EMBEDDING, make_unet

EXACT = {"atol": 1e-10, "rtol": 0}
TIME = torch.tensor(500)


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    return make_unet().double()


def latents(frames, items=1, seed=0):
    return torch.randn(items, 4, frames, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rows(n, seed=1):
    return torch.randn(n, EMBEDDING, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("loop", [False, True])
@pytest.mark.parametrize(
    ("frames", "length", "overlap"), [(9, 8, 0.5), (30, 8, 0.5), (31, 8, 0.25), (64, 9, 0.8), (16, 8, 0)]
)
def test_windows_cover_everything_and_their_weights_sum_to_one(frames, length, overlap, loop):
    layout = lay_out(frames, length, loop, overlap)
    total, times = torch.zeros(frames, dtype=torch.float64), torch.zeros(frames)
    for i, weights in enumerate(layout.weights()):
        assert weights.min() > 0
        assert len(set(layout.frames(i).tolist())) == length
        total[layout.frames(i)] += weights
        times[layout.frames(i)] += 1
    torch.testing.assert_close(total, torch.ones_like(total))
    starts = [*layout.starts, *([layout.starts[0] + frames] if loop else [])]
    steps = [after - before for before, after in pairwise(starts)]
    assert max(steps) <= length * (1 - overlap)
    assert max(steps) - min(steps) <= 1  # evenly spread
    assert layout.starts[0] == 0
    assert loop or layout.starts[-1] == frames - length
    assert times.max() <= 3 or overlap > 0.5


def test_the_number_of_windows_grows_linearly():
    numbers = [len(lay_out(frames, 128).starts) for frames in (750, 1500, 3750)]
    assert numbers == [8, 16, 39]
    assert len(lay_out(128, 128).starts) == len(lay_out(5, 128).starts) == 1


@pytest.mark.parametrize("loop", [False, True])
@pytest.mark.parametrize("frames", [3, 8])
def test_what_fits_into_one_window_is_predicted_as_without(unet, frames, loop):
    network = circular_unet(unet) if loop else unet
    x, condition = latents(frames, 2), Condition(rows(4))
    made = Windows(lay_out(frames, 8, loop))(network, x, TIME, condition, 3.0)
    torch.testing.assert_close(made, predict(network, x, TIME, condition, 3.0), **EXACT)


@pytest.mark.parametrize("loop", [False, True])
@pytest.mark.parametrize("time", [TIME, torch.tensor([500, 20])])
def test_windows_are_blended_by_their_weights(unet, loop, time):
    x, condition = latents(21, 2), Condition(rows(4))
    layout = lay_out(21, 8, loop)
    expected = torch.zeros_like(x)
    for i, weights in enumerate(layout.weights()):
        frames = layout.frames(i)
        expected[:, :, frames] += weights[:, None] * predict(unet, x[:, :, frames], time, condition, 2.0)
    for at_once in (1, 3, 4, 100):
        made = Windows(layout, at_once=at_once)(unet, x, time, condition, 2.0)
        torch.testing.assert_close(made, expected, **EXACT)


def test_an_item_does_not_depend_on_its_batch(unet):
    x, condition, windows = latents(21, 3), rows(6), Windows(lay_out(21, 8))
    made = windows(unet, x, TIME, Condition(condition), 2.0)
    for i in range(3):
        alone = windows(unet, x[i : i + 1], TIME, Condition(condition[[i, i + 3]]), 2.0)
        torch.testing.assert_close(alone, made[i : i + 1], **EXACT)


def test_each_window_has_its_own_condition(unet):
    """Guided and not; a window hears its own row, and no other does."""
    x, layout = latents(20), lay_out(20, 8)  # windows from 0, 6 and 12
    own, negatives = rows(3, 2), rows(3, 3)
    condition = Condition(rows(2))
    made = Windows(layout, own, negatives)(unet, x, TIME, condition, 2.0)
    expected = torch.zeros_like(x)
    for i, weights in enumerate(layout.weights()):
        pair = Condition(torch.stack([negatives[i], own[i]]))
        expected[:, :, layout.frames(i)] += weights[:, None] * predict(unet, x[:, :, layout.frames(i)], TIME, pair, 2.0)
    torch.testing.assert_close(made, expected, **EXACT)
    unguided = Windows(layout, own, negatives)(unet, x, TIME, condition.rows(1), 2.0)
    changed = own.clone()
    changed[-1] += 1
    difference = Windows(layout, changed, negatives)(unet, x, TIME, condition.rows(1), 2.0) - unguided
    heard = difference.abs().amax(dim=(0, 1, 3)).nonzero().flatten()
    assert heard.tolist() == list(range(12, 20))


def test_on_a_circle_windows_go_round_the_end(unet):
    """24 frames, a window begins at every sixth: rotated by as many, the prediction is rotated."""
    x, condition, windows = latents(24), Condition(rows(2)), Windows(lay_out(24, 8, loop=True))
    made = windows(unet, x, TIME, condition, 2.0)
    torch.testing.assert_close(windows(unet, x.roll(6, 2), TIME, condition, 2.0), made.roll(6, 2), **EXACT)
    changed = x.clone()
    changed[:, :, -1] += 1
    assert (windows(unet, changed, TIME, condition, 2.0) - made)[:, :, 0].abs().max() > 1e-3


def test_shares_of_sections():
    layout = lay_out(40, 8, overlap=0.5)
    shares = layout.shares([0, 12.5, 20, 40])
    torch.testing.assert_close(shares.sum(dim=1), torch.ones(len(layout.starts), dtype=torch.float64))
    assert shares[0].tolist() == [1, 0, 0]  # frames 0 to 8
    assert shares[-1].tolist() == [0, 0, 1]
    across = shares[layout.starts.index(16)]  # 16 to 24, with a border in its middle
    torch.testing.assert_close(across, torch.tensor([0, 0.5, 0.5], dtype=torch.float64))
    around = lay_out(16, 8, loop=True, overlap=0.5).shares([0, 8, 16])
    torch.testing.assert_close(around[3], torch.tensor([0.5, 0.5], dtype=torch.float64))  # 12 to 20


def test_blended_embeddings_keep_their_length():
    ends = torch.nn.functional.normalize(rows(2), dim=1)
    shares = torch.tensor([[1, 0], [0.5, 0.5], [0, 1]], dtype=torch.float64)
    made = blend(ends, shares)
    torch.testing.assert_close(made[[0, 2]], ends, **EXACT)
    torch.testing.assert_close(made.norm(dim=1), torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(made[1] @ ends[0], made[1] @ ends[1])


def test_windows_of_attention_are_those_of_the_window(unet):
    """The grid that the attention is told of is that of what it sees."""
    windowed = copy.deepcopy(unet)
    windowed.set_attn_processor(AttentionProcessor())
    x, layout = latents(24), lay_out(24, 8)
    made = Windows(layout)(windowed, x, TIME, Condition(rows(1), {"window": 8, "grid": (24, 4)}))
    torch.testing.assert_close(made, Windows(layout)(unet, x, TIME, Condition(rows(1))), **EXACT)


def trained_with():
    return DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False, steps_offset=1)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_sampler_keeps_what_is_known(unet, name):
    """Long latents in windows, of which the first half is known: it comes back, and the windows hear it."""
    x0, kept = latents(20, seed=5), torch.zeros(1, 1, 20, 1)
    kept[:, :, :10] = 1
    made = []
    for known in (None, (x0, kept, None)):
        scheduler = make_scheduler(name, trained_with())
        timesteps = sampling.prepare_timesteps(scheduler, 6)
        generator = [torch.Generator().manual_seed(0)]
        noise = sampling.first_noise(scheduler, x0.shape, torch.float64, torch.device("cpu"), generator)
        options = sampling.denoising.options_of_step(scheduler, noise, 0.0, generator)
        condition, evaluate = Condition(rows(2)), Windows(lay_out(20, 8))
        result = sampling.denoise(
            unet, scheduler, noise, condition, timesteps, Guidance(2.0), known=known, evaluate=evaluate, **options
        )
        made.append(result)
    error = (made[1] - x0)[:, :, :10].abs().max()
    assert error < 0.2  # the last step of some samplers leaves a little noise
    assert (made[0] - x0)[:, :, :10].abs().max() > 2 * error
    assert (made[1] - made[0])[:, :, 10:].abs().max() > 1e-3


def test_what_does_not_fit_is_refused(unet):
    with pytest.raises(ValueError, match="windows over 20 frames cannot serve latents of 21"):
        Windows(lay_out(20, 8))(unet, latents(21), TIME, Condition(rows(1)))
    with pytest.raises(ValueError, match="4 embeddings for 3 windows; give one for each"):
        Windows(lay_out(20, 8), rows(4))
    with pytest.raises(ValueError, match="overlap must be"):
        lay_out(20, 8, overlap=1.0)
    for frames, length in ((0, 8), (20, 0), (20, 2.5)):
        with pytest.raises(ValueError, match="must be a whole number"):
            lay_out(frames, length)
