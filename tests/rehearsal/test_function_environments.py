"""What becomes of an environment: its memory, its initialisation, its end, and its sleep between invocations."""

import base64
import re
import time
from itertools import pairwise

import psutil
import pytest

from opslib.rehearsal.functions import environment
from tests.rehearsal.serving import is_running, until
from tests.rehearsal.test_functions import functions, invoke, make_function  # noqa: F401 - fixtures


@pytest.mark.parametrize(
    ("event", "error_type", "words", "status"),
    [
        ({"sleep": 30}, "Sandbox.Timedout", "Error: Task timed out after 1.00 seconds", "Status: timeout"),
        ({"allocate_mb": 300}, "Runtime.ExitError", "Runtime exited with error: signal: killed", "Runtime.ExitError"),
        ({"exit": 3}, "Runtime.ExitError", "Runtime exited with error: exit status 3", "Runtime.ExitError"),
        ({"exit": 255}, "Runtime.ExitError", "Runtime exited with error: exit status 255", "Runtime.ExitError"),
        ({"exit": 0}, "Runtime.ExitError", "Runtime exited without providing a reason", "Runtime.ExitError"),
        (
            {"respond_bytes": 6_291_557},
            "Function.ResponseSizeTooLarge",
            "Response payload size exceeded maximum allowed payload size (6291556 bytes).",
            "Function.ResponseSizeTooLarge",
        ),
    ],
    ids=["time-out", "memory", "exit 3", "exit 255", "exit 0", "response"],
)  # fmt: skip
def test_an_environment_that_cannot_go_on_is_replaced(functions, make_function, event, error_type, words, status):  # noqa: F811
    name = make_function(Timeout=1 if "sleep" in event else 10)
    pid = invoke(functions, name)["Payload"]["pid"]
    reply = invoke(functions, name, event, LogType="Tail")
    assert reply["FunctionError"] == "Unhandled"
    assert reply["Payload"]["errorType"] == error_type
    assert reply["Payload"]["errorMessage"].endswith(words)
    assert not is_running(pid)
    report = base64.b64decode(reply["LogResult"]).decode().splitlines()[-1]
    assert report.startswith("REPORT RequestId: ")
    assert status in report
    assert invoke(functions, name)["Payload"]["count"] == 1


def test_an_endless_recursion_is_an_error_of_the_handler(functions, make_function):  # noqa: F811
    name = make_function("def handler(event, context):\n    return handler(event, context)")
    error = invoke(functions, name)["Payload"]
    assert (error["errorType"], "maximum recursion depth" in error["errorMessage"]) == ("RecursionError", True)


MEMORY = """
import os, time
held = b"x" * (60 * 2**20)
def handler(event, context):
    if "peak_mb" in event:
        return len(b"x" * (event["peak_mb"] * 2**20))
    children = []
    for _ in range(8):
        children.append(os.fork())
        if children[-1] == 0:
            time.sleep(0.5)
            os._exit(0)
    for child in children:
        os.waitpid(child, 0)
    return "together"
"""


def test_memory_is_measured_at_its_peak_and_what_processes_share_once(functions, make_function):  # noqa: F811
    name = make_function(MEMORY, MemorySize=160, Timeout=20)
    assert invoke(functions, name)["Payload"] == "together"
    reply = invoke(functions, name, {"peak_mb": 50}, LogType="Tail")
    used = int(re.search(r"Max Memory Used: (\d+) MB", base64.b64decode(reply["LogResult"]).decode())[1])
    assert 110 < used < 160
    error = invoke(functions, name, {"peak_mb": 120})["Payload"]
    assert error["errorMessage"].endswith("signal: killed")


TICKING = """
import threading, time
ticks = []
def tick():
    while True:
        ticks.append(time.monotonic())
        time.sleep(0.01)
threading.Thread(target=tick, daemon=True).start()
def handler(event, context):
    time.sleep(0.1)
    return ticks
"""


def test_between_invocations_nothing_runs(functions, make_function):  # noqa: F811
    name = make_function(TICKING)
    before = invoke(functions, name)["Payload"][-1]
    until(lambda: time.monotonic() > before + 0.5)
    after = [tick for tick in invoke(functions, name)["Payload"] if tick > before]
    assert len(after) < 30
    assert max(later - earlier for earlier, later in pairwise([before, *after])) > 0.3


def test_a_runtime_may_be_ready_before_its_start_is_noticed(functions, make_function, monkeypatch):  # noqa: F811
    started = environment.start_process

    def notice_late(*args, **kwargs):
        process = started(*args, **kwargs)
        until(lambda: psutil.Process(process.pid).net_connections("tcp"))
        until(lambda: psutil.Process(process.pid).status() == psutil.STATUS_SLEEPING)
        return process

    monkeypatch.setattr(environment, "start_process", notice_late)
    assert invoke(functions, make_function())["Payload"]["count"] == 1


TWICE = """
import os, pathlib, time
begun = pathlib.Path(os.environ["BEGUN"])
if not begun.exists():
    begun.touch()
    DO
def handler(event, context):
    return "the second time"
"""


@pytest.mark.parametrize(
    ("does", "status", "seconds"),
    [("raise RuntimeError('x')", "error\tError Type: RuntimeError", 10.0), ("time.sleep(60)", "timeout", 0.2)],
    ids=["fails", "takes too long"],
)
def test_an_initialisation_that_does_not_succeed_is_begun_anew(
    functions,  # noqa: F811
    make_function,  # noqa: F811
    monkeypatch,
    tmp_path,
    does,
    status,
    seconds,
):
    begun, started = tmp_path / "begun", environment.start_process

    def start_and_begin(*args, **kwargs):
        process = started(*args, **kwargs)
        until(begun.exists)  # on a busy machine Python itself may take longer to start than the initialisation may
        return process

    monkeypatch.setattr(environment, "start_process", start_and_begin)
    monkeypatch.setattr(environment, "INIT_SECONDS", seconds)
    name = make_function(TWICE.replace("DO", does), Timeout=20, Environment={"Variables": {"BEGUN": str(begun)}})
    reply = invoke(functions, name, LogType="Tail")
    assert reply["Payload"] == "the second time"
    tail = base64.b64decode(reply["LogResult"]).decode()
    assert re.search(rf"INIT_REPORT Init Duration: \d+\.\d\d ms\tPhase: init\tStatus: {status}\nSTART ", tail)
    assert "\tInit Duration" not in tail


def test_what_is_provisioned_may_take_its_time_to_initialise(functions, make_function, monkeypatch):  # noqa: F811
    monkeypatch.setattr(environment, "INIT_SECONDS", 0.01)
    name = make_function("def handler(event, context):\n    return 1")
    version = functions.publish_version(FunctionName=name)["Version"]
    named = {"FunctionName": name, "Qualifier": version}
    functions.put_provisioned_concurrency_config(**named, ProvisionedConcurrentExecutions=1)
    until(lambda: functions.get_provisioned_concurrency_config(**named)["Status"] != "IN_PROGRESS")
    assert functions.get_provisioned_concurrency_config(**named)["Status"] == "READY"
    functions.delete_provisioned_concurrency_config(**named)


def test_who_prints_without_end_is_stopped_in_time(functions, make_function):  # noqa: F811
    name = make_function("def handler(event, context):\n    while True:\n        print(1)", Timeout=2)
    started = time.monotonic()
    reply = invoke(functions, name, LogType="Tail")
    assert reply["Payload"]["errorType"] == "Sandbox.Timedout"
    assert time.monotonic() - started < 2 * 2 + 10
    assert re.search(r"bytes .*dropped|dropped .*bytes", base64.b64decode(reply["LogResult"]).decode())


ASKS_ITSELF = """
import http.client, os, threading, time
def ask():
    connection = http.client.HTTPConnection(os.environ["AWS_LAMBDA_RUNTIME_API"])
    connection.request("GET", "/2018-06-01/runtime/invocation/next")
    connection.getresponse()
def handler(event, context):
    threading.Thread(target=ask, daemon=True).start()
    time.sleep(0.3)
    return "not frozen"
"""


def test_a_request_under_way_is_not_frozen_by_who_asks_for_the_next(functions, make_function):  # noqa: F811
    assert invoke(functions, make_function(ASKS_ITSELF, Timeout=5))["Payload"] == "not frozen"
