"""Processes end with whoever started them, whatever they do and however it ends."""

import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import psutil
import pytest

from opslib.errors import RehearsalError
from opslib.rehearsal.processes.keeper import start_process
from opslib.rehearsal.processes.marks import MARK

ESCAPE_ARTIST = "(setsid sh -c 'sleep {mark} & exec sleep {mark}' &) ; sleep {mark}"
"""A shell line whose processes leave their session, their group and their parent."""


def living(mark: str) -> list[int]:
    return [process.pid for process in psutil.process_iter(["cmdline"]) if mark in (process.info["cmdline"] or [])]


def wait_until(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


@pytest.fixture
def mark() -> str:
    """A number of seconds that nobody else sleeps."""
    return f"1{uuid.uuid4().int % 10**9:09d}"


def start(line: str, on_line=None):
    return start_process(["sh", "-c", line], env=os.environ, cwd="/", on_line=on_line)


def test_output_arrives_line_by_line_and_the_exit_code_at_the_end():
    lines = []
    process = start("echo one; echo two >&2; printf three; exit 3", lines.append)
    assert process.wait() == 3
    assert lines == ["one", "two", "three"]
    assert process.poll() == 3


def test_a_line_is_heard_while_the_process_runs():
    lines = []
    process = start("echo now; exec sleep 1000", lines.append)
    wait_until(lambda: lines == ["now"])
    assert process.poll() is None
    process.kill()
    assert process.wait() == 128 + signal.SIGKILL


def test_a_signal_that_ends_the_process_is_its_exit_code():
    assert start("kill -SEGV $$").wait() == 128 + signal.SIGSEGV


def test_the_environment_is_exactly_what_was_given(tmp_path):
    lines = []
    start_process(["/usr/bin/env"], env={"LANG": "C.UTF-8", "ONLY": "this"}, cwd=tmp_path, on_line=lines.append).wait()
    assert sorted(line for line in lines if not line.startswith(f"{MARK}=")) == ["LANG=C.UTF-8", "ONLY=this"]


def test_nothing_is_left_when_the_process_ends(mark):
    process = start(f"{ESCAPE_ARTIST.format(mark=mark)} & sleep 0.1; exit 0")
    assert process.wait() == 0
    assert living(mark) == []


def test_kill_reaches_descendants_in_sessions_of_their_own(mark):
    process = start(ESCAPE_ARTIST.format(mark=mark))
    wait_until(lambda: len(living(mark)) == 3)
    process.kill()
    process.wait()
    assert living(mark) == []


def test_terminate_lets_the_process_finish_within_the_grace():
    lines = []
    process = start("trap 'exit 5' TERM; echo up; while :; do sleep 0.01; done", lines.append)
    wait_until(lambda: lines == ["up"])
    process.terminate(grace_seconds=30)
    assert process.wait(10) == 5


def test_terminate_kills_after_the_grace():
    lines = []
    process = start("trap '' TERM; echo up; while :; do sleep 0.01; done", lines.append)
    wait_until(lambda: lines == ["up"])
    process.terminate(grace_seconds=0.1)
    assert process.wait(10) == 128 + signal.SIGKILL


def test_waiting_has_a_limit():
    process = start("exec sleep 1000")
    with pytest.raises(TimeoutError, match="still runs after"):
        process.wait(0.01)
    process.kill()
    process.wait()


def test_a_command_that_does_not_exist_is_named():
    with pytest.raises(RehearsalError, match="No such file or directory: no-such-command"):
        start_process(["no-such-command"], env=os.environ, cwd="/")


def test_a_long_line_is_handed_on_in_pieces():
    lines = []
    start("head -c 600000 /dev/zero | tr '\\0' x", lines.append).wait()
    assert [len(line) for line in lines] == [262144, 262144, 75712]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_is_left_when_the_server_is_killed(mark, how):
    program = (
        "import os, time\nfrom opslib.rehearsal.processes.keeper import start_process\n"
        f"start_process(['sh', '-c', {ESCAPE_ARTIST.format(mark=mark)!r}], env=os.environ, cwd='/')\n"
        "time.sleep(1000)"
    )
    root = str(Path(__file__).parents[2])
    with subprocess.Popen([sys.executable, "-c", program], cwd=root) as server:
        wait_until(lambda: len(living(mark)) == 3)
        server.send_signal(how)
    wait_until(lambda: not living(mark))


def test_without_proc_descendants_are_found_through_ps(mark, monkeypatch):
    from opslib.rehearsal.processes import kept_process

    monkeypatch.setattr(kept_process, "list_processes", kept_process._processes_by_ps)
    with subprocess.Popen(["sh", "-c", f"sleep {mark} & exec sleep {mark}"]) as parent:
        family = kept_process.Family()
        wait_until(lambda: len(living(mark)) == 2)
        family.look()
        parent.kill()
        parent.wait()
        wait_until(lambda: {pid for pid, _ in family.look()} == set(living(mark)))
        assert len(living(mark)) == 1
        os.kill(living(mark)[0], signal.SIGKILL)
    wait_until(lambda: not family.look())
