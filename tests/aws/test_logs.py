"""Log lines are read once each, and groups and streams can be deleted twice."""

import time

from opslib.aws import logs
from opslib.aws.ledger import RUN_TAG
from opslib.aws.session import client


def put(group: str, stream: str, *lines: str) -> None:
    """Write lines to a stream, making it if need be."""
    service, now = client("logs"), int(time.time() * 1000)
    if stream not in logs.list_log_streams(group, stream):
        service.create_log_stream(logGroupName=group, logStreamName=stream)
    events = [{"timestamp": now, "message": line} for line in lines]
    service.put_log_events(logGroupName=group, logStreamName=stream, logEvents=events)


def test_a_group_is_tagged_and_forgets(run) -> None:
    group = logs.function_group(run.name("function"))
    logs.ensure_log_group(run, group)
    logs.ensure_log_group(run, group)
    assert client("logs").list_tags_log_group(logGroupName=group)["tags"] == {RUN_TAG: run.run_id}
    found = client("logs").describe_log_groups(logGroupNamePrefix=group)["logGroups"]
    assert found[0]["retentionInDays"] == logs.RETENTION_DAYS
    logs.delete_log_group(group)
    logs.delete_log_group(group)
    assert logs.list_log_groups(group) == []


def test_each_line_is_read_once(run) -> None:
    group = logs.function_group(run.name("function"))
    reader = logs.LogReader(group, "job/")
    assert reader.read() == []  # no group yet
    logs.ensure_log_group(run, group)
    put(group, "job/algo-1-1700000000", "one\n", "two\r\n")
    assert reader.read() == ["one", "two"]
    assert reader.read() == []
    put(group, "job/algo-1-1700000000", "three")
    assert reader.read() == ["three"]


def test_several_hosts_are_told_apart(run) -> None:
    group = logs.function_group(run.name("function"))
    logs.ensure_log_group(run, group)
    put(group, "job/algo-1-1700000000", "one")
    put(group, "job/algo-2-1700000000", "two")
    put(group, "other/algo-1-1700000000", "not ours")
    assert logs.LogReader(group, "job/").read() == ["[algo-1] one", "[algo-2] two"]


def test_the_tail_is_the_last_lines(run) -> None:
    group = logs.function_group(run.name("function"))
    assert logs.log_tail(group) == ""
    logs.ensure_log_group(run, group)
    put(group, "s", *(f"line {number}" for number in range(30)))
    assert logs.log_tail(group, count=2) == "  | line 28\n  | line 29"


def test_streams_are_deleted_by_prefix(run) -> None:
    group = logs.function_group(run.name("function"))
    logs.delete_log_streams(group, "job/")  # no group
    logs.ensure_log_group(run, group)
    put(group, "job/algo-1-1", "x")
    put(group, "job-2/algo-1-1", "x")
    logs.delete_log_streams(group, "job/")
    assert logs.list_log_streams(group, "") == ["job-2/algo-1-1"]
