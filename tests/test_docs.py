"""What the documents tell a reader to type is what the program takes."""

import importlib.util
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from musicldm.cli import parse
from musicldm.config import STAGES, find_config, load_config

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(
    path
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("musicldm/pretrained/*/README.md")]
    if "```" in path.read_text(encoding="utf-8")
)
FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(language: str) -> list:
    return [
        pytest.param(text, id=f"{path.relative_to(ROOT)}-{i}")
        for path in DOCUMENTS
        for i, (kind, text) in enumerate(FENCE.findall(path.read_text(encoding="utf-8")))
        if kind == language
    ]


def commands(block: str) -> list[list[str]]:
    lines = block.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


@pytest.mark.parametrize("block", blocks("sh"))
def test_shell_commands_exist(block, monkeypatch):
    monkeypatch.chdir(ROOT)
    for program, *words in commands(block):
        if program == "musicldm":
            if {"--help", "--version"} & set(words):
                continue
            args = parse(words)
            if words[0] == "train":
                config = find_config(args.config, args.stage)
                assert config.is_file()
                settings = [word for word in words if "=" in word and not word.startswith(("data=", "-"))]
                load_config(STAGES[args.stage], config, settings)
        elif program == "make":
            makefile = (ROOT / "Makefile").read_text()
            assert all(re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE) for target in words)
        elif program == "python" and words[0] == "-m":
            assert importlib.util.find_spec(words[1]), words[1]
        elif program in ("bash", "python", "sh"):
            assert (ROOT / words[0]).exists(), words[0]
        else:
            assert program in ("pip", "apt", "git", "export", "accelerate", "ray"), f"nothing checks {program}"


@pytest.mark.parametrize("block", blocks("python"))
def test_python_examples_run(block, tmp_path, monkeypatch):
    """Shorter and coarser than they stand there, on the bundled model; whatever they leave open is a recording."""
    monkeypatch.chdir(tmp_path)
    block = re.sub(r"audio_length_in_s=[\d.]+", "audio_length_in_s=1.0", block)
    block = re.sub(r"num_inference_steps=\d+", "num_inference_steps=1", block)
    names = {"waveform": np.sin(np.arange(40_000) / 5).astype(np.float32), "sample_rate": 8_000}
    exec(compile(block, "example", "exec"), names)


def test_every_document_was_found():
    assert {"README.md", "mini.md"} <= {path.name for path in DOCUMENTS}
    assert len(blocks("sh")) >= 4
    assert len(blocks("python")) >= 2
