"""An endpoint under way: load, scaling, alarms, and another model behind it."""

import io
import json
import time
from datetime import timedelta
from types import SimpleNamespace

import numpy
import pytest

from opslib.aws import deployments, endpoints, load, load_sender, monitoring, roles, scaling, storage
from opslib.aws.inventory import KINDS
from opslib.aws.ledger import Run
from opslib.aws.model_archives import model_metrics, with_file
from opslib.aws.predictions import classify
from opslib.aws.session import client
from opslib.aws.sweeping import find_leftovers, sweep
from opslib.errors import AwsError, ConfigurationError, DeploymentRolledBack, ModelRefused, OpslibError
from opslib.specs import EndpointSpec, ScalingSpec, ShiftSpec
from tests.aws.conftest import INFERENCE, put_model

JPEG = b"\xff\xd8\xff a photo"


@pytest.fixture
def endpoint(run, model_uri) -> str:
    role = roles.ensure_execution_role(run, run.name("data"))
    return endpoints.deploy_model(run, EndpointSpec(container="pytorch"), model_uri=model_uri, role=role)


def test_load_is_sent_when_it_is_due_and_counted_whole(endpoint) -> None:
    looks: list[load.LoadProgress] = []
    plan = load.LoadPlan(((40, 40, 1), (40, 0, 1)))
    report = load.run_load(load.endpoint_target(endpoint, JPEG), plan, on_progress=looks.append, senders=2)
    assert report.requests == 60
    assert (report.answered, report.success_rate, report.throttled) == (60, 1.0, 0)
    assert 0 < report.p50_ms <= report.p95_ms <= report.p99_ms
    assert looks[-1].counts[load.ANSWERED] == 60
    assert "60 in 2 s" in str(report)
    sums = monitoring.endpoint_metrics(endpoint, [("Invocations", "Sum"), ("ModelLatency", "p95")], minutes=10)
    invocations, latency = sums["MetricDataResults"]
    assert invocations["Label"] == "Invocations Sum"
    assert sum(invocations["Values"]) == 60
    assert latency["Values"]


def test_what_nobody_answers_is_told_by_its_kind(rehearsal) -> None:
    plan = load.LoadPlan.constant(10, 0.5)
    report = load.run_load(load.endpoint_target("nobody", JPEG), plan)
    assert report.counts == {"ValidationError": 5}
    assert report.success_rate == 0
    with pytest.raises(OpslibError, match="does not answer"):
        load.find_knee(load.endpoint_target("nobody", JPEG), step_seconds=1)


def report(rate: float, p95_ms: float, late_share: float) -> load.LoadReport:
    plan = load.LoadPlan.constant(rate, 1)
    return load.LoadReport(plan, numpy.zeros(10), numpy.full(10, p95_ms), (load.ANSWERED,) * 10, late_share)


def test_the_knee_is_the_highest_rate_that_held_and_says_when_the_generator_was_the_limit(monkeypatch) -> None:
    target = load.endpoint_target("dogs", JPEG)

    def knee_of(holds_below: float, late_above: float) -> load.Knee:
        def run_load(_target: load.Target, plan: load.LoadPlan, **_: object) -> load.LoadReport:
            rate = plan.peak_rps
            return report(rate, 10 if rate <= holds_below else 1000, 0.5 if rate > late_above else 0.0)

        monkeypatch.setattr(load, "run_load", run_load)
        return load.find_knee(target)

    knee = knee_of(190, late_above=1e9)
    assert knee.max_rps == 187.5  # between 100, that held, and 200, halved three times
    assert not knee.is_generator_limited
    knee = knee_of(1e9, late_above=150)
    assert (knee.max_rps, knee.p95_ms) == (200, 10)
    assert knee.is_generator_limited
    assert "may take more" in knee._repr_html_()


@pytest.mark.parametrize(
    ("payload", "outcome"),
    [
        (b'{"statusCode": 200}', load.ANSWERED),
        (b'{"statusCode": "200"}', load.ANSWERED),
        (b'{"statusCode": "503"}', load.THROTTLED),
        (b'{"statusCode": 404}', "status 404"),
        (b'{"statusCode": [1]}', "status [1]"),
        (b"[1]", load.ANSWERED),
        (b"not JSON", "JSONDecodeError"),
    ],
)
def test_every_answer_of_a_function_has_an_outcome(payload, outcome) -> None:
    caller = SimpleNamespace(invoke=lambda **_: {"Payload": io.BytesIO(payload)})
    written = io.StringIO()
    target = {"name": "f", "extra": {}}
    load_sender.Sender(lambda: load_sender._invoke_function(caller, target, b""), 1, written).run([0.0], time.time())
    (row,) = [row for line in written.getvalue().splitlines() for row in json.loads(line)]
    assert row[3] == outcome


@pytest.mark.parametrize(
    ("plan", "seconds", "requests"),
    [
        (load.LoadPlan.constant(10, 3), 3, 30),
        (load.LoadPlan.ramp(10, 2, hold_seconds=1), 5, 30),
        (load.LoadPlan.staircase([1, 2, 3], 2), 6, 12),
        (load.LoadPlan(((0.5, 0.5, 1), (0.5, 0.5, 1))), 2, 1),
    ],
)
def test_a_plan_says_when_each_request_is_due(plan, seconds, requests) -> None:
    due = plan.due_seconds()
    assert plan.seconds == seconds
    assert len(due) == requests
    assert due == sorted(due)
    assert 0 <= due[0] <= due[-1] <= seconds + 1e-9


def test_a_ramp_is_as_dense_as_its_rate() -> None:
    due = load.LoadPlan(((0, 100, 10),)).due_seconds()
    for second in range(10):
        count = sum(second <= moment < second + 1 for moment in due)
        assert abs(count - (10 * second + 5)) <= 1


@pytest.mark.parametrize("steps", [((-1, 1, 1),), ((1, 1, 0),), ((float("inf"), 1, 1),), ((1e6, 1e6, 3600),)])
def test_no_such_load(steps) -> None:
    with pytest.raises(ConfigurationError):
        load.LoadPlan(steps)


def test_scaling_and_alarms_from_made_to_gone(run, endpoint) -> None:
    resource = scaling.ensure_scaling(run, ScalingSpec(1, 2, 600), endpoint_name=endpoint)
    assert scaling.ensure_scaling(run, ScalingSpec(1, 3, 600), endpoint_name=endpoint) == resource
    states = scaling.scaling_alarms(endpoint)
    assert {name.split("-")[1] for name in states} and len(states) == 2
    alarm = monitoring.ensure_alarm(run, "errors", monitoring.AlarmRule(), endpoint_name=endpoint)
    assert monitoring.alarm_exists(alarm)
    assert {"alarm", "scalable-target"} <= {found.kind for found in find_leftovers(run)}
    assert KINDS["scalable-target"].find(run.name_prefix) == [resource]
    assert KINDS["alarm"].find(run.name_prefix) == [alarm]
    autoscaling = client("application-autoscaling")
    autoscaling.register_scalable_target(**scaling._named(resource), MinCapacity=2, MaxCapacity=2)
    wait_for_instances(endpoint, 2)
    activities = scaling.scaling_activities(endpoint)
    assert activities[-1].instances == 2
    begin = activities[0].started - timedelta(seconds=1)
    assert [count for _, count in scaling.instance_timeline(activities, begin, 1)] == [1, 2]
    assert sweep(run).leftovers == ()
    assert not scaling.target_exists(resource)
    assert not monitoring.alarm_states([*states, alarm])


def wait_for_instances(endpoint: str, count: int) -> None:
    client("sagemaker").get_waiter("endpoint_in_service").wait(EndpointName=endpoint, WaiterConfig={"Delay": 1})
    (variant,) = client("sagemaker").describe_endpoint(EndpointName=endpoint)["ProductionVariants"]
    assert variant["CurrentInstanceCount"] == count


def put_other_model(run: Run, word: str, inference: str) -> str:
    return put_model(storage.ensure_bucket(run), f"{word}.tar.gz", **{"code/inference.py": inference})


def test_another_model_takes_over(run, endpoint) -> None:
    other = put_other_model(run, "other", INFERENCE.replace('"Affenpinscher", "Beagle"', '"Poodle", "Beagle"'))
    looks: list[deployments.ShiftProgress] = []
    shift = ShiftSpec("all_at_once", wait_seconds=0)
    deployments.shift_model(run, endpoint, model_uri=other, shift=shift, on_progress=looks.append)
    assert looks[-1].status == "InService"
    assert classify(endpoint, JPEG).label == "Poodle"


def test_a_model_that_does_not_start_is_taken_back(run, endpoint) -> None:
    broken = put_other_model(run, "broken", "raise RuntimeError('this model is broken')")
    with pytest.raises(DeploymentRolledBack, match="ping health check"):
        deployments.shift_model(run, endpoint, model_uri=broken, shift=ShiftSpec("all_at_once", wait_seconds=0))
    assert classify(endpoint, JPEG).label == "Affenpinscher"
    assert [found.identifier for found in find_leftovers(run) if found.kind == "model"] == [endpoint]


def test_an_alarm_that_is_not_there_is_refused_before_anything_changes(run, endpoint, model_uri) -> None:
    with pytest.raises(AwsError, match="alarm"):
        deployments.shift_model(run, endpoint, model_uri=model_uri, shift=ShiftSpec(alarms=("nobody",)))
    assert [found.identifier for found in find_leftovers(run) if found.kind == "model"] == [endpoint]


def test_a_copy_of_a_model_has_another_file_and_the_rest_as_it_was(run, model_uri) -> None:
    spoiled = INFERENCE + "\ndef predict_fn(photo, model):\n    raise RuntimeError('spoiled')\n"
    uri = with_file(model_uri, "code/inference.py", spoiled.encode(), key="spoiled.tar.gz")
    assert model_metrics(uri) == model_metrics(model_uri)
    role = roles.ensure_execution_role(run, run.name("data"))
    name = endpoints.deploy_model(run, EndpointSpec(container="pytorch"), model_uri=uri, role=role)
    with pytest.raises(AwsError, match="spoiled"):
        classify(name, JPEG)
    with pytest.raises(ModelRefused, match="holds no nothing"):
        with_file(model_uri, "nothing", b"", key="x.tar.gz")
