"""The rehearsal itself: an AWS on 127.0.0.1, in a thread of this process.

    with rehearsal.start():                 # the standard variables are set, and restored at the end
        boto3.client("sagemaker").list_training_jobs()

What it really performs comes from extensions (training jobs, endpoints, functions): each brings operations, by
"service.Operation", and ends what it started when the rehearsal stops.
"""

import atexit
import shutil
import socket
import threading
from functools import cache
from types import TracebackType

from moto.core.config import default_user_config
from moto.iam.access_control import PermissionResult
from moto.logs.models import LogEvent
from moto.moto_api._internal.models import moto_api_backend
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from moto.s3.models import FakeBucket

from opslib.errors import RehearsalError
from opslib.open_files import allow_open_files
from opslib.rehearsal.calls import Operation, Witness
from opslib.rehearsal.clock import Clock
from opslib.rehearsal.environment import restore_variables, set_variables, standard_variables
from opslib.rehearsal.extensions import build_extensions
from opslib.rehearsal.gateway.gate import Gate
from opslib.rehearsal.gateway.http_server import HttpServer
from opslib.rehearsal.identity import create_administrator
from opslib.rehearsal.monitoring.extension import Monitoring
from opslib.rehearsal.processes.keeper import kill_all_processes
from opslib.rehearsal.processes.scratch import build_scratch_directory, remove_orphaned_directories
from opslib.rehearsal.site import Extension, Site

HOST = "127.0.0.1"
DEFAULT_REGION = "us-east-1"
_running = threading.Lock()


class Rehearsal:
    """A running rehearsal; `environment` holds the standard variables that lead to it.

    As a context manager it stops at the end of the block.
    """

    def __init__(self, region: str = DEFAULT_REGION, *, port: int = 0, speed: float = 1.0) -> None:
        self.region = region
        self.clock = Clock(speed)
        self._listener = _listen(port)
        self.directory = build_scratch_directory("server")
        self.endpoint_url = f"http://{HOST}:{self._listener.getsockname()[1]}"
        self.environment: dict[str, str] = {}
        self._restore: dict[str, str | None] = {}
        self._extensions: list[Extension] = []
        self._operations: dict[str, Operation] = {}
        self._witnesses: dict[str, Witness] = {}
        self._server: HttpServer | None = None

    def __enter__(self) -> "Rehearsal":
        """Return the running rehearsal."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop it."""
        self.stop()

    def register(self, extension: Extension) -> None:
        """Let an extension answer its operations from now on."""
        self._extensions.append(extension)
        self._operations.update(extension.operations)
        self._witnesses.update(getattr(extension, "witnesses", {}))

    def serve(self) -> None:
        """Set the standard variables in this process and start answering, on a thread of its own."""
        allow_open_files()  # a request to an endpoint has a connection on either side
        self._restore = set_variables({})  # moto makes boto3 sessions: a profile that does not exist would break them
        moto_api_backend.reset()  # moto's state lives in the process; a second rehearsal starts as empty as the first
        administrator = create_administrator()
        self.environment = standard_variables(self.endpoint_url, self.region, administrator, self.directory)
        self._restore |= set_variables(self.environment)
        gate = Gate(MotoApplication(), self._operations, self._witnesses, self.clock)
        self._server = HttpServer(self._listener, gate.respond)
        self._server.start()

    def stop(self) -> None:
        """End every job, model server and function, then the server; restore the variables. Safe to repeat."""
        if self._server is None:
            return
        server, self._server = self._server, None
        for extension in reversed(self._extensions):
            extension.stop()
        kill_all_processes()
        server.stop()
        restore_variables(self._restore)
        shutil.rmtree(self.directory, ignore_errors=True)
        atexit.unregister(self.stop)
        _running.release()


class MotoApplication(DomainDispatcherApplication):
    """Moto's dispatcher with a memory: it lists its package's directory for every request otherwise (1 ms)."""

    def __init__(self) -> None:
        super().__init__(create_backend_app)
        self.get_backend_for_host = cache(super().get_backend_for_host)


def _listen(port: int) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
    except OSError as error:
        listener.close()
        raise RehearsalError(
            f"port {port} of {HOST} is taken", hint="leave the port out: a free one is found"
        ) from error
    listener.listen(512)
    return listener


def start(*, region: str = DEFAULT_REGION, port: int = 0, speed: float = 1.0) -> Rehearsal:
    """Start a local AWS in this process and return it, ready; use it in `with`, or call `stop()`.

    The standard variables are set in this process until then, and what would win over them (AWS_PROFILE and others) is
    unset.

    Args:
        region: the region of the standard variables; every region exists.
        port: the port on 127.0.0.1; 0 takes a free one.
        speed: how many times as fast as the wall's the clock of metrics, alarms and scaling runs (see `clock`).

    Raises:
        RehearsalError: one is running in this process already (moto's state is the process's), or the port is taken.
        ConfigurationError: no clock runs at that speed.
    """
    if not _running.acquire(blocking=False):
        raise RehearsalError("a rehearsal is already running in this process", hint="stop it first, or use it")
    try:
        rehearsal = _start(region, port, speed)
    except BaseException:
        _running.release()
        raise
    atexit.register(rehearsal.stop)
    return rehearsal


def _undecided(_bucket: FakeBucket, _action: str, _resource: str) -> PermissionResult:
    """Stand in for moto's reading of bucket policies, which takes every condition for a denial: the gate decides."""
    return PermissionResult.NEUTRAL


def _untracked(model: type, *_: object, **__: object) -> object:
    """Stand in for moto's bookkeeping, which keeps every line of every log for ever."""
    return object.__new__(model)


def _start(region: str, port: int, speed: float) -> Rehearsal:
    remove_orphaned_directories()
    LogEvent.__new__ = _untracked  # type: ignore[method-assign]
    FakeBucket.get_permission = _undecided  # type: ignore[method-assign]
    default_user_config.setdefault("iam", {})["load_aws_managed_policies"] = True
    rehearsal = Rehearsal(region, port=port, speed=speed)
    monitoring = Monitoring(rehearsal.clock)
    for extension in build_extensions(Site(rehearsal.endpoint_url, rehearsal.directory, rehearsal.clock, monitoring)):
        rehearsal.register(extension)
    rehearsal.serve()
    return rehearsal
