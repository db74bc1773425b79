import base64
import json
import uuid
from concurrent.futures import ThreadPoolExecutor

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from tests.rehearsal.serving import IMAGE, pack_model, settled, unique, until
from tests.rehearsal.topics import topic  # noqa: F401 - a fixture

INFERENCE = """
import json, os, pathlib, time

def model_fn(model_dir):
    return os.environ.get("ROLE_OF_THE_MODEL", "main")

def input_fn(body, content_type):
    return body if isinstance(body, str) else bytes(body).decode()

def predict_fn(text, model):
    if text == "broken":
        raise ValueError("broken on purpose")
    if text.startswith("wait for "):
        pathlib.Path(text[9:] + ".begun").touch()
        while not pathlib.Path(text[9:]).exists():
            time.sleep(0.01)
    if model == "shadow":
        with open(os.environ["SEEN"], "a") as seen:
            seen.write(text + "\\n")
        raise ValueError("a shadow's errors are nobody's")
    return {"model": model, "text": text}

def output_fn(prediction, accept):
    return json.dumps(prediction), "application/json"
"""


@pytest.fixture(scope="module")
def place(rehearsal):
    """Return a bucket, a role that may use it, and a function that makes models in it."""
    iam, sagemaker, s3 = boto3.client("iam"), boto3.client("sagemaker"), boto3.client("s3")
    bucket, name, made = f"bucket-{uuid.uuid4().hex[:12]}", unique("extras"), []
    trust = {"Effect": "Allow", "Action": "sts:AssumeRole", "Principal": {"Service": "sagemaker.amazonaws.com"}}
    document = json.dumps({"Version": "2012-10-17", "Statement": [trust]})
    role = iam.create_role(RoleName=name, AssumeRolePolicyDocument=document)["Role"]["Arn"]
    allowed = {"Effect": "Allow", "Action": ["s3:*", "logs:*", "sns:Publish"], "Resource": "*"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [allowed]})
    iam.put_role_policy(RoleName=name, PolicyName="all", PolicyDocument=policy)
    s3.create_bucket(Bucket=bucket)
    s3.put_object(Bucket=bucket, Key="model.tar.gz", Body=pack_model({"code/inference.py": INFERENCE}))

    def make_model(**variables: str) -> str:
        container = {"Image": IMAGE, "ModelDataUrl": f"s3://{bucket}/model.tar.gz", "Environment": variables}
        made.append(unique("model"))
        sagemaker.create_model(ModelName=made[-1], ExecutionRoleArn=role, PrimaryContainer=container)
        return made[-1]

    yield bucket, make_model
    for model in made:
        sagemaker.delete_model(ModelName=model)
    contents = boto3.resource("s3").Bucket(bucket)
    contents.objects.delete()
    contents.delete()


@pytest.fixture
def deploy(place):
    """Return a function that makes an endpoint of a configuration's further settings; returns its name."""
    sagemaker, made = boto3.client("sagemaker"), []

    def make(variant: dict | None = None, **settings) -> str:
        name = unique("endpoint")
        instances = {"InstanceType": "ml.m5.large", "InitialInstanceCount": 1}
        production = {"VariantName": "AllTraffic", "ModelName": place[1](), **(variant or instances)}
        sagemaker.create_endpoint_config(EndpointConfigName=name, ProductionVariants=[production], **settings)
        sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=name)
        made.append(name)
        assert settled(name)["EndpointStatus"] == "InService"
        return name

    yield make
    for name in made:
        sagemaker.delete_endpoint(EndpointName=name)
        sagemaker.delete_endpoint_config(EndpointConfigName=name)


def ask(endpoint: str, text: str = "dog", **more) -> dict:
    client = boto3.client("sagemaker-runtime", config=Config(retries={"total_max_attempts": 1}))
    reply = client.invoke_endpoint(EndpointName=endpoint, Body=text.encode(), ContentType="text/plain", **more)
    return json.loads(reply["Body"].read())


def scale(endpoint: str, count: int) -> None:
    """Change the number of instances, and wait until it is so."""
    boto3.client("sagemaker").update_endpoint_weights_and_capacities(
        EndpointName=endpoint,
        DesiredWeightsAndCapacities=[{"VariantName": "AllTraffic", "DesiredInstanceCount": count}],
    )
    [variant] = settled(endpoint)["ProductionVariants"]
    assert (variant["CurrentInstanceCount"], variant["DesiredInstanceCount"]) == (count, count)


def content(uri: str) -> str:
    """Return an object's text once it is there."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    found = until(lambda: list(boto3.resource("s3").Bucket(bucket).objects.filter(Prefix=key)))
    return found[0].get()["Body"].read().decode()


def test_asynchronous_requests_are_answered_in_s3(place, deploy):
    bucket, _ = place
    output = {"S3OutputPath": f"s3://{bucket}/answers/", "S3FailurePath": f"s3://{bucket}/failures"}
    name = deploy(
        AsyncInferenceConfig={"OutputConfig": output, "ClientConfig": {"MaxConcurrentInvocationsPerInstance": 1}}
    )
    assert (
        boto3.client("sagemaker").describe_endpoint(EndpointName=name)["AsyncInferenceConfig"]["OutputConfig"] == output
    )
    runtime = boto3.client("sagemaker-runtime")
    boto3.client("s3").put_object(Bucket=bucket, Key="in/dog", Body=b"dog")
    asked = {"EndpointName": name, "ContentType": "text/plain"}
    reply = runtime.invoke_endpoint_async(InputLocation=f"s3://{bucket}/in/dog", InferenceId="7", **asked)
    assert (reply["InferenceId"], reply["ResponseMetadata"]["HTTPStatusCode"]) == ("7", 202)
    assert reply["OutputLocation"].startswith(f"s3://{bucket}/answers/")
    assert json.loads(content(reply["OutputLocation"])) == {"model": "main", "text": "dog"}
    boto3.client("s3").put_object(Bucket=bucket, Key="in/broken", Body=b"broken")
    for key, words in (("in/broken", "Received server error (500)"), ("in/nothing", "NoSuchKey")):
        reply = runtime.invoke_endpoint_async(InputLocation=f"s3://{bucket}/{key}", **asked)
        assert words in content(reply["FailureLocation"])
    with pytest.raises(ClientError, match="does not support this inference type"):
        ask(name)
    scale(name, 0)
    reply = runtime.invoke_endpoint_async(InputLocation=f"s3://{bucket}/in/dog", **asked)
    scale(name, 1)  # it has waited for that
    assert json.loads(content(reply["OutputLocation"]))["text"] == "dog"


def test_topics_are_told_how_asynchronous_requests_ended(place, deploy, topic):  # noqa: F811
    arn, next_envelope = topic

    def next_message() -> dict:
        return json.loads(next_envelope()["Message"])

    include = ["SUCCESS_NOTIFICATION_TOPIC", "ERROR_NOTIFICATION_TOPIC"]
    told = {"SuccessTopic": arn, "ErrorTopic": arn, "IncludeInferenceResponseIn": include}
    output = {"S3OutputPath": f"s3://{place[0]}/answers", "NotificationConfig": told}
    name = deploy(AsyncInferenceConfig={"OutputConfig": output})
    runtime, asked = boto3.client("sagemaker-runtime"), {"EndpointName": name, "ContentType": "text/plain"}
    reply = runtime.invoke_endpoint_async(Body=b"dog", InferenceId="7", **asked)
    message = next_message()
    assert (message["invocationStatus"], message["inferenceId"]) == ("Completed", "7")
    assert (message["eventSource"], message["eventName"]) == ("aws:sagemaker", "InferenceResult")
    assert message["requestParameters"] == {"contentType": "text/plain", "endpointName": name}
    where = {"contentType": "application/json", "outputLocation": reply["OutputLocation"]}
    assert message["responseParameters"] == where
    assert json.loads(base64.b64decode(message["responseBody"]["content"])) == {"model": "main", "text": "dog"}
    runtime.invoke_endpoint_async(InputLocation=f"s3://{place[0]}/nothing", **asked)
    message = next_message()
    assert message["invocationStatus"] == "Failed"
    assert message["failureReason"].startswith("ClientError: Failed to download the request")
    assert message["requestParameters"]["inputLocation"] == f"s3://{place[0]}/nothing"
    runtime.invoke_endpoint_async(Body=b"broken", **asked)
    message = next_message()
    assert "Received server error (500)" in message["failureReason"]
    assert b"broken on purpose" in base64.b64decode(message["responseBody"]["content"])
    with pytest.raises(ClientError, match="Body must have at most 128000 bytes"):
        runtime.invoke_endpoint_async(Body=b"x" * 128_001, **asked)


def test_a_synchronous_endpoint_captures_its_data_and_takes_no_asynchronous_requests(place, deploy):
    options = [{"CaptureMode": "Input"}, {"CaptureMode": "Output"}]
    where = {"DestinationS3Uri": f"s3://{place[0]}/seen", "InitialSamplingPercentage": 100, "CaptureOptions": options}
    name = deploy(DataCaptureConfig={"EnableCapture": True, **where})
    described = boto3.client("sagemaker").describe_endpoint(EndpointName=name)["DataCaptureConfig"]
    assert (described["EnableCapture"], described["CaptureStatus"]) == (True, "Started")
    ask(name, "cat", InferenceId="9")
    with pytest.raises(ClientError, match="broken on purpose"):
        ask(name, "broken")
    record = json.loads(content(f"s3://{place[0]}/seen/{name}/AllTraffic/"))
    assert record["eventMetadata"]["inferenceId"] == "9"
    assert record["captureData"]["endpointInput"]["data"] == "Y2F0"
    with pytest.raises(ClientError, match="does not support this inference type"):
        boto3.client("sagemaker-runtime").invoke_endpoint_async(EndpointName=name, InputLocation="s3://a/b")


def test_a_shadow_sees_the_requests_and_its_errors_change_no_answer(place, deploy, tmp_path):
    seen = tmp_path / "seen"
    shadow = {"VariantName": "Shadow", "ModelName": place[1](ROLE_OF_THE_MODEL="shadow", SEEN=str(seen))}
    shadow |= {"InstanceType": "ml.m5.large", "InitialInstanceCount": 1, "InitialVariantWeight": 1.0}
    name = deploy(ShadowProductionVariants=[shadow])
    [described] = boto3.client("sagemaker").describe_endpoint(EndpointName=name)["ShadowProductionVariants"]
    assert described["VariantName"] == "Shadow"
    texts = [f"photo {number}" for number in range(5)]
    assert [ask(name, text) for text in texts] == [{"model": "main", "text": text} for text in texts]
    until(lambda: seen.exists() and sorted(seen.read_text().splitlines()) == texts)


def test_a_serverless_endpoint_refuses_more_than_its_concurrency(deploy, tmp_path):
    gate, begun = tmp_path / "open", tmp_path / "open.begun"
    name = deploy({"ServerlessConfig": {"MemorySizeInMB": 2048, "MaxConcurrency": 1}})
    [variant] = boto3.client("sagemaker").describe_endpoint(EndpointName=name)["ProductionVariants"]
    assert variant["CurrentServerlessConfig"] == {"MemorySizeInMB": 2048, "MaxConcurrency": 1}
    assert "CurrentInstanceCount" not in variant
    for change in ({"DesiredInstanceCount": 2}, {"ServerlessUpdateConfig": {"ProvisionedConcurrency": 2}}):
        with pytest.raises(ClientError, match=r"ValidationException.*(DesiredInstanceCount|ProvisionedConcurrency)"):
            boto3.client("sagemaker").update_endpoint_weights_and_capacities(
                EndpointName=name, DesiredWeightsAndCapacities=[{"VariantName": "AllTraffic", **change}]
            )
    assert ask(name)["text"] == "dog"
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(ask, name, f"wait for {gate}")
        until(begun.exists)
        with pytest.raises(ClientError) as caught:
            ask(name)
        gate.touch()
        assert slow.result()["model"] == "main"
    assert caught.value.response["Error"]["Code"] == "ThrottlingException"
