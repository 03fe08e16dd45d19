"""`optimize` changes speed, not music; what it decides by."""

import logging

import pytest
import torch

from musicldm.pipelines import optimize as module
from musicldm.pipelines.optimize import optimize, usable_cores

OPTIONS = {"num_inference_steps": 4, "seed": 3, "output_type": "pt"}


@pytest.fixture
def pipeline(tiny_folder):
    """A pipeline that may be changed."""
    from musicldm.pipelines.text_to_music import MusicLDMPipeline

    pipeline = MusicLDMPipeline.from_pretrained(tiny_folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_without_bfloat16_only_rounding_changes(pipeline, caplog):
    before = pipeline("solo flute", **OPTIONS).audios
    with caplog.at_level(logging.INFO):
        assert pipeline.optimize(bfloat16=False) is pipeline
    assert "VAE channels last" in caplog.text
    torch.testing.assert_close(pipeline("solo flute", **OPTIONS).audios, before, atol=1e-5, rtol=1e-4)


def test_bfloat16_stays_near(pipeline):
    before = pipeline("solo flute", **OPTIONS).audios
    pipeline.optimize(bfloat16=True).optimize(bfloat16=True)
    assert pipeline.unet.dtype == torch.bfloat16
    assert pipeline.text_encoder.dtype == torch.float32
    after = pipeline("solo flute", **OPTIONS).audios
    assert after.dtype == torch.float32
    assert 0 < (after - before).norm() < 0.1 * before.norm()


@pytest.mark.parametrize("native", [True, False])
def test_the_processor_decides_on_bfloat16(pipeline, monkeypatch, native):
    capabilities = {"avx2": True, "avx512_bf16": native}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert pipeline.optimize().unet.dtype == (torch.bfloat16 if native else torch.float32)


def test_bfloat16_where_it_makes_no_sense_is_refused(pipeline):
    torch.nn.Module.to(pipeline.unet, torch.float64)
    with pytest.raises(ValueError, match=r"float32 UNet on a CPU, this one is torch.float64 on cpu"):
        pipeline.optimize(bfloat16=True)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8),
        ({"cpu.max": "max 100000"}, 8),
        ({"cpu.max": "150000 100000"}, 2),
        ({"cpu.max": "5000 100000"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
    ],
)
def test_a_containers_share_counts(tmp_path, monkeypatch, files, expected):
    monkeypatch.setattr(module.os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert usable_cores(tmp_path) == expected


def test_there_are_never_more_threads_than_cores(pipeline, monkeypatch):
    threads = torch.get_num_threads()
    monkeypatch.setattr(module, "usable_cores", lambda: 1)
    try:
        torch.set_num_threads(2)
        optimize(pipeline, bfloat16=False)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(("option", "expected"), [([], None), (["--fast"], None), (["--no-fast"], False)])
def test_the_command_line_is_fast_unless_told_otherwise(tiny_folder, tmp_path, monkeypatch, option, expected):
    from musicldm.cli import main

    seen = []
    monkeypatch.setattr("musicldm.pipelines.base.optimize", lambda pipeline, bfloat16: seen.append(bfloat16))
    arguments = ["generate", "a", "--model", str(tiny_folder), "--steps", "1", "--out", str(tmp_path), "--no-figure"]
    assert not main([*arguments, *option])
    assert seen == [expected]
