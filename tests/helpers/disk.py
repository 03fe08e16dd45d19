"""A disk that fills up."""

import resource
from contextlib import contextmanager


@contextmanager
def full_disk(size: int):
    """No file of this process may grow beyond ``size`` bytes, so that writing fails half-way.

    As short as can be: pytest's own output may go to a file that is longer already.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
