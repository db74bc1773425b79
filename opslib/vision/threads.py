"""How many cores there are, and how many threads one torch operation may use."""

import math
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import torch

CPU_LIMITS = (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"))
"""Where a container finds its quota and its period in microseconds: control groups of version 2, and of version 1."""


def usable_cores(groups: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the number of cores that this process may use: `taskset` or a container's limit may leave it only some."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, _allowed_cores(groups) or cores)


def _allowed_cores(groups: Path) -> int:
    """Return the cores that `docker run --cpus` or Kubernetes allow, rounded up; 0 if there is no limit."""
    for files in CPU_LIMITS:
        try:
            quota, period = " ".join((groups / file).read_text() for file in files).split()
            return math.ceil(int(quota) / int(period)) if int(quota) > 0 else 0
        except (OSError, ValueError, ZeroDivisionError):  # another version, "max", or nothing of the kind
            continue
    return 0


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
