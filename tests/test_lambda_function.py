"""The Lambda handler: every form of event, every kind of refusal, and nothing of the account in an answer."""

import base64
import io
import json
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import boto3
import pytest
from botocore.response import StreamingBody
from botocore.stub import Stubber

import lambda_function
from lambda_function import VERBOSE, lambda_handler

PHOTO = b"\xff\xd8\xff\xe0 a photo"
IMAGE = base64.b64encode(PHOTO).decode()
TOP = [{"label": "Affenpinscher", "probability": 0.75}, {"label": "Äffin", "probability": 0.25}]
ANSWER = {"predicted_label": "Affenpinscher", "top_k": TOP, "scores": [[2.5, -1.0]]}
REFERENCE_KEYS = {"statusCode", "headers", "type-result", "COntent-Type-In", "body"}


class Context:
    """What awslambdaric gives a handler, as far as ours looks."""

    invoked_function_arn = "arn:aws:lambda:us-east-1:123456789012:function:asker"

    def __init__(self, seconds: float = 30) -> None:
        self._deadline = time.monotonic() + seconds

    def get_remaining_time_in_millis(self) -> int:
        return int((self._deadline - time.monotonic()) * 1000)


@pytest.fixture(autouse=True)
def container(monkeypatch) -> None:
    """A container that has not been used yet, with an endpoint to ask."""
    for name, value in {
        "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "ENDPOINT_NAME": "photos",
    }.items():
        monkeypatch.setenv(name, value)
    # boto3's own session keeps the credentials that it saw first: these must not reach the tests that follow.
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    monkeypatch.setattr(lambda_function, "_container", {})


@pytest.fixture
def endpoint(monkeypatch) -> Iterator[Stubber]:
    """The handler's client; what is asked of it is checked against botocore's model of the service."""
    client = boto3.client("sagemaker-runtime")
    monkeypatch.setattr(lambda_function, "_container", {"client": client, "seconds": 5.0})
    with Stubber(client) as stub:
        yield stub
        stub.assert_no_pending_responses()


def answers(endpoint: Stubber, body: bytes, content_type: str, answer: object = ANSWER) -> None:
    """Let the endpoint expect one question and answer it."""
    raw = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
    endpoint.add_response(
        "invoke_endpoint",
        {"Body": StreamingBody(io.BytesIO(raw), len(raw)), "ContentType": "application/json"},
        {"EndpointName": "photos", "Body": body, "ContentType": content_type, "Accept": VERBOSE},
    )


def refuses(endpoint: Stubber, code: str, message: str = "no", **fields: object) -> None:
    """Let the endpoint refuse one question."""
    endpoint.add_client_error("invoke_endpoint", code, message, modeled_fields=fields or None)


def reason(reply: dict) -> dict:
    """Return what an answer gives as the reason."""
    return json.loads(reply["body"])["error"]


def test_a_url_gets_the_references_answer_and_the_prediction(endpoint) -> None:
    url = "https://example.org/dog.jpg"
    answers(endpoint, json.dumps({"url": url}).encode(), "application/json")
    reply = lambda_handler({"url": url}, Context())
    assert reply.keys() == REFERENCE_KEYS | {"prediction"}
    assert reply["statusCode"] == 200
    assert json.loads(reply["body"]) == [[2.5, -1.0]]
    assert reply["type-result"] == "<class 'str'>"
    assert reply["headers"]["Access-Control-Allow-Origin"] == "*"
    assert reply["prediction"] == {"label": "Affenpinscher", "probability": 0.75, "top_k": TOP}
    assert "123456789012" not in json.dumps(reply)


@pytest.mark.parametrize("image", [IMAGE, f"data:image/jpeg;base64,{IMAGE}"])
def test_a_photo_comes_as_base64(endpoint, image: str) -> None:
    answers(endpoint, PHOTO, "application/x-image")
    assert lambda_handler({"image": image}, Context())["statusCode"] == 200
    answers(endpoint, PHOTO, "image/jpeg")
    assert lambda_handler({"image": image, "content_type": "image/jpeg"}, Context())["COntent-Type-In"] == "image/jpeg"


def rest_event(body: str, **fields: object) -> dict:
    """Return an event of API Gateway's REST API (version 1.0)."""
    return {
        "httpMethod": "POST",
        "path": "/",
        "headers": {"Content-Type": "image/jpeg"},
        "requestContext": {"accountId": "123456789012", "stage": "prod"},
        "body": body,
        "isBase64Encoded": True,
    } | fields


def url_event(body: str, **fields: object) -> dict:
    """Return an event of a function URL or an HTTP API (version 2.0)."""
    return {
        "version": "2.0",
        "rawPath": "/",
        "headers": {"content-type": "image/jpeg; charset=binary"},
        "requestContext": {"accountId": "anonymous", "http": {"method": "POST", "path": "/"}},
        "body": body,
        "isBase64Encoded": True,
    } | fields


@pytest.mark.parametrize("make", [rest_event, url_event])
def test_a_proxy_gets_only_the_keys_it_knows(endpoint, make) -> None:
    answers(endpoint, PHOTO, "image/jpeg")
    reply = lambda_handler(make(IMAGE), Context())
    assert reply.keys() == {"statusCode", "headers", "body", "isBase64Encoded"}
    assert json.loads(reply["body"]) == [[2.5, -1.0]]
    assert isinstance(reply["body"], str)


@pytest.mark.parametrize("make", [rest_event, url_event])
def test_a_proxy_that_asks_for_more_gets_the_whole_prediction(endpoint, make) -> None:
    answers(endpoint, PHOTO, "image/jpeg")
    event = make(IMAGE)
    event["headers"]["ACCEPT"] = "application/json; verbose"
    assert json.loads(lambda_handler(event, Context())["body"]) == ANSWER


@pytest.mark.parametrize("encoded", [True, False])
def test_a_proxy_may_send_json(endpoint, encoded: bool) -> None:
    text = json.dumps({"image": IMAGE})
    body = base64.b64encode(text.encode()).decode() if encoded else text
    answers(endpoint, PHOTO, "application/x-image")
    event = url_event(body, headers={"content-type": "application/json"}, isBase64Encoded=encoded)
    assert lambda_handler(event, Context())["statusCode"] == 200


@pytest.mark.parametrize(
    ("event", "status", "word"),
    [
        ({}, 400, "url"),
        ([], 400, "url"),
        ({"url": 5}, 400, "url"),
        ({"image": "no base64!"}, 400, "base64"),
        ({"image": ""}, 400, "empty"),
        ({"image": IMAGE, "content_type": "application/json"}, 415, "application/json"),
        ({"image": IMAGE, "content_type": "image/jpeg\r\nX-Evil: 1"}, 415, "content type"),
        ({"image": IMAGE, "content_type": ["image/jpeg"]}, 415, "content type"),
        ({"image": "data:image/png;base64,"}, 400, "empty"),
        ({"image": base64.b64encode(bytes(6 * 1024 * 1024 + 1)).decode()}, 413, "bytes"),
        (rest_event("x", httpMethod="GET"), 405, "GET"),
        (url_event("x", requestContext={"http": {"method": "DELETE"}}), 405, "DELETE"),
        (rest_event(IMAGE, headers={}), 415, "missing"),
        (rest_event(IMAGE, headers=None), 415, "missing"),
        (rest_event(IMAGE, headers={"content-type": "text/html"}), 415, "text/html"),
        (rest_event("ÿØÿà", isBase64Encoded=False), 400, "binary media types"),
        (rest_event("{", headers={"content-type": "application/json"}, isBase64Encoded=False), 400, "JSON"),
        (rest_event(None), 400, "empty"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_bad_events_are_answered_without_asking_the_endpoint(event, status: int, word: str) -> None:
    reply = lambda_handler(event, Context())
    assert reply["statusCode"] == status
    assert word in reason(reply)["message"]
    assert lambda_function._container == {}
    keys = {"statusCode", "headers", "body", "isBase64Encoded"} if "requestContext" in event else REFERENCE_KEYS
    assert reply.keys() == keys


@pytest.mark.parametrize(
    ("original", "words", "status", "message"),
    [
        (415, '{"error": {"code": "UnsupportedMediaType", "message": "not a photo"}}', 415, "not a photo"),
        (400, '{"message": "truncated"}', 400, "truncated"),
        (413, "too many pixels", 413, "too many pixels"),
        (415, "not a photo\nTraceback (most recent call last):\n  File ...", 415, "not a photo"),
        (403, "see arn:aws:iam::123456789012:role/x", 403, "see (an AWS resource)"),
        (500, "Traceback ... /opt/ml/model", 502, "the model failed; its log lines say why"),
        (0, "Your invocation timed out", 504, "the model did not answer in time"),
    ],
)
def test_the_models_refusals(endpoint, original: int, words: str, status: int, message: str) -> None:
    arn = "arn:aws:logs:us-east-1:123456789012:log-group:/aws/sagemaker/Endpoints/photos"
    refuses(endpoint, "ModelError", "...", OriginalStatusCode=original, OriginalMessage=words, LogStreamArn=arn)
    reply = lambda_handler({"image": IMAGE}, Context())
    assert (reply["statusCode"], reason(reply)["message"]) == (status, message)
    assert not re.search(r"\d{12}|arn:", json.dumps(reply))


@pytest.mark.parametrize(
    ("code", "status"),
    [("ValidationError", 503), ("SomethingNew", 502)],
)
def test_refusals_that_will_not_pass_are_not_repeated(endpoint, code: str, status: int) -> None:
    refuses(endpoint, code, "Endpoint photos of account 123456789012 not found.")
    reply = lambda_handler({"image": IMAGE}, Context())
    assert reply["statusCode"] == status
    assert "123456789012" not in json.dumps(reply)


@pytest.mark.parametrize(
    "code",
    [
        "ThrottlingException",
        "ServiceUnavailable",
        "InternalFailure",
        "ModelNotReadyException",
        "AccessDeniedException",  # IAM spreads the policy of a new role in some seconds
    ],
)
def test_refusals_that_may_pass_are_repeated(endpoint, code: str) -> None:
    refuses(endpoint, code)
    answers(endpoint, PHOTO, "application/x-image")
    assert lambda_handler({"image": IMAGE}, Context())["statusCode"] == 200


@pytest.mark.parametrize(("code", "status"), [("ThrottlingException", 429), ("AccessDeniedException", 500)])
def test_repeating_stops_while_there_is_time_to_answer(endpoint, code: str, status: int) -> None:
    refuses(endpoint, code)
    refuses(endpoint, code)
    context = Context(seconds=7)  # a third call of at most 5 + 1 seconds does not fit after 0.6 seconds of pauses
    reply = lambda_handler({"image": IMAGE}, context)
    assert reply["statusCode"] == status
    assert context.get_remaining_time_in_millis() > 5000


@pytest.mark.parametrize("answer", [b"<html>", b"[[1, 2]]", b"{}"])
def test_another_models_answer_is_a_bad_gateway(endpoint, answer: bytes) -> None:
    answers(endpoint, PHOTO, "application/x-image", answer)
    assert lambda_handler({"image": IMAGE}, Context())["statusCode"] == 502


def test_without_an_endpoint_the_function_says_so(monkeypatch) -> None:
    monkeypatch.delenv("ENDPOINT_NAME")
    reply = lambda_handler({"image": IMAGE}, Context())
    assert reply["statusCode"] == 500
    assert "ENDPOINT_NAME" in reason(reply)["message"]


@contextmanager
def silent_server() -> Iterator[str]:
    """A server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        accepted: list[socket.socket] = []

        def accept() -> None:
            while True:
                try:
                    accepted.append(server.accept()[0])
                except OSError:
                    return

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}"
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()
            for connection in accepted:
                connection.close()


def test_an_endpoint_that_never_answers_is_given_up_in_time(monkeypatch) -> None:
    with silent_server() as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        context = Context(seconds=3)
        reply = lambda_handler({"image": IMAGE}, context)
        assert (reply["statusCode"], reason(reply)["code"]) == (504, "GatewayTimeout")
        assert context.get_remaining_time_in_millis() > 0


def test_a_refused_connection_is_an_answer(monkeypatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", address)
    reply = lambda_handler({"image": IMAGE}, Context(seconds=2))
    assert (reply["statusCode"], reason(reply)["code"]) == (503, "ServiceUnavailable")


def test_one_client_serves_the_containers_life(monkeypatch) -> None:
    first = lambda_function._client(time.monotonic() + 30)
    assert lambda_function._client(time.monotonic() + 1) is first
    assert first.meta.config.read_timeout == pytest.approx(23, abs=0.5)
    assert first.meta.config.retries["total_max_attempts"] == 1


def test_the_sdk_is_ready_when_the_environment_is() -> None:
    """Whoever pays for provisioned concurrency must not find the first request slow."""
    told = "import lambda_function, boto3; print(boto3.DEFAULT_SESSION is not None)"
    inside = {
        "AWS_EXECUTION_ENV": "AWS_Lambda_python3.13",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    for variables, expected in (({}, "False"), (inside, "True")):
        command = [sys.executable, "-c", told]
        root = Path(lambda_function.__file__).parent
        done = subprocess.run(command, env=variables, cwd=root, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == expected
