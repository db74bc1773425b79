import base64
import io
import json
import re
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from tests.rehearsal.serving import (
    allow,
    client_of,
    is_running,
    log_lines,
    make_role,
    pack_function,
    unique,
    until,
)

HANDLER = """
import json, os, time, urllib.request
state = {"count": 0}
print("initialised")

def handler(event, context):
    print("handling", json.dumps(event))
    state["count"] += 1
    if "sleep" in event:
        time.sleep(event["sleep"])
    if "allocate_mb" in event:
        held = b"x" * (event["allocate_mb"] * 2**20)
        time.sleep(5)
    if "exit" in event:
        os._exit(event["exit"])
    if "raise" in event:
        raise ValueError(event["raise"])
    if "respond_bytes" in event:
        return "x" * event["respond_bytes"]
    return {"count": state["count"], "pid": os.getpid(), "event": event, "request_id": context.aws_request_id,
            "milliseconds_left": context.get_remaining_time_in_millis(), "arn": context.invoked_function_arn,
            "stream": context.log_stream_name, "variables": dict(os.environ)}
"""


@pytest.fixture
def functions(rehearsal):
    """A Lambda client that repeats nothing by itself."""
    return boto3.client("lambda", config=Config(retries={"total_max_attempts": 1}))


@pytest.fixture
def make_function(functions, role):
    """Return a function that makes a Lambda function and waits until it is Active; returns its name."""
    made = []

    def make(source: str = HANDLER, *, wait: bool = True, **settings) -> str:
        name = unique("function")
        defaults = {
            "Runtime": "python3.13",
            "Role": role,
            "Handler": "app.handler",
            "Code": {"ZipFile": pack_function(source)},
        }
        functions.create_function(**{"FunctionName": name, **defaults, **settings})
        made.append(name)
        if wait:
            until(lambda: functions.get_function(FunctionName=name)["Configuration"]["State"] == "Active")
        return name

    yield make
    for name in made:
        with suppress(functions.exceptions.ResourceNotFoundException):
            functions.delete_function(FunctionName=name)


def invoke(functions, name: str, event: dict | None = None, **more) -> dict:
    """Return the reply with its payload decoded under "Payload"."""
    reply = functions.invoke(FunctionName=name, Payload=json.dumps(event or {}), **more)
    return {**reply, "Payload": json.loads(reply["Payload"].read() or b"null")}


def updated(functions, name: str) -> None:
    until(lambda: functions.get_function_configuration(FunctionName=name)["LastUpdateStatus"] == "Successful")


def test_a_function_becomes_active_and_answers(functions, make_function):
    name = make_function(Timeout=7, Environment={"Variables": {"ENDPOINT_NAME": "dogs"}})
    reply = invoke(functions, name, {"a": 1}, LogType="Tail")
    assert (reply["StatusCode"], reply["ExecutedVersion"], "FunctionError" in reply) == (200, "$LATEST", False)
    answer = reply["Payload"]
    assert answer["event"] == {"a": 1}
    assert answer["arn"] == f"arn:aws:lambda:us-east-1:000000000000:function:{name}"
    assert answer["request_id"] == reply["ResponseMetadata"]["RequestId"]
    assert 5000 < answer["milliseconds_left"] <= 7000
    tail = base64.b64decode(reply["LogResult"]).decode()
    request_id = answer["request_id"]
    assert re.search(
        rf"initialised\nSTART RequestId: {request_id} Version: \$LATEST\nhandling .*\nEND RequestId: {request_id}\n"
        rf"REPORT RequestId: {request_id}\tDuration: \d+\.\d\d ms\tBilled Duration: \d+ ms\tMemory Size: 128 MB\t"
        r"Max Memory Used: \d+ MB\tInit Duration: \d+\.\d\d ms",
        tail,
    )
    assert "".join(log_lines(f"/aws/lambda/{name}")) == tail
    assert re.fullmatch(r"\d{4}/\d\d/\d\d/\[\$LATEST\][0-9a-f]{32}", answer["stream"])


def test_the_configuration_is_awss(functions, make_function):
    name = make_function(MemorySize=256, Description="d", Tags={"opslib:run": "r"})
    shown = functions.get_function(FunctionName=name)
    configuration = shown["Configuration"]
    assert configuration["MemorySize"] == 256
    assert configuration["Timeout"] == 3
    assert configuration["LastUpdateStatus"] == "Successful"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+0000", configuration["LastModified"])
    assert shown["Tags"] == {"opslib:run": "r"}
    pages = functions.get_paginator("list_functions").paginate(PaginationConfig={"PageSize": 1})
    assert name in [one["FunctionName"] for page in pages for one in page["Functions"]]


def test_the_process_has_lambdas_variables_and_none_of_the_users(functions, make_function, monkeypatch):
    monkeypatch.setenv("SECRET_OF_THE_USER", "x")
    name = make_function(Environment={"Variables": {"ENDPOINT_NAME": "dogs"}})
    variables = invoke(functions, name)["Payload"]["variables"]
    assert variables["ENDPOINT_NAME"] == "dogs"
    assert variables["AWS_REGION"] == "us-east-1"
    assert variables["AWS_LAMBDA_FUNCTION_NAME"] == name
    assert variables["AWS_EXECUTION_ENV"] == "AWS_Lambda_python3.13"
    assert {"AWS_SESSION_TOKEN", "_HANDLER", "LAMBDA_TASK_ROOT"} <= variables.keys()
    assert not {"SECRET_OF_THE_USER", "VIRTUAL_ENV", "PYTHONPATH"} & variables.keys()


def test_an_environment_is_used_again_and_another_one_starts_when_it_is_busy(functions, make_function):
    name = make_function()
    first, second = invoke(functions, name)["Payload"], invoke(functions, name)["Payload"]
    assert (second["count"], second["pid"]) == (2, first["pid"])
    with ThreadPoolExecutor(2) as pool:
        replies = list(pool.map(lambda _: invoke(functions, name, {"sleep": 0.5}), range(2)))
    assert len({reply["Payload"]["pid"] for reply in replies}) == 2


def test_an_exception_of_the_handler_comes_back_and_the_environment_lives_on(functions, make_function):
    name = make_function()
    pid = invoke(functions, name)["Payload"]["pid"]
    reply = invoke(functions, name, {"raise": "broken on purpose"})
    assert reply["FunctionError"] == "Unhandled"
    error = reply["Payload"]
    assert (error["errorType"], error["errorMessage"]) == ("ValueError", "broken on purpose")
    assert error["requestId"] == reply["ResponseMetadata"]["RequestId"]
    assert "raise ValueError" in error["stackTrace"][-1]
    assert invoke(functions, name)["Payload"]["pid"] == pid
    assert any(
        line.startswith("[ERROR] ValueError: broken") and "Traceback" in line
        for line in log_lines(f"/aws/lambda/{name}")
    )


@pytest.mark.parametrize(
    ("source", "handler", "error_type", "words"),
    [
        (
            "import numpy\ndef handler(e, c): pass",
            "app.handler",
            "Runtime.ImportModuleError",
            "No module named 'numpy'",
        ),
        (
            "def other(e, c): pass",
            "app.handler",
            "Runtime.HandlerNotFound",
            "Handler 'handler' missing on module 'app'",
        ),
        ("def handler(e, c) pass", "app.handler", "Runtime.UserCodeSyntaxError", "Syntax error in module 'app'"),
        ("raise KeyError('x')", "app.handler", "KeyError", "'x'"),
    ],
    ids=["a package that only this machine has", "no such function", "syntax", "raises at import"],
)
def test_code_that_cannot_be_imported_fails_as_on_aws(functions, make_function, source, handler, error_type, words):
    reply = invoke(functions, make_function(source, Handler=handler))
    assert reply["FunctionError"] == "Unhandled"
    assert reply["Payload"]["errorType"] == error_type
    assert words in reply["Payload"]["errorMessage"]


def test_the_handler_acts_as_the_functions_role(functions, make_function, bucket):
    source = """
import boto3
from botocore.exceptions import ClientError

def handler(event, context):
    identity = boto3.client("sts").get_caller_identity()["Arn"]
    try:
        boto3.client("s3").list_objects_v2(Bucket=event["bucket"])
    except ClientError as error:
        return [identity, error.response["Error"]["Code"]]
"""
    role = make_role("lambda.amazonaws.com", allow("logs:*"))
    name = make_function(source, Role=role, Timeout=20)
    identity, code = invoke(functions, name, {"bucket": bucket})["Payload"]
    assert identity == f"arn:aws:sts::000000000000:assumed-role/{role.rpartition('/')[2]}/{name}"
    assert code == "AccessDenied"


def test_without_permission_to_log_no_line_is_kept(functions, make_function):
    name = make_function(Role=make_role("lambda.amazonaws.com"))
    assert invoke(functions, name)["Payload"]["count"] == 1
    assert log_lines(f"/aws/lambda/{name}") == []


def test_reserved_concurrency_is_a_ceiling(functions, make_function):
    name = make_function(Timeout=20)
    assert "ReservedConcurrentExecutions" not in functions.get_function_concurrency(FunctionName=name)
    functions.put_function_concurrency(FunctionName=name, ReservedConcurrentExecutions=1)
    assert functions.get_function(FunctionName=name)["Concurrency"] == {"ReservedConcurrentExecutions": 1}
    busy = threading.Thread(target=invoke, args=(functions, name, {"sleep": 2}))
    busy.start()
    until(lambda: any("handling" in line for line in log_lines(f"/aws/lambda/{name}")))
    with pytest.raises(functions.exceptions.TooManyRequestsException) as caught:
        functions.invoke(FunctionName=name)
    busy.join()
    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 429
    assert caught.value.response["Reason"] == "ReservedFunctionConcurrentInvocationLimitExceeded"
    assert invoke(functions, name)["StatusCode"] == 200
    with pytest.raises(ClientError, match=r"below its minimum value of \[100\]"):
        functions.put_function_concurrency(FunctionName=name, ReservedConcurrentExecutions=901)
    functions.put_function_concurrency(FunctionName=name, ReservedConcurrentExecutions=0)
    with pytest.raises(functions.exceptions.TooManyRequestsException):
        functions.invoke(FunctionName=name)
    functions.delete_function_concurrency(FunctionName=name)
    assert invoke(functions, name)["StatusCode"] == 200


def test_events_run_later_and_dry_runs_never(functions, make_function):
    name = make_function()
    assert functions.invoke(FunctionName=name, InvocationType="DryRun")["StatusCode"] == 204
    assert log_lines(f"/aws/lambda/{name}") == []
    assert functions.invoke(FunctionName=name, InvocationType="Event", Payload=b'{"n": 7}')["StatusCode"] == 202
    until(lambda: any('handling {"n": 7}' in line for line in log_lines(f"/aws/lambda/{name}")))


@pytest.mark.parametrize(
    ("payload", "kind", "status", "code"),
    [
        (b'"' + b"x" * 6_291_456 + b'"', "RequestResponse", 413, "RequestTooLargeException"),
        (b'"' + b"x" * 1_048_576 + b'"', "Event", 413, "RequestTooLargeException"),
        (b"{not json", "RequestResponse", 400, "InvalidRequestContentException"),
    ],
    ids=["6 MB", "1 MB event", "not JSON"],
)
def test_payloads_that_lambda_refuses(functions, make_function, payload, kind, status, code):
    name = make_function()
    with pytest.raises(ClientError) as caught:
        functions.invoke(FunctionName=name, Payload=payload, InvocationType=kind)
    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == status
    assert caught.value.response["Error"]["Code"] == code


def test_code_and_configuration_are_updated(functions, make_function):
    name = make_function()
    pid = invoke(functions, name)["Payload"]["pid"]
    before = functions.get_function_configuration(FunctionName=name)["CodeSha256"]
    reply = functions.update_function_code(
        FunctionName=name, ZipFile=pack_function("import os\ndef handler(e, c): return os.environ.get('COLOUR')")
    )
    assert (reply["LastUpdateStatus"], reply["CodeSha256"] == before) == ("InProgress", False)
    updated(functions, name)
    assert invoke(functions, name)["Payload"] is None
    assert not is_running(pid)
    functions.update_function_configuration(FunctionName=name, Environment={"Variables": {"COLOUR": "blue"}}, Timeout=9)
    updated(functions, name)
    assert invoke(functions, name)["Payload"] == "blue"
    assert functions.get_function_configuration(FunctionName=name)["Timeout"] == 9


def test_a_published_version_keeps_its_code(functions, make_function):
    name = make_function("def handler(e, c): return 'old'")
    version = functions.publish_version(FunctionName=name)["Version"]
    functions.update_function_code(FunctionName=name, ZipFile=pack_function("def handler(e, c): return 'new'"))
    updated(functions, name)
    assert invoke(functions, name)["Payload"] == "new"
    reply = invoke(functions, name, Qualifier=version)
    assert (reply["Payload"], reply["ExecutedVersion"]) == ("old", version)


def test_code_may_lie_in_s3(functions, make_function, bucket):
    boto3.client("s3").put_object(Bucket=bucket, Key="code.zip", Body=pack_function("def handler(e, c): return 's3'"))
    assert invoke(functions, make_function(Code={"S3Bucket": bucket, "S3Key": "code.zip"}))["Payload"] == "s3"
    with pytest.raises(ClientError, match="S3 Error Code: NoSuchKey"):
        make_function(Code={"S3Bucket": bucket, "S3Key": "nothing.zip"})
    with pytest.raises(ClientError, match="S3 Error Code: NoSuchBucket"):
        make_function(Code={"S3Bucket": f"{bucket}-nothing", "S3Key": "code.zip"})


def test_deleting_a_function_kills_its_environments(functions, make_function):
    name = make_function()
    pid = invoke(functions, name)["Payload"]["pid"]
    functions.delete_function(FunctionName=name)
    assert not is_running(pid)
    with pytest.raises(functions.exceptions.ResourceNotFoundException, match=f"Function not found: .*:{name}"):
        functions.invoke(FunctionName=name)
    functions.create_function(
        FunctionName=name, Runtime="python3.13", Role=make_role("lambda.amazonaws.com"), Handler="app.handler",
        Code={"ZipFile": pack_function(HANDLER)},
    )  # fmt: skip
    with pytest.raises(functions.exceptions.ResourceConflictException, match="Function already exist"):
        functions.create_function(
            FunctionName=name, Runtime="python3.13", Role=make_role("lambda.amazonaws.com"), Handler="app.handler",
            Code={"ZipFile": pack_function(HANDLER)},
        )  # fmt: skip


def zip_of_many_megabytes() -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(262_144_000))
    return packed.getvalue()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda: {"Code": {"ZipFile": b"no zip"}}, "Could not unzip uploaded file"),
        (lambda: {"Code": {"ZipFile": zip_of_many_megabytes()}}, "Unzipped size must be smaller than 262144000 bytes"),
        (lambda: {"Runtime": "python3.8"}, "no longer supported for creating or updating"),
        (lambda: {"Runtime": "nodejs22.x"}, "cannot be rehearsed: only Python's can"),
        (lambda: {"Runtime": "python4"}, "enum value set"),
        (lambda: {"Environment": {"Variables": {"AWS_REGION": "x"}}}, "Reserved keys used in this request: AWS_REGION"),
        (lambda: {"Environment": {"Variables": {"LONG": "x" * 4096}}}, "exceeded the 4KB limit"),
        (lambda: {"Role": make_role("sagemaker.amazonaws.com")}, "cannot be assumed by Lambda"),
        (lambda: {"Timeout": 901}, "less than or equal to 900"),
        (lambda: {"FunctionName": "x" * 65}, "length less than or equal to 64"),
    ],
    ids=["not a zip", "too large", "retired", "node", "unknown", "reserved", "variables", "role", "time-out", "name"],
)
def test_what_lambda_refuses(make_function, change, words):
    with pytest.raises(ClientError, match=words):
        make_function(**change())


def test_invoking_needs_permission_for_exactly_that_function(make_function):
    name, other = make_function(), make_function()
    arn = f"arn:aws:lambda:us-east-1:000000000000:function:{name}"
    caller = client_of("lambda", allow("lambda:InvokeFunction", resource=arn))
    assert caller.invoke(FunctionName=name)["StatusCode"] == 200
    with pytest.raises(ClientError, match="is not authorized to perform: lambda:InvokeFunction") as caught:
        caller.invoke(FunctionName=other)
    assert caught.value.response["Error"]["Code"] == "AccessDeniedException"


@pytest.mark.parametrize(
    "act",
    [
        lambda functions, name: functions.invoke_with_response_stream(FunctionName=name),
        lambda functions, name: functions.get_runtime_management_config(FunctionName=name),
        lambda functions, name: functions.create_event_source_mapping(
            FunctionName=name, EventSourceArn="arn:aws:sqs:us-east-1:000000000000:q"
        ),
    ],
    ids=["response stream", "runtime management", "event source"],
)
def test_what_cannot_be_rehearsed_is_refused(functions, make_function, act):
    with pytest.raises(ClientError, match=r"lambda:\w+ cannot be rehearsed yet") as caught:
        act(functions, make_function())
    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 501


def test_the_older_operation_runs_events_later_too(functions, make_function):
    name = make_function()
    assert functions.invoke_async(FunctionName=name, InvokeArgs=b'{"n": 8}')["Status"] == 202
    until(lambda: any('handling {"n": 8}' in line for line in log_lines(f"/aws/lambda/{name}")))


def test_the_clients_context_reaches_the_handler_and_is_an_object(functions, make_function):
    name = make_function("def handler(event, context):\n    return context.client_context.custom")

    def encoded(value: object) -> str:
        return base64.b64encode(json.dumps(value).encode()).decode()

    assert invoke(functions, name, ClientContext=encoded({"custom": {"a": "\u4e16"}}))["Payload"] == {"a": "\u4e16"}
    for context in ("no base64!", encoded([1]), encoded({"custom": {"a": "x" * 3000}})):
        with pytest.raises(ClientError, match="valid Base64-encoded JSON object") as caught:
            functions.invoke(FunctionName=name, ClientContext=context)
        assert caught.value.response["Error"]["Code"] == "InvalidRequestContentException"
