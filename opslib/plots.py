"""Tables in, figures out: learning curves, confusion, a classified photo.

Every function returns a matplotlib figure that the last line of a notebook cell shows once.
"""

import io
from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image, ImageOps

TRAIN, VALID, ACCENT = "#8a94a6", "#0b6e99", "#c8553d"


def learning_curves(metrics: Sequence[dict[str, Any]], *, classes: int) -> Figure:
    """Draw loss and accuracy per epoch, with the loss of guessing (ln `classes`) as the line to be under.

    Args:
        metrics: one row an epoch with `epoch, train_loss, valid_loss, train_accuracy, valid_accuracy`
            (losses in nats per photo, accuracies from 0 to 1).
        classes: number of classes.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    draw_curves(left, metrics, "loss", chance=float(np.log(classes)))
    draw_curves(right, metrics, "accuracy", chance=1 / classes)
    plt.close(figure)  # otherwise the inline backend would show it a second time
    return figure


def draw_curves(axes: Axes, metrics: Sequence[dict[str, Any]], quantity: str, *, chance: float) -> None:
    """Draw train and validation `quantity` ("loss" or "accuracy") over epochs on `axes`, and mark the best epoch."""
    epochs = [row["epoch"] for row in metrics]
    valid = [row[f"valid_{quantity}"] for row in metrics]
    axes.plot(epochs, [row[f"train_{quantity}"] for row in metrics], color=TRAIN, label="train")
    axes.plot(epochs, valid, color=VALID, label="valid", marker="o", markersize=3)
    axes.axhline(chance, color=ACCENT, linestyle=":", linewidth=1, label="chance")
    if metrics:
        best = min(metrics, key=lambda row: row["valid_loss"])
        axes.plot(best["epoch"], best[f"valid_{quantity}"], "o", color=ACCENT, markersize=7, label="kept")
    axes.set(xlabel="epoch", ylabel="nats per photo" if quantity == "loss" else "share of photos", title=quantity)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)


def confusion(report: dict[str, Any], *, pairs: int = 8) -> Figure:
    """Draw the confusion matrix of a test report beside the pairs of classes that are taken for each other most.

    Args:
        report: `classes` (names in order) and `confusion_matrix` (rows: truth, columns: answer, in photos).
        pairs: how many pairs to list.
    """
    classes, matrix = report["classes"], np.asarray(report["confusion_matrix"], dtype=float)
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(11, 4.6), layout="constrained", gridspec_kw={"width_ratios": [1, 1.1]}
    )
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    drawn = left.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    figure.colorbar(drawn, ax=left, label="share of the class's photos", shrink=0.8)
    left.set(xlabel="answer", ylabel="truth", title=f"{int(np.trace(matrix))} of {int(matrix.sum())} test photos right")
    if len(classes) <= 20:
        left.set_xticks(range(len(classes)), classes, rotation=60, ha="right")
        left.set_yticks(range(len(classes)), classes)
    _draw_pairs(right, classes, matrix, pairs)
    plt.close(figure)
    return figure


def _draw_pairs(axes: Axes, classes: Sequence[str], matrix: np.ndarray, pairs: int) -> None:
    wrong = matrix.copy()
    np.fill_diagonal(wrong, 0)
    order = [divmod(int(flat), len(classes)) for flat in np.argsort(-wrong, axis=None, kind="stable")[:pairs]]
    order = [(truth, answer) for truth, answer in order if wrong[truth, answer] > 0]
    names = [f"{classes[truth]} taken for {classes[answer]}" for truth, answer in order]
    axes.barh(range(len(order)), [wrong[pair] for pair in order], color=ACCENT)
    axes.set_yticks(range(len(order)), names, fontsize=8)
    axes.invert_yaxis()
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set(xlabel="test photos", title="most frequent mistakes" if order else "no mistakes")
    axes.set_axis_on() if order else axes.set_axis_off()
    axes.spines[["top", "right"]].set_visible(False)


def answer(photo: bytes, top: Sequence[tuple[str, float]], *, truth: str = "") -> Figure:
    """Draw a photo beside the classes that the endpoint named, most probable first.

    Args:
        photo: the photo file's bytes, as they were sent.
        top: (class, probability) pairs in falling order.
        truth: the right class; its bar is coloured, and so tells a hit from a miss.
    """
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(8.5, 3.2), layout="constrained", gridspec_kw={"width_ratios": [1, 1.4]}
    )
    left.imshow(ImageOps.exif_transpose(Image.open(io.BytesIO(photo))).convert("RGB"))
    left.set_title(truth)
    left.set_axis_off()
    names, shares = [name for name, _ in top], [share for _, share in top]
    right.barh(range(len(top)), shares, color=[VALID if name == truth or not truth else TRAIN for name in names])
    for row, share in enumerate(shares):
        right.text(min(share + 0.01, 0.88), row, f"{share:.1%}", va="center")
    right.set_yticks(range(len(top)), names)
    right.invert_yaxis()
    right.set(xlim=(0, 1), xlabel="probability")
    right.spines[["top", "right"]].set_visible(False)
    plt.close(figure)
    return figure
