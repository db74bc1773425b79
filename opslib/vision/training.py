"""Training of the head on the features of the frozen backbone, chosen by the validation photos alone."""

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from opslib.errors import ConfigurationError, PhotosError
from opslib.specs import TrainingSpec
from opslib.vision.backbones import Backbone, build_backbone
from opslib.vision.data import SPLITS, Photos
from opslib.vision.evaluation import evaluate, mean_loss_and_accuracy
from opslib.vision.features import FeatureExtractor, Features
from opslib.vision.model import Classifier, build_head
from opslib.vision.threads import single_threaded_torch

_SECONDS_BETWEEN_LINES = 5.0


def _silent(_: object) -> None:
    """Take a line or a row and do nothing with it."""


@dataclass(frozen=True)
class EpochMetrics:
    """One row of `metrics.jsonl`: means per photo, losses in nats; `seconds` since the training of the head began."""

    epoch: int
    train_loss: float
    train_accuracy: float
    valid_loss: float
    valid_accuracy: float
    seconds: float

    def line(self, epochs: int) -> str:
        """Return the line to print, in the form that `specs.METRIC_REGEXES` read."""
        return (
            f"epoch {self.epoch}/{epochs} train_loss={self.train_loss:.6f} train_accuracy={self.train_accuracy:.4f} "
            f"valid_loss={self.valid_loss:.6f} valid_accuracy={self.valid_accuracy:.4f} seconds={self.seconds:.2f}"
        )


@dataclass(frozen=True)
class TrainedHead:
    """The head as it was after the best epoch, and the metrics of all epochs."""

    head: nn.Module
    history: tuple[EpochMetrics, ...]
    best: EpochMetrics


@dataclass(frozen=True)
class TrainedModel:
    """A trained classifier, and how it came about.

    Attributes:
        classifier: In evaluation mode, on the CPU.
        backbone: What it stands on; its `transform` is what inference must apply.
        history: Metrics of every epoch.
        best: Metrics of the epoch whose weights were kept: the one with the lowest validation loss.
        report: `evaluation.evaluate` on the test photos; empty if there are none.
        seconds: Time spent on `features` and on the `head`.
    """

    classifier: Classifier
    backbone: Backbone
    history: tuple[EpochMetrics, ...]
    best: EpochMetrics
    report: dict[str, Any]
    seconds: dict[str, float]


def train(
    photos: Photos,
    spec: TrainingSpec,
    *,
    weights: Path | None = None,
    workers: int = 0,
    log: Callable[[str], None] = _silent,
    on_epoch: Callable[[EpochMetrics], None] = _silent,
) -> TrainedModel:
    """Train a head on a frozen backbone and test it; the test photos are looked at once, after everything is decided.

    The same photos, specification and machine give the same weights. A CUDA device is used if there is one.

    Args:
        photos: Training, validation and test photos.
        spec: How to train.
        weights: A local state-dict file for the backbone, in place of a download.
        workers: Decoding threads; 0 takes one for every core.
        log: Receives progress lines, among them one for each epoch in the form of `specs.METRIC_REGEXES`.
        on_epoch: Receives the metrics of each epoch as soon as it is over.

    Raises:
        PhotosError: There is nothing to train on or to choose by, or a photo cannot be decoded.
        ConfigurationError: The backbone is unknown or cannot be loaded, or the training diverged.
    """
    _check(photos)
    started = time.perf_counter()
    backbone = build_backbone(spec.backbone, weights=weights)
    extractor = FeatureExtractor(backbone, torch.device("cuda" if torch.cuda.is_available() else "cpu"), workers)
    log(f"{spec.backbone}: {backbone.features} features on {extractor.device}; {photos}")
    train_views, valid, test = _extract(extractor, photos, spec, log)
    features_seconds = time.perf_counter() - started

    def report_epoch(metrics: EpochMetrics) -> None:
        log(metrics.line(spec.epochs))
        on_epoch(metrics)

    with single_threaded_torch():
        trained = train_head(train_views, valid, len(photos.classes), spec, report_epoch)
    # Tuning takes the last value that it finds in the log: it must be the artifact's, not that of the last epoch.
    best = trained.best
    log(f"best_epoch={best.epoch} valid_loss={best.valid_loss:.6f} valid_accuracy={best.valid_accuracy:.4f}")
    report = evaluate(trained.head, test, photos.classes, [p.key for p in photos.files["test"]]) if len(test) else {}
    if report:
        log(
            f"test_accuracy={report['test_accuracy']:.4f} test_top5={report['test_top5']:.4f} "
            f"chance_accuracy={report['chance_accuracy']:.4f}"
        )
    seconds = {"features": features_seconds, "head": time.perf_counter() - started - features_seconds}
    classifier = Classifier(backbone.module, trained.head).eval().cpu()
    return TrainedModel(classifier, backbone, trained.history, best, report, seconds)


def train_head(
    train_views: Features,
    valid: Features,
    classes: int,
    spec: TrainingSpec,
    on_epoch: Callable[[EpochMetrics], None] = _silent,
) -> TrainedHead:
    """Train the head with Adam, keep the weights of the lowest validation loss, and stop when it stays above it.

    Raises:
        ConfigurationError: The loss is not a number.
    """
    with torch.random.fork_rng():
        torch.manual_seed(spec.seed)
        head = build_head(train_views.values.shape[1], classes)
    shuffling = torch.Generator().manual_seed(spec.seed)
    optimizer = torch.optim.Adam(head.parameters(), lr=spec.learning_rate)
    started, history, best, best_weights = time.perf_counter(), [], None, {}
    for epoch in range(1, spec.epochs + 1):
        train_loss, train_accuracy = _train_epoch(head, optimizer, train_views, spec.batch_size, shuffling)
        valid_loss, valid_accuracy = mean_loss_and_accuracy(head, valid)
        seconds = time.perf_counter() - started
        history.append(EpochMetrics(epoch, train_loss, train_accuracy, valid_loss, valid_accuracy, seconds))
        on_epoch(history[-1])
        _check_finite(history[-1], spec)
        if best is None or valid_loss < best.valid_loss:
            best, best_weights = history[-1], copy.deepcopy(head.state_dict())
        elif epoch - best.epoch >= spec.patience:
            break
    head.load_state_dict(best_weights)
    return TrainedHead(head.eval(), tuple(history), best)


def _train_epoch(
    head: nn.Module, optimizer: torch.optim.Optimizer, features: Features, batch_size: int, shuffling: torch.Generator
) -> tuple[float, float]:
    """Return the mean loss and accuracy per view, as they were when each batch was seen."""
    loss_sum, hits = 0.0, 0
    for rows in torch.randperm(len(features), generator=shuffling).split(batch_size):
        values, labels = features.values[rows], features.labels[rows]
        scores = head(values)
        loss = functional.cross_entropy(scores, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss_sum += loss.item() * len(rows)
        hits += (scores.argmax(dim=1) == labels).sum().item()
    return loss_sum / len(features), hits / len(features)


def _extract(
    extractor: FeatureExtractor, photos: Photos, spec: TrainingSpec, log: Callable[[str], None]
) -> tuple[Features, Features, Features]:
    """Return the features of all views of the training photos, and of the centre views of the other splits."""
    progress = _ProgressLines(log, len(photos) + (spec.views - 1) * len(photos.files["train"]))
    train_photos, valid_photos, test_photos = (photos.files[split] for split in SPLITS)
    views = [extractor.centre_views(train_photos, progress)]
    for view in range(1, spec.views):
        views.append(extractor.random_views(train_photos, f"{spec.seed}/{view}", progress))
    train_views = Features(torch.cat([view.values for view in views]), torch.cat([view.labels for view in views]))
    return train_views, extractor.centre_views(valid_photos, progress), extractor.centre_views(test_photos, progress)


class _ProgressLines:
    """Turns batches into one log line every few seconds: a log file is no place for a moving bar."""

    def __init__(self, log: Callable[[str], None], total: int) -> None:
        self._log, self._total, self._done = log, total, 0
        self._started = self._logged = time.perf_counter()

    def __call__(self, photos: int) -> None:
        self._done += photos
        now = time.perf_counter()
        if now - self._logged >= _SECONDS_BETWEEN_LINES or self._done == self._total:
            self._logged = now
            rate = self._done / (now - self._started)
            self._log(f"features {self._done}/{self._total} photos_per_second={rate:.1f}")


def _check(photos: Photos) -> None:
    if len(photos.classes) < 2:
        raise PhotosError(
            f"there is only the class {photos.classes[0]!r}", hint="a classifier needs at least two classes"
        )
    for split in ("train", "valid"):
        if not photos.files[split]:
            raise PhotosError(f"there are no {split} photos", hint="add photos, or remove the split folders altogether")


def _check_finite(metrics: EpochMetrics, spec: TrainingSpec) -> None:
    if not (math.isfinite(metrics.train_loss) and math.isfinite(metrics.valid_loss)):
        raise ConfigurationError(
            f"the loss is not a number after epoch {metrics.epoch}",
            hint=f"learning_rate {spec.learning_rate} is too high; try a tenth of it",
        )
