"""The memory of a function's processes: what they hold now, and the most that the first of them ever held."""

import re
from pathlib import Path

import psutil

_PEAK = re.compile(r"^VmHWM:\s+(\d+) kB", re.MULTILINE)


def held_bytes(pid: int, *, with_children: bool = True) -> int:
    """Return what a process and its children hold, 0 when it has ended; pages that they share count once.

    To find children every process of the machine is looked at, which takes longer than a warm invocation.
    """
    try:
        process = psutil.Process(pid)
        children = process.children(recursive=True) if with_children else []
        if not children:
            return process.memory_info().rss
        return sum(_own_share(one) for one in (process, *children))
    except psutil.NoSuchProcess:
        return 0


def peak_bytes(pid: int) -> int:
    """Return the most that a process ever held, by Linux's account; 0 when it has ended, or the system keeps none."""
    try:
        found = _PEAK.search(Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return 0
    return 1024 * int(found[1]) if found else 0


def _own_share(process: psutil.Process) -> int:
    """Return what a process holds, its shared pages divided by those who share them; 0 when it has just ended."""
    try:
        memory = process.memory_full_info()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return 0
    return getattr(memory, "pss", memory.uss)
