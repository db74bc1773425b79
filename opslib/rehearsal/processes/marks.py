"""A variable in the environment of every process that the rehearsal starts, inherited by whatever these start.

The keeper between (`kept_process.py`) kills a command's descendants. When somebody kills the keeper, the mark tells
which of this machine's processes were its business.
"""

import time

import psutil

MARK = "REHEARSAL_PROCESS"
_PATIENCE_SECONDS = 10.0


def kill_marked_processes(mark: str) -> None:
    """Kill every process with this mark, and wait until none is left."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while time.monotonic() < deadline and (living := _marked(mark)):
        for process in living:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(living, timeout=1.0)


def _marked(mark: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.Error, OSError):  # another user's, or it has just ended
            continue
    return found
