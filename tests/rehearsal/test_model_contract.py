"""What the user's functions return and are handed in the PyTorch container, through a real endpoint."""

import json

import boto3
import pytest
from botocore.exceptions import ClientError

from tests.rehearsal.test_endpoints import deploy, make_model  # noqa: F401 - fixtures

RETURNS = """
import numpy

def model_fn(model_dir, context):
    return context.system_properties["model_dir"]

def input_fn(body, content_type):
    return bytes(body).decode()

def predict_fn(name, model):
    data = {"bytes": b"raw", "array": numpy.zeros(2), "three": (1, 2, 3)}
    return data[name] if name in data else {"dict": {"a": [1.5]}, "number": 5, "nothing": None}[name]

def output_fn(prediction, accept):
    return prediction
"""
ATTRIBUTES = """
def model_fn(model_dir):
    return None

def transform_fn(model, body, content_type, accept, context):
    attributes = context.get_request_header(0, "X-Amzn-SageMaker-Custom-Attributes")
    context.set_response_header(0, "X-Amzn-SageMaker-Custom-Attributes", f"seen {attributes}")
    return context.get_all_request_header(0).get("x-amzn-sagemaker-inference-id", "none"), "text/plain"
"""


def invoke(endpoint: str, body: str = "x", **more) -> dict:
    return boto3.client("sagemaker-runtime").invoke_endpoint(EndpointName=endpoint, Body=body.encode(), **more)


def test_what_is_neither_text_nor_bytes_becomes_json_as_torchserve_makes_it(deploy, make_model):  # noqa: F811
    name = deploy(make_model({"code/inference.py": RETURNS}))
    asked = {"ContentType": "application/octet-stream"}
    for sent, expected in (("dict", {"a": [1.5]}), ("number", 5), ("nothing", None)):
        assert json.loads(invoke(name, sent, **asked)["Body"].read()) == expected
    assert invoke(name, "bytes", **asked)["Body"].read() == b"raw"
    with pytest.raises(ClientError, match=r"server error \(503\).*Unsupported model output data type"):
        invoke(name, "array", **asked)
    with pytest.raises(ClientError, match=r"server error \(500\).*too many values to unpack"):
        invoke(name, "three", **asked)


def test_custom_attributes_reach_the_model_and_come_back_from_it(deploy, make_model):  # noqa: F811
    name = deploy(make_model({"code/inference.py": ATTRIBUTES}))
    reply = invoke(name, CustomAttributes="trace=1", InferenceId="42")
    assert (reply["CustomAttributes"], reply["Body"].read()) == ("seen trace=1", b"42")
