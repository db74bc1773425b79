"""A training job while it runs: its state, its new log lines, and the metrics printed so far."""

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from opslib import specs
from opslib.aws.failures import explained
from opslib.aws.logs import TRAINING_GROUP, LogReader
from opslib.aws.session import client

ENDED = ("Completed", "Failed", "Stopped")
"""The states that a training job does not leave."""

STAGES = {
    "Starting": "waiting for an instance",
    "Pending": "waiting for an instance",
    "LaunchingMLInstances": "instances are starting",
    "PreparingTrainingStack": "instances are starting",
    "DownloadingTrainingImage": "fetching the container",
    "Downloading": "fetching photos and checkpoints",
    "Uploading": "saving the model",
    "Stopping": "stopping: it has 120 s to save",
    "Interrupted": "the spot capacity was taken back; it goes on from its checkpoint when there is some again",
    "Restarting": "the instance failed; SageMaker starts it again",
    "MaxRuntimeExceeded": "it reached max_run_seconds",
    "MaxWaitTimeExceeded": "it waited for spot capacity longer than max_wait_seconds",
}
"""SecondaryStatus in words, where the word alone does not say it (DescribeTrainingJob in SageMaker's API reference)."""

_EPOCH = re.compile(r"\bepoch[= ](\d+)")
_FAST_POLL_SECONDS, _SLOW_POLL_SECONDS, _FAST_FOR_SECONDS = 1.0, 5.0, 120.0


@dataclass(frozen=True)
class TrainingProgress:
    """One look at a training job.

    Attributes:
        status: TrainingJobStatus: InProgress, Stopping, Completed, Failed or Stopped.
        secondary_status: SecondaryStatus, e.g. Downloading, Training or Uploading.
        elapsed_seconds: Seconds since the job was created, until it ended.
        lines: The log lines that are new since the last look.
        metrics: One row an epoch, all so far: `epoch`, `train_loss` and the others of `specs.METRIC_REGEXES`. A
            restarted job may repeat an epoch; then its last row counts.
        description: What DescribeTrainingJob answered.
    """

    status: str
    secondary_status: str
    elapsed_seconds: float
    lines: tuple[str, ...]
    metrics: tuple[dict[str, Any], ...]
    description: dict[str, Any]

    @property
    def ended(self) -> bool:
        """Whether the job has reached its last state."""
        return self.status in ENDED

    @property
    def interruptions(self) -> int:
        """How often its spot capacity was taken back so far."""
        transitions = self.description.get("SecondaryStatusTransitions", [])
        return sum(transition["Status"] == "Interrupted" for transition in transitions)

    @property
    def stage(self) -> str:
        """What it is doing, in words, and how often it was interrupted."""
        words = STAGES.get(self.secondary_status, "")
        stage = f"{self.secondary_status}: {words}" if words else self.secondary_status
        times = "once" if self.interruptions == 1 else f"{self.interruptions} times"
        so_far = "" if self.ended else " so far"
        return f"{stage} (interrupted {times}{so_far})" if self.interruptions else stage


def parse_metrics(line: str) -> dict[str, Any]:
    """Return the numbers that `specs.METRIC_REGEXES` find in a line, e.g. `{"epoch": 3, "valid_loss": 0.41}`."""
    found = {name: re.search(pattern, line) for name, pattern in specs.METRIC_REGEXES.items()}
    row: dict[str, Any] = {name.replace(":", "_"): float(match[1]) for name, match in found.items() if match}
    epoch = _EPOCH.search(line)
    return {"epoch": int(epoch[1]), **row} if row and epoch else row


def describe_training(name: str) -> dict[str, Any]:
    """Return what DescribeTrainingJob answers.

    Raises:
        AwsError: there is no such job, or AWS refused.
    """
    with explained(f"looking at training job {name}"):
        return client("sagemaker").describe_training_job(TrainingJobName=name)


def follow_training(name: str) -> Iterator[TrainingProgress]:
    """Look at a training job every second (after two minutes: every five) until it has ended, and yield each look.

    Raises:
        AwsError: there is no such job, or AWS refused.
    """
    reader = LogReader(TRAINING_GROUP, f"{name}/")
    rows: dict[int, dict[str, Any]] = {}
    while True:
        description = describe_training(name)  # before the lines, so that the last look holds all of them
        lines = tuple(reader.read())
        rows |= {row["epoch"]: row for row in map(parse_metrics, lines) if "epoch" in row}
        progress = TrainingProgress(
            status=description["TrainingJobStatus"],
            secondary_status=description["SecondaryStatus"],
            elapsed_seconds=_elapsed_seconds(description),
            lines=lines,
            metrics=tuple(rows.values()),
            description=description,
        )
        yield progress
        if progress.ended:
            return
        is_young = progress.elapsed_seconds < _FAST_FOR_SECONDS
        time.sleep(_FAST_POLL_SECONDS if is_young else _SLOW_POLL_SECONDS)


def _elapsed_seconds(description: dict[str, Any]) -> float:
    end = description.get("TrainingEndTime") or datetime.now(UTC)
    return max(0.0, (end - description["CreationTime"]).total_seconds())
