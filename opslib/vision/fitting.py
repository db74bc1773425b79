"""The training loop: one for the head alone and for fine-tuning, for one process and for many, resumable anywhere."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn import functional

from opslib.errors import ConfigurationError
from opslib.specs import TrainingSpec
from opslib.vision.checkpoints import Checkpoint, Interrupted, Interruption
from opslib.vision.distributed import Ranks


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


class Problem(Protocol):
    """What `fit` trains.

    Attributes:
        module: What is trained: its parameters that want a gradient.
        groups: The optimiser's parameter groups.
        size: Number of training rows of all ranks together.
        validation_size: Number of validation photos of all ranks together.
    """

    module: nn.Module
    groups: list[dict[str, Any]]
    size: int
    validation_size: int

    def train_scores(self, epoch: int, rows: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield scores and labels of those training rows that are this rank's own, as few at a time as suits it."""

    def validation_scores(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return scores and labels of this rank's own validation photos."""


@dataclass(frozen=True)
class Course:
    """How a training is run: with whom, where its state is kept, and who is told.

    Attributes:
        ranks: The processes that train together.
        checkpoint: Where the state is kept.
        interruption: Whether this process was asked to end.
        on_epoch: Receives the metrics of each epoch, on every rank.
    """

    ranks: Ranks = field(default_factory=Ranks)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    interruption: Interruption = field(default_factory=Interruption)
    on_epoch: Callable[[EpochMetrics], None] = lambda _: None


@dataclass
class _State:
    """Everything that decides what comes next, beside the weights: JSON types and tensors only."""

    epoch: int = 0
    step: int = 0
    totals: torch.Tensor = field(default_factory=lambda: torch.zeros(2, dtype=torch.float64))
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] = field(default_factory=dict)
    best_weights: dict[str, torch.Tensor] = field(default_factory=dict)
    finished: bool = False


def fit(
    problem: Problem, spec: TrainingSpec, course: Course, before: tuple[EpochMetrics, ...] = ()
) -> tuple[EpochMetrics, ...]:
    """Train with Adam, keep the weights of the lowest validation loss, and stop when it stays above it.

    `before` are the epochs that led to the weights that `problem.module` begins with, which are those of the best of
    them. They begin the history that is returned, and win if no epoch of this training is better.

    The same seed and batch size give the same weights on any number of ranks, but for the order in which floating-point
    numbers are added. `problem.module` has the best epoch's weights when this returns.

    Raises:
        ConfigurationError: The loss is not a number.
        Interrupted: SIGTERM came; the state is saved.
        HostLost: Another rank is gone.
    """
    return _Fit(problem, spec, course, before).run()


def best_epoch(history: tuple[EpochMetrics, ...]) -> EpochMetrics:
    """Return the metrics of the epoch with the lowest validation loss, the first of equals."""
    return min(history, key=lambda metrics: metrics.valid_loss)


class _Fit:
    def __init__(self, problem: Problem, spec: TrainingSpec, course: Course, before: tuple[EpochMetrics, ...]) -> None:
        self.problem, self.spec, self.course, self.before = problem, spec, course, before
        self.parameters = {name: p for name, p in problem.module.named_parameters() if p.requires_grad}
        # One tensor holds every gradient, and one more number: whether a rank was asked to end.
        self.flat = torch.zeros(sum(p.numel() for p in self.parameters.values()) + 1, device=self._device())
        self._lay_gradients()
        self.optimizer = torch.optim.Adam(problem.groups, fused=True)
        self.state = _State()
        self.order = b""
        self.started = time.perf_counter()

    def run(self) -> tuple[EpochMetrics, ...]:
        self._resume()
        while not self.state.finished:
            self._train_epoch()
            self._end_epoch()
        self._put(self.state.best_weights)
        return tuple(EpochMetrics(**row) for row in self.state.history)

    def _device(self) -> torch.device:
        return next(iter(self.parameters.values())).device

    def _lay_gradients(self) -> None:
        start = 0
        for parameter in self.parameters.values():
            part = self.flat[start : start + parameter.numel()]
            # In the parameter's own layout: fused Adam goes through both memories from front to back.
            parameter.grad = part.as_strided(parameter.size(), parameter.stride())
            start += parameter.numel()

    def _batches(self) -> Iterator[torch.Tensor]:
        """Yield the rows of every step of the epoch: the order depends on seed and epoch, so a resumed one is equal."""
        shuffling = torch.Generator().manual_seed((self.spec.seed << 20) + self.state.epoch)
        yield from torch.randperm(self.problem.size, generator=shuffling).split(self.spec.batch_size)

    def _train_epoch(self) -> None:
        for step, rows in enumerate(self._batches()):
            if step >= self.state.step:
                self.state.totals += self._step(rows)
                self.state.step = step + 1
                if self._asked_to_end():
                    self._save(now=True)
                    raise Interrupted

    def _step(self, rows: torch.Tensor) -> torch.Tensor:
        """Take one step; return this rank's sums of loss and hits."""
        self.flat.zero_()
        sums = torch.zeros(2, dtype=torch.float64)
        for scores, labels in self.problem.train_scores(self.state.epoch, rows):
            loss = functional.cross_entropy(scores, labels, reduction="sum")
            (loss / len(rows)).backward()
            sums += torch.stack([loss.detach(), (scores.detach().argmax(dim=1) == labels).sum()]).double().cpu()
        self.flat[-1] = self.course.interruption.requested
        self.course.ranks.add(self.flat)
        self.optimizer.step()
        return sums

    def _asked_to_end(self) -> bool:
        """Tell whether any rank was asked to end; all of them learn it at the same step."""
        if self.course.ranks.world_size == 1:
            return self.course.interruption.requested
        return self.flat[-1].item() > 0

    def _end_epoch(self) -> None:
        state = self.state
        train = self.course.ranks.add(state.totals.clone())
        valid_loss, valid_accuracy = self._validate()
        state.epoch, state.step, state.totals = state.epoch + 1, 0, torch.zeros(2, dtype=torch.float64)
        train_loss, train_accuracy = (train / self.problem.size).tolist()
        spent = state.seconds + time.perf_counter() - self.started
        metrics = EpochMetrics(state.epoch, train_loss, train_accuracy, valid_loss, valid_accuracy, spent)
        state.history.append(asdict(metrics))
        self.course.on_epoch(metrics)
        _check_finite(metrics, self.spec)
        if not state.best or valid_loss < state.best["valid_loss"]:
            state.best, state.best_weights = asdict(metrics), self._weights()
        own_epochs = state.epoch - len(self.before)
        waited = min(own_epochs, state.epoch - state.best["epoch"])
        state.finished = own_epochs >= self.spec.epochs or waited >= self.spec.patience
        self._save(now=state.finished)

    def _validate(self) -> tuple[float, float]:
        with torch.inference_mode():
            scores, labels = self.problem.validation_scores()
            loss = functional.cross_entropy(scores, labels, reduction="sum") if len(labels) else 0.0
            hits = (scores.argmax(dim=1) == labels).sum() if len(labels) else 0
        sums = torch.tensor([float(loss), float(hits), len(labels)], dtype=torch.float64)
        loss_sum, hit_sum, count = self.course.ranks.add(sums).tolist()
        if count != self.problem.validation_size:
            raise ConfigurationError(f"{count:.0f} validation photos were counted, of {self.problem.validation_size}")
        return loss_sum / count, hit_sum / count

    def _weights(self) -> dict[str, torch.Tensor]:
        return {name: parameter.detach().clone().cpu() for name, parameter in self.parameters.items()}

    def _put(self, weights: dict[str, torch.Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(weights[name])

    def _save(self, *, now: bool) -> None:
        """Save what all ranks need to go on; their sums of an unfinished epoch are added up for it."""
        if now and self.state.step:
            totals = self.course.ranks.add(self.state.totals.clone())
            self.state.totals = totals if self.course.ranks.is_writer else torch.zeros_like(totals)
        if self.course.ranks.is_writer:
            self.course.checkpoint.save(self._saved, now=now)

    def _saved(self) -> dict[str, Any]:
        spent = self.state.seconds + time.perf_counter() - self.started
        state = {**vars(self.state), "seconds": spent}
        return {**state, "weights": self._weights(), "optimizer": self.optimizer.state_dict()}

    def _resume(self) -> None:
        """Go on from the state that rank 0 finds, if any; without one, all begin with rank 0's weights."""
        ranks = self.course.ranks
        saved = ranks.share(self._loaded() if ranks.is_writer else None)
        if saved is None:
            self._put(ranks.share(self._weights()))
            self._begin()
            return
        self._put(saved.pop("weights"))
        self.optimizer.load_state_dict(saved.pop("optimizer"))
        self.state = _State(**saved)
        if not ranks.is_writer:
            self.state.totals.zero_()
        for row in self.state.history[len(self.before) :]:
            self.course.on_epoch(EpochMetrics(**row))

    def _loaded(self) -> dict[str, Any] | None:
        """Return the saved state if it is of such a training: names, shapes and the optimiser's groups."""
        saved, own = self.course.checkpoint.load(), self._saved()
        if saved is None or (saved.keys() == own.keys() and _layout(saved) == _layout(own)):
            return saved
        self.course.checkpoint.put_aside("of another layout and not used")
        return None

    def _begin(self) -> None:
        if self.before:
            history, best = [asdict(metrics) for metrics in self.before], asdict(best_epoch(self.before))
            self.state = _State(
                len(history), seconds=history[-1]["seconds"], history=history, best=best, best_weights=self._weights()
            )


def _layout(saved: dict[str, Any]) -> tuple[Any, ...]:
    groups = saved["optimizer"].get("param_groups", [])
    shapes = {name: value.shape for name, value in saved["weights"].items()}
    return shapes, [(sorted(group), group["params"]) for group in groups]


def _check_finite(metrics: EpochMetrics, spec: TrainingSpec) -> None:
    if not (math.isfinite(metrics.train_loss) and math.isfinite(metrics.valid_loss)):
        raise ConfigurationError(
            f"the loss is not a number after epoch {metrics.epoch}",
            hint=f"learning_rate {spec.learning_rate} is too high; try a tenth of it",
        )
