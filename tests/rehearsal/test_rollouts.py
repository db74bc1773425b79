"""Updates that shift the traffic step by step, and variants that share it."""

import time
from collections import Counter
from unittest.mock import Mock

import boto3
import pytest
from botocore.exceptions import ClientError

from opslib.rehearsal.calls import ServiceError
from opslib.rehearsal.endpoints.hosting import Hosting, HostingSettings, Variant
from opslib.rehearsal.endpoints.rollout import plan_rollout
from tests.rehearsal.serving import IMAGE, settled, until
from tests.rehearsal.test_endpoints import create_config, deploy, make_model  # noqa: F401 - fixtures
from tests.rehearsal.traffic import Traffic

SAYS = """
def model_fn(model_dir): return "{word}"
def input_fn(body, content_type): return body
def predict_fn(data, model): return model if model != "bad" else 1 / 0
def output_fn(prediction, accept): return prediction
"""


def shifting(kind: str, *, percent: int = 10, wait: int = 60, final: int = 0, alarms: tuple[str, ...] = ()) -> dict:
    """Return a DeploymentConfig."""
    sizes = {"CANARY": "CanarySize", "LINEAR": "LinearStepSize"}
    routing = {"Type": kind, "WaitIntervalInSeconds": wait}
    if kind in sizes:
        routing[sizes[kind]] = {"Type": "CAPACITY_PERCENT", "Value": percent}
    config = {"BlueGreenUpdatePolicy": {"TrafficRoutingConfiguration": routing, "TerminationWaitInSeconds": final}}
    if alarms:
        config["AutoRollbackConfiguration"] = {"Alarms": [{"AlarmName": name} for name in alarms]}
    return config


def test_the_steps_are_those_of_the_deployment_configuration():
    def steps(config: dict, instances: int = 4) -> list[tuple[float, float]]:
        return [(round(step.share, 6), step.bake_seconds) for step in plan_rollout(config, instances).steps]

    assert steps({}) == [(1, 0)]
    assert steps(shifting("ALL_AT_ONCE", final=300)) == [(1, 300)]
    assert steps(shifting("CANARY", percent=10, final=30)) == [(0.1, 60), (1, 30)]
    assert steps(shifting("LINEAR", percent=30)) == [(0.3, 60), (0.6, 60), (0.9, 60), (1, 0)]
    assert steps(shifting("LINEAR", percent=50)) == [(0.5, 60), (1, 0)]
    size = {"Type": "CAPACITY_PERCENT", "Value": 50}
    assert steps({"RollingUpdatePolicy": {"MaximumBatchSize": size, "WaitIntervalInSeconds": 9}}) == [(0.5, 9), (1, 9)]
    by_count = shifting("CANARY")
    by_count["BlueGreenUpdatePolicy"]["TrafficRoutingConfiguration"]["CanarySize"] = {
        "Type": "INSTANCE_COUNT",
        "Value": 1,
    }
    assert steps(by_count) == [(0.25, 60), (1, 0)]
    for refused in (by_count, shifting("CANARY", percent=60), shifting("LINEAR", percent=5)):
        with pytest.raises(ServiceError, match="50%"):
            plan_rollout(refused, 1)


def test_a_canary_gets_its_share_and_then_everything(deploy, make_model):  # noqa: F811
    sagemaker, name = boto3.client("sagemaker"), deploy(make_model({"code/inference.py": SAYS.format(word="old")}))
    create_config(f"{name}-2", make_model({"code/inference.py": SAYS.format(word="new")}))
    with pytest.raises(ClientError, match="Could not find CloudWatch alarm"):
        sagemaker.update_endpoint(
            EndpointName=name,
            EndpointConfigName=f"{name}-2",
            DeploymentConfig=shifting("CANARY", alarms=("nothing",)),
        )
    config = shifting("CANARY", percent=20, wait=2)
    with Traffic(name, threads=2) as traffic:
        sagemaker.update_endpoint(EndpointName=name, EndpointConfigName=f"{name}-2", DeploymentConfig=config)
        pending = until(lambda: baking(name))
        began = ended = time.monotonic()
        while (asked := time.monotonic()) and baking(name):
            ended = asked
        description = settled(name)
        until(lambda: [attempt.answer for attempt in traffic.attempts[-5:]] == ["new"] * 5)
    assert pending["EndpointConfigName"] == description["EndpointConfigName"] == f"{name}-2"
    assert description["LastDeploymentConfig"] == config
    canary = [attempt.answer for attempt in traffic.attempts if began < attempt.started and attempt.ended < ended]
    assert 0 < canary.count("new") <= 0.2 * len(canary) + 2  # those that were under way when it was counted
    assert traffic.failures == []
    sagemaker.delete_endpoint_config(EndpointConfigName=f"{name}-2")


def baking(name: str) -> dict | None:
    """Return the summary of an update whose instances get a part of the traffic."""
    summary = boto3.client("sagemaker").describe_endpoint(EndpointName=name).get("PendingDeploymentSummary")
    is_baking = summary and summary["ProductionVariants"][0]["VariantStatus"][0]["Status"] == "Baking"
    return summary if is_baking else None


def test_each_variant_gets_exactly_the_share_of_its_weight():
    weights = {"A": 0.5, "B": 0.3, "C": 0.2, "D": 0.0}
    variants = [Variant(name, weight, IMAGE, Mock(), Mock()) for name, weight in weights.items()]
    hosting = Hosting(variants, HostingSettings("config"), Mock())
    counted = Counter(hosting.choose().name for _ in range(1000))
    assert counted == {"A": 500, "B": 300, "C": 200}
    for variant in variants:
        variant.weight = 0.0
    assert set(Counter(hosting.choose().name for _ in range(8)).values()) == {2}
