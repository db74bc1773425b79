"""A training job as the tests write it, and what they ask of it."""

import io
import tarfile
import time
import uuid

import boto3

LOG_GROUP = "/aws/sagemaker/TrainingJobs"
TERMINAL = {"Completed", "Failed", "Stopped"}


def wait_until(condition, seconds=30.0):
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
    return value


def host_logs(name: str) -> dict[str, list[str]]:
    logs = boto3.client("logs")
    streams = logs.describe_log_streams(logGroupName=LOG_GROUP, logStreamNamePrefix=f"{name}/")["logStreams"]
    return {
        stream["logStreamName"].split("/")[1].rpartition("-")[0]: [
            event["message"]
            for event in logs.get_log_events(
                logGroupName=LOG_GROUP, logStreamName=stream["logStreamName"], startFromHead=True
            )["events"]
        ]
        for stream in streams
    }


class Job:
    """A training job of a test."""

    def __init__(self, role: str, bucket: str) -> None:
        self.client = boto3.client("sagemaker")
        self.name = f"job-{uuid.uuid4().hex[:12]}"
        self.bucket = bucket
        self.request = {
            "TrainingJobName": self.name,
            "RoleArn": role,
            "AlgorithmSpecification": {"TrainingImage": "image", "TrainingInputMode": "File"},
            "OutputDataConfig": {"S3OutputPath": f"s3://{bucket}/jobs"},
            "ResourceConfig": {"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 1},
            "StoppingCondition": {"MaxRuntimeInSeconds": 60},
        }

    def shell(self, line: str) -> "Job":
        self.request["AlgorithmSpecification"] |= {"ContainerEntrypoint": ["bash", "-c"], "ContainerArguments": [line]}
        return self

    def python(self, text: str) -> "Job":
        self.request["AlgorithmSpecification"] |= {
            "ContainerEntrypoint": ["python3", "-c"],
            "ContainerArguments": [text],
        }
        return self

    def program(self, code: str) -> "Job":
        """Run a Python file of a channel, under a shell (ContainerArguments are at most 256 characters each)."""
        boto3.client("s3").put_object(Bucket=self.bucket, Key="program/main.py", Body=code.encode())
        line = "python3 /opt/ml/input/data/program/main.py && echo the shell goes on"
        return self.channel("program", "program/").shell(line)

    def script(self, code: str, **hyperparameters: str) -> "Job":
        content = io.BytesIO()
        with tarfile.open(fileobj=content, mode="w:gz") as archive:
            entry = tarfile.TarInfo("train.py")
            entry.size = len(code.encode())
            archive.addfile(entry, io.BytesIO(code.encode()))
        boto3.client("s3").put_object(Bucket=self.bucket, Key="code.tar.gz", Body=content.getvalue())
        submit = {"sagemaker_program": "train.py", "sagemaker_submit_directory": f"s3://{self.bucket}/code.tar.gz"}
        self.request["HyperParameters"] = submit | hyperparameters
        return self

    def channel(self, name: str, prefix: str, kind="S3Prefix", distribution="FullyReplicated") -> "Job":
        source = {"S3DataType": kind, "S3Uri": f"s3://{self.bucket}/{prefix}", "S3DataDistributionType": distribution}
        self.request.setdefault("InputDataConfig", []).append(
            {"ChannelName": name, "DataSource": {"S3DataSource": source}}
        )  # fmt: skip
        return self

    def create(self, **changes) -> "Job":
        self.client.create_training_job(**self.request | changes)
        return self

    def describe(self) -> dict:
        return self.client.describe_training_job(TrainingJobName=self.name)

    def ended(self, **changes) -> dict:
        self.create(**changes)
        wait_until(lambda: self.describe()["TrainingJobStatus"] in TERMINAL)
        return self.describe()

    def logs(self) -> list[str]:
        logs = boto3.client("logs")
        streams = logs.describe_log_streams(logGroupName=LOG_GROUP, logStreamNamePrefix=f"{self.name}/")["logStreams"]
        events = [
            logs.get_log_events(logGroupName=LOG_GROUP, logStreamName=stream["logStreamName"], startFromHead=True)
            for stream in streams
        ]
        return [event["message"] for page in events for event in page["events"]]

    def artifact(self, name: str) -> dict[str, str]:
        key = f"jobs/{self.name}/output/{name}"
        content = boto3.client("s3").get_object(Bucket=self.bucket, Key=key)["Body"].read()
        with tarfile.open(fileobj=io.BytesIO(content)) as archive:
            return {entry.name: archive.extractfile(entry).read().decode() for entry in archive if entry.isfile()}
