"""The instances of a production variant: model servers in containers of their own, kept alive and given invocations.

An instance is a process here. It is treated as SageMaker treats a container: it must pass /ping before it gets
traffic, and it is replaced when it dies or does not answer within 60 seconds.
"""

import secrets
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import urllib3

from opslib.errors import RehearsalError
from opslib.rehearsal.processes.containers import build_container
from opslib.rehearsal.processes.keeper import Process, start_process

INVOCATION_SECONDS = 60.0
"""Longest time that a container may take for an answer (API reference of InvokeEndpoint)."""

HEALTH_CHECK_SECONDS = 480.0
"""How long a container may take until /ping answers 200, unless the variant says otherwise."""

_PING_EVERY_SECONDS = 0.05
_LONGEST_PAUSE_SECONDS = 30.0
"""Between two attempts to replace a container."""
_MODEL_SERVER = Path(__file__).with_name("model_server.py")


class ModelNotServing(Exception):  # noqa: N818 - it becomes a FailureReason or an answer, never an error of ours
    """A container did not pass its health check, or it ended."""


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


@dataclass(frozen=True)
class ContainerReply:
    """What a container answered to /invocations."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class ModelInstance:
    """One model server: started, pinged, asked, replaced when it dies, and killed with its files at the end."""

    def __init__(self, container: ModelContainer) -> None:
        """Give the instance an id; nothing is started yet."""
        self.outstanding = 0
        self.healthy = False
        self._model = container
        self._write_log = container.open_log(f"i-0{secrets.token_hex(8)}")
        self._directory = Path(tempfile.mkdtemp(prefix="instance-", dir=container.directory))
        self._process: Process | None = None
        self._pool: urllib3.HTTPConnectionPool | None = None
        self._closed = False
        self._lock = threading.Lock()

    @property
    def pid(self) -> int | None:
        """The model server's process; None before it is started."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Fetch the model, start the model server and wait until it answers /ping.

        Raises:
            ModelNotServing: it ended, or was not healthy in time.
        """
        container = build_container(self._directory)
        model_dir = container.root / "model"
        if not model_dir.exists():
            self._model.fetch_model(model_dir)
        variables = {"SM_MODEL_DIR": "/opt/ml/model", **self._model.variables}
        with self._lock, socket.create_server(("127.0.0.1", 0)) as listener:
            if self._closed:
                raise ModelNotServing("the instance was deleted")
            self._pool = urllib3.HTTPConnectionPool(*listener.getsockname(), maxsize=64, retries=False)
            self._process = start_process(
                [container.python, "-P", _MODEL_SERVER, "--socket", listener.fileno()],
                env=container.environment(variables),
                cwd=container.home,
                on_line=lambda line: self._write_log([line]),
                pass_fds=[listener.fileno()],
            )
        self._wait_until_healthy(self._process, time.monotonic() + self._model.startup_seconds)

    def invoke(
        self, body: bytes, headers: Mapping[str, str], *, timeout_seconds: float = INVOCATION_SECONDS
    ) -> ContainerReply:
        """POST to /invocations.

        Raises:
            InvocationTimedOut: no answer in time; the container is replaced.
            ModelNotServing: the container ended; it is replaced.
        """
        try:
            reply = self._pool.request("POST", "/invocations", body=body, headers=headers, timeout=timeout_seconds)
        except urllib3.exceptions.TimeoutError as error:
            self._replace()
            raise InvocationTimedOut from error
        except urllib3.exceptions.HTTPError as error:
            self._replace()
            raise ModelNotServing(str(error)) from error
        return ContainerReply(reply.status, reply.headers, reply.data)

    def close(self) -> None:
        """Kill the container and remove its files."""
        with self._lock:
            self._closed, self.healthy = True, False
            if self._process:
                self._process.kill()
                self._process.wait()
        if self._pool:
            self._pool.close()
        shutil.rmtree(self._directory, ignore_errors=True)

    def _wait_until_healthy(self, process: Process, deadline: float) -> None:
        while process.poll() is None and time.monotonic() < deadline:
            if self._answers_ping():
                self.healthy = True
                return
            time.sleep(_PING_EVERY_SECONDS)
        process.kill()
        process.wait()
        raise ModelNotServing("the container did not pass the ping health check")

    def _answers_ping(self) -> bool:
        try:
            return self._pool.request("GET", "/ping", timeout=2.0).status == 200
        except urllib3.exceptions.HTTPError:
            return False

    def _replace(self) -> None:
        """Start the container anew, in the background, once."""
        with self._lock:
            if self._closed or not self.healthy:
                return
            self.healthy = False
            self._process.kill()
        threading.Thread(target=self._restart, name="model-restart", daemon=True).start()

    def _restart(self) -> None:
        self._process.wait()
        pause_seconds = 0.1
        while not self._closed and not self.healthy:
            try:
                self.start()
            except (ModelNotServing, RehearsalError) as error:
                self._write_log([f"The container was not replaced: {error}"])
                time.sleep(pause_seconds)
                pause_seconds = min(2 * pause_seconds, _LONGEST_PAUSE_SECONDS)


class Fleet:
    """The instances of one production variant."""

    def __init__(self, container: ModelContainer, count: int, *, least_outstanding: bool = False) -> None:
        """Prepare `count` instances; requests go to a random one, or to the one with the fewest outstanding."""
        self._container = container
        self._instances = [ModelInstance(container) for _ in range(count)]
        self._least_outstanding = least_outstanding
        self._changed = threading.Condition()

    @property
    def count(self) -> int:
        """The number of instances, healthy or not."""
        return len(self._instances)

    @property
    def healthy_count(self) -> int:
        """The number of instances that get traffic."""
        return sum(instance.healthy for instance in self._instances)

    def start(self) -> None:
        """Start all instances at the same time and wait until every one is healthy.

        Raises:
            ModelNotServing: one of them is not; all are closed then.
        """
        try:
            _start_all(self._instances)
        except BaseException:
            self.close()
            raise

    def resize(self, count: int) -> None:
        """Add instances and wait until they are healthy, or take some away when their requests are answered.

        Raises:
            ModelNotServing: a new instance is not healthy; the fleet stays as it was.
        """
        added = [ModelInstance(self._container) for _ in range(count - self.count)]
        try:
            _start_all(added)
        except BaseException:
            for instance in added:
                instance.close()
            raise
        with self._changed:
            everything = [*self._instances, *added]
            self._instances, removed = everything[:count], everything[count:]
        for instance in removed:
            self._wait_until_idle(instance)
            instance.close()

    def invoke(
        self, body: bytes, headers: Mapping[str, str], *, timeout_seconds: float = INVOCATION_SECONDS
    ) -> ContainerReply:
        """Send a request to one healthy instance; asynchronous requests have longer than 60 seconds.

        Raises:
            ModelNotServing: no instance is healthy, or the chosen one ended.
            InvocationTimedOut: the chosen one did not answer in time.
        """
        with self._chosen() as instance:
            return instance.invoke(body, headers, timeout_seconds=timeout_seconds)

    def drain(self) -> None:
        """Wait until no request is under way."""
        for instance in self._instances:
            self._wait_until_idle(instance)

    def close(self) -> None:
        """Kill every instance."""
        for instance in self._instances:
            instance.close()

    @contextmanager
    def _chosen(self) -> Iterator[ModelInstance]:
        with self._changed:
            healthy = [instance for instance in self._instances if instance.healthy]
            if not healthy:
                raise ModelNotServing("no container is healthy")
            fewest = min(healthy, key=lambda one: one.outstanding)
            instance = fewest if self._least_outstanding else secrets.choice(healthy)
            instance.outstanding += 1
        try:
            yield instance
        finally:
            with self._changed:
                instance.outstanding -= 1
                self._changed.notify_all()

    def _wait_until_idle(self, instance: ModelInstance) -> None:
        with self._changed:
            self._changed.wait_for(lambda: instance.outstanding == 0, timeout=INVOCATION_SECONDS)


def _start_all(instances: Sequence[ModelInstance]) -> None:
    if instances:
        with ThreadPoolExecutor(len(instances)) as pool:
            list(pool.map(ModelInstance.start, instances))
