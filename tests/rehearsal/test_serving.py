"""A function in front of an endpoint: what the way through it costs, and that nothing outlives the rehearsal."""

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import boto3
import psutil

from tests.rehearsal.serving import (
    IMAGE,
    INFERENCE,
    allow,
    is_running,
    make_role,
    pack_function,
    pack_model,
    settled,
    unique,
    until,
)

ROOT = Path(__file__).parents[2]
FORWARDER = """
import base64, boto3, json, os
runtime = boto3.client("sagemaker-runtime")

def handler(event, context):
    reply = runtime.invoke_endpoint(
        EndpointName=os.environ["ENDPOINT_NAME"], Body=base64.b64decode(event["image"]), ContentType="image/jpeg"
    )
    return {"scores": json.loads(reply["Body"].read()), "pid": os.getpid()}
"""


def build_serving(bucket: str, role: str) -> tuple[str, str]:
    """Make an endpoint and a function in front of it, which may call that endpoint only; return their names."""
    sagemaker, functions = boto3.client("sagemaker"), boto3.client("lambda")
    endpoint, function = unique("endpoint"), unique("function")
    model = pack_model({"code/inference.py": INFERENCE})
    boto3.client("s3").put_object(Bucket=bucket, Key="model.tar.gz", Body=model)
    container = {"Image": IMAGE, "ModelDataUrl": f"s3://{bucket}/model.tar.gz"}
    sagemaker.create_model(ModelName=endpoint, ExecutionRoleArn=role, PrimaryContainer=container)
    variant = {"VariantName": "V", "ModelName": endpoint, "InstanceType": "ml.m5.large", "InitialInstanceCount": 1}
    sagemaker.create_endpoint_config(EndpointConfigName=endpoint, ProductionVariants=[variant])
    arn = sagemaker.create_endpoint(EndpointName=endpoint, EndpointConfigName=endpoint)["EndpointArn"]
    functions.create_function(
        FunctionName=function,
        Runtime="python3.13",
        Handler="app.handler",
        Role=make_role("lambda.amazonaws.com", allow("sagemaker:InvokeEndpoint", resource=arn), allow("logs:*")),
        Code={"ZipFile": pack_function(FORWARDER)},
        Timeout=30,
        MemorySize=256,
        Environment={"Variables": {"ENDPOINT_NAME": endpoint}},
    )
    assert settled(endpoint)["EndpointStatus"] == "InService"
    until(lambda: functions.get_function_configuration(FunctionName=function)["State"] == "Active")
    return endpoint, function


def milliseconds(call) -> float:
    """Return the median duration of 30 calls."""
    durations = []
    for _ in range(30):
        started = time.perf_counter()
        call()
        durations.append(1000 * (time.perf_counter() - started))
    return statistics.median(durations)


def test_a_warm_function_adds_little_to_the_endpoints_own_time(bucket, role):
    endpoint, function = build_serving(bucket, role)
    runtime, functions = boto3.client("sagemaker-runtime"), boto3.client("lambda")
    event = json.dumps({"image": "cGhvdG8="})

    def through_the_function():
        return json.loads(functions.invoke(FunctionName=function, Payload=event)["Payload"].read())

    assert through_the_function()["scores"]["length"] == 5

    def directly():
        return runtime.invoke_endpoint(EndpointName=endpoint, Body=b"photo")["Body"].read()

    direct = milliseconds(directly)
    assert milliseconds(through_the_function) - direct < 40
    boto3.client("sagemaker").delete_endpoint(EndpointName=endpoint)
    answer = through_the_function()
    assert answer["errorType"] == "ValidationError"
    functions.delete_function(FunctionName=function)


SERVER = """
import json, sys, time
sys.path.insert(0, {root!r})
import boto3
from opslib import rehearsal
from tests.rehearsal.serving import allow, make_role
from tests.rehearsal.test_serving import build_serving

with rehearsal.start():
    boto3.client("s3").create_bucket(Bucket="the-bucket")
    _, function = build_serving("the-bucket", make_role("sagemaker.amazonaws.com", allow("*")))
    reply = boto3.client("lambda").invoke(FunctionName=function, Payload='{{"image": "cGhvdG8="}}')
    answer = json.loads(reply["Payload"].read())
    print(json.dumps([answer["pid"], answer["scores"]["pid"]]), flush=True)
    time.sleep(600)
"""


def test_a_server_that_is_killed_leaves_no_model_server_and_no_function():
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER.format(root=str(ROOT))], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    try:
        pids = json.loads(server.stdout.readline())
        family = [child.pid for child in psutil.Process(server.pid).children(recursive=True)]
        assert set(pids) < set(family)
        os.kill(server.pid, signal.SIGKILL)
        until(lambda: not any(is_running(pid) for pid in family))
    finally:
        server.kill()
        server.wait()
        server.stdout.close()
