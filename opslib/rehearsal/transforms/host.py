"""An instance of a transform job: a model server, and the log of what became of its requests."""

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import NoReturn

from moto.sagemaker.models import Model

from opslib.rehearsal.calls import Principal
from opslib.rehearsal.endpoints.hosting_builder import HostingBuilder, model_fetcher
from opslib.rehearsal.endpoints.images import find_program
from opslib.rehearsal.endpoints.instances import InvocationTimedOut, ModelContainer, ModelInstance, ModelNotServing
from opslib.rehearsal.log_streams import LogStream
from opslib.rehearsal.site import Site
from opslib.rehearsal.training.cores import share_of_cores
from opslib.rehearsal.transforms.job import TransformJob

LOG_GROUP = "/aws/sagemaker/TransformJobs"
DEFAULT_TIMEOUT_SECONDS = 600
DEFAULT_RETRIES = 3


class RequestFailed(Exception):  # noqa: N818 - it becomes a FailureReason
    """A request got no answer: `kind` is ClientError or AlgorithmError, the text goes to the data log."""

    def __init__(self, kind: str, text: str) -> None:
        """Say whose fault it is, and what happened."""
        super().__init__(text)
        self.kind = kind


class TransformHost:
    """One instance of a job."""

    def __init__(self, job: TransformJob, model: Model, site: Site, session: Principal, region: str) -> None:
        """Prepare the instance; nothing is started yet."""
        self._job = job
        self._session = session
        self._region = region
        self._stream = ""
        container = ModelContainer(
            directory=site.directory,
            variables=HostingBuilder(site).variables(model, region) | _batch_variables(job),
            fetch_model=model_fetcher(model),
            open_log=self._open_log,
            program=find_program(model.primary_container["Image"]),
            count_cores=lambda: max(1, len(share_of_cores(0, 1)) // job.params["TransformResources"]["InstanceCount"]),
        )
        self._instance = ModelInstance(container)

    def start(self) -> None:
        """Start the model server and wait until it is healthy.

        Raises:
            ModelNotServing: it is not.
            ModelDataFailed: there is no model.
        """
        self._instance.start()
        strategy = "MULTI_RECORD" if self._job.many_at_once else "SINGLE_RECORD"
        self.note(
            f"MaxConcurrentTransforms={self._job.requests_at_once}, MaxPayloadInMB={self._job.max_payload_mb}, "
            f"BatchStrategy={strategy}"
        )

    def ask(self, body: bytes) -> bytes:
        """Send a request, again if the model server fails; return the answer.

        Raises:
            RequestFailed: there is none.
        """
        config = self._job.params.get("ModelClientConfig", {})
        for _ in range(config.get("InvocationsMaxRetries", DEFAULT_RETRIES)):
            try:
                return self._ask_once(body)
            except RequestFailed as failure:
                if failure.kind == "ClientError" or self._job.is_stopped():
                    raise
        return self._ask_once(body)

    def note(self, text: str) -> None:
        """Write to the data log."""
        moment = datetime.now(UTC)
        stamp = f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03d}"
        lines = [f"{stamp}:[sagemaker logs]: {line}" for line in text.splitlines()]
        LogStream(self._session, self._region, LOG_GROUP, f"{self._stream}/data-log").write(lines)

    def close(self) -> None:
        """Kill the model server."""
        self._instance.close()

    def _ask_once(self, body: bytes) -> bytes:
        seconds = self._job.params.get("ModelClientConfig", {}).get(
            "InvocationsTimeoutInSeconds", DEFAULT_TIMEOUT_SECONDS
        )
        try:
            reply = self._instance.invoke(body, self._headers(), timeout_seconds=seconds)
        except (InvocationTimedOut, ModelNotServing) as error:
            raise RequestFailed("AlgorithmError", "Unable to get response from algorithm") from error
        if reply.status != 200:
            _fail(reply.status, reply.body.decode("utf-8", "replace"))
        return reply.body

    def _headers(self) -> dict[str, str]:
        headers = {"Accept": self._job.params["TransformOutput"].get("Accept", "*/*")}
        if "ContentType" in self._job.params["TransformInput"]:
            headers["Content-Type"] = self._job.params["TransformInput"]["ContentType"]
        return headers

    def _open_log(self, instance_id: str) -> Callable[[Sequence[str]], None]:
        self._stream = f"{self._job.name}/{instance_id}-{int(time.time())}"
        return LogStream(self._session, self._region, LOG_GROUP, self._stream).write


def _fail(status: int, message: str) -> NoReturn:
    if 400 <= status < 500:
        raise RequestFailed("ClientError", f"ClientError: {status}\n\nMessage:\n{message}")
    raise RequestFailed("AlgorithmError", f"Bad HTTP status received from algorithm: {status}\n\nMessage:\n{message}")


def _batch_variables(job: TransformJob) -> dict[str, str]:
    """Return what SageMaker tells a container of batch transform, and what the job tells it.

    Source: docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-batch-code.html
    """
    told = {
        "SAGEMAKER_BATCH": "true",
        "SAGEMAKER_MAX_CONCURRENT_TRANSFORMS": str(job.requests_at_once),
        "SAGEMAKER_MAX_PAYLOAD_IN_MB": str(job.max_payload_mb),
        "SAGEMAKER_BATCH_STRATEGY": "MULTI_RECORD" if job.many_at_once else "SINGLE_RECORD",
    }
    return told | job.params.get("Environment", {})
