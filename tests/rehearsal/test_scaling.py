"""Application Auto Scaling on a clock that is set by hand."""

import re
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from opslib.rehearsal.calls import ServiceError
from tests.rehearsal.scaling_site import RESOURCE, ScalingSite

LATER = datetime(2027, 1, 15, 8, 30, tzinfo=UTC)
"""Half an hour after a site's clock begins."""


@pytest.fixture
def site() -> Iterator[ScalingSite]:
    built = ScalingSite()
    built.call("RegisterScalableTarget", MinCapacity=1, MaxCapacity=4)
    yield built
    built.extension.stop()


def test_three_minutes_above_the_target_scale_out_in_proportion(site):
    site.track(100, ScaleOutCooldown=30, ScaleInCooldown=30)
    site.pass_minutes(250, 250)
    assert site.instances.desired == 1
    site.pass_minutes(250)
    assert site.instances.desired == 3
    (activity,) = site.activities()
    alarm = site.call("DescribeScalingPolicies")["ScalingPolicies"][0]["Alarms"][0]["AlarmName"]
    assert re.fullmatch(f"TargetTracking-{RESOURCE}-AlarmHigh-[0-9a-f-]{{36}}", alarm)
    assert activity["Description"] == "Setting desired instance count to 3."
    assert activity["Cause"] == f"monitor alarm {alarm} in state ALARM triggered policy invocations"
    assert activity["StatusCode"] == "Successful"
    assert activity["StatusMessage"] == (
        "Successfully set desired instance count to 3. Change successfully fulfilled by sagemaker."
    )


def test_a_quarter_of_an_hour_below_nine_tenths_scales_in(site):
    site.track(100)
    site.pass_minutes(250, 250, 250)
    site.pass_minutes(*[10] * 14)
    assert site.instances.desired == 3
    site.pass_minutes(10)
    assert site.instances.desired == 1


def test_the_alarms_are_those_of_aws(site):
    arn = site.track(100)["PolicyARN"]
    high, low = site.monitoring.alarms.values()
    (creator,) = high["AlarmActions"]
    assert creator.startswith(f"{arn}:createdBy/")
    assert high["AlarmDescription"] == f"DO NOT EDIT OR DELETE. For TargetTrackingScaling policy {creator}."
    assert (high["Threshold"], high["EvaluationPeriods"], high["Period"], high["Statistic"]) == (100, 3, 60, "Sum")
    assert (low["Threshold"], low["EvaluationPeriods"], low["ComparisonOperator"]) == (90, 15, "LessThanThreshold")
    site.call("DeleteScalingPolicy", PolicyName="invocations")
    assert not site.monitoring.alarms


def test_no_low_alarm_without_scale_in_and_none_of_a_policy_that_was_changed(site):
    site.track(100)
    site.track(50, DisableScaleIn=True)
    (high,) = site.monitoring.alarms.values()
    assert high["Threshold"] == 50
    assert len(site.call("DescribeScalingPolicies")["ScalingPolicies"]) == 1


def test_the_cooldown_begins_when_the_activity_has_ended_and_only_more_scales_out_within_it():
    site = ScalingSite(startup_seconds=90)
    site.call("RegisterScalableTarget", MinCapacity=1, MaxCapacity=10)
    site.track(100, ScaleOutCooldown=120)
    site.pass_minutes(200, 200, 200)
    assert site.instances.desired == 2
    assert site.activities()[0]["StatusCode"] == "InProgress"
    site.pass_minutes(900)  # the endpoint is being updated: nothing can be scaled
    assert site.instances.desired == 2
    site.pass_minutes(190)  # in service for half a minute: 1 x 190 / 100 is what has been added already
    assert site.instances.desired == 2
    site.pass_minutes(290)
    assert site.instances.desired == 3
    site.extension.stop()


def test_why_nothing_was_scaled_is_told_when_asked_for(site):
    site.track(100)
    site.pass_minutes(*[1000] * 6)
    assert [one["StatusCode"] for one in site.activities()] == ["Successful"]
    told = site.activities(IncludeNotScaledActivities=True)[-1]
    assert told["NotScaledReasons"] == [{"Code": "AlreadyAtMaxCapacity", "MaxCapacity": 4}]
    assert told["Description"] == "Attempting to scale due to alarm triggered"
    site.pass_minutes(*[80] * 15)
    told = site.activities(IncludeNotScaledActivities=True)[-1]
    assert told["NotScaledReasons"] == [{"Code": "AutoScalingAnticipatedFlapping", "CurrentCapacity": 4}]


def test_what_is_suspended_does_not_happen(site):
    suspended = {"DynamicScalingOutSuspended": True}
    site.call("RegisterScalableTarget", SuspendedState=suspended)
    site.track(100)
    site.pass_minutes(*[1000] * 4)
    assert site.instances.desired == 1
    (shown,) = site.call("DescribeScalableTargets")["ScalableTargets"]
    assert shown["SuspendedState"] == {
        "DynamicScalingInSuspended": False,
        "DynamicScalingOutSuspended": True,
        "ScheduledScalingSuspended": False,
    }
    site.call("RegisterScalableTarget", SuspendedState={"DynamicScalingOutSuspended": False})
    site.pass_minutes(1000)
    assert site.instances.desired == 4


def test_steps_count_from_the_alarms_threshold(site):
    policy = site.call(
        "PutScalingPolicy",
        PolicyName="steps",
        PolicyType="StepScaling",
        StepScalingPolicyConfiguration={
            "AdjustmentType": "ChangeInCapacity",
            "StepAdjustments": [
                {"MetricIntervalLowerBound": 0, "MetricIntervalUpperBound": 50, "ScalingAdjustment": 1},
                {"MetricIntervalLowerBound": 50, "ScalingAdjustment": 2},
            ],
            "Cooldown": 60,
        },
    )
    site.monitoring.put_alarm(
        "",
        {
            "AlarmName": "busy", "AlarmActions": [policy["PolicyARN"]], "Threshold": 100, "Period": 60,
            "ComparisonOperator": "GreaterThanThreshold", "EvaluationPeriods": 1, "Namespace": "own",
            "MetricName": "busy", "Statistic": "Average",
        },
    )  # fmt: skip
    site.pass_minutes(149)
    assert site.instances.desired == 2
    site.pass_minutes(150)  # the cooldown is over
    assert site.instances.desired == 4
    assert site.activities()[0]["Cause"] == "monitor alarm busy in state ALARM triggered policy steps"
    (shown,) = site.call("DescribeScalingPolicies")["ScalingPolicies"]
    assert [alarm["AlarmName"] for alarm in shown["Alarms"]] == ["busy"]


def test_registering_brings_the_capacity_within_the_bounds(site):
    site.call("RegisterScalableTarget", MinCapacity=3)
    assert site.instances.desired == 3
    site.call("RegisterScalableTarget", MinCapacity=1, MaxCapacity=2)
    assert [one["Cause"] for one in site.activities()] == [
        "minimum capacity was set to 3",
        "maximum capacity was set to 2",
    ]


@pytest.mark.parametrize("schedule", ["at(2027-01-15T08:10:00)", "rate(10 minutes)", "cron(10 8 ? JAN MON-FRI *)"])
def test_a_schedule_sets_the_bounds_when_it_is_due(site, schedule):
    assert site.clock.now() == datetime(2027, 1, 15, 8, 0, tzinfo=UTC)  # a Friday
    site.call(
        "PutScheduledAction",
        ScheduledActionName="morning",
        Schedule=schedule,
        ScalableTargetAction={"MinCapacity": 2, "MaxCapacity": 3},
    )
    scaler = site.extension._scaler
    (target,) = scaler.targets.values()
    site.clock.seconds += 599
    scaler.look_after(target)
    assert site.instances.desired == 1
    site.clock.seconds += 1
    scaler.look_after(target)
    assert site.instances.desired == 2
    first, second = site.activities()
    assert first["Cause"] == "scheduled action name morning was triggered"
    assert first["Description"] == "Setting min capacity to 2 and max capacity to 3"
    assert second["Cause"] == "minimum capacity was set to 2"
    (shown,) = site.call("DescribeScheduledActions")["ScheduledActions"]
    assert shown["Schedule"] == schedule


@pytest.mark.parametrize(
    ("operation", "params", "code"),
    [
        ("RegisterScalableTarget", {"MinCapacity": 5}, "ValidationException"),
        ("RegisterScalableTarget", {"ResourceId": "endpoint/none/variant/v", "MinCapacity": 1}, "ValidationException"),
        ("DeleteScalingPolicy", {"PolicyName": "none"}, "ObjectNotFoundException"),
        ("DeregisterScalableTarget", {"ResourceId": "endpoint/none/variant/v"}, "ObjectNotFoundException"),
        ("PutScalingPolicy", {"PolicyName": "p", "PolicyType": "TargetTrackingScaling"}, "ValidationException"),
        ("PutScheduledAction", {"ScheduledActionName": "s", "Schedule": "cron(1 2 3)",
                                "ScalableTargetAction": {"MinCapacity": 1}}, "ValidationException"),
        ("PutScheduledAction", {"ScheduledActionName": "s", "Schedule": "rate(1 day)",
                                "ScalableTargetAction": {"MinCapacity": -1}}, "ValidationException"),
        ("PutScheduledAction", {"ScheduledActionName": "s", "Schedule": "rate(1 day)", "StartTime": LATER,
                                "EndTime": LATER, "ScalableTargetAction": {"MinCapacity": 1}}, "ValidationException"),
        ("DescribeScalingPolicies", {"MaxResults": 0}, "ValidationException"),
        ("DescribeScalingPolicies", {"MaxResults": 11}, "ValidationException"),
        ("DescribeScalingActivities", {"MaxResults": 51}, "ValidationException"),
        ("DescribeScalingActivities", {"NextToken": "none"}, "InvalidNextTokenException"),
        ("DescribeScalableTargets", {"ResourceIds": []}, "ValidationException"),
        ("RegisterScalableTarget", {"Tags": {"team": "dogs"}}, "ValidationException"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(site, operation, params, code):
    with pytest.raises(ServiceError) as caught:
        site.call(operation, **params)
    assert caught.value.code == code


def test_a_policy_that_is_refused_leaves_the_one_before_as_it_was(site, monkeypatch):
    site.track(100)
    before, put = dict(site.monitoring.alarms), site.monitoring.put_alarm

    def refuse_low(region: str, params: dict) -> None:
        if "AlarmLow" in params["AlarmName"]:
            raise ServiceError("ValidationError", "Exactly one element of the Metrics list should return data.")
        put(region, params)

    monkeypatch.setattr(site.monitoring, "put_alarm", refuse_low)
    with pytest.raises(ServiceError, match="Exactly one") as caught:
        site.track(50)
    assert caught.value.code == "ValidationException"
    assert site.monitoring.alarms == before
    (shown,) = site.call("DescribeScalingPolicies")["ScalingPolicies"]
    assert {alarm["AlarmName"] for alarm in shown["Alarms"]} == set(before)
    assert shown["TargetTrackingScalingPolicyConfiguration"]["TargetValue"] == 100


def test_a_policy_is_changed_without_its_type_and_no_second_one_watches_its_metric(site):
    site.track(100)
    metric = {"PredefinedMetricSpecification": {"PredefinedMetricType": "SageMakerVariantInvocationsPerInstance"}}
    changed = {"TargetTrackingScalingPolicyConfiguration": {"TargetValue": 50, **metric}}
    site.call("PutScalingPolicy", PolicyName="invocations", **changed)
    (shown,) = site.call("DescribeScalingPolicies")["ScalingPolicies"]
    assert shown["TargetTrackingScalingPolicyConfiguration"]["TargetValue"] == 50
    with pytest.raises(ServiceError, match="Only one TargetTrackingScaling policy"):
        site.call("PutScalingPolicy", PolicyName="other", PolicyType="TargetTrackingScaling", **changed)


def test_a_scheduled_action_begins_with_its_start_time_which_a_change_deletes(site):
    action = {"ScheduledActionName": "morning", "Schedule": "cron(0 9 * * ? *)"}
    bounds = {"ScalableTargetAction": {"MinCapacity": 2}}
    site.call("PutScheduledAction", **action, **bounds, StartTime=LATER)
    scaler = site.extension._scaler
    (target,) = scaler.targets.values()
    assert target.schedules["morning"].next_at == LATER
    site.clock.seconds = LATER.timestamp()
    scaler.look_after(target)
    assert site.instances.desired == 2
    assert target.schedules["morning"].next_at == datetime(2027, 1, 15, 9, tzinfo=UTC)
    site.call("PutScheduledAction", **action, EndTime=datetime(2027, 2, 1, tzinfo=UTC))
    (shown,) = site.call("DescribeScheduledActions")["ScheduledActions"]
    assert "StartTime" not in shown
    assert shown["ScalableTargetAction"] == {"MinCapacity": 2}


def test_a_target_has_at_most_fifty_tags(site):
    (target,) = site.call("DescribeScalableTargets")["ScalableTargets"]
    arn = target["ScalableTargetARN"]
    site.call("TagResource", ResourceARN=arn, Tags={f"tag {number}": "" for number in range(50)})
    with pytest.raises(ServiceError) as caught:
        site.call("TagResource", ResourceARN=arn, Tags={"one more": ""})
    assert caught.value.code == "TooManyTagsException"
    assert len(site.call("ListTagsForResource", ResourceARN=arn)["Tags"]) == 50


def test_deregistering_takes_policies_and_alarms_along(site):
    site.track(100)
    site.call("DeregisterScalableTarget")
    assert not site.monitoring.alarms
    assert site.call("DescribeScalingPolicies")["ScalingPolicies"] == []
