"""A rehearsal that outlives the command that started it: one per user, its state in a file.

The state lies in OPSLIB_REHEARSAL_HOME, by default in the user's cache directory. A state whose process is gone (kill
-9, a restart of the machine) is noticed and removed.
"""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from opslib.errors import RehearsalError
from opslib.rehearsal.processes.scratch import is_running, own_identity, remove_orphaned_directories

_START_SECONDS = 20.0
_STOP_SECONDS = 15.0


def home() -> Path:
    """Return the directory of the state and the log."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return Path(os.environ.get("OPSLIB_REHEARSAL_HOME", cache / "opslib" / "rehearsal"))


@dataclass(frozen=True)
class State:
    """A detached rehearsal: its process, since when (seconds since 1970), and the variables that lead to it."""

    identity: str
    endpoint_url: str
    started: float
    variables: dict[str, str]

    @property
    def pid(self) -> int:
        """The server's process id."""
        return int(self.identity.partition(" ")[0])


def write_state(endpoint_url: str, variables: dict[str, str]) -> None:
    """Say where the rehearsal of this process is; only the user may read it, for it holds the access key."""
    state = State(own_identity(), endpoint_url, time.time(), variables)
    path = home() / "state.json"
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(asdict(state)), encoding="utf-8")
    fresh.chmod(0o600)
    fresh.replace(path)


def read_state() -> State | None:
    """Return the running rehearsal, or None; a state that is left of a dead one is removed."""
    path = home() / "state.json"
    try:
        state = State(**json.loads(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        return None
    if is_running(state.identity):
        return state
    forget_state()
    remove_orphaned_directories()
    return None


def forget_state() -> None:
    """Remove the state's file."""
    (home() / "state.json").unlink(missing_ok=True)


def ensure_started(region: str, port: int, speed: float) -> State:
    """Return the running rehearsal, started now if there is none.

    Raises:
        RehearsalError: it does not come up; the message holds the end of its log.
    """
    home().mkdir(parents=True, exist_ok=True, mode=0o700)
    with _one_at_a_time():
        return read_state() or _start(region, port, speed)


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    with (home() / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _start(region: str, port: int, speed: float) -> State:
    log = home() / "server.log"
    options = ["--region", region, "--port", str(port), "--speed", str(speed)]
    command = [sys.executable, "-m", "opslib.rehearsal", "serve", *options]
    with log.open("w") as output:
        server = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )  # fmt: skip
    deadline = time.monotonic() + _START_SECONDS
    while server.poll() is None and time.monotonic() < deadline:
        state = read_state()
        if state:
            server.returncode = 0  # it runs on by itself; nobody waits for it
            return state
        time.sleep(0.02)
    server.kill()
    server.wait()
    raise RehearsalError("the rehearsal did not start", hint=f"the end of {log}:\n{log.read_text()[-2000:]}")


def ensure_stopped() -> bool:
    """End the running rehearsal with all that it started; return whether there was one."""
    state = read_state()
    if state is None:
        return False
    os.kill(state.pid, signal.SIGTERM)
    deadline = time.monotonic() + _STOP_SECONDS
    while is_running(state.identity):
        if time.monotonic() > deadline:
            os.kill(state.pid, signal.SIGKILL)
        time.sleep(0.02)
    forget_state()
    remove_orphaned_directories()
    return True
