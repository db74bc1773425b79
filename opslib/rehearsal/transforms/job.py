"""A transform job as DescribeTransformJob shows it: what was asked for, and how far it has come."""

import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

TERMINAL = frozenset({"Completed", "Failed", "Stopped"})
_MAX_FAILURE_REASON = 1024
_ECHOED = (
    "TransformJobName", "ModelName", "MaxConcurrentTransforms", "ModelClientConfig", "MaxPayloadInMB", "BatchStrategy",
    "Environment", "TransformInput", "TransformOutput", "TransformResources", "ExperimentConfig",
)  # fmt: skip


class TransformJob:
    """A transform job's record; it lies in moto's backend, which finds its tags by `arn` and `tags`."""

    def __init__(self, arn: str, params: Mapping[str, Any]) -> None:
        """Keep a CreateTransformJob request; the job is InProgress."""
        self.arn = arn
        self.params = dict(params)
        self.tags: list[dict[str, str]] = list(params.get("Tags", []))
        self.status = "InProgress"
        self.failure_reason = ""
        self.creation_time = self.last_modified_time = datetime.now(UTC)
        self.start_time: datetime | None = None
        self.end_time: datetime | None = None
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        """The job's name."""
        return self.params["TransformJobName"]

    @property
    def by_line(self) -> bool:
        """Whether files are cut into lines."""
        return self.params["TransformInput"].get("SplitType", "None") == "Line"

    @property
    def many_at_once(self) -> bool:
        """Whether a request may carry several records."""
        return self.params.get("BatchStrategy", "MultiRecord") == "MultiRecord"

    @property
    def max_payload_mb(self) -> int:
        """The largest request; 0: no limit."""
        return self.params.get("MaxPayloadInMB", 6)

    @property
    def requests_at_once(self) -> int:
        """How many requests an instance gets at the same time."""
        return self.params.get("MaxConcurrentTransforms", 0) or 1

    def begin(self) -> None:
        """Note that the instances are there."""
        self.start_time = self.last_modified_time = datetime.now(UTC)

    def is_stopped(self) -> bool:
        """Return whether somebody asked it to stop."""
        return self.status in {"Stopping", "Stopped"}

    def ask_to_stop(self) -> bool:
        """Enter Stopping; False when it has ended or is stopping already."""
        with self._lock:
            if self.status != "InProgress":
                return False
            self.status, self.last_modified_time = "Stopping", datetime.now(UTC)
            return True

    def end(self, failure_reason: str = "") -> None:
        """Enter the last status: Stopped when somebody asked for it, Failed with a reason, otherwise Completed."""
        with self._lock:
            self.failure_reason = "" if self.is_stopped() else failure_reason[:_MAX_FAILURE_REASON]
            self.end_time = self.last_modified_time = datetime.now(UTC)
            self.status = "Stopped" if self.is_stopped() else "Failed" if failure_reason else "Completed"

    def describe(self) -> dict[str, Any]:
        """Return the members of DescribeTransformJob's reply."""
        echoed = {name: self.params[name] for name in _ECHOED if name in self.params}
        return echoed | {
            "TransformJobArn": self.arn,
            "TransformJobStatus": self.status,
            "FailureReason": self.failure_reason or None,
            "CreationTime": self.creation_time,
            "TransformStartTime": self.start_time,
            "TransformEndTime": self.end_time,
        }

    def summary(self) -> dict[str, Any]:
        """Return the job's entry in ListTransformJobs' reply."""
        return {
            "TransformJobName": self.name,
            "TransformJobArn": self.arn,
            "CreationTime": self.creation_time,
            "TransformEndTime": self.end_time,
            "LastModifiedTime": self.last_modified_time,
            "TransformJobStatus": self.status,
            "FailureReason": self.failure_reason or None,
        }
