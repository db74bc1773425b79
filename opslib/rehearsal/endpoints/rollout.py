"""How an update of an endpoint goes: its share of the traffic step by step, and the alarms that take it back.

Source: docs.aws.amazon.com/sagemaker/latest/dg/deployment-guardrails-blue-green.html and the service's model in
botocore. On AWS a share is made of instances; here it is a share of the requests, so that a canary of 10 % means the
same with one instance.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from opslib.rehearsal.calls import ServiceError

_DEFAULT_MAX_SECONDS = 28_800.0


@dataclass(frozen=True)
class Step:
    """A share of the traffic (0 to 1) for the new instances, and how long it bakes, on the rehearsal's clock."""

    share: float
    bake_seconds: float


@dataclass(frozen=True)
class Rollout:
    """The steps of an update, in order; the last one has the whole traffic."""

    steps: tuple[Step, ...] = (Step(1.0, 0.0),)
    alarms: tuple[str, ...] = ()
    max_seconds: float = _DEFAULT_MAX_SECONDS
    config: Mapping[str, Any] | None = None
    """The DeploymentConfig that it was made of."""


def plan_rollout(config: Mapping[str, Any] | None, instance_count: int) -> Rollout:
    """Return what a DeploymentConfig asks for, for new variants of so many instances.

    Raises:
        ServiceError: ValidationException; it contradicts itself, or cannot be rehearsed.
    """
    if not config:
        return Rollout()
    if "RollingUpdatePolicy" in config:
        raise _invalid("RollingUpdatePolicy cannot be rehearsed yet; use BlueGreenUpdatePolicy.")
    policy = config.get("BlueGreenUpdatePolicy", {})
    final_seconds = policy.get("TerminationWaitInSeconds", 0)
    routing = policy.get("TrafficRoutingConfiguration", {"Type": "ALL_AT_ONCE", "WaitIntervalInSeconds": 0})
    shares, wait_seconds = _shares(routing, instance_count), routing["WaitIntervalInSeconds"]
    steps = (*(Step(share, wait_seconds) for share in shares), Step(1.0, final_seconds))
    max_seconds = policy.get("MaximumExecutionTimeoutInSeconds", _DEFAULT_MAX_SECONDS)
    if max_seconds <= sum(step.bake_seconds for step in steps):
        raise _invalid(
            "MaximumExecutionTimeoutInSeconds must be larger than the total waiting time of "
            "TerminationWaitInSeconds and WaitIntervalInSeconds."
        )
    alarms = tuple(alarm["AlarmName"] for alarm in config.get("AutoRollbackConfiguration", {}).get("Alarms", []))
    return Rollout(steps, alarms, max_seconds, config)


def _shares(routing: Mapping[str, Any], instance_count: int) -> list[float]:
    """Return the shares of the traffic before the last step."""
    kind = routing["Type"]
    if kind == "ALL_AT_ONCE":
        return []
    name = "CanarySize" if kind == "CANARY" else "LinearStepSize"
    if name not in routing:
        raise _invalid(f"{name} must be specified for traffic routing of type {kind}.")
    size = routing[name]
    share = size["Value"] / (100 if size["Type"] == "CAPACITY_PERCENT" else instance_count)
    if share > 0.5:
        raise _invalid(f"{name} must be less than or equal to 50% of the variant's total instance count.")
    if kind == "CANARY":
        return [share]
    if share < 0.1:
        raise _invalid("LinearStepSize must be 10-50% of the variant's total instance count.")
    return [position * share for position in range(1, 11) if position * share < 0.9999]


def _invalid(message: str) -> ServiceError:
    return ServiceError("ValidationException", message)
