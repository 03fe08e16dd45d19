"""Retakes: music whose noise is turned towards another seed's."""

import numpy as np
import pytest
from torch import Generator

from musicldm.sampling import FLOW_SCHEDULERS, SCHEDULERS, TurnedGenerator, make_scheduler
from musicldm.train.diffusion.objectives import make_scheduler as trained_scheduler

# schedulers hand tensors to NumPy functions
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")

SAMPLERS = [*((name, "noise") for name in SCHEDULERS), *((name, "flow") for name in FLOW_SCHEDULERS)]


@pytest.mark.parametrize(("name", "kind"), SAMPLERS)
def test_the_ends_are_the_music_of_both_seeds(tiny_pipeline, name, kind):
    """Also with samplers that add noise in each step."""
    if kind == "flow":
        from musicldm.config import DiffusionConfig

        tiny_pipeline.scheduler = trained_scheduler(DiffusionConfig(prediction="flow"))
    tiny_pipeline.scheduler = make_scheduler(name, tiny_pipeline.scheduler)

    def made(*generators):
        return tiny_pipeline(
            ["drums", "flute"], 0.16, num_inference_steps=3, eta=1.0, generator=list(generators), guidance_scale=1
        ).audios

    def seeded(seed):
        return Generator().manual_seed(seed)

    def turned(share):
        return made(TurnedGenerator(seeded(1), seeded(2), share), seeded(7))

    first, other = made(seeded(1), seeded(7)), made(seeded(2), seeded(7))
    assert np.array_equal(turned(0), first)
    assert np.array_equal(turned(1), other)
    little, half = turned(0.01), turned(0.5)
    assert np.array_equal(half[1], first[1])  # the other waveform of the batch
    change = [np.abs(each - first)[0].max() for each in (little, half, other)]
    assert 0 < change[0] < change[1]
    assert change[0] < change[2]
