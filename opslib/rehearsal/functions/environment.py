"""One execution environment of a Lambda function: a process under AWS's runtime client, for one event at a time.

It keeps Lambda's own words and times: START, END and REPORT lines, ten seconds of initialisation, the time-out, the
memory limit, and the payload that each way of failing gives. Sources: docs.aws.amazon.com/lambda/latest/dg/
lambda-runtime-environment.html, python-logging.html and troubleshooting-invocation.html.
"""

import math
import os
import queue
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from opslib.rehearsal.functions.failures import Failed, exited, init_failed, timed_out, too_large
from opslib.rehearsal.functions.log_format import LogFormat, Report, TextFormat
from opslib.rehearsal.functions.memory import held_bytes, peak_bytes
from opslib.rehearsal.functions.runtime_api import Invocation, Message, RuntimeApi
from opslib.rehearsal.processes.keeper import MAX_LINE_BYTES, Process, start_process

INIT_SECONDS = 10.0
"""Longest initialisation ahead of the first invocation; what takes longer is begun anew, as a part of that."""

LEAST_PROVISIONED_INIT_SECONDS = 130.0
"""Longest initialisation of what is kept ready, unless the function's own time-out is longer."""

SETTLE_SECONDS = 1.0
"""How long a process may take to be frozen, or to be gone after it was killed."""

TICK_SECONDS = 0.05
"""How often memory and output are looked at while a handler runs."""

TAIL_BYTES = 4096
"""How much of the log goes back with LogType=Tail."""

MAX_OUTPUT_BYTES = 8 * 2**20
"""How much of what an invocation prints is kept; a flood would fill the rehearsal's memory."""

_EVENT_BYTES = 256
"""What a line costs beside its text: a flood of short ones would, too."""

_TO_FILE = 'log=$0; exec "$@" >>"$log" 2>&1'
"""Output goes to a file, not a pipe: what a handler printed before it answered is there when its answer is."""


@dataclass(frozen=True)
class FunctionVersion:
    """What an environment runs: code, handler, limits and the variables of its process."""

    arn: str
    version: str
    handler: str
    timeout_seconds: int
    memory_mb: int
    python: Callable[[], Path]
    """Gives the interpreter of the runtime, when an environment starts."""
    task_root: Path
    """The unpacked code; each environment makes a directory of its own beside it."""
    variables: Callable[[str], dict[str, str]] = field(repr=False)
    """Makes the variables from the log stream's name when an environment starts, because credentials expire."""
    log_format: LogFormat = field(default_factory=TextFormat)
    """Writes Lambda's own lines of the log."""
    initialization_type: str = "on-demand"
    """What the variable AWS_LAMBDA_INITIALIZATION_TYPE says; "provisioned-concurrency" for one that is kept ready."""


@dataclass(frozen=True)
class Outcome:
    """How an invocation ended: payload, X-Amz-Function-Error (or nothing), the end of the log, and how long it took."""

    payload: bytes
    function_error: str
    log_tail: bytes
    duration_ms: float
    """As in the REPORT line: without the initialisation."""


class FunctionEnvironment:
    """A process of one function version, with its Runtime API, its log stream and a directory of its own."""

    def __init__(self, function: FunctionVersion, stream: str, write_log: Callable[[Sequence[str]], None]) -> None:
        """Prepare the environment; its process starts with the first invocation.

        `write_log` receives the events of the log stream called `stream`, in order.
        """
        self.function = function
        self.usable = True
        self.last_used = time.monotonic()
        self._stream = stream
        self._write_log = write_log
        self._directory = Path(tempfile.mkdtemp(prefix="environment-", dir=function.task_root.parent))
        self._output = self._directory / "output.log"
        self._output.touch()
        self._reader = self._output.open("rb")  # stays readable, whatever the function does to its files
        self._api = self._new_api()
        self._process: Process | None = None
        self._is_known = threading.Event()
        self._read_bytes = 0
        self._kept_bytes = self._dropped_bytes = 0
        self._peak_bytes = 0
        self._log: list[str] = []
        self._started = False
        self._closing = threading.Lock()

    @property
    def has_exited(self) -> bool:
        """Whether the process has ended by itself, or was killed, since the last invocation.

        One that lives is frozen, or soon will be; what is neither frozen nor gone is waited for, for a moment.
        """
        deadline = time.monotonic() + SETTLE_SECONDS
        while self._process is not None and time.monotonic() < deadline:
            try:
                status = psutil.Process(self._process.pid).status()
            except psutil.NoSuchProcess:
                return True
            if status in {psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE}:
                return status == psutil.STATUS_ZOMBIE
            time.sleep(0.0005)
        return False

    def prepare(self) -> str:
        """Initialise ahead of the first invocation; return Lambda's word for why not, nothing when it is ready."""
        try:
            seconds = max(LEAST_PROVISIONED_INIT_SECONDS, self.function.timeout_seconds)
            reason = "" if self._initialise("", seconds) else "FUNCTION_ERROR_INIT_TIMEOUT"
        except Failed:
            reason = "FUNCTION_ERROR_INIT_FAILURE"
        self._read_output()
        if reason:
            self.close()
        return reason

    def invoke(self, request_id: str, payload: bytes, client_context: str = "") -> Outcome:
        """Run the handler on one event and wait for what comes of it."""
        self._log, self._started = [], False
        self._kept_bytes = self._dropped_bytes = 0
        started, init_seconds, ready = time.monotonic(), 0.0, True
        reply, function_error, failed = b"", "", None
        try:
            if self._process is None:
                ready = self._initialise_ahead(request_id)
                init_seconds = time.monotonic() - started if ready else 0.0
            self._start(request_id)
            started = time.monotonic()
            invocation = self._invocation(request_id, payload, client_context)
            reply, function_error = self._run(invocation, ready)
        except Failed as failure:
            reply, function_error, failed = failure.payload, "Unhandled", failure
            self._give_up(request_id, failure)
        duration_ms = 1000 * min(time.monotonic() - started, self.function.timeout_seconds)
        self._end(request_id, duration_ms, 1000 * init_seconds, failed)
        self.last_used = time.monotonic()
        return Outcome(reply, function_error, "".join(self._log).encode()[-TAIL_BYTES:], duration_ms)

    def close(self) -> None:
        """Kill the process and everything that it started, and remove the environment's files."""
        with self._closing:
            self.usable = False
            self._is_known.set()
            if self._process:
                self._process.kill()
                self._process.wait()
            if not self._reader.closed:
                self._reader.close()
                self._api.close()
                shutil.rmtree(self._directory, ignore_errors=True)

    def _signal(self, number: int) -> None:
        """Freeze or thaw the process and what it started: between invocations nothing of a function runs.

        Only what it started in a session of its own goes on.
        """
        self._is_known.wait()  # it may be quicker than the news of its start
        if self._process:
            with suppress(ProcessLookupError, PermissionError):  # it has ended
                os.killpg(self._process.pid, number)

    def _initialise_ahead(self, request_id: str) -> bool:
        """Initialise before the first event; False when it fails or takes too long: it is begun anew with the event."""
        started, status, error_type = time.monotonic(), "timeout", ""
        try:
            if self._initialise(request_id, INIT_SECONDS):
                return True
        except Failed as failure:
            if not self.usable:
                raise
            status, error_type = "error", failure.error_type
        self._process.kill()
        self._process.wait()
        self._read_output(whole=True)
        self._say(*self.function.log_format.init(1000 * (time.monotonic() - started), status, error_type))
        self._api.close()
        self._is_known.clear()
        self._process, self._api, self._peak_bytes = None, self._new_api(), 0
        return False

    def _new_api(self) -> RuntimeApi:
        return RuntimeApi(lambda: self._signal(signal.SIGSTOP), lambda: self._signal(signal.SIGCONT))

    def _initialise(self, request_id: str, seconds: float) -> bool:
        """Start the process and wait until it asks for an event; False when the time is over."""
        if not self.usable:  # it was closed meanwhile
            raise exited(request_id, 128 + signal.SIGKILL)
        temporary = self._directory / "tmp"
        temporary.mkdir(exist_ok=True)
        self._process = start_process(
            [
                "/bin/sh",
                "-c",
                _TO_FILE,
                self._output,
                self.function.python(),
                "-m",
                "awslambdaric",
                self.function.handler,
            ],
            env=self.function.variables(self._stream)
            | {
                "AWS_LAMBDA_INITIALIZATION_TYPE": self.function.initialization_type,
                "AWS_LAMBDA_RUNTIME_API": self._api.address,
                "TMPDIR": str(temporary),
                "HOME": str(temporary),
            },
            cwd=self.function.task_root,
        )
        self._is_known.set()
        ready = self._wait_for_message(request_id, time.monotonic() + seconds) is not None
        self._read_output()
        self._require_small(request_id)
        return ready

    def _invocation(self, request_id: str, payload: bytes, client_context: str) -> Invocation:
        deadline_ms = math.floor((time.time() + self.function.timeout_seconds) * 1000)
        return Invocation(request_id, payload, deadline_ms, self.function.arn, client_context)

    def _run(self, invocation: Invocation, ready: bool) -> tuple[bytes, str]:
        deadline = time.monotonic() + self.function.timeout_seconds
        if not ready and not self._initialise(invocation.request_id, self.function.timeout_seconds):
            raise timed_out(invocation.request_id, self.function.timeout_seconds)
        self._api.send(invocation)
        message = self._wait_for_message(invocation.request_id, deadline)
        if message is None:
            raise timed_out(invocation.request_id, self.function.timeout_seconds)
        self._require_small(invocation.request_id)
        if message.kind == "too_large":
            raise too_large()
        return message.payload, "Unhandled" if message.kind == "error" else ""

    def _wait_for_message(self, request_id: str, deadline: float) -> Message | None:
        """Return what the runtime says next, or None at the deadline (of time.monotonic)."""
        while True:
            message = self._next_message(min(TICK_SECONDS, max(0.001, deadline - time.monotonic())))
            if message and message.kind == "init_error":
                raise init_failed(message.payload)
            if message:
                return message
            self._look(request_id)
            if time.monotonic() >= deadline:
                return None

    def _next_message(self, timeout_seconds: float) -> Message | None:
        try:
            return self._api.messages.get(timeout=timeout_seconds)
        except queue.Empty:
            return None

    def _look(self, request_id: str) -> None:
        """Notice a process that has ended or that holds more memory than it may."""
        self._read_output()
        self._measure()
        self._kill_if_too_large()
        code = self._process.poll()
        if code is not None and self._api.messages.empty():
            raise exited(request_id, code)

    def _measure(self, *, with_children: bool = True) -> None:
        """Keep the most that the process, or it and its children together, held."""
        pid = self._process.pid
        self._peak_bytes = max(self._peak_bytes, peak_bytes(pid), held_bytes(pid, with_children=with_children))

    def _kill_if_too_large(self) -> bool:
        """Kill a process that held more memory than it may; return whether it did."""
        is_too_large = self._peak_bytes > self.function.memory_mb * 2**20
        if is_too_large:
            self._process.kill()
            self._process.wait()
        return is_too_large

    def _require_small(self, request_id: str) -> None:
        """Notice that between two looks the process held more for a moment than it may."""
        self._measure(with_children=False)
        if self._kill_if_too_large():
            raise exited(request_id, 128 + signal.SIGKILL)

    def _give_up(self, request_id: str, failure: Failed) -> None:
        if not self._started:
            self._start(request_id)
        self._read_output()
        self._say(*self.function.log_format.failure(failure.log_line))
        self.close()

    def _start(self, request_id: str) -> None:
        self._started = True
        self._say(*self.function.log_format.start(request_id, self.function.version))

    def _end(self, request_id: str, duration_ms: float, init_ms: float, failed: Failed | None) -> None:
        if self.usable:
            self._read_output(whole=True)
        self._say(*self.function.log_format.dropped(self._dropped_bytes))
        peak_mb = min(math.ceil(self._peak_bytes / 2**20), self.function.memory_mb)
        status, error_type = "success", failed.error_type if failed else ""
        if failed:
            status = "error" if error_type else "timeout"
        report = Report(request_id, duration_ms, self.function.memory_mb, peak_mb, init_ms, status, error_type)
        self._say(*self.function.log_format.end(report))

    def _read_output(self, *, whole: bool = False) -> None:
        """Move what the process has written by now to the log; `whole`: also a last line without its end."""
        written = self._written_bytes()
        while self._read_bytes < written and (new := self._read_ahead()):
            unended = len(new) if whole or len(new) == MAX_LINE_BYTES else 0  # what no event can hold is cut
            complete = new.rfind(b"\n") + 1 or unended
            if not complete:
                return
            self._read_bytes += complete
            weight = complete + _EVENT_BYTES * new.count(b"\n", 0, complete)
            if self._kept_bytes + weight > MAX_OUTPUT_BYTES:
                self._dropped_bytes += complete
            else:
                self._kept_bytes += weight
                self._say_output(new[:complete])

    def _written_bytes(self) -> int:
        """Return how much has been written; who writes without end must not keep us from looking at the time."""
        try:
            return os.fstat(self._reader.fileno()).st_size
        except ValueError:  # the environment was closed meanwhile
            return 0

    def _read_ahead(self) -> bytes:
        try:
            self._reader.seek(self._read_bytes)
            return self._reader.read(MAX_LINE_BYTES)
        except ValueError:  # the environment was closed meanwhile
            return b""

    def _say_output(self, output: bytes) -> None:
        # The runtime client joins the lines of a traceback with \r, so that they stay one event.
        text = output.decode("utf-8", "replace")
        lines = [line.replace("\r", "\n") for line in text.split("\n") if line.strip()]
        if lines:
            self._say(*lines)

    def _say(self, *lines: str) -> None:
        events = [f"{line}\n" for line in lines]
        self._log += events
        if events:
            self._write_log(events)
