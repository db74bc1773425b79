"""InvokeEndpoint: a request to an instance of the endpoint, and what SageMaker makes of the container's answer.

Source: docs.aws.amazon.com/sagemaker/latest/APIReference/API_runtime_InvokeEndpoint.html; the wording of the errors is
that of the service.
"""

from collections.abc import Callable
from typing import Any

from opslib.rehearsal.calls import ACCOUNT_ID, Call, Operation, ServiceError
from opslib.rehearsal.endpoints.fleet import ContainerReply, InvocationTimedOut, ModelNotServing
from opslib.rehearsal.endpoints.hosting import Hosting, Variant

MAX_BODY_BYTES = 6_291_456
"""Largest request and largest response, 6 MB (the service's model in botocore: BodyBlob)."""

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


class Invocations:
    """The operations of sagemaker-runtime."""

    def __init__(self, find: Callable[[str, str], Hosting | None]) -> None:
        """Take what finds the hosting of an endpoint in service, by region and name."""
        self._find = find
        self.operations: dict[str, Operation] = {
            "sagemaker-runtime.InvokeEndpoint": self.invoke_endpoint,
            "sagemaker-runtime.InvokeEndpointAsync": _refuse,
            "sagemaker-runtime.InvokeEndpointWithResponseStream": _refuse,
        }

    def invoke_endpoint(self, call: Call) -> dict[str, Any]:
        """Answer with what the container says; its errors become ModelError."""
        params, body = call.params, call.params.get("Body", b"")
        if len(body) > MAX_BODY_BYTES:
            raise ServiceError("413", f"HTTP content length exceeded {MAX_BODY_BYTES} bytes.", status=413)
        variant = self._variant(call)
        headers = {header: params[name] for name, header in _FORWARDED.items() if name in params}
        try:
            reply = variant.fleet.invoke(body, {"Accept": "*/*", **headers})
        except InvocationTimedOut as error:
            raise _model_error(call, 0, _TIMED_OUT) from error
        except ModelNotServing as error:
            raise _model_error(call, 503, "Service Unavailable") from error
        if reply.status != 200:
            raise _model_error(call, reply.status, reply.body.decode("utf-8", "replace"))
        return _answer(call, variant, reply)

    def _variant(self, call: Call) -> Variant:
        name, target = call.params["EndpointName"], call.params.get("TargetVariant")
        hosting = self._find(call.region, name)
        if hosting is None:  # also while it is being created: the runtime does not know it yet
            raise ServiceError("ValidationError", f"Endpoint {name} of account {ACCOUNT_ID} not found.")
        if target and target not in hosting.variants:
            raise ServiceError("ValidationError", f"Variant {target} of endpoint {name} not found.")
        return hosting.variants[target] if target else hosting.choose()


def _answer(call: Call, variant: Variant, reply: ContainerReply) -> dict[str, Any]:
    if len(reply.body) > MAX_BODY_BYTES:
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
