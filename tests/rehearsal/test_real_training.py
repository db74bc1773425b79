"""Torch in the rehearsal: clusters beside each other, and hpo.py itself on two hosts and on spot instances."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from opslib import rehearsal as local_aws
from opslib.aws import roles, storage, training
from opslib.aws.ledger import Run, start_run
from opslib.aws.sweeping import sweep
from opslib.errors import TrainingFailed
from opslib.specs import JobSpec, TrainingSpec
from opslib.vision.samples import draw_sample
from tests.rehearsal.jobs import host_logs

DIES = """
import os, torch, torch.distributed as ranks
ranks.init_process_group("gloo")
total = torch.tensor([float(os.environ["RANK"]) + 1])
ranks.all_reduce(total)
print(os.environ["SM_CURRENT_HOST"], "rank", os.environ["RANK"], "of", os.environ["WORLD_SIZE"], "sum", total.item())
if ranks.get_rank() == 1:
    os.kill(os.getpid(), 9)
ranks.all_reduce(total)
"""
COUNTS = {"train": 4, "valid": 2, "test": 1}
BREEDS = 2


@pytest.fixture(scope="module")
def run(rehearsal, tmp_path_factory) -> Iterator[Run]:
    """Return a run whose bucket holds a few drawn photos; the second job finds the features of the first."""
    folder = tmp_path_factory.mktemp("real")
    draw_sample(folder / "photos", breeds=BREEDS, per_breed=COUNTS)
    run = start_run("real", home=folder / "runs")
    photos = sorted((folder / "photos").rglob("*.jpg"))
    items = [(str(photo.relative_to(folder / "photos")), photo) for photo in photos]
    storage.upload_files(items, storage.ensure_bucket(run), "photos")
    yield run
    assert sweep(run).leftovers == ()


def start(run: Run, spec: TrainingSpec, job: JobSpec) -> str:
    bucket = storage.ensure_bucket(run)
    role = roles.ensure_execution_role(run, bucket)
    return training.start_training(run, spec, job, photos_uri=f"s3://{bucket}/photos", bucket=bucket, role=role)


def start_dying(role: str, bucket: str, folder: Path) -> str:
    from sagemaker.core.helper.session_helper import Session
    from sagemaker.train import ModelTrainer
    from sagemaker.train.configs import Compute, OutputDataConfig, SourceCode, StoppingCondition
    from sagemaker.train.distributed import Torchrun

    (folder / "train.py").write_text(DIES)
    trainer = ModelTrainer(
        sagemaker_session=Session(default_bucket=bucket, default_bucket_prefix="sdk"),
        role=role, training_image="image", base_job_name="dies",
        source_code=SourceCode(source_dir=str(folder), entry_script="train.py"),
        compute=Compute(instance_type="ml.m5.large", instance_count=2, volume_size_in_gb=1),
        distributed=Torchrun(process_count_per_node=1),
        stopping_condition=StoppingCondition(max_runtime_in_seconds=100),
        output_data_config=OutputDataConfig(s3_output_path=f"s3://{bucket}/jobs"),
    )  # fmt: skip
    trainer.train(wait=False, logs=False)
    return trainer._latest_training_job.training_job_name


def test_clusters_never_meet_and_a_lost_rank_ends_only_its_own(run, role, bucket, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("SAGEMAKER_VALIDATE_ROLE", "false")
    name = start(run, TrainingSpec(backbone="efficientnet_lite0", epochs=2), JobSpec(instance_count=2))
    (tmp_path / "code").mkdir()
    dying = start_dying(role, bucket, tmp_path / "code")
    summary = training.wait_for_training(name)
    assert summary.billed_instance_seconds == 2 * summary.billable_seconds
    ranks = training.training_results(name, tmp_path).ranks
    assert [(row["rank"], row["host"], row["train_photos"]) for row in ranks] == [(0, "algo-1", 4), (1, "algo-2", 4)]
    assert len({row["weights_sha256"] for row in ranks}) == 1
    assert len(ranks[0]["weights_sha256"]) == 64

    with pytest.raises(TrainingFailed, match="AlgorithmError: algo-2: "):
        training.wait_for_training(dying)
    sums = {host: [line for line in lines if " sum " in line] for host, lines in host_logs(dying).items()}
    assert sums == {f"algo-{rank + 1}": [f"algo-{rank + 1} rank {rank} of 2 sum 3.0"] for rank in (0, 1)}


def test_training_on_spot_instances_goes_on_where_it_was_interrupted(run: Run, tmp_path: Path) -> None:
    epochs = 3000  # a few seconds, so that the interruption comes in time
    spec = TrainingSpec(backbone="efficientnet_lite0", epochs=epochs, patience=epochs)
    name = start(run, spec, JobSpec(spot=True))
    lines: list[str] = []
    looks: list[training.TrainingProgress] = []

    def interrupt(look: training.TrainingProgress) -> None:
        lines.extend(look.lines)
        if not looks and look.metrics:
            looks.append(look)
            local_aws.interrupt_training(name, away_seconds=2)

    summary = training.wait_for_training(name, interrupt)
    assert any("resumed after epoch" in line for line in lines), lines
    assert [row["epoch"] for row in training.training_results(name, tmp_path).history] == list(range(1, epochs + 1))
    assert summary.billable_seconds < summary.train_seconds
    assert 0 < summary.spot_savings_percent < 100
