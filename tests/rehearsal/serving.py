"""Models and functions for the tests: tiny scripts, packed as AWS wants them, and waiting without fixed sleeps."""

import io
import json
import tarfile
import time
import uuid
import zipfile

import boto3
import psutil

IMAGE = "763104351884.dkr.ecr.us-east-1.amazonaws.com/pytorch-inference:2.6-cpu-py312"

INFERENCE = """
import json, os, sys, time
from sagemaker_inference.errors import BaseInferenceToolkitError

class Refused(BaseInferenceToolkitError):
    pass

class LooksRefused(Exception):
    status_code, message, phrase = 415, "not the toolkit's class", "Unsupported Media Type"

def model_fn(model_dir):
    print("loading", os.listdir(model_dir))
    return {"served": 0}

def input_fn(body, content_type):
    if content_type == "text/refused":
        raise Refused(415, "this type is not served", "Unsupported Media Type")
    if content_type == "text/looks-refused":
        raise LooksRefused("with a status, but not of the toolkit's class")
    if content_type == "text/broken":
        raise ValueError("broken on purpose")
    if content_type == "text/exit":
        os._exit(3)
    if content_type == "text/hang":
        time.sleep(60)
    return body

def predict_fn(data, model):
    model["served"] += 1
    return {"type": type(data).__name__, "length": len(data), "pid": os.getpid(), "served": model["served"],
            "variables": sorted(os.environ)}

def output_fn(prediction, accept):
    prediction["accept"] = accept
    return json.dumps(prediction), accept
"""


def pack_model(files: dict[str, str | bytes]) -> bytes:
    """Return a model.tar.gz of the files."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, content in files.items():
            raw = content.encode() if isinstance(content, str) else content
            entry = tarfile.TarInfo(name)
            entry.size = len(raw)
            archive.addfile(entry, io.BytesIO(raw))
    return packed.getvalue()


def pack_function(source: str, name: str = "app.py") -> bytes:
    """Return a zip of one readable module."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        entry = zipfile.ZipInfo(name)
        entry.external_attr = 0o644 << 16
        archive.writestr(entry, source)
    return packed.getvalue()


def unique(kind: str) -> str:
    """Return a name that no other test uses."""
    return f"{kind}-{uuid.uuid4().hex[:12]}"


def until(condition, seconds: float = 20.0):
    """Return the condition's first true value; fail when it stays false."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
    return value


def settled(endpoint: str, seconds: float = 30.0) -> dict:
    """Return an endpoint's description once it is neither Creating nor Updating."""
    describe = boto3.client("sagemaker").describe_endpoint

    def look():
        description = describe(EndpointName=endpoint)
        return description if description["EndpointStatus"] not in {"Creating", "Updating", "RollingBack"} else None

    return until(look, seconds)


def log_lines(group: str) -> list[str]:
    """Return the messages of every stream of a log group; none when there is no such group."""
    logs = boto3.client("logs")
    if not logs.describe_log_groups(logGroupNamePrefix=group)["logGroups"]:
        return []
    streams = logs.describe_log_streams(logGroupName=group)["logStreams"]
    pages = [logs.get_log_events(logGroupName=group, logStreamName=one["logStreamName"]) for one in streams]
    return [event["message"] for page in pages for event in page["events"]]


def is_running(pid: int) -> bool:
    """Return whether a process lives (a zombie does not)."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def make_role(service: str, *statements: dict) -> str:
    """Create a role that one service may assume; return its ARN."""
    iam, name = boto3.client("iam"), unique("role")
    trust = {"Effect": "Allow", "Principal": {"Service": service}, "Action": "sts:AssumeRole"}
    document = json.dumps({"Version": "2012-10-17", "Statement": [trust]})
    arn = iam.create_role(RoleName=name, AssumeRolePolicyDocument=document)["Role"]["Arn"]
    if statements:
        policy = json.dumps({"Version": "2012-10-17", "Statement": list(statements)})
        iam.put_role_policy(RoleName=name, PolicyName="test", PolicyDocument=policy)
    return arn


def allow(*actions: str, resource: str = "*") -> dict:
    """Return a statement that allows the actions."""
    return {"Effect": "Allow", "Action": list(actions), "Resource": resource}


def client_of(service: str, *statements: dict):
    """Return a client with the temporary credentials of a new role that has the statements and nothing else."""
    return session_of(*statements).client(service)


def session_of(*statements: dict) -> boto3.Session:
    """Return a session with the temporary credentials of a new role that has the statements and nothing else."""
    administrator = boto3.client("sts").get_caller_identity()["Arn"]
    iam, name = boto3.client("iam"), unique("caller")
    trust = {"Effect": "Allow", "Principal": {"AWS": administrator}, "Action": "sts:AssumeRole"}
    document = json.dumps({"Version": "2012-10-17", "Statement": [trust]})
    arn = iam.create_role(RoleName=name, AssumeRolePolicyDocument=document)["Role"]["Arn"]
    policy = json.dumps({"Version": "2012-10-17", "Statement": list(statements)})
    iam.put_role_policy(RoleName=name, PolicyName="test", PolicyDocument=policy)
    credentials = boto3.client("sts").assume_role(RoleArn=arn, RoleSessionName="test")["Credentials"]
    return boto3.Session(
        aws_access_key_id=credentials["AccessKeyId"],
        aws_secret_access_key=credentials["SecretAccessKey"],
        aws_session_token=credentials["SessionToken"],
    )
