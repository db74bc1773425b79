"""What is registered with Application Auto Scaling: scalable targets, their policies and their schedules."""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

from opslib.rehearsal.calls import ACCOUNT_ID, Call, ServiceError
from opslib.rehearsal.scaling.schedules import Schedule
from opslib.scaling_rules import Bounds, Cooldowns, StepScaling, TargetTracking

_ROLES = {"sagemaker": "SageMakerEndpoint", "lambda": "LambdaConcurrency"}
SUSPENSIONS = ("DynamicScalingInSuspended", "DynamicScalingOutSuspended", "ScheduledScalingSuspended")


class TargetKey(NamedTuple):
    """What names a scalable target."""

    region: str
    namespace: str
    resource_id: str
    dimension: str

    @classmethod
    def of(cls, call: Call) -> "TargetKey":
        """Return the target that a call names."""
        params = call.params
        return cls(call.region, params["ServiceNamespace"], params["ResourceId"], params["ScalableDimension"])

    def __str__(self) -> str:
        """Name it as AWS's errors do."""
        return (
            f"service namespace: {self.namespace}, resource ID: {self.resource_id}, "
            f"scalable dimension: {self.dimension}"
        )

    @property
    def members(self) -> dict[str, str]:
        """Return the members that name it in replies."""
        return {
            "ServiceNamespace": self.namespace,
            "ResourceId": self.resource_id,
            "ScalableDimension": self.dimension,
        }


@dataclass
class ScalingPolicy:
    """A policy as it was put, its rules, and the alarms that were put for it."""

    name: str
    arn: str
    params: Mapping[str, Any]
    rules: TargetTracking | StepScaling
    created: datetime
    high_alarm: str = ""
    low_alarm: str = ""

    @property
    def type_name(self) -> str:
        """TargetTrackingScaling or StepScaling."""
        return "TargetTrackingScaling" if isinstance(self.rules, TargetTracking) else "StepScaling"

    @property
    def configuration(self) -> dict[str, Any]:
        """Return its configuration as a member of replies."""
        name = f"{self.type_name}PolicyConfiguration"
        return {name: self.params[name]}

    @property
    def metric(self) -> Mapping[str, Any] | None:
        """What target tracking was told to watch; None for steps."""
        told = self.params.get("TargetTrackingScalingPolicyConfiguration", {})
        return told.get("PredefinedMetricSpecification") or told.get("CustomizedMetricSpecification")


@dataclass
class ScheduledAction:
    """An action that sets the bounds of a target at its times."""

    name: str
    arn: str
    params: Mapping[str, Any]
    schedule: Schedule
    created: datetime
    next_at: datetime | None = None

    def plan_next(self, now: datetime) -> None:
        """Find its next time; None when there is none before its end. A recurring one begins with its start time."""
        begin = self.params.get("StartTime", self.created)
        recurs = not self.schedule.expression.startswith("at(")
        planned = begin if recurs and begin > now else self.schedule.next_after(now, begin)
        end = self.params.get("EndTime")
        self.next_at = None if planned is None or (end is not None and planned > end) else planned

    def describe(self, key: TargetKey) -> dict[str, Any]:
        """Return what DescribeScheduledActions shows."""
        optional = ("Timezone", "StartTime", "EndTime", "ScalableTargetAction")
        return {
            "ScheduledActionName": self.name,
            "ScheduledActionARN": self.arn,
            "Schedule": self.schedule.expression,
            **key.members,
            **{name: self.params[name] for name in optional if name in self.params},
            "CreationTime": self.created,
        }


@dataclass
class ScalableTarget:
    """A resource whose capacity is scaled, between its bounds."""

    key: TargetKey
    created: datetime
    minimum: int | None = None
    maximum: int | None = None
    """Both are known once it is registered."""
    suspended: dict[str, bool] = field(default_factory=lambda: dict.fromkeys(SUSPENSIONS, False))
    tags: dict[str, str] = field(default_factory=dict)
    policies: dict[str, ScalingPolicy] = field(default_factory=dict)
    schedules: dict[str, ScheduledAction] = field(default_factory=dict)
    cooldowns: Cooldowns = field(default_factory=Cooldowns)
    acted_on: dict[str, datetime] = field(default_factory=dict)
    """Of each alarm the newest value that was acted on."""
    arn: str = ""
    is_unsettled: bool = False
    """Whether the bounds have changed, so that the capacity may be outside them."""

    def __post_init__(self) -> None:
        """Give it an ARN."""
        name = uuid.uuid4().hex[:34]
        self.arn = self.arn or (
            f"arn:aws:application-autoscaling:{self.key.region}:{ACCOUNT_ID}:scalable-target/{name}"
        )

    @property
    def bounds(self) -> Bounds:
        """The bounds and which directions are suspended."""
        return Bounds(
            self.minimum or 0,
            self.maximum or 0,
            is_out_suspended=self.suspended["DynamicScalingOutSuspended"],
            is_in_suspended=self.suspended["DynamicScalingInSuspended"],
        )

    @property
    def role_arn(self) -> str:
        """The service-linked role that AWS makes for the namespace."""
        namespace = self.key.namespace
        role = f"AWSServiceRoleForApplicationAutoScaling_{_ROLES.get(namespace, namespace)}"
        return (
            f"arn:aws:iam::{ACCOUNT_ID}:role/aws-service-role/{namespace}.application-autoscaling.amazonaws.com/{role}"
        )

    def update(self, params: Mapping[str, Any]) -> None:
        """Take bounds and suspensions; what is not named stays.

        Raises:
            ServiceError: ValidationException; the bounds are none.
        """
        minimum, maximum = params.get("MinCapacity", self.minimum), params.get("MaxCapacity", self.maximum)
        if minimum is None or maximum is None:
            name = "MinCapacity" if minimum is None else "MaxCapacity"
            raise ServiceError("ValidationException", f"{name} is required when registering a new scalable target.")
        if minimum < 0 or maximum < 0:
            raise ServiceError("ValidationException", "MinCapacity and MaxCapacity must be 0 or greater.")
        if minimum > maximum:
            raise ServiceError("ValidationException", "Maximum capacity cannot be less than minimum capacity.")
        self.minimum, self.maximum = minimum, maximum
        self.suspended |= {name: bool(value) for name, value in params.get("SuspendedState", {}).items()}

    def describe(self) -> dict[str, Any]:
        """Return what DescribeScalableTargets shows."""
        return {
            **self.key.members,
            "MinCapacity": self.minimum,
            "MaxCapacity": self.maximum,
            "RoleARN": self.role_arn,
            "CreationTime": self.created,
            "SuspendedState": dict(self.suspended),
            "ScalableTargetARN": self.arn,
        }
