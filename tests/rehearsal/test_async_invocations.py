import threading
from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from opslib.rehearsal.calls import Call, ServiceError
from opslib.rehearsal.clock import Clock
from opslib.rehearsal.endpoints.async_invocations import AsyncInvocations, check_async
from opslib.rehearsal.endpoints.backlogs import Backlog, BacklogWork, QueuedRequest
from opslib.rehearsal.monitoring.extension import Metric
from opslib.rehearsal.site import Site
from tests.rehearsal.serving import until


class Worker:
    """Work that waits for a gate, and remembers what it saw."""

    def __init__(self, clock: Clock, instances: int, per_instance: int) -> None:
        self.instances, self.gate = instances, threading.Event()
        self.begun, self.expired, self.samples = [], [], []
        work = BacklogWork(
            lambda: (self.instances, per_instance), self.perform, self.expired.append, self.samples.append
        )
        self.clock, self.backlog = clock, Backlog(clock, work)

    def perform(self, request: QueuedRequest) -> None:
        self.begun.append(request.inference_id)
        self.gate.wait(20)

    def put(self, name: str, ttl_seconds: float = 3600) -> None:
        now = self.clock.time()
        call = Call("sagemaker-runtime", "InvokeEndpointAsync", {}, None, "us-east-1", name)
        self.backlog.put(QueuedRequest(call, name, None, None, now, now + ttl_seconds))


@pytest.fixture
def hire():
    """Return a function that makes a worker with a backlog of its own."""
    made = []

    def make(speed: float = 1.0, *, instances: int = 1, per_instance: int = 1) -> Worker:
        made.append(Worker(Clock(speed), instances, per_instance))
        return made[-1]

    yield make
    for worker in made:
        worker.gate.set()
        worker.backlog.close()


def test_an_instance_works_on_so_many_at_once_and_the_others_wait_in_order(hire):
    worker = hire(600, instances=1, per_instance=2)
    for name in ("a", "b", "c", "d"):
        worker.put(name)
    until(lambda: len(worker.begun) == 2)
    sample = until(lambda: next((one for one in worker.samples if one.size == 4), None))
    assert (sample.instances, set(worker.begun)) == (1, {"a", "b"})
    assert sample.oldest_seconds >= 0
    worker.instances = 2
    until(lambda: len(worker.begun) == 4)
    worker.gate.set()
    until(lambda: worker.samples[-1].size == 0)


def test_what_waits_longer_than_its_time_to_live_expires_on_the_rehearsals_clock(hire):
    worker = hire(600, instances=0)
    worker.put("patient")
    worker.put("impatient", ttl_seconds=60)
    until(lambda: worker.expired)
    assert [request.inference_id for request in worker.expired] == ["impatient"]
    assert worker.begun == []
    worker.instances = 1
    until(lambda: worker.begun == ["patient"])


class Recorder:
    """Takes the place of CloudWatch, and keeps the latest value of each metric."""

    def __init__(self) -> None:
        self.latest = {}

    def gauge(self, metric: Metric, value: float, unit: str = "None") -> None:
        assert metric.dimensions == (("EndpointName", "dogs"),)
        assert unit in {"Count", "Seconds"}
        self.latest[metric.name] = value


def test_the_backlog_is_told_as_aws_tells_it_and_weighs_as_much_as_the_time_that_is_skipped(tmp_path):
    fleet, recorder = SimpleNamespace(healthy_count=0), Recorder()
    hosting = SimpleNamespace(async_config={"OutputConfig": {}}, variants={"all": SimpleNamespace(fleet=fleet)})
    queues = AsyncInvocations(
        Site("", tmp_path, Clock(600), recorder), lambda *_: hosting, lambda *_: nullcontext(None)
    )
    call = Call(
        "sagemaker-runtime", "InvokeEndpointAsync", {"EndpointName": "dogs", "Body": b"x"}, None, "eu-west-1", "1"
    )
    queues.watch("eu-west-1", "dogs")
    until(lambda: recorder.latest.get("HasBacklogWithoutCapacity") == 0)
    queues.invoke_endpoint_async(call)
    until(lambda: recorder.latest["HasBacklogWithoutCapacity"] == 1)
    assert recorder.latest["ApproximateBacklogSize"] == 600
    until(lambda: recorder.latest["ApproximateAgeOfOldestRequest"] > 0)
    assert "ApproximateBacklogSizePerInstance" not in recorder.latest
    fleet.healthy_count = 2
    until(lambda: recorder.latest.get("ApproximateBacklogSizePerInstance") == 0)
    queues.stop()


@pytest.mark.parametrize(
    ("output", "more", "words"),
    [
        ({}, {"ProductionVariants": [{"ServerlessConfig": {}}]}, "serverless"),
        ({}, {"DataCaptureConfig": {"EnableCapture": True}}, "Data capture"),
    ],
)
def test_what_cannot_be_had_asynchronously_is_refused(output, more, words):
    params = {"ProductionVariants": [{}], "AsyncInferenceConfig": {"OutputConfig": output}}
    with pytest.raises(ServiceError, match=words):
        check_async(params | more)
    check_async({"ProductionVariants": [{}]})
