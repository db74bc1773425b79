"""The chapters as a user starts them, with a few photos, epochs and trials."""

from pathlib import Path

import pytest

from opslib.vision.samples import draw_sample
from tests.test_tour import ROOT, processes_of, tour


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Return a small drawn set: 3 breeds."""
    directory = tmp_path_factory.mktemp("photos") / "breeds"
    draw_sample(directory, breeds=3, per_breed={"train": 6, "valid": 4, "test": 3})
    return directory


def test_tuning_finds_a_model_that_passes_the_gate(photos, tmp_path) -> None:
    chapter = ROOT / "notebooks" / "01_training.ipynb"
    few = ("-p", "epochs", "12", "-p", "views", "1", "-p", "max_jobs", "2")
    done, summary = tour(tmp_path, "-p", "photos", str(photos), *few, notebook=chapter)
    assert done.returncode == 0, done.stdout + done.stderr
    assert summary["trials"] == 2
    assert 1e-4 <= summary["best_learning_rate"] <= 1e-2
    assert summary["best_batch_size"] in {16, 32, 64, 128}
    assert summary["test_accuracy"] > summary["chance_accuracy"]
    assert summary["leftovers"] == []
    assert processes_of(tmp_path) == []
    assert (tmp_path / "runs" / summary["run_id"] / "report.html").read_text().count("<img") >= 3


def test_two_instances_train_one_model(photos, tmp_path) -> None:
    chapter = ROOT / "notebooks" / "02_multi_instance_training.ipynb"
    few = ("-p", "epochs", "2", "-p", "views", "1", "-p", "distribution", "ShardedByS3Key")
    done, summary = tour(tmp_path, "-p", "photos", str(photos), *few, notebook=chapter)
    assert done.returncode == 0, done.stdout + done.stderr
    assert summary["rank_train_photos"] == [9, 9]
    assert summary["several_billed_seconds"] % 2 == 0
    assert summary["leftovers"] == []
    assert processes_of(tmp_path) == []


def test_a_better_model_is_canaried_and_a_bad_one_taken_back(photos, tmp_path) -> None:
    chapter = ROOT / "notebooks" / "04_endpoint_deployment.ipynb"
    few = ("-p", "epochs", "4", "-p", "rps", "15", "-p", "load_seconds", "2", "-p", "speed", "60", "-p", "several", "1")
    done, summary = tour(tmp_path, "-p", "photos", str(photos), *few, notebook=chapter, speed=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert summary["canary_success_rate"] == 1
    assert 0 < summary["failed_share"] <= 0.1
    assert summary["leftovers"] == []
    assert processes_of(tmp_path) == []


def test_a_function_throttles_a_burst_and_is_compared_with_a_provisioned_one(photos, tmp_path) -> None:
    chapter = ROOT / "notebooks" / "06_lambda.ipynb"
    few = ("-p", "epochs", "2", "-p", "step_seconds", "1")
    done, summary = tour(tmp_path, "-p", "photos", str(photos), *few, notebook=chapter)
    assert done.returncode == 0, done.stdout + done.stderr
    assert summary["burst_throttled"] > summary["burst_answered"] > 0
    assert set(summary["dollars_a_day"]) == {"on demand", "reserved 10", "provisioned 2"}
    assert summary["leftovers"] == []
    assert processes_of(tmp_path) == []
