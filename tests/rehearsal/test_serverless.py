import json
import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from opslib.rehearsal.calls import ServiceError
from opslib.rehearsal.endpoints.instances import ModelContainer, ModelNotServing
from opslib.rehearsal.endpoints.serverless import ServerlessFleet, check_serverless
from tests.rehearsal.serving import is_running, until

INFERENCE = """
import json, os, pathlib, time

def model_fn(model_dir):
    return os.getpid()

def predict_fn(data, model):
    if data.startswith(b"wait for "):
        while not pathlib.Path(data[9:].decode()).exists():
            time.sleep(0.01)
    if data == b"grow":
        held = b"x" * 400 * 2**20
        time.sleep(20)
    return model

def input_fn(body, content_type):
    return body

def output_fn(prediction, accept):
    return json.dumps(prediction), "application/json"
"""


@pytest.fixture
def build(tmp_path):
    """Return a function that builds a serverless fleet; `noted` of the fleet collects its metrics."""
    built = []

    def fetch_model(directory):
        (directory / "code").mkdir(parents=True)
        (directory / "code" / "inference.py").write_text(INFERENCE)

    def make(config: dict, **more) -> ServerlessFleet:
        container = ModelContainer(tmp_path, {}, fetch_model, lambda _: lambda _: None)
        noted = []
        fleet = ServerlessFleet(container, config, note=lambda *metric: noted.append(metric), **more)
        fleet.noted = noted
        built.append(fleet)
        fleet.start()
        return fleet

    yield make
    for fleet in built:
        fleet.close()


def ask(fleet: ServerlessFleet, body: bytes = b"photo") -> int:
    return json.loads(fleet.invoke(body, {"Content-Type": "image/jpeg", "Accept": "*/*"}).body)


def test_each_request_has_a_container_of_its_own_up_to_max_concurrency(build, tmp_path):
    fleet, gate = build({"MemorySizeInMB": 2048, "MaxConcurrency": 2}), tmp_path / "open"
    first = ask(fleet)
    assert ask(fleet) == first  # the warm one is used again
    with ThreadPoolExecutor(2) as pool:
        slow = [pool.submit(ask, fleet, f"wait for {gate}".encode()) for _ in range(2)]
        until(lambda: fleet.count == 2 and ("ServerlessConcurrentExecutionsUtilization", 1.0, "None") in fleet.noted)
        with pytest.raises(ServiceError) as caught:
            ask(fleet)
        gate.touch()
        assert len({one.result() for one in slow}) == 2
    assert (caught.value.code, caught.value.status) == ("ThrottlingException", 400)
    [setup] = [value for name, value, _ in fleet.noted if name == "ModelSetupTime"]
    assert setup > 0
    fleet.close()
    until(lambda: not is_running(first))


def test_nothing_runs_when_nobody_asks_but_what_is_provisioned(build, tmp_path):
    soon = {"idle_seconds": 0.3}
    fleet = build({"MemorySizeInMB": 2048, "MaxConcurrency": 2}, **soon)
    first = ask(fleet)
    until(lambda: not is_running(first))
    assert fleet.count == 0
    assert ask(fleet) != first
    gate = tmp_path / "open"
    kept = build({"MemorySizeInMB": 2048, "MaxConcurrency": 2, "ProvisionedConcurrency": 1}, **soon)
    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(ask, kept, f"wait for {gate}".encode()) for _ in range(2)]
        until(lambda: kept.count == 2)
        gate.touch()
        pids = {one.result() for one in asked}
    counted = [name.removeprefix("ServerlessProvisionedConcurrency") for name, value, _ in kept.noted if value == 1]
    assert counted.count("Invocations") == counted.count("SpilloverInvocations") == 1
    until(lambda: len([pid for pid in pids if is_running(pid)]) == 1)
    assert kept.count == 1
    kept.reconfigure({"MaxConcurrency": 3, "ProvisionedConcurrency": 2})
    assert kept.count == 2
    assert kept.describe()["CurrentServerlessConfig"]["MaxConcurrency"] == 3


def test_a_container_that_holds_more_than_its_memory_size_is_killed(build):
    fleet = build({"MemorySizeInMB": 300, "MaxConcurrency": 1})
    first = ask(fleet)
    with pytest.raises(ModelNotServing):
        ask(fleet, b"grow")
    until(lambda: not is_running(first))
    assert ask(fleet) not in {first, os.getpid()}


@pytest.mark.parametrize(
    ("config", "more", "words"),
    [
        ({"MemorySizeInMB": 1500, "MaxConcurrency": 2}, {}, "MemorySizeInMB"),
        ({"MemorySizeInMB": 2048, "MaxConcurrency": 2, "ProvisionedConcurrency": 3}, {}, "ProvisionedConcurrency"),
        ({"MemorySizeInMB": 2048, "MaxConcurrency": 2}, {"InstanceType": "ml.m5.large"}, "InstanceType"),
    ],
)
def test_a_configuration_that_aws_refuses_is_refused(config, more, words):
    with pytest.raises(ServiceError, match=words):
        check_serverless({"VariantName": "all", "ServerlessConfig": config, **more})
