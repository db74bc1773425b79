"""Managed spot training: limits, interruptions on purpose, what survives them, what is billed."""

import subprocess
import sys

import boto3
import pytest
from botocore.exceptions import ClientError

from opslib import rehearsal as local_aws
from opslib.errors import RehearsalError
from opslib.rehearsal.interruptions import interrupt_training
from tests.rehearsal.jobs import TERMINAL, Job, wait_until

SPOT = {
    "EnableManagedSpotTraining": True,
    "StoppingCondition": {"MaxRuntimeInSeconds": 60, "MaxWaitTimeInSeconds": 120},
}
COUNTS = """
import os, pathlib, signal, sys, time
folder = pathlib.Path(os.environ["CHECKPOINTS"])
folder.mkdir(exist_ok=True)
state = folder / "state"
epoch = int(state.read_text()) if state.exists() else 0
print("from", epoch, flush=True)
def save():
    partial = folder / "state.partial-1"
    partial.write_text(str(epoch))
    partial.replace(state)
def interrupted(*_):
    save()
    sys.exit(0)
signal.signal(signal.SIGTERM, interrupted)
(folder / "growing").open("w").write("half")
open_file = (folder / "half-written").open("w", buffering=1)
open_file.write("half\\n")
while epoch < 3:
    epoch += 1
    save()
    if epoch == 2 and not (folder / "again").exists():
        (folder / "again").touch()
        time.sleep(100)
open_file.write("whole\\n")
print("done", epoch, flush=True)
"""


@pytest.fixture
def job(role, bucket) -> Job:
    job = Job(role, bucket).program(COUNTS)
    job.request |= SPOT | {"Environment": {"CHECKPOINTS": "/opt/ml/checkpoints"}}
    return job


def with_checkpoints(job: Job) -> dict:
    return {"CheckpointConfig": {"S3Uri": f"s3://{job.bucket}/saved"}}


def saved(job: Job) -> dict[str, str]:
    objects = boto3.resource("s3").Bucket(job.bucket).objects.filter(Prefix="saved/")
    return {one.key.removeprefix("saved/"): one.get()["Body"].read().decode() for one in objects}


def stages(job: Job) -> list[str]:
    return [step["Status"] for step in job.describe()["SecondaryStatusTransitions"]]


def refused(job: Job, **changes) -> str:
    with pytest.raises(ClientError) as error:
        job.create(**changes)
    assert error.value.response["Error"]["Code"] == "ValidationException"
    return error.value.response["Error"]["Message"]


def test_an_interrupted_job_goes_on_from_its_checkpoints(job):
    job.create(**with_checkpoints(job))
    uploaded = wait_until(lambda: (found := saved(job)).get("state") == "2" and "again" in found and found)
    assert job.describe()["SecondaryStatus"] == "Training"
    assert uploaded.keys() == {"state", "again", "growing"}  # neither the open file nor the temporary one
    local_aws.interrupt_training(job.name, away_seconds=2)
    wait_until(lambda: "Interrupted" in stages(job))
    with pytest.raises(RehearsalError, match="no instances now: Interrupted"):
        local_aws.interrupt_training(job.name)
    wait_until(lambda: job.describe()["TrainingJobStatus"] in TERMINAL)
    attempt = ["Starting", "Downloading", "Training"]
    assert stages(job) == [*attempt, "Interrupted", *attempt, "Uploading", "Completed"]
    assert [line for line in job.logs() if line != "the shell goes on"] == ["from 0", "from 2", "done 3"]
    described = job.describe()
    assert described["TrainingTimeInSeconds"] - described["BillableTimeInSeconds"] in {1, 2}
    assert saved(job) == {"state": "3", "again": "", "growing": "half", "half-written": "half\nwhole\n"}


def test_without_checkpoints_it_starts_over_as_often_as_it_is_interrupted(job):
    job.create()
    for attempt in (1, 2):
        wait_until(lambda attempt=attempt: stages(job).count("Training") == attempt and len(running(job)) == attempt)
        local_aws.interrupt_training(job.name, away_seconds=0)
    wait_until(lambda: len(running(job)) == 3)
    assert running(job) == ["from 0"] * 3
    job.client.stop_training_job(TrainingJobName=job.name)
    wait_until(lambda: job.describe()["TrainingJobStatus"] == "Stopped")
    assert stages(job)[-2:] == ["Stopping", "Stopped"]


def running(job: Job) -> list[str]:
    groups = boto3.client("logs").describe_log_groups(logGroupNamePrefix="/aws/sagemaker/TrainingJobs")["logGroups"]
    return [line for line in job.logs() if line.startswith("from")] if groups else []


def test_a_job_waits_for_instances_no_longer_than_asked(job):
    job.create(StoppingCondition={"MaxRuntimeInSeconds": 8, "MaxWaitTimeInSeconds": 8})
    wait_until(lambda: running(job))
    command = [sys.executable, "-m", "opslib.rehearsal", "interrupt", job.name, "--away-seconds", "100"]
    said = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (said.stdout, job.name in said.stderr) == ("", True)
    wait_until(lambda: job.describe()["TrainingJobStatus"] in TERMINAL)
    assert stages(job)[-3:] == ["Interrupted", "Stopping", "MaxWaitTimeExceeded"]
    assert job.describe()["TrainingJobStatus"] == "Stopped"


def test_a_job_that_ignores_its_end_is_killed_after_the_grace(job, monkeypatch):
    monkeypatch.setattr("opslib.rehearsal.training.run.GRACE_SECONDS", 0.2)
    line = "mkdir -p /opt/ml/checkpoints; cat /opt/ml/checkpoints/*; trap '' TERM; "
    job.shell(line + "if [ -f /opt/ml/checkpoints/a ]; then exit 0; fi; echo late > /opt/ml/checkpoints/a; sleep 100")
    job.create(**with_checkpoints(job))
    wait_until(lambda: saved(job))
    local_aws.interrupt_training(job.name, away_seconds=0)
    wait_until(lambda: job.describe()["TrainingJobStatus"] in TERMINAL)
    assert job.describe()["TrainingJobStatus"] == "Completed"
    assert "late" in job.logs()


def test_a_failing_job_keeps_its_checkpoints(job):
    folder = "/opt/ml/checkpoints"
    job.shell(f"mkdir -p {folder}; echo 7 > {folder}/epoch; echo half > {folder}/.partialstate; exit 1")
    job.ended(**with_checkpoints(job))
    assert job.describe()["TrainingJobStatus"] == "Failed"
    assert saved(job) == {"epoch": "7\n"}


def test_limits_that_aws_refuses(job, role, bucket):
    only_spot = "Invalid MaxWaitTimeInSeconds. It is only supported when EnableManagedSpotTraining is set to true"
    too_short = "Invalid MaxWaitTimeInSeconds. It must be present and be greater than or equal to MaxRuntimeInSeconds"
    assert refused(job, EnableManagedSpotTraining=False) == only_spot
    assert refused(job, StoppingCondition={"MaxRuntimeInSeconds": 60}) == too_short
    assert refused(job, StoppingCondition={"MaxRuntimeInSeconds": 60, "MaxWaitTimeInSeconds": 59}) == too_short


def test_only_the_rehearsals_own_identity_interrupts(job, role, rehearsal):
    on_demand = Job(role, job.bucket).shell("exec sleep 100").create()
    with pytest.raises(RehearsalError, match="not on managed spot"):
        local_aws.interrupt_training(on_demand.name)
    on_demand.client.stop_training_job(TrainingJobName=on_demand.name)
    with pytest.raises(RehearsalError, match="no such job"):
        local_aws.interrupt_training("nobody")
    forged = rehearsal.environment | {"AWS_SECRET_ACCESS_KEY": "guessed"}
    with pytest.raises(RehearsalError, match="signature"):
        interrupt_training(on_demand.name, forged)
    with pytest.raises(RehearsalError, match="no rehearsal is running here"):
        interrupt_training(on_demand.name, rehearsal.environment | {"AWS_ENDPOINT_URL": "https://aws.example:443"})
