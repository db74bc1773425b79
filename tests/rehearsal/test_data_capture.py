import json
import re
from datetime import UTC, datetime

import boto3
import pytest

from opslib.rehearsal.calls import Call
from opslib.rehearsal.endpoints import data_capture
from opslib.rehearsal.endpoints.container_client import ContainerReply
from opslib.rehearsal.endpoints.data_capture import DataCapture
from opslib.rehearsal.identity import assume_role
from opslib.rehearsal.role_storage import RoleStorage
from tests.rehearsal.serving import make_role, until

BOTH = [{"CaptureMode": "Input"}, {"CaptureMode": "Output"}]
REPLY = ContainerReply(200, {"content-type": "application/json"}, b'{"class": "dog"}')
VARIANT = "AllTraffic"


def build(bucket: str, role: str, **config) -> DataCapture:
    settings = {"InitialSamplingPercentage": 100, "CaptureOptions": BOTH, "DestinationS3Uri": f"s3://{bucket}/seen/"}
    return DataCapture(settings | config, "dogs", RoleStorage(assume_role(role, "SageMaker")))


def a_call(**params) -> Call:
    asked = {"EndpointName": "dogs", "Body": b"photo", "ContentType": "image/jpeg", **params}
    return Call("sagemaker-runtime", "InvokeEndpoint", asked, None, "us-east-1", "1")


def captured(bucket: str) -> tuple[list[str], list[dict]]:
    found = list(boto3.resource("s3").Bucket(bucket).objects.all())
    lines = [line for one in found for line in one.get()["Body"].read().decode().splitlines()]
    return [one.key for one in found], [json.loads(line) for line in lines]


def test_what_passed_lies_in_s3_as_aws_lays_it(bucket, role, monkeypatch):
    monkeypatch.setattr(data_capture, "DELIVERY_SECONDS", 0.05)
    capture = build(bucket, role, CaptureContentTypeHeader={"JsonContentTypes": ["application/json"]})
    for _ in range(2):
        capture.capture(a_call(InferenceId="42", CustomAttributes="x=1"), VARIANT, REPLY)
    until(lambda: len(captured(bucket)[1]) == 2)
    keys, records = captured(bucket)
    assert re.fullmatch(
        rf"seen/dogs/AllTraffic/{datetime.now(UTC):%Y/%m}/\d\d/\d\d/\d\d-\d\d-\d\d\d-[0-9a-f-]{{36}}\.jsonl", keys[0]
    )
    assert records[0]["captureData"] == {
        "endpointInput": {
            "observedContentType": "image/jpeg",
            "mode": "INPUT",
            "data": "cGhvdG8=",
            "encoding": "BASE64",
        },
        "endpointOutput": {
            "observedContentType": "application/json",
            "mode": "OUTPUT",
            "data": '{"class": "dog"}',
            "encoding": "JSON",
        },
    }
    event = records[0]["eventMetadata"]
    assert (event["inferenceId"], event["customAttributes"], records[0]["eventVersion"]) == ("42", ["x=1"], "0")
    assert datetime.fromisoformat(event["inferenceTime"]) <= datetime.now(UTC)
    assert event["eventId"] != records[1]["eventMetadata"]["eventId"]


@pytest.mark.parametrize(
    ("config", "sides", "least", "most"),
    [
        ({"CaptureOptions": [{"CaptureMode": "Output"}]}, {"endpointOutput"}, 200, 200),
        ({"InitialSamplingPercentage": 25}, {"endpointInput", "endpointOutput"}, 20, 90),
        ({"InitialSamplingPercentage": 0}, set(), 0, 0),
    ],
)
def test_only_what_was_asked_for_is_captured(bucket, role, config, sides, least, most):
    capture = build(bucket, role, **config)
    for _ in range(200):
        capture.capture(a_call(), VARIANT, REPLY)
    capture.close()
    _, records = captured(bucket)
    assert least <= len(records) <= most
    assert {side for record in records for side in record["captureData"]} == sides


def test_a_role_that_may_not_write_captures_nothing_and_nobody_is_told(bucket, rehearsal):
    capture = build(bucket, make_role("sagemaker.amazonaws.com"))
    capture.capture(a_call(), VARIANT, REPLY)
    capture.close()
    assert captured(bucket) == ([], [])
