"""The cores of this machine, shared out to the hosts of a job."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


def share_of_cores(position: int, count: int) -> list[int]:
    """Return the cores of host `position` of `count`: its own where there are enough for all, else every core."""
    cores = _available()
    if len(cores) < count:
        return cores
    return cores[position * len(cores) // count : (position + 1) * len(cores) // count]


def _available() -> list[int]:
    if sys.platform == "linux":
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


@contextmanager
def on_cores(cores: list[int]) -> Iterator[None]:
    """Let the processes that this thread starts meanwhile run on these cores only (on Linux)."""
    if sys.platform != "linux":
        yield
        return
    before = os.sched_getaffinity(0)  # of this thread; a new process takes it over
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
