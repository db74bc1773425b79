"""What a training job and a tuning job have in common: the SageMaker SDK's ModelTrainer, made of specifications."""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opslib import specs
from opslib.aws.ledger import Run
from opslib.aws.session import region, sagemaker_session
from opslib.bundle import INT8, backbone_requirements, copy_bundle
from opslib.specs import JobSpec, TrainingSpec

if TYPE_CHECKING:
    from sagemaker.core.helper.session_helper import Session
    from sagemaker.core.shapes import Channel
    from sagemaker.train import ModelTrainer

FRAMEWORK_VERSION, PYTHON_VERSION = "2.9.0", "py312"
"""AWS's PyTorch training container; the next one, 2.10, has Python 3.13 only."""

SCRIPTS = ("hpo.py", "inference.py", "deployment.py", "config.yaml")
CHECKPOINT_FOLDER = "/opt/ml/checkpoints"
"""Folder of a job that SageMaker copies to S3 while the job runs, and back before it starts."""


@contextmanager
def staged_code(spec: TrainingSpec) -> Iterator[Path]:
    """Stage what travels to the job in a folder, until the block ends: scripts, half of opslib, requirements."""
    with tempfile.TemporaryDirectory(prefix="opslib-bundle-") as staging:
        source = Path(staging) / "code"
        int8 = (INT8,) if spec.calibration_photos else ()
        copy_bundle(source, scripts=SCRIPTS, requirements=backbone_requirements(spec.backbone) + int8)
        yield source


def checkpoints_uri(run: Run, bucket: str) -> str:
    """Return where all jobs of a run keep features and training state.

    What lies there is named after its content, so a second job finds the features of the first, and of training states
    only its own.
    """
    return f"s3://{bucket}/{run.prefix}/checkpoints"


def build_trainer(
    run: Run, spec: TrainingSpec, job: JobSpec, *, place: tuple[str, str], source: Path, base_name: str
) -> "ModelTrainer":
    """Return a trainer that runs `hpo.py` as the specifications say, on one instance or on several that train together.

    Args:
        run: The run that its jobs belong to.
        spec: How to train; sent as hyperparameters, with the folder of checkpoints.
        job: The machines, their time limits, and whether they are spot instances.
        place: Bucket, and ARN of the execution role.
        source: The staged code.
        base_name: What the names of its jobs begin with.
    """
    from sagemaker.core.shapes import OutputDataConfig
    from sagemaker.core.training import configs
    from sagemaker.train import ModelTrainer
    from sagemaker.train.distributed import Torchrun

    bucket, role = place
    requirements = "requirements.txt" if (source / "requirements.txt").exists() else None
    with _role_not_simulated():
        return ModelTrainer(
            sagemaker_session=sagemaker_session(bucket, run.prefix),
            role=role,
            base_job_name=base_name,
            training_image=_image(job),
            # The bundle is a fresh copy, so there is nothing to ignore, and no second copy to make.
            source_code=configs.SourceCode(
                source_dir=str(source), entry_script="hpo.py", requirements=requirements, ignore_patterns=[]
            ),
            # One process for each GPU, or one for a host without: the launcher counts them.
            distributed=Torchrun() if job.instance_count > 1 else None,
            compute=_compute(job),
            stopping_condition=_stopping_condition(job),
            output_data_config=OutputDataConfig(s3_output_path=f"s3://{bucket}/{run.prefix}/training"),
            checkpoint_config=configs.CheckpointConfig(
                s3_uri=checkpoints_uri(run, bucket), local_path=CHECKPOINT_FOLDER
            ),
            hyperparameters=spec.hyperparameters() | {"checkpoint_dir": CHECKPOINT_FOLDER},
            tags=[configs.Tag(key=tag["Key"], value=tag["Value"]) for tag in run.tags],
        )


def photos_channel(photos_uri: str, job: JobSpec) -> "Channel":
    """Return the input channel: all photos to every host, or to each host its part of them."""
    from sagemaker.core.shapes import Channel, DataSource, S3DataSource

    source = S3DataSource(
        s3_data_type="S3Prefix", s3_uri=photos_uri, s3_data_distribution_type=job.distribution
    )  # the SDK's own InputData knows FullyReplicated only
    return Channel(channel_name=specs.CHANNEL, data_source=DataSource(s3_data_source=source), input_mode="File")


def before_create(session: "Session", operation: str, change: Callable[[dict[str, Any]], object]) -> None:
    """Call `change(parameters)` at the last moment before the SDK sends a request of `operation`."""
    session.boto_session.events.register(
        f"provide-client-params.sagemaker.{operation}", lambda params, **_: change(params)
    )


def _image(job: JobSpec) -> str:
    from sagemaker.core import image_uris

    return image_uris.retrieve(
        "pytorch",
        region=region(),
        version=FRAMEWORK_VERSION,
        py_version=PYTHON_VERSION,
        instance_type=job.instance_type,
        image_scope="training",
    )


def _compute(job: JobSpec) -> Any:
    from sagemaker.core.training import configs

    return configs.Compute(
        instance_type=job.instance_type,
        instance_count=job.instance_count,
        volume_size_in_gb=job.volume_gib,
        enable_managed_spot_training=job.spot,
    )


def _stopping_condition(job: JobSpec) -> Any:
    from sagemaker.core.training import configs

    wait = {"max_wait_time_in_seconds": job.longest_wait_seconds} if job.spot else {}
    return configs.StoppingCondition(max_runtime_in_seconds=job.max_run_seconds, **wait)


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
