"""The log of a function as JSON, and the levels that it keeps."""

import base64
import json
import re

import pytest
from botocore.exceptions import ClientError

from tests.rehearsal.serving import log_lines, unique, until
from tests.rehearsal.test_functions import functions, invoke, make_function, updated  # noqa: F401 - fixtures

SPEAKING = """
import logging, os, time
log = logging.getLogger()

def handler(event, context):
    log.info("an info"), log.warning("a warning")
    if event.get("exit"):
        os._exit(3)
    time.sleep(event.get("sleep", 0))
"""


def records(group: str) -> list[dict]:
    return [json.loads(line) for line in log_lines(group) if line.startswith("{")]


def test_json_lines_of_lambda_and_of_the_function(functions, make_function):  # noqa: F811
    name = make_function(SPEAKING, LoggingConfig={"LogFormat": "JSON"}, Timeout=1)
    shown = functions.get_function_configuration(FunctionName=name)["LoggingConfig"]
    group = f"/aws/lambda/{name}"
    assert shown == {"LogFormat": "JSON", "LogGroup": group, "ApplicationLogLevel": "INFO", "SystemLogLevel": "INFO"}
    request_id = invoke(functions, name)["ResponseMetadata"]["RequestId"]
    for event in ({"exit": 1}, {"sleep": 3}):
        assert invoke(functions, name, event)["FunctionError"] == "Unhandled"
    until(lambda: len([one for one in records(group) if one.get("type") == "platform.report"]) == 3)
    found = records(group)
    assert [one["message"] for one in found if one.get("requestId") == request_id] == ["an info", "a warning"]
    assert len([one for one in found if one.get("type") == "platform.start"]) == 3
    reports = [one["record"] for one in found if one.get("type") == "platform.report"]
    assert sorted(one["status"] for one in reports) == ["error", "success", "timeout"]
    first = next(one for one in reports if one["requestId"] == request_id)
    assert first["metrics"]["initDurationMs"] > 0
    assert first["metrics"]["billedDurationMs"] >= first["metrics"]["durationMs"]
    assert next(one for one in reports if one["status"] == "error")["errorType"] == "Runtime.ExitError"
    assert not [line for line in log_lines(group) if line.startswith(("START ", "END ", "REPORT "))]


def test_levels_and_another_group(functions, make_function):  # noqa: F811
    group = f"/shared/{unique('group')}"
    wanted = {"LogFormat": "JSON", "ApplicationLogLevel": "WARN", "SystemLogLevel": "WARN", "LogGroup": group}
    name = make_function(SPEAKING, LoggingConfig=wanted)
    invoke(functions, name)
    until(lambda: records(group))
    assert [one["message"] for one in records(group)] == ["a warning"]
    functions.update_function_configuration(FunctionName=name, LoggingConfig={"LogFormat": "Text"})
    updated(functions, name)
    invoke(functions, name)
    until(lambda: any(line.startswith("REPORT ") for line in log_lines(group)))
    with pytest.raises(ClientError, match="cannot be set when LogFormat is Text"):
        functions.update_function_configuration(FunctionName=name, LoggingConfig={"SystemLogLevel": "WARN"})


FLOOD = """
def handler(event, context):
    for _ in range(12):
        print(("x" * 1023 + chr(10)) * 1024, end="")
"""


@pytest.mark.parametrize("form", ["Text", "JSON"])
def test_of_a_flood_of_output_a_part_is_kept(functions, make_function, form):  # noqa: F811
    name = make_function(FLOOD, LoggingConfig={"LogFormat": form}, Timeout=30)
    tail = base64.b64decode(invoke(functions, name, LogType="Tail")["LogResult"]).decode()
    found = re.search(r'(\d+) bytes of output were dropped|"droppedBytes":(\d+)', tail)
    assert 5 * 2**20 <= int(found[1] or found[2]) <= 6 * 2**20
    assert re.search(r'REPORT RequestId|"type":"platform.report"', tail.splitlines()[-1])
