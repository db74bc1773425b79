"""The Lambda function in front of a real endpoint, and functions that misbehave."""

import base64
import io
import json
import zipfile

import pytest

from opslib.aws import endpoints, functions, predictions, roles
from opslib.aws.functions import FunctionReply, build_package, ensure_function, invoke_function
from opslib.aws.session import client
from opslib.aws.sweeping import find_leftovers
from opslib.errors import AwsError, ConfigurationError, FunctionFailed
from opslib.specs import EndpointSpec, FunctionSpec

PHOTO = b"\xff\xd8\xff a photo"
EVENT = {"image": base64.b64encode(PHOTO).decode()}


def test_the_function_answers_as_its_endpoint_does(run, model_uri) -> None:
    role = roles.ensure_execution_role(run, run.name("data"))
    endpoint = endpoints.deploy_model(run, EndpointSpec(container="pytorch"), model_uri=model_uri, role=role)
    function_role = roles.ensure_function_role(run, endpoint)
    name = ensure_function(run, FunctionSpec(), endpoint_name=endpoint, role=function_role)
    reply = invoke_function(name, EVENT)
    prediction = predictions.classify(endpoint, PHOTO)
    assert reply.status_code == 200
    assert reply.scores == prediction.scores
    assert reply.payload["prediction"]["label"] == prediction.label
    assert reply.request_id in reply.log_tail
    assert "REPORT" in reply.log_tail

    refused = invoke_function(name, {"image": base64.b64encode(b"nonsense").decode()})
    assert refused.status_code == 415
    assert "not a photo" in refused.payload["body"]
    with pytest.raises(FunctionFailed, match="415"):
        _ = refused.scores

    endpoints.delete_endpoint(endpoint)
    assert invoke_function(name, EVENT).status_code == 503


def test_the_function_may_call_no_other_endpoint(run) -> None:
    role = roles.ensure_function_role(run, "another-endpoint")
    name = ensure_function(run, FunctionSpec(timeout_seconds=3), endpoint_name="some-endpoint", role=role)
    reply = invoke_function(name, EVENT)
    assert reply.status_code == 500
    assert "may not invoke its endpoint" in reply.payload["body"]
    assert "arn:" not in json.dumps(reply.payload)


@pytest.fixture
def role(run) -> str:
    """The ARN of a function's role."""
    return roles.ensure_function_role(run, "none")


def test_changed_code_and_settings_arrive(run, role, tmp_path, monkeypatch) -> None:
    code = tmp_path / "answer.py"
    code.write_text("def lambda_handler(event, context): return {'n': 1, 'memory': context.memory_limit_in_mb}")
    name = ensure_function(run, FunctionSpec(), endpoint_name="none", role=role, code=code)
    assert invoke_function(name, {}).payload == {"n": 1, "memory": "256"}
    code.write_text("def lambda_handler(event, context): return {'n': 2, 'memory': context.memory_limit_in_mb}")
    assert ensure_function(run, FunctionSpec(memory_mb=512), endpoint_name="none", role=role, code=code) == name
    assert invoke_function(name, {}).payload == {"n": 2, "memory": "512"}
    monkeypatch.setattr(client("lambda"), "update_function_code", None)  # neither is called for what is up to date
    monkeypatch.setattr(client("lambda"), "update_function_configuration", None)
    ensure_function(run, FunctionSpec(memory_mb=512), endpoint_name="none", role=role, code=code)


def test_reserved_concurrency_comes_and_goes(run, role, monkeypatch) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # otherwise botocore asks five times, with pauses
    name = ensure_function(run, FunctionSpec(reserved_concurrency=0), endpoint_name="none", role=role)
    with pytest.raises(AwsError, match="TooManyRequests"):
        invoke_function(name, EVENT)
    ensure_function(run, FunctionSpec(), endpoint_name="none", role=role)
    assert "ReservedConcurrentExecutions" not in client("lambda").get_function_concurrency(FunctionName=name)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("def lambda_handler(event, context): raise ValueError('five is right out')", "ValueError: five is right out"),
        ("import time\ndef lambda_handler(event, context): time.sleep(30)", "timed out after 1"),
        ("import nothing_of_that_name", "ImportModuleError"),
    ],
)
def test_a_failing_handler_is_told_with_its_lines(run, role, tmp_path, source: str, words: str) -> None:
    code = tmp_path / "failing.py"
    code.write_text(source)
    name = ensure_function(run, FunctionSpec(timeout_seconds=1), endpoint_name="none", role=role, code=code)
    with pytest.raises(FunctionFailed, match=words) as caught:
        invoke_function(name, {})
    assert "last log lines" in caught.value.message
    assert functions.function_group(name) in caught.value.hint


def test_deleting_a_function_takes_its_logs(run, role) -> None:
    name = ensure_function(run, FunctionSpec(), endpoint_name="none", role=role)
    invoke_function(name, {})
    functions.delete_function(name)
    functions.delete_function(name)
    assert {found.kind for found in find_leftovers(run)} == {"role"}
    with pytest.raises(AwsError, match="ResourceNotFound"):
        invoke_function(name, {})


def test_the_same_code_makes_the_same_package(tmp_path) -> None:
    code = tmp_path / "lambda_function.py"
    code.write_text("def lambda_handler(event, context): ...")
    package = build_package(code)
    code.touch()
    assert build_package(code) == package
    with zipfile.ZipFile(io.BytesIO(package)) as archive:
        assert archive.namelist() == ["lambda_function.py"]
        assert archive.getinfo("lambda_function.py").external_attr >> 16 == 0o644
    with pytest.raises(ConfigurationError, match=r"none\.py"):
        build_package(tmp_path / "none.py")


def test_a_reply_without_scores_says_what_it_is() -> None:
    with pytest.raises(FunctionFailed, match="the function answered 200"):
        _ = FunctionReply(200, {"body": "{}"}, "id", "").scores
