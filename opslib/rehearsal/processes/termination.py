"""SIGTERM to the program in a container, as StopTrainingJob sends it.

In a container the signal goes to process 1, which ignores it unless it handles it; the shells and driver scripts that
start a training script do not. So that a script can save its work, as AWS's documentation promises, the signal is given
here to whoever handles it or is no mere starter: https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_StopTrainingJob.html
"""

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil

_SHELLS = frozenset({"sh", "bash", "dash", "zsh"})
_DRIVERS = "/sm_drivers/"


def terminate_program(pid: int) -> int:
    """Send SIGTERM to the training program under the process `pid`; return how many processes got it."""
    try:
        targets = list(_targets(psutil.Process(pid)))
    except psutil.NoSuchProcess:
        return 0
    for target in targets:
        try:
            target.terminate()
        except psutil.NoSuchProcess:
            continue
    return len(targets)


def _targets(process: psutil.Process) -> Iterator[psutil.Process]:
    """Yield the topmost processes that are to get the signal: their own children are their business."""
    if _handles_sigterm(process.pid) or not _is_starter(process):
        yield process
        return
    for child in process.children():
        try:
            yield from _targets(child)
        except psutil.NoSuchProcess:
            continue


def _is_starter(process: psutil.Process) -> bool:
    command = process.cmdline()
    return Path(process.name()).name in _SHELLS or any(_DRIVERS in part for part in command[:3])


def _handles_sigterm(pid: int) -> bool:
    """Return whether a handler is installed; only Linux tells."""
    if sys.platform != "linux":
        return False
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:  # it has just ended
        return False
    caught = next((line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:")), "0")
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)
