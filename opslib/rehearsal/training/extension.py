"""Training jobs: CreateTrainingJob, DescribeTrainingJob, ListTrainingJobs, StopTrainingJob, DeleteTrainingJob.

A job is accepted or refused as AWS would, and then really runs (`training_run`).
"""

import base64
import threading
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from moto.sagemaker.models import sagemaker_backends

from opslib.rehearsal.calls import ACCOUNT_ID, Call, Operation, ServiceError
from opslib.rehearsal.identity import assume_role, require_passable_role
from opslib.rehearsal.role_storage import RoleStorage
from opslib.rehearsal.site import Site
from opslib.rehearsal.training.channels import read_channels, require_objects
from opslib.rehearsal.training.job import TERMINAL, TrainingJob
from opslib.rehearsal.training.program import read_program
from opslib.rehearsal.training.run import TrainingRun

_PAGE = 10


class TrainingExtension:
    """The extension that really trains."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._runs: dict[str, TrainingRun] = {}
        self._stopped = False
        self._lock = threading.Lock()
        self.operations: Mapping[str, Operation] = {
            "sagemaker.CreateTrainingJob": self.create,
            "sagemaker.DescribeTrainingJob": self.describe,
            "sagemaker.ListTrainingJobs": self.list,
            "sagemaker.StopTrainingJob": self.stop_job,
            "sagemaker.DeleteTrainingJob": self.delete,
        }

    def create(self, call: Call) -> dict[str, Any]:
        """Accept a job and start it."""
        params = call.params
        jobs = _jobs(call.region)
        arn = call.arn(f"training-job/{params['TrainingJobName']}")
        _refuse_taken(jobs, params["TrainingJobName"], arn)
        require_passable_role(call, params["RoleArn"])
        if "ResourceConfig" not in params or "AlgorithmSpecification" not in params:
            raise ServiceError("ValidationException", "AlgorithmSpecification and ResourceConfig are required")
        read_program(params)
        session = assume_role(params["RoleArn"], "SageMaker")
        for channel in read_channels(params):
            require_objects(channel, RoleStorage(session), params["RoleArn"], call.region)
        job = TrainingJob(arn, params)
        run = TrainingRun(job, self._site, call.region, session)
        with self._lock:
            _refuse_taken(jobs, job.name, arn)
            if self._stopped:
                raise ServiceError("ServiceUnavailable", "The rehearsal is being stopped.", status=503)
            self._runs[arn], jobs[job.name] = run, job
        run.start()
        return {"TrainingJobArn": arn}

    def describe(self, call: Call) -> dict[str, Any]:
        """Answer DescribeTrainingJob."""
        return _find(call).describe()

    def stop_job(self, call: Call) -> dict[str, Any]:
        """Ask a job to end: SIGTERM now, SIGKILL 120 seconds later."""
        job = _find(call)
        if job.status != "InProgress":
            message = f"The request was rejected because the training job is in status {job.status}."
            raise ServiceError("ValidationException", message)
        self._runs[job.arn].request_stop("Stopped")
        return {}

    def delete(self, call: Call) -> dict[str, Any]:
        """Forget a job that has ended."""
        job = _find(call)
        if job.status not in TERMINAL:
            message = f"The training job {job.arn} cannot be deleted while it is in status {job.status}."
            raise ServiceError("ResourceInUse", message)
        del _jobs(call.region)[job.name]
        self._runs.pop(job.arn, None)
        return {}

    def list(self, call: Call) -> dict[str, Any]:
        """Answer ListTrainingJobs, with all of its filters."""
        params = call.params
        chosen = [job for job in _jobs(call.region).values() if _passes(job, params)]
        chosen.sort(key=_sort_key(params.get("SortBy", "CreationTime")))
        if params.get("SortOrder", "Ascending") == "Descending":
            chosen.reverse()
        start = _position(params.get("NextToken", ""))
        end = start + params.get("MaxResults", _PAGE)
        token = base64.b64encode(str(end).encode()).decode() if end < len(chosen) else None
        return {"TrainingJobSummaries": [job.summary() for job in chosen[start:end]], "NextToken": token}

    def stop(self) -> None:
        """Kill every job that still runs, and wait for their threads."""
        with self._lock:
            self._stopped, runs = True, list(self._runs.values())
        for run in runs:
            run.kill()
        for run in runs:
            run.join()


def _jobs(region: str) -> dict[str, TrainingJob]:
    # In moto's own store, so that AddTags, ListTags and the tagging API find the jobs.
    return sagemaker_backends[ACCOUNT_ID][region].training_jobs


def _refuse_taken(jobs: Mapping[str, TrainingJob], name: str, arn: str) -> None:
    if name in jobs:
        message = "Training job names must be unique within an AWS account and region, and a training job with this"
        raise ServiceError("ResourceInUse", f"{message} name already exists ({arn})")


def _find(call: Call) -> TrainingJob:
    job = _jobs(call.region).get(call.params["TrainingJobName"])
    if job is None:
        code = "ValidationException" if call.operation == "DescribeTrainingJob" else "ResourceNotFound"
        raise ServiceError(code, "Requested resource not found.")
    return job


def _passes(job: TrainingJob, params: Mapping[str, Any]) -> bool:
    earliest = datetime.min.replace(tzinfo=job.creation_time.tzinfo)
    latest = datetime.max.replace(tzinfo=job.creation_time.tzinfo)
    return (
        params.get("NameContains", "").lower() in job.name.lower()
        and params.get("StatusEquals", job.status) == job.status
        and params.get("CreationTimeAfter", earliest) <= job.creation_time <= params.get("CreationTimeBefore", latest)
        and params.get("LastModifiedTimeAfter", earliest) <= job.last_modified_time
        and job.last_modified_time <= params.get("LastModifiedTimeBefore", latest)
        and "WarmPoolStatusEquals" not in params
        and "TrainingPlanArnEquals" not in params
    )


def _sort_key(by: str) -> Callable[[TrainingJob], Any]:
    return {"Name": lambda job: job.name, "Status": lambda job: job.status}.get(by, lambda job: job.creation_time)


def _position(token: str) -> int:
    try:
        return int(base64.b64decode(token)) if token else 0
    except ValueError as error:
        raise ServiceError("ValidationException", "Invalid NextToken.") from error
