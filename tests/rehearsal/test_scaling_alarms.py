"""What scaling reads of the alarms that were put by hand."""

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest

from opslib.rehearsal.calls import Call
from opslib.rehearsal.scaling.alarms import Alarms

HOUR = datetime(2027, 1, 15, 8, tzinfo=UTC)


def every_five_minutes(call: Call) -> dict:
    """Answer GetMetricData with a value at each five minutes of the hour, the newest first."""
    times = [HOUR + timedelta(minutes=minute) for minute in range(55, -1, -5)]
    found = [at for at in times if call.params["StartTime"] <= at < call.params["EndTime"]]
    return {"MetricDataResults": [{"Id": "e", "Timestamps": found, "Values": [float(at.minute) for at in found]}]}


@pytest.mark.parametrize("minute", range(30, 35))
def test_metric_math_over_five_minutes_has_a_value_in_each_minute(minute) -> None:
    alarms = Alarms(SimpleNamespace(operations={"cloudwatch.GetMetricData": every_five_minutes}))
    stat = {"Metric": {"Namespace": "own", "MetricName": "busy"}, "Stat": "Sum", "Period": 300}
    queries = [{"Id": "e", "Expression": "m * 2"}, {"Id": "m", "MetricStat": stat, "ReturnData": False}]
    measured, value = alarms.newest_value("eu-central-1", {"Metrics": queries}, HOUR + timedelta(minutes=minute))
    assert HOUR + timedelta(minutes=minute) - measured <= timedelta(minutes=5)
    assert value == measured.minute
