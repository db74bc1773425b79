"""Asynchronous invocation: retries on the rehearsal's clock, and where an event goes in the end."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import boto3
import pytest
from botocore.exceptions import ClientError

from opslib.rehearsal.clock import Clock
from opslib.rehearsal.functions.async_events import MOST_AT_ONCE, AsyncEvents
from opslib.rehearsal.functions.environment import Outcome
from tests.rehearsal.serving import allow, log_lines, make_role, unique, until
from tests.rehearsal.test_functions import functions, make_function  # noqa: F401 - fixtures

FAILING = """
import time

def handler(event, context):
    print("trying", flush=True)
    time.sleep(event.get("seconds", 0))
    if event.get("fail"):
        raise ValueError("broken on purpose")
    return {"answer": 42}
"""


@pytest.fixture
def queue(rehearsal):
    """The URL and the ARN of a queue."""
    sqs = boto3.client("sqs")
    url = sqs.create_queue(QueueName=unique("queue"))["QueueUrl"]
    yield url, sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    sqs.delete_queue(QueueUrl=url)


def received(url: str) -> dict:
    """Return the one message of a queue, once it is there."""

    def look() -> dict | None:
        found = boto3.client("sqs").receive_message(QueueUrl=url, MessageAttributeNames=["All"])
        return found["Messages"][0] if found.get("Messages") else None

    return until(look)


def sending_role(arn: str) -> str:
    return make_role("lambda.amazonaws.com", allow("sqs:SendMessage", resource=arn), allow("logs:*"))


def test_an_event_that_fails_goes_to_its_destination_and_to_the_dead_letters(functions, make_function, queue):  # noqa: F811
    url, arn = queue
    dead_url = boto3.client("sqs").create_queue(QueueName=unique("dead"))["QueueUrl"]
    dead = boto3.client("sqs").get_queue_attributes(QueueUrl=dead_url, AttributeNames=["QueueArn"])["Attributes"]
    name = make_function(FAILING, Role=sending_role("*"), DeadLetterConfig={"TargetArn": dead["QueueArn"]})
    shown = functions.get_function_configuration(FunctionName=name)
    assert shown["DeadLetterConfig"] == {"TargetArn": dead["QueueArn"]}
    functions.put_function_event_invoke_config(
        FunctionName=name, MaximumRetryAttempts=0, DestinationConfig={"OnFailure": {"Destination": arn}}
    )
    functions.invoke(FunctionName=name, InvocationType="Event", Payload=b'{"fail": 1}')
    record = json.loads(received(url)["Body"])
    assert (record["version"], record["requestPayload"]) == ("1.0", {"fail": 1})
    assert record["requestContext"]["condition"] == "RetriesExhausted"
    assert record["requestContext"]["approximateInvokeCount"] == 1
    assert record["requestContext"]["functionArn"].endswith(f":{name}:$LATEST")
    assert record["responseContext"] == {
        "statusCode": 200, "executedVersion": "$LATEST", "functionError": "Unhandled"
    }  # fmt: skip
    assert record["responsePayload"]["errorMessage"] == "broken on purpose"
    buried = received(dead_url)
    assert buried["Body"] == '{"fail": 1}'
    assert buried["MessageAttributes"]["ErrorMessage"]["StringValue"] == "broken on purpose"
    assert buried["MessageAttributes"]["RequestID"]["StringValue"] == record["requestContext"]["requestId"]


def test_a_success_has_its_own_destination_and_a_throttled_event_waits(functions, make_function, queue):  # noqa: F811
    url, arn = queue
    name = make_function(FAILING, Role=sending_role(arn))
    functions.put_function_event_invoke_config(
        FunctionName=name, Qualifier="$LATEST", DestinationConfig={"OnSuccess": {"Destination": arn}}
    )
    functions.put_function_concurrency(FunctionName=name, ReservedConcurrentExecutions=1)
    with ThreadPoolExecutor() as pool:
        slow = pool.submit(functions.invoke, FunctionName=name, Payload=b'{"seconds": 2}')
        until(lambda: log_lines(f"/aws/lambda/{name}"))  # it runs, and there is room for one only
        functions.invoke(FunctionName=name, InvocationType="Event")
        assert json.loads(slow.result()["Payload"].read()) == {"answer": 42}
    record = json.loads(received(url)["Body"])
    assert (record["requestContext"]["condition"], record["responsePayload"]) == ("Success", {"answer": 42})
    assert record["requestContext"]["approximateInvokeCount"] == 1


def test_an_event_of_a_function_that_is_shut_off_is_given_up_at_once(functions, make_function, queue):  # noqa: F811
    url, arn = queue
    name = make_function(FAILING, Role=sending_role(arn))
    functions.put_function_event_invoke_config(FunctionName=name, DestinationConfig={"OnFailure": {"Destination": arn}})
    functions.put_function_concurrency(FunctionName=name, ReservedConcurrentExecutions=0)
    functions.invoke(FunctionName=name, InvocationType="Event")
    record = json.loads(received(url)["Body"])
    context = record["requestContext"]
    assert (context["condition"], context["approximateInvokeCount"]) == ("ZeroReservedConcurrency", 0)
    assert "responsePayload" not in record
    assert log_lines(f"/aws/lambda/{name}") == []


def test_settings_come_and_go_and_need_the_roles_permission(functions, make_function, queue):  # noqa: F811
    name = make_function(FAILING, Role=make_role("lambda.amazonaws.com"))
    with pytest.raises(functions.exceptions.ResourceNotFoundException, match="doesn't have an EventInvokeConfig"):
        functions.get_function_event_invoke_config(FunctionName=name)
    functions.put_function_event_invoke_config(FunctionName=name, MaximumRetryAttempts=1)
    functions.update_function_event_invoke_config(FunctionName=name, MaximumEventAgeInSeconds=60)
    shown = functions.get_function_event_invoke_config(FunctionName=name)
    assert (shown["MaximumRetryAttempts"], shown["MaximumEventAgeInSeconds"]) == (1, 60)
    assert len(functions.list_function_event_invoke_configs(FunctionName=name)["FunctionEventInvokeConfigs"]) == 1
    wanted = {"OnFailure": {"Destination": queue[1]}}
    with pytest.raises(ClientError, match="does not have permissions to call SendMessage on SQS"):
        functions.put_function_event_invoke_config(FunctionName=name, DestinationConfig=wanted)
    functions.delete_function_event_invoke_config(FunctionName=name)
    assert functions.list_function_event_invoke_configs(FunctionName=name)["FunctionEventInvokeConfigs"] == []


def test_three_runs_on_a_fast_clock():
    counted, times, clock = [], [], Clock(3600)

    def run(event) -> Outcome:
        times.append(clock.time())
        return Outcome(b"null", "Unhandled", b"", 1.0)

    metrics = SimpleNamespace(count=lambda target, metric: counted.append(metric))
    settings = SimpleNamespace(of=lambda target: {})
    events = AsyncEvents(SimpleNamespace(run=run, exists=lambda function: True, metrics=metrics), settings, clock)
    target = SimpleNamespace(without_latest=None)
    events.accept(SimpleNamespace(target=target, function=SimpleNamespace()))
    until(lambda: "AsyncEventsDropped" in counted)
    first, second, third = times
    assert second - first >= 60
    assert third - second >= 120


def test_an_event_of_a_deleted_function_is_not_tried_again():
    ran, deleted = [], set()

    def run(event) -> Outcome:
        ran.append(event.function.name)
        if event.function.name == "deleted":
            deleted.add("deleted")
        return Outcome(b"null", "Unhandled", b"", 1.0)

    metrics = SimpleNamespace(count=lambda target, metric: None)
    runner = SimpleNamespace(run=run, exists=lambda function: function.name not in deleted, metrics=metrics)
    events = AsyncEvents(runner, SimpleNamespace(of=lambda target: {}), Clock(3600))
    for name in ("deleted", "there"):
        target = SimpleNamespace(without_latest=None)
        events.accept(SimpleNamespace(target=target, function=SimpleNamespace(name=name)))
    until(lambda: ran.count("there") == 3)
    assert ran.count("deleted") == 1
    events.stop()


def test_events_of_what_was_updated_published_and_named_still_run(functions, make_function, tmp_path):  # noqa: F811
    name = make_function("import pathlib\ndef handler(event, context):\n    pathlib.Path(event['file']).touch()\n")
    version = functions.publish_version(FunctionName=name)["Version"]
    functions.create_alias(FunctionName=name, Name="live", FunctionVersion=version)
    functions.update_function_configuration(FunctionName=name, Description="another")
    for qualifier in ("$LATEST", version, "live"):
        event = json.dumps({"file": str(tmp_path / qualifier)})
        functions.invoke(FunctionName=name, Qualifier=qualifier, InvocationType="Event", Payload=event)
    until(lambda: {one.name for one in tmp_path.iterdir()} == {"$LATEST", version, "live"})


def test_a_thousand_events_wait_for_their_turn():
    running, peaks, counted, lock = [], [], [], threading.Lock()

    def run(event) -> Outcome:
        with lock:
            running.append(event)
            peaks.append(len(running))
        time.sleep(0.01)
        with lock:
            running.remove(event)
        return Outcome(b"null", "", b"", 1.0)

    metrics = SimpleNamespace(count=lambda target, metric: counted.append(metric))
    settings = SimpleNamespace(of=lambda target: {})
    events = AsyncEvents(SimpleNamespace(run=run, exists=lambda function: True, metrics=metrics), settings, Clock(1))
    for number in range(1000):
        target = SimpleNamespace(without_latest=None, number=number)
        events.accept(SimpleNamespace(target=target, function=SimpleNamespace()))
    until(lambda: len(peaks) == 1000 and not running)
    assert max(peaks) <= MOST_AT_ONCE
    assert counted == ["AsyncEventsReceived"] * 1000
    events.stop()
