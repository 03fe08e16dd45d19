"""Checkpoint files: every format, what they hold beside weights, and what must be refused."""

import json
import os
import pickle
import subprocess
import sys
import types
import zipfile
from collections import defaultdict

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file

from musicldm.models.original import load_original
from musicldm.models.original.pickles import read_file
from tests.helpers.originals import CLAP_CONFIG, SIZES, VOCODER_CONFIG, assert_equal_weights, fresh, full_checkpoint


@pytest.fixture(scope="module")
def small():
    return fresh(SIZES["two levels"])


@pytest.fixture(scope="module")
def state(small):
    return full_checkpoint(small)


@pytest.fixture
def saved(state, tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({key: value.contiguous() for key, value in state.items()}, path)
    return path


@pytest.mark.parametrize("zip_format", [True, False])
def test_torch_files(state, small, tmp_path, zip_format):
    path = tmp_path / "model.ckpt"
    torch.save({"state_dict": state, "epoch": 3}, path, _use_new_zipfile_serialization=zip_format)
    parts = load_original(path, SIZES["two levels"], VOCODER_CONFIG, CLAP_CONFIG, use_ema=False)
    for name in ("unet", "vae", "vocoder", "clap"):
        assert_equal_weights(parts[name], small[name])
    path.unlink()
    assert_equal_weights(parts["unet"], small["unet"])  # does not hang on the file


def test_configs_as_files(saved, small, tmp_path):
    OmegaConf.save(SIZES["two levels"], tmp_path / "config.yaml")
    (tmp_path / "vocoder.json").write_text(json.dumps(VOCODER_CONFIG))
    OmegaConf.save(CLAP_CONFIG, tmp_path / "clap.yaml")
    parts = load_original(
        saved, tmp_path / "config.yaml", str(tmp_path / "vocoder.json"), OmegaConf.load(tmp_path / "clap.yaml")
    )
    assert_equal_weights(parts["clap"], small["clap"])


@pytest.fixture
def lightning(monkeypatch):
    """Classes under the names by which Lightning pickles its options and callbacks."""

    def publish(name, module, *bases):
        parts = module.split(".")
        for n in range(1, len(parts) + 1):
            monkeypatch.setitem(sys.modules, ".".join(parts[:n]), types.ModuleType(".".join(parts[:n])))
        cls = type(name, bases, {"__module__": module})
        setattr(sys.modules[module], name, cls)
        return cls

    attribute_dict = publish("AttributeDict", "pytorch_lightning.utilities.parsing", dict)
    return attribute_dict, publish("ModelCheckpoint", "pytorch_lightning.callbacks.model_checkpoint")


def rename_in_pickle(path, old, new):
    """Edit module names in a torch file; both forms of them end at a newline."""
    if not zipfile.is_zipfile(path):
        content = path.read_bytes()
        assert old in content
        path.write_bytes(content.replace(old, new))
        return
    with zipfile.ZipFile(path) as source:
        content = {info.filename: source.read(info) for info in source.infolist()}
    name = next(name for name in content if name.endswith("data.pkl"))
    assert old in content[name]
    content[name] = content[name].replace(old, new)
    with zipfile.ZipFile(path, "w") as target:
        for name, data in content.items():
            target.writestr(name, data)


@pytest.mark.parametrize("zip_format", [True, False])
@pytest.mark.parametrize("module", [b"numpy.core.multiarray", b"numpy._core.multiarray"])
def test_files_with_metrics_and_options(state, small, tmp_path, lightning, zip_format, module):
    attribute_dict, model_checkpoint = lightning
    scalars = [np.float64(0.25), np.float32(1.5), np.int64(3), np.bool_(True)]
    checkpoint = {
        "state_dict": state,
        "epoch": np.int64(3),
        "best": dict(enumerate(scalars)),
        "curve": np.linspace(0, 1, 5),
        "callbacks": {model_checkpoint: {"best_model_score": torch.tensor(0.1), "best_model_path": "a.ckpt"}},
        "hyper_parameters": attribute_dict(
            width=3, net=OmegaConf.create({"a": [1, 2.5, "x", None, True], "b": {"c": 1}})
        ),
        "counts": defaultdict(list, {"a": [1]}),
        "optimizer_states": [{"state": {0: {"step": 1}}, "param_groups": [{"lr": np.float64(1e-4)}]}],
    }
    path = tmp_path / "model.ckpt"
    torch.save(checkpoint, path, _use_new_zipfile_serialization=zip_format)
    here = np.float64(0).__reduce__()[0].__module__.encode()
    rename_in_pickle(path, b"c" + here + b"\n", b"c" + module + b"\n")
    parts = load_original(path, SIZES["two levels"], VOCODER_CONFIG, CLAP_CONFIG, use_ema=False)
    assert_equal_weights(parts["unet"], small["unet"])


class Attack:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("zip_format", [True, False])
@pytest.mark.parametrize(
    ("function", "named"), [(os.system, "posix.system"), (eval, "eval"), (subprocess.call, "call")]
)
def test_code_in_a_pickle_is_refused(state, tmp_path, zip_format, function, named):
    mark = tmp_path / "mark"
    command = f"open({str(mark)!r}, 'w')" if function is eval else f"touch {mark}"
    path = tmp_path / "model.ckpt"
    checkpoint = {"epoch": Attack(function, command), "state_dict": state}
    torch.save(checkpoint, path, _use_new_zipfile_serialization=zip_format)
    with pytest.raises(ValueError, match=f"refused.*{named}"):
        load_original(path, SIZES["two levels"])
    assert not mark.exists()


def test_reading_leaves_no_trace_in_torch(saved, tmp_path):
    path = tmp_path / "a.pt"
    torch.save({"a": torch.zeros(2)}, path)
    with torch.serialization.safe_globals([Attack]):
        before = set(torch.serialization.get_safe_globals())
        read_file(path)
        assert set(torch.serialization.get_safe_globals()) == before


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no\.ckpt"):
        load_original(tmp_path / "no.ckpt", None)
    with pytest.raises(IsADirectoryError):
        load_original(tmp_path, None)
    with pytest.raises(FileNotFoundError, match=r"no\.yaml"):
        load_original({"conv_pre.bias": torch.zeros(3)}, tmp_path / "no.yaml")


@pytest.mark.parametrize("suffix", ["zip.ckpt", "legacy.ckpt", "safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.99])
def test_truncated_file(state, saved, tmp_path, suffix, share):
    path = tmp_path / f"model.{suffix}"
    if suffix != "safetensors":
        torch.save({"state_dict": state}, path, _use_new_zipfile_serialization=suffix == "zip.ckpt")
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match="truncated or no checkpoint") as error:
        load_original(path, SIZES["two levels"])
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    "content", [b"RIFF\x00\x00\x00\x00WAVEfmt ", b"hello\n", bytes(range(256)), pickle.dumps([1, 2])]
)
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_file_of_another_kind(tmp_path, content, suffix):
    path = tmp_path / f"file.{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="truncated or no checkpoint"):
        load_original(path, None)


@pytest.mark.parametrize(
    "content", [[1, 2], torch.zeros(3), {}, {"epoch": 3}, {"state_dict": {"a": 1}}, {3: torch.zeros(1)}]
)
def test_torch_file_without_weights(tmp_path, content):
    path = tmp_path / "file.pt"
    torch.save(content, path)
    with pytest.raises(ValueError, match="no checkpoint"):
        load_original(path, None)
