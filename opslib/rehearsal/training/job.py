"""A training job as DescribeTrainingJob shows it: what was asked for, and how far it has come."""

import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from math import ceil
from typing import Any

MAX_FAILURE_REASON = 1024
_MESSAGES = {
    "Starting": "Preparing the instances for training",
    "Downloading": "Downloading input data",
    "Training": "Training image download completed. Training in progress.",
    "Uploading": "Uploading generated training model",
    "Completed": "Training job completed",
    "Failed": "Training job failed",
    "Stopping": "Stopping the training job",
    "Stopped": "Training job stopped",
    "MaxRuntimeExceeded": "Training job runtime exceeded MaxRuntimeInSeconds provided by user",
    "Interrupted": "Training job interrupted: the managed spot instances were taken back",
    "MaxWaitTimeExceeded": "Training job waiting time exceeded MaxWaitTimeInSeconds provided by user",
}
_PRIMARY = {
    "Completed": "Completed",
    "Failed": "Failed",
    "Stopped": "Stopped",
    "MaxRuntimeExceeded": "Stopped",
    "MaxWaitTimeExceeded": "Stopped",
    "Stopping": "Stopping",
}
TERMINAL = frozenset({"Completed", "Failed", "Stopped"})
_ECHOED = (
    "TrainingJobName", "HyperParameters", "AlgorithmSpecification", "RoleArn", "InputDataConfig", "OutputDataConfig",
    "ResourceConfig", "VpcConfig", "CheckpointConfig", "DebugHookConfig", "DebugRuleConfigurations", "ExperimentConfig",
    "TensorBoardOutputConfig", "ProfilerConfig", "ProfilerRuleConfigurations", "Environment", "RetryStrategy",
    "RemoteDebugConfig", "InfraCheckConfig",
)  # fmt: skip


def now() -> datetime:
    """Return this moment, with its time zone."""
    return datetime.now(UTC)


class TrainingJob:
    """A training job's record; it lies in moto's backend, which finds its tags by `arn` and `tags`."""

    def __init__(self, arn: str, params: Mapping[str, Any]) -> None:
        self.arn = arn
        self.params = dict(params)
        self.tags: list[dict[str, str]] = list(params.get("Tags", []))
        self.creation_time = self.last_modified_time = now()
        self.training_start_time: datetime | None = None
        self.training_end_time: datetime | None = None
        self.failure_reason = ""
        self.model_artifacts = f"{self.output_uri}/model.tar.gz"
        self.metrics: dict[str, dict[str, Any]] = {}
        self.metric_values: dict[str, list[float]] = {}
        self.tuning_job_arn = ""
        self._billed: list[float] = []
        self._billed_since: datetime | None = None
        self.transitions: list[dict[str, Any]] = []
        self._lock = threading.RLock()
        self.move_to("Starting")

    @property
    def name(self) -> str:
        """The job's name."""
        return self.params["TrainingJobName"]

    @property
    def training_job_name(self) -> str:
        """The job's name, as moto calls it."""
        return self.name

    @property
    def output_uri(self) -> str:
        """Where its artifacts go: s3://.../<job>/output."""
        return f"{self.params['OutputDataConfig']['S3OutputPath'].rstrip('/')}/{self.name}/output"

    @property
    def secondary_status(self) -> str:
        """The stage it is in."""
        return self.transitions[-1]["Status"]

    @property
    def status(self) -> str:
        """InProgress, Stopping, Completed, Failed or Stopped."""
        with self._lock:
            stopping = any(step["Status"] == "Stopping" for step in self.transitions)
            return _PRIMARY.get(self.secondary_status, "Stopping" if stopping else "InProgress")

    def move_to(self, stage: str) -> None:
        """Enter a stage: end the one before and note when."""
        with self._lock:
            moment = now()
            if self.transitions:
                self.transitions[-1]["EndTime"] = moment
            step = {"Status": stage, "StartTime": moment, "StatusMessage": _MESSAGES[stage]}
            if stage == "Downloading":
                self.training_start_time = self.training_start_time or moment
                self._billed_since = moment
            if self._billed_since and (stage == "Interrupted" or _PRIMARY.get(stage) in TERMINAL):
                self._billed.append((moment - self._billed_since).total_seconds())
                self._billed_since = None
            if _PRIMARY.get(stage) in TERMINAL:
                step["EndTime"] = self.training_end_time = moment
            self.transitions.append(step)
            self.last_modified_time = moment

    def fail(self, reason: str) -> None:
        """Note why it fails; the stage comes separately."""
        self.failure_reason = reason[:MAX_FAILURE_REASON]

    def note_metric(self, name: str, value: float) -> None:
        """Keep a value of a metric; the latest is its final one."""
        with self._lock:
            self.metrics[name] = {"MetricName": name, "Value": value, "Timestamp": now()}
            self.metric_values.setdefault(name, []).append(value)

    @property
    def training_seconds(self) -> int | None:
        """Whole seconds from the download of its data to its end, begun ones included; None before."""
        if self.training_start_time is None:
            return None
        return max(1, ceil(((self.training_end_time or now()) - self.training_start_time).total_seconds()))

    @property
    def used_seconds(self) -> float:
        """How long it has had its instances so far, without the time between an interruption and the next start."""
        with self._lock:
            running = (now() - self._billed_since).total_seconds() if self._billed_since else 0.0
            return sum(self._billed) + running

    @property
    def billable_seconds(self) -> int | None:
        """What is billed of each instance, in whole seconds, once it has ended."""
        if self.training_end_time is None or self.training_seconds is None:
            return None
        return min(self.training_seconds, max(1, ceil(self.used_seconds)))

    def describe(self) -> dict[str, Any]:
        """Return the members of DescribeTrainingJob's reply."""
        with self._lock:
            echoed = {name: self.params[name] for name in _ECHOED if name in self.params}
            return echoed | {
                "TrainingJobArn": self.arn,
                "TuningJobArn": self.tuning_job_arn or None,
                "ModelArtifacts": {"S3ModelArtifacts": self.model_artifacts},
                "TrainingJobStatus": self.status,
                "SecondaryStatus": self.secondary_status,
                "SecondaryStatusTransitions": [dict(step) for step in self.transitions],
                "FailureReason": self.failure_reason or None,
                "StoppingCondition": self.params.get("StoppingCondition", {"MaxRuntimeInSeconds": 86400}),
                "CreationTime": self.creation_time,
                "LastModifiedTime": self.last_modified_time,
                "TrainingStartTime": self.training_start_time,
                "TrainingEndTime": self.training_end_time,
                "TrainingTimeInSeconds": self.training_seconds,
                "BillableTimeInSeconds": self.billable_seconds,
                "FinalMetricDataList": list(self.metrics.values()) or None,
                "EnableNetworkIsolation": self.params.get("EnableNetworkIsolation", False),
                "EnableInterContainerTrafficEncryption": self.params.get(
                    "EnableInterContainerTrafficEncryption", False
                ),
                "EnableManagedSpotTraining": self.params.get("EnableManagedSpotTraining", False),
            }

    def summary(self) -> dict[str, Any]:
        """Return the job's entry in ListTrainingJobs' reply."""
        members = (
            "TrainingJobName",
            "TrainingJobArn",
            "CreationTime",
            "TrainingEndTime",
            "LastModifiedTime",
            "TrainingJobStatus",
            "SecondaryStatus",
        )
        described = self.describe()
        return {name: described[name] for name in members}
