"""Lambda function in front of a SageMaker endpoint: a photo or its URL in, the scores and the prediction out.

Deploy this one file with the handler `lambda_function.lambda_handler`. Its variable ENDPOINT_NAME names the endpoint.

Events, each with its own answer:

    {"url": "https://..."}                          the model fetches the photo, if the endpoint allows that host
    {"image": "<base64>", "content_type": "..."}    the photo itself; content_type is optional
    API Gateway (REST, HTTP) or function URL        POST with the photo as body, or with one of the two above as JSON

To the first two the answer is `{"statusCode", "headers", "type-result", "COntent-Type-In", "body", "prediction"}`:
`body` is JSON, a list of lists of raw scores in class order, and `prediction` has `label`, `probability` and `top_k`.
API Gateway refuses keys it does not know ("malformed Lambda proxy response"), so it gets `statusCode`, `headers`,
`body` and `isBase64Encoded` only; with `Accept: application/json;verbose` the body is the whole prediction instead.

Errors are answers, too: `statusCode` 4xx or 5xx, `body` `{"error": {"code": ..., "message": ...}}`.
"""

import base64
import binascii
import json
import logging
import os
import re
import time
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, ReadTimeoutError

VERBOSE = "application/json;verbose"
MAX_PHOTO_BYTES = 6 * 1024 * 1024
"""Lambda takes 6 MB of a request, photo and base64 together; an endpoint would take 25 MB."""

CONNECT_SECONDS = 1.0
MARGIN_SECONDS = 0.5
"""Kept back from the function's time for the answer to be written."""

PHRASES = {
    400: "BadRequest",
    403: "Forbidden",
    404: "NotFound",
    405: "MethodNotAllowed",
    406: "NotAcceptable",
    413: "PayloadTooLarge",
    415: "UnsupportedMediaType",
    422: "UnprocessableContent",
    429: "TooManyRequests",
    500: "InternalError",
    502: "BadGateway",
    503: "ServiceUnavailable",
    504: "GatewayTimeout",
}

_BUSY = (429, "too many requests at once: try again", True)
_AWAY = (503, "the endpoint is not available: try again", True)
_ABSENT = (503, "the endpoint is not in service", False)
_DENIED = (500, "the function's role may not invoke its endpoint", True)  # a new policy needs seconds to spread
REFUSALS = {
    "ThrottlingException": _BUSY,
    "TooManyRequestsException": _BUSY,
    "ServiceUnavailable": _AWAY,
    "ServiceUnavailableException": _AWAY,
    "InternalFailure": _AWAY,
    "InternalDependencyException": _AWAY,
    "ModelNotReadyException": _AWAY,
    "ValidationError": _ABSENT,
    "ValidationException": _ABSENT,
    "AccessDenied": _DENIED,
    "AccessDeniedException": _DENIED,
}
"""InvokeEndpoint's error code to the status of the answer, its message, and whether trying again may help."""

log = logging.getLogger(__name__)
_container: dict[str, Any] = {}
"""What outlives an invocation: the client, and the seconds that one of its calls may take."""

if os.environ.get("AWS_EXECUTION_ENV", "").startswith("AWS_Lambda_"):
    # The SDK's models are read while the environment starts: at full speed, and ahead of time where it is provisioned.
    boto3.client("sagemaker-runtime")


class RequestError(Exception):
    """A request that is answered with an error: HTTP status and what is wrong, fit for the caller's eyes."""

    def __init__(self, status: int, message: str) -> None:
        """Keep status and message, without ARNs and account ids."""
        super().__init__(message)
        self.status = status
        self.message = _without_identities(message)


def lambda_handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    """Answer one event; see the module's docstring for the forms of events and answers."""
    deadline = time.monotonic() + context.get_remaining_time_in_millis() / 1000 - MARGIN_SECONDS
    is_proxy = isinstance(event, dict) and "requestContext" in event
    content_type = ""
    try:
        body, content_type = _read_proxy_event(event) if is_proxy else _read_event(event)
        answer = _ask_endpoint(body, content_type, deadline)
        if is_proxy:
            return _proxy_answer(200, answer if _wants_verbose(event) else answer["scores"])
        return _answer(200, content_type, answer["scores"]) | {"prediction": _prediction(answer)}
    except RequestError as error:
        log.warning("answered %d: %s", error.status, error.message)
        reason = {"error": {"code": PHRASES.get(error.status, "Error"), "message": error.message}}
        return _proxy_answer(error.status, reason) if is_proxy else _answer(error.status, content_type, reason)


def _read_event(event: Any) -> tuple[bytes, str]:
    """Return body and content type for the endpoint: JSON for a URL, the photo's bytes for an image."""
    if isinstance(event, dict) and isinstance(event.get("url"), str):
        return json.dumps({"url": event["url"]}).encode(), "application/json"
    if isinstance(event, dict) and isinstance(event.get("image"), str):
        return _decode(event["image"]), _photo_type(event.get("content_type") or "application/x-image")
    raise RequestError(400, 'the event is neither {"url": "https://..."} nor {"image": "<base64>"}')


def _read_proxy_event(event: dict[str, Any]) -> tuple[bytes, str]:
    """Return body and content type of an HTTP request: events of version 1.0 and 2.0 and of function URLs."""
    http = _mapping(_mapping(event["requestContext"]).get("http"))
    method = event.get("httpMethod") or http.get("method") or "POST"
    if method != "POST":
        raise RequestError(405, f"{str(method)[:20]} is not offered here: POST a photo")
    content_type = _header(event, "content-type").partition(";")[0].strip().lower()
    text = event.get("body") or ""
    if not isinstance(text, str):
        raise RequestError(400, "the body of the request is not a text")
    is_base64 = event.get("isBase64Encoded") is True
    if content_type == "application/json":
        return _read_event(_parse(_decode(text) if is_base64 else text))
    photo_type = _photo_type(content_type)
    if not is_base64:
        raise RequestError(400, "the photo came as text: add image/* to the API's binary media types")
    return _decode(text), photo_type


def _photo_type(content_type: Any) -> str:
    """Return a photo's content type; anything else must not get into the header of our own request."""
    text = str(content_type).strip().lower()
    if not re.fullmatch(r"image/[\w.+-]{1,64}|application/x-image", text, re.ASCII):
        shown = text[:50] or "missing"
        raise RequestError(415, f"the content type is {shown}: send image/jpeg, image/png or image/webp")
    return text


def _mapping(value: Any) -> dict[str, Any]:
    """Return the value if it is a mapping, else an empty one: not every event comes from API Gateway."""
    return value if isinstance(value, dict) else {}


def _header(event: dict[str, Any], name: str) -> str:
    headers = _mapping(event.get("headers"))
    return next((str(value) for key, value in headers.items() if key.lower() == name), "")


def _wants_verbose(event: dict[str, Any]) -> bool:
    return "".join(_header(event, "accept").lower().split()) == VERBOSE


def _parse(body: bytes | str) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:  # the latter: nested too deeply
        raise RequestError(400, "the body is not JSON") from error


def _decode(text: str) -> bytes:
    try:
        photo = base64.b64decode(text.partition(",")[2] if text.startswith("data:") else text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError(400, "the photo is not valid base64") from error
    if not photo:
        raise RequestError(400, "the photo is empty")
    if len(photo) > MAX_PHOTO_BYTES:
        raise RequestError(413, f"the photo has {len(photo)} bytes; the endpoint takes {MAX_PHOTO_BYTES}")
    return photo


def _client(deadline: float) -> Any:
    """Return the container's one client; one call of it leaves time for a second after a quick refusal."""
    if "client" not in _container:
        left = deadline - time.monotonic()
        _container["seconds"] = max(0.5, 0.8 * left - CONNECT_SECONDS)
        config = Config(
            connect_timeout=CONNECT_SECONDS,
            read_timeout=_container["seconds"],
            retries={"mode": "standard", "total_max_attempts": 1},  # botocore would repeat a time-out past our own
        )
        _container["client"] = boto3.client("sagemaker-runtime", config=config)
    return _container["client"]


def _ask_endpoint(body: bytes, content_type: str, deadline: float) -> dict[str, Any]:
    endpoint = os.environ.get("ENDPOINT_NAME", "")
    if not endpoint:
        raise RequestError(500, "the function has no ENDPOINT_NAME in its environment")
    attempt = 0
    while True:
        attempt += 1
        try:
            answer = _client(deadline).invoke_endpoint(
                EndpointName=endpoint, Body=body, ContentType=content_type, Accept=VERBOSE
            )
            return _parse_answer(answer["Body"].read())
        except (ClientError, BotoCoreError) as error:
            refusal, may_pass = _explain(error)
            pause_seconds = 0.1 * 2**attempt
            time_left = deadline - time.monotonic() - pause_seconds
            if not may_pass or time_left < CONNECT_SECONDS + _container["seconds"]:
                raise refusal from error
            time.sleep(pause_seconds)


def _parse_answer(body: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(body)
        if {"predicted_label", "top_k", "scores"} <= answer.keys():
            return answer
    except (ValueError, RecursionError, AttributeError) as error:
        raise RequestError(502, "the endpoint's answer is not JSON") from error
    raise RequestError(502, "the endpoint's answer has no prediction")


def _explain(error: ClientError | BotoCoreError) -> tuple[RequestError, bool]:
    """Return what to answer to a refusal, and whether trying again may help."""
    if isinstance(error, ReadTimeoutError):
        return RequestError(504, "the endpoint did not answer in time"), False
    if isinstance(error, BotoCoreError):
        return RequestError(503, "the endpoint could not be reached"), True
    code = error.response.get("Error", {}).get("Code", "")
    if code == "ModelError":
        return _explain_model_error(error), False
    status, message, may_pass = REFUSALS.get(code, (502, f"the endpoint refused the request ({code})", False))
    return RequestError(status, message), may_pass


def _explain_model_error(error: ClientError) -> RequestError:
    """Pass on what the model says of the caller's photo; its own failures are a bad gateway's.

    Status 0 is SageMaker's for a container that did not answer within 60 seconds.
    """
    status = int(error.response.get("OriginalStatusCode") or 0)
    words = str(error.response.get("OriginalMessage") or "")
    if 400 <= status < 500:
        return RequestError(status, _reason(words))
    if status == 0:
        return RequestError(504, "the model did not answer in time")
    return RequestError(502, "the model failed; its log lines say why")


def _reason(words: str) -> str:
    """Return the message in a model's JSON error, or its words as they are; never its traceback.

    AWS's inference toolkit answers with the message, a line end, and the traceback.
    """
    words = words.partition("\nTraceback (most recent call last):")[0]
    try:
        found = json.loads(words)
    except (ValueError, RecursionError):
        return words[:500]
    if isinstance(found, dict):
        inner = found.get("error", found)
        inner = inner.get("message", inner) if isinstance(inner, dict) else inner
        return str(inner)[:500]
    return words[:500]


def _without_identities(text: str) -> str:
    return re.sub(r"(?<!\d)\d{12}(?!\d)", "************", re.sub(r"arn:[\w-]+:[^\s\"']+", "(an AWS resource)", text))


def _prediction(answer: dict[str, Any]) -> dict[str, Any]:
    top = answer["top_k"]
    return {"label": answer["predicted_label"], "probability": top[0]["probability"] if top else None, "top_k": top}


def _answer(status: int, content_type: str, body: Any) -> dict[str, Any]:
    text = json.dumps(body)
    return {
        "statusCode": status,
        "headers": {"Content-Type": "application/json", "Access-Control-Allow-Origin": "*"},
        "type-result": str(type(text)),
        "COntent-Type-In": content_type,
        "body": text,
    }


def _proxy_answer(status: int, body: Any) -> dict[str, Any]:
    return {
        "statusCode": status,
        "headers": {"Content-Type": "application/json", "Access-Control-Allow-Origin": "*"},
        "body": json.dumps(body),
        "isBase64Encoded": False,
    }
