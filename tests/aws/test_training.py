"""A training job from its staged code to its results, with a script that needs no torch."""

import dataclasses
import json
import os
import re
from datetime import UTC, datetime
from pathlib import Path

import pytest
from botocore.exceptions import ClientError

from opslib import rehearsal as local_aws
from opslib.aws import progress, roles, storage, trainers, training
from opslib.aws.ledger import Run
from opslib.aws.logs import TRAINING_GROUP, list_log_streams
from opslib.aws.progress import parse_metrics
from opslib.aws.session import client
from opslib.errors import AwsError, TrainingFailed
from opslib.specs import METRIC_REGEXES, JobSpec, TrainingSpec

SCRIPT = """
import json, os, pathlib, sys, time

arguments = dict(zip(sys.argv[1::2], sys.argv[2::2]))
photos = sorted(pathlib.Path(os.environ["SM_CHANNEL_TRAINING"]).rglob("*.jpg"))
if arguments["--backbone"] == "fails":
    pathlib.Path(os.environ["SM_OUTPUT_DIR"], "failure").write_text("no backbone 'fails'; did you mean 'works'?")
    sys.exit(1)
for epoch in (1, 2):
    print(f"epoch={epoch} train_loss=1.5 train_accuracy=0.5 valid_loss={1 / epoch} valid_accuracy=0.25", flush=True)
kept = pathlib.Path(arguments["--checkpoint_dir"], "kept")
if arguments["--backbone"] == "resumes" and not kept.exists():
    kept.write_text("epoch 1")
    print("kept", flush=True)
    time.sleep(600)
if arguments["--backbone"] == "sleeps":
    time.sleep(600)
print("test_accuracy=0.75 test_top5=1.0", flush=True)
output = pathlib.Path(os.environ["SM_OUTPUT_DATA_DIR"])
(output / "metrics.jsonl").write_text('{"epoch": 1, "valid_loss": 1.0}\\n{"epoch": 2, "valid_loss": 0.5}\\n')
(output / "report.json").write_text(json.dumps({"photos": [photo.name for photo in photos], "arguments": arguments}))
pathlib.Path(os.environ["SM_MODEL_DIR"], "model.json").write_text("{}")
"""


@pytest.fixture
def staged(monkeypatch) -> None:
    """Stage SCRIPT as hpo.py instead of the project's."""

    def stage(destination: Path, *, scripts: tuple[str, ...], requirements: tuple[str, ...]) -> None:
        assert scripts == ("hpo.py", "inference.py", "deployment.py", "config.yaml")
        assert requirements == ()
        destination.mkdir()
        (destination / "hpo.py").write_text(SCRIPT)

    monkeypatch.setattr(trainers, "copy_bundle", stage)
    monkeypatch.setattr(trainers, "backbone_requirements", lambda _: ())


def start(run: Run, tmp_path: Path, backbone: str, **job: object) -> str:
    """Start a job on two photos."""
    bucket = storage.ensure_bucket(run)
    for name in ("a.jpg", "Ä.jpg"):
        (tmp_path / name).write_bytes(b"photo")
    items = [(f"train/breed/{name}", tmp_path / name) for name in ("a.jpg", "Ä.jpg")]
    return training.start_training(
        run,
        TrainingSpec(backbone=backbone, epochs=2),
        JobSpec(**job),
        photos_uri=storage.upload_files(items, bucket, "photos"),
        bucket=bucket,
        role=roles.ensure_execution_role(run, bucket),
    )


def test_a_job_from_start_to_results(run, tmp_path, staged) -> None:
    environment = dict(os.environ)
    name = start(run, tmp_path, "works")
    assert dict(os.environ) == environment
    # the SDK adds the time in whole seconds; the token before it tells two jobs of one second apart
    assert re.fullmatch(re.escape(run.name_prefix) + r"train-[a-z0-9]{4}-\d{14}", name)
    looks: list[training.TrainingProgress] = []
    summary = training.wait_for_training(name, looks.append)

    assert [row["valid_loss"] for row in looks[-1].metrics] == [1.0, 0.5]
    assert looks[-1].metrics[0] == {
        "epoch": 1, "train_loss": 1.5, "train_accuracy": 0.5, "valid_loss": 1.0, "valid_accuracy": 0.25,
    }  # fmt: skip
    assert looks[-1].status == "Completed"
    assert sum("test_accuracy=0.75" in line for look in looks for line in look.lines) == 1
    assert summary.final_metrics["valid:loss"] == pytest.approx(0.5)
    assert summary.model_uri == f"s3://{run.name('data')}/{run.prefix}/training/{name}/output/model.tar.gz"

    results = training.training_results(name, tmp_path / "results")
    assert results.history[1] == {"epoch": 2, "valid_loss": 0.5}
    assert results.report["photos"] == ["a.jpg", "Ä.jpg"]
    spec = TrainingSpec(backbone="works", epochs=2)
    checkpoints = results.report["arguments"].pop("--checkpoint_dir")
    assert checkpoints.endswith("/opt/ml/checkpoints")  # in the rehearsal, below the container's own root
    assert results.report["arguments"] == {f"--{name}": value for name, value in spec.hyperparameters().items()}
    assert results.model_uri == summary.model_uri
    assert results.summary == summary
    assert summary.billed_instance_seconds == summary.billable_seconds
    assert summary.spot_savings_percent == 0

    description = client("sagemaker").describe_training_job(TrainingJobName=name)
    definitions = {
        entry["Name"]: entry["Regex"] for entry in description["AlgorithmSpecification"]["MetricDefinitions"]
    }
    assert definitions == METRIC_REGEXES
    assert re.search(r"/pytorch-training:\d.*-cpu-", description["AlgorithmSpecification"]["TrainingImage"])
    assert client("sagemaker").list_tags(ResourceArn=description["TrainingJobArn"])["Tags"] == run.tags
    assert ("training-job", name) in [(resource.kind, resource.identifier) for resource in run.resources()]


def test_a_failing_script_reaches_the_user(run, tmp_path, staged) -> None:
    name = start(run, tmp_path, "fails")
    with pytest.raises(TrainingFailed, match="did you mean 'works'") as caught:
        training.wait_for_training(name)
    assert "ended as Failed" in caught.value.message
    assert TRAINING_GROUP in caught.value.hint
    with pytest.raises(TrainingFailed, match="no results"):
        training.training_results(name, tmp_path / "results")


def test_a_stopped_job_and_its_traces_can_be_deleted(run, tmp_path, staged) -> None:
    name = start(run, tmp_path, "sleeps")
    looks: list[training.TrainingProgress] = []
    for look in training.follow_training(name):
        looks.append(look)
        if look.status == "InProgress" and len(look.metrics) == 2:
            training.stop_training(name)
    assert look.status == "Stopped"
    assert any(one.status == "InProgress" and one.metrics for one in looks)  # lines came while it ran
    with pytest.raises(TrainingFailed, match="Stopped"):
        training.wait_for_training(name)
    training.stop_training(name)
    training.delete_training(name)
    training.delete_training(name)
    training.stop_training(name)
    assert list_log_streams(TRAINING_GROUP, f"{name}/") == []
    with pytest.raises(AwsError, match="not found"):
        training.wait_for_training(name)


def test_a_deleted_job_is_waited_for_until_it_is_gone(monkeypatch) -> None:
    # The rehearsal deletes at once; AWS has a status for a job that is on its way out.
    gone = {"Error": {"Code": "ValidationException", "Message": "Requested resource not found."}}
    answers = iter(["Stopping", "Stopped", "Stopped", "Deleting", ClientError(gone, "DescribeTrainingJob")])
    deleted: list[str] = []

    class SageMaker:
        def describe_training_job(self, **_: str) -> dict[str, str]:
            answer = next(answers)
            if isinstance(answer, ClientError):
                raise answer
            return {"TrainingJobStatus": answer}

        def delete_training_job(self, **names: str) -> None:
            deleted.append(names["TrainingJobName"])

    monkeypatch.setattr(training, "client", lambda _: SageMaker())
    monkeypatch.setattr(training, "delete_log_streams", lambda *_: None)
    monkeypatch.setattr(training, "_STOP_POLL_SECONDS", 0.0)
    training.delete_training("job")
    assert deleted == ["job"]
    assert list(answers) == []


def test_a_role_that_may_not_be_used_is_reported_in_aws_words(run, tmp_path, staged, monkeypatch) -> None:
    nobody = "arn:aws:iam::000000000000:role/nobody"
    monkeypatch.setattr(roles, "ensure_execution_role", lambda *_: nobody)
    with pytest.raises(AwsError, match="starting the training job"):
        start(run, tmp_path, "works")


def test_output_that_leads_outside_is_refused(tmp_path) -> None:
    import io
    import tarfile

    archive = tmp_path / "output.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        entry = tarfile.TarInfo("../outside")
        tar.addfile(entry, io.BytesIO(b""))
    (tmp_path / "in").mkdir()
    with pytest.raises(AwsError, match="cannot be unpacked"):
        training._unpack(archive, tmp_path / "in")
    assert not (tmp_path / "outside").exists()


def test_the_objective_is_read_from_a_printed_line() -> None:
    line = "epoch=12 train_loss=0.1 train_accuracy=0.99 valid_loss=4.5e-01 valid_accuracy=0.875"
    assert parse_metrics(line)["valid_loss"] == pytest.approx(0.45)
    assert parse_metrics(line)["epoch"] == 12
    assert parse_metrics("test_accuracy=0.5 test_top5=0.9") == {"test_accuracy": 0.5, "test_top5": 0.9}
    assert parse_metrics("epoch 3 begins") == {}


def test_an_unknown_job_is_an_error(rehearsal) -> None:
    with pytest.raises(AwsError, match="looking at training job"):
        training.wait_for_training("no-such-job")


def test_several_spot_instances_are_asked_for_as_aws_wants_it(run, tmp_path, staged) -> None:
    job = {"instance_count": 2, "spot": True, "max_run_seconds": 600, "distribution": "ShardedByS3Key"}
    name = start(run, tmp_path, "works", **job)
    asked = client("sagemaker").describe_training_job(TrainingJobName=name)
    training.delete_training(name)
    assert asked["ResourceConfig"]["InstanceCount"] == 2
    assert asked["EnableManagedSpotTraining"]
    assert asked["StoppingCondition"] == {"MaxRuntimeInSeconds": 600, "MaxWaitTimeInSeconds": 1200}
    channels = {channel["ChannelName"]: channel["DataSource"]["S3DataSource"] for channel in asked["InputDataConfig"]}
    shares = {channel: source["S3DataDistributionType"] for channel, source in channels.items()}
    assert shares == {"training": "ShardedByS3Key", "code": "FullyReplicated", "sm_drivers": "FullyReplicated"}
    checkpoints = {"S3Uri": f"s3://{run.name('data')}/{run.prefix}/checkpoints", "LocalPath": "/opt/ml/checkpoints"}
    assert asked["CheckpointConfig"] == checkpoints
    assert asked["HyperParameters"]["checkpoint_dir"] == "/opt/ml/checkpoints"
    bucket, key = storage.split_uri(channels["sm_drivers"]["S3Uri"])
    keys = storage.list_objects(bucket, key)
    started = next(one for one in keys if one.endswith("sm_train.sh"))
    assert b"torchrun_driver.py" in client("s3").get_object(Bucket=bucket, Key=started)["Body"].read()


def test_a_spot_job_that_is_interrupted_goes_on_from_its_checkpoint(run, tmp_path, staged) -> None:
    name = start(run, tmp_path, "resumes", spot=True)
    looks: list[training.TrainingProgress] = []

    def interrupt(look: training.TrainingProgress) -> None:
        looks.append(look)
        if any(line.endswith("kept") for line in look.lines):
            local_aws.interrupt_training(name, away_seconds=2)

    summary = training.wait_for_training(name, interrupt)
    assert looks[-1].interruptions == 1
    assert looks[-1].stage == "Completed (interrupted once)"
    assert [row["epoch"] for row in looks[-1].metrics] == [1, 2]
    assert summary.is_spot
    assert summary.billable_seconds < summary.train_seconds  # two seconds without instances
    assert 0 < summary.spot_savings_percent < 100


def test_the_bill_counts_instances_and_spot_savings() -> None:
    times = {"train_seconds": 200.0, "billable_seconds": 80, "final_metrics": {}}
    summary = training.TrainingSummary("job", "s3://b/k", instance_count=3, is_spot=True, **times)
    assert summary.billed_instance_seconds == 240
    assert summary.spot_savings_percent == pytest.approx(60)
    assert dataclasses.replace(summary, is_spot=False).spot_savings_percent == 0
    assert dataclasses.replace(summary, train_seconds=0.0).spot_savings_percent == 0


def test_an_interrupted_job_says_what_it_waits_for(run, monkeypatch) -> None:
    line = "epoch={} train_loss=1 train_accuracy=0.5 valid_loss={} valid_accuracy=0.5"
    looks = iter([("Training", [line.format(1, 3.0), line.format(2, 2.0)]), ("Interrupted", []), ("Restarting", [])])
    history: list[dict[str, str]] = []

    def describe(_: str) -> dict:
        status = next(states, "Completed")
        history.append({"Status": status})
        return {
            "TrainingJobStatus": "Completed" if status == "Completed" else "InProgress",
            "SecondaryStatus": status,
            "SecondaryStatusTransitions": list(history),
            "CreationTime": datetime.now(UTC),
        }

    states, lines = zip(*looks, strict=True)
    states, lines = iter([*states, "Training"]), iter([*lines, [line.format(2, 2.0), line.format(3, 1.0)], []])
    monkeypatch.setattr(progress, "describe_training", describe)
    monkeypatch.setattr(progress.LogReader, "read", lambda _: next(lines))
    monkeypatch.setattr(progress, "_FAST_POLL_SECONDS", 0.0)
    seen = list(progress.follow_training("job"))
    assert [look.interruptions for look in seen] == [0, 1, 1, 1, 1]
    assert "goes on from its checkpoint" in seen[1].stage
    assert seen[3].stage == "Training (interrupted once so far)"
    assert [row["epoch"] for row in seen[-1].metrics] == [1, 2, 3]


def test_hyperparameters_are_json_readable() -> None:
    assert json.loads(TrainingSpec().hyperparameters()["learning_rate"]) == pytest.approx(TrainingSpec().learning_rate)
