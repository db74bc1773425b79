"""An instance of a variant: a model server in a container of its own, watched, asked, and replaced when it dies.

An instance is a process here. It is treated as SageMaker treats a container: it must pass /ping before it gets
traffic, is pinged from then on, and is replaced when it dies, fails its pings or does not answer within 60 seconds.
"""

import math
import os
import secrets
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from opslib.errors import RehearsalError
from opslib.rehearsal.endpoints.container_client import AnswerLost, ContainerClient, ContainerReply, NotDelivered
from opslib.rehearsal.endpoints.model_data import ModelDataFailed
from opslib.rehearsal.processes.containers import build_container
from opslib.rehearsal.processes.keeper import Process, start_process

INVOCATION_SECONDS = 60.0
"""Longest time that a container may take for an answer (API reference of InvokeEndpoint)."""

HEALTH_CHECK_SECONDS = 480.0
"""How long a container may take until /ping answers 200, unless the variant says otherwise."""

_PING_EVERY_SECONDS = 0.05
"""While the container starts; afterwards its fleet pings it."""
_PING_SECONDS = 2.0
"""Longest time for an answer to /ping, as on AWS."""
_MOST_MISSED_PINGS = 3
_LONGEST_PAUSE_SECONDS = 30.0
"""Between two attempts to replace a container."""
_DISK_SECONDS = 60.0
"""Between two looks at all of a container's files, thousands where packages were installed."""
_MODEL_SERVER = Path(__file__).with_name("model_server.py")


class ModelNotServing(Exception):  # noqa: N818 - it becomes a FailureReason or an answer, never an error of ours
    """A container did not pass its health check, or it ended."""


class NotSent(ModelNotServing):
    """A container ended before it had read the request: another one may answer it."""


class InvocationTimedOut(Exception):  # noqa: N818 - it becomes a ModelError
    """A container did not answer within 60 seconds."""


@dataclass(frozen=True)
class ModelContainer:
    """What each instance runs: its variables, and the functions that bring its model and take its output."""

    directory: Path
    """Where each instance makes a directory of its own."""
    variables: Mapping[str, str]
    fetch_model: Callable[[Path], None]
    open_log: Callable[[str], Callable[[Sequence[str]], None]]
    """From an instance id to what takes its log lines."""
    startup_seconds: float = HEALTH_CHECK_SECONDS
    count_cores: Callable[[], int] = lambda: 1
    """How many cores an instance that starts now may use."""
    program: Path | None = None
    """The program that stands for the image; None: the one for the PyTorch image."""


class ModelInstance:
    """One model server: started, pinged, asked, replaced when it dies, and killed with its files at the end."""

    def __init__(self, container: ModelContainer, on_healthy: Callable[[], None] = lambda: None) -> None:
        """Give the instance an id; nothing is started yet. `on_healthy` is called whenever it can get traffic."""
        self.outstanding = 0
        self.healthy = False
        self._disk = -math.inf, 0.0
        self._model = container
        self._on_healthy = on_healthy
        self._write_log = container.open_log(f"i-0{secrets.token_hex(8)}")
        self._directory = Path(tempfile.mkdtemp(prefix="instance-", dir=container.directory))
        self._process: Process | None = None
        self._client: ContainerClient | None = None
        self._missed_pings = 0
        self._last_answer = 0.0
        self._closed = False
        self._lock = threading.Lock()

    @property
    def pid(self) -> int | None:
        """The process that serves; None before it was started."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Fetch the model, start the model server and wait until it answers /ping.

        Raises:
            ModelNotServing: it ended, or was not healthy in time.
        """
        try:
            model_dir = build_container(self._directory).root / "model"
            if not model_dir.exists():
                self._model.fetch_model(model_dir)
            process = self._start_server()
        except OSError as error:
            if not self._closed:
                raise
            shutil.rmtree(self._directory, ignore_errors=True)  # what was written since it was closed
            raise ModelNotServing("the instance was deleted") from error
        self._wait_until_healthy(process, time.monotonic() + self._model.startup_seconds)
        threading.Thread(target=self._watch, args=(process,), name="model-watch", daemon=True).start()

    def invoke(self, body: bytes, headers: Mapping[str, str], timeout_seconds: float | None = None) -> ContainerReply:
        """POST to /invocations; the time-out is 60 seconds if none is given.

        Raises:
            InvocationTimedOut: no answer in time; the container is replaced if it has answered nobody meanwhile.
            NotSent: the container had ended before it read the request.
            ModelNotServing: the container ended while it held the request; it is replaced.
        """
        started, client = time.monotonic(), self._client
        seconds = INVOCATION_SECONDS if timeout_seconds is None else timeout_seconds
        try:
            reply = client.request("POST", "/invocations", body, headers, seconds)
        except TimeoutError as error:
            if self._last_answer < started:  # it hangs; otherwise it has only too much to do
                self._replace(client)
            raise InvocationTimedOut from error
        except NotDelivered as error:
            self._replace(client)
            raise NotSent(str(error)) from error
        except AnswerLost as error:
            self._replace(client)
            raise ModelNotServing(str(error)) from error
        self._last_answer = time.monotonic()
        return reply

    def check_health(self) -> None:
        """Ping a container that gets traffic; it is replaced when it has missed three pings."""
        if not self.healthy:
            return
        self._missed_pings = 0 if self._answers_ping() else self._missed_pings + 1
        if self._missed_pings >= _MOST_MISSED_PINGS:
            self._write_log([f"The container did not answer {_MOST_MISSED_PINGS} pings and is replaced."])
            self._replace()

    def usage(self) -> tuple[float, float] | None:
        """Return the processor time (seconds so far) and the memory (bytes) of all its processes; None: it is down."""
        process = self._process
        if not self.healthy or process is None:
            return None
        seconds = size_bytes = 0.0
        try:
            parent = psutil.Process(process.pid)
            for one in (parent, *parent.children(recursive=True)):
                times = one.cpu_times()
                seconds += times.user + times.system
                size_bytes += one.memory_info().rss
        except psutil.Error:  # it ends at this moment
            return None
        return seconds, size_bytes

    def disk_share(self) -> float:
        """Return how much of the disk its files take, 0 to 1, as it was at most a minute ago."""
        measured, share = self._disk
        if time.monotonic() - measured < _DISK_SECONDS:
            return share
        self._disk = time.monotonic(), self._measured_disk_share()
        return self._disk[1]

    def _measured_disk_share(self) -> float:
        try:
            total_bytes = shutil.disk_usage(self._directory).total
        except OSError:  # it was closed meanwhile
            return 0.0
        files = (Path(folder, name) for folder, _, names in os.walk(self._directory) for name in names)
        return sum(map(_size_bytes, files)) / total_bytes

    def close(self) -> None:
        """Kill the container and remove its files."""
        with self._lock:
            self._closed, self.healthy = True, False
            if self._process:
                self._process.kill()
                self._process.wait()
        if self._client:
            self._client.close()
        shutil.rmtree(self._directory, ignore_errors=True)

    def _start_server(self) -> Process:
        container = build_container(self._directory)
        variables = {"SM_MODEL_DIR": "/opt/ml/model", **_thread_settings(self._model.count_cores())}
        with self._lock, socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
            if self._closed:
                raise ModelNotServing("the instance was deleted")
            self._client, self._missed_pings = ContainerClient(listener.getsockname()), 0
            self._process = start_process(
                [container.python, "-P", self._model.program or _MODEL_SERVER, "--socket", listener.fileno()],
                env=container.environment(variables | dict(self._model.variables)),
                cwd=container.home,
                on_line=lambda line: self._write_log([line]),
                pass_fds=[listener.fileno()],
            )
            return self._process

    def _wait_until_healthy(self, process: Process, deadline: float) -> None:
        while process.poll() is None and time.monotonic() < deadline:
            if self._answers_ping():
                with self._lock:
                    self.healthy = not self._closed
                self._on_healthy()
                return
            time.sleep(_PING_EVERY_SECONDS)
        process.kill()
        process.wait()
        raise ModelNotServing("the container did not pass the ping health check")

    def _answers_ping(self) -> bool:
        try:
            return self._client.request("GET", "/ping", b"", {}, _PING_SECONDS).status == 200
        except (NotDelivered, AnswerLost, TimeoutError):
            return False

    def _watch(self, process: Process) -> None:
        """Replace the container as soon as it ends."""
        process.wait()
        if self._process is process:
            self._replace()

    def _replace(self, client: ContainerClient | None = None) -> None:
        """Start the container anew, in the background, once; not when `client` speaks to one that is gone already."""
        with self._lock:
            if self._closed or not self.healthy or client not in {None, self._client}:
                return
            self.healthy = False
            self._process.kill()
        threading.Thread(target=self._restart, name="model-restart", daemon=True).start()

    def _restart(self) -> None:
        self._process.wait()
        self._client.close()
        pause_seconds = 0.1
        while not self._closed and not self.healthy:
            try:
                self.start()
            except (ModelNotServing, ModelDataFailed, RehearsalError, OSError) as error:
                self._write_log([f"The container was not replaced: {error}"])
                time.sleep(pause_seconds)
                pause_seconds = min(2 * pause_seconds, _LONGEST_PAUSE_SECONDS)


def _size_bytes(file: Path) -> int:
    """Return a file's size; 0 when it has gone meanwhile."""
    try:
        return file.lstat().st_size
    except OSError:
        return 0


def _thread_settings(cores: int) -> dict[str, str]:
    """Return the thread settings of an instance, which shares this machine with everything else that is rehearsed.

    Threads that wait must sleep: those that spin beside one busy neighbour made 26 ms a photo 228 on two cores.
    """
    return {"SM_NUM_CPUS": str(cores), "OMP_NUM_THREADS": str(cores), "OMP_WAIT_POLICY": "PASSIVE"}
