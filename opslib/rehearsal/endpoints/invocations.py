"""InvokeEndpoint: a request to an instance of the endpoint, and what SageMaker makes of the container's answer.

Source: docs.aws.amazon.com/sagemaker/latest/APIReference/API_runtime_InvokeEndpoint.html; the wording of the errors is
that of the service.
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from opslib.rehearsal.calls import ACCOUNT_ID, Call, Operation, ServiceError
from opslib.rehearsal.endpoints import serverless
from opslib.rehearsal.endpoints.async_invocations import refuse_synchronous
from opslib.rehearsal.endpoints.container_client import ContainerReply
from opslib.rehearsal.endpoints.forwarded import container_headers
from opslib.rehearsal.endpoints.hosting import Hosting, Variant
from opslib.rehearsal.endpoints.instances import InvocationTimedOut, ModelNotServing
from opslib.rehearsal.endpoints.metrics import Outcome
from opslib.rehearsal.endpoints.shadow import mirror

MAX_BODY_BYTES = 6_291_456
"""Largest request and largest response, 6 MB (the service's model in botocore: BodyBlob)."""

_TIMED_OUT = (
    "Your invocation timed out while waiting for a response from container primary. Review the latency metrics for "
    "each container in Amazon CloudWatch, resolve the issue, and try again."
)
Held = Callable[[str, str], AbstractContextManager[Hosting | None]]
"""From a region and a name to what answers that endpoint's next request, kept running meanwhile."""


class Invocations:
    """The operations of sagemaker-runtime that wait for an answer."""

    def __init__(self, held: Held) -> None:
        """Take what finds and holds the hosting of an endpoint in service."""
        self._held = held
        self.operations: dict[str, Operation] = {
            "sagemaker-runtime.InvokeEndpoint": self.invoke_endpoint,
            "sagemaker-runtime.InvokeEndpointWithResponseStream": _refuse,
        }

    def invoke_endpoint(self, call: Call) -> dict[str, Any]:
        """Answer with what the container says; its errors become ModelError."""
        name = call.params["EndpointName"]
        with self._held(call.region, name) as hosting:
            if hosting is None:  # also while it is being created: the runtime does not know it yet
                raise ServiceError("ValidationError", f"Endpoint {name} of account {ACCOUNT_ID} not found.")
            if hosting.async_config:
                refuse_synchronous(name)
            variant = _variant(call, hosting)
            limit = (
                serverless.MAX_BODY_BYTES if isinstance(variant.fleet, serverless.ServerlessFleet) else MAX_BODY_BYTES
            )
            if len(call.params.get("Body", b"")) > limit:
                raise ServiceError("413", f"HTTP content length exceeded {limit} bytes.", status=413)
            if hosting.shadows:
                mirror(call, hosting, _ask)
            reply = _ask(call, variant)
            if hosting.capture and reply.status == 200:
                hosting.capture.capture(call, variant, reply)
        return _answer(call, variant, reply, limit)


def _variant(call: Call, hosting: Hosting) -> Variant:
    target = call.params.get("TargetVariant")
    if not target:
        return hosting.choose()
    if target not in hosting.variants:
        message = f"Variant {target} of endpoint {call.params['EndpointName']} not found."
        raise ServiceError("ValidationError", message)
    return hosting.variants[target]


def _ask(call: Call, variant: Variant) -> ContainerReply:
    """Send the request to an instance, and count what became of it."""
    body, headers = call.params.get("Body", b""), container_headers(call.params)
    with variant.metrics.invocation(lambda: variant.fleet.healthy_count) as outcome:
        try:
            reply = _timed(outcome, lambda: variant.fleet.invoke(body, headers))
        except InvocationTimedOut as error:
            raise _model_error(call, 0, _TIMED_OUT) from error
        except ModelNotServing as error:
            raise _model_error(call, 503, "Service Unavailable") from error
        except ServiceError as error:  # a serverless variant's throttling, which the model is not asked for
            outcome.status = error.status
            raise
        outcome.status = reply.status
    return reply


def _timed(outcome: Outcome, ask: Callable[[], ContainerReply]) -> ContainerReply:
    started = time.perf_counter()
    reply = ask()
    outcome.model_seconds = time.perf_counter() - started
    return reply


def _answer(call: Call, variant: Variant, reply: ContainerReply, limit: int) -> dict[str, Any]:
    if reply.status != 200:
        raise _model_error(call, reply.status, reply.body.decode("utf-8", "replace"))
    if len(reply.body) > limit:
        raise _model_error(call, 500, None)
    return {
        "Body": reply.body,
        "ContentType": reply.headers.get("content-type", "application/octet-stream"),
        "InvokedProductionVariant": variant.name,
        "CustomAttributes": reply.headers.get("x-amzn-sagemaker-custom-attributes"),
    }


def _model_error(call: Call, status: int, message: str | None) -> ServiceError:
    """Return ModelError as the service words it; `message` None: the response could not be loaded."""
    group = f"/aws/sagemaker/Endpoints/{call.params['EndpointName']}"
    console = f"https://{call.region}.console.aws.amazon.com/cloudwatch/home?region={call.region}#logEventViewer:group={group}"
    side = "client" if 400 <= status < 500 else "server"
    said = "and could not load the entire response body" if message is None else f'with message "{message}"'
    return ServiceError(
        "ModelError",
        f"Received {side} error ({status}) from primary {said}. See {console} in account {ACCOUNT_ID} for more "
        "information.",
        status=424,
        members={
            "OriginalStatusCode": status,
            "OriginalMessage": message or "",
            "LogStreamArn": f"arn:aws:logs:{call.region}:{ACCOUNT_ID}:log-group:{group}",
        },
    )


def _refuse(call: Call) -> dict[str, Any]:
    raise ServiceError("ValidationError", f"{call.operation} cannot be rehearsed yet.")
