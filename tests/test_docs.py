"""What the documents tell a reader to type is what the program takes."""

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from musicldm.audio import write_audio
from musicldm.cli import parse
from musicldm.config import STAGES, find_config, load_config
from musicldm.scores import Sketch

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(
    path
    for pattern in (
        *("*.md", "docs/*.md", "docs/reference/*.md", "recipes/*/*.md", "benchmarks/*.md"),
        "musicldm/pretrained/*/README.md",
    )
    for path in ROOT.glob(pattern)
)
PROGRAMS = ("pip", "apt", "apt-get", "git", "export", "accelerate", "ray", "source", "curl")  # of others
SERVER = "http://127.0.0.1:7860"  # of the examples: `server` runs one for them
TAKE = 0.3 * np.sin(np.arange(8 * 16_000) / 9)  # a recording, at 16 kHz
FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
MADE = re.compile(r'"(RUN/final|CONCEPT/final|CONTEXT/final|INDEX)"')  # what a reader has made before, as `made` does


def blocks(language: str) -> list:
    return [
        pytest.param(
            text,
            id=f"{path.relative_to(ROOT)}-{i}",
            marks=[pytest.mark.slow] if MADE.search(text) or SERVER in text else [],
        )
        for path in DOCUMENTS
        for i, (kind, text) in enumerate(FENCE.findall(path.read_text(encoding="utf-8")))
        if kind == language
    ]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder with an adapter, a concept and an index, each of eight short recordings and the bundled model.

    And a model that takes contexts, of which it has learned nothing.
    """
    from musicldm import MusicLDMPipeline
    from musicldm.models import ClapEmbedder
    from musicldm.models.context import add_context
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
    pipeline = MusicLDMPipeline.from_pretrained("mini")
    add_context(pipeline.unet)
    pipeline.save_pretrained(folder / "CONTEXT" / "final")
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory, made) -> str:
    """The address of a server with a model that takes contexts."""
    folder = tmp_path_factory.mktemp("server")
    command = [sys.executable, "-m", "musicldm", "app", "--port", "0", "--no-browser", "--out", folder / "music"]
    command += ["--model", made / "CONTEXT" / "final"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([*map(str, command)], stderr=log, cwd=folder)
    try:
        deadline = time.monotonic() + 120
        while not (found := re.search(r"http://[\d.:]+", (folder / "log").read_text())):
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline, "the server does not say its address"
            time.sleep(0.2)
        yield found[0]
    finally:
        process.terminate()
        process.wait()


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
    block = re.sub(r"(audio_length_in_s|seconds)=[\d.]+", r"\1=2.56", block)
    block = re.sub(r"num_inference_steps=\d+", "num_inference_steps=1", block)
    if SERVER in block:
        block = block.replace(SERVER, request.getfixturevalue("server"))
        write_audio(tmp_path / "hummed.wav", TAKE, 16_000)
    names = {"waveform": np.sin(np.arange(40_000) / 5).astype(np.float32), "sample_rate": 8_000}
    exec(compile(block, "example", "exec"), names)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
@pytest.mark.parametrize("block", [block for block in blocks("sh") if SERVER in block.values[0]])
def test_requests_with_curl_are_answered(block, server, tmp_path):
    from musicldm.app import Client

    for name in ("take.wav", "guitar.wav"):
        write_audio(tmp_path / name, TAKE, 16_000)
    in_two_tracks = Sketch.from_chords("C F", bpm=160) + Sketch.click(160, bars=2)
    in_two_tracks.to_midi(tmp_path / "theme.mid")
    with Client(server) as client:
        job = client.wait(client.generate("calm piano", chords="C F", bpm=160)["id"])
    script = re.sub(r"\bID\b", job["id"], block.replace(SERVER, server)).replace(
        "curl -s", "curl -s --fail-with-body -w '\n'"
    )
    done = subprocess.run(["bash", "-ec", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    answers = [json.loads(line) for line in done.stdout.splitlines() if line]
    asked = [command[0] == "curl" and "-o" not in command for command in commands(block)]
    assert len(answers) == sum(asked)
    assert all(answer["id"] for answer in answers)
    assert "failed" not in [answer["status"] for answer in answers]
    for name, head in (("piano.flac", b"fLaC"), ("played.mid", b"MThd")):
        assert (name in block) == (tmp_path / name).exists()
        assert name not in block or (tmp_path / name).read_bytes()[:4] == head


def targets(path: Path) -> list[str]:
    """What a document links to or shows, of its own folder's kin: addresses elsewhere are left out."""
    text = FENCE.sub("", path.read_text(encoding="utf-8"))
    found = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'\bsrc="([^"]+)"', text)
    return [target for target in found if not target.startswith(("http://", "https://"))]


def anchors(path: Path) -> set[str]:
    """The anchors of a document's headings, as mkdocs and GitHub name them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", path.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path):
    for target in targets(path):
        name, _, anchor = target.partition("#")
        place = path.parent / name if name else path
        assert place.exists(), f"{path.relative_to(ROOT)} links to {target}"
        assert not anchor or anchor in anchors(place), f"{path.relative_to(ROOT)} links to {target}"


def test_guides_name_files_that_exist():
    """Paths in code such as `recipes/mini/NOTES.md`."""
    named = re.compile(r"`((?:docs|recipes|benchmarks|configs|notebooks|musicldm|vocoder|augment)/[\w./-]*)`")
    found = [(path, name) for path in DOCUMENTS for name in named.findall(path.read_text(encoding="utf-8"))]
    assert len(found) > 20
    assert not [(str(path.relative_to(ROOT)), name) for path, name in found if not (ROOT / name).exists()]


@pytest.mark.slow
def test_the_documentation_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    quiet = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=quiet, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    reference = (tmp_path / "reference" / "evaluate.html").read_text(encoding="utf-8")
    assert 'id="musicldm.evaluate.distances.frechet_distance"' in reference
    assert "public names" not in reference


def test_every_document_was_found():
    assert {"README.md", "quickstart.md", "mini.md", "NOTES.md"} <= {path.name for path in DOCUMENTS}
    texts = [path.read_text(encoding="utf-8") for path in DOCUMENTS]
    assert {kind for text in texts for kind, _ in FENCE.findall(text)} == {"sh", "python", "text", "bibtex"}
    assert not [
        text for text in texts if re.search(r"\n\n    \S", FENCE.sub("", text))
    ]  # nor is indented in place of a fence
    assert not [
        block.id for block in blocks("text") if re.search(r"^(\S*import|curl|musicldm) ", block.values[0], re.M)
    ]
    assert len(blocks("sh")) >= 4
    assert sum(bool(MADE.search(block.values[0])) for block in blocks("python")) == 4
