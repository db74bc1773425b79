"""Temporary directories with an owner: what a killed rehearsal left behind is removed by the next one."""

import os
import shutil
import sys
import tempfile
from pathlib import Path

import psutil

_PREFIX = "rehearsal-"
_OWNER = "owner"


def build_scratch_directory(name: str) -> Path:
    """Make a private temporary directory that belongs to this process."""
    directory = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{name}-")).resolve()
    (directory / _OWNER).write_text(_identity(os.getpid()), encoding="utf-8")
    return directory


def remove_orphaned_directories() -> None:
    """Remove the directories of rehearsals that did not end in order, e.g. by kill -9."""
    for directory in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        owner = directory / _OWNER
        if owner.is_file() and os.access(directory, os.W_OK) and not is_running(owner.read_text(encoding="utf-8")):
            shutil.rmtree(directory, ignore_errors=True)


def _identity(pid: int) -> str:
    """Return the id and the start of a process: on Linux in ticks, because psutil's times move with the clock."""
    if sys.platform != "linux":
        return f"{pid} {psutil.Process(pid).create_time()}"
    try:
        status = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError as error:
        raise psutil.NoSuchProcess(pid) from error
    return f"{pid} {status.rpartition(')')[2].split()[19]}"


def own_identity() -> str:
    """Return this process's identity: its id and start time, because ids are used again."""
    return _identity(os.getpid())


def is_running(identity: str) -> bool:
    """Return whether the process of an identity still runs."""
    try:
        pid = int(identity.partition(" ")[0])
        return _identity(pid) == identity and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except (ValueError, psutil.NoSuchProcess):
        return False
