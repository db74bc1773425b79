"""The chapter on EC2, run as a user runs it: the box really trains, and nothing is left."""

from pathlib import Path

from opslib.vision.samples import draw_sample
from tests.test_tour import ROOT, processes_of, tour


def test_a_box_trains_and_leaves_nothing(tmp_path: Path) -> None:
    draw_sample(tmp_path / "breeds", breeds=3, per_breed={"train": 6, "valid": 4, "test": 3})
    arguments = ("-p", "photos", str(tmp_path / "breeds"), "-p", "views", "1", "-p", "learning_rate", "0.002")
    done, summary = tour(tmp_path, *arguments, notebook=ROOT / "notebooks" / "03_ec2_training.ipynb")
    assert done.returncode == 0, done.stdout + done.stderr
    assert summary["status"] == "completed"
    assert summary["leftovers"] == []
    assert summary["classes"] == 3
    assert summary["test_accuracy"] > summary["chance_accuracy"]
    assert (tmp_path / "runs" / summary["run_id"] / "model" / "model.pth").is_file()
    assert processes_of(tmp_path) == []
