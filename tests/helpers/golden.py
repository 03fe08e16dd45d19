"""Reference data: weights, inputs and outputs of the original implementation at tiny sizes.

``MUSICLDM_SHARED`` names a folder that holds it under ``golden/``. Where the variable is not set, ``tests/golden_data``
has a part of it; tests that need the rest are skipped. Set to a folder without the data is a failure.
"""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

ROOT = Path(__file__).parents[2]
COPIES = ROOT / "tests" / "golden_data"


def shared_golden() -> Path | None:
    """The folder of all reference data, or None if the environment names none."""
    shared = os.environ.get("MUSICLDM_SHARED")
    if not shared:
        return None
    folder = ROOT / shared / "golden"
    if not (folder / "README.md").is_file():
        pytest.fail(f"MUSICLDM_SHARED is {shared}, but {folder}/README.md does not exist")
    return folder


def golden(name: str) -> Path:
    """The reference file ``name``; skips the test where it is not at hand."""
    folder = shared_golden()
    if folder is None and not (COPIES / name).is_file():
        pytest.skip(f"{name} needs the reference data: set MUSICLDM_SHARED")
    path = (folder or COPIES) / name
    assert path.is_file(), f"the reference data lacks {name}"
    return path


def tensors(name: str, *needed: str) -> dict[str, Tensor]:
    """A reference file's tensors: floats in at least float32, copied, as unaligned ones take other CPU kernels.

    Skips the test where only a copy is at hand that lacks one of the ``needed`` ones.
    """
    stored = load_file(golden(name))
    if lacking := [key for key in needed if key not in stored]:
        assert shared_golden() is None, f"{name} lacks {lacking}"
        pytest.skip(f"{lacking[0]} of {name} needs the reference data: set MUSICLDM_SHARED")
    return {
        key: value.float() if value.is_floating_point() and value.itemsize < 4 else value.clone()
        for key, value in stored.items()
    }


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """|actual - expected| / |expected| over whole tensors of one shape."""
    assert actual.shape == expected.shape, f"{tuple(actual.shape)} instead of {tuple(expected.shape)}"
    actual, expected = actual.detach().double(), expected.double()
    return float(torch.linalg.vector_norm(actual - expected) / torch.linalg.vector_norm(expected))


def recording(name: str) -> Path:
    """A real recording; skips the test where there are none at hand."""
    if (folder := shared_golden()) is None:
        pytest.skip("needs recordings: set MUSICLDM_SHARED")
    return folder.parent / "audio" / name
