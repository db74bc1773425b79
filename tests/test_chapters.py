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
