"""Training of a classifier: features once, then the head, then (if asked) the backbone's last stages."""

import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from opslib.errors import HostLost, PhotosError
from opslib.specs import TrainingSpec
from opslib.vision.backbones import Backbone, build_backbone
from opslib.vision.checkpoints import Interruption, awaited_interruption, open_checkpoint, training_identity
from opslib.vision.data import SPLITS, Photos
from opslib.vision.distributed import Ranks
from opslib.vision.evaluation import chance, evaluate, summarise
from opslib.vision.feature_cache import FeatureCache, backbone_digest
from opslib.vision.features import FeatureExtractor, Features
from opslib.vision.finetuning import FineTuning, check_unfreeze
from opslib.vision.fitting import Course, EpochMetrics, best_epoch, fit
from opslib.vision.model import Classifier, build_head
from opslib.vision.sharing import Share, share_photos
from opslib.vision.threads import single_threaded_torch, torch_threads

__all__ = ["EpochMetrics", "HeadTraining", "Surroundings", "TrainedModel", "train", "weights_sha256"]

_SECONDS_BETWEEN_LINES = 5.0


def _silent(_: object) -> None:
    """Take a line or a row and do nothing with it."""


@dataclass(frozen=True)
class Surroundings:
    """Where a training runs, which changes nothing of what it trains.

    Attributes:
        weights: A local state-dict file for the backbone, in place of a download.
        workers: Cores to use; 0 takes all that are this process's.
        ranks: The processes that train together.
        cache: Folder of features by content; None keeps none.
        checkpoints: Folder of the training's state, from which a restarted one goes on; None keeps none.
        log: Receives progress lines; on rank 0 one for each epoch in the form of `specs.METRIC_REGEXES`.
        on_epoch: Receives the metrics of each epoch as soon as it is over.
    """

    weights: Path | None = None
    workers: int = 0
    ranks: Ranks = field(default_factory=Ranks)
    cache: Path | None = None
    checkpoints: Path | None = None
    log: Callable[[str], None] = _silent
    on_epoch: Callable[[EpochMetrics], None] = _silent


@dataclass(frozen=True)
class TrainedModel:
    """A trained classifier, and how it came about.

    Attributes:
        classifier: In evaluation mode, on the CPU; the same on every rank.
        backbone: What it stands on; its `transform` is what inference must apply.
        photos: The photos of all ranks.
        history: Metrics of every epoch: of the head's and, numbered on from there, of the fine-tuning's.
        best: Metrics of the epoch whose weights were kept: the one with the lowest validation loss.
        metrics: What `model.json` says of the model: `best`, `evaluation.summarise` of validation and test photos,
            and what guessing reaches.
        report: `evaluation.evaluate` on the test photos; empty if there are none.
        ranks: A row for each process: its host, its photos, and the checksum of its weights.
        seconds: Time until the `backbone` stood ready (its library's import is most of it), from there to the
            `features` of all photos, and then for the `head`, its test included.
    """

    classifier: Classifier
    backbone: Backbone
    photos: Photos
    history: tuple[EpochMetrics, ...]
    best: EpochMetrics
    metrics: dict[str, Any]
    report: dict[str, Any]
    ranks: list[dict[str, Any]]
    seconds: dict[str, float]


def train(photos: Photos, spec: TrainingSpec, around: Surroundings = Surroundings()) -> TrainedModel:
    """Train and test a classifier; the test photos are looked at once, after everything is decided.

    The same photos, specification and machine give the same weights, and any number of processes gives the same as
    one, but for rounding. A CUDA device is used if there is one.

    Args:
        photos: Training, validation and test photos; of several processes, each may have its own part.
        spec: How to train.
        around: Where it runs.

    Raises:
        PhotosError: There is nothing to train on or to choose by, or a photo cannot be decoded.
        ConfigurationError: The backbone is unknown or cannot be loaded, or the training diverged.
        HostLost: Another process is gone.
        checkpoints.Interrupted: SIGTERM came; what was done is saved.
    """
    with awaited_interruption() as interruption:
        return _Training(photos, spec, around, interruption).run()


class _Training:
    """One training, step by step."""

    def __init__(self, photos: Photos, spec: TrainingSpec, around: Surroundings, interruption: Interruption) -> None:
        self.started = time.perf_counter()
        self.spec, self.around, self.interruption = spec, around, interruption
        self.ranks = around.ranks
        self.share: Share = share_photos(photos, self.ranks)
        _check(self.share.photos)
        self.backbone = build_backbone(spec.backbone, weights=around.weights)
        check_unfreeze(self.backbone.module, spec)  # not after hours of features and epochs
        self.ready = time.perf_counter()
        self.extractor = FeatureExtractor(
            self.backbone,
            torch.device("cuda" if torch.cuda.is_available() else "cpu"),
            around.workers or self.ranks.cores,
            FeatureCache(around.cache) if around.cache else None,
        )

    def run(self) -> TrainedModel:
        photos, log = self.share.photos, self.around.log
        log(f"{self.spec.backbone}: {self.backbone.features} features on {self.extractor.device}; {photos}")
        features = self._features()
        computed = time.perf_counter()
        classifier, history, score = self._fitted(features)
        best = best_epoch(history)
        # Tuning takes the last value that it finds in the log: it must be the artifact's, not that of the last epoch.
        self._log_first(
            f"best_epoch={best.epoch} valid_loss={best.valid_loss:.6f} valid_accuracy={best.valid_accuracy:.4f}"
        )
        report, metrics = self._report(best, score)
        spent = (self.ready - self.started, computed - self.ready, time.perf_counter() - computed)
        seconds = dict(zip(("backbone", "features", "head"), spent, strict=True))
        return TrainedModel(
            classifier.eval().cpu(),
            self.backbone,
            photos,
            history,
            best,
            metrics,
            report,
            self._rows(classifier),
            seconds,
        )

    def _features(self) -> dict[str, Features]:
        """Return the features of this rank's photos: all views of the training photos, centre views of the others."""
        own = {split: self.share.own(split) for split in SPLITS}
        views = self.spec.views
        progress = _Progress(
            self.around.log, sum(map(len, own.values())) + (views - 1) * len(own["train"]), self.interruption
        )
        rounds = [self.extractor.centre_views(own["train"], progress)]
        for view in range(1, views):
            rounds.append(self.extractor.random_views(own["train"], f"{self.spec.seed}/{view}", progress))
        train = Features(torch.cat([view.values for view in rounds]), torch.cat([view.labels for view in rounds]))
        others = {split: self.extractor.centre_views(own[split], progress) for split in ("valid", "test")}
        return {"train": train, **others}

    def _fitted(
        self, features: dict[str, Features]
    ) -> tuple[Classifier, tuple[EpochMetrics, ...], Callable[[str], torch.Tensor]]:
        """Return the trained classifier, its history, and the function that scores this rank's photos of a split."""
        share, spec = self.share, self.spec
        rows = _global_rows(share.positions["train"], len(share.photos.files["train"]), spec.views)
        problem = HeadTraining(features, rows, share, spec)
        with single_threaded_torch():
            history = fit(problem, spec, self._course("", spec.epochs))
        classifier = Classifier(self.backbone.module, problem.module.eval())

        @torch.inference_mode()
        def score(split: str) -> torch.Tensor:
            return problem.module(features[split].values)

        if not spec.unfreeze:
            return classifier, history, score
        self._log_first(
            f"fine-tuning the last {spec.unfreeze} stages, from valid_loss={best_epoch(history).valid_loss:.6f}"
        )
        tuning = FineTuning(classifier, self.backbone, share, spec, self.extractor)
        course = self._course("-unfrozen", len(history) + spec.epochs)
        with torch_threads(self.extractor.workers):
            return classifier, fit(tuning, spec, course, history), tuning.scores

    def _course(self, suffix: str, epochs: int) -> Course:
        """Return how a fit runs up to an epoch: its own checkpoint, and rank 0 as the one that tells."""
        decisive = (asdict(self.spec), self.share.photos.classes, self.share.sizes)
        identity = training_identity(*decisive, backbone_digest(self.backbone, "")) + suffix
        checkpoint = open_checkpoint(self.around.checkpoints, identity, self.around.log)

        def tell(metrics: EpochMetrics) -> None:
            if self.ranks.is_writer:
                self.around.log(metrics.line(epochs))
                self.around.on_epoch(metrics)

        return Course(self.ranks, checkpoint, self.interruption, tell)

    def _log_first(self, line: str) -> None:
        if self.ranks.is_writer:
            self.around.log(line)

    def _report(
        self, best: EpochMetrics, score: Callable[[str], torch.Tensor]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the report on the test photos and the metrics of the model, the same on every rank."""
        photos = self.share.photos
        valid, test = (self._gathered(split, score(split)) for split in ("valid", "test"))
        labels = {split: torch.tensor([photo.label for photo in photos.files[split]]) for split in ("valid", "test")}
        metrics = {**summarise(valid, labels["valid"], "valid"), **chance(len(photos.classes)), **asdict(best)}
        if not len(test):
            return {}, metrics
        report = evaluate(test, labels["test"], photos.classes, [photo.key for photo in photos.files["test"]])
        self._log_first(
            f"test_accuracy={report['test_accuracy']:.4f} test_top5={report['test_top5']:.4f} "
            f"chance_accuracy={report['chance_accuracy']:.4f}"
        )
        return report, {**metrics, **{name: value for name, value in report.items() if name.startswith("test_")}}

    def _gathered(self, split: str, scores: torch.Tensor) -> torch.Tensor:
        """Return the scores of all ranks in the order of the photos; each photo must have been scored once."""
        parts = self.ranks.gather((self.share.positions[split], scores.cpu()))
        positions = [position for part, _ in parts for position in part]
        if sorted(positions) != list(range(len(self.share.photos.files[split]))):
            raise HostLost(f"{len(positions)} scores of {split} photos came together; each photo needs one")
        return torch.cat([part for _, part in parts])[torch.tensor(positions, dtype=torch.int64).argsort()]

    def _rows(self, classifier: Classifier) -> list[dict[str, Any]]:
        """Return a row for each rank; all must have ended with the same weights."""
        own = {f"{split}_photos": len(self.share.positions[split]) for split in SPLITS}
        row = {"rank": self.ranks.rank, "host": self.ranks.host, **own, "weights_sha256": weights_sha256(classifier)}
        self.around.log(" ".join(f"{name}={value}" for name, value in row.items()))
        rows = self.ranks.gather(row)
        if len({row["weights_sha256"] for row in rows}) > 1:
            raise HostLost(
                f"the {len(rows)} processes ended with different weights", hint="this is a bug; please report"
            )
        return rows


class HeadTraining:
    """The head on features that were computed once; the `Problem` of `fit`."""

    def __init__(self, features: dict[str, Features], rows: torch.Tensor, share: Share, spec: TrainingSpec) -> None:
        """Build the head; `rows` are the positions of this rank's training rows among those of all ranks."""
        files = share.photos.files
        self.size, self.validation_size = len(files["train"]) * spec.views, len(files["valid"])
        self.module = _seeded_head(features["train"].values.shape[1], len(share.photos.classes), spec.seed)
        self.groups = [{"params": list(self.module.parameters()), "lr": spec.learning_rate}]
        self._train, self._valid = features["train"], features["valid"]
        self._own = torch.full((self.size,), -1)
        self._own[rows] = torch.arange(len(rows))

    def train_scores(self, _: int, rows: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield scores and labels of this rank's rows at once; every epoch sees the same."""
        own = self._own[rows]
        own = own[own >= 0]
        if len(own):
            yield self.module(self._train.values[own]), self._train.labels[own]

    def validation_scores(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return scores and labels of this rank's validation photos."""
        return self.module(self._valid.values), self._valid.labels


def weights_sha256(module: nn.Module) -> str:
    """Return a checksum of all weights: equal for equal models, in hex."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _seeded_head(features: int, classes: int, seed: int) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_head(features, classes)


def _global_rows(positions: tuple[int, ...], photos: int, views: int) -> torch.Tensor:
    """Return where this rank's rows stand among all: every view of every photo, view after view."""
    own = torch.tensor(positions, dtype=torch.int64)
    return torch.cat([own + view * photos for view in range(views)])


class _Progress:
    """Turns batches into one log line every few seconds: a log file is no place for a moving bar."""

    def __init__(self, log: Callable[[str], None], total: int, interruption: Interruption) -> None:
        self._log, self._total, self._interruption, self._done = log, total, interruption, 0
        self._started = self._logged = time.perf_counter()

    def __call__(self, photos: int) -> None:
        self._interruption.raise_if_requested()
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
