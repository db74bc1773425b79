"""Training jobs: CreateTrainingJob, DescribeTrainingJob, ListTrainingJobs, StopTrainingJob, DeleteTrainingJob.

A job is accepted or refused as AWS would, and then really runs (`training_run`).
"""

import base64
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from moto.sagemaker.models import sagemaker_backends

from opslib.rehearsal.calls import ACCOUNT_ID, Call, Operation, ServiceError
from opslib.rehearsal.identity import assume_role, require_passable_role
from opslib.rehearsal.role_storage import RoleStorage
from opslib.rehearsal.training.channels import read_channels, require_objects
from opslib.rehearsal.training.job import TERMINAL, TrainingJob
from opslib.rehearsal.training.program import read_program
from opslib.rehearsal.training.run import TrainingRun

if TYPE_CHECKING:
    from opslib.rehearsal.server import Rehearsal

_PAGE = 10


class TrainingExtension:
    """The extension that really trains."""

    def __init__(self, rehearsal: "Rehearsal") -> None:
        self._rehearsal = rehearsal
        self._runs: dict[str, TrainingRun] = {}
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
        if params["TrainingJobName"] in jobs:
            message = "Training job names must be unique within an AWS account and region, and a training job with this"
            raise ServiceError("ResourceInUse", f"{message} name already exists ({arn})")
        require_passable_role(call, params["RoleArn"])
        if "ResourceConfig" not in params or "AlgorithmSpecification" not in params:
            raise ServiceError("ValidationException", "AlgorithmSpecification and ResourceConfig are required")
        read_program(params)
        session = assume_role(params["RoleArn"], "SageMaker")
        for channel in read_channels(params):
            require_objects(channel, RoleStorage(session), params["RoleArn"], call.region)
        job = jobs[params["TrainingJobName"]] = TrainingJob(arn, params)
        run = self._runs[arn] = TrainingRun(job, self._rehearsal, call.region, session)
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
        for run in self._runs.values():
            run.kill()
        for run in self._runs.values():
            run.join()


def _jobs(region: str) -> dict[str, TrainingJob]:
    # In moto's own store, so that AddTags, ListTags and the tagging API find the jobs.
    return sagemaker_backends[ACCOUNT_ID][region].training_jobs


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
