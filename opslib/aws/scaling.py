"""Application Auto Scaling of an endpoint: a target, a policy, and what they did.

Source: docs.aws.amazon.com/sagemaker/latest/dg/endpoint-auto-scaling.html
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from opslib.aws.endpoints import VARIANT
from opslib.aws.failures import explained, gone_is_fine
from opslib.aws.ledger import Run
from opslib.aws.session import client
from opslib.specs import ScalingSpec

DIMENSION = "sagemaker:variant:DesiredInstanceCount"
METRIC = "SageMakerVariantInvocationsPerInstance"
POLICY_SUFFIX = "scaling"

_NAMESPACE = "sagemaker"
_COUNT = re.compile(r"Setting desired instance count to (\d+)\.")


@dataclass(frozen=True)
class ScalingActivity:
    """What Application Auto Scaling did, or why it did not: one activity, in its own words.

    Attributes:
        started: When.
        status: Successful, InProgress, Failed, Unfulfilled, Overridden, ...
        description: E.g. `Setting desired instance count to 3.`
        cause: E.g. `monitor alarm TargetTracking-... in state ALARM triggered policy ...`
        reasons: Codes of why it did not scale, e.g. `AlreadyAtMaxCapacity`.
    """

    started: datetime
    status: str
    description: str
    cause: str
    reasons: tuple[str, ...] = ()

    @property
    def instances(self) -> int | None:
        """The number of instances that was asked for; None when nothing was scaled."""
        found = _COUNT.search(self.description)
        return int(found.group(1)) if found else None


def scalable_resource(endpoint_name: str, variant: str = VARIANT) -> str:
    """Return how Application Auto Scaling names a variant."""
    return f"endpoint/{endpoint_name}/variant/{variant}"


def ensure_scaling(run: Run, spec: ScalingSpec, *, endpoint_name: str, variant: str = VARIANT) -> str:
    """Let an endpoint's variant scale by its requests per instance and minute; return the target's name.

    The policy can be changed by calling this again.

    Raises:
        AwsError: AWS refused, e.g. because there is no such variant.
    """
    resource = scalable_resource(endpoint_name, variant)
    run.record("scalable-target", resource)
    autoscaling, named = client("application-autoscaling"), _named(resource)
    with explained(f"making {resource} scale"):
        autoscaling.register_scalable_target(**named, MinCapacity=spec.min_instances, MaxCapacity=spec.max_instances)
        autoscaling.put_scaling_policy(
            **named,
            PolicyName=run.name(POLICY_SUFFIX),
            PolicyType="TargetTrackingScaling",
            TargetTrackingScalingPolicyConfiguration={
                "TargetValue": spec.target_invocations,
                "PredefinedMetricSpecification": {"PredefinedMetricType": METRIC},
                "ScaleOutCooldown": spec.scale_out_cooldown_seconds,
                "ScaleInCooldown": spec.scale_in_cooldown_seconds,
            },
        )
    return resource


def scaling_alarms(endpoint_name: str, variant: str = VARIANT) -> dict[str, str]:
    """Return the states of the alarms that AWS made for a variant's policies, by their names.

    Raises:
        AwsError: AWS refused.
    """
    from opslib.aws.monitoring import alarm_states

    with explained(f"looking at the policies of endpoint {endpoint_name}"):
        policies = client("application-autoscaling").describe_scaling_policies(
            **_named(scalable_resource(endpoint_name, variant))
        )["ScalingPolicies"]
    return alarm_states([alarm["AlarmName"] for policy in policies for alarm in policy.get("Alarms", [])])


def scaling_activities(endpoint_name: str, variant: str = VARIANT) -> list[ScalingActivity]:
    """Return what scaling did to a variant in the last six weeks, the oldest first.

    Raises:
        AwsError: AWS refused.
    """
    with explained(f"looking at the scaling of endpoint {endpoint_name}"):
        pages = client("application-autoscaling").get_paginator("describe_scaling_activities").paginate(
            **_named(scalable_resource(endpoint_name, variant)), IncludeNotScaledActivities=True
        )  # fmt: skip
        found = [_activity(one) for page in pages for one in page["ScalingActivities"]]
    return sorted(found, key=lambda activity: activity.started)


def instance_timeline(activities: Sequence[ScalingActivity], begin: datetime, instances: int) -> list[tuple[Any, int]]:
    """Return when how many instances were asked for: `begin` with `instances`, then each change."""
    changes = [(one.started, one.instances) for one in activities if one.instances and one.started >= begin]
    return [(begin, instances), *changes]


def target_exists(resource: str) -> bool:
    """Tell whether a variant is registered as a scalable target.

    Raises:
        AwsError: AWS refused.
    """
    return resource in _targets(ResourceIds=[resource])


def list_targets(prefix: str) -> list[str]:
    """Return the scalable targets of the endpoints whose names begin with `prefix`.

    Raises:
        AwsError: AWS refused.
    """
    return [resource for resource in _targets() if resource.startswith(f"endpoint/{prefix}")]


def delete_scaling(resource: str) -> None:
    """Deregister a scalable target, its policies and their alarms with it; succeeds when it is already gone.

    Raises:
        AwsError: AWS refused.
    """
    with explained(f"ending the scaling of {resource}"), gone_is_fine():
        client("application-autoscaling").deregister_scalable_target(**_named(resource))


def _targets(**chosen: Any) -> list[str]:
    with explained("listing scalable targets"):
        pages = client("application-autoscaling").get_paginator("describe_scalable_targets").paginate(
            ServiceNamespace=_NAMESPACE, ScalableDimension=DIMENSION, **chosen
        )  # fmt: skip
        return [target["ResourceId"] for page in pages for target in page["ScalableTargets"]]


def _named(resource: str) -> dict[str, str]:
    return {"ServiceNamespace": _NAMESPACE, "ResourceId": resource, "ScalableDimension": DIMENSION}


def _activity(found: dict[str, Any]) -> ScalingActivity:
    reasons = tuple(reason["Code"] for reason in found.get("NotScaledReasons", []))
    return ScalingActivity(found["StartTime"], found["StatusCode"], found["Description"], found["Cause"], reasons)
