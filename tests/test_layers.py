"""Imports between the folders of the package run downwards in one list, and its leaves import nothing of it."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# From the top: each may import what stands below it. docs and CONTRIBUTING name the same order.
LAYERS = [
    "cli",
    "app",
    "train",
    "evaluate",
    "generate",
    "novelty",
    "pipelines",
    "editing",
    "sampling",
    "models",
    "kernels",
    "data",
    "scores",
    "analysis",
    "config",
    "audio",
]
ALIASES = {"attention", "checkpoints", "schedulers"}  # one-line modules that keep former names importable
LEAVES = ("augment", "vocoder")
FILES = sorted((ROOT / "musicldm").rglob("*.py"))


def layer(parts: tuple[str, ...]) -> str:
    """The folder or module directly below ``musicldm`` that a path or a dotted name belongs to."""
    return parts[1].removesuffix(".py") if len(parts) > 1 else "__init__"


def imported(path: Path) -> Iterator[str]:
    """Dotted names that ``path`` imports anywhere in it, those inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            submodules = (f"{node.module}.{alias.name}" for alias in node.names)
            yield from submodules if node.module == "musicldm" else [node.module]


def is_lower(name: str, other: str) -> bool:
    return LAYERS.index(other) >= LAYERS.index(name)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_downwards(path):
    own = layer(path.relative_to(ROOT).parts)
    if own in ("__init__", "__main__", "_version", *ALIASES):
        return
    assert own in LAYERS, f"{own} has no place in the order of layers"
    for name in imported(path):
        parts = tuple(name.split("."))
        if parts[0] != "musicldm" or layer(parts) in ("__init__", "_version", "MusicLDMPipeline", "__version__"):
            continue
        assert layer(parts) in LAYERS, f"{name} is no public room"
        assert is_lower(own, layer(parts)), f"{own} must not import {name}, which stands above it"


@pytest.mark.parametrize("leaf", LEAVES)
def test_leaves_import_nothing_of_the_package(leaf):
    files = sorted((ROOT / leaf).rglob("*.py"))
    assert files
    others = {"musicldm", *LEAVES} - {leaf}
    assert not [(path.name, name) for path in files for name in imported(path) if name.split(".")[0] in others]


def test_every_folder_says_what_it_holds():
    rooms = [path for path in (ROOT / "musicldm").iterdir() if (path / "__init__.py").is_file()]
    assert len(rooms) > 8
    for room in rooms:
        assert ast.get_docstring(ast.parse((room / "__init__.py").read_text(encoding="utf-8"))), room.name
