"""Every benchmark and every step of a recipe can be started with what is installed for the tests."""

from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for folder in ("benchmarks", "recipes")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if path.name != "__init__.py"
]
assert {"benchmarks.command", "recipes.mini.measure"} <= set(MODULES)


@pytest.mark.parametrize("name", MODULES)
def test_it_is_imported_and_says_what_it_is_for(name):
    assert import_module(name).__doc__
