"""How good a classifier is on photos that it has not seen: counts per photo, never averages of averages."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional

TOP = 5
"""How many of the highest scores count as a hit in the top-5 accuracy."""

CALIBRATION_BINS = 15
"""Bins of equal width of the highest probability, for the calibration error."""


def calibration_error(scores: torch.Tensor, labels: torch.Tensor) -> float:
    """Return the expected calibration error (ECE), from 0 to 1.

    Photos are put into 15 bins by their highest probability; the result is the mean distance between a bin's mean
    probability and its accuracy, weighted with its photos (Guo et al., arxiv.org/abs/1706.04599).
    """
    probability, predicted = scores.softmax(dim=1).max(dim=1)
    hits = (predicted == labels).to(probability.dtype)
    bins = (probability * CALIBRATION_BINS).ceil().clamp(1, CALIBRATION_BINS).long() - 1
    gaps = torch.zeros(CALIBRATION_BINS).index_add_(0, bins, hits - probability)
    return gaps.abs().sum().item() / len(labels)


def summarise(scores: torch.Tensor, labels: torch.Tensor, split: str) -> dict[str, Any]:
    """Return the figures by which a model is judged, each name beginning with the split's.

    `_photos`, `_loss` (mean nats per photo), `_accuracy`, `_ece`, `_predicted_classes` (how many classes are ever
    answered) and `_score_spread` (standard deviation over the photos of a class's score, the mean of all classes).
    """
    predicted = scores.argmax(dim=1)
    return {
        f"{split}_photos": len(labels),
        f"{split}_loss": functional.cross_entropy(scores, labels).item(),
        f"{split}_accuracy": (predicted == labels).float().mean().item(),
        f"{split}_ece": calibration_error(scores, labels),
        f"{split}_predicted_classes": len(predicted.unique()),
        f"{split}_score_spread": scores.std(dim=0, correction=0).mean().item(),
    }


def chance(classes: int) -> dict[str, float]:
    """Return what guessing reaches: `chance_loss`, ln of the number of classes in nats, and `chance_accuracy`."""
    return {"chance_loss": math.log(classes), "chance_accuracy": 1 / classes}


def evaluate(
    scores: torch.Tensor, labels: torch.Tensor, classes: Sequence[str], keys: Sequence[str] = ()
) -> dict[str, Any]:
    """Report on the test photos, in JSON types.

    Args:
        scores: Raw scores of shape (photos, classes), centre views.
        labels: The photos' classes, int64 of shape (photos,).
        classes: Class names in the order of the scores.
        keys: The photos' keys in the same order; names the mistakes when given.

    Returns:
        What `summarise` returns for `test`, `test_top5`, `chance_accuracy`, `chance_loss`, `classes`, `per_class`
        (`label`, `photos`, `recall`, `precision`; None where there is nothing to divide by), `confusion_matrix`
        (rows: truth, columns: answer, in photos) and `mistakes` (`photo`, `label`, `predicted`, `probability`; the
        surest first).
    """
    count = len(classes)
    predicted = scores.argmax(dim=1)
    confusion = torch.bincount(labels * count + predicted, minlength=count * count).view(count, count)
    top = scores.topk(min(TOP, count), dim=1).indices
    return {
        **summarise(scores, labels, "test"),
        "test_top5": (top == labels[:, None]).any(dim=1).float().mean().item(),
        **chance(count),
        "classes": list(classes),
        "per_class": _per_class(confusion, classes),
        "confusion_matrix": confusion.tolist(),
        "mistakes": _mistakes(scores, labels, classes, keys),
    }


def _per_class(confusion: torch.Tensor, classes: Sequence[str]) -> list[dict[str, Any]]:
    hits, photos, claims = confusion.diagonal().tolist(), confusion.sum(dim=1).tolist(), confusion.sum(dim=0).tolist()
    return [
        {
            "label": label,
            "photos": photos[index],
            "recall": hits[index] / photos[index] if photos[index] else None,
            "precision": hits[index] / claims[index] if claims[index] else None,
        }
        for index, label in enumerate(classes)
    ]


def _mistakes(
    scores: torch.Tensor, labels: torch.Tensor, classes: Sequence[str], keys: Sequence[str]
) -> list[dict[str, Any]]:
    probability, predicted = scores.softmax(dim=1).max(dim=1)
    wrong = [row for row in range(len(keys)) if predicted[row] != labels[row]]
    wrong.sort(key=lambda row: -probability[row].item())
    return [
        {
            "photo": keys[row],
            "label": classes[labels[row]],
            "predicted": classes[predicted[row]],
            "probability": probability[row].item(),
        }
        for row in wrong
    ]
