"""Training jobs: started with the SageMaker SDK's ModelTrainer, followed, and their results fetched."""

import json
import os
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opslib import specs
from opslib.aws.failures import explained, gone_is_fine, masked
from opslib.aws.ledger import Run, new_token
from opslib.aws.logs import TRAINING_GROUP, delete_log_streams, log_tail
from opslib.aws.progress import ENDED, TrainingProgress, describe_training, follow_training
from opslib.aws.roles import once_role_is_known
from opslib.aws.session import client, region, sagemaker_session
from opslib.aws.storage import download_file
from opslib.bundle import backbone_requirements, copy_bundle
from opslib.errors import AwsError, TrainingFailed
from opslib.specs import JobSpec, TrainingSpec

if TYPE_CHECKING:
    from sagemaker.train import ModelTrainer

__all__ = [
    "TrainingProgress",
    "TrainingResults",
    "TrainingSummary",
    "delete_training",
    "follow_training",
    "start_training",
    "stop_training",
    "training_exists",
    "training_results",
    "wait_for_training",
]

FRAMEWORK_VERSION, PYTHON_VERSION = "2.9.0", "py312"
"""AWS's PyTorch training container; the next one, 2.10, has Python 3.13 only."""

SCRIPTS = ("hpo.py", "inference.py")
MAX_OUTPUT_BYTES = 1 << 30
_STOP_POLL_SECONDS, _STOP_SECONDS = 1.0, 900.0


@dataclass(frozen=True)
class TrainingSummary:
    """A training job that completed: where its model is, and for how many seconds it trained and is billed."""

    name: str
    model_uri: str
    train_seconds: float
    billable_seconds: int
    final_metrics: dict[str, float]


@dataclass(frozen=True)
class TrainingResults:
    """What a training job left: one metrics row an epoch, the report on the test photos, and the model's URI."""

    metrics: list[dict[str, Any]]
    report: dict[str, Any]
    model_uri: str
    train_seconds: float
    billable_seconds: int


def start_training(run: Run, spec: TrainingSpec, job: JobSpec, *, photos_uri: str, bucket: str, role: str) -> str:
    """Start a training job that runs `hpo.py`, and return its name without waiting.

    Args:
        run: The run that the job belongs to.
        spec: How to train; sent as hyperparameters.
        job: The machine and the time limit.
        photos_uri: S3 prefix that holds train/, valid/ and test/; the job's channel `training`.
        bucket: Where the SDK stages the code, and where the model goes, under the run's prefix.
        role: ARN of the execution role.

    Raises:
        AwsError: AWS refused.
    """
    with tempfile.TemporaryDirectory(prefix="opslib-bundle-") as staging:
        source = Path(staging) / "code"
        requirements = backbone_requirements(spec.backbone)
        copy_bundle(source, scripts=SCRIPTS, requirements=requirements)
        with explained("starting the training job"):
            trainer = _trainer(run, spec, job, bucket=bucket, role=role, source=source)
            return once_role_is_known(role, lambda: _train(trainer, photos_uri))


def _train(trainer: "ModelTrainer", photos_uri: str) -> str:
    from sagemaker.core.training.configs import InputData

    channels = [InputData(channel_name=specs.CHANNEL, data_source=photos_uri)]
    trainer.train(input_data_config=channels, wait=False, logs=False)
    return trainer._latest_training_job.training_job_name  # the SDK has no public way to learn the name it chose


def _trainer(run: Run, spec: TrainingSpec, job: JobSpec, *, bucket: str, role: str, source: Path) -> "ModelTrainer":
    from sagemaker.core import image_uris
    from sagemaker.core.shapes import OutputDataConfig
    from sagemaker.core.training import configs
    from sagemaker.train import ModelTrainer

    session = sagemaker_session(bucket, run.prefix)
    session.boto_session.events.register(
        # The SDK chooses the job's name, and this is the last moment before it is sent.
        "provide-client-params.sagemaker.CreateTrainingJob",
        lambda params, **_: run.record("training-job", params["TrainingJobName"]),
    )
    requirements = "requirements.txt" if (source / "requirements.txt").exists() else None
    with _role_not_simulated():
        trainer = ModelTrainer(
            sagemaker_session=session,
            role=role,
            # The SDK adds the time in whole seconds: the token tells two jobs of one second apart.
            base_job_name=run.name(f"train-{new_token()}"),
            training_image=image_uris.retrieve(
                "pytorch",
                region=region(),
                version=FRAMEWORK_VERSION,
                py_version=PYTHON_VERSION,
                instance_type=job.instance_type,
                image_scope="training",
            ),
            # The bundle is a fresh copy, so there is nothing to ignore, and no second copy to make.
            source_code=configs.SourceCode(
                source_dir=str(source), entry_script="hpo.py", requirements=requirements, ignore_patterns=[]
            ),
            compute=configs.Compute(
                instance_type=job.instance_type, instance_count=job.instance_count, volume_size_in_gb=job.volume_gib
            ),
            stopping_condition=configs.StoppingCondition(max_runtime_in_seconds=job.max_run_seconds),
            output_data_config=OutputDataConfig(s3_output_path=f"s3://{bucket}/{run.prefix}/training"),
            hyperparameters=spec.hyperparameters(),
            tags=[configs.Tag(key=tag["Key"], value=tag["Value"]) for tag in run.tags],
        )
    definitions = [configs.MetricDefinition(name=name, regex=regex) for name, regex in specs.METRIC_REGEXES.items()]
    return trainer.with_metric_definitions(definitions)


@contextmanager
def _role_not_simulated() -> Iterator[None]:
    """Keep the SDK from refusing a least-privilege role.

    Its check simulates the actions of AmazonSageMakerFullAccess on every resource, EC2 network interfaces among them
    (`resolve_and_validate_role` in sagemaker 3.27, which reads this variable).
    """
    before = os.environ.get("SAGEMAKER_VALIDATE_ROLE")
    os.environ["SAGEMAKER_VALIDATE_ROLE"] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ["SAGEMAKER_VALIDATE_ROLE"]
        else:
            os.environ["SAGEMAKER_VALIDATE_ROLE"] = before


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
        metrics=[json.loads(line) for line in _read(Path(directory) / "metrics.jsonl").splitlines() if line],
        report=json.loads(_read(Path(directory) / "report.json")),
        model_uri=summary.model_uri,
        train_seconds=summary.train_seconds,
        billable_seconds=summary.billable_seconds,
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
    """Ask a running training job to stop: SIGTERM, then 120 seconds to save; does nothing when it has ended or is gone.

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
