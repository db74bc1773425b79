"""Serving: the reference's handler in the servers that people pick, against ours, on the same model and photos.

    python benchmarks/serving.py [--photos DIR] [--rounds 3] [--json FILE]

Peers are installed from PyPI into an environment of their own (BENCHMARK_PEERS_HOME, by default in the user's cache);
a peer that cannot be installed or started is named and left out. Each has a worker of one thread for every core.
`one_worker` is uvicorn with one worker that has all threads, the hardest to beat; its ratios stand for themselves.

Servers take turns in every round, so that a busy moment of the machine hits all. At concurrency 1 a request follows an
answer; at 16 there are sixteen connections that do so. `bare` is our own decoding and OpenVINO in this process, without
HTTP. The client is a thread for each connection in this process; its own cost is measured against a server that
answers at once.

ResNet-50's weights cannot be had from PyPI: they are random, with normalisation fitted to the photos, so that its
answers differ from photo to photo. int8: a head is trained on the photos, over ResNet-50 and over EfficientNet-Lite0
with weights of ImageNet; an artifact that passes its gate is measured against the peers on its float32.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy
import torch
import torchvision
from peers.servers import ROOT, Server, start_ours, start_peers
from PIL import Image

from opslib.bundle import copy_serving_code
from opslib.vision.artifact import ModelDescription, save_artifact
from opslib.vision.backbones import build_backbone
from opslib.vision.data import open_photos
from opslib.vision.exporting import export_classifier
from opslib.vision.model import Classifier, build_head
from opslib.vision.samples import draw_sample
from opslib.vision.transforms import evaluation_transform

REFERENCE = "resnet50"
BACKBONES = (REFERENCE, "efficientnet_lite0")
CLASSES = 133
CALIBRATION_PHOTOS = 128
FITTED_PHOTOS = 256
WEIGHTS = "resnet50.pth"
ONE_WORKER = "one_worker"
CONNECTIONS = 16
LARGEST_DIFFERENCE = 1e-2


def fit_weights(name: str, folder: Path, file: Path) -> None:
    """Write random weights of a network whose BatchNorm has seen some of the photos."""
    torch.manual_seed(0)
    network = torchvision.models.get_model(name)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the mean over all batches
    view = evaluation_transform(build_backbone(name, pretrained=False).transform)
    everything = [photo.path for photo in open_photos(folder)]
    chosen = everything[:: max(1, len(everything) // FITTED_PHOTOS)]  # of every class
    photos = [view(Image.open(path).convert("RGB")) for path in chosen]
    network.train()
    with torch.no_grad():
        for batch in torch.stack(photos).split(32):
            network(batch)
    torch.save(network.state_dict(), file)


def save_model(directory: Path, weights: Path) -> None:
    """Write a ResNet-50 with a random head as hpo.py leaves a model: what it says does not change how fast it is."""
    backbone = build_backbone(REFERENCE, weights=weights)
    torch.manual_seed(0)
    classifier = Classifier(backbone.module, build_head(backbone.features, CLASSES)).eval()
    names = [f"{number:03d}" for number in range(CLASSES)]
    directory.mkdir(parents=True)
    export = export_classifier(directory, classifier, backbone.transform)
    runtime = export.to_dict() if export else None
    save_artifact(directory, classifier, ModelDescription(REFERENCE, names, backbone.transform, {}, {}, runtime))
    copy_serving_code(directory, ())


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


def train_int8(folder: Path, backbone: str, scratch: Path) -> Path:
    """Train a head on the photos, make an int8 artifact if its gate lets it pass, and return the model's folder."""
    model = scratch / f"int8-{backbone}"
    command = [sys.executable, ROOT / "hpo.py", "--data", folder, "--model_dir", model, "--backbone", backbone]
    command += ["--calibration_photos", CALIBRATION_PHOTOS, "--output_dir", scratch / f"report-{backbone}"]
    if backbone == REFERENCE:
        command += ["--weights", scratch / WEIGHTS]
    done = subprocess.run(
        [str(part) for part in command], check=False, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"hpo.py failed:\n{done.stdout[-1000:]}{done.stderr[-1000:]}")
    verdict = next(line for line in done.stdout.splitlines() if line.startswith("int8 "))
    print(backbone, verdict, flush=True)
    if verdict.startswith("int8 not made"):
        raise SystemExit("int8 cannot be measured: requirements-dev.txt names what makes it")
    return model


def measure_int8(folder: Path, backbone: str, rounds: int, scratch: Path) -> dict[str, Any]:
    """Return our int8 artifact's requests/s against the peers' float32, or nothing when its gate refused it."""
    photos = [photo.path.read_bytes() for photo in islice(open_photos(folder), 64)]
    model = train_int8(folder, backbone, scratch)
    runtime = json.loads((model / "model.json").read_text())["runtime"]
    accuracies = runtime["accuracies"]
    lost = 100 * (accuracies["float32"] - accuracies["int8"])
    if runtime["precision"] != "int8":
        return {f"int8_{backbone}_refused_for_points": lost}
    own = scratch / f"servers-{backbone}"
    own.mkdir()
    with ExitStack() as stack:
        servers = [start_ours(stack, model, own, photos[0]), *start_peers(stack, model, own, photos[0])]
        for _ in range(rounds):
            for server in servers:
                ask_together(server, list(islice(cycle(photos), 192)))
    rps = {server.name: statistics.median(server.together_rps) for server in servers}
    best = max(rate for name, rate in rps.items() if name != "ours")
    return {
        f"int8_{backbone}_rps": rps["ours"],
        f"int8_{backbone}_best_peer_rps": best,
        f"int8_{backbone}_ratio": rps["ours"] / best,
        f"int8_{backbone}_accuracy_float32": accuracies["float32"],
        f"int8_{backbone}_accuracy_drop": lost,
    }


def measure(folder: Path, rounds: int, scratch: Path) -> dict[str, Any]:
    """Return all figures."""
    photos = [photo.path.read_bytes() for photo in islice(open_photos(folder), 64)]
    model = scratch / "model"
    fit_weights(REFERENCE, folder, scratch / WEIGHTS)
    save_model(model, scratch / WEIGHTS)
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
    workers = [one.name for one in peers if one.name != ONE_WORKER]
    best = max(workers, key=rps.__getitem__)
    int8 = {}
    for backbone in BACKBONES:
        int8 |= measure_int8(folder, backbone, rounds, scratch)
    kept = max(
        (name for name in BACKBONES if f"int8_{name}_ratio" in int8),
        key=lambda name: int8[f"int8_{name}_accuracy_float32"],  # nothing can be lost where nothing was learnt
        default="",
    )
    return {
        **{f"{server.name}_p50_ms_c1": p50[server.name] for server in servers},
        **{f"{one.name}_p95_ms_c1": float(numpy.percentile(one.alone_ms, 95)) for one in servers},
        **{f"{server.name}_rps_c16": rps[server.name] for server in servers},
        "bare_rps": statistics.median(bare),
        "client_ms": client_ms(photos[0]),
        "largest_score_difference": difference,
        "best_peer": best,
        "rps_ratio_c16": rps["ours"] / rps[best],
        "p50_ratio_c1": p50["ours"] / min(p50[name] for name in workers),
        "of_bare_runtime": rps["ours"] / statistics.median(bare),
        "one_worker_rps_ratio": rps["ours"] / rps[ONE_WORKER] if ONE_WORKER in rps else None,
        "one_worker_p50_ratio": p50["ours"] / p50[ONE_WORKER] if ONE_WORKER in p50 else None,
        **int8,
        "int8_backbone": kept,
        "int8_rps_ratio_c16": int8.get(f"int8_{kept}_ratio"),
        "int8_accuracy_drop": int8.get(f"int8_{kept}_accuracy_drop"),
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
            print(f"{name:<42}{figure if not isinstance(figure, float) else format(figure, '.4g')}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
