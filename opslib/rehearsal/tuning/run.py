"""A tuning job while it runs: trials start, are judged and end, on a thread of its own."""

import threading
import time
from dataclasses import replace

from opslib.rehearsal.calls import Call, ServiceError
from opslib.rehearsal.training.extension import TrainingExtension
from opslib.rehearsal.training.job import TERMINAL
from opslib.rehearsal.tuning.early_stopping import is_hopeless
from opslib.rehearsal.tuning.job import Trial, TuningJob
from opslib.rehearsal.tuning.requests import training_request
from opslib.rehearsal.tuning.strategies import Strategy

_LOOK_SECONDS = 0.05
EARLY_STOPPING_AFTER_SECONDS = 30.0
"""How long a trial trains before it is judged.

AWS looks at metrics about once a minute, not at every epoch of a second, and the first epochs of all trials look alike.
"""

_ATTEMPTS = 5
"""After this many trials without any success a tuning job gives up, as on AWS."""


class TuningRun:
    """Runs one tuning job through the extension that trains; `call` is the one that created it."""

    def __init__(self, job: TuningJob, strategy: Strategy, training: TrainingExtension, call: Call) -> None:
        self._job = job
        self._strategy = strategy
        self._training = training
        self._call = call
        self._limits = job.config["ResourceLimits"]
        self._wake = threading.Event()
        self._killed = False
        self._is_exhausted = False
        self._is_enough = False
        self._thread = threading.Thread(target=self._run, name=f"tuning-{job.name}", daemon=True)

    def start(self) -> None:
        """Start the job's thread."""
        self._thread.start()

    def wake(self) -> None:
        """Look at once: the job is to stop."""
        self._wake.set()

    def kill(self) -> None:
        """Start nothing more: the rehearsal is over."""
        self._killed = True
        self._wake.set()

    def join(self) -> None:
        """Wait until the job has ended."""
        self._thread.join()

    @property
    def _running(self) -> list[Trial]:
        return [trial for trial in self._job.trials if not trial.is_settled]

    @property
    def _is_over_time(self) -> bool:
        limit = self._limits.get("MaxRuntimeInSeconds")
        return limit is not None and time.time() - self._job.creation_time.timestamp() > limit

    def _run(self) -> None:
        try:
            status, reason = self._perform()
        except ServiceError as error:
            self._stop_trials()
            status, reason = "Failed", error.message[:1024]
        except BaseException:
            self._job.move_to("Failed", "InternalServerError: We encountered an internal error. Please try again.")
            raise
        self._job.move_to(status, reason)

    def _perform(self) -> tuple[str, str]:
        """Start and judge trials until all have ended; return the job's last status, and why it failed."""
        for parent in self._job.parents:
            static = parent.definition.get("StaticHyperParameters", {})
            for trial in parent.trials:
                if (value := trial.final_value) is not None:
                    self._strategy.learn({**static, **trial.proposal.values}, value)
        while not self._killed:
            self._settle()
            reason = self._failure()
            if reason or self._is_over_time or self._is_enough:
                self._stop_trials()
            ends = bool(reason) or self._is_enough or self._is_over_time or self._job.status != "InProgress"
            if not ends:
                self._launch()
                ends = self._is_exhausted
            if not self._running and ends:
                return self._ending(reason)
            if self._job.status == "Stopping":
                self._stop_trials()
            self._judge()
            self._wake.wait(_LOOK_SECONDS)
            self._wake.clear()
        return "Stopped", ""

    def _ending(self, reason: str) -> tuple[str, str]:
        if self._job.status == "Stopping":
            return "Stopped", ""
        if not reason and not any(trial.final_value is not None for trial in self._job.trials):
            reason = self._fruitless()
        if reason:
            return "Failed", reason
        return ("Stopped" if self._is_over_time else "Completed"), ""

    def _launch(self) -> None:
        """Start trials while there is room for them, and something to try."""
        most = self._limits.get("MaxNumberOfTrainingJobs", float("inf"))
        while len(self._running) < self._limits["MaxParallelTrainingJobs"] and self._job.status == "InProgress":
            proposal = self._strategy.propose() if len(self._job.trials) < most else None
            if proposal is None:
                self._is_exhausted = True
                return
            number = len(self._job.trials) + 1
            params = training_request(self._job.params, number, proposal.values, self._job.tags)
            training_job = self._training.launch(
                replace(self._call, operation="CreateTrainingJob", params=params), self._job.arn
            )
            name = self._job.definition.get("DefinitionName", "")
            self._job.add(Trial(training_job, proposal, self._job.objective["MetricName"], name))

    def _settle(self) -> None:
        """Tell the strategy of the trials that have ended."""
        for trial in self._running:
            if trial.has_ended:
                trial.is_settled = True
                self._strategy.tell(trial.proposal, trial.final_value, was_stopped=trial.was_stopped)
                self._is_enough = self._is_enough or self._meets_criteria()

    def _meets_criteria(self) -> bool:
        """Return whether TuningJobCompletionCriteria end the job now."""
        criteria = self._job.config.get("TuningJobCompletionCriteria", {})
        found = [trial.final_value for trial in self._job.trials]
        values = [value for value in found if value is not None]
        if self._job.objective["Type"] == "Maximize":
            values = [-value for value in values]
        target = criteria.get("TargetObjectiveMetricValue")
        patience = criteria.get("BestObjectiveNotImproving", {}).get("MaxNumberOfTrainingJobsNotImproving")
        if not values:
            return False
        if target is not None and min(values) <= (-target if self._job.objective["Type"] == "Maximize" else target):
            return True
        return patience is not None and len(values) - 1 - values.index(min(values)) >= patience

    def _judge(self) -> None:
        """Stop the trials that print no promising values."""
        for trial in self._running:
            values = trial.values
            while trial.judged < len(values) and not trial.was_stopped and not trial.has_ended:
                trial.judged += 1
                if self._is_to_stop(trial, values[trial.judged - 1]):
                    trial.was_stopped = True
                    self._training.request_stop(trial.job)

    def _is_to_stop(self, trial: Trial, value: float) -> bool:
        if self._job.config["Strategy"] == "Hyperband":
            return self._strategy.is_to_stop(trial.proposal, value, trial.judged)
        if self._job.config.get("TrainingJobEarlyStoppingType", "Off") == "Off":
            return False
        if trial.job.used_seconds < EARLY_STOPPING_AFTER_SECONDS:
            return False
        predecessors = [one.values for one in self._job.trials if one.job.status == "Completed"]
        return is_hopeless(value, trial.judged, predecessors, self._job.objective["Type"])

    def _stop_trials(self) -> None:
        for trial in self._running:
            if trial.job.status not in TERMINAL:
                self._training.request_stop(trial.job)

    def _failure(self) -> str:
        """Return why the job gives up: its first trials were all in vain."""
        ended = [trial for trial in self._job.trials if trial.is_settled]
        if len(ended) < _ATTEMPTS or any(trial.final_value is not None for trial in ended):
            return ""
        return self._fruitless()

    def _fruitless(self) -> str:
        ended = [trial for trial in self._job.trials if trial.is_settled]
        if all(trial.job.status == "Failed" for trial in ended):
            return (
                f"No training job succeeded after {len(ended)} attempts. Please take a look at the training job "
                "failures to get more details."
            )
        return (
            f"No objective metrics found after running {len(ended)} training jobs. Please ensure that the custom "
            "algorithm is emitting the objective metric as defined by the regular expression provided."
        )
