"""AWS's Ray Serve container, rehearsed: config.yaml, deployment.py, and what comes of a request."""

import json

import boto3
import pytest
from botocore.exceptions import ClientError

from tests.rehearsal.serving import allow, make_role, pack_model, settled

IMAGE = "763104351884.dkr.ecr.us-east-1.amazonaws.com/ray:serve-ml-sagemaker-cpu-v1.1"
CONFIG = "applications:\n  - name: tiny\n    route_prefix: /\n    import_path: deployment:app\n"
DEPLOYMENT = """
import asyncio, os
from ray import serve
from starlette.responses import Response

@serve.deployment(num_replicas=1)
class Tiny:
    def __init__(self, word):
        self.word, self.under_way = word, 0

    async def __call__(self, request):
        body = (await request.body()).decode()
        if body == "broken":
            raise ValueError("broken on purpose")
        if body == "busy":
            return Response("come back later", 503, headers={"Retry-After": "1"})
        if body == "text":
            return self.word
        return {"word": self.word, "body": body, "accept": request.headers.get("accept")}

app = Tiny.bind("tiny")
"""


@pytest.fixture
def deploy(rehearsal, role, bucket):
    """Deploy a model of some files under a name; return the endpoint's last description."""

    def make(name: str, files: dict[str, str]) -> dict:
        sagemaker = boto3.client("sagemaker")
        boto3.client("s3").put_object(Bucket=bucket, Key=f"{name}.tar.gz", Body=pack_model(files))
        serving_role = make_role("sagemaker.amazonaws.com", allow("*"))
        container = {"Image": IMAGE, "ModelDataUrl": f"s3://{bucket}/{name}.tar.gz"}
        sagemaker.create_model(ModelName=name, ExecutionRoleArn=serving_role, PrimaryContainer=container)
        variant = {"VariantName": "AllTraffic", "ModelName": name, "InstanceType": "ml.m5.large"}
        variant["InitialInstanceCount"] = 1
        sagemaker.create_endpoint_config(EndpointConfigName=name, ProductionVariants=[variant])
        sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=name)
        made.append(name)
        return settled(name)

    made: list[str] = []
    yield make
    for name in made:
        boto3.client("sagemaker").delete_endpoint(EndpointName=name)


def ask(name: str, body: str) -> bytes:
    runtime = boto3.client("sagemaker-runtime")
    return runtime.invoke_endpoint(EndpointName=name, Body=body, ContentType="text/plain", Accept="a/b")["Body"].read()


def test_a_deployment_answers_with_whatever_ray_would_make_of_it(deploy):
    assert deploy("ray-good", {"config.yaml": CONFIG, "deployment.py": DEPLOYMENT})["EndpointStatus"] == "InService"
    assert json.loads(ask("ray-good", "hello")) == {"word": "tiny", "body": "hello", "accept": "a/b"}
    assert ask("ray-good", "text") == b"tiny"
    for body, status in (("broken", 500), ("busy", 503)):
        with pytest.raises(ClientError) as refused:
            ask("ray-good", body)
        assert refused.value.response["OriginalStatusCode"] == status


@pytest.mark.parametrize(
    "files",
    [
        {"deployment.py": DEPLOYMENT},
        {"config.yaml": "applications: []\n", "deployment.py": DEPLOYMENT},
        {"config.yaml": CONFIG, "deployment.py": "app = 1\n"},
        {"config.yaml": CONFIG, "deployment.py": "from ray import serve\nserve.batch\n"},
    ],
    ids=["no config", "no application", "not bound", "what is not rehearsed"],
)
def test_what_is_no_application_does_not_come_into_service(deploy, files):
    description = deploy("ray-bad", files)
    assert description["EndpointStatus"] == "Failed"
    assert "did not pass the ping health check" in description["FailureReason"]
    boto3.client("sagemaker").delete_endpoint_config(EndpointConfigName="ray-bad")
    boto3.client("sagemaker").delete_model(ModelName="ray-bad")
