"""What alarms tell SNS topics, and what is refused of them or said of them."""

import json
from datetime import UTC, datetime, timedelta

import boto3
import pytest
from botocore.exceptions import ClientError

from tests.rehearsal.serving import unique
from tests.rehearsal.topics import topic  # noqa: F401 - a fixture

METRIC = {"Namespace": "own", "MetricName": "errors", "Dimensions": [{"Name": "model", "Value": "dogs"}]}
RULE = {"Period": 60, "EvaluationPeriods": 1, "Threshold": 1.0, "ComparisonOperator": "GreaterThanThreshold"}


@pytest.fixture
def put(rehearsal):
    """Return a function that puts an alarm; returns its name."""
    cloudwatch, made = boto3.client("cloudwatch"), []

    def make(**settings) -> str:
        made.append(unique("alarm"))
        cloudwatch.put_metric_alarm(AlarmName=made[-1], **{**METRIC, **RULE, "Statistic": "Sum", **settings})
        return made[-1]

    yield make
    for name in made:
        cloudwatch.delete_alarms(AlarmNames=[name])


def test_a_topic_is_told_when_the_state_changes_and_only_then(topic, put):  # noqa: F811
    cloudwatch, (arn, next_message) = boto3.client("cloudwatch"), topic
    name = put(AlarmActions=[arn], OKActions=[arn, f"{arn}-that-is-not-there"])
    for state in ("ALARM", "ALARM", "OK"):
        cloudwatch.set_alarm_state(AlarmName=name, StateValue=state, StateReason="tried")
    envelope = next_message()
    assert envelope["Subject"] == f'ALARM: "{name}" in US East (N. Virginia)'
    told = json.loads(envelope["Message"])
    assert (told["OldStateValue"], told["NewStateValue"], told["NewStateReason"]) == (
        "INSUFFICIENT_DATA",
        "ALARM",
        "tried",
    )
    assert told["Trigger"]["Statistic"] == "SUM"
    assert told["Trigger"]["Dimensions"] == [{"name": "model", "value": "dogs"}]
    assert json.loads(next_message()["Message"])["NewStateValue"] == "OK"
    cloudwatch.disable_alarm_actions(AlarmNames=[name])
    cloudwatch.set_alarm_state(AlarmName=name, StateValue="ALARM", StateReason="unheard")
    cloudwatch.enable_alarm_actions(AlarmNames=[name])
    cloudwatch.set_alarm_state(AlarmName=name, StateValue="OK", StateReason="heard")
    assert json.loads(next_message()["Message"])["NewStateReason"] == "heard"


def test_actions_that_nobody_would_perform_are_refused(put):
    with pytest.raises(ClientError, match=r"NotImplemented.*alarm actions of lambda cannot be rehearsed"):
        put(AlarmActions=["arn:aws:lambda:us-east-1:000000000000:function:page-me"])
    with pytest.raises(ClientError, match=r"ValidationError.*Invalid arn syntax: arn:aws:sns"):
        put(OKActions=["arn:aws:sns"])
    with pytest.raises(ClientError, match=r"ValidationError.*Invalid region nowhere"):
        put(OKActions=["arn:aws:sns:nowhere:000000000000:topic"])
    with pytest.raises(ClientError, match=r"ValidationError.*TreatMissingData"):
        put(TreatMissingData="whatever")


def test_an_alarm_that_was_made_without_tags_takes_some(put):
    cloudwatch, name = boto3.client("cloudwatch"), put()
    [alarm] = cloudwatch.describe_alarms(AlarmNames=[name])["MetricAlarms"]
    cloudwatch.tag_resource(ResourceARN=alarm["AlarmArn"], Tags=[{"Key": "team", "Value": "a"}])
    assert cloudwatch.list_tags_for_resource(ResourceARN=alarm["AlarmArn"])["Tags"] == [{"Key": "team", "Value": "a"}]
    with pytest.raises(ClientError, match="ResourceNotFound"):
        cloudwatch.tag_resource(ResourceARN=f"{alarm['AlarmArn']}-x", Tags=[{"Key": "team", "Value": "a"}])


def test_a_metric_has_no_data_in_a_unit_that_it_does_not_come_in(rehearsal):
    cloudwatch, name, now = boto3.client("cloudwatch"), unique("metric"), datetime.now(UTC)
    cloudwatch.put_metric_data(Namespace="own", MetricData=[{"MetricName": name, "Value": 3, "Unit": "Count"}])
    span = {"StartTime": now - timedelta(minutes=5), "EndTime": now + timedelta(minutes=5)}
    stat = {"Metric": {"Namespace": "own", "MetricName": name}, "Period": 60, "Stat": "Sum"}
    for unit, expected in (("Count", [3]), ("Bytes", [])):
        points = cloudwatch.get_metric_statistics(
            Namespace="own", MetricName=name, Period=60, Statistics=["Sum"], Unit=unit, **span
        )["Datapoints"]
        queries = [{"Id": "a", "MetricStat": {**stat, "Unit": unit}}]
        [result] = cloudwatch.get_metric_data(MetricDataQueries=queries, **span)["MetricDataResults"]
        assert [point["Sum"] for point in points] == result["Values"] == expected
