"""The examples in docstrings of measures give what they say, and every public measure has one."""

import doctest
import inspect
from importlib import import_module

import pytest

MEASURES = [
    *(f"musicldm.evaluate.{name}" for name in ("adherence", "distances", "diversity", "intervals")),
    *("musicldm.evaluate.quality", "musicldm.evaluate.similarity"),
    *(f"musicldm.analysis.{name}" for name in ("embedders", "key", "onsets", "seams")),
]
OTHERS = ["augment.beats", "augment.captions", "augment.mixup"]
PUBLIC = {name for room in ("musicldm.evaluate", "musicldm.analysis") for name in import_module(room).__all__}
WITHOUT = {"changes", "loop_jump", "seam_quantile"}  # parts of `seam_quantiles` and `loop_quantile`


@pytest.mark.parametrize("name", MEASURES + OTHERS)
def test_examples_hold(name):
    module = import_module(name)
    result = doctest.testmod(module)
    assert result.attempted
    assert not result.failed


@pytest.mark.parametrize("name", MEASURES)
def test_every_public_measure_has_an_example(name):
    module = import_module(name)
    functions = {
        attribute: value
        for attribute, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__ and attribute in PUBLIC - WITHOUT
    }
    assert functions or name.endswith("intervals")
    assert not [attribute for attribute, value in functions.items() if ">>> " not in value.__doc__]
