"""InvokeEndpoint: a request to an instance of the endpoint, and what SageMaker makes of the container's answer.

Source: docs.aws.amazon.com/sagemaker/latest/APIReference/API_runtime_InvokeEndpoint.html; the wording of the errors is
that of the service.
"""

from typing import Any

from opslib.rehearsal.calls import ACCOUNT_ID, Call, Operation, ServiceError
from opslib.rehearsal.endpoints import serverless
from opslib.rehearsal.endpoints.asking import ask, model_error
from opslib.rehearsal.endpoints.async_invocations import Held, refuse_synchronous
from opslib.rehearsal.endpoints.container_client import ContainerReply
from opslib.rehearsal.endpoints.hosting import Hosting, Variant
from opslib.rehearsal.endpoints.shadow import mirror

MAX_BODY_BYTES = 25 * 2**20
"""Largest request and largest response, 25 MB (SageMaker's hosting FAQs, which are newer than BodyBlob in botocore)."""

_UNREHEARSED = (
    "TargetModel", "TargetContainerHostname", "EnableExplanations", "InferenceComponentName", "SessionId",
    "PrefixAwareId",
)  # fmt: skip


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
            _refuse_unrehearsed(call)
            variant = _variant(call, hosting)
            limit = (
                serverless.MAX_BODY_BYTES if isinstance(variant.fleet, serverless.ServerlessFleet) else MAX_BODY_BYTES
            )
            if len(call.params.get("Body", b"")) > limit:
                raise ServiceError("413", f"HTTP content length exceeded {limit} bytes.", status=413)
            if hosting.shadows:
                mirror(call, hosting)
            reply = ask(call, variant, arrived=call.arrived)
            if hosting.capture and reply.status == 200:
                hosting.capture.capture(call, variant.name, reply)
        return _answer(call, variant, reply, limit)


def _refuse_unrehearsed(call: Call) -> None:
    names = [name for name in _UNREHEARSED if call.params.get(name)]
    if names:
        raise ServiceError(
            "ValidationError",
            f"{', '.join(names)} cannot be used with endpoint {call.params['EndpointName']}: it serves one model in "
            "one container, without explanations, inference components or sessions.",
        )


def _variant(call: Call, hosting: Hosting) -> Variant:
    target = call.params.get("TargetVariant")
    if not target:
        return hosting.choose()
    if target not in hosting.variants:
        message = f"Variant {target} of endpoint {call.params['EndpointName']} not found."
        raise ServiceError("ValidationError", message)
    return hosting.variants[target]


def _answer(call: Call, variant: Variant, reply: ContainerReply, limit: int) -> dict[str, Any]:
    if reply.status != 200:
        raise model_error(call, reply.status, reply.body.decode("utf-8", "replace"))
    if len(reply.body) > limit:
        raise model_error(call, 500, None)
    return {
        "Body": reply.body,
        "ContentType": reply.headers.get("content-type", "application/octet-stream"),
        "InvokedProductionVariant": variant.name,
        "CustomAttributes": reply.headers.get("x-amzn-sagemaker-custom-attributes"),
    }


def _refuse(call: Call) -> dict[str, Any]:
    raise ServiceError("ValidationError", f"{call.operation} cannot be rehearsed yet.")
