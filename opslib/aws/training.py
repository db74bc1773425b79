"""Training jobs: started with the SageMaker SDK's ModelTrainer, followed, and their results fetched."""

import json
import tarfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opslib import specs
from opslib.aws.failures import explained, gone_is_fine, masked
from opslib.aws.ledger import Run, new_token
from opslib.aws.logs import TRAINING_GROUP, delete_log_streams, log_tail
from opslib.aws.progress import ENDED, TrainingProgress, describe_training, follow_training
from opslib.aws.roles import once_role_is_known
from opslib.aws.session import client
from opslib.aws.storage import download_file
from opslib.aws.trainers import before_create, build_trainer, checkpoints_uri, photos_channel, staged_code
from opslib.errors import AwsError, TrainingFailed
from opslib.specs import JobSpec, TrainingSpec

if TYPE_CHECKING:
    from sagemaker.core.shapes import Channel
    from sagemaker.train import ModelTrainer

__all__ = [
    "TrainingProgress",
    "TrainingResults",
    "TrainingSummary",
    "checkpoints_uri",
    "delete_training",
    "follow_training",
    "start_training",
    "stop_training",
    "training_exists",
    "training_results",
    "wait_for_training",
]

MAX_OUTPUT_BYTES = 1 << 30
_STOP_POLL_SECONDS, _STOP_SECONDS = 1.0, 900.0


@dataclass(frozen=True)
class TrainingSummary:
    """A training job that completed: where its model is, how long it trained, and what is billed.

    Attributes:
        name: The job's.
        model_uri: Its model.tar.gz.
        instance_count: How many instances trained together.
        train_seconds: From the start of training to the end, waiting for spot capacity included.
        billable_seconds: What each instance is billed for, as AWS reports it.
        is_spot: Whether the instances were spot capacity.
        final_metrics: The last value of each of `specs.METRIC_REGEXES`.
    """

    name: str
    model_uri: str
    instance_count: int
    train_seconds: float
    billable_seconds: int
    is_spot: bool
    final_metrics: dict[str, float]

    @property
    def billed_instance_seconds(self) -> int:
        """The seconds of all instances together: what the bill multiplies with the price of one."""
        return self.billable_seconds * self.instance_count

    @property
    def spot_savings_percent(self) -> float:
        """What spot capacity saved, by the formula of DescribeTrainingJob's API reference; 0 for other jobs."""
        if not self.is_spot or self.train_seconds <= 0:
            return 0.0
        return max(0.0, (1 - self.billable_seconds / self.train_seconds) * 100)


@dataclass(frozen=True)
class TrainingResults:
    """What a training job left.

    Attributes:
        summary: The model's URI, times and bill.
        history: One row an epoch: `epoch`, `train_loss`, `train_accuracy`, `valid_loss`, `valid_accuracy`.
        report: All of report.json: figures of the test photos, the confusion matrix, and the two below.
    """

    summary: TrainingSummary
    history: list[dict[str, Any]]
    report: dict[str, Any]

    @property
    def model_uri(self) -> str:
        """The model.tar.gz."""
        return self.summary.model_uri

    @property
    def metrics(self) -> dict[str, Any]:
        """The figures by which the model is judged, the same as in its model.json."""
        return self.report.get("metrics", {})

    @property
    def ranks(self) -> list[dict[str, Any]]:
        """A row for each process: `rank`, `host`, its photos of each part, `weights_sha256` of what it ended with."""
        return self.report.get("ranks", [])


def start_training(run: Run, spec: TrainingSpec, job: JobSpec, *, photos_uri: str, bucket: str, role: str) -> str:
    """Start a training job that runs `hpo.py`, and return its name without waiting.

    Args:
        run: The run that the job belongs to.
        spec: How to train; sent as hyperparameters.
        job: The machines and the time limit; several instances train one model together, under torchrun.
        photos_uri: S3 prefix that holds train/, valid/ and test/; the job's channel `training`.
        bucket: Where the SDK stages the code, and where model and checkpoints go, under the run's prefix.
        role: ARN of the execution role.

    Raises:
        AwsError: AWS refused.
    """
    with staged_code(spec) as source, explained("starting the training job"):
        # The SDK adds the time in whole seconds: the token tells two jobs of one second apart.
        name = run.name(f"train-{new_token()}")
        trainer = build_trainer(run, spec, job, place=(bucket, role), source=source, base_name=name)
        # The SDK chooses the job's name, and this is the last moment before it is sent.
        before_create(
            trainer.sagemaker_session,
            "CreateTrainingJob",
            lambda parameters: run.record("training-job", parameters["TrainingJobName"]),
        )
        channel = photos_channel(photos_uri, job)
        return once_role_is_known(role, lambda: _train(trainer, channel))


def _train(trainer: "ModelTrainer", channel: "Channel") -> str:
    from sagemaker.core.training import configs

    definitions = [configs.MetricDefinition(name=name, regex=regex) for name, regex in specs.METRIC_REGEXES.items()]
    trainer.with_metric_definitions(definitions).train(input_data_config=[channel], wait=False, logs=False)
    return trainer._latest_training_job.training_job_name  # the SDK has no public way to learn the name it chose


def wait_for_training(name: str, on_progress: Callable[[TrainingProgress], object] | None = None) -> TrainingSummary:
    """Wait until a training job has ended, telling `on_progress` at every look, and return its summary.

    Raises:
        TrainingFailed: it failed or was stopped; the message holds its FailureReason and last log lines.
        AwsError: there is no such job, or AWS refused.
    """
    description: dict[str, Any] = {}
    for progress in follow_training(name):
        description = progress.description
        if on_progress:
            on_progress(progress)
    if description["TrainingJobStatus"] != "Completed":
        raise TrainingFailed(
            _failure(name, description), hint=f"all its lines: CloudWatch log group {TRAINING_GROUP}, streams {name}/*"
        )
    return _summary(description)


def _failure(name: str, description: dict[str, Any]) -> str:
    why = masked(description.get("FailureReason", "")) or description["SecondaryStatus"]
    tail = log_tail(TRAINING_GROUP, f"{name}/", count=10)
    last = f"\nits last log lines:\n{masked(tail)}" if tail else ""
    return f"training job {name} ended as {description['TrainingJobStatus']}: {why}{last}"


def _summary(description: dict[str, Any]) -> TrainingSummary:
    return TrainingSummary(
        name=description["TrainingJobName"],
        model_uri=description["ModelArtifacts"]["S3ModelArtifacts"],
        instance_count=description["ResourceConfig"].get("InstanceCount", 1),
        is_spot=description.get("EnableManagedSpotTraining", False),
        train_seconds=float(description.get("TrainingTimeInSeconds", 0)),
        billable_seconds=int(description.get("BillableTimeInSeconds", 0)),
        final_metrics={entry["MetricName"]: entry["Value"] for entry in description.get("FinalMetricDataList", [])},
    )


def training_results(name: str, directory: Path) -> TrainingResults:
    """Fetch what a completed training job wrote besides the model: `metrics.jsonl` and `report.json`.

    SageMaker packs the job's /opt/ml/output/data as `<output path>/<job>/output/output.tar.gz`; it is unpacked in
    `directory`.

    Raises:
        TrainingFailed: the job has not completed.
        AwsError: the archive or one of the two files is missing, or the archive is not safe to unpack.
    """
    description = describe_training(name)
    if description["TrainingJobStatus"] != "Completed":
        raise TrainingFailed(f"training job {name} is {description['TrainingJobStatus']}: it has no results")
    summary = _summary(description)
    output_path = description["OutputDataConfig"]["S3OutputPath"].rstrip("/")
    archive = download_file(f"{output_path}/{name}/output/output.tar.gz", Path(directory) / "output.tar.gz")
    _unpack(archive, Path(directory))
    archive.unlink()
    return TrainingResults(
        summary=summary,
        history=[json.loads(line) for line in _read(Path(directory) / "metrics.jsonl").splitlines() if line],
        report=json.loads(_read(Path(directory) / "report.json")),
    )


def _unpack(archive: Path, directory: Path) -> None:
    try:
        with tarfile.open(archive) as tar:
            if sum(member.size for member in tar) > MAX_OUTPUT_BYTES:
                raise AwsError(f"{archive} unpacks to more than {MAX_OUTPUT_BYTES} bytes")
            tar.extractall(directory, filter="data")  # refuses links, devices and paths that lead outside
    except tarfile.TarError as error:
        raise AwsError(f"{archive} cannot be unpacked: {error}") from error


def _read(path: Path) -> str:
    if not path.is_file():
        raise AwsError(
            f"the training job wrote no {path.name}",
            hint="hpo.py writes it to SM_OUTPUT_DATA_DIR; was it another script?",
        )
    return path.read_text(encoding="utf-8")


def stop_training(name: str) -> None:
    """Ask a running training job to stop; does nothing when it has ended or is gone.

    SageMaker sends SIGTERM to the container and kills it 120 seconds later; AWS's images do not pass the signal on to
    the script (aws/sagemaker-training-toolkit, issue 125), so what counts is the checkpoint of the last epoch.

    Raises:
        AwsError: AWS refused.
    """
    with explained(f"stopping training job {name}"), gone_is_fine():
        description = client("sagemaker").describe_training_job(TrainingJobName=name)
        if description["TrainingJobStatus"] == "InProgress":
            client("sagemaker").stop_training_job(TrainingJobName=name)


def training_exists(name: str) -> bool:
    """Tell whether there is a training job of that name, in whatever state.

    Raises:
        AwsError: AWS refused.
    """
    with explained(f"looking at training job {name}"), gone_is_fine():
        client("sagemaker").describe_training_job(TrainingJobName=name)
        return True
    return False


def delete_training(name: str) -> None:
    """Delete a training job and its log streams, stopping it first if it runs; succeeds when it is already gone.

    Its model and output in S3 stay where they are.

    Raises:
        AwsError: AWS refused, or the job did not stop and go within 15 minutes.
    """
    stop_training(name)
    with explained(f"deleting training job {name}"), gone_is_fine():
        _delete_when_ended(name)
    delete_log_streams(TRAINING_GROUP, f"{name}/")


def _delete_when_ended(name: str) -> None:
    """Delete a job once it has ended, and look at it until SageMaker does not find it: it is `Deleting` for a while."""
    sagemaker, asked = client("sagemaker"), False
    deadline = time.monotonic() + _STOP_SECONDS  # it has 120 seconds to save, and then uploads what it saved
    while time.monotonic() < deadline:
        status = sagemaker.describe_training_job(TrainingJobName=name)["TrainingJobStatus"]
        if status in ENDED and not asked:
            sagemaker.delete_training_job(TrainingJobName=name)
            asked = True
        else:
            time.sleep(_STOP_POLL_SECONDS)
    raise AwsError(f"training job {name} is still {status} after {_STOP_SECONDS:.0f} s")
