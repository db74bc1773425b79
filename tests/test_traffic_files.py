"""Files of traffic as spreadsheets, scripts and CloudWatch write them."""

import json
from datetime import UTC, datetime, timedelta

import pytest

from opslib.errors import ConfigurationError
from opslib.traffic_files import read_cloudwatch, read_csv

BEGIN = datetime(2026, 3, 1, 10, tzinfo=UTC)


@pytest.mark.parametrize(
    "text",
    [
        "time,rate\n0,1.5\n60,2\n",
        "\ufefftime,rate\r\n0,1.5\r\n60,2\r\n",
        "0,1.5\n60,2\n",
        "\ufeff0,1.5\n60,2\n",
        "Zeit;Anfragen/s\n0;1,5\n60;2\n",
        "time\trate\n0\t1.5\n60\t2\n",
        "time,rate\n60,2\n0,1.5\n",
        "time,rate,note\n\n 0 , 1.5 ,x\n  \n60,2,y\n\n",
    ],
)
def test_a_table_however_it_was_written(tmp_path, text) -> None:
    path = tmp_path / "traffic.csv"
    path.write_text(text, encoding="utf-8", newline="")
    assert read_csv(path) == [(0, 1.5), (60, 2)]


def test_times_with_zones_without_and_in_milliseconds(tmp_path) -> None:
    path, moment = tmp_path / "traffic.csv", BEGIN.timestamp()
    for first, second in (
        ("2026-03-01T10:00:00", "2026-03-01 10:01:00Z"),
        ("2026-03-01T12:00:00+02:00", "2026-03-01T05:01:00-05:00"),
        (f"{moment * 1000:.0f}", f"{moment * 1000 + 60_000:.0f}"),
    ):
        path.write_text(f"time,rate\n{first},1\n{second},2\n")
        assert read_csv(path) == [(moment, 1), (moment + 60, 2)]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "0 row"),
        ("time,rate\n", "0 row"),
        ("time,rate\n0,1\n", "1 row"),
        ("0,1\ntime,rate\n", "line 2"),
        ("time,rate\n0,1\n60,x\n", "line 3"),
        ("0,x\n60,1\n", "line 1"),
        ("time\n0\n60\n", "one column"),
        ("time,rate\n0,-1\n60,2\n", "-1.0 at 0"),
        ("time,rate\n0,1\n60,nan\n", "nan at 60"),
        ("time,rate\nnan,1\n60,2\n", "at nan"),
        ("time,rate\n0,1\n0,2\n", "the time 0 occurs twice"),
        ("time,rate\n0,1,5\n60,2,5\n", "line 2: more columns than the first"),
    ],
)
def test_what_is_no_traffic_is_told_with_its_place(tmp_path, text, told) -> None:
    path = tmp_path / "traffic.csv"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=told):
        read_csv(path)


def test_another_encoding_is_told(tmp_path) -> None:
    path = tmp_path / "traffic.csv"
    path.write_text("time,rate\n0,1\n60,2\n", encoding="utf-16")
    with pytest.raises(ConfigurationError, match="UTF-8"):
        read_csv(path)


def test_both_replies_of_cloudwatch_from_boto3_and_from_the_command_line(tmp_path) -> None:
    moments = [BEGIN + timedelta(minutes=minute) for minute in (1, 0)]
    wanted = [(BEGIN.timestamp(), 30), (BEGIN.timestamp() + 60, 60)]
    statistics = {"Datapoints": [{"Timestamp": at, "Sum": value} for at, value in zip(moments, (60, 30), strict=True)]}
    pages = [{"Id": "n", "Timestamps": [at], "Values": [value]} for at, value in zip(moments, (60, 30), strict=True)]
    other = {"Id": "latency", "Timestamps": moments, "Values": [5, 5]}
    for reply in (statistics, {"MetricDataResults": [*pages, other]}):
        assert read_cloudwatch(reply) == wanted
        path = tmp_path / "reply.json"
        path.write_text(json.dumps(reply, default=datetime.isoformat))
        assert read_cloudwatch(path) == wanted


@pytest.mark.parametrize(
    ("reply", "told"),
    [
        ({}, "no values"),
        ({"MetricDataResults": []}, "no values"),
        ({"Datapoints": []}, "no values"),
        ({"Datapoints": [{"Timestamp": BEGIN, "Average": 1}]}, "Sum"),
        ({"MetricDataResults": [{"Id": "n", "Timestamps": [BEGIN], "Values": [-1]}]}, "-1.0"),
        ({"MetricDataResults": [{"Id": "n", "Timestamps": ["yesterday"], "Values": [1]}]}, "yesterday"),
    ],
)
def test_a_reply_without_sums_is_told(reply, told) -> None:
    with pytest.raises(ConfigurationError, match=told):
        read_cloudwatch(reply)
