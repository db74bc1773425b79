"""A site for scaling alone: a clock that is set by hand, metrics that are written by hand, a resource that counts."""

from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from botocore.session import get_session

from opslib.rehearsal.calls import Call, Principal
from opslib.rehearsal.gateway.validation import reply_faults, validate_request
from opslib.rehearsal.scaling.extension import ScalingExtension

REGION = "eu-central-1"
RESOURCE = "endpoint/dogs/variant/AllTraffic"
DIMENSION = "sagemaker:variant:DesiredInstanceCount"
TARGET = {"ServiceNamespace": "sagemaker", "ResourceId": RESOURCE, "ScalableDimension": DIMENSION}
_MODEL = get_session().get_service_model("application-autoscaling")


class HandClock:
    """A clock that stands until it is set; it begins at a full minute."""

    speed = 1.0

    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self.seconds = now

    def time(self) -> float:
        return self.seconds

    def now(self) -> datetime:
        return datetime.fromtimestamp(self.seconds, UTC)

    def wall_seconds(self, seconds: float) -> float:
        return seconds


class MinuteAlarms:
    """The part of Monitoring that scaling uses: one value a minute of one metric, and every alarm looks at it."""

    def __init__(self, clock: HandClock) -> None:
        self.clock, self.values, self.alarms, self.states = clock, [], {}, {}
        self.listeners = []
        self.operations = {"cloudwatch.DescribeAlarms": lambda call: {"MetricAlarms": list(self.alarms.values())}}

    def on_alarm(self, listener) -> None:
        self.listeners.append(listener)

    def put_alarm(self, region: str, params: dict[str, Any]) -> None:
        self.alarms[params["AlarmName"]] = params

    def delete_alarm(self, region: str, name: str) -> None:
        self.alarms.pop(name, None)
        self.states.pop(name, None)

    def alarm_state(self, region: str, name: str) -> str | None:
        return self.states.get(name, "INSUFFICIENT_DATA") if name in self.alarms else None

    def series(self, metric, *, statistic, period_seconds, periods):
        return [(self.clock.now(), value) for value in self.values[-periods:]]

    def end_minute(self, value: float) -> None:
        """Write the value of the minute that ends now, and let every alarm look."""
        self.values.append(value)
        for name, alarm in list(self.alarms.items()):
            last = self.values[-alarm["EvaluationPeriods"] :]
            above = alarm["ComparisonOperator"].startswith("Greater")
            breached = [one > alarm["Threshold"] if above else one < alarm["Threshold"] for one in last]
            self.states[name] = "ALARM" if len(last) == alarm["EvaluationPeriods"] and all(breached) else "OK"
        for name in [name for name, state in self.states.items() if state == "ALARM"]:
            for listener in self.listeners:
                listener(REGION, name, "ALARM", self.clock.now())


class CountedInstances:
    """A resource whose new instances are in service `startup_seconds` after they were asked for."""

    dimension = DIMENSION

    def __init__(self, clock: HandClock, startup_seconds: float = 0.0, count: int = 1) -> None:
        self.clock, self.startup_seconds = clock, startup_seconds
        self.desired = self._before = count
        self._ready_at = 0.0
        self.history: list[tuple[float, int]] = []

    def desired_capacity(self, region: str, resource_id: str) -> int | None:
        return self.desired if resource_id == RESOURCE else None

    def is_moving(self, region: str, resource_id: str) -> bool:
        return self.clock.time() < self._ready_at

    def set_capacity(self, region: str, resource_id: str, count: int) -> None:
        self._before, grows = self.desired, count > self.desired
        self.desired = count
        self._ready_at = self.clock.time() + (self.startup_seconds if grows else 0)
        self.history.append((self.clock.time(), count))

    def in_service_at(self, at: float) -> int:
        return self._before if at < self._ready_at else self.desired

    @property
    def ready_at(self) -> float:
        return self._ready_at


class ScalingSite:
    """Scaling with all that it needs; calls are checked against botocore's model, as the gateway does."""

    def __init__(self, startup_seconds: float = 0.0, count: int = 1, parts: SimpleNamespace | None = None) -> None:
        if parts is None:
            clock = HandClock()
            instances = CountedInstances(clock, startup_seconds, count)
            parts = SimpleNamespace(clock=clock, monitoring=MinuteAlarms(clock), instances=instances)
        self.clock, self.monitoring, self.instances = parts.clock, parts.monitoring, parts.instances
        site = SimpleNamespace(endpoint_url="", directory=Path(), clock=self.clock, monitoring=self.monitoring)
        self.extension = ScalingExtension(site, [self.instances])

    def call(self, operation: str, **params: Any) -> dict[str, Any]:
        """Call an operation on the one resource of the site."""
        model = _MODEL.operation_model(operation)
        named = {name: value for name, value in TARGET.items() if name in model.input_shape.members}
        if "ResourceIds" in model.input_shape.members:
            named["ResourceIds"] = [RESOURCE]
        params = named | params
        validate_request("application-autoscaling", model.input_shape, params)
        principal = Principal("arn:aws:iam::000000000000:user/tester", "", "")
        answer = self.extension.operations[f"application-autoscaling.{operation}"](
            Call("application-autoscaling", operation, params, principal, REGION, "request")
        )
        answer = {name: value for name, value in answer.items() if value is not None}
        assert reply_faults(model.output_shape, answer) == []
        return answer

    def track(self, target: float, **configuration: Any) -> dict[str, Any]:
        """Put a target tracking policy on invocations per instance."""
        metric = {"PredefinedMetricType": "SageMakerVariantInvocationsPerInstance"}
        return self.call(
            "PutScalingPolicy",
            PolicyName="invocations",
            PolicyType="TargetTrackingScaling",
            TargetTrackingScalingPolicyConfiguration={
                "TargetValue": target,
                "PredefinedMetricSpecification": metric,
                **configuration,
            },
        )

    def pass_minutes(self, *values: float) -> None:
        """Let a minute pass with each value."""
        for value in values:
            self.clock.seconds += 60
            self.monitoring.end_minute(value)

    def activities(self, **params: Any) -> list[dict[str, Any]]:
        """Return the activities, oldest first."""
        return self.call("DescribeScalingActivities", **params)["ScalingActivities"][::-1]
