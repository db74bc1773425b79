"""Tables in, figures out: learning curves, trials, clusters, confusion, a classified photo.

Every function returns a matplotlib figure that the last line of a notebook cell shows once.
"""

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from PIL import Image, ImageOps

if TYPE_CHECKING:
    from opslib.aws.training import TrainingResults
    from opslib.aws.tuning import Trial, TuningProgress, TuningResults

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


def trials(results: "TuningResults | TuningProgress", *, classes: int) -> Figure:
    """Draw each trial's validation loss over its learning rate, one colour a batch size, and mark the best.

    Trials that were stopped early are hollow; those without a loss stand at the top edge as crosses.

    Args:
        results: What `opslib.aws.tuning` says of a tuning job, ended or not: it has `trials`.
        classes: number of classes, for the line of guessing.
    """
    figure, axes = plt.subplots(figsize=(8.5, 4.2), layout="constrained")
    draw_trials(axes, results.trials, chance=float(np.log(classes)))
    plt.close(figure)
    return figure


def draw_trials(axes: Axes, trials: Sequence["Trial"], *, chance: float) -> None:
    """Draw trials on `axes` with a logarithmic learning rate; `chance` is the loss of guessing."""
    judged = [trial for trial in trials if trial.valid_loss is not None and np.isfinite(trial.valid_loss)]
    sizes = sorted({trial.hyperparameters.get("batch_size", 0) for trial in trials})
    shades = plt.get_cmap("viridis")(np.linspace(0.85, 0.1, max(len(sizes), 1)))
    for size, shade in zip(sizes, shades, strict=True):
        _draw_batch_size(axes, [one for one in judged if one.hyperparameters.get("batch_size", 0) == size], size, shade)
    axes.axhline(chance, color=ACCENT, linestyle=":", linewidth=1)
    axes.annotate("chance", (0.01, chance), xycoords=("axes fraction", "data"), color=ACCENT, va="bottom")
    lost = [trial.hyperparameters["learning_rate"] for trial in trials if trial.failure]
    axes.plot(lost, [0.97] * len(lost), "x", color=ACCENT, transform=axes.get_xaxis_transform())
    axes.set(xscale="log", xlabel="learning rate", ylabel="validation loss, nats per photo")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    losses = [min(trial.valid_loss, 2 * chance) for trial in judged]
    low, high = min(losses, default=0), 1.12 * max([chance, *losses])
    axes.set_ylim(low - 0.14 * (high - low), high)  # below the lowest is the place for its label
    axes.set_title(_trials_title(trials), loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    if judged:
        _mark_best(axes, min(judged, key=lambda trial: trial.valid_loss))
        axes.legend(title="batch size", frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))


def _trials_title(trials: Sequence["Trial"]) -> str:
    stopped, failed = sum(trial.status == "Stopped" for trial in trials), sum(bool(trial.failure) for trial in trials)
    notes = [f"{stopped} stopped early (hollow)"] * bool(stopped) + [f"{failed} failed (crosses)"] * bool(failed)
    return ", ".join([f"{len(trials)} trials", *notes])


def _draw_batch_size(axes: Axes, trials: Sequence["Trial"], size: float, shade: np.ndarray) -> None:
    """Draw the trials of one batch size: filled those that ran to their end, hollow those that were stopped."""
    rates = [trial.hyperparameters["learning_rate"] for trial in trials]
    losses = [trial.valid_loss for trial in trials]
    faces = [shade if trial.status != "Stopped" else (1, 1, 1, 1) for trial in trials]
    axes.scatter(rates, losses, s=46, facecolors=faces, edgecolors=[shade], linewidths=1.5, zorder=3)
    axes.scatter(
        [], [], s=46, color=[shade], label=f"{size:.0f}"
    )  # the legend's entry is filled, whatever the first is


def _mark_best(axes: Axes, best: "Trial") -> None:
    rate, loss = best.hyperparameters["learning_rate"], best.valid_loss
    axes.plot(rate, loss, "o", markersize=13, markerfacecolor="none", markeredgecolor=ACCENT, markeredgewidth=1.5)
    words = f"best: {loss:.3f} at {rate:.2g}, batch {best.hyperparameters.get('batch_size', 0):.0f}"
    low, high = np.log(axes.get_xlim())
    side = "right" if np.log(rate) > (low + high) / 2 else "left"  # away from the edge that is near
    offset = {"ha": side, "textcoords": "offset points", "xytext": (8 if side == "right" else -8, -20)}
    axes.annotate(words, (rate, loss), color=ACCENT, fontsize=9, **offset)


def clusters(results: Mapping[str, "TrainingResults"]) -> Figure:
    """Draw what several instances change: photos of each rank, seconds of training, and instance-seconds billed.

    Args:
        results: What to call each job, e.g. "1 instance", to its `opslib.aws.training.TrainingResults`.
    """
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(11, 1.6 + 0.5 * len(results)), layout="constrained")
    names = list(results)
    for row, result in enumerate(results.values()):
        _draw_shares(left, row, [rank["train_photos"] for rank in result.ranks])
    left.set(xlabel="train photos", title="who computed the photos")
    _draw_bars(middle, [result.summary.train_seconds for result in results.values()], "seconds", "time")
    billed = [result.summary.billed_instance_seconds for result in results.values()]
    _draw_bars(right, billed, "seconds x instances", "bill")
    for axes in (left, middle, right):
        axes.set_yticks(range(len(names)), names if axes is left else [""] * len(names))
        axes.invert_yaxis()
        axes.spines[["top", "right"]].set_visible(False)
    plt.close(figure)
    return figure


def _draw_shares(axes: Axes, row: int, shares: Sequence[int]) -> None:
    start = 0
    for rank, photos in enumerate(shares):
        axes.barh(row, photos, left=start, color=VALID if rank % 2 == 0 else TRAIN, height=0.6)
        axes.text(start + photos / 2, row, str(photos), ha="center", va="center", color="white", fontsize=9)
        start += photos


def _draw_bars(axes: Axes, values: Sequence[float], unit: str, title: str) -> None:
    axes.barh(range(len(values)), values, color=TRAIN, height=0.6)
    for row, value in enumerate(values):
        axes.text(value, row, f" {value:.0f}", va="center", fontsize=9)
    axes.set(xlabel=unit, title=title, xlim=(0, 1.2 * max([*values, 1])))
