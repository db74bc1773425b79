"""Specifications refuse, where they are written, what could not work later."""

import pytest

from opslib.errors import ConfigurationError
from opslib.specs import EndpointSpec, FunctionSpec, JobSpec, TrainingSpec


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
        (JobSpec, "instance_count", 5),
        (JobSpec, "volume_gib", 0),
        (JobSpec, "max_run_seconds", 0),
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


def test_hyperparameters_are_strings_in_the_order_of_their_names() -> None:
    spec = TrainingSpec("timm/resnet10t.c3_in1k", learning_rate=1e-4)
    sent = spec.hyperparameters()
    assert list(sent) == sorted(sent)
    assert sent["backbone"] == "timm/resnet10t.c3_in1k"
    assert float(sent["learning_rate"]) == 1e-4
    assert all(isinstance(value, str) for value in sent.values())
