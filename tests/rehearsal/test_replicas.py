"""Replicas behind one address: they share the load, and only what a dead one held is lost."""

import logging
import os
import random
import signal
import time
from collections.abc import Iterable

import boto3

from tests.rehearsal.serving import settled, until
from tests.rehearsal.test_endpoints import ask, create_config, deploy, make_model  # noqa: F401 - fixtures
from tests.rehearsal.traffic import Traffic

logger = logging.getLogger(__name__)

ROUNDS = int(os.environ.get("KILL_ROUNDS", "2"))
"""Two of three replicas are killed in each; KILL_ROUNDS=180 takes about a minute, --log-cli-level=INFO tells."""
SLOW = """
import os, time

def model_fn(model_dir): return os.getpid()
def input_fn(body, content_type): return body
def predict_fn(data, model): time.sleep(0.02); return model
def output_fn(prediction, accept): return str(prediction)
"""


def counted(name: str) -> int:
    """Return how many instances are in service."""
    [variant] = boto3.client("sagemaker").describe_endpoint(EndpointName=name)["ProductionVariants"]
    return variant["CurrentInstanceCount"]


def test_replicas_share_the_load_and_only_what_a_killed_one_held_is_lost(deploy, make_model):  # noqa: F811
    name = deploy(make_model({"code/inference.py": SLOW}), InitialInstanceCount=3)
    kills: dict[int, tuple[float, float]] = {}  # before and after each: this thread may have to wait in between
    with Traffic(name) as traffic:
        for _ in range(ROUNDS):
            serving = until(lambda: replicas(traffic, kills))
            for pid in random.sample(serving, 2):
                before = time.monotonic()
                os.kill(pid, signal.SIGKILL)
                kills[pid] = before, time.monotonic()
        until(lambda: replicas(traffic, kills))
    assert counted(name) == 3
    logger.info("%d kills, %d of %d requests failed", len(kills), len(traffic.failures), len(traffic.attempts))
    assert len(traffic.answers) == 3 + 2 * ROUNDS
    for failure in traffic.failures:
        assert failure.error == "ModelError"
        held = [pid for pid, (before, after) in kills.items() if failure.started < after and before < failure.ended]
        assert held, failure
    assert len(traffic.failures) <= 6 * ROUNDS  # the requests under way when the replicas were killed


def replicas(traffic: Traffic, killed: Iterable[int]) -> list[int] | None:
    """Return the processes that have answered and were not killed, once there are three."""
    pids = sorted({int(answer) for answer in traffic.answers} - set(killed))
    return pids if len(pids) == 3 else None


def test_an_update_keeps_the_variants_properties_and_no_request_fails(deploy, make_model):  # noqa: F811
    sagemaker = boto3.client("sagemaker")
    name = deploy(make_model({"code/inference.py": SLOW}))
    following = make_model({"code/inference.py": SLOW.replace("return os.getpid()", "return 'new'")})
    create_config(f"{name}-2", following, InitialVariantWeight=0.5)
    with Traffic(name, threads=3) as traffic:
        sagemaker.update_endpoint_weights_and_capacities(
            EndpointName=name,
            DesiredWeightsAndCapacities=[
                {"VariantName": "AllTraffic", "DesiredInstanceCount": 2, "DesiredWeight": 3.0}
            ],
        )
        settled(name)
        sagemaker.update_endpoint(
            EndpointName=name,
            EndpointConfigName=f"{name}-2",
            RetainAllVariantProperties=True,
            ExcludeRetainedVariantProperties=[{"VariantPropertyType": "DesiredWeight"}],
        )
        [variant] = settled(name)["ProductionVariants"]
        until(lambda: traffic.attempts[-1].answer == "new")
    assert (variant["DesiredInstanceCount"], variant["CurrentWeight"]) == (2, 0.5)
    assert traffic.failures == []
    sagemaker.delete_endpoint_config(EndpointConfigName=f"{name}-2")
