"""The list of hostile requests through a living endpoint, and hostile events through the function in front of it.

Unlike in test_inference.py everything is real here: the artifact, the model server, InvokeEndpoint with its limits,
Lambda and its runtime. After each of them a good photo must be classified as ever.
"""

import base64
import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass

import boto3
import pytest
import torch
import urllib3
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.exceptions import ClientError

from opslib.aws import endpoints, functions, roles, storage
from opslib.aws.ledger import start_run
from opslib.aws.predictions import Prediction, classify
from opslib.aws.session import client
from opslib.aws.sweeping import sweep
from opslib.bundle import copy_serving_code
from opslib.specs import EndpointSpec, FunctionSpec
from opslib.vision.artifact import ModelDescription, save_artifact
from opslib.vision.backbones import build_backbone
from opslib.vision.model import Classifier, build_head
from tests.hostile import HostileInput, good_photo, hostile_inputs

CLASSES = ("Affenpinscher", "Boxer", "Chihuahua", "Dachshund", "Eurasier", "Foxhound", "Grünwald-Bracke")
LARGEST_BODY = 25 * 2**20
"""Bytes that InvokeEndpoint takes at most."""
LARGEST_EVENT = 6_291_456
"""Bytes that Invoke takes at most."""


def build_model(directory) -> bytes:
    """Return a model.tar.gz as a training job leaves it, of a small network with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = build_backbone("shufflenet_v2_x0_5", pretrained=False)
        classifier = Classifier(backbone.module, build_head(backbone.features, len(CLASSES)))
    save_artifact(directory, classifier, ModelDescription(backbone.name, CLASSES, backbone.transform, {}, {}))
    copy_serving_code(directory, ())
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz", compresslevel=1) as archive:
        archive.add(directory, arcname=".")
    return packed.getvalue()


@dataclass(frozen=True)
class Serving:
    """An endpoint, a function in front of it, and what the endpoint says of the good photo."""

    endpoint: str
    function: str
    expected: Prediction

    def invoke(self, body: bytes, content_type: str = "image/jpeg", accept: str = "application/json") -> bytes:
        """Ask the endpoint."""
        answer = client("sagemaker-runtime").invoke_endpoint(
            EndpointName=self.endpoint, Body=body, ContentType=content_type, Accept=accept
        )
        return answer["Body"].read()

    def call(self, payload: bytes) -> tuple[str, dict]:
        """Send an event to the function; return FunctionError ("" when there is none) and the payload."""
        reply = client("lambda").invoke(FunctionName=self.function, Payload=payload)
        return reply.get("FunctionError", ""), json.loads(reply["Payload"].read())

    def still_answers(self) -> bool:
        """Return whether the endpoint says of a good photo what it said at first."""
        return classify(self.endpoint, good_photo()) == self.expected


@pytest.fixture(scope="module")
def serving(rehearsal, tmp_path_factory) -> Iterator[Serving]:
    """An endpoint with a real model and a function in front of it."""
    directory = tmp_path_factory.mktemp("hostile")
    run = start_run("hostile", home=directory / "runs")
    bucket = storage.ensure_bucket(run)
    client("s3").put_object(Bucket=bucket, Key="model.tar.gz", Body=build_model(directory / "model"))
    role = roles.ensure_execution_role(run, bucket)
    uri = f"s3://{bucket}/model.tar.gz"  # an untrained head: what it answers does not matter here
    endpoint = endpoints.deploy_model(run, EndpointSpec(), model_uri=uri, role=role, overrule_gate=True)
    function_role = roles.ensure_function_role(run, endpoint)
    function = functions.ensure_function(run, FunctionSpec(), endpoint_name=endpoint, role=function_role)
    yield Serving(endpoint, function, classify(endpoint, good_photo()))
    assert sweep(run).leftovers == ()


@pytest.mark.parametrize("hostile", hostile_inputs(), ids=lambda hostile: hostile.name)
def test_a_hostile_request_gets_its_answer_and_a_good_photo_the_same_as_ever(serving, hostile: HostileInput) -> None:
    if hostile.expected_status == 200:
        (scores,) = scores_of(serving.invoke(hostile.body, hostile.content_type, hostile.accept))
        assert len(scores) == len(CLASSES)
    else:
        with pytest.raises(ClientError) as refused:
            serving.invoke(hostile.body, hostile.content_type, hostile.accept)
        answer = refused.value.response
        assert answer["Error"]["Code"] == "ModelError"
        assert answer["OriginalStatusCode"] == hostile.expected_status
        assert answer["OriginalMessage"].strip()
    assert serving.still_answers()


def scores_of(body: bytes) -> list[list[float]]:
    """Return the raw scores of an answer, plain or verbose."""
    answer = json.loads(body)
    return answer["scores"] if isinstance(answer, dict) else answer


@pytest.mark.parametrize(
    ("length", "code", "status"), [(LARGEST_BODY, "ModelError", 424), (LARGEST_BODY + 1, "413", 413)]
)
def test_the_service_refuses_what_is_too_large_before_the_model_sees_it(serving, length, code, status) -> None:
    with pytest.raises(ClientError) as refused:
        serving.invoke(bytes(length))
    assert refused.value.response["Error"]["Code"] == code
    assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == status
    assert serving.still_answers()


@pytest.mark.parametrize("name", ["no-such-endpoint", "a" * 64, "...", "a/../b", "a b", "ä"])
def test_the_service_refuses_endpoints_that_are_none(serving, name) -> None:
    with pytest.raises(ClientError) as refused:
        client("sagemaker-runtime").invoke_endpoint(EndpointName=name, Body=good_photo())
    assert refused.value.response["Error"]["Code"] == "ValidationError"
    assert serving.still_answers()


def encoded(photo: bytes) -> str:
    """Return a photo as it travels in JSON."""
    return base64.b64encode(photo).decode()


def proxy(**fields: object) -> dict:
    """Return an HTTP request as API Gateway hands it on, with some fields replaced."""
    event = {"headers": {"content-type": "image/jpeg"}, "body": encoded(good_photo()), "isBase64Encoded": True}
    return event | {"requestContext": {"http": {"method": "POST"}}} | fields


def as_json(body: str, **fields: object) -> dict:
    """Return an HTTP request with a JSON body."""
    return proxy(headers={"Content-Type": "application/json"}, body=body, isBase64Encoded=False, **fields)


GOOD = {"image": encoded(good_photo())}
EVENTS = {
    "null": (None, 400),
    "a number": (1e308, 400),
    "a text": ("photo", 400),
    "true": (True, 400),
    "a list": ([GOOD], 400),
    "nothing": ({}, 400),
    "a list 900 deep": (json.loads("[" * 900 + "]" * 900), 400),
    "photo is null": ({"image": None}, 400),
    "photo is a number": ({"image": 5}, 400),
    "photo is a list of bytes": ({"image": list(good_photo()[:99])}, 400),
    "photo is empty": ({"image": ""}, 400),
    "photo is not base64": ({"image": "???"}, 400),
    "photo is base64 of the address form": ({"image": "_-_-"}, 400),
    "photo is base64 without its padding": ({"image": encoded(good_photo()[:100]).rstrip("=")}, 400),
    "photo is not ASCII": ({"image": "ÿØÿà"}, 400),
    "photo is a lone surrogate": ({"image": "\ud800"}, 400),
    "photo is a data address of nothing": ({"image": "data:,"}, 400),
    "photo is a data address": ({"image": f"data:image/jpeg;base64,{GOOD['image']}"}, 200),
    "photo is a web page": ({"image": encoded(b"<html>")}, 415),
    "photo is 4 MB of zeros": ({"image": encoded(bytes(4_000_000))}, 415),
    "photo is half a photo": ({"image": encoded(good_photo()[:1500])}, 400),
    "content type is a list": (GOOD | {"content_type": ["image/jpeg"]}, 415),
    "content type is a page": (GOOD | {"content_type": "text/html"}, 415),
    "content type with another header in it": (GOOD | {"content_type": "image/jpeg\r\nX-Evil: 1"}, 415),
    "content type of 100,000 characters": (GOOD | {"content_type": "image/" + "j" * 100_000}, 415),
    "content type that is none of the model's": (GOOD | {"content_type": "image/x-unknown"}, 415),
    "URL is a number": ({"url": 5}, 400),
    "URL of the metadata service": ({"url": "http://169.254.169.254/latest/meta-data/"}, 403),
    "URL of a file": ({"url": "file:///etc/passwd"}, 400),
    "URL with a line break": ({"url": "https://example.com/\r\nHost: localhost"}, 400),
    "URL of 100,000 characters": ({"url": "https://example.com/" + "a" * 100_000}, 403),
    "URL with a lone surrogate": ({"url": "https://example.com/\udfff"}, 400),
    "URL and photo": (GOOD | {"url": "https://example.com/dog.jpg"}, 403),
    "proxy: context is null": (proxy(requestContext=None), 200),
    "proxy: context is a text": (proxy(requestContext="prod"), 200),
    "proxy: http is a list": (proxy(requestContext={"http": ["POST"]}), 200),
    "proxy: headers are null": (proxy(headers=None), 415),
    "proxy: headers are a list": (proxy(headers=["content-type"]), 415),
    "proxy: header is null": (proxy(headers={"content-type": None}), 415),
    "proxy: body is null": (proxy(body=None), 400),
    "proxy: body is an object": (proxy(body={"image": GOOD["image"]}), 400),
    "proxy: body is a number": (proxy(body=12), 400),
    "proxy: flag is a text": (proxy(isBase64Encoded="false"), 400),
    "proxy: body is text": (proxy(isBase64Encoded=False), 400),
    "proxy: method is GET": (proxy(httpMethod="GET"), 405),
    "proxy: method is a list": (proxy(httpMethod=["POST"]), 405),
    "proxy: JSON": (as_json(json.dumps(GOOD)), 200),
    "proxy: JSON, broken": (as_json('{"image": '), 400),
    "proxy: JSON, 100,000 brackets": (as_json("[" * 100_000), 400),
    "proxy: JSON, a number of 10,000 digits": (as_json("9" * 10_000), 400),
    "proxy: JSON, a lone surrogate": (as_json("\ud800"), 400),
    "proxy: JSON, not UTF-8": (as_json(encoded(b'{"url": "\xff"}')) | {"isBase64Encoded": True}, 400),
    "proxy: accept is a number": (proxy(headers={"content-type": "image/jpeg", "accept": 5}), 200),
}


@pytest.mark.parametrize(("event", "status"), EVENTS.values(), ids=EVENTS)
def test_a_hostile_event_gets_its_answer_and_a_good_photo_the_same_as_ever(serving, event, status) -> None:
    error, answer = serving.call(json.dumps(event).encode())
    assert (error, answer.get("statusCode")) == ("", status), answer
    if status != 200:
        reason = json.loads(answer["body"])["error"]
        assert reason["code"]
        assert reason["message"]
        assert len(reason["message"]) < 600
    assert "arn:" not in json.dumps(answer)
    error, answer = serving.call(json.dumps(GOOD).encode())
    assert (error, answer["statusCode"]) == ("", 200)
    assert json.loads(answer["body"]) == [serving.expected.scores]


@pytest.mark.parametrize(
    ("payload", "code", "status"),
    [
        (b"{", "InvalidRequestContentException", 400),
        (b"\xff\xfe", "InvalidRequestContentException", 400),
        (b"[" * 100_000 + b"]" * 100_000, "InvalidRequestContentException", 400),
        (b'"' + b"a" * LARGEST_EVENT + b'"', "RequestTooLargeException", 413),
    ],
    ids=["half an object", "not UTF-8", "100,000 brackets", "more than 6 MB"],
)
def test_lambda_refuses_what_is_no_event_before_the_function_sees_it(serving, payload, code, status) -> None:
    with pytest.raises(ClientError) as refused:
        serving.call(payload)
    assert refused.value.response["Error"]["Code"] == code
    assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == status
    assert serving.call(json.dumps(GOOD).encode())[1]["statusCode"] == 200


def test_a_photo_posted_to_the_functions_url(serving) -> None:
    """A plain HTTP client, signed by botocore, through function URL, our function and the endpoint."""
    url = client("lambda").create_function_url_config(FunctionName=serving.function, AuthType="AWS_IAM")["FunctionUrl"]
    for content_type, body in (
        ("image/jpeg", good_photo()),
        ("application/json", json.dumps({"image": base64.b64encode(good_photo()).decode()}).encode()),
    ):
        headers = {"Content-Type": content_type, "Accept": "application/json"}
        request = AWSRequest("POST", url, data=body, headers=headers)
        SigV4Auth(boto3.Session().get_credentials(), "lambda", "us-east-1").add_auth(request)
        reply = urllib3.request("POST", url, body=body, headers=dict(request.headers))
        assert reply.status == 200
        assert reply.json()[0] == pytest.approx(list(serving.expected.scores))
    unsigned = urllib3.request("POST", url, body=good_photo(), headers={"Content-Type": "image/jpeg"})
    assert unsigned.status == 403
