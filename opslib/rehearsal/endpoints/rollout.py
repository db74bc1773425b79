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
        if "BlueGreenUpdatePolicy" in config:
            raise _invalid("Only one update policy should be used in the deployment configuration.")
        policy = config["RollingUpdatePolicy"]
        steps = _rolling_steps(policy, instance_count)
    else:
        policy = config.get("BlueGreenUpdatePolicy", {})
        steps = _blue_green_steps(policy, instance_count)
    max_seconds = policy.get("MaximumExecutionTimeoutInSeconds", _DEFAULT_MAX_SECONDS)
    if max_seconds <= sum(step.bake_seconds for step in steps):
        raise _invalid(
            "MaximumExecutionTimeoutInSeconds must be larger than the total waiting time of "
            "TerminationWaitInSeconds and WaitIntervalInSeconds."
        )
    alarms = tuple(alarm["AlarmName"] for alarm in config.get("AutoRollbackConfiguration", {}).get("Alarms", []))
    return Rollout(steps, alarms, max_seconds, config)


def _blue_green_steps(policy: Mapping[str, Any], instance_count: int) -> tuple[Step, ...]:
    routing = policy.get("TrafficRoutingConfiguration", {"Type": "ALL_AT_ONCE", "WaitIntervalInSeconds": 0})
    kind, wait_seconds, shares = routing["Type"], routing["WaitIntervalInSeconds"], []
    if kind == "CANARY":
        shares = [_share(routing, "CanarySize", instance_count)]
    elif kind == "LINEAR":
        shares = _multiples(_share(routing, "LinearStepSize", instance_count, least_percent=10))
    final = Step(1.0, policy.get("TerminationWaitInSeconds", 0))
    return (*(Step(share, wait_seconds) for share in shares), final)


def _rolling_steps(policy: Mapping[str, Any], instance_count: int) -> tuple[Step, ...]:
    """Return the batches; the old instances all run to the end here, where AWS takes them away batch by batch."""
    share = _share(policy, "MaximumBatchSize", instance_count, least_percent=5)
    return tuple(Step(one, policy["WaitIntervalInSeconds"]) for one in (*_multiples(share), 1.0))


def _multiples(share: float) -> list[float]:
    """Return the shares in equal steps that come before the whole."""
    return [position * share for position in range(1, 21) if position * share < 0.9999]


def _share(settings: Mapping[str, Any], name: str, instance_count: int, least_percent: int = 0) -> float:
    """Return a CapacitySize as a share of the traffic.

    Raises:
        ServiceError: ValidationException; it is missing, too large or too small.
    """
    if name not in settings:
        raise _invalid(f"{name} must be specified for traffic routing of type {settings['Type']}.")
    size = settings[name]
    share = size["Value"] / (100 if size["Type"] == "CAPACITY_PERCENT" else instance_count)
    if share > 0.5:
        raise _invalid(f"{name} must be less than or equal to 50% of the variant's total instance count.")
    if share < least_percent / 100:
        raise _invalid(f"{name} must be {least_percent}-50% of the variant's total instance count.")
    return share


def _invalid(message: str) -> ServiceError:
    return ServiceError("ValidationException", message)
