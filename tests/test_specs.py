"""Specifications refuse, where they are written, what could not work later."""

import pytest

from opslib.errors import ConfigurationError
from opslib.specs import (
    EndpointSpec,
    FunctionSpec,
    InstanceSpec,
    JobSpec,
    ScalingSpec,
    ShiftSpec,
    TrainingSpec,
    TuningSpec,
)


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        (TrainingSpec, "backbone", ""),
        (TrainingSpec, "backbone", "resnet'50"),
        (TrainingSpec, "epochs", 0),
        (TrainingSpec, "batch_size", 0),
        (TrainingSpec, "learning_rate", 0.0),
        (TrainingSpec, "learning_rate", float("nan")),
        (TrainingSpec, "learning_rate", float("inf")),
        (TrainingSpec, "patience", 0),
        (TrainingSpec, "views", 0),
        (TrainingSpec, "seed", -1),
        (JobSpec, "instance_type", "m5.xlarge"),
        (TrainingSpec, "unfreeze", -1),
        (JobSpec, "instance_count", 0),
        (JobSpec, "volume_gib", 0),
        (JobSpec, "max_run_seconds", 0),
        (JobSpec, "max_wait_seconds", 7200),
        (JobSpec, "distribution", "Sharded"),
        (TuningSpec, "strategy", "random"),
        (TuningSpec, "strategy", "Grid"),
        (TuningSpec, "max_jobs", 0),
        (TuningSpec, "max_parallel_jobs", 13),
        (TuningSpec, "learning_rate", (0.0, 0.1)),
        (TuningSpec, "learning_rate", (0.1, 0.01)),
        (TuningSpec, "learning_rate_choices", (0.1,)),
        (TuningSpec, "batch_size", ()),
        (TuningSpec, "batch_size", (0, 16)),
        (TuningSpec, "warm_start_from", tuple("abcdef")),
        (TuningSpec, "seed", 2**31),
        (InstanceSpec, "instance_type", "ml.m5.xlarge"),
        (InstanceSpec, "instance_type", "m5"),
        (InstanceSpec, "volume_gib", 4),
        (InstanceSpec, "max_minutes", 0),
        (EndpointSpec, "instance_type", "m5.large"),
        (EndpointSpec, "instance_count", 0),
        (FunctionSpec, "timeout_seconds", 901),
        (FunctionSpec, "memory_mb", 64),
        (FunctionSpec, "reserved_concurrency", -1),
    ],
)
def test_what_could_not_work_is_refused_and_named(kind, field, value) -> None:
    with pytest.raises(ConfigurationError, match=field):
        kind(**{field: value})


def test_spot_job_waits_at_least_as_long_as_it_runs() -> None:
    assert JobSpec(spot=True, max_run_seconds=600).longest_wait_seconds == 1200
    assert JobSpec(spot=True, max_run_seconds=600, max_wait_seconds=600).longest_wait_seconds == 600
    with pytest.raises(ConfigurationError, match="max_wait_seconds is 599"):
        JobSpec(spot=True, max_run_seconds=600, max_wait_seconds=599)


def test_grid_has_as_many_jobs_as_combinations() -> None:
    rates = (1e-4, 1e-3)
    assert TuningSpec("Grid", max_jobs=4, learning_rate_choices=rates, batch_size=(16, 32)).max_jobs == 4
    with pytest.raises(ConfigurationError, match="4 combinations"):
        TuningSpec("Grid", max_jobs=5, learning_rate_choices=rates, batch_size=(16, 32))


def test_hyperparameters_are_strings_in_the_order_of_their_names() -> None:
    spec = TrainingSpec("timm/resnet10t.c3_in1k", learning_rate=1e-4)
    sent = spec.hyperparameters()
    assert list(sent) == sorted(sent)
    assert sent["backbone"] == "timm/resnet10t.c3_in1k"
    assert float(sent["learning_rate"]) == 1e-4
    assert all(isinstance(value, str) for value in sent.values())


def test_the_references_scaling_is_the_default():
    spec = ScalingSpec()
    assert (spec.min_instances, spec.max_instances, spec.target_invocations) == (1, 5, 30)
    assert spec.scale_out_cooldown_seconds == spec.scale_in_cooldown_seconds == 30


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: ScalingSpec(min_instances=0), "min_instances"),
        (lambda: ScalingSpec(min_instances=3, max_instances=2), "below min_instances"),
        (lambda: ScalingSpec(target_invocations=0), "positive"),
        (lambda: ScalingSpec(scale_in_cooldown_seconds=-1), "scale_in_cooldown_seconds"),
        (lambda: ShiftSpec(kind="rainbow"), "one of all_at_once, canary, linear"),
        (lambda: ShiftSpec(share_percent=60), "1 to 50"),
        (lambda: ShiftSpec(wait_seconds=3601), "wait_seconds"),
        (lambda: ShiftSpec(alarms=("a",) * 11), "at most 10"),
        (lambda: FunctionSpec(provisioned_concurrency=0), "1 or more"),
        (lambda: FunctionSpec(reserved_concurrency=2, provisioned_concurrency=3), "within the reservation"),
        (lambda: EndpointSpec(container="triton"), "one of ray, pytorch"),
    ],
)
def test_specifications_of_serving_refuse_what_aws_would_refuse(build, words):
    with pytest.raises(ConfigurationError, match=words):
        build()
