"""Serving: the reference's handler in the servers that people pick, against ours, on the same model and photos.

    python benchmarks/serving.py [--photos DIR] [--rounds 3] [--json FILE]

Peers are installed from PyPI into an environment of their own (BENCHMARK_PEERS_HOME, by default in the user's cache);
a peer that cannot be installed or started is named and left out. Each has two workers of one thread; `one_worker` is
uvicorn with all threads in one, which is the fastest of them for a photo that is alone. Servers take turns in
every round, so that a busy moment of the machine hits all. At concurrency 1 a request follows an answer; at 16 there
are sixteen connections that do so. `bare` is our own decoding and OpenVINO in this process, without HTTP. The client is
a thread for each connection in this process; its own cost is measured against a server that answers at once.
"""

import argparse
import http.client
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy
import torch

from opslib.bundle import copy_serving_code
from opslib.vision.artifact import ModelDescription, save_artifact
from opslib.vision.backbones import build_backbone
from opslib.vision.data import open_photos
from opslib.vision.exporting import export_classifier
from opslib.vision.model import Classifier, build_head
from opslib.vision.samples import draw_sample

ROOT = Path(__file__).resolve().parent.parent
PEERS = ROOT / "benchmarks" / "peers"
REQUIREMENTS = ("fastapi==0.128.*", "uvicorn==0.40.*", "litserve==0.2.*", "torchserve==0.12.*",
                "torch-model-archiver==0.12.*", "packaging", "pyyaml", "psutil", "requests")  # fmt: skip
START_SECONDS = 120.0
CLASSES = 133
CONNECTIONS = 16
LARGEST_DIFFERENCE = 1e-2


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


def save_model(directory: Path) -> None:
    """Write a ResNet-50 with random weights as hpo.py leaves a model: what it says does not change how fast it is."""
    torch.manual_seed(0)
    backbone = build_backbone("resnet50", pretrained=False)
    classifier = Classifier(backbone.module, build_head(backbone.features, CLASSES)).eval()
    names = [f"{number:03d}" for number in range(CLASSES)]
    directory.mkdir(parents=True)
    export = export_classifier(directory, classifier, backbone.transform)
    runtime = export.to_dict() if export else None
    save_artifact(directory, classifier, ModelDescription("resnet50", names, backbone.transform, {}, {}, runtime))
    copy_serving_code(directory, ())


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
    """Start uvicorn with two workers."""
    return start_uvicorn(stack, python, scratch / "uvicorn.log", variables, workers=2)


def start_one_worker(stack: ExitStack, python: Path, scratch: Path, variables: dict[str, str]) -> Server:
    """Start uvicorn with one worker that puts all cores on a photo: the peers' best chance at concurrency 1."""
    threads = {"BENCH_THREADS": str(len(os.sched_getaffinity(0)))}
    return start_uvicorn(stack, python, scratch / "one_worker.log", variables | threads, workers=1)


def start_uvicorn(stack: ExitStack, python: Path, log: Path, variables: dict[str, str], *, workers: int) -> Server:
    """Start uvicorn; the server's name is that of its log."""
    port = free_port()
    command = [python, "-m", "uvicorn", "fastapi_app:app", "--port", port, "--workers", workers]
    stack.enter_context(running([*command, "--log-level", "warning"], log, variables, cwd=PEERS))
    return Server(log.stem, port, "/invocations")


def start_litserve(stack: ExitStack, python: Path, scratch: Path, variables: dict[str, str]) -> Server:
    """Start LitServe with two workers."""
    port = free_port()
    stack.enter_context(running([python, "litserve_app.py", port], scratch / "litserve.log", variables, cwd=PEERS))
    return Server("litserve", port, "/invocations")


def start_torchserve(stack: ExitStack, python: Path, scratch: Path, variables: dict[str, str]) -> Server:
    """Start TorchServe with two workers."""
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
    lines += [f"grpc_inference_port={ports[3]}", f"grpc_management_port={ports[4]}", "default_workers_per_model=2",
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


def ask_alone(server: Server, photos: Sequence[bytes]) -> None:
    """Send photos one after the other."""
    connection = server.connect()
    server.ask(connection, photos[0])
    for photo in photos:
        started = time.perf_counter()
        server.ask(connection, photo)
        server.alone_ms.append(1000 * (time.perf_counter() - started))


def ask_together(server: Server, photos: Sequence[bytes]) -> None:
    """Send photos over sixteen connections, each as soon as its last answer is there."""
    local = threading.local()

    def ask(photo: bytes) -> None:
        if not hasattr(local, "connection"):
            local.connection = server.connect()
        server.ask(local.connection, photo)

    with ThreadPoolExecutor(CONNECTIONS) as pool:
        list(pool.map(ask, photos[:CONNECTIONS]))
        started = time.perf_counter()
        list(pool.map(ask, photos))
        server.together_rps.append(len(photos) / (time.perf_counter() - started))


def bare_rps(model: Path, photos: Sequence[bytes]) -> float:
    """Return photos/s of our own decoding and OpenVINO in this process, two threads a core."""
    sys.path.insert(0, str(ROOT))
    import inference

    served = inference.model_fn(str(model))
    cores = len(os.sched_getaffinity(0))
    with ThreadPoolExecutor(2 * cores) as pool:
        list(pool.map(lambda photo: inference.predict_fn(photo, served), photos[:8]))
        started = time.perf_counter()
        list(pool.map(lambda photo: inference.predict_fn(photo, served), photos))
        return len(photos) / (time.perf_counter() - started)


def client_ms(photo: bytes) -> float:
    """Return what the client itself takes for a request: against a server that answers at once."""

    class Nothing(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # or it would wait 40 ms between head and body

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Nothing) as idle:
        threading.Thread(target=idle.serve_forever, daemon=True).start()
        server = Server("nothing", idle.server_address[1], "/")
        ask_alone(server, [photo] * 100)
        idle.shutdown()
    return statistics.median(server.alone_ms)


def largest_difference(servers: Sequence[Server], photos: Sequence[bytes]) -> float:
    """Return the largest difference of a score between the first server and the others, as a share of the largest."""
    rows = []
    for server in servers:
        connection = server.connect()
        rows.append(numpy.array([json.loads(server.ask(connection, photo)) for photo in photos], dtype=float))
    return max(float(abs(row - rows[0]).max() / abs(rows[0]).max()) for row in rows)


def measure(folder: Path, rounds: int, scratch: Path) -> dict[str, Any]:
    """Return all figures."""
    photos = [photo.path.read_bytes() for photo in islice(open_photos(folder), 64)]
    model = scratch / "model"
    save_model(model)
    bare = []
    with ExitStack() as stack:
        ours = start_ours(stack, model, scratch, photos[0])
        peers = start_peers(stack, model, scratch, photos[0])
        servers = [ours, *peers]
        difference = largest_difference(servers, photos[:8])
        if difference > LARGEST_DIFFERENCE:
            raise SystemExit(f"the servers' scores differ by {difference:.3g}: they do not do the same work")
        for _ in range(rounds):
            for server in servers:
                ask_alone(server, photos[:24])
                ask_together(server, list(islice(cycle(photos), 96 if server is not ours else 192)))
            bare.append(bare_rps(model, list(islice(cycle(photos), 192))))
    if not peers:
        raise SystemExit("none of the peers could be started: there is nothing to compare with")
    rps = {server.name: statistics.median(server.together_rps) for server in servers}
    p50 = {server.name: statistics.median(server.alone_ms) for server in servers}
    best = max((one.name for one in peers), key=rps.__getitem__)
    return {
        **{f"{server.name}_p50_ms_c1": p50[server.name] for server in servers},
        **{f"{one.name}_p95_ms_c1": float(numpy.percentile(one.alone_ms, 95)) for one in servers},
        **{f"{server.name}_rps_c16": rps[server.name] for server in servers},
        "bare_rps": statistics.median(bare),
        "client_ms": client_ms(photos[0]),
        "largest_score_difference": difference,
        "best_peer": best,
        "rps_ratio_c16": rps["ours"] / rps[best],
        "p50_ratio_c1": p50["ours"] / min(p50[one.name] for one in peers),
        "of_bare_runtime": rps["ours"] / statistics.median(bare),
        # No int8 artifact is made: see the README.
        "int8_rps_ratio_c16": None,
        "int8_accuracy_drop": None,
    }


def main() -> None:
    """Measure, print the table, and write it as JSON when asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, help="folder of photos (default: a drawn sample)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the servers end, too
    with tempfile.TemporaryDirectory() as directory:
        folder = options.photos or Path(directory) / "sample"
        if options.photos is None:
            draw_sample(folder)
        figures = measure(folder, options.rounds, Path(directory))
    names = [
        name.removesuffix("_rps_c16") for name in figures if name.endswith("_rps_c16") and not name.startswith("int8")
    ]
    print(f"{'server':<12}{'p50 (1)':>10}{'p95 (1)':>10}{'req/s (16)':>12}")
    for name in names:
        alone, slow, rps = (figures[f"{name}_{kind}"] for kind in ("p50_ms_c1", "p95_ms_c1", "rps_c16"))
        print(f"{name:<12}{alone:7.1f} ms{slow:7.1f} ms{rps:12.1f}")
    for name, figure in figures.items():
        if not name.endswith(("_ms_c1", "_rps_c16")):
            print(f"{name:<26}{figure if not isinstance(figure, float) else round(figure, 4)}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
