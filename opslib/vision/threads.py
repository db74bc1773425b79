"""How many cores there are, and how many threads one torch operation may use."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch


def usable_cores() -> int:
    """Return the number of cores that this process may run on: a container or `taskset` may leave it only some."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let every torch operation of this thread run on so many threads, and restore the setting afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def single_threaded_torch() -> AbstractContextManager[None]:
    """Let every torch operation run on the thread that calls it, and restore the setting afterwards.

    Small operations lose nothing by it on an idle machine. On a busy one they win ten times: an operation on two
    threads waits, spinning, for the one that the system has put aside.
    """
    return torch_threads(1)
