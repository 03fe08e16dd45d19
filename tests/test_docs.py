"""What the documents tell a reader to type is what the program takes."""

import importlib.util
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from musicldm.audio import write_audio
from musicldm.cli import parse
from musicldm.config import STAGES, find_config, load_config

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(
    path
    for pattern in ("*.md", "docs/*.md", "recipes/*/*.md", "musicldm/pretrained/*/README.md")
    for path in ROOT.glob(pattern)
    if "```" in path.read_text(encoding="utf-8")
)
PROGRAMS = ("pip", "apt", "apt-get", "git", "export", "accelerate", "ray")  # of others
FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
MADE = re.compile(r'"(RUN/final|CONCEPT/final|INDEX)"')  # what a reader has made before: `made` makes it here


def blocks(language: str) -> list:
    return [
        pytest.param(text, id=f"{path.relative_to(ROOT)}-{i}", marks=[pytest.mark.slow] if MADE.search(text) else [])
        for path in DOCUMENTS
        for i, (kind, text) in enumerate(FENCE.findall(path.read_text(encoding="utf-8")))
        if kind == language
    ]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder with an adapter, a concept and an index, each of eight short recordings and the bundled model."""
    from musicldm.models import ClapEmbedder
    from musicldm.models.loading import bundled_models
    from musicldm.novelty import build_index
    from musicldm.train import run

    folder = tmp_path_factory.mktemp("made")
    (folder / "data").mkdir()
    rng, rate = np.random.default_rng(0), 16_000
    time_s = np.arange(round(2.56 * rate)) / rate
    for i in range(8):
        notes = rng.choice([220.0, 247.0, 294.0, 330.0, 392.0], size=8)[(time_s / 0.32).astype(int)]
        write_audio(folder / "data" / f"{i}.wav", 0.3 * np.sin(2 * np.pi * notes * time_s), rate)
    rows = [f'{{"file_name": "{i}.wav", "text": "a plucked string"}}\n' for i in range(8)]
    (folder / "data" / "metadata.jsonl").write_text("".join(rows))
    short = ["steps=2", "batch_size=2", "warmup_steps=0"]
    run(
        "diffusion",
        "lora",
        folder / "data",
        folder / "RUN",
        overrides=[*short, "validation_batches=1", "validation_prompts=[]"],
    )
    run("concept", "mini", folder / "data", folder / "CONCEPT", overrides=["name=<mine>", *short])
    build_index(folder / "data", folder / "INDEX", ClapEmbedder.from_model(bundled_models()["mini"]))
    return folder


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
            assert program in PROGRAMS, f"nothing checks {program}"


@pytest.mark.parametrize("block", blocks("python"))
def test_python_examples_run(block, tmp_path, monkeypatch, request):
    """Shorter and coarser than they stand there, on the bundled model; whatever they leave open is a recording."""
    monkeypatch.chdir(request.getfixturevalue("made") if MADE.search(block) else tmp_path)
    block = re.sub(r"audio_length_in_s=[\d.]+", "audio_length_in_s=2.56", block)
    block = re.sub(r"num_inference_steps=\d+", "num_inference_steps=1", block)
    names = {"waveform": np.sin(np.arange(40_000) / 5).astype(np.float32), "sample_rate": 8_000}
    exec(compile(block, "example", "exec"), names)


def test_every_document_was_found():
    assert {"README.md", "mini.md"} <= {path.name for path in DOCUMENTS}
    texts = [path.read_text(encoding="utf-8") for path in DOCUMENTS]
    assert {kind for text in texts for kind, _ in FENCE.findall(text)} == {"sh", "python", "text"}
    assert not [
        text for text in texts if re.search(r"\n\n    \S", FENCE.sub("", text))
    ]  # nor is indented in place of a fence
    assert len(blocks("sh")) >= 4
    assert sum(bool(MADE.search(block.values[0])) for block in blocks("python")) == 3
