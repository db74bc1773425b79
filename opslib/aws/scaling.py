"""Application Auto Scaling of an endpoint: a target, a policy, and what they did.

Source: docs.aws.amazon.com/sagemaker/latest/dg/endpoint-auto-scaling.html
"""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
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


class InstanceWatch:
    """Looks at how many instances a variant has, at most once a second, and keeps what it saw.

    It can be the `on_progress` of `load.run_load`, whatever that tells it.

    Attributes:
        looks: CloudWatch's time, instances in service, and instances wanted, the oldest first.
    """

    def __init__(self, endpoint_name: str, variant: str = VARIANT, *, every_seconds: float = 1.0) -> None:
        """Look at nothing yet."""
        self.looks: list[tuple[datetime, int, int]] = []
        self._names = endpoint_name, variant
        self._every_seconds, self._looked = every_seconds, 0.0

    def __call__(self, _progress: object = None) -> None:
        """Look, unless the last look was a moment ago.

        Raises:
            AwsError: AWS refused.
        """
        if time.monotonic() - self._looked < self._every_seconds:
            return
        self._looked = time.monotonic()
        endpoint_name, variant = self._names
        with explained(f"looking at endpoint {endpoint_name}"):
            reply = client("sagemaker").describe_endpoint(EndpointName=endpoint_name)
        now = parsedate_to_datetime(reply["ResponseMetadata"]["HTTPHeaders"]["date"])
        found = next(one for one in reply["ProductionVariants"] if one["VariantName"] == variant)
        self.looks.append((now, found["CurrentInstanceCount"], found["DesiredInstanceCount"]))

    def wait_for(self, instances: int, *, at_most_seconds: float) -> bool:
        """Look on until so many instances are in service and no others wanted; return whether it came to that.

        Args:
            instances: How many.
            at_most_seconds: How long to wait, on the wall.
        """
        deadline = time.monotonic() + at_most_seconds
        while time.monotonic() < deadline:
            self()
            if self.looks[-1][1:] == (instances, instances):
                return True
            time.sleep(self._every_seconds)
        return False


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
    """Return when how many instances were asked for: `begin` with `instances`, then each change not refused."""
    asked = [one for one in activities if one.instances and one.status != "Failed" and one.started >= begin]
    changes = [(one.started, one.instances) for one in asked]
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
    # Not filtered by AWS: it takes a dimension only together with resources.
    with explained("listing scalable targets"):
        pages = client("application-autoscaling").get_paginator("describe_scalable_targets").paginate(
            ServiceNamespace=_NAMESPACE, **chosen
        )  # fmt: skip
        found = [target for page in pages for target in page["ScalableTargets"]]
    return [target["ResourceId"] for target in found if target["ScalableDimension"] == DIMENSION]


def _named(resource: str) -> dict[str, str]:
    return {"ServiceNamespace": _NAMESPACE, "ResourceId": resource, "ScalableDimension": DIMENSION}


def _activity(found: dict[str, Any]) -> ScalingActivity:
    reasons = tuple(reason["Code"] for reason in found.get("NotScaledReasons", []))
    return ScalingActivity(found["StartTime"], found["StatusCode"], found["Description"], found["Cause"], reasons)
