"""Versions, aliases and provisioned concurrency: kept ready, spilled over, scaled."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import boto3
import pytest
from botocore.exceptions import ClientError

from opslib.rehearsal.functions.concurrency import Throttled
from opslib.rehearsal.functions.provisioned import ProvisionedEnvironments
from tests.rehearsal.serving import is_running, pack_function, until
from tests.rehearsal.test_function_concurrency import GATED, sums
from tests.rehearsal.test_functions import functions, invoke, make_function, updated  # noqa: F401 - fixtures

KIND = """
import os
def handler(event, context):
    return {"kind": os.environ["AWS_LAMBDA_INITIALIZATION_TYPE"], "pid": os.getpid(), "version": VERSION}
"""


@pytest.fixture
def published(functions, make_function):  # noqa: F811
    """The name of a function whose alias `live` stands for its version 1."""

    def publish(source: str, **settings) -> str:
        name = make_function(source, **settings)
        version = functions.publish_version(FunctionName=name)["Version"]
        functions.create_alias(FunctionName=name, Name="live", FunctionVersion=version)
        return name

    return publish


def provision(functions, name: str, count: int, qualifier: str = "live") -> dict:  # noqa: F811
    return functions.put_provisioned_concurrency_config(
        FunctionName=name, Qualifier=qualifier, ProvisionedConcurrentExecutions=count
    )


def ended(functions, name: str, qualifier: str = "live") -> dict:  # noqa: F811
    """Return the configuration once it is no longer IN_PROGRESS."""

    def look() -> dict | None:
        found = functions.get_provisioned_concurrency_config(FunctionName=name, Qualifier=qualifier)
        return found if found["Status"] != "IN_PROGRESS" else None

    return until(look)


def test_what_is_provisioned_starts_warm_and_the_rest_spills_over(functions, published, tmp_path):  # noqa: F811
    name = published(GATED, Timeout=60)
    functions.put_function_concurrency(FunctionName=name, ReservedConcurrentExecutions=3)
    begun = provision(functions, name, 2)
    assert (begun["Status"], begun["RequestedProvisionedConcurrentExecutions"]) == ("IN_PROGRESS", 2)
    ready = ended(functions, name)
    assert (ready["Status"], ready["AvailableProvisionedConcurrentExecutions"]) == ("READY", 2)
    with ThreadPoolExecutor(3) as threads:
        event = {"gate": str(tmp_path)}
        asked = [threads.submit(invoke, functions, name, event, Qualifier="live", LogType="Tail") for _ in range(3)]
        until(lambda: len(list(tmp_path.iterdir())) == 3)
        with pytest.raises(functions.exceptions.TooManyRequestsException):
            functions.invoke(FunctionName=name, Qualifier="live")
        (tmp_path / "open").touch()
        pids = {one.result()["Payload"]["pid"] for one in asked}
    assert len(pids) == 3
    resource = {"Resource": f"{name}:live"}
    assert sums(name, "ProvisionedConcurrencyInvocations", "Sum", **resource) == 2
    assert sums(name, "ProvisionedConcurrencySpilloverInvocations", "Sum", **resource) == 1
    assert sums(name, "ProvisionedConcurrencyUtilization", "Maximum", **resource) == 1
    functions.delete_provisioned_concurrency_config(FunctionName=name, Qualifier="live")
    assert sum(is_running(pid) for pid in pids) == 1  # the one on demand stays warm
    with pytest.raises(functions.exceptions.ProvisionedConcurrencyConfigNotFoundException):
        functions.get_provisioned_concurrency_config(FunctionName=name, Qualifier="live")


def test_provisioned_environments_follow_their_alias(functions, published):  # noqa: F811
    name = published(KIND.replace("VERSION", "1"))
    provision(functions, name, 1)
    ended(functions, name)
    old = invoke(functions, name, Qualifier="live")["Payload"]
    assert (old["kind"], old["version"]) == ("provisioned-concurrency", 1)
    assert invoke(functions, name)["Payload"]["kind"] == "on-demand"
    functions.update_function_code(FunctionName=name, ZipFile=pack_function(KIND.replace("VERSION", "2")))
    updated(functions, name)
    assert functions.publish_version(FunctionName=name)["Version"] == "2"
    functions.update_alias(FunctionName=name, Name="live", FunctionVersion="2")
    assert ended(functions, name)["Status"] == "READY"
    new = invoke(functions, name, Qualifier="live")["Payload"]
    assert (new["kind"], new["version"]) == ("provisioned-concurrency", 2)
    assert not is_running(old["pid"])
    [listed] = functions.list_provisioned_concurrency_configs(FunctionName=name)["ProvisionedConcurrencyConfigs"]
    assert listed["FunctionArn"].endswith(f":{name}:live")
    weights = {"AdditionalVersionWeights": {"1": 1.0}}
    functions.update_alias(FunctionName=name, Name="live", RoutingConfig=weights)
    assert invoke(functions, name, Qualifier="live")["Payload"]["version"] == 1
    functions.delete_alias(FunctionName=name, Name="live")
    assert not is_running(new["pid"])


def test_what_cannot_be_provisioned(functions, published):  # noqa: F811
    name = published("raise ValueError('broken')")
    provision(functions, name, 1)
    failed = ended(functions, name)
    assert (failed["Status"], failed["StatusReason"]) == ("FAILED", "FUNCTION_ERROR_INIT_FAILURE")
    for qualifier, count, words in [
        ("$LATEST", 1, "cannot be applied to unpublished function versions"),
        ("1", 1, "Version is pointed by a Provisioned Concurrency alias"),
        ("live", 901, r"below its minimum value of \[100\]"),
        ("nothing", 1, "Function not found"),
    ]:
        with pytest.raises(ClientError, match=words):
            provision(functions, name, count, qualifier)
    functions.put_function_concurrency(FunctionName=name, ReservedConcurrentExecutions=1)
    with pytest.raises(ClientError, match="should not be greater than the reservedConcurrentExecution"):
        provision(functions, name, 2)
    with pytest.raises(ClientError, match="should not be lower than function's total provisioned concurrency"):
        functions.put_function_concurrency(FunctionName=name, ReservedConcurrentExecutions=0)
    with pytest.raises(functions.exceptions.ResourceConflictException, match="Alias already exists"):
        functions.create_alias(FunctionName=name, Name="live", FunctionVersion="1")


def test_an_environment_that_cannot_be_started_is_told_and_asked_for_again():
    def build():
        if failures:
            raise failures.pop()
        return SimpleNamespace(prepare=lambda: "", has_exited=False, close=lambda: None)

    failures = [Throttled("no memory"), OSError("too many open files")]
    provisioned, reasons = ProvisionedEnvironments("1", build), []
    for _ in range(2):
        provisioned.resize(1)
        until(lambda: provisioned.status == "FAILED")
        reasons.append(provisioned.describe()["StatusReason"])
    assert "OSError: too many open files" in reasons[0]
    assert "memory" in reasons[1]
    provisioned.resize(1)
    until(lambda: provisioned.status == "READY")
    assert provisioned.available == 1


def test_auto_scaling_sets_what_is_provisioned(functions, published):  # noqa: F811
    name = published(KIND.replace("VERSION", "1"))
    scaling = boto3.client("application-autoscaling")
    target = {
        "ServiceNamespace": "lambda",
        "ResourceId": f"function:{name}:live",
        "ScalableDimension": "lambda:function:ProvisionedConcurrency",
    }
    scaling.register_scalable_target(**target, MinCapacity=1, MaxCapacity=2)
    scheduled = {"ScheduledActionName": "more", "ScalableTargetAction": {"MinCapacity": 2, "MaxCapacity": 2}}
    soon = datetime.now(UTC) + timedelta(seconds=2)
    scaling.put_scheduled_action(**target, **scheduled, Schedule=f"at({soon:%Y-%m-%dT%H:%M:%S})")
    until(lambda: requested(functions, name) == 2, 30)
    assert ended(functions, name)["Status"] == "READY"
    activities = scaling.describe_scaling_activities(ServiceNamespace="lambda", ResourceId=target["ResourceId"])
    assert "provisioned concurrency to 2" in activities["ScalingActivities"][0]["Description"]
    scaling.deregister_scalable_target(**target)


def requested(functions, name: str) -> int:  # noqa: F811
    found = functions.list_provisioned_concurrency_configs(FunctionName=name)["ProvisionedConcurrencyConfigs"]
    return found[0]["RequestedProvisionedConcurrentExecutions"] if found else 0
