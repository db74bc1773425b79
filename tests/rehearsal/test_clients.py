"""The SageMaker SDK and the AWS CLI drive the rehearsal unmodified."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import boto3
import pytest

SCRIPT = """
import json, os, pathlib, sys
photos = os.listdir(os.environ["SM_CHANNEL_TRAINING"])
if "--fail" in sys.argv:
    pathlib.Path(os.environ["SM_OUTPUT_DIR"], "failure").write_text("told to fail")
    sys.exit(1)
print("valid_loss=0.5")
seen = {"argv": sys.argv[1:], "photos": photos, "name": os.environ["TRAINING_JOB_NAME"]}
pathlib.Path(os.environ["SM_MODEL_DIR"], "seen.json").write_text(json.dumps(seen))
"""


@pytest.fixture
def source(tmp_path) -> Path:
    directory = tmp_path / "source"
    directory.mkdir()
    (directory / "train.py").write_text(SCRIPT)
    return directory


def build_trainer(source: Path, role: str, bucket: str, **hyperparameters):
    from sagemaker.core.helper.session_helper import Session
    from sagemaker.train import ModelTrainer
    from sagemaker.train.configs import Compute, MetricDefinition, OutputDataConfig, SourceCode, StoppingCondition

    trainer = ModelTrainer(
        training_image="000000000000.dkr.ecr.us-east-1.amazonaws.com/pytorch-training:2",
        source_code=SourceCode(source_dir=str(source), entry_script="train.py"),
        compute=Compute(instance_type="ml.m5.large", instance_count=1, volume_size_in_gb=5),
        stopping_condition=StoppingCondition(max_runtime_in_seconds=100),
        output_data_config=OutputDataConfig(s3_output_path=f"s3://{bucket}/jobs"),
        role=role,
        base_job_name="trainer",
        sagemaker_session=Session(default_bucket=bucket),
        hyperparameters=hyperparameters,
    )
    return trainer.with_metric_definitions([MetricDefinition(name="valid:loss", regex="valid_loss=([0-9.]+)")])


def test_model_trainer_trains_and_fails(source, role, bucket, monkeypatch):
    from sagemaker.train.configs import InputData

    monkeypatch.setenv("SAGEMAKER_VALIDATE_ROLE", "false")
    boto3.client("s3").put_object(Bucket=bucket, Key="photos/a.jpg", Body=b"a")
    photos = [InputData(channel_name="training", data_source=f"s3://{bucket}/photos/")]
    trainer = build_trainer(source, role, bucket, learning_rate=0.1, backbone="resnet50")
    trainer.train(input_data_config=photos, wait=False, logs=False)
    job = trainer._latest_training_job
    job.wait(poll=1)
    assert job.training_job_status == "Completed"
    assert [(metric.metric_name, metric.value) for metric in job.final_metric_data_list] == [("valid:loss", 0.5)]
    failing = build_trainer(source, role, bucket, fail="yes")
    failing.base_job_name = "failing"  # job names hold the time in seconds: two of one name could collide
    failing.train(input_data_config=photos, wait=False, logs=False)
    with pytest.raises(Exception, match="AlgorithmError: told to fail, exit code: 1"):
        failing._latest_training_job.wait(poll=1)


def test_the_aws_cli_talks_to_it(rehearsal, bucket, tmp_path):
    aws = shutil.which("aws", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    environment = {name: value for name, value in os.environ.items() if name != "AWS_ENDPOINT_URL"}

    def run(*command: str) -> subprocess.CompletedProcess:
        line = [aws, "--endpoint-url", rehearsal.endpoint_url, *command]
        return subprocess.run(line, env=environment, capture_output=True, text=True, check=False)

    photo = tmp_path / "a photo.jpg"
    photo.write_bytes(b"photo")
    copied = run("s3", "cp", str(photo), f"s3://{bucket}/photos/")
    assert copied.returncode == 0, copied.stderr
    listed = json.loads(run("sagemaker", "list-training-jobs", "--name-contains", "none-of-this-name").stdout)
    assert listed == {"TrainingJobSummaries": []}
    refused = run("sagemaker", "describe-training-job", "--training-job-name", "none")
    assert refused.returncode != 0
    assert "(ValidationException) when calling the DescribeTrainingJob operation: Requested resource not found." in (
        refused.stderr
    )
