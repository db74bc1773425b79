"""CloudWatch: metrics and alarms, alone on a fast clock and through boto3 in each of its protocols."""

import json
import math
import threading
import time
from datetime import UTC, datetime, timedelta

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from opslib.rehearsal.calls import ServiceError
from opslib.rehearsal.clock import Clock
from opslib.rehearsal.monitoring.alarms import ALARM, INSUFFICIENT, OK, Alarm
from opslib.rehearsal.monitoring.expressions import evaluate
from opslib.rehearsal.monitoring.extension import Metric, Monitoring
from opslib.rehearsal.monitoring.store import FINE_KEPT_SECONDS, MetricStore, Sample

REGION = "eu-central-1"
METRIC = Metric.of(REGION, "AWS/SageMaker", "Invocations", EndpointName="dogs", VariantName="AllTraffic")
HIGH = {
    "AlarmName": "high",
    "Namespace": METRIC.namespace,
    "MetricName": METRIC.name,
    "Dimensions": [{"Name": name, "Value": value} for name, value in METRIC.dimensions],
    "Statistic": "Sum",
    "Period": 60,
    "EvaluationPeriods": 3,
    "Threshold": 10.0,
    "ComparisonOperator": "GreaterThanThreshold",
}


def sample_of(*values: float) -> Sample:
    sample = Sample()
    for value in values:
        sample.add(value, 1)
    return sample


def wait_until(holds, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.01)


def test_statistics_of_known_values():
    sample = sample_of(*range(1, 1001))
    exact = {"Sum": 500500, "Average": 500.5, "Minimum": 1, "Maximum": 1000, "SampleCount": 1000}
    assert {name: sample.statistic(name) for name in exact} == exact
    for percent in (1, 50, 95, 99.9):
        assert sample.statistic(f"p{percent}") == pytest.approx(percent * 10, rel=0.011)
    assert sample_of(-3, 0, 4).statistic("p0") == -3
    assert sample_of(5).statistic("p50") == 5


def test_an_event_counts_for_the_time_that_is_skipped():
    monitoring = Monitoring(Clock(3600))
    metric = Metric.of(REGION, "mine", "requests")
    monitoring.observe(metric, 2)
    wait_until(lambda: monitoring.series(metric, statistic="Sum", period_seconds=60, periods=60))
    ((_, total),) = monitoring.series(metric, statistic="Sum", period_seconds=60, periods=60)
    ((_, average),) = monitoring.series(metric, statistic="Average", period_seconds=60, periods=60)
    assert (total, average) == (7200, 2)


def test_seconds_are_forgotten_and_minutes_stay():
    store = MetricStore()
    store.add(METRIC, 600, sample_of(1), fine=True)
    store.add(METRIC, 600 + FINE_KEPT_SECONDS + 1, sample_of(1), fine=True)
    assert store.sample(METRIC, 600, 10) is None
    assert store.sample(METRIC, 600, 60).count == 1


def test_a_late_value_is_kept_by_the_minute_when_its_second_is_forgotten():
    store = MetricStore()
    store.add(METRIC, 6 * 3600, sample_of(1), fine=True)
    store.add(METRIC, 3600, sample_of(5), fine=True)
    assert store.sample(METRIC, 3600, 10) is None
    assert store.sample(METRIC, 3600, 60).total == 5


def test_a_period_may_be_longer_than_what_is_kept():
    store = MetricStore()
    store.add(METRIC, 600, sample_of(1))
    assert store.sample(METRIC, 0, 60 * 10**12).total == 1


def test_a_minute_that_is_over_keeps_all_its_values_and_takes_late_ones():
    store, metric = MetricStore(), Metric.of("r", "N", "latency")
    values = [1.5**number for number in range(40)] + [0.0, -3.0]

    def add(at: float, value: float) -> None:
        sample = Sample(unit="Milliseconds")
        sample.add(value, 2.0)
        store.add(metric, at, sample)

    for number, value in enumerate(values):
        add(number, value)
    names = ("p10", "p50", "p99", "Sum", "SampleCount", "Minimum", "Maximum")
    before = [store.sample(metric, 0, 60).statistic(name) for name in names]
    add(60, 1.0)  # the next minute has begun: the first is packed
    assert [store.sample(metric, 0, 60).statistic(name) for name in names] == before
    add(59, 1e9)
    late = store.sample(metric, 0, 60)
    assert (late.statistic("SampleCount"), late.statistic("Maximum"), late.unit) == (86, 1e9, "Milliseconds")
    assert late.statistic("p50") == pytest.approx(1.5 * before[1], rel=0.01)  # the next of the values


END = datetime(2027, 1, 15, 8, 0, tzinfo=UTC)


def minutes(values):
    """Return the datapoints of the last minutes, one after the other."""
    return [(END - timedelta(minutes=len(values) - number), value) for number, value in enumerate(values)]


@pytest.mark.parametrize(
    ("values", "treatment", "state"),
    [
        ([11, 11, 11], "missing", ALARM),
        ([11, 9, 11], "missing", OK),
        ([11], "missing", INSUFFICIENT),
        ([9], "missing", OK),
        ([], "missing", INSUFFICIENT),
        ([], "breaching", ALARM),
        ([9], "breaching", OK),
        ([11, 11], "notBreaching", OK),
        ([11], "ignore", INSUFFICIENT),
        ([11, 11, 11], "ignore", ALARM),
        ([9, 9, 11], "ignore", OK),
        ([9], "ignore", OK),
    ],
)
def test_an_alarm_treats_missing_data_as_it_says(values, treatment, state):
    alarm = Alarm(REGION, "high", "arn", {**HIGH, "TreatMissingData": treatment}, datetime.now(UTC))
    assert alarm.judge(minutes(values), END) == state


def test_an_old_datapoint_without_newer_ones_is_enough():
    alarm = Alarm(REGION, "high", "arn", HIGH, datetime.now(UTC))
    assert alarm.judge([(END - timedelta(minutes=2), 11)], END) == INSUFFICIENT
    assert alarm.judge([(END - timedelta(minutes=3), 11)], END) == ALARM


def test_two_of_three_datapoints_are_enough_when_so_asked():
    alarm = Alarm(REGION, "high", "arn", {**HIGH, "DatapointsToAlarm": 2}, datetime.now(UTC))
    assert alarm.judge(minutes((11, 9, 11)), END) == ALARM
    assert alarm.judge(minutes((9, 9, 11)), END) == OK


def test_an_alarm_rings_after_three_minutes_of_its_clock_and_again_while_it_lasts():
    clock = Clock(600)
    monitoring, heard, loud = Monitoring(clock), [], threading.Event()
    monitoring.on_alarm(lambda *said: heard.append(said))
    monitoring.put_alarm(REGION, HIGH)
    begun, loud_until = clock.time(), clock.time() + 600

    def make_noise() -> None:
        while not loud.wait(0.005):
            monitoring.gauge(METRIC, 1 if clock.time() < loud_until else 0)

    noise = threading.Thread(target=make_noise)
    noise.start()
    try:
        wait_until(lambda: monitoring.alarm_state(REGION, "high") == ALARM)
        assert clock.time() - begun >= 120  # two whole minutes and a part of one at least
        wait_until(lambda: [state for *_, state, _ in heard].count(ALARM) >= 3)
        wait_until(lambda: monitoring.alarm_state(REGION, "high") == OK)
    finally:
        loud.set()
        noise.join()
        monitoring.stop()
    assert heard[-1][:3] == (REGION, "high", OK)


def test_a_long_period_slides_and_is_over_when_it_is_judged():
    monitoring = Monitoring(Clock(600))
    low = {**HIGH, "AlarmName": "low", "Period": 300, "EvaluationPeriods": 1, "Threshold": 3.5}
    watched, asked = [], monitoring._datapoints
    monitoring._watch._datapoints = lambda *said: watched.append((said[1], asked(*said))) or watched[-1][1]
    monitoring.put_alarm(REGION, {**low, "ComparisonOperator": "LessThanThreshold"})
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(0.005):
            monitoring.gauge(METRIC, 1)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        wait_until(lambda: len(watched) >= 12)
    finally:
        ended.set()
        thread.join()
        monitoring.stop()
    for end, points in watched[1:]:
        assert points[-1][0].timestamp() == end - 300
    assert len({end % 300 for end, _ in watched}) > 1
    # From the sixth minute on, five whole minutes of beats are over at every look.
    assert all(points[-1][1] > 3.5 for _, points in watched[6:])


def test_an_alarm_that_cannot_be_evaluated_stops_no_other():
    monitoring = Monitoring(Clock(600))
    monitoring.put_alarm(REGION, {**HIGH, "AlarmName": "broken"})
    monitoring._watch.find(REGION, "broken").params["EvaluationPeriods"] = "no number"
    monitoring.put_alarm(
        REGION, {**HIGH, "AlarmName": "whole", "EvaluationPeriods": 1, "TreatMissingData": "breaching"}
    )
    try:
        wait_until(lambda: monitoring.alarm_state(REGION, "whole") == ALARM)
    finally:
        monitoring.stop()


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("errors / requests * 100", {0.0: 10.0}),
        ("FILL(errors, 0) + 1", {0.0: 2.0, 60.0: 1.0}),
        ("SUM(METRICS())", {0.0: 11.0, 60.0: 20.0}),
        ("MAX([errors, requests])", {0.0: 10.0, 60.0: 20.0}),
        ("requests ^ 2 - -1", {0.0: 101.0, 60.0: 401.0}),
        ("AVG(requests)", {0.0: 15.0, 60.0: 15.0}),
        ("requests / PERIOD(requests)", {0.0: 10 / 60, 60.0: 20 / 60}),
    ],
)
def test_metric_math(expression, expected):
    known = {"errors": {0.0: 1.0}, "requests": {0.0: 10.0, 60.0: 20.0}}
    assert evaluate(expression, known, 60, [0.0, 60.0]) == pytest.approx(expected)


@pytest.mark.parametrize("expression", ["1 / 0", "SUM(errors) / SUM(none)", "none ^ -1", "(0 - 1) ^ 0.5", "9^9^9^9"])
def test_what_is_no_number_is_no_data(expression):
    assert evaluate(expression, {"errors": {0.0: 1.0}, "none": {0.0: 0.0}}, 60, [0.0]) == {}


@pytest.mark.parametrize("expression", ["__import__('os')", "METRICS()", "nobody", "errors.x", "(" * 500, ""])
def test_what_is_no_metric_math_is_refused(expression):
    with pytest.raises(ServiceError, match="ValidationError"):
        evaluate(expression, {"errors": {0.0: 1.0}}, 60, [0.0])


@pytest.fixture(params=["json", "query", "smithy-rpc-v2-cbor"])
def cloudwatch(rehearsal, request):
    """A client that speaks one of CloudWatch's protocols."""
    session = boto3.session.Session()
    client = session.client("cloudwatch", config=Config(retries={"total_max_attempts": 1}))
    if request.param not in client.meta.service_model.metadata["protocols"]:
        pytest.skip(f"this botocore has no {request.param} for CloudWatch")
    session = boto3.session.Session()
    loader = session._session.get_component("data_loader")
    model = loader.load_service_model("cloudwatch", "service-2")
    model["metadata"] |= {"protocol": request.param, "protocols": [request.param]}
    return session.client("cloudwatch")


def test_what_is_put_comes_back(cloudwatch):
    namespace, now = f"mine/{time.time_ns()}", datetime.now(UTC).replace(second=0, microsecond=0)
    dimensions = [{"Name": "of", "Value": "tests"}]
    data = [
        {"MetricName": "seconds", "Dimensions": dimensions, "Timestamp": now, "Values": [1.0, 3.0], "Counts": [3, 1]},
        {"MetricName": "seconds", "Dimensions": dimensions, "Timestamp": now - timedelta(minutes=1), "Value": 7.0},
    ]
    cloudwatch.put_metric_data(Namespace=namespace, MetricData=data)
    named = {"Namespace": namespace, "MetricName": "seconds", "Dimensions": dimensions}
    assert cloudwatch.list_metrics(Namespace=namespace)["Metrics"] == [named]
    span = {"StartTime": now - timedelta(minutes=5), "EndTime": now + timedelta(minutes=1)}
    asked = {"Period": 60, "Statistics": ["Sum", "Average"], "Unit": "None"}
    points = cloudwatch.get_metric_statistics(**named, **span, **asked)["Datapoints"]
    points.sort(key=lambda point: point["Timestamp"])
    assert [(point["Timestamp"], point["Sum"], point["Average"]) for point in points] == [
        (now - timedelta(minutes=1), 7.0, 7.0),
        (now, 6.0, 1.5),
    ]
    queries = [
        {"Id": "m", "MetricStat": {"Metric": named, "Period": 60, "Stat": "Maximum"}, "ReturnData": False},
        {"Id": "twice", "Expression": "m * 2"},
    ]
    reply = cloudwatch.get_metric_data(MetricDataQueries=queries, **span, ScanBy="TimestampAscending")
    (result,) = reply["MetricDataResults"]
    assert (result["Id"], result["Values"], result["StatusCode"]) == ("twice", [14.0, 6.0], "Complete")


def test_the_life_of_an_alarm(cloudwatch):
    name = f"alarm-{time.time_ns()}"
    cloudwatch.put_metric_alarm(**{**HIGH, "AlarmName": name}, AlarmDescription="too many")
    (shown,) = cloudwatch.describe_alarms(AlarmNames=[name])["MetricAlarms"]
    assert (shown["StateValue"], shown["Threshold"], shown["AlarmDescription"]) == (INSUFFICIENT, 10.0, "too many")
    cloudwatch.set_alarm_state(AlarmName=name, StateValue=ALARM, StateReason="a test")
    (shown,) = cloudwatch.describe_alarms(AlarmNamePrefix=name, StateValue=ALARM)["MetricAlarms"]
    assert shown["StateReason"] == "a test"
    items = cloudwatch.describe_alarm_history(AlarmName=name)["AlarmHistoryItems"]
    assert [item["HistoryItemType"] for item in items] == ["StateUpdate", "ConfigurationUpdate"]
    assert json.loads(items[0]["HistoryData"])["newState"]["stateValue"] == ALARM
    cloudwatch.delete_alarms(AlarmNames=[name])
    assert cloudwatch.describe_alarms(AlarmNames=[name])["MetricAlarms"] == []


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"Period": 61}, "Period"),
        ({"Statistic": None}, "Statistic"),
        ({"Statistic": None, "ExtendedStatistic": "p101"}, "p101"),
        ({"DatapointsToAlarm": 4}, "datapoints to alarm"),
        ({"Period": 60, "EvaluationPeriods": 1441}, "more than a day"),
        ({"Period": 86400, "EvaluationPeriods": 1_000_000}, "more than a week"),
    ],
)
def test_bad_alarms_are_refused(cloudwatch, change, word):
    params = {name: value for name, value in {**HIGH, **change}.items() if value is not None}
    with pytest.raises(ClientError, match=word):
        cloudwatch.put_metric_alarm(**params)


def test_a_caller_cannot_write_awss_own_metrics(cloudwatch):
    with pytest.raises(ClientError, match="AWS/"):
        cloudwatch.put_metric_data(Namespace="AWS/SageMaker", MetricData=[{"MetricName": "x", "Value": 1.0}])
    with pytest.raises(ClientError, match="MissingParameter"):
        cloudwatch.put_metric_data(Namespace="mine", MetricData=[{"MetricName": "x"}])
    with pytest.raises(ClientError, match="Counts"):
        cloudwatch.put_metric_data(Namespace="mine", MetricData=[{"MetricName": "x", "Values": [1.0], "Counts": [0]}])
    with pytest.raises(ClientError, match="NaN"):
        cloudwatch.put_metric_data(Namespace="mine", MetricData=[{"MetricName": "x", "Value": math.nan}])
