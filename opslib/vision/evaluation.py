"""How good a classifier is on photos that it has not seen: counts per photo, never averages of averages."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from opslib.vision.features import Features

TOP = 5
"""How many of the highest scores count as a hit in the top-5 accuracy."""


def mean_loss_and_accuracy(head: nn.Module, features: Features) -> tuple[float, float]:
    """Return the mean cross-entropy per photo in nats and the share of photos whose highest score is their class."""
    scores, labels = _scores(head, features)
    loss = functional.cross_entropy(scores, labels).item()
    return loss, (scores.argmax(dim=1) == labels).float().mean().item()


def evaluate(head: nn.Module, features: Features, classes: Sequence[str], keys: Sequence[str] = ()) -> dict[str, Any]:
    """Report on the test photos, in JSON types.

    Args:
        head: The trained head, on the CPU or not.
        features: The test photos, centre view.
        classes: Class names in the order of the scores.
        keys: The photos' keys in the order of `features`; names the mistakes when given.

    Returns:
        `test_photos`, `test_loss` (mean nats per photo), `test_accuracy`, `test_top5`, `chance_accuracy`, `classes`,
        `per_class` (`label`, `photos`, `recall`, `precision`; None where there is nothing to divide by),
        `confusion_matrix` (rows: truth, columns: answer, in photos) and `mistakes` (`photo`, `label`, `predicted`,
        `probability`; the surest first).
    """
    scores, labels = _scores(head, features)
    count = len(classes)
    predicted = scores.argmax(dim=1)
    confusion = torch.bincount(labels * count + predicted, minlength=count * count).view(count, count)
    top = scores.topk(min(TOP, count), dim=1).indices
    return {
        "test_photos": len(labels),
        "test_loss": functional.cross_entropy(scores, labels).item(),
        "test_accuracy": (predicted == labels).float().mean().item(),
        "test_top5": (top == labels[:, None]).any(dim=1).float().mean().item(),
        "chance_accuracy": 1 / count,
        "classes": list(classes),
        "per_class": _per_class(confusion, classes),
        "confusion_matrix": confusion.tolist(),
        "mistakes": _mistakes(scores, labels, classes, keys),
    }


def _scores(head: nn.Module, features: Features) -> tuple[torch.Tensor, torch.Tensor]:
    device = next(head.parameters()).device
    with torch.inference_mode():
        return head(features.values.to(device)).cpu(), features.labels


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
