"""Training: the reference's loop against ours, ours against the machine's limit, one host against two.

    python benchmarks/training.py [--photos DIR] [--backbone NAME] [--json FILE]

Every row is measured in this run. Ours are whole commands (`python hpo.py ...` with an empty cache): interpreter,
imports, decoding, features, head, test, report and model. The reference's loop is measured for two epochs and its
time for more of them is computed from these. `limit` is decoding every photo once and sending it through the fastest
runtime once, on all cores, and nothing else. The second job has the first one's photos and another learning rate; its
seconds are those from the first look at the photos to the first step of the head. Hosts are processes that may run on
one core each.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import features

from opslib.vision.backbones import OFFLINE_BACKBONE, build_backbone
from opslib.vision.data import Photos, open_photos
from opslib.vision.samples import draw_sample

ROOT = Path(__file__).resolve().parent.parent
EPOCHS = (1, 5, 50)


class Bench:
    """Runs commands on one set of photos, each with folders of its own."""

    def __init__(self, folder: Path, backbone: str, scratch: Path) -> None:
        self.folder, self.backbone, self.scratch = folder, backbone, scratch

    def reference(self) -> dict[str, float]:
        """Return what `reference_loop.py` measures."""
        result = self.scratch / "reference.json"
        script = Path(__file__).with_name("reference_loop.py")
        arguments = ["--photos", self.folder, "--backbone", self.backbone, "--json", result]
        subprocess.run([sys.executable, script, *arguments], check=True, stdout=subprocess.DEVNULL)
        return json.loads(result.read_text())

    def start(self, name: str, *arguments: object, cache: str, **variables: str) -> subprocess.Popen:
        """Start `hpo.py`; its model and its report go to a folder of that name."""
        known = ["--data", self.folder, "--model_dir", self.scratch / name, "--backbone", self.backbone]
        environment = {**os.environ, **variables, "OPSLIB_CACHE_HOME": str(self.scratch / cache)}
        command = [sys.executable, ROOT / "hpo.py", *known, "--patience", 1000, "--views", 1, *arguments]
        return subprocess.Popen([str(part) for part in command], env=environment, stdout=subprocess.DEVNULL)

    def train(self, name: str, *arguments: object, cache: str) -> tuple[float, dict[str, Any]]:
        """Return the seconds of the whole command, and its report."""
        started = time.perf_counter()
        end(self.start(name, *arguments, cache=cache))
        return time.perf_counter() - started, self.report(name)

    def report(self, name: str) -> dict[str, Any]:
        """Return the report of a run."""
        return json.loads((self.scratch / name / "report.json").read_text())

    def hosts(self, count: int) -> float:
        """Train for an epoch on some hosts of one core each; return their photos/s while they compute features."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        name, cores = f"hosts-{count}", sorted(os.sched_getaffinity(0))
        launcher = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        ranks = []
        for rank in range(count):
            variables = {**launcher, "RANK": str(rank), "LOCAL_RANK": "0", "SM_CURRENT_HOST": f"algo-{rank + 1}"}
            os.sched_setaffinity(0, {cores[rank % len(cores)]})  # the child inherits it
            ranks.append(self.start(name, "--epochs", 1, cache=f"{name}-{rank}", **variables if count > 1 else {}))
        os.sched_setaffinity(0, set(cores))
        for rank in ranks:
            end(rank)
        report = self.report(name)
        return sum(report["photos"].values()) / report["seconds"]["features"]


def end(process: subprocess.Popen) -> None:
    """Wait for a command, which must succeed."""
    if process.wait():
        raise SystemExit(f"failed: {process.args}")


def measure(bench: Bench, photos: Photos) -> dict[str, float]:
    """Return all figures."""
    backbone = build_backbone(bench.backbone)
    figures = {f"pass_{name}": value for name, value in features.measure(backbone, list(photos)).items()}
    limit = figures["pass_bare_decode_seconds"] + figures["pass_bare_forward_seconds"]
    for epochs in EPOCHS:
        seconds, report = bench.train(f"epochs-{epochs}", "--epochs", epochs, cache=f"cache-{epochs}")
        figures[f"our_{epochs}_epochs_seconds"] = seconds
    figures |= {f"our_{part}_seconds": value for part, value in report["seconds"].items()}
    figures["test_accuracy"] = report["test_accuracy"]
    _, second = bench.train("second", "--epochs", 5, "--learning_rate", 0.001, cache=f"cache-{EPOCHS[-1]}")
    figures["second_job_seconds"] = second["seconds"]["features"]
    one, two = bench.hosts(1), bench.hosts(2)
    figures |= {"one_host_photos_per_second": one, "two_hosts_photos_per_second": two, "two_host_scaling": two / one}
    reference = bench.reference()
    for epochs in EPOCHS:
        seconds = reference["epoch_seconds"] * epochs + reference["test_seconds"]
        figures[f"reference_{epochs}_epochs_seconds"] = seconds
        figures[f"speedup_{epochs}_epochs"] = seconds / figures[f"our_{epochs}_epochs_seconds"]
    inside = sum(report["seconds"].values())  # as the limit: without the interpreter's start and imports
    return figures | {
        "reference_test_accuracy": reference["test_accuracy"],
        "limit_seconds": limit,
        "over_limit": figures["our_50_epochs_seconds"] / limit,
        "over_limit_without_imports": inside / limit,
        "feature_pass_speedup": figures["pass_feature_pass_speedup"],
    }


def show(figures: dict[str, float]) -> None:
    """Print the table."""
    print(f"{'epochs':>8}{'reference':>12}{'ours':>10}{'ratio':>9}")
    for epochs in EPOCHS:
        theirs, ours = figures[f"reference_{epochs}_epochs_seconds"], figures[f"our_{epochs}_epochs_seconds"]
        print(f"{epochs:8}{theirs:10.1f} s{ours:8.1f} s{theirs / ours:8.1f}x")
    for name, figure in figures.items():
        if "_epochs" not in name:
            print(f"{name:<36}{figure:12.6g}")


def main() -> None:
    """Measure, print the table, and write it as JSON when asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, help="folder of photos (default: a drawn sample)")
    parser.add_argument("--backbone", default=OFFLINE_BACKBONE)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.photos or Path(scratch) / "sample"
        if options.photos is None:
            draw_sample(folder)
        figures = measure(Bench(folder.resolve(), options.backbone, Path(scratch)), open_photos(folder))
    show(figures)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
