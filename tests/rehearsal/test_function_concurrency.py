"""How many invocations run at once: reserved concurrency, the account's pool, and the client's retries."""

import base64
import os
import re
import signal
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from tests.rehearsal.serving import is_running, until
from tests.rehearsal.test_functions import functions, invoke, make_function  # noqa: F401 - fixtures

CALLS, RESERVED = 40, 10

GATED = """
import os, time

def handler(event, context):
    began = time.monotonic()
    if "gate" in event:
        open(os.path.join(event["gate"], context.aws_request_id), "w").close()
        while not os.path.exists(os.path.join(event["gate"], "open")) and context.get_remaining_time_in_millis() > 500:
            time.sleep(0.01)
    time.sleep(event.get("sleep", 0))
    return {"pid": os.getpid(), "began": began, "ended": time.monotonic()}
"""


def test_ten_of_forty_run_and_the_others_are_throttled_until_their_client_tries_again(
    functions,  # noqa: F811
    make_function,  # noqa: F811
    tmp_path,
):
    name = make_function(GATED, Timeout=60)
    functions.put_function_concurrency(FunctionName=name, ReservedConcurrentExecutions=RESERVED)
    once = boto3.client("lambda", config=Config(retries={"total_max_attempts": 1}, max_pool_connections=CALLS))

    def ask(_: int) -> dict:
        try:
            return invoke(once, name, {"gate": str(tmp_path)})["Payload"]
        except ClientError as error:
            return error.response

    with ThreadPoolExecutor(CALLS) as threads:
        asked = [threads.submit(ask, number) for number in range(CALLS)]
        until(lambda: sum(one.done() for one in asked) == CALLS - RESERVED)
        until(lambda: len(list(tmp_path.iterdir())) == RESERVED)
        (tmp_path / "open").touch()
        replies = [one.result() for one in asked]
    throttled = [reply for reply in replies if "Error" in reply]
    assert len(throttled) == CALLS - RESERVED
    for reply in throttled:
        assert reply["Error"] == {"Code": "TooManyRequestsException", "Message": "Rate Exceeded."}
        assert reply["Reason"] == "ReservedFunctionConcurrentInvocationLimitExceeded"
        assert reply["ResponseMetadata"]["HTTPStatusCode"] == 429
        assert "retry-after" in reply["ResponseMetadata"]["HTTPHeaders"]
    assert sums(name, "Throttles", "Sum") == CALLS - RESERVED
    assert sums(name, "ConcurrentExecutions", "Maximum") == RESERVED
    listed = boto3.client("cloudwatch").list_metrics(Namespace="AWS/Lambda", MetricName="ConcurrentExecutions")
    assert [] in [one["Dimensions"] for one in listed["Metrics"]]  # of all functions together, too
    environments = {reply["pid"] for reply in replies if "pid" in reply}
    assert len(environments) == RESERVED

    retries = {"mode": "standard", "total_max_attempts": 10}  # the default of three can be too few for four rounds
    patient = boto3.client("lambda", config=Config(retries=retries, max_pool_connections=CALLS))
    with ThreadPoolExecutor(CALLS) as threads:
        answers = list(threads.map(lambda _: invoke(patient, name, {"sleep": 0.2}), range(CALLS)))
    assert any(answer["ResponseMetadata"]["RetryAttempts"] for answer in answers)
    assert {answer["Payload"]["pid"] for answer in answers} <= environments
    assert peak([answer["Payload"] for answer in answers]) <= RESERVED


def sums(name: str, metric: str, statistic: str, **dimensions: str) -> float:
    """Return a statistic of the last hour of a function's metric."""
    named = [{"Name": key, "Value": value} for key, value in {"FunctionName": name, **dimensions}.items()]
    now = datetime.now(UTC)
    found = boto3.client("cloudwatch").get_metric_statistics(
        Namespace="AWS/Lambda", MetricName=metric, Dimensions=named, Statistics=[statistic], Period=7200,
        StartTime=now - timedelta(hours=2), EndTime=now + timedelta(hours=2),
    )["Datapoints"]  # fmt: skip
    return (max if statistic == "Maximum" else sum)(point[statistic] for point in found)


def peak(spans: list[dict]) -> int:
    """Return how many of the spans overlap at most."""
    return max(sum(one["began"] <= other["began"] < one["ended"] for one in spans) for other in spans)


def test_ten_requests_a_second_for_each_unit_of_a_reservation(functions, make_function):  # noqa: F811
    name = make_function("def handler(event, context): return 1")
    invoke(functions, name)
    functions.put_function_concurrency(FunctionName=name, ReservedConcurrentExecutions=1)
    reasons = []
    for _ in range(40):  # one after the other: never two at once, and each takes a few milliseconds
        try:
            functions.invoke(FunctionName=name)
        except functions.exceptions.TooManyRequestsException as error:
            reasons.append(error.response["Reason"])
    assert set(reasons) == {"ReservedFunctionInvocationRateLimitExceeded"}


def test_a_hundred_stay_unreserved_and_reservations_do_not_touch_each_other(functions, make_function):  # noqa: F811
    first, second = make_function(GATED), make_function(GATED)
    functions.put_function_concurrency(FunctionName=first, ReservedConcurrentExecutions=900)
    with pytest.raises(ClientError, match=r"UnreservedConcurrentExecution below its minimum value of \[100\]"):
        functions.put_function_concurrency(FunctionName=second, ReservedConcurrentExecutions=1)
    functions.put_function_concurrency(FunctionName=first, ReservedConcurrentExecutions=899)
    functions.put_function_concurrency(FunctionName=second, ReservedConcurrentExecutions=1)
    assert invoke(functions, second)["StatusCode"] == 200


def test_invocations_are_measured(functions, make_function):  # noqa: F811
    name = make_function("def handler(event, context): return 1 / event['n']")
    functions.invoke(FunctionName=name, Payload=b'{"n": 1}')
    functions.invoke(FunctionName=name, Payload=b'{"n": 0}', Qualifier="$LATEST")
    tail = base64.b64decode(functions.invoke(FunctionName=name, Payload=b'{"n": 2}', LogType="Tail")["LogResult"])
    assert (sums(name, "Invocations", "Sum"), sums(name, "Errors", "Sum"), sums(name, "Throttles", "Sum")) == (3, 1, 0)
    reported = float(re.search(rb"\tDuration: ([\d.]+) ms", tail)[1])
    assert sums(name, "Duration", "Maximum") >= reported - 0.01
    assert sums(name, "Invocations", "Sum", Resource=f"{name}:$LATEST") == 1


def test_no_environment_takes_the_last_of_the_machines_memory(functions, make_function, monkeypatch):  # noqa: F811
    name = make_function("def handler(event, context): return 1")
    memory = SimpleNamespace(total=100, available=4)
    monkeypatch.setattr("opslib.rehearsal.functions.pool.psutil.virtual_memory", lambda: memory)
    with pytest.raises(functions.exceptions.TooManyRequestsException):
        functions.invoke(FunctionName=name)
    memory.available = 50
    assert invoke(functions, name)["Payload"] == 1


def test_an_environment_that_was_killed_while_idle_is_not_used(functions, make_function):  # noqa: F811
    name = make_function(GATED)
    for _ in range(5):
        pid = invoke(functions, name)["Payload"]["pid"]
        os.kill(pid, signal.SIGKILL)
        assert invoke(functions, name)["Payload"]["pid"] != pid


def test_what_runs_while_its_function_is_deleted_comes_to_its_end(functions, make_function, tmp_path):  # noqa: F811
    name = make_function(GATED, Timeout=60)
    with ThreadPoolExecutor() as threads:
        asked = threads.submit(invoke, functions, name, {"gate": str(tmp_path)})
        until(lambda: list(tmp_path.iterdir()))
        functions.delete_function(FunctionName=name)
        with pytest.raises(functions.exceptions.ResourceNotFoundException):
            functions.invoke(FunctionName=name)
        (tmp_path / "open").touch()
        pid = asked.result()["Payload"]["pid"]
    until(lambda: not is_running(pid))


def test_the_first_calls_of_a_version_make_its_environments_once(functions, make_function, tmp_path):  # noqa: F811
    name = make_function(GATED, Timeout=60)
    version = functions.publish_version(FunctionName=name)["Version"]

    def ask_together(gate) -> set[int]:
        gate.mkdir()
        event = {"gate": str(gate)}
        with ThreadPoolExecutor(5) as threads:
            asked = [threads.submit(invoke, functions, name, event, Qualifier=version) for _ in range(5)]
            until(lambda: len(list(gate.iterdir())) == 5)
            (gate / "open").touch()
            return {one.result()["Payload"]["pid"] for one in asked}

    assert ask_together(tmp_path / "first") == ask_together(tmp_path / "second")


def test_the_accounts_pool_shrinks_by_what_is_reserved_and_its_use_is_measured(
    functions,  # noqa: F811
    make_function,  # noqa: F811
    tmp_path,
):
    name = make_function(GATED, Timeout=60)
    before = functions.get_account_settings()
    limit, usage = before["AccountLimit"], before["AccountUsage"]
    assert (limit["ConcurrentExecutions"], limit["CodeSizeUnzipped"]) == (1000, 262144000)
    assert usage["FunctionCount"] >= 1
    assert usage["TotalCodeSize"] >= functions.get_function_configuration(FunctionName=name)["CodeSize"]
    other = make_function(GATED)
    functions.put_function_concurrency(FunctionName=other, ReservedConcurrentExecutions=7)
    left = functions.get_account_settings()["AccountLimit"]["UnreservedConcurrentExecutions"]
    assert left == limit["UnreservedConcurrentExecutions"] - 7
    with ThreadPoolExecutor() as threads:
        event = {"gate": str(tmp_path)}
        asked = [threads.submit(invoke, functions, one, event) for one in (name, name, other)]
        until(lambda: len(list(tmp_path.iterdir())) == 3)
        (tmp_path / "open").touch()
        assert all(one.result()["StatusCode"] == 200 for one in asked)
    most = {
        metric: peak_of_region(metric) for metric in ("UnreservedConcurrentExecutions", "ClaimedAccountConcurrency")
    }
    assert most["UnreservedConcurrentExecutions"] >= 2
    assert most["ClaimedAccountConcurrency"] >= 1000 - left + 1


def peak_of_region(metric: str) -> float:
    now = datetime.now(UTC)
    points = boto3.client("cloudwatch").get_metric_statistics(
        Namespace="AWS/Lambda", MetricName=metric, Period=60, Statistics=["Maximum"],
        StartTime=now - timedelta(minutes=10), EndTime=now + timedelta(minutes=10),
    )["Datapoints"]  # fmt: skip
    return max((point["Maximum"] for point in points), default=0)
