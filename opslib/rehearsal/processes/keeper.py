"""Start processes that cannot outlive the rehearsal.

    process = start_process(["python3", "train.py"], env={...}, cwd=directory, on_line=lines.append)
    process.wait()                      # the exit code; 128 + n after signal n

When the program that called `start_process` ends, even by kill -9, the process and all of its descendants are killed,
also those that made a session of their own; likewise when the process itself ends, as in a container. Each has a small
program between (`kept_process.py`), which costs about 30 ms and 10 MB.
"""

import os
import secrets
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from opslib.errors import RehearsalError
from opslib.rehearsal.processes.marks import MARK, kill_marked_processes

MAX_LINE_BYTES = 256 * 1024
"""Longest piece of output handed on at once; the size limit of a CloudWatch Logs event."""

_KEPT_PROCESS = str(Path(__file__).with_name("kept_process.py"))
_living: set["Process"] = set()


class Process:
    """A running process: `pid` is the command's own id, not that of the program that keeps it."""

    def __init__(self, keeper: subprocess.Popen, control: socket.socket, pid: int, mark: str) -> None:
        self.pid = pid
        self._mark = mark
        self._keeper = keeper
        self._control = control
        self._reader: threading.Thread | None = None
        _living.add(self)

    def poll(self) -> int | None:
        """Return the exit code, or None while any of it runs."""
        code = self._keeper.poll()
        if code is None:
            return None
        self._kill_unkept()
        self._control.close()
        _living.discard(self)
        return 128 - code if code < 0 else code

    def wait(self, timeout_seconds: float | None = None) -> int:
        """Wait until all of it has ended and its last line was handed on; return the exit code.

        Raises:
            TimeoutError: it still runs after `timeout_seconds`.
        """
        try:
            self._keeper.wait(timeout_seconds)
        except subprocess.TimeoutExpired as error:
            raise TimeoutError(f"process {self.pid} still runs after {timeout_seconds} s") from error
        self._kill_unkept()
        if self._reader and self._reader is not threading.current_thread():
            self._reader.join()
        return self.poll() or 0

    def terminate(self, grace_seconds: float) -> None:
        """Ask the command to end (SIGTERM); kill all of it when it has not after `grace_seconds`. Returns at once."""
        self._say(f"stop {grace_seconds}\n")

    def send_signal(self, number: int) -> None:
        """Send a signal to the command alone. Returns at once."""
        self._say(f"signal {number}\n")

    def kill(self) -> None:
        """Kill the command and all of its descendants. Returns at once; `wait` waits."""
        self._say("kill\n")

    def _kill_unkept(self) -> None:
        """Kill what is left of a command whose keeper was killed itself: it is known by a variable of its own."""
        if (self._keeper.returncode or 0) < 0 and self in _living:
            kill_marked_processes(self._mark)

    def _say(self, words: str) -> None:
        with suppress(OSError):  # it has ended already
            self._control.sendall(words.encode())

    def _read_output(self, on_line: Callable[[str], None]) -> None:
        stream = self._keeper.stdout
        with stream:
            try:
                while line := stream.readline(MAX_LINE_BYTES):
                    on_line(line.decode("utf-8", "replace").rstrip("\n"))
            finally:  # whatever became of a line, the command must not wait for a reader
                while stream.read(MAX_LINE_BYTES):
                    continue

    def _hand_on_output(self, on_line: Callable[[str], None]) -> None:
        self._reader = threading.Thread(
            target=self._read_output, args=(on_line,), name=f"output-{self.pid}", daemon=True
        )
        self._reader.start()


def start_process(
    argv: Sequence[str | Path],
    *,
    env: Mapping[str, str],
    cwd: Path | str,
    on_line: Callable[[str], None] | None = None,
    pass_fds: Sequence[int] = (),
) -> Process:
    """Start a command with exactly this environment and a mark, looked up on its PATH, in a session of its own.

    `on_line` receives each line of stdout and stderr, without its newline, from a thread of its own; without it the
    output is dropped. `pass_fds` are file descriptors that the command inherits.

    Raises:
        RehearsalError: the command cannot be run; the message holds the system's reason.
    """
    _refuse_null_characters([*map(str, argv), *env.values()])
    ours, theirs = socket.socketpair()
    mark = secrets.token_hex(16)
    with theirs:
        keeper = subprocess.Popen(
            _command(theirs, "session", argv),
            env={**env, MARK: mark},
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if on_line else subprocess.DEVNULL,
            stderr=subprocess.STDOUT,
            pass_fds=(theirs.fileno(), *pass_fds),
            start_new_session=True,
        )
    process = Process(keeper, ours, _receive_pid(keeper, ours), mark)
    if on_line:
        process._hand_on_output(on_line)
    return process


def start_foreground_process(argv: Sequence[str]) -> Process:
    """Start a command with this process's environment, terminal, input and output; kept like every other.

    Raises:
        RehearsalError: the command cannot be run; the message holds the system's reason.
    """
    ours, theirs = socket.socketpair()
    mark = secrets.token_hex(16)
    with theirs:
        keeper = subprocess.Popen(
            _command(theirs, "foreground", argv), env={**os.environ, MARK: mark}, pass_fds=(theirs.fileno(),)
        )
    return Process(keeper, ours, _receive_pid(keeper, ours), mark)


def _refuse_null_characters(texts: Sequence[str]) -> None:
    if any("\0" in text for text in texts):
        raise RehearsalError("a process cannot be started: a null character in its command or environment")


def _command(control: socket.socket, mode: str, argv: Sequence[str | Path]) -> list[str]:
    return [sys.executable, "-I", "-S", _KEPT_PROCESS, str(control.fileno()), mode, *map(str, argv)]


def _receive_pid(keeper: subprocess.Popen, control: socket.socket) -> int:
    word, _, rest = control.recv(8192).decode().strip().partition(" ")
    if word == "pid":
        return int(rest)
    control.close()
    if keeper.stdout:
        keeper.stdout.close()
    keeper.wait()
    raise RehearsalError(f"a process cannot be started: {rest or 'the program that keeps it ended at once'}")


def kill_all_processes() -> None:
    """Kill every process started here that still runs, and wait for the last one."""
    living = list(_living)
    for process in living:
        process.kill()
    for process in living:
        process.wait()
