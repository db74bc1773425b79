"""A ramp to twice what an instance takes, and back: what scaling makes of it, and what the planner said of it before.

    python benchmarks/autoscaling.py [--speed 20] [--json FILE]

The model waits for 50 ms instead of computing, because the instances of a rehearsal share one machine: each takes as
much as if it had its own. The knee is measured, the policy is what `sizing.propose` makes of it, the planner gets the
start of an instance as it was measured by scaling by hand, and the traffic as it lay on CloudWatch's minutes. Then
requests are sent at the times of an open loop. Ends with 1 when a request failed, when the endpoint did not scale out
and back, or when the planner is out by more than one evaluation period, a minute of CloudWatch's clock. Seconds are
that clock's, which runs `speed` times as fast as the wall's.
"""

import argparse
import io
import json
import tarfile
import tempfile
import time
from datetime import datetime, timedelta
from pathlib import Path

from opslib import planning, rehearsal, sizing
from opslib.aws import endpoints, ledger, load, monitoring, roles, scaling, storage, sweeping
from opslib.aws.session import client
from opslib.specs import EndpointSpec, ScalingSpec
from opslib.traffic import Traffic

RAMP_SECONDS, HOLD_SECONDS, QUIET_SECONDS = 900, 400, 1600
PERIOD_SECONDS = 60
LATE_SECONDS = 1.0
"""Of the clock, for the thread that evaluates: both timelines lie on the same minutes, to within its waking up."""
INFERENCE = """
import json, time

def model_fn(model_dir): return None
def input_fn(body, content_type): return body
def predict_fn(data, model): time.sleep(0.05); return len(data)
def output_fn(prediction, accept): return json.dumps([[prediction]]), "application/json"
"""
Timeline = list[tuple[float, int]]
"""When how many instances were asked for, in seconds after the traffic's beginning."""


def deploy(directory: Path) -> tuple[ledger.Run, str]:
    """Deploy the waiting model on one instance; return the run and the endpoint."""
    run = ledger.start_run("autoscaling", home=directory / "runs")
    bucket = storage.ensure_bucket(run)
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        entry = tarfile.TarInfo("code/inference.py")
        entry.size = len(INFERENCE)
        tar.addfile(entry, io.BytesIO(INFERENCE.encode()))
    client("s3").put_object(Bucket=bucket, Key="model.tar.gz", Body=archive.getvalue())
    role, spec = roles.ensure_execution_role(run, bucket), EndpointSpec("ml.m5.large", container="pytorch")
    uri = f"s3://{bucket}/model.tar.gz"
    return run, endpoints.deploy_model(run, spec, model_uri=uri, role=role, overrule_gate=True)


def start_seconds(endpoint: str) -> float:
    """Return how long another instance takes, on the wall: one is added and taken away again."""
    sagemaker, starts = client("sagemaker"), []
    for count in (2, 1):
        started, wanted = time.perf_counter(), [{"VariantName": endpoints.VARIANT, "DesiredInstanceCount": count}]
        sagemaker.update_endpoint_weights_and_capacities(EndpointName=endpoint, DesiredWeightsAndCapacities=wanted)
        patience = {"Delay": 0.05, "MaxAttempts": 1200}
        sagemaker.get_waiter("endpoint_in_service").wait(EndpointName=endpoint, WaiterConfig=patience)
        starts.append(time.perf_counter() - started)
    return starts[0]


def send(endpoint: str, peak_rps: float, speed: float) -> tuple[load.LoadReport, datetime, scaling.InstanceWatch]:
    """Send the ramp and wait until one instance is left; return what became of it, its beginning, and what was seen."""
    target, seen = load.endpoint_target(endpoint, b"\xff\xd8\xff photo"), scaling.InstanceWatch(endpoint)
    begins: list[datetime] = []

    def look(progress: load.LoadProgress) -> None:
        if not begins:
            begins.append(monitoring.cloudwatch_now() - timedelta(seconds=progress.elapsed_seconds * speed))
        seen()

    ramp = load.LoadPlan.ramp(peak_rps, RAMP_SECONDS / speed, hold_seconds=HOLD_SECONDS / speed)
    report = load.run_load(target, ramp, on_progress=look)
    seen.wait_for(1, at_most_seconds=2 * QUIET_SECONDS / speed)
    return report, begins[0], seen


def plan(peak_rps: float, begin: datetime, spec: ScalingSpec, capacity: planning.InstanceCapacity) -> Timeline:
    """Return what the planner says of the ramp, which begins where it lay in a minute of CloudWatch's clock."""
    ramp = Traffic.ramp(peak_rps, up_seconds=RAMP_SECONDS, hold_seconds=HOLD_SECONDS, down_seconds=RAMP_SECONDS)
    ramp = ramp.followed_by(0, QUIET_SECONDS)
    offset = begin.timestamp() % PERIOD_SECONDS
    shifted = Traffic((0.0, *(edge + offset for edge in ramp.edges)), (0.0, *ramp.rates)) if offset else ramp
    found = planning.plan(shifted, spec, capacity)
    return [(0.0, 1), *((one.started_seconds - offset, one.after) for one in found.activities)]


def shift_seconds(live: Timeline, planned: Timeline) -> float:
    """Return by how much time has to be bent at most for one timeline to be the other; infinite when it cannot be."""
    if [count for _, count in live] != [count for _, count in planned]:
        return float("inf")
    return max(abs(one - other) for (one, _), (other, _) in zip(live, planned, strict=True))


def measure(directory: Path, speed: float) -> dict[str, object]:
    """Return the figures of the ramp."""
    run, endpoint = deploy(directory)
    startup = start_seconds(endpoint) * speed
    knee = load.find_knee(load.endpoint_target(endpoint, b"\xff\xd8\xff photo"), step_seconds=4).max_rps
    peak = 2 * knee
    spec = sizing.propose(knee, latency_seconds=0.06, peak_rps=peak).scaling
    print(f"knee {knee:.1f}/s, policy {spec}, an instance starts in {startup:.0f} s", flush=True)
    time.sleep((QUIET_SECONDS - 600) / speed)  # or the measurement would be scaled for
    scaling.ensure_scaling(run, spec, endpoint_name=endpoint)
    report, begin, seen = send(endpoint, peak, speed)
    activities = scaling.scaling_activities(endpoint)
    live = [((at - begin).total_seconds(), n) for at, n in scaling.instance_timeline(activities, begin, 1)]
    planned = plan(peak, begin, spec, planning.InstanceCapacity(knee, startup_seconds=startup))
    return {
        "knee_rps": knee,
        "target": spec.target_invocations,
        "start_seconds": startup,
        "requests": report.requests,
        "failed": report.requests - report.answered,
        "most_in_service": max(count for _, count, _ in seen.looks),
        "left_in_service": seen.looks[-1][1],
        "live": live,
        "planned": planned,
        "shift_seconds": shift_seconds(live, planned),
        "left": len(sweeping.sweep(run).leftovers),
    }


def show(figures: dict[str, object]) -> None:
    """Print the figures, and both timelines side by side."""
    for name, figure in figures.items():
        if name not in {"live", "planned"}:
            print(f"{name:<16}{figure}")
    for name in ("live", "planned"):
        print(f"{name:<16}" + "  ".join(f"{count} at {at:.0f} s" for at, count in figures[name]))


def main() -> None:
    """Measure, print, and write the figures as JSON when asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speed", type=float, default=20, help="of CloudWatch's clock (default %(default)s)")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, rehearsal.start(speed=options.speed):
        figures = measure(Path(scratch), options.speed)
    show(figures)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    scaled = figures["most_in_service"] > 1 == figures["left_in_service"]
    raise SystemExit(
        0 if scaled and not figures["failed"] and figures["shift_seconds"] <= PERIOD_SECONDS + LATE_SECONDS else 1
    )


if __name__ == "__main__":
    main()
