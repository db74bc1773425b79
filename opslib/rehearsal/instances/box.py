"""One instance: its user data as a process of its own, `shutdown` in it, and its states.

    pending -> running -> shutting-down -> terminated      (or stopping -> stopped)

What EC2 takes from its metadata service (IMDS) comes here by the standard variables: region and the role's credentials.
"""

import re
import shlex
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from opslib.rehearsal.processes.containers import Container, build_container
from opslib.rehearsal.processes.keeper import Process, start_process

_LOOK_SECONDS = 0.1
_CODES = {"pending": 0, "running": 16, "shutting-down": 32, "terminated": 48, "stopping": 64, "stopped": 80}
_SHUTDOWN = """#!/bin/sh
# shutdown [-h|-P|-r] now|+MINUTES, and poweroff, halt: the rehearsal looks at the file.
when=now
for word in "$@"; do case "$word" in now|+*|-c) when="$word" ;; esac; done
printf '%s' "$when" >{file}.partial && mv {file}.partial {file}
"""
_NOTHING = "#!/bin/sh\nexit 127\n"


class Box:
    """An instance of moto's that really runs its user data."""

    def __init__(self, record: Any, directory: Path, user_data: str) -> None:
        self.record = record
        self.output: list[str] = []
        self._container: Container = build_container(directory)
        self._user_data = user_data
        self._process: Process | None = None
        self._asked = self._container.directory / "shutdown"
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self.show("pending")

    def show(self, state: str) -> None:
        """Let DescribeInstances tell a state."""
        self.record._state.name, self.record._state.code = state, _CODES[state]

    def start(self, variables: Mapping[str, str]) -> None:
        """Run the user data, and watch for its shutdown."""
        self._write_commands()
        script = self._container.directory / "user-data"
        script.write_text(self._container.relocate(self._user_data), encoding="utf-8")
        script.chmod(0o755)
        self._thread = threading.Thread(target=self._run, args=(script, dict(variables)), name="instance", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Kill everything in it and wait until it is gone."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    def _write_commands(self) -> None:
        aws = shlex.join([str(self._container.python), str(Path(__file__).with_name("aws_command.py"))])
        texts = {"aws": f'#!/bin/sh\nexec {aws} "$@"\n', "nvidia-smi": _NOTHING}
        texts |= dict.fromkeys(("shutdown", "poweroff", "halt"), _SHUTDOWN.format(file=shlex.quote(str(self._asked))))
        for name, text in texts.items():
            path = self._container.bin / name
            path.write_text(text, encoding="utf-8")
            path.chmod(0o755)

    def _run(self, script: Path, variables: dict[str, str]) -> None:
        environment = self._container.environment(variables)
        home = self._container.home
        self._process = start_process([str(script)], env=environment, cwd=home, on_line=self.output.append)
        if not self._ended.is_set():
            self.show("running")
        asked_at, ends_at = 0, None
        while not self._ended.wait(_LOOK_SECONDS):
            if self._asked.is_file() and (stamp := self._asked.stat().st_mtime_ns) != asked_at:
                asked_at, ends_at = stamp, _moment(self._asked.read_text(encoding="utf-8"))
            if ends_at is not None and time.monotonic() >= ends_at:
                break
        stops = not self._ended.is_set() and self.record.instance_initiated_shutdown_behavior == "stop"
        self.show("stopping" if stops else "shutting-down")
        self._process.kill()
        self._process.wait()
        _ = self.record.stop() if stops else self.record.terminate()


def _moment(text: str) -> float | None:
    """Return when a shutdown is due on the monotonic clock; None when it was cancelled (`-c`)."""
    if text == "-c":
        return None
    minutes = re.fullmatch(r"\+(\d{1,6})", text)
    return time.monotonic() + 60 * int(minutes[1]) if minutes else time.monotonic()
