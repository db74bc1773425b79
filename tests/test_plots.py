"""Figures show what the tables say."""

import io

import numpy as np
import pytest
from PIL import Image

from opslib import plots
from opslib.aws.training import TrainingResults, TrainingSummary
from opslib.aws.tuning import Trial, TuningResults

METRICS = [
    {
        "epoch": epoch,
        "train_loss": 2 / epoch,
        "valid_loss": 2 / epoch + (epoch - 3) ** 2,
        "train_accuracy": 0.2 * epoch,
        "valid_accuracy": 0.1 * epoch,
    }
    for epoch in range(1, 6)
]


def test_learning_curves_mark_the_epoch_with_the_lowest_validation_loss() -> None:
    figure = plots.learning_curves(METRICS, classes=10)
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    assert list(lines["kept"].get_xdata()) == [3]
    assert lines["chance"].get_ydata()[0] == pytest.approx(np.log(10))
    assert list(lines["valid"].get_ydata()) == [row["valid_loss"] for row in METRICS]


def test_confusion_lists_the_most_frequent_mistakes_first() -> None:
    matrix = [[5, 3, 0], [0, 6, 1], [0, 0, 4]]
    figure = plots.confusion({"classes": ["hat", "shoe", "skirt"], "confusion_matrix": matrix})
    assert figure.axes[0].get_title() == "15 of 19 test photos right"
    named = [text.get_text() for text in figure.axes[1].get_yticklabels()]
    assert named == ["hat taken for shoe", "shoe taken for skirt"]


def test_confusion_of_a_perfect_model_has_no_mistakes() -> None:
    figure = plots.confusion({"classes": ["hat", "shoe"], "confusion_matrix": [[2, 0], [0, 2]]})
    assert figure.axes[1].get_title() == "no mistakes"


def test_answer_colours_the_right_class() -> None:
    photo = io.BytesIO()
    Image.new("CMYK", (40, 30)).save(photo, "JPEG")
    figure = plots.answer(photo.getvalue(), [("hat", 0.7), ("shoe", 0.3)], truth="hat")
    colours = [bar.get_facecolor() for bar in figure.axes[1].patches]
    assert colours[0] != colours[1]
    assert [text.get_text() for text in figure.axes[1].texts] == ["70.0%", "30.0%"]


def trial(rate: float, size: int, loss: float | None, status: str = "Completed", failure: str = "") -> Trial:
    return Trial(f"t-{rate}", status, {"learning_rate": rate, "batch_size": float(size)}, loss, failure=failure)


def test_trials_mark_the_best_and_the_loss_of_guessing() -> None:
    trials = (
        trial(1e-4, 16, 2.0),
        trial(1e-3, 32, 0.5),
        trial(1e-2, 16, 9.0, "Stopped"),
        trial(0.1, 16, None, "Failed", "x"),
    )
    (axes,) = plots.trials(TuningResults("job", trials, trials[1]), classes=10).axes
    assert axes.get_xscale() == "log"
    said = [text.get_text() for text in axes.texts]
    assert said == ["chance", "best: 0.500 at 0.001, batch 32"]
    assert axes.lines[0].get_ydata()[0] == pytest.approx(np.log(10))
    assert axes.get_title(loc="left") == "4 trials, 1 stopped early (hollow), 1 failed (crosses)"
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["16", "32"]


def test_trials_without_a_loss_can_be_drawn() -> None:
    lost = trial(1e-3, 16, None, "Failed", "x")
    assert plots.trials(TuningResults("job", (lost, trial(1e-3, 16, float("nan"))), lost), classes=3).axes


def test_clusters_show_each_ranks_photos_and_what_all_instances_are_billed() -> None:
    def results(count: int, seconds: int) -> TrainingResults:
        summary = TrainingSummary("job", "s3://b/k", count, float(seconds), seconds, False, {})
        return TrainingResults(summary, [], {"ranks": [{"train_photos": 60 // count}] * count})

    left, middle, right = plots.clusters({"one": results(1, 100), "two": results(2, 60)}).axes
    assert [text.get_text() for text in left.texts] == ["60", "30", "30"]
    assert [text.get_text().strip() for text in middle.texts] == ["100", "60"]
    assert [text.get_text().strip() for text in right.texts] == ["100", "120"]
    assert [text.get_text() for text in left.get_yticklabels()] == ["one", "two"]
