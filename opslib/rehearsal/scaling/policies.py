"""Scaling policies as they are put: their rules, and the alarms that target tracking puts for itself.

Source: docs.aws.amazon.com/autoscaling/application/APIReference/API_PutScalingPolicy.html; the alarms' names,
descriptions and datapoints are those that AWS shows.
"""

import itertools
import math
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from opslib.rehearsal.calls import ServiceError
from opslib.rehearsal.scaling.targets import ScalingPolicy, TargetKey
from opslib.scaling_rules import AlarmRule, Step, StepScaling, TargetTracking

_SLOW_TO_COOL = {"sagemaker": 300}
"""The default cooldown of each namespace, in seconds; 0 for those that are not here."""

_HIGH_RESOLUTION_SECONDS = 10
_PREDEFINED = {
    "SageMakerVariantInvocationsPerInstance": ("sagemaker", "AWS/SageMaker", "InvocationsPerInstance", "Sum", 60),
    "SageMakerVariantConcurrentRequestsPerModelHighResolution": (
        "sagemaker", "AWS/SageMaker", "ConcurrentRequestsPerModel", "Maximum", _HIGH_RESOLUTION_SECONDS
    ),
    "LambdaProvisionedConcurrencyUtilization": (
        "lambda", "AWS/Lambda", "ProvisionedConcurrencyUtilization", "Average", 60
    ),
}  # fmt: skip


def read_rules(key: TargetKey, params: Mapping[str, Any]) -> TargetTracking | StepScaling:
    """Return the rules of a policy.

    Raises:
        ServiceError: ValidationException; it is no policy for this resource.
    """
    kind = params.get("PolicyType", "StepScaling")
    if kind == "PredictiveScaling" or (kind, key.namespace) == ("StepScaling", "lambda"):
        raise ServiceError("ValidationException", f"{kind} is not supported for {key.dimension}.")
    configuration = params.get(f"{kind}PolicyConfiguration")
    if configuration is None:
        raise ServiceError("ValidationException", f"{kind}PolicyConfiguration is required for policy type {kind}.")
    rest = _SLOW_TO_COOL.get(key.namespace, 0)
    return _tracking(key, configuration, rest) if kind == "TargetTrackingScaling" else _steps(configuration, rest)


def _tracking(key: TargetKey, configuration: Mapping[str, Any], rest: int) -> TargetTracking:
    if not 0 < configuration["TargetValue"] < math.inf:
        raise ServiceError("ValidationException", "TargetValue must be greater than 0.")
    metric = metric_of(key, configuration)
    return TargetTracking(
        configuration["TargetValue"],
        _cooldown(configuration, "ScaleOutCooldown", rest),
        _cooldown(configuration, "ScaleInCooldown", rest),
        configuration.get("DisableScaleIn", False),
        metric.get("Period", 60),
    )


def _cooldown(configuration: Mapping[str, Any], name: str, rest: int) -> int:
    seconds = configuration.get(name, rest)
    if seconds < 0:
        raise ServiceError("ValidationException", f"{name} must be 0 or greater.")
    return seconds


def _steps(configuration: Mapping[str, Any], rest: int) -> StepScaling:
    steps = tuple(
        Step(
            step["ScalingAdjustment"],
            step.get("MetricIntervalLowerBound", -math.inf),
            step.get("MetricIntervalUpperBound", math.inf),
        )
        for step in configuration.get("StepAdjustments", ())
    )
    if not steps or "AdjustmentType" not in configuration:
        raise ServiceError("ValidationException", "AdjustmentType and StepAdjustments are required for step scaling.")
    _require_whole(steps)
    return StepScaling(
        steps,
        configuration["AdjustmentType"],
        _cooldown(configuration, "Cooldown", rest),
        configuration.get("MinAdjustmentMagnitude", 0),
    )


def _require_whole(steps: Sequence[Step]) -> None:
    """Refuse steps that overlap, leave a gap, or end before the metric does.

    Source: docs.aws.amazon.com/autoscaling/application/APIReference/API_StepAdjustment.html
    """
    ordered = sorted(steps, key=lambda step: step.lower)
    first, last = ordered[0].lower, ordered[-1].upper
    if any(step.lower >= step.upper for step in steps) or any(
        one.upper != other.lower for one, other in itertools.pairwise(ordered)
    ):
        message = "The intervals of StepAdjustments must not overlap or have a gap."
    elif any(math.isinf(step.lower) and math.isinf(step.upper) for step in steps):
        message = "The upper and lower bound can't be null in the same step adjustment."
    elif -math.inf < first < 0 or 0 < last < math.inf:
        message = "The outermost step adjustment must have a null bound."
    else:
        return
    raise ServiceError("ValidationException", message)


def require_own_metric(policy: ScalingPolicy, others: Iterable[ScalingPolicy]) -> None:
    """Refuse a second target tracking policy of the same metric, as AWS does.

    Raises:
        ServiceError: ValidationException, in AWS's words.
    """
    for other in others:
        if other.name != policy.name and other.metric is not None and other.metric == policy.metric:
            message = "Only one TargetTrackingScaling policy for a given metric specification is allowed."
            raise ServiceError("ValidationException", message)


def metric_of(key: TargetKey, configuration: Mapping[str, Any]) -> dict[str, Any]:
    """Return the members of PutMetricAlarm that name what a target tracking policy watches.

    Raises:
        ServiceError: ValidationException; it names no metric, or none of this resource.
    """
    predefined = configuration.get("PredefinedMetricSpecification")
    customized = configuration.get("CustomizedMetricSpecification")
    if (predefined is None) == (customized is None):
        message = "Exactly one of PredefinedMetricSpecification and CustomizedMetricSpecification must be specified."
        raise ServiceError("ValidationException", message)
    return _predefined(key, predefined["PredefinedMetricType"]) if predefined else _customized(customized)


def _predefined(key: TargetKey, name: str) -> dict[str, Any]:
    namespace, metric_namespace, metric, statistic, period = _PREDEFINED.get(name, ("", "", "", "", 0))
    if namespace != key.namespace:
        message = f"PredefinedMetricType {name} is not supported for service namespace {key.namespace}."
        raise ServiceError("ValidationException", message)
    if namespace == "sagemaker":
        _, endpoint_name, _, variant_name = key.resource_id.split("/")
        dimensions = {"EndpointName": endpoint_name, "VariantName": variant_name}
    else:
        _, function_name, qualifier = key.resource_id.split(":")
        dimensions = {"FunctionName": function_name, "Resource": f"{function_name}:{qualifier}"}
    return {
        "Namespace": metric_namespace,
        "MetricName": metric,
        "Dimensions": [{"Name": name, "Value": value} for name, value in dimensions.items()],
        "Statistic": statistic,
        "Period": period,
    }


def _customized(specification: Mapping[str, Any]) -> dict[str, Any]:
    if "Metrics" in specification:
        return {"Metrics": [_query(one) for one in specification["Metrics"]]}
    missing = [name for name in ("MetricName", "Namespace", "Statistic") if name not in specification]
    if missing:
        raise ServiceError("ValidationException", f"{', '.join(missing)} must be specified for a customized metric.")
    names = ("MetricName", "Namespace", "Statistic", "Dimensions", "Unit")
    return {name: specification[name] for name in names if name in specification} | {"Period": 60}


def _query(query: Mapping[str, Any]) -> dict[str, Any]:
    """Return a query of an alarm: a policy's queries have no period, it is a minute."""
    timed = dict(query)
    if "MetricStat" in query:
        timed["MetricStat"] = {**query["MetricStat"], "Period": 60}
    return timed


def alarms_of(key: TargetKey, policy: ScalingPolicy) -> list[dict[str, Any]]:
    """Name the alarms of a target tracking policy anew, and return them as PutMetricAlarm takes them."""
    rules = policy.rules
    if not isinstance(rules, TargetTracking):
        return []
    creator = f"{policy.arn}:createdBy/{uuid.uuid4()}"
    policy.high_alarm = f"TargetTracking-{key.resource_id}-AlarmHigh-{uuid.uuid4()}"
    policy.low_alarm = "" if rules.disable_scale_in else f"TargetTracking-{key.resource_id}-AlarmLow-{uuid.uuid4()}"
    named = [(policy.high_alarm, rules.high_alarm), (policy.low_alarm, rules.low_alarm)]
    metric = metric_of(key, policy.configuration["TargetTrackingScalingPolicyConfiguration"])
    return [_alarm(name, rule, metric, creator) for name, rule in named if name]


def _alarm(name: str, rule: AlarmRule, metric: Mapping[str, Any], creator: str) -> dict[str, Any]:
    return {
        "AlarmName": name,
        "AlarmDescription": f"DO NOT EDIT OR DELETE. For TargetTrackingScaling policy {creator}.",
        "ActionsEnabled": True,
        "AlarmActions": [creator],
        "EvaluationPeriods": rule.datapoints,
        "Threshold": rule.threshold,
        "ComparisonOperator": "GreaterThanThreshold" if rule.is_high else "LessThanThreshold",
        **metric,
    }
