"""Training jobs: CreateTrainingJob, DescribeTrainingJob, ListTrainingJobs, StopTrainingJob, DeleteTrainingJob.

A job is accepted or refused as AWS would, and then really runs (`training.run`).
"""

import threading
from collections.abc import Mapping
from typing import Any

from moto.sagemaker.models import sagemaker_backends

from opslib.rehearsal.calls import ACCOUNT_ID, Call, Operation, Principal, ServiceError
from opslib.rehearsal.identity import assume_role, require_passable_role
from opslib.rehearsal.listing import in_order, one_page, passes_filters
from opslib.rehearsal.role_storage import RoleStorage
from opslib.rehearsal.site import Site
from opslib.rehearsal.training.channels import read_channels, require_objects
from opslib.rehearsal.training.job import TERMINAL, TrainingJob
from opslib.rehearsal.training.metrics import compile_definitions
from opslib.rehearsal.training.program import read_program
from opslib.rehearsal.training.run import DEFAULT_MAX_RUNTIME_SECONDS, TrainingRun


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
            "rehearsal.InterruptTraining": self.interrupt,
        }

    def create(self, call: Call) -> dict[str, Any]:
        """Accept a job and start it."""
        return {"TrainingJobArn": self.launch(call).arn}

    def launch(self, call: Call, tuning_job_arn: str = "") -> TrainingJob:
        """Start the job of a CreateTrainingJob call, for a tuning job or by itself, and return it.

        Raises:
            ServiceError: AWS would refuse it, too, or it cannot be rehearsed.
        """
        session = self.require_acceptable(call)
        jobs = _jobs(call.region)
        job = TrainingJob(call.arn(f"training-job/{call.params['TrainingJobName']}"), call.params)
        job.tuning_job_arn = tuning_job_arn
        run = TrainingRun(job, self._site, call.region, session)
        with self._lock:
            _refuse_taken(jobs, job.name, job.arn)
            if self._stopped:
                raise ServiceError("ServiceUnavailable", "The rehearsal is being stopped.", status=503)
            self._runs[job.arn], jobs[job.name] = run, job
        run.start()
        return job

    def require_acceptable(self, call: Call) -> Principal:
        """Refuse a CreateTrainingJob call that AWS would; return the role's session that the job works in.

        Raises:
            ServiceError: AWS would refuse it, too, or it cannot be rehearsed.
        """
        params = call.params
        _refuse_taken(
            _jobs(call.region), params["TrainingJobName"], call.arn(f"training-job/{params['TrainingJobName']}")
        )
        require_passable_role(call, params["RoleArn"])
        if "ResourceConfig" not in params or "AlgorithmSpecification" not in params:
            raise ServiceError("ValidationException", "AlgorithmSpecification and ResourceConfig are required")
        _require_limits(params)
        read_program(params)
        compile_definitions(params)
        session = assume_role(params["RoleArn"], "SageMaker")
        for channel in read_channels(params):
            require_objects(channel, RoleStorage(session), params["RoleArn"], call.region)
        return session

    def request_stop(self, job: TrainingJob) -> None:
        """Ask a job to end, if it has not: SIGTERM now, SIGKILL 120 seconds later."""
        run = self._runs.get(job.arn)
        if run:
            run.request_stop("Stopped")

    def interrupt(self, call: Call) -> dict[str, Any]:
        """Take a job's spot instances away: the rehearsal's own operation, see `interruptions`."""
        job = _jobs(call.region).get(str(call.params.get("TrainingJobName")))
        if job is None:
            raise ServiceError("ResourceNotFound", "there is no such job")
        away_seconds = call.params.get("AwaySeconds")
        if not isinstance(away_seconds, int | float) or not 0 <= away_seconds < threading.TIMEOUT_MAX:
            raise ServiceError("ValidationException", "AwaySeconds is no number of seconds")
        self._runs[job.arn].interrupt(away_seconds)
        return {}

    def describe(self, call: Call) -> dict[str, Any]:
        """Answer DescribeTrainingJob."""
        return _find(call).describe()

    def stop_job(self, call: Call) -> dict[str, Any]:
        """Ask a job to end: SIGTERM now, SIGKILL 120 seconds later."""
        job = _find(call)
        if job.status != "InProgress":
            message = f"The request was rejected because the training job is in status {job.status}."
            raise ServiceError("ValidationException", message)
        self.request_stop(job)
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
        ordered = in_order(chosen, params.get("SortBy", "CreationTime"), params.get("SortOrder", "Ascending"))
        page, token = one_page(ordered, params)
        return {"TrainingJobSummaries": [job.summary() for job in page], "NextToken": token}

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
    unknown = {"WarmPoolStatusEquals", "TrainingPlanArnEquals"}
    return passes_filters(job, params) and not unknown & params.keys()


def _require_limits(params: Mapping[str, Any]) -> None:
    """Refuse a longest wait that AWS would, in its words.

    Raises:
        ServiceError: ValidationException.
    """
    condition = params.get("StoppingCondition", {})
    wait = condition.get("MaxWaitTimeInSeconds")
    if not params.get("EnableManagedSpotTraining"):
        if wait is not None:
            words = "It is only supported when EnableManagedSpotTraining is set to true"
            raise ServiceError("ValidationException", f"Invalid MaxWaitTimeInSeconds. {words}")
    elif wait is None or wait < condition.get("MaxRuntimeInSeconds", DEFAULT_MAX_RUNTIME_SECONDS):
        words = "It must be present and be greater than or equal to MaxRuntimeInSeconds"
        raise ServiceError("ValidationException", f"Invalid MaxWaitTimeInSeconds. {words}")
