"""A variant is asked: what of a request reaches the container, what is counted, and how the service words its errors.

SageMaker strips all headers but the forwarded ones. Source:
docs.aws.amazon.com/sagemaker/latest/APIReference/API_runtime_InvokeEndpoint.html
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

from opslib.rehearsal.calls import ACCOUNT_ID, Call, ServiceError
from opslib.rehearsal.endpoints.container_client import ContainerReply
from opslib.rehearsal.endpoints.hosting import Variant
from opslib.rehearsal.endpoints.instances import InvocationTimedOut, ModelNotServing
from opslib.rehearsal.endpoints.metrics import Outcome

_FORWARDED = {
    "ContentType": "Content-Type",
    "Accept": "Accept",
    "CustomAttributes": "X-Amzn-SageMaker-Custom-Attributes",
    "InferenceId": "X-Amzn-SageMaker-Inference-Id",
}
_TIMED_OUT = (
    "Your invocation timed out while waiting for a response from container primary. Review the latency metrics for "
    "each container in Amazon CloudWatch, resolve the issue, and try again."
)


def ask(
    call: Call, variant: Variant, *, arrived: float | None = None, timeout_seconds: float | None = None
) -> ContainerReply:
    """Send a request's Body to an instance, and count what became of it; the time-out is 60 seconds if none is given.

    The overhead is counted from `arrived` on, in seconds of `time.perf_counter`; from now on if none is given.

    Raises:
        ServiceError: ModelError; there was no answer. ThrottlingException; of a serverless variant.
    """
    body, headers = call.params.get("Body", b""), _container_headers(call.params)
    with variant.metrics.invocation(lambda: variant.fleet.healthy_count) as outcome:
        outcome.started = arrived or outcome.started
        try:
            reply = _timed(outcome, lambda: variant.fleet.invoke(body, headers, timeout_seconds=timeout_seconds))
        except InvocationTimedOut as error:
            raise model_error(call, 0, _TIMED_OUT) from error
        except ModelNotServing as error:
            raise model_error(call, 503, "Service Unavailable") from error
        except ServiceError as error:  # a serverless variant's throttling, which the model is not asked for
            outcome.status = error.status
            raise
        outcome.status = reply.status
    return reply


def _timed(outcome: Outcome, ask: Callable[[], ContainerReply]) -> ContainerReply:
    started = time.perf_counter()
    reply = ask()
    outcome.model_seconds = time.perf_counter() - started - reply.setup_seconds  # cold starts are overhead, as on AWS
    return reply


def model_error(call: Call, status: int, message: str | None) -> ServiceError:
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


def _container_headers(params: Mapping[str, Any]) -> dict[str, str]:
    """Return the headers that a container gets with a request of these parameters."""
    return {"Accept": "*/*"} | {header: params[name] for name, header in _FORWARDED.items() if name in params}
