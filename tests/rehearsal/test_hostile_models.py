"""Models, functions and zips that are out to do harm: the service says so, goes on, and nothing is stuck or left."""

import io
import json
import tarfile
import zipfile

import boto3
import psutil
import pytest
from botocore.exceptions import ClientError

from tests.rehearsal.serving import is_running, pack_function, unique, until
from tests.rehearsal.test_endpoints import answers, ask, deploy, make_model, settled  # noqa: F401 - fixtures


def archive(*entries: tuple[str, dict]) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as packed:
        for name, fields in entries:
            entry = tarfile.TarInfo(name)
            for field, value in fields.items():
                setattr(entry, field, value)
            packed.addfile(entry)
    return content.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        archive(("../../outside", {})),
        archive(("link", {"type": tarfile.SYMTYPE, "linkname": "/tmp"}), ("link/outside", {})),
        archive(("pipe", {"type": tarfile.FIFOTYPE})),
        archive(("a", {}), ("a/b", {})),
        archive(("a" * 300, {})),
        archive(*((f"file-{number}", {}) for number in range(500)))[:-900],
    ],
    ids=["outside", "link", "pipe", "file and folder", "long name", "cut off"],
)
def test_a_model_that_cannot_be_unpacked_fails_its_endpoint(deploy, make_model, content):  # noqa: F811
    description = settled(deploy(make_model(content=content)))
    assert description["EndpointStatus"] == "Failed"
    assert description["FailureReason"].startswith("Failed to extract model data archive")


def test_a_model_server_that_is_killed_while_it_starts_again_is_started_once_more(deploy):  # noqa: F811
    endpoint = deploy()
    first = ask(endpoint)["pid"]
    psutil.Process(first).kill()

    def servers() -> list[psutil.Process]:
        family = psutil.Process().children(recursive=True)
        return [one for one in family if "model_server.py" in " ".join(one.cmdline()[2:3]) and one.pid != first]

    until(lambda: answers(endpoint) or servers())
    for server in servers():
        server.kill()
    assert until(lambda: answers(endpoint))["pid"] != first


@pytest.fixture
def make_function(role):
    """Return a function that creates a Lambda function of a zip or a module's text; returns its name."""
    functions, made = boto3.client("lambda"), []

    def make(code: bytes | str) -> str:
        name = unique("function")
        package = pack_function(code) if isinstance(code, str) else code
        functions.create_function(
            FunctionName=name, Runtime="python3.13", Handler="app.handler", Role=role, Code={"ZipFile": package}
        )
        made.append(name)
        until(lambda: functions.get_function_configuration(FunctionName=name)["State"] != "Pending")
        return name

    yield make
    for name in made:
        functions.delete_function(FunctionName=name)


def invoke(name: str, event: object = None) -> tuple[str, object]:
    reply = boto3.client("lambda").invoke(FunctionName=name, Payload=json.dumps(event))
    return reply.get("FunctionError", ""), json.loads(reply["Payload"].read())


def encrypted_zip() -> bytes:
    content = bytearray(pack_function("x = 1"))
    content[6] |= 1
    content[content.index(b"PK\1\2") + 8] |= 1
    return bytes(content)


def odd_zip() -> bytes:
    content = bytearray(pack_function("x = 1"))
    content[8] = content[content.index(b"PK\1\2") + 10] = 99
    return bytes(content)


def damaged_zip() -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive_:
        archive_.writestr("app.py", "x = 1\n" * 1000)
    return packed.getvalue()[:40] + b"\xff\xff\xff\xff" + packed.getvalue()[44:]


@pytest.mark.parametrize("content", [b"", b"PK", encrypted_zip(), odd_zip(), damaged_zip()])
def test_a_zip_that_cannot_be_unpacked_is_refused(make_function, content):
    with pytest.raises(ClientError, match=r"InvalidParameterValueException.*Could not unzip"):
        make_function(content)


MISCHIEF = """
import http.client, os, shutil, subprocess, sys

def say(path, body):
    connection = http.client.HTTPConnection(os.environ["AWS_LAMBDA_RUNTIME_API"])
    connection.request("POST", "/2018-06-01/runtime/" + path, body)
    return connection.getresponse().status

def handler(event, context):
    if event == "twice":
        answer = f"invocation/{context.aws_request_id}/response"
        return [say("invocation/no-such-request/response", "1"), say(answer, "2"), say(answer, "3")]
    if event == "files":
        shutil.rmtree(os.path.dirname(os.environ["TMPDIR"]))
    if event == "closed":
        os.close(1)
    if event == "long":
        os.write(1, b"x" * 3_000_000)
    if event == "child":
        return subprocess.Popen(["setsid", "sleep", "1000"]).pid
    if event == "pid":
        return os.getpid()
    if event == "exit":
        os._exit(0)
    return event
"""


def test_a_handler_that_misbehaves_harms_only_itself(make_function):
    name = make_function(MISCHIEF)
    assert invoke(name, "twice") == ("", 2)
    until(lambda: invoke(name, "again") == ("", "again"))  # its runtime ends when its own answer is not wanted
    for event in ("again", "long", "files", "again"):
        assert invoke(name, event) == ("", event)
    for event in ("closed", "again"):  # the next file or socket that it opens is its standard output now
        invoke(name, event)
    until(lambda: invoke(name, "again") == ("", "again"))
    assert invoke(name, "exit")[1]["errorType"] == "Runtime.ExitError"
    environment = invoke(name, "pid")[1]
    psutil.Process(environment).kill()
    until(lambda: invoke(name, "again") == ("", "again"))
    child = invoke(name, "child")[1]
    boto3.client("lambda").update_function_configuration(FunctionName=name, Timeout=5)
    until(lambda: not is_running(child))
    assert invoke(name, "again") == ("", "again")


def test_a_function_that_fails_to_start_with_nonsense_fails_alone(make_function):
    source = MISCHIEF + "\nsay('init/error', b'\\xff nonsense')\n"
    reply = boto3.client("lambda").invoke(FunctionName=make_function(source), Payload="1")
    assert reply["FunctionError"] == "Unhandled"
    assert reply["Payload"].read() == b"\xff nonsense"
