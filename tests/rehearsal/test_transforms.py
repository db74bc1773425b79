import json
import uuid

import boto3
import pytest
from botocore.exceptions import ClientError

from opslib.rehearsal.transforms.records import PayloadTooLarge, cut, put_together
from tests.rehearsal.serving import IMAGE, allow, client_of, log_lines, pack_model, unique, until

INFERENCE = """
import os

def model_fn(model_dir):
    return os.environ["SAGEMAKER_BATCH_STRATEGY"]

def input_fn(body, content_type):
    text = body if isinstance(body, str) else bytes(body).decode()
    if "broken" in text:
        raise ValueError("broken on purpose")
    return text

def predict_fn(text, model):
    return f"{model}:{text.upper()}"

def output_fn(prediction, accept):
    return prediction, accept
"""
SEE_LOGS = "AlgorithmError: See job logs for more information"


@pytest.fixture(scope="module")
def place(rehearsal):
    """Return a bucket and a model in it that makes text upper case."""
    iam, bucket, name = boto3.client("iam"), f"bucket-{uuid.uuid4().hex[:12]}", unique("model")
    trust = {"Effect": "Allow", "Action": "sts:AssumeRole", "Principal": {"Service": "sagemaker.amazonaws.com"}}
    document = json.dumps({"Version": "2012-10-17", "Statement": [trust]})
    role = iam.create_role(RoleName=name, AssumeRolePolicyDocument=document)["Role"]["Arn"]
    allowed = {"Effect": "Allow", "Action": ["s3:*", "logs:*"], "Resource": "*"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [allowed]})
    iam.put_role_policy(RoleName=name, PolicyName="all", PolicyDocument=policy)
    s3 = boto3.client("s3")
    s3.create_bucket(Bucket=bucket)
    s3.put_object(Bucket=bucket, Key="model.tar.gz", Body=pack_model({"code/inference.py": INFERENCE}))
    container = {"Image": IMAGE, "ModelDataUrl": f"s3://{bucket}/model.tar.gz"}
    boto3.client("sagemaker").create_model(ModelName=name, ExecutionRoleArn=role, PrimaryContainer=container)
    yield bucket, name
    boto3.client("sagemaker").delete_model(ModelName=name)
    contents = boto3.resource("s3").Bucket(bucket)
    contents.objects.delete()
    contents.delete()


def start(place, files: dict[str, bytes], *, split="None", assemble="None", **more) -> str:
    bucket, model = place
    name = unique("transform")
    for key, content in files.items():
        boto3.client("s3").put_object(Bucket=bucket, Key=f"{name}/in/{key}", Body=content)
    source = {"S3DataType": "S3Prefix", "S3Uri": f"s3://{bucket}/{name}/in/"}
    boto3.client("sagemaker").create_transform_job(
        TransformJobName=name,
        ModelName=model,
        TransformInput={"DataSource": {"S3DataSource": source}, "SplitType": split, "ContentType": "text/plain"},
        TransformOutput={"S3OutputPath": f"s3://{bucket}/{name}/out", "AssembleWith": assemble, "Accept": "text/csv"},
        TransformResources={"InstanceType": "ml.m5.large", "InstanceCount": more.pop("instances", 1)},
        **more,
    )
    return name


def ended(name: str) -> dict:
    def look():
        job = boto3.client("sagemaker").describe_transform_job(TransformJobName=name)
        return job if job["TransformJobStatus"] in {"Completed", "Failed", "Stopped"} else None

    return until(look, 60)


def outputs(place, name: str) -> dict[str, bytes]:
    found = boto3.resource("s3").Bucket(place[0]).objects.filter(Prefix=f"{name}/out/")
    return {one.key.removeprefix(f"{name}/out/"): one.get()["Body"].read() for one in found}


def test_files_are_shared_by_the_instances_and_each_gets_an_output_beside_its_name(place):
    name = start(place, {"a.txt": b"one\ntwo\n", "deep/b.txt": b"three"}, split="Line", assemble="Line", instances=2)
    job = ended(name)
    assert (job["TransformJobStatus"], job.get("FailureReason")) == ("Completed", None)
    assert job["CreationTime"] <= job["TransformStartTime"] <= job["TransformEndTime"]
    assert outputs(place, name) == {"a.txt.out": b"MULTI_RECORD:ONE\nTWO\n", "deep/b.txt.out": b"MULTI_RECORD:THREE\n"}
    lines = log_lines("/aws/sagemaker/TransformJobs")
    assert any("MaxConcurrentTransforms=1, MaxPayloadInMB=6, BatchStrategy=MULTI_RECORD" in line for line in lines)
    with pytest.raises(ClientError, match="ResourceInUse"):
        boto3.client("sagemaker").create_transform_job(
            **{part: job[part] for part in ("TransformJobName", "ModelName", "TransformInput", "TransformOutput")},
            TransformResources=job["TransformResources"],
        )
    listed = boto3.client("sagemaker").list_transform_jobs(NameContains=name, StatusEquals="Completed")
    assert [one["TransformJobName"] for one in listed["TransformJobSummaries"]] == [name]


def test_a_file_with_a_bad_record_has_no_output_and_fails_the_job_and_the_others_are_written(place):
    files = {"bad.txt": b"fine\nbroken\nfine", "good.txt": b"x\ny"}
    retries = {"InvocationsMaxRetries": 1, "InvocationsTimeoutInSeconds": 5}
    name = start(
        place, files, split="Line", BatchStrategy="SingleRecord", MaxConcurrentTransforms=2, ModelClientConfig=retries
    )
    job = ended(name)
    assert (job["TransformJobStatus"], job["FailureReason"]) == ("Failed", SEE_LOGS)
    assert outputs(place, name) == {"good.txt.out": b"SINGLE_RECORD:XSINGLE_RECORD:Y"}
    lines = [line for line in log_lines("/aws/sagemaker/TransformJobs") if f"{name}/in/bad.txt" in line]
    assert any("Bad HTTP status received from algorithm: 500" in line for line in lines)
    assert any("broken on purpose" in line for line in lines)


def test_what_cannot_be_read_or_is_too_large_fails_the_job_and_a_stopped_one_is_stopped(place):
    job = ended(start(place, {}))
    assert job["FailureReason"].startswith("ClientError: No S3 objects found under S3 URL")
    job = ended(start(place, {"a": b"x" * (2**20 + 1)}, MaxPayloadInMB=1))
    assert job["FailureReason"] == "ClientError: See job logs for more information"
    sagemaker, name = boto3.client("sagemaker"), start(place, {"a": b"x"})
    sagemaker.stop_transform_job(TransformJobName=name)
    assert ended(name)["TransformJobStatus"] == "Stopped"
    with pytest.raises(ClientError, match="is in status Stopped"):
        sagemaker.stop_transform_job(TransformJobName=name)
    with pytest.raises(ClientError, match="ResourceNotFound"):
        sagemaker.describe_transform_job(TransformJobName="nothing")
    with pytest.raises(ClientError, match="must not exceed 100"):
        start(place, {}, MaxPayloadInMB=60, MaxConcurrentTransforms=2)
    with pytest.raises(ClientError, match=r"ResourceLimitExceeded.*'ml.m5.large for transform job usage' is 20"):
        start(place, {}, instances=1000)


def test_a_caller_needs_permission_on_the_job_and_not_on_the_model(place):
    name, job = unique("transform"), "arn:aws:sagemaker:us-east-1:000000000000:transform-job/transform-*"
    allowed = client_of("sagemaker", allow("sagemaker:CreateTransformJob", resource=job))
    source = {"S3DataType": "S3Prefix", "S3Uri": f"s3://{place[0]}/nothing/"}
    request = {
        "ModelName": place[1],
        "TransformInput": {"DataSource": {"S3DataSource": source}},
        "TransformOutput": {"S3OutputPath": f"s3://{place[0]}/out"},
        "TransformResources": {"InstanceType": "ml.m5.large", "InstanceCount": 1},
    }
    allowed.create_transform_job(TransformJobName=name, **request)
    assert ended(name)["TransformJobStatus"] == "Failed"
    with pytest.raises(ClientError, match="AccessDenied"):
        allowed.create_transform_job(TransformJobName="another", **request)


def test_records_are_never_cut_and_come_back_in_order():
    lines = b"aa\nbbb\nc\n"
    assert list(cut(lines, by_line=True, many_at_once=True, max_bytes=6)) == [b"aa\nbbb", b"c"]
    assert list(cut(lines, by_line=True, many_at_once=False, max_bytes=None)) == [b"aa", b"bbb", b"c"]
    assert list(cut(lines, by_line=False, many_at_once=True, max_bytes=None)) == [lines]
    with pytest.raises(PayloadTooLarge):
        list(cut(lines, by_line=True, many_at_once=True, max_bytes=2))
    assert put_together([b"1", b"2\n"], by_line=True) == b"1\n2\n"
    assert put_together([b"1", b"2\n"], by_line=False) == b"12\n"
