"""What SNS topics are told of asynchronous invocations, as the model's role.

Source: docs.aws.amazon.com/sagemaker/latest/dg/async-inference-check-predictions.html and
docs.aws.amazon.com/sagemaker/latest/APIReference/API_AsyncInferenceNotificationConfig.html
"""

import base64
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from opslib.rehearsal.endpoints.backlogs import QueuedRequest
from opslib.rehearsal.endpoints.container_client import ContainerReply
from opslib.rehearsal.endpoints.hosting import Hosting
from opslib.rehearsal.functions.destinations import deliver

MOST_RESPONSE_BYTES = 128 * 1024
"""Larger responses are not included in a notification."""
_REQUEST = {
    "accept": "Accept",
    "contentType": "ContentType",
    "customAttributes": "CustomAttributes",
    "endpointName": "EndpointName",
    "inputLocation": "InputLocation",
}


def notify(
    request: QueuedRequest, hosting: Hosting, now: datetime, *, reply: ContainerReply | None, reason: str = ""
) -> bool:
    """Tell the topic for it how an invocation ended: with the model's reply, or for a reason without a good one.

    Returns:
        False: there is such a topic in the configuration, and it could not be told.
    """
    config = hosting.async_config["OutputConfig"].get("NotificationConfig", {})
    kind, member = ("ERROR", "ErrorTopic") if reason else ("SUCCESS", "SuccessTopic")
    if not config.get(member):
        return True
    outcome = _failure(reason) if reason else _success(request, reply)
    if reply and f"{kind}_NOTIFICATION_TOPIC" in config.get("IncludeInferenceResponseIn", []):
        outcome |= _response(reply)
    message = _message(request, now) | outcome
    return deliver(hosting.settings.role_arn, config[member], json.dumps(message), {})


def _message(request: QueuedRequest, now: datetime) -> dict[str, Any]:
    params: Mapping[str, Any] = request.call.params
    return {
        "awsRegion": request.call.region,
        "eventTime": _stamp(now),
        "receivedTime": _stamp(datetime.fromtimestamp(request.queued_at, UTC)),
        "requestParameters": {shown: params[name] for shown, name in _REQUEST.items() if name in params},
        "inferenceId": request.inference_id,
        "eventVersion": "1.0",
        "eventSource": "aws:sagemaker",
        "eventName": "InferenceResult",
    }


def _success(request: QueuedRequest, reply: ContainerReply) -> dict[str, Any]:
    where = {"outputLocation": request.output_uri} if request.output_uri else {}
    parameters = {"contentType": reply.headers.get("content-type", "application/octet-stream"), **where}
    return {"invocationStatus": "Completed", "responseParameters": parameters}


def _failure(reason: str) -> dict[str, Any]:
    return {"invocationStatus": "Failed", "failureReason": f"ClientError: {reason}"}


def _response(reply: ContainerReply) -> dict[str, Any]:
    if len(reply.body) > MOST_RESPONSE_BYTES:
        return {}
    return {"responseBody": {"content": base64.b64encode(reply.body).decode(), "encoding": "BASE64"}}


def _stamp(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"
