"""What the rehearsal costs on top of the model itself, each row measured in this run.

    python benchmarks/rehearsal.py [--json FILE]

It trains a small drawn set, deploys it, and asks for the same photo in three ways, in turn: `inference.py` in a process
of its own (the least that any server could take), the endpoint, and the Lambda function in front of the endpoint.
"""

import argparse
import base64
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from opslib import rehearsal
from opslib.aws import endpoints, functions, ledger, predictions, roles, storage, sweeping, training
from opslib.specs import EndpointSpec, FunctionSpec, JobSpec, TrainingSpec
from opslib.vision.data import open_photos
from opslib.vision.samples import draw_sample

ROUNDS = 100
BARE = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import inference
model, photo = inference.model_fn(sys.argv[2]), Path(sys.argv[3]).read_bytes()
for _ in sys.stdin:
    started = time.perf_counter()
    answer = inference.predict_fn(inference.input_fn(photo, "image/jpeg"), model)
    inference.output_fn(answer, "application/json;verbose")
    print(1000 * (time.perf_counter() - started), flush=True)
"""


def seconds(work: Callable[[], object]) -> float:
    """Return how long `work` takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def train(directory: Path) -> tuple[ledger.Run, str, str, bytes]:
    """Train on a small drawn set; return the run, the model's URI, the role and a photo."""
    draw_sample(directory / "photos", breeds=5, per_breed={"train": 8, "valid": 3, "test": 3})
    photos = open_photos(directory / "photos")
    run = ledger.start_run("benchmark", home=directory / "runs")
    bucket = storage.ensure_bucket(run)
    role = roles.ensure_execution_role(run, bucket)
    uri = storage.upload_files(photos.items(), bucket, "photos")
    spec = TrainingSpec("efficientnet_lite0", epochs=5)
    job = training.start_training(run, spec, JobSpec(), photos_uri=uri, bucket=bucket, role=role)
    summary = training.wait_for_training(job)
    return run, summary.model_uri, role, photos.files["test"][0].path.read_bytes()


def bare(directory: Path, model_uri: str, photo: bytes) -> subprocess.Popen:
    """Start a process that answers every line with the milliseconds that the four functions took."""
    archive = storage.download_file(model_uri, directory / "model.tar.gz")
    model = directory / "model"
    model.mkdir()
    subprocess.run(["tar", "-xzf", archive, "-C", model], check=True)
    (directory / "photo.jpg").write_bytes(photo)
    arguments = [sys.executable, "-c", BARE, model / "code", model, directory / "photo.jpg"]
    return subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)


def in_turn(ways: dict[str, Callable[[], float]]) -> dict[str, float]:
    """Return the median milliseconds of each way; they take turns, so that a busy moment of the machine hits all."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            times[name].append(way())
    return {name: statistics.median(found) for name, found in times.items()}


def measure(directory: Path) -> dict[str, float]:
    """Return all figures, in seconds or milliseconds as their names say."""
    run, model_uri, role, photo = train(directory)
    looks: list[endpoints.EndpointProgress] = []
    endpoint = endpoints.deploy_model(
        run, EndpointSpec(), model_uri=model_uri, role=role, on_progress=looks.append, overrule_gate=True
    )
    function_role = roles.ensure_function_role(run, endpoint)
    function = functions.ensure_function(run, FunctionSpec(), endpoint_name=endpoint, role=function_role)
    event = {"image": base64.b64encode(photo).decode()}
    process = bare(directory, model_uri, photo)

    def ask_bare() -> float:
        process.stdin.write("\n")
        return float(process.stdout.readline())

    ways = {
        "bare": ask_bare,
        "endpoint": lambda: 1000 * seconds(lambda: predictions.classify(endpoint, photo)),
        "function": lambda: 1000 * seconds(lambda: functions.invoke_function(function, event)),
    }
    for way in ways.values():
        way()  # once for the cold start
    medians = in_turn(ways)
    process.stdin.close()
    process.wait()
    process.stdout.close()
    left = len(sweeping.sweep(run).leftovers)
    return {
        "endpoint_in_service_seconds": looks[-1].elapsed_seconds,
        **{f"{k}_p50_ms": v for k, v in medians.items()},
        "left": left,
    }


def main() -> None:
    """Measure, print the table, and write it as JSON when asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        started = time.perf_counter()
        with rehearsal.start():
            ready = time.perf_counter() - started
            figures = {"ready_seconds": ready, **measure(Path(scratch))}
    figures["function_adds_ms"] = figures["function_p50_ms"] - figures["endpoint_p50_ms"]
    print(f"rehearsal ready                  {figures['ready_seconds']:8.2f} s")
    print(f"endpoint InService               {figures['endpoint_in_service_seconds']:8.2f} s")
    for name, title in (("bare", "inference.py alone"), ("endpoint", "endpoint"), ("function", "Lambda -> endpoint")):
        median = figures[f"{name}_p50_ms"]
        print(f"{title:<28} p50 {median:8.1f} ms  {median / figures['bare_p50_ms']:5.2f}x of inference.py alone")
    print(f"the function adds                {figures['function_adds_ms']:8.1f} ms")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
