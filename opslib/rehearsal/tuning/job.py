"""A tuning job as DescribeHyperParameterTuningJob shows it, and its trials."""

import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from opslib.rehearsal.training.job import TERMINAL, TrainingJob, now
from opslib.rehearsal.tuning.strategies import Proposal

_ECHOED = (
    "HyperParameterTuningJobName", "HyperParameterTuningJobConfig", "TrainingJobDefinition", "WarmStartConfig"
)  # fmt: skip
_RUNNING = frozenset({"InProgress", "Stopping"})


@dataclass
class Trial:
    """One training job of a tuning job; `judged` counts the values of its objective that were looked at."""

    job: TrainingJob
    proposal: Proposal
    objective: str
    definition_name: str = ""
    judged: int = 0
    was_stopped: bool = False
    is_settled: bool = field(default=False)

    @property
    def has_ended(self) -> bool:
        """Whether its training job has reached its last state."""
        return self.job.status in TERMINAL

    @property
    def values(self) -> list[float]:
        """What its objective was so far, in the order of its log."""
        return list(self.job.metric_values.get(self.objective, ()))

    @property
    def final_value(self) -> float | None:
        """The last value in its log, once it has ended without failure; None otherwise."""
        return self.values[-1] if self.objective_status == "Succeeded" else None

    @property
    def objective_status(self) -> str:
        """Succeeded, Pending or Failed."""
        if not self.has_ended:
            return "Pending"
        return "Succeeded" if self.values and self.job.status != "Failed" else "Failed"

    def summary(self, tuning_job_name: str = "") -> dict[str, Any]:
        """Return its HyperParameterTrainingJobSummary; the tuning job is named among the results of several."""
        value = self.final_value
        members = {
            "TrainingJobDefinitionName": self.definition_name or None,
            "TrainingJobName": self.job.name,
            "TrainingJobArn": self.job.arn,
            "TuningJobName": tuning_job_name or None,
            "CreationTime": self.job.creation_time,
            "TrainingStartTime": self.job.training_start_time,
            "TrainingEndTime": self.job.training_end_time,
            "TrainingJobStatus": self.job.status,
            "TunedHyperParameters": dict(self.proposal.values),
            "FailureReason": self.job.failure_reason or None,
            "ObjectiveStatus": self.objective_status,
            "FinalHyperParameterTuningJobObjectiveMetric": (
                None if value is None else {"MetricName": self.objective, "Value": value}
            ),
        }
        return {name: member for name, member in members.items() if member is not None}


class TuningJob:
    """A tuning job's record; it lies in moto's backend, which finds its tags by `arn` and `tags`."""

    def __init__(self, arn: str, params: Mapping[str, Any], parents: Iterable["TuningJob"]) -> None:
        self.arn = arn
        self.params = dict(params)
        self.parents = tuple(parents)
        self.tags: list[dict[str, str]] = list(params.get("Tags", []))
        self.creation_time = self.last_modified_time = now()
        self.end_time: datetime | None = None
        self.status = "InProgress"
        self.failure_reason = ""
        self.trials: list[Trial] = []
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        """The job's name."""
        return self.params["HyperParameterTuningJobName"]

    @property
    def config(self) -> Mapping[str, Any]:
        """HyperParameterTuningJobConfig of the request."""
        return self.params["HyperParameterTuningJobConfig"]

    @property
    def definition(self) -> Mapping[str, Any]:
        """TrainingJobDefinition of the request."""
        return self.params["TrainingJobDefinition"]

    @property
    def objective(self) -> Mapping[str, Any]:
        """The objective's Type and MetricName."""
        return self.config["HyperParameterTuningJobObjective"]

    def move_to(self, status: str, failure_reason: str = "") -> None:
        """Enter a status; one that it has left for good is not entered again."""
        with self._lock:
            if self.status in TERMINAL:
                return
            self.status, self.failure_reason = status, failure_reason
            self.last_modified_time = now()
            if status in TERMINAL:
                self.end_time = self.last_modified_time

    def request_stop(self) -> bool:
        """Note that it is to stop; return whether it was running."""
        with self._lock:
            if self.status != "InProgress":
                return False
            self.status, self.last_modified_time = "Stopping", now()
            return True

    def add(self, trial: Trial) -> None:
        """Note a trial that has begun."""
        self.trials = [*self.trials, trial]
        self.last_modified_time = now()

    def best(self, trials: Iterable[Trial]) -> Trial | None:
        """Return the trial with the best objective, the earlier one of equals."""
        found = [(trial.final_value, trial) for trial in trials]
        valued = [(value, trial) for value, trial in found if value is not None]
        choose = min if self.objective["Type"] == "Minimize" else max
        return choose(valued, key=lambda pair: pair[0])[1] if valued else None

    def describe(self) -> dict[str, Any]:
        """Return the members of DescribeHyperParameterTuningJob's reply."""
        best = self.best(self.trials)
        seconds = ((self.end_time or now()) - self.creation_time).total_seconds()
        return {name: self.params[name] for name in _ECHOED if name in self.params} | {
            "HyperParameterTuningJobArn": self.arn,
            "HyperParameterTuningJobStatus": self.status,
            "CreationTime": self.creation_time,
            "LastModifiedTime": self.last_modified_time,
            "HyperParameterTuningEndTime": self.end_time,
            "TrainingJobStatusCounters": self._status_counters(),
            "ObjectiveStatusCounters": self._objective_counters(),
            "BestTrainingJob": best.summary() if best else None,
            "OverallBestTrainingJob": self._overall_best(),
            "FailureReason": self.failure_reason or None,
            "ConsumedResources": {"RuntimeInSeconds": int(seconds)},
        }

    def summary(self) -> dict[str, Any]:
        """Return the job's entry in ListHyperParameterTuningJobs' reply."""
        members = {
            "HyperParameterTuningJobName": self.name,
            "HyperParameterTuningJobArn": self.arn,
            "HyperParameterTuningJobStatus": self.status,
            "Strategy": self.config["Strategy"],
            "CreationTime": self.creation_time,
            "HyperParameterTuningEndTime": self.end_time,
            "LastModifiedTime": self.last_modified_time,
            "TrainingJobStatusCounters": self._status_counters(),
            "ObjectiveStatusCounters": self._objective_counters(),
            "ResourceLimits": self.config["ResourceLimits"],
        }
        return {name: member for name, member in members.items() if member is not None}

    def _overall_best(self) -> dict[str, Any] | None:
        """Return the best of this job and its parents, which AWS tells when data and algorithm are identical."""
        if self.params.get("WarmStartConfig", {}).get("WarmStartType") != "IdenticalDataAndAlgorithm":
            return None
        owners = {id(trial): job.name for job in (*self.parents, self) for trial in job.trials}
        best = self.best(trial for job in (*self.parents, self) for trial in job.trials)
        return best.summary(owners[id(best)]) if best and id(best) in owners else None

    def _status_counters(self) -> dict[str, int]:
        statuses = [trial.job.status for trial in self.trials]
        return {
            "Completed": statuses.count("Completed"),
            "InProgress": sum(status in _RUNNING for status in statuses),
            "RetryableError": 0,
            "NonRetryableError": statuses.count("Failed"),
            "Stopped": statuses.count("Stopped"),
        }

    def _objective_counters(self) -> dict[str, int]:
        statuses = [trial.objective_status for trial in self.trials]
        return {name: statuses.count(name) for name in ("Succeeded", "Pending", "Failed")}
