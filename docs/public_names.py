"""A hook of mkdocs: ``<!-- public names: PACKAGE -->`` in a page becomes the reference of what PACKAGE makes public.

Public are the functions and classes that the package's ``__init__.py`` defines, imports from its modules, or names in
``submod_attrs`` of lazy_loader. Constants are left out. The source is read, not imported.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PLACE = re.compile(r"^<!-- public names: ([\w.]+) -->$", re.MULTILINE)


def public_names(package: str) -> Iterator[str]:
    """Dotted names of what ``package`` makes public, where it is defined: ``vocoder.mel.MelConfig`` of ``vocoder``."""
    tree = ast.parse((ROOT / package.replace(".", "/") / "__init__.py").read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg == "submod_attrs":
            names = eval(compile(ast.Expression(node.value), package, "eval"), {"__builtins__": {}})  # a dictionary
            yield from (f"{package}.{module}.{name}" for module, attributes in names.items() for name in attributes)
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"{package}."):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield f"{package}.{node.name}"


def directives(package: str) -> str:
    """mkdocstrings' directives for the public names of ``package``."""
    names = [name for name in public_names(package) if not name.rpartition(".")[2].isupper()]
    return "\n\n".join(f"::: {name}" for name in names)


def on_page_markdown(markdown: str, **_) -> str:
    """Called by mkdocs with the text of each page; returns the text to use."""
    return PLACE.sub(lambda place: directives(place[1]), markdown)
