"""What the alarms of a policy watch, by its metric."""

from datetime import UTC, datetime

import pytest

from opslib.rehearsal.calls import ServiceError
from opslib.rehearsal.scaling.policies import alarms_of, read_rules
from opslib.rehearsal.scaling.targets import ScalingPolicy, TargetKey

VARIANT = TargetKey("eu-central-1", "sagemaker", "endpoint/dogs/variant/v", "sagemaker:variant:DesiredInstanceCount")
ALIAS = TargetKey("eu-central-1", "lambda", "function:classify:live", "lambda:function:ProvisionedConcurrency")


def alarms(key: TargetKey, **configuration) -> list[dict]:
    params = {"PolicyType": "TargetTrackingScaling", "TargetTrackingScalingPolicyConfiguration": configuration}
    policy = ScalingPolicy("p", "arn:policy", params, read_rules(key, params), datetime.now(UTC))
    return alarms_of(key, policy)


def predefined(name: str) -> dict:
    return {"PredefinedMetricSpecification": {"PredefinedMetricType": name}}


def test_concurrency_is_watched_every_ten_seconds_and_scales_in_as_slowly_as_the_rest():
    name = "SageMakerVariantConcurrentRequestsPerModelHighResolution"
    high, low = alarms(VARIANT, TargetValue=5, **predefined(name))
    assert (high["MetricName"], high["Period"], high["EvaluationPeriods"]) == ("ConcurrentRequestsPerModel", 10, 3)
    assert low["Period"] * low["EvaluationPeriods"] == 900


def test_provisioned_concurrency_is_that_of_the_alias():
    high, low = alarms(ALIAS, TargetValue=0.7, **predefined("LambdaProvisionedConcurrencyUtilization"))
    assert high["Dimensions"] == [
        {"Name": "FunctionName", "Value": "classify"},
        {"Name": "Resource", "Value": "classify:live"},
    ]
    assert low["Threshold"] == pytest.approx(0.63)


def test_a_customized_metric_is_watched_every_minute():
    own = {"MetricName": "busy", "Namespace": "own", "Statistic": "Average", "Unit": "Percent"}
    high, _ = alarms(VARIANT, TargetValue=50, CustomizedMetricSpecification=own)
    assert own.items() <= high.items()
    assert high["Period"] == 60
    stat = {"Metric": {"Namespace": "own", "MetricName": "busy"}, "Stat": "Sum"}
    queries = [
        {"Id": "m", "MetricStat": stat, "ReturnData": False},
        {"Id": "e", "Expression": "m / 2", "ReturnData": True},
    ]
    high, _ = alarms(VARIANT, TargetValue=50, CustomizedMetricSpecification={"Metrics": queries})
    assert "MetricName" not in high
    assert high["Metrics"][0]["MetricStat"] == {**stat, "Period": 60}


def test_the_default_cooldowns_are_those_of_the_service():
    params = {"TargetValue": 1.0, **predefined("SageMakerVariantInvocationsPerInstance")}
    policy = {"PolicyType": "TargetTrackingScaling", "TargetTrackingScalingPolicyConfiguration": params}
    assert read_rules(VARIANT, policy).scale_in_cooldown_seconds == 300
    params = {"TargetValue": 0.7, **predefined("LambdaProvisionedConcurrencyUtilization")}
    policy["TargetTrackingScalingPolicyConfiguration"] = params
    assert read_rules(ALIAS, policy).scale_in_cooldown_seconds == 0


@pytest.mark.parametrize(
    "configuration",
    [
        {"TargetValue": 1.0},
        {"TargetValue": 0.0, **predefined("SageMakerVariantInvocationsPerInstance")},
        {"TargetValue": 0.7, **predefined("LambdaProvisionedConcurrencyUtilization")},
        {"TargetValue": 1.0, "CustomizedMetricSpecification": {"MetricName": "busy"}},
    ],
)
def test_what_names_no_metric_of_the_resource_is_refused(configuration):
    with pytest.raises(ServiceError):
        alarms(VARIANT, **configuration)


@pytest.mark.parametrize("name", ["ScaleOutCooldown", "ScaleInCooldown"])
def test_a_negative_cooldown_is_refused(name):
    with pytest.raises(ServiceError, match=name):
        alarms(VARIANT, TargetValue=1.0, **predefined("SageMakerVariantInvocationsPerInstance"), **{name: -1})


def steps_of(*bounds: tuple[float | None, float | None], key: TargetKey = VARIANT):
    names = ("MetricIntervalLowerBound", "MetricIntervalUpperBound")
    named = [{name: value for name, value in zip(names, one, strict=True) if value is not None} for one in bounds]
    steps = [{**one, "ScalingAdjustment": 1} for one in named]
    configuration = {"AdjustmentType": "ChangeInCapacity", "StepAdjustments": steps}
    return read_rules(key, {"PolicyType": "StepScaling", "StepScalingPolicyConfiguration": configuration})


@pytest.mark.parametrize(
    ("bounds", "told"),
    [
        ([(0, None), (None, None)], "overlap"),
        ([(0, 5), (10, None)], "gap"),
        ([(None, None)], "same step"),
        ([(0, 5)], "null bound"),
        ([(-5, 0)], "null bound"),
    ],
)
def test_steps_are_whole(bounds, told):
    with pytest.raises(ServiceError, match=told):
        steps_of(*bounds)


def test_a_function_is_not_scaled_by_steps():
    assert len(steps_of((None, -5), (-5, 0), (0, 5), (5, None)).steps) == 4
    with pytest.raises(ServiceError, match="not supported"):
        steps_of((0, None), key=ALIAS)
