"""Figures show what the tables say."""

import io

import numpy as np
import pytest
from PIL import Image

from opslib import plots

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
