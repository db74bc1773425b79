"""Tuning jobs: Create, Describe, List, Stop and Delete, and the list of a tuning job's training jobs.

A job is accepted or refused as AWS would, and its trials are training jobs that really run (`tuning.run`).
"""

import threading
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from moto.sagemaker.models import sagemaker_backends

from opslib.rehearsal.calls import ACCOUNT_ID, Call, Operation, ServiceError
from opslib.rehearsal.listing import in_order, one_page, passes_filters
from opslib.rehearsal.training.extension import TrainingExtension
from opslib.rehearsal.training.job import TERMINAL
from opslib.rehearsal.tuning.job import Trial, TuningJob
from opslib.rehearsal.tuning.ranges import Range
from opslib.rehearsal.tuning.requests import (
    epochs_of_hyperband,
    require_parents,
    require_rehearsable,
    require_valid,
    training_request,
)
from opslib.rehearsal.tuning.run import TuningRun
from opslib.rehearsal.tuning.strategies import Strategy, build_strategy


class TuningExtension:
    """The extension that tunes, by means of the one that trains."""

    def __init__(self, training: TrainingExtension) -> None:
        self._training = training
        self._runs: dict[str, TuningRun] = {}
        self._stopped = False
        self._lock = threading.Lock()
        self.operations: Mapping[str, Operation] = {
            "sagemaker.CreateHyperParameterTuningJob": self.create,
            "sagemaker.DescribeHyperParameterTuningJob": self.describe,
            "sagemaker.ListHyperParameterTuningJobs": self.list,
            "sagemaker.ListTrainingJobsForHyperParameterTuningJob": self.list_trials,
            "sagemaker.StopHyperParameterTuningJob": self.stop_job,
            "sagemaker.DeleteHyperParameterTuningJob": self.delete,
        }

    def create(self, call: Call) -> dict[str, Any]:
        """Accept a job and start it."""
        params, jobs = call.params, _jobs(call.region)
        name = params["HyperParameterTuningJobName"]
        arn = call.arn(f"hyper-parameter-tuning-job/{name}")
        _refuse_taken(jobs, name, arn)
        require_rehearsable(params)
        ranges = require_valid(params)
        job = TuningJob(arn, params, require_parents(params, jobs))
        sample = {one.name: _sample(one) for one in ranges}
        trial_call = replace(call, operation="CreateTrainingJob", params=training_request(params, 1, sample, ()))
        self._training.require_acceptable(trial_call)
        run = TuningRun(job, _strategy(job, ranges), self._training, call)
        with self._lock:
            _refuse_taken(jobs, name, arn)
            if self._stopped:
                raise ServiceError("ServiceUnavailable", "The rehearsal is being stopped.", status=503)
            self._runs[arn], jobs[name] = run, job
        run.start()
        return {"HyperParameterTuningJobArn": arn}

    def describe(self, call: Call) -> dict[str, Any]:
        """Answer DescribeHyperParameterTuningJob."""
        return _find(call).describe()

    def list(self, call: Call) -> dict[str, Any]:
        """Answer ListHyperParameterTuningJobs, with all of its filters; the newest first, as on AWS."""
        params = call.params
        chosen = [job for job in _jobs(call.region).values() if passes_filters(job, params)]
        ordered = in_order(chosen, params.get("SortBy", "CreationTime"), params.get("SortOrder", "Descending"))
        page, token = one_page(ordered, params)
        return {"HyperParameterTuningJobSummaries": [job.summary() for job in page], "NextToken": token}

    def list_trials(self, call: Call) -> dict[str, Any]:
        """Answer ListTrainingJobsForHyperParameterTuningJob; by FinalObjectiveMetricValue, only those that have one."""
        job, params = _find(call), call.params
        wanted = params.get("StatusEquals")
        chosen = [trial for trial in job.trials if wanted in {None, trial.job.status}]
        ordered = _ordered(chosen, params.get("SortBy", "Name"), params.get("SortOrder", "Ascending"))
        page, token = one_page(ordered, params)
        return {"TrainingJobSummaries": [trial.summary() for trial in page], "NextToken": token}

    def stop_job(self, call: Call) -> dict[str, Any]:
        """Ask a job to end: its trials are stopped, and no others start."""
        job = _find(call)
        if not job.request_stop():
            message = f"The request was rejected because the hyperparameter tuning job is in status {job.status}."
            raise ServiceError("ValidationException", message)
        self._runs[job.arn].wake()
        return {}

    def delete(self, call: Call) -> dict[str, Any]:
        """Forget a job that has ended; its training jobs stay, as on AWS."""
        job = _find(call)
        if job.status not in TERMINAL:
            message = f"The hyperparameter tuning job {job.arn} cannot be deleted in status {job.status}."
            raise ServiceError("ResourceInUse", message)
        del _jobs(call.region)[job.name]
        self._runs.pop(job.arn, None)
        return {}

    def stop(self) -> None:
        """Start no more trials, and wait for the jobs' threads; the training jobs are the other extension's to end."""
        with self._lock:
            self._stopped, runs = True, list(self._runs.values())
        for run in runs:
            run.kill()
        for run in runs:
            run.join()


def _jobs(region: str) -> dict[str, TuningJob]:
    # In moto's own store, so that AddTags, ListTags and the tagging API find the jobs.
    return sagemaker_backends[ACCOUNT_ID][region].hyper_parameter_tuning_jobs


def _refuse_taken(jobs: Mapping[str, TuningJob], name: str, arn: str) -> None:
    if name in jobs:
        words = "Hyperparameter tuning job names must be unique within an AWS account and region, and a"
        raise ServiceError("ResourceInUse", f"{words} hyperparameter tuning job with this name already exists ({arn})")


def _find(call: Call) -> TuningJob:
    job = _jobs(call.region).get(call.params["HyperParameterTuningJobName"])
    if job is None:
        raise ServiceError("ResourceNotFound", "Requested resource not found.")
    return job


def _strategy(job: TuningJob, ranges: list[Range]) -> Strategy:
    resources = epochs_of_hyperband(job.config, job.definition)
    kind, seed = job.objective["Type"], job.config.get("RandomSeed")
    return build_strategy(job.config["Strategy"], ranges, kind, seed, resources)


def _sample(one: Range) -> str:
    """Return some value of a range, to see whether a training job would be accepted with it."""
    return one.choices[0] if one.choices else one.text(one.distribution.low)


def _ordered(trials: list[Trial], by: str, order: str) -> list[Trial]:
    if by == "FinalObjectiveMetricValue":
        found = [(trial.final_value, trial) for trial in trials]
        valued = [(value, trial) for value, trial in found if value is not None]
        return [trial for _, trial in sorted(valued, key=lambda pair: pair[0], reverse=order == "Descending")]
    by_name = {trial.job.name: trial for trial in trials}
    return [by_name[job.name] for job in in_order([trial.job for trial in trials], by, order)]
