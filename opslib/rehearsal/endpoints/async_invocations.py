"""InvokeEndpointAsync: the request lies in S3 or in the call, the answer goes to S3, and the caller does not wait.

Sources: docs.aws.amazon.com/sagemaker/latest/APIReference/API_runtime_InvokeEndpointAsync.html and
docs.aws.amazon.com/sagemaker/latest/dg/async-inference.html
"""

import threading
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import Any

from opslib.rehearsal.calls import ACCOUNT_ID, Call, Operation, ServiceError
from opslib.rehearsal.endpoints.asking import ask, model_error
from opslib.rehearsal.endpoints.backlogs import Backlog, BacklogSample, BacklogWork, QueuedRequest
from opslib.rehearsal.endpoints.container_client import ContainerReply
from opslib.rehearsal.endpoints.hosting import Hosting, Variant
from opslib.rehearsal.endpoints.notifications import notify
from opslib.rehearsal.monitoring.extension import Metric
from opslib.rehearsal.role_storage import StorageRefused, split_uri
from opslib.rehearsal.site import Site

DEFAULT_TTL_SECONDS = 21_600
DEFAULT_TIMEOUT_SECONDS = 900
DEFAULT_CONCURRENCY = 4
"""Requests at once on an instance where the configuration says nothing; AWS chooses a number and does not say which."""

MAX_INPUT_BYTES = 2**30
"""Largest request, 1 GB."""
MAX_INLINE_BYTES = 128_000
"""Largest request that lies in the call."""

Find = Callable[[str, str], Hosting | None]
"""From a region and a name to what an endpoint in service runs."""

Held = Callable[[str, str], AbstractContextManager[Hosting | None]]
"""From a region and a name to what answers that endpoint's next request, kept running meanwhile."""


class InvocationFailed(Exception):  # noqa: N818 - it becomes an object in S3
    """A request got no answer; the text is what the failure object says."""

    def __init__(self, metric_name: str, reason: str, reply: ContainerReply | None = None) -> None:
        """Name the metric that counts it; `reply` is the model's, if it gave one."""
        super().__init__(reason)
        self.metric_name = metric_name
        self.reply = reply


def check_async(params: Mapping[str, Any]) -> None:
    """Refuse an asynchronous endpoint configuration that AWS would refuse, or that cannot be rehearsed.

    Raises:
        ServiceError: ValidationException.
    """
    config = params.get("AsyncInferenceConfig")
    if not config:
        return
    if any("ServerlessConfig" in variant for variant in params["ProductionVariants"]):
        raise ServiceError("ValidationException", "AsyncInferenceConfig is not supported with serverless inference.")
    capture = params.get("DataCaptureConfig")
    if capture and capture.get("EnableCapture", True):
        raise ServiceError("ValidationException", "Data capture is not supported with asynchronous inference.")


def refuse_synchronous(endpoint_name: str) -> None:
    """Refuse InvokeEndpoint of an asynchronous endpoint, and the other way round, in AWS's words."""
    raise ServiceError("ValidationError", f"Endpoint {endpoint_name} does not support this inference type.")


class AsyncInvocations:
    """The queues of all asynchronous endpoints."""

    def __init__(self, site: Site, find: Find, held: Held) -> None:
        """Take what finds the hosting of an endpoint in service, and what holds the one that answers next."""
        self._site = site
        self._find = find
        self._held = held
        self._backlogs: dict[tuple[str, str], Backlog] = {}
        self._lock = threading.Lock()
        self.operations: dict[str, Operation] = {"sagemaker-runtime.InvokeEndpointAsync": self.invoke_endpoint_async}

    def invoke_endpoint_async(self, call: Call) -> dict[str, Any]:
        """Queue a request and say where its answer will be."""
        name, params = call.params["EndpointName"], call.params
        hosting = self._find(call.region, name)
        if hosting is None:
            raise ServiceError("ValidationError", f"Endpoint {name} of account {ACCOUNT_ID} not found.")
        if not hosting.async_config:
            refuse_synchronous(name)
        if ("InputLocation" in params) == bool(params.get("Body")):
            raise ServiceError("ValidationError", "Exactly one of InputLocation and Body must be specified.")
        if len(params.get("Body", b"")) > MAX_INLINE_BYTES:
            raise ServiceError(
                "ValidationError", f"Body must have at most {MAX_INLINE_BYTES} bytes; use InputLocation."
            )
        request = self._build_request(call, hosting.async_config["OutputConfig"])
        self.watch(call.region, name).put(request)
        return {
            "InferenceId": request.inference_id,
            "OutputLocation": request.output_uri,
            "FailureLocation": request.failure_uri,
        }

    def watch(self, region: str, name: str) -> Backlog:
        """Return an endpoint's queue; from the first call on its metrics are emitted."""
        with self._lock:
            if (region, name) not in self._backlogs:
                work = BacklogWork(
                    partial(self._places, region, name), self._perform, self._expire, partial(self._note, region, name)
                )
                self._backlogs[region, name] = Backlog(self._site.clock, work)
            return self._backlogs[region, name]

    def forget(self, region: str, name: str) -> None:
        """Drop the queue of an endpoint that is deleted."""
        with self._lock:
            backlog = self._backlogs.pop((region, name), None)
        if backlog:
            backlog.close()

    def stop(self) -> None:
        """Drop every queue."""
        for region, name in list(self._backlogs):
            self.forget(region, name)

    def _build_request(self, call: Call, output: Mapping[str, Any]) -> QueuedRequest:
        params, now, file_id = call.params, self._site.clock.time(), str(uuid.uuid4())
        name = params.get("Filename", f"{file_id}.out")
        failure_name = f"{params.get('Filename', file_id)}-error.out"
        return QueuedRequest(
            call=call,
            inference_id=params.get("InferenceId", str(uuid.uuid4())),
            output_uri=_location(output.get("S3OutputPath"), params, name),
            failure_uri=_location(output.get("S3FailurePath"), params, failure_name),
            queued_at=now,
            expires_at=now + params.get("RequestTTLSeconds", DEFAULT_TTL_SECONDS),
        )

    def _places(self, region: str, name: str) -> tuple[int, int]:
        hosting = self._find(region, name)
        if hosting is None or not hosting.async_config:
            return 0, 0
        per_instance = hosting.async_config.get("ClientConfig", {}).get("MaxConcurrentInvocationsPerInstance")
        instances = sum(variant.fleet.healthy_count for variant in hosting.variants.values())
        return instances, per_instance or DEFAULT_CONCURRENCY

    def _perform(self, request: QueuedRequest) -> None:
        """Let the endpoint answer a request, by the variant that has its turn, also during an update."""
        with self._held(request.call.region, request.call.params["EndpointName"]) as hosting:
            if hosting is not None:  # else the endpoint was deleted meanwhile
                self._perform_with(hosting, request)

    def _perform_with(self, hosting: Hosting, request: QueuedRequest) -> None:
        """Fetch a request, ask an instance, and write its answer or why there is none."""
        variant, started = hosting.choose(), self._site.clock.time()
        self._observe(request, variant, "TimeInBacklog", (started - request.queued_at) * 1000, "Milliseconds")
        try:
            reply, reason = self._answer(request, hosting, variant), ""
            self._upload(request, hosting, variant, reply)
        except InvocationFailed as failure:
            reply, reason = failure.reply, str(failure)
            self._observe(request, variant, failure.metric_name, 1, "Count")
            _write_failure(request, hosting, reason)
        self._notify(request, hosting, variant, reply=reply, reason=reason)
        seconds = self._site.clock.time() - request.queued_at
        self._observe(request, variant, "TotalProcessingTime", seconds * 1000, "Milliseconds")

    def _answer(self, request: QueuedRequest, hosting: Hosting, variant: Variant) -> ContainerReply:
        params = request.call.params
        body = self._download(request, hosting, variant) if "InputLocation" in params else params["Body"]
        asked = replace(request.call, params={**params, "Body": body, "InferenceId": request.inference_id})
        try:
            seconds = params.get("InvocationTimeoutSeconds", DEFAULT_TIMEOUT_SECONDS)
            reply = ask(asked, variant, timeout_seconds=seconds)
        except ServiceError as error:
            raise InvocationFailed("InvocationFailures", error.message) from error
        self._observe(request, variant, "InvocationsProcessed", 1, "Count")
        if reply.status != 200:
            error = model_error(asked, reply.status, reply.body.decode("utf-8", "replace"))
            raise InvocationFailed("InvocationFailures", error.message, reply)
        return reply

    def _download(self, request: QueuedRequest, hosting: Hosting, variant: Variant) -> bytes:
        started, uri = time.perf_counter(), request.call.params["InputLocation"]
        try:
            body = hosting.storage.read(*split_uri(uri))
        except StorageRefused as error:
            raise InvocationFailed("RequestDownloadFailures", f"Failed to download the request: {error}") from error
        if len(body) > MAX_INPUT_BYTES:
            raise InvocationFailed("RequestDownloadFailures", f"The request at {uri} is larger than 1 GB.")
        self._observe(request, variant, "RequestDownloadLatency", (time.perf_counter() - started) * 1e6, "Microseconds")
        return body

    def _upload(self, request: QueuedRequest, hosting: Hosting, variant: Variant, reply: ContainerReply) -> None:
        if request.output_uri is None:
            return
        started = time.perf_counter()
        try:
            hosting.storage.write(*split_uri(request.output_uri), reply.body)
        except StorageRefused as error:
            raise InvocationFailed("ResponseUploadFailures", f"Failed to upload the response: {error}") from error
        self._observe(request, variant, "ResponseUploadLatency", (time.perf_counter() - started) * 1e6, "Microseconds")

    def _expire(self, request: QueuedRequest) -> None:
        hosting = self._find(request.call.region, request.call.params["EndpointName"])
        if hosting is not None:
            variant = hosting.choose()
            reason = "Request expired: it was in the queue for longer than RequestTTLSeconds."
            self._observe(request, variant, "ExpiredRequests", 1, "Count")
            _write_failure(request, hosting, reason)
            self._notify(request, hosting, variant, reply=None, reason=reason)

    def _notify(
        self, request: QueuedRequest, hosting: Hosting, variant: Variant, *, reply: ContainerReply | None, reason: str
    ) -> None:
        if not notify(request, hosting, self._site.clock.now(), reply=reply, reason=reason):
            self._observe(request, variant, "NotificationFailures", 1, "Count")

    def _observe(self, request: QueuedRequest, variant: Variant, name: str, value: float, unit: str) -> None:
        endpoint = request.call.params["EndpointName"]
        metric = Metric.of(request.call.region, "AWS/SageMaker", name, EndpointName=endpoint, VariantName=variant.name)
        self._site.monitoring.observe(metric, value, unit)

    def _note(self, region: str, name: str, sample: BacklogSample) -> None:
        size = sample.size * self._site.clock.speed
        values = {
            "ApproximateBacklogSize": (size, "Count"),
            "ApproximateAgeOfOldestRequest": (sample.oldest_seconds, "Seconds"),
            "HasBacklogWithoutCapacity": (float(bool(size) and not sample.instances), "Count"),
        }
        if sample.instances:
            values["ApproximateBacklogSizePerInstance"] = (size / sample.instances, "Count")
        for metric_name, (value, unit) in values.items():
            metric = Metric.of(region, "AWS/SageMaker", metric_name, EndpointName=name)
            self._site.monitoring.gauge(metric, value, unit)


def _location(path: str | None, params: Mapping[str, Any], name: str) -> str | None:
    if not path:
        return None
    extension = params.get("S3OutputPathExtension", "").strip("/")
    return "/".join(part for part in (path.rstrip("/"), extension, name) if part)


def _write_failure(request: QueuedRequest, hosting: Hosting, reason: str) -> None:
    if request.failure_uri is None:
        return
    try:
        hosting.storage.write(*split_uri(request.failure_uri), reason.encode())
    except StorageRefused:
        return  # as on AWS: without the permission to write there is no trace in S3
