"""madmom 0.16.1, its newest release, on a current Python, numpy and setuptools.

That release imports ``collections.MutableSequence`` (moved in Python 3.3, gone in 3.10) and ``pkg_resources`` (gone in
setuptools 81), uses ``np.float`` and ``np.int`` (gone in numpy 1.24), and makes an array of rows of unequal length
(refused by numpy 1.24). Each is supplied only where it is missing, so a madmom without these faults passes through.
"""

from __future__ import annotations

import collections
import collections.abc
import importlib.metadata
import importlib.util
import sys
import threading
import types
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager

import numpy as np

NAMES = (
    (collections, "MutableSequence", collections.abc.MutableSequence),
    (np, "float", float),
    (np, "int", int),
)
_lock = threading.RLock()


@contextmanager
def madmom_compatibility() -> Iterator[None]:
    """Inside, madmom can be imported and run; afterwards `collections`, `numpy` and `sys.modules` are as before.

    Nests. One thread at a time: the names are global, and madmom's networks keep their state while they run.
    """
    with _lock, ExitStack() as undo:
        for owner, name, value in NAMES:
            if name not in vars(owner):
                setattr(owner, name, value)
                undo.callback(delattr, owner, name)
        if "pkg_resources" not in sys.modules:
            if importlib.util.find_spec("pkg_resources") is None:
                stand_in = types.ModuleType("pkg_resources")
                # madmom asks for nothing but its version
                setattr(stand_in, "get_distribution", importlib.metadata.distribution)  # noqa: B010
                sys.modules["pkg_resources"] = stand_in
                undo.callback(sys.modules.pop, "pkg_resources")
            else:
                undo.enter_context(warnings.catch_warnings())
                warnings.filterwarnings("ignore", message="pkg_resources is deprecated")
        yield


def map_to_rows(function: Callable[[tuple], tuple], tasks: Iterable[tuple]) -> list[np.ndarray]:
    """As ``map``, but each pair that ``function`` returns becomes an object array of two.

    As the attribute ``map`` of a ``DBNDownBeatTrackingProcessor`` it gives the results, pairs of a path and its log
    probability, a form that numpy stacks whatever the lengths of the paths.
    """
    rows = []
    for task in tasks:
        row = np.empty(2, dtype=object)
        row[:] = function(task)
        rows.append(row)
    return rows
