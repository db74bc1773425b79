"""The whole journey as a user starts it: one command, a rehearsal of its own, the committed notebook."""

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from opslib.vision.samples import draw_sample

ROOT = Path(__file__).parent.parent
KEYS = {
    *("run_id", "whereabouts", "backbone", "classes", "train_photos", "test_accuracy", "test_top5", "chance_accuracy"),
    *("train_seconds", "endpoint_in_service_seconds", "endpoint_p50_ms", "lambda_status", "lambda_p50_ms"),
    *("lambda_scores", "leftovers", "total_seconds"),
}


def tour(
    directory: Path, *arguments: str, notebook: Path = ROOT / "train_and_deploy.ipynb", speed: int = 1
) -> tuple[subprocess.CompletedProcess, dict]:
    """Run the notebook as `make run` does, in a directory of its own; return the process and its summary."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    rehearsed = [sys.executable, "-m", "opslib.rehearsal", "run", "--speed", str(speed), "--"]
    command = [sys.executable, "-m", "opslib", "run", str(notebook), *arguments]
    done = subprocess.run(
        [*rehearsed, *command],
        cwd=directory,
        env=clean | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    summaries = list(directory.glob("runs/*/summary.json"))
    return done, json.loads(summaries[0].read_text()) if summaries else {}


def processes_of(directory: Path) -> list[str]:
    """Return the processes that still name this run's directory in their environment or work in it."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and str(directory) in process.cwd():
                found.append(" ".join(process.cmdline()))
        except psutil.Error:
            continue
    return found


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Return a small drawn set: 5 breeds."""
    directory = tmp_path_factory.mktemp("photos") / "breeds"
    draw_sample(directory, breeds=5, per_breed={"train": 8, "valid": 3, "test": 3})
    return directory


def test_from_photos_to_an_answer_and_back_to_an_empty_account(photos, tmp_path) -> None:
    done, summary = tour(tmp_path, "-p", "photos", str(photos))
    assert done.returncode == 0, done.stdout + done.stderr
    assert summary.keys() >= KEYS
    assert summary["status"] == "completed"
    assert summary["leftovers"] == []
    assert summary["classes"] == summary["lambda_scores"] == 5
    assert summary["train_photos"] == 40
    assert summary["test_accuracy"] > summary["chance_accuracy"]
    assert summary["lambda_status"] == 200
    assert summary["endpoint_p50_ms"] > 1  # how the two compare is the benchmark's business
    assert processes_of(tmp_path) == []
    report = (tmp_path / "runs" / summary["run_id"] / "report.html").read_text()
    assert report.count("<img") >= 4
    assert done.stdout.splitlines()[-2].startswith(f"done     run {summary['run_id']}")
    assert done.stdout.splitlines()[-1].endswith("report.html")


def test_a_training_script_that_fails_ends_the_run_with_its_message(photos, tmp_path) -> None:
    done, summary = tour(tmp_path, "-p", "photos", str(photos), "-p", "backbone", "resnet5O")
    assert done.returncode == 1
    assert "TrainingFailed" in summary["failure"]
    assert "resnet5O" in summary["failure"]
    assert "did you mean" in summary["failure"].lower()
    assert summary["leftovers"] == []
    assert processes_of(tmp_path) == []
    assert (
        "failed   under 'Training', at `finished = training.wait_for_training(job, on_progress=watch)`" in done.stdout
    )
    assert done.stdout.splitlines()[-1].endswith("report.html")


def test_an_unknown_parameter_starts_nothing(tmp_path) -> None:
    done, summary = tour(tmp_path, "-p", "epoch", "20")
    assert done.returncode == 2
    assert summary == {}
    assert "did you mean 'epochs'" in done.stderr
