"""Transform jobs: CreateTransformJob, DescribeTransformJob, ListTransformJobs, StopTransformJob.

AWS has no call that deletes one. A job is accepted or refused as AWS would, and then really runs (`transforms.run`).
"""

import threading
from collections.abc import Iterable, Mapping
from typing import Any

from moto.sagemaker.models import Model, sagemaker_backends

from opslib.rehearsal.calls import ACCOUNT_ID, Call, Operation, ServiceError
from opslib.rehearsal.endpoints.changes import require_quota
from opslib.rehearsal.listing import in_order, one_page, passes_filters
from opslib.rehearsal.site import Site
from opslib.rehearsal.transforms.job import TERMINAL, TransformJob
from opslib.rehearsal.transforms.run import TransformRun

_MOST_MB = 100
_UNREHEARSED = ("DataProcessing", "DataCaptureConfig")


class TransformsExtension:
    """The extension that really transforms."""

    def __init__(self, site: Site) -> None:
        """Start with no job."""
        self._site = site
        self._runs: dict[str, TransformRun] = {}
        self._stopped = False
        self._lock = threading.Lock()
        self.operations: Mapping[str, Operation] = {
            "sagemaker.CreateTransformJob": self.create,
            "sagemaker.DescribeTransformJob": self.describe,
            "sagemaker.ListTransformJobs": self.list,
            "sagemaker.StopTransformJob": self.stop_job,
        }

    def create(self, call: Call) -> dict[str, Any]:
        """Accept a job and start it."""
        params = call.params
        model = _find_model(call)
        _require_rehearsable(params)
        _require_limits(params)
        job = TransformJob(call.arn(f"transform-job/{params['TransformJobName']}"), params)
        with self._lock:
            jobs = _jobs(call.region)
            if job.name in jobs:
                message = "Transform job names must be unique within an AWS account and region, and a transform job"
                raise ServiceError("ResourceInUse", f"{message} with this name already exists ({job.arn})")
            _require_instances(job, jobs.values())
            if self._stopped:
                raise ServiceError("ServiceUnavailable", "The rehearsal is being stopped.", status=503)
            run = TransformRun(job, model, self._site, call.region)
            self._runs[job.arn], jobs[job.name] = run, job
        run.start()
        return {"TransformJobArn": job.arn}

    def describe(self, call: Call) -> dict[str, Any]:
        """Answer DescribeTransformJob."""
        return _find(call).describe()

    def list(self, call: Call) -> dict[str, Any]:
        """Answer ListTransformJobs, with all of its filters."""
        params = call.params
        chosen = [job for job in _jobs(call.region).values() if passes_filters(job, params)]
        ordered = in_order(chosen, params.get("SortBy", "CreationTime"), params.get("SortOrder", "Descending"))
        page, token = one_page(ordered, params)
        return {"TransformJobSummaries": [job.summary() for job in page], "NextToken": token}

    def stop_job(self, call: Call) -> dict[str, Any]:
        """Ask a job to end; outputs that are written stay."""
        job = _find(call)
        if job.status != "InProgress":
            message = f"The request was rejected because the transform job is in status {job.status}."
            raise ServiceError("ValidationException", message)
        threading.Thread(target=self._runs[job.arn].request_stop, name="transform-stop", daemon=True).start()
        return {}

    def stop(self) -> None:
        """Kill every job that still runs, and wait for their threads."""
        with self._lock:
            self._stopped, runs = True, [*self._runs.values()]
        for run in runs:
            run.kill()


def _jobs(region: str) -> dict[str, TransformJob]:
    # In moto's own store, so that AddTags, ListTags and the tagging API find the jobs.
    return sagemaker_backends[ACCOUNT_ID][region].transform_jobs


def _find(call: Call) -> TransformJob:
    job = _jobs(call.region).get(call.params["TransformJobName"])
    if job is None:
        raise ServiceError("ResourceNotFound", "Requested resource not found.")
    return job


def _find_model(call: Call) -> Model:
    name = call.params["ModelName"]
    model = sagemaker_backends[ACCOUNT_ID][call.region]._models.get(name)
    if model is None:
        raise ServiceError("ValidationException", f'Could not find model "{call.arn(f"model/{name}").lower()}".')
    return model


def _require_rehearsable(params: Mapping[str, Any]) -> None:
    """Refuse what would be accepted and then not be done."""
    names = [name for name in _UNREHEARSED if params.get(name)]
    if params["TransformInput"].get("SplitType") in {"RecordIO", "TFRecord"}:
        names.append(f"SplitType {params['TransformInput']['SplitType']}")
    kind = params["TransformInput"]["DataSource"]["S3DataSource"]["S3DataType"]
    if kind not in {"S3Prefix", "ManifestFile"}:
        names.append(f"S3DataType {kind}")
    if names:
        raise ServiceError("NotImplemented", f"{', '.join(names)} of a transform job cannot be rehearsed", status=501)


def _require_instances(job: TransformJob, others: Iterable[TransformJob]) -> None:
    """Refuse more instances than an account has, beside those of the jobs that run."""
    wanted = job.params["TransformResources"]
    resources = [one.params["TransformResources"] for one in others if one.status not in TERMINAL]
    used = sum(one["InstanceCount"] for one in resources if one["InstanceType"] == wanted["InstanceType"])
    require_quota(f"{wanted['InstanceType']} for transform job usage", used, wanted["InstanceCount"])


def _require_limits(params: Mapping[str, Any]) -> None:
    """Refuse payloads that AWS would: 100 MB at most, for all requests that an instance gets at once."""
    payload_mb = params.get("MaxPayloadInMB", 6)
    at_once = params.get("MaxConcurrentTransforms", 0) or 1
    if payload_mb * at_once > _MOST_MB:
        raise ServiceError(
            "ValidationException",
            f"MaxConcurrentTransforms ({at_once}) * MaxPayloadInMB ({payload_mb}) must not exceed {_MOST_MB} MB.",
        )
