"""The servers of the benchmark, ours and those that people pick, each in processes of its own that end with it."""

import http.client
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PEERS = Path(__file__).resolve().parent
ROOT = PEERS.parent.parent
REQUIREMENTS = ("fastapi==0.128.*", "uvicorn==0.40.*", "litserve==0.2.*", "torchserve==0.12.*",
                "torch-model-archiver==0.12.*", "packaging", "pyyaml", "psutil", "requests")  # fmt: skip
START_SECONDS = 120.0
CORES = len(os.sched_getaffinity(0))
"""So many workers of one thread has every peer: the most that they do in a second."""


@dataclass
class Server:
    """One server: its name, where it answers, and the times that it took."""

    name: str
    port: int
    path: str
    alone_ms: list[float] = field(default_factory=list)
    together_rps: list[float] = field(default_factory=list)

    def ask(self, connection: http.client.HTTPConnection, photo: bytes) -> bytes:
        """Send a photo and return the answer; a connection that the server has closed meanwhile is opened again."""
        try:
            response = self._response(connection, photo)
        except ConnectionError:
            connection.close()
            response = self._response(connection, photo)
        body = response.read()
        if response.status != 200:
            raise SystemExit(f"{self.name} answered {response.status}: {body[:300]!r}")
        return body

    def _response(self, connection: http.client.HTTPConnection, photo: bytes) -> http.client.HTTPResponse:
        connection.request("POST", self.path, photo, {"Content-Type": "image/jpeg", "Accept": "application/json"})
        return connection.getresponse()

    def connect(self) -> http.client.HTTPConnection:
        """Open a connection."""
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)


def free_port() -> int:
    """Return a port that is free now."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


@contextmanager
def running(command: Sequence[object], log: Path, variables: dict[str, str], **options: Any) -> Iterator[None]:
    """Run a server with all that it starts, and kill it at the end."""
    with log.open("w") as output:
        process = subprocess.Popen(
            [str(part) for part in command], stdout=output, stderr=subprocess.STDOUT,
            env={**os.environ, **variables}, start_new_session=True, **options,
        )  # fmt: skip
    try:
        yield
    finally:
        subprocess.run(["pkill", "-KILL", "-s", str(process.pid)], check=False)
        process.wait()


def await_answer(server: Server, photo: bytes, log: Path) -> None:
    """Wait until a server answers a photo."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            connection = server.connect()
            connection.request("POST", server.path, photo, {"Content-Type": "image/jpeg"})
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass
        if time.monotonic() > deadline:
            raise OSError(f"{server.name} does not answer; the end of its log:\n{log.read_text()[-1500:]}")
        time.sleep(0.3)


def peer_python(home: Path) -> Path:
    """Return the interpreter of the peers' environment, made on first use; torch is this interpreter's own."""
    python, ready = home / "venv" / "bin" / "python", home / "ready"
    wanted = "\n".join(REQUIREMENTS)
    if not ready.exists() or ready.read_text() != wanted:
        shutil.rmtree(home, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", home / "venv"], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *REQUIREMENTS], check=True)
        own = next((home / "venv" / "lib").glob("python*/site-packages"))
        (own / "torch_of_the_caller.pth").write_text("\n".join(path for path in sys.path if "site-packages" in path))
        ready.write_text(wanted)
    return python


def start_ours(stack: ExitStack, model: Path, scratch: Path, photo: bytes) -> Server:
    """Start the rehearsal's Ray Serve container on the model."""
    listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=1024))
    server, log = Server("ours", listener.getsockname()[1], "/invocations"), scratch / "ours.log"
    program = ROOT / "opslib" / "rehearsal" / "endpoints" / "ray_server.py"
    command = [sys.executable, "-P", program, "--socket", listener.fileno()]
    stack.enter_context(running(command, log, {"SM_MODEL_DIR": str(model)}, pass_fds=[listener.fileno()]))
    await_answer(server, photo, log)
    return server


def start_fastapi(stack: ExitStack, python: Path, scratch: Path, variables: dict[str, str]) -> Server:
    """Start uvicorn with a worker for each core."""
    return start_uvicorn(stack, python, scratch / "uvicorn.log", variables, workers=CORES)


def start_one_worker(stack: ExitStack, python: Path, scratch: Path, variables: dict[str, str]) -> Server:
    """Start uvicorn with one worker that puts all cores on a photo: the peers' best chance at concurrency 1."""
    threads = {"BENCH_THREADS": str(CORES)}
    return start_uvicorn(stack, python, scratch / "one_worker.log", variables | threads, workers=1)


def start_uvicorn(stack: ExitStack, python: Path, log: Path, variables: dict[str, str], *, workers: int) -> Server:
    """Start uvicorn; the server's name is that of its log."""
    port = free_port()
    command = [python, "-m", "uvicorn", "fastapi_app:app", "--port", port, "--workers", workers]
    stack.enter_context(running([*command, "--log-level", "warning"], log, variables, cwd=PEERS))
    return Server(log.stem, port, "/invocations")


def start_litserve(stack: ExitStack, python: Path, scratch: Path, variables: dict[str, str]) -> Server:
    """Start LitServe with a worker for each core."""
    port = free_port()
    stack.enter_context(
        running([python, "litserve_app.py", port, CORES], scratch / "litserve.log", variables, cwd=PEERS)
    )
    return Server("litserve", port, "/invocations")


def start_torchserve(stack: ExitStack, python: Path, scratch: Path, variables: dict[str, str]) -> Server:
    """Start TorchServe with a worker for each core."""
    if not shutil.which("java"):
        raise OSError("there is no Java")
    store, ports = scratch / "store", [free_port() for _ in range(5)]
    store.mkdir()
    archiver = [python, "-m", "model_archiver.model_packaging", "--model-name", "reference", "--version", "1"]
    handler = ["--handler", PEERS / "torchserve_handler.py", "--export-path", store, "--force"]
    subprocess.run([*archiver, *handler], check=True)
    config = scratch / "config.properties"
    addresses = dict(zip(("inference", "management", "metrics"), ports[:3], strict=True))
    lines = [f"{name}_address=http://127.0.0.1:{port}" for name, port in addresses.items()]
    lines += [f"grpc_inference_port={ports[3]}", f"grpc_management_port={ports[4]}",
              f"default_workers_per_model={CORES}",
              "disable_token_authorization=true", "job_queue_size=1000"]  # fmt: skip
    config.write_text("\n".join(lines) + "\n")
    command = [python, "-m", "ts.model_server", "--start", "--foreground", "--ncs", "--disable-token-auth"]
    command += ["--ts-config", config, "--model-store", store, "--models", "reference=reference.mar"]
    path = f"{python.parent}:{os.environ['PATH']}"
    stack.enter_context(
        running(
            command, scratch / "torchserve.log", {**variables, "PATH": path, "LOG_LOCATION": str(scratch)}, cwd=scratch
        )
    )
    return Server("torchserve", ports[0], "/predictions/reference")


STARTS: dict[str, Callable[[ExitStack, Path, Path, dict[str, str]], Server]] = {
    "uvicorn": start_fastapi,
    "one_worker": start_one_worker,
    "litserve": start_litserve,
    "torchserve": start_torchserve,
}


def start_peers(stack: ExitStack, model: Path, scratch: Path, photo: bytes) -> list[Server]:
    """Start every peer that can be had."""
    home = Path(os.environ.get("BENCHMARK_PEERS_HOME", Path.home() / ".cache" / "opslib" / "benchmark-peers"))
    variables = {"BENCH_MODEL": str(model), "BENCH_PEERS": str(PEERS), "PYTHONPATH": str(PEERS), "BENCH_THREADS": "1"}
    python, found = peer_python(home), []
    for name, start in STARTS.items():
        try:
            server = start(stack, python, scratch, variables)
            await_answer(server, photo, scratch / f"{name}.log")
            found.append(server)
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"left out: {name}: {error}", flush=True)
    return found
