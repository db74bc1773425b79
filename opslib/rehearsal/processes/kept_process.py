"""The small program between the rehearsal and each process it starts: `kept_process.py FD MODE COMMAND ...`.

It runs COMMAND and sees to it that nothing of it outlives the rehearsal or the command itself. FD is one end of a
socket whose other end only the server holds: when the server is gone, even by kill -9, the socket reads as closed and
everything that COMMAND started is killed. It is run by path with `python -I -S`, so it imports the standard library
only and is ready in about 20 ms.

MODE is `session`, or `foreground` for a command that shares the user's terminal: it stays in the terminal's process
group and gets its Ctrl-C by itself.

Said over the socket: `pid N` or `error TEXT` once, to the server; `stop SECONDS` (SIGTERM to the command, then SIGKILL
to all of it), `signal N` and `kill`, from the server. The exit code is that of the command, or 128 + n when signal n
ended it, as in containers.
"""

import ctypes
import os
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
EXEC_FAILED = 127
KILL_PATIENCE_SECONDS = 10.0
Identity = tuple[int, str]
"""A process: its id and the moment it started, because ids are used again."""


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _processes_by_proc() -> dict[Identity, int]:
    found = {}
    for entry in os.listdir("/proc"):  # noqa: PTH208 - names are all that is needed, a few hundred times a run
        if entry.isdigit():
            try:
                after_name = Path(f"/proc/{entry}/stat").read_text(errors="replace").rpartition(")")[2].split()
            except OSError:  # it ended between the two reads
                continue
            found[(int(entry), after_name[19])] = int(after_name[1])
    return found


def _processes_by_ps() -> dict[Identity, int]:
    with subprocess.Popen(["ps", "-A", "-o", "pid=,ppid=,lstart="], stdout=subprocess.PIPE, text=True) as ps:
        rows = [line.split(None, 2) for line in ps.stdout]
    return {(int(pid), started): int(parent) for pid, parent, started in rows if int(pid) != ps.pid}


list_processes = _processes_by_proc if sys.platform == "linux" else _processes_by_ps


class Family:
    """All living descendants of this process, those that left their parent included.

    On Linux orphans come back to this process (child subreaper). Elsewhere they go to the system's first process, so
    every descendant ever seen is remembered, and `look` is called often.
    """

    def __init__(self) -> None:
        self._seen: set[Identity] = set()

    def look(self) -> set[Identity]:
        """Return the living descendants."""
        processes = list_processes()
        self._seen &= processes.keys()
        parents = {os.getpid()} | {pid for pid, _ in self._seen}
        while found := {who for who, parent in processes.items() if parent in parents} - self._seen:
            self._seen |= found
            parents = {pid for pid, _ in found}
        return set(self._seen)

    def kill(self) -> None:
        """Kill every descendant and wait until the last one is gone."""
        deadline = time.monotonic() + KILL_PATIENCE_SECONDS
        while time.monotonic() < deadline and (living := self.look()):
            for pid, _ in living:
                send(pid, signal.SIGKILL)
            while reap():
                pass
            time.sleep(0.002)


def send(pid: int, number: int) -> None:
    """Send a signal to a process that may have ended already."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def reap() -> tuple[int, int] | None:
    """Collect one ended child: (pid, exit code), or None when none has ended."""
    try:
        pid, status = os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return None
    code = os.waitstatus_to_exitcode(status) if pid else 0
    return (pid, code if code >= 0 else 128 - code) if pid else None


def spawn(command: list[str], foreground: bool, control: socket.socket) -> int:
    """Run the command, in a session of its own by default; report its pid, or why it cannot run, over the socket."""
    failed_read, failed_write = os.pipe()
    keeper = os.getpid()
    pid = os.fork()
    if pid == 0:
        try:
            if not foreground:
                os.setsid()
            _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != keeper:
                os._exit(EXEC_FAILED)
            for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores these two; programs expect the default
                signal.signal(number, signal.SIG_DFL)
            os.execvp(command[0], command)  # noqa: S606
        except OSError as error:
            os.write(failed_write, f"{error.strerror}: {command[0]}".encode())
        os._exit(EXEC_FAILED)
    os.close(failed_write)
    reason = os.read(failed_read, 4096).decode()
    os.close(failed_read)
    control.sendall((f"error {reason}" if reason else f"pid {pid}").encode() + b"\n")
    return pid


def keep(pid: int, foreground: bool, control: socket.socket, family: Family) -> int:
    """Wait for the command and obey the server; return the command's exit code."""
    wakeup, bell = os.pipe()
    os.set_blocking(bell, False)
    signal.set_wakeup_fd(bell, warn_on_full_buffer=False)
    server, kill_at, asked_to_end = os.getppid(), None, []
    signal.signal(signal.SIGCHLD, lambda *_: None)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN if foreground else lambda *_: asked_to_end.append(True))
    while True:
        while ended := reap():
            if ended[0] == pid:
                return ended[1]
        if sys.platform != "linux":
            family.look()
        wait = 1.0 if kill_at is None else max(0.0, min(1.0, kill_at - time.monotonic()))
        ready, _, _ = select.select([control, wakeup], [], [], wait)
        if wakeup in ready:
            os.read(wakeup, 4096)
        if control in ready:
            said = control.recv(256)
            if not said or b"kill" in said:  # nothing said: the server is gone
                return 128 + signal.SIGKILL
            word, value = said.split()[:2]
            if word == b"stop":
                kill_at = time.monotonic() + float(value)
            send(pid, signal.SIGTERM if word == b"stop" else int(value))
        # A fork of the server that holds its end of the socket open hides its death; the parent's id does not.
        orphaned = os.getppid() != server
        if asked_to_end or orphaned or (kill_at is not None and time.monotonic() >= kill_at):
            return 128 + signal.SIGKILL


def main() -> int:
    """Run the command of the command line until it, or the server, ends."""
    control = socket.socket(fileno=int(sys.argv[1]))
    control.set_inheritable(False)
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    family = Family()
    foreground = sys.argv[2] == "foreground"
    pid = spawn(sys.argv[3:], foreground, control)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):  # so that the server's pipe closes when the last process of the command does
        os.dup2(nowhere, stream)
    try:
        return keep(pid, foreground, control, family)
    finally:
        family.kill()


if __name__ == "__main__":
    sys.exit(main())
