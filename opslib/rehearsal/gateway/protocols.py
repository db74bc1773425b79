"""AWS's JSON protocols on the wire: a request's parameters out of it, a reply or an error into it.

`json` (one address, X-Amz-Target) and `rest-json` (address, query, headers and body) are read and written by the
service's model. Query and XML services (IAM, STS, S3) stay moto's; only their errors are written here.
"""

import base64
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from typing import Any
from xml.sax.saxutils import escape

from botocore.model import OperationModel, Shape
from botocore.utils import parse_timestamp

from opslib.rehearsal.calls import ServiceError

JSON_PROTOCOLS = frozenset({"json", "rest-json"})
_NO_NUMBERS = ("NaN", "Infinity", "-Infinity")
"""JSON has no such numbers; AWS writes them as text."""
_WHOLE_NUMBER = re.compile(r"-?[0-9]{1,20}")


@dataclass(frozen=True)
class Reply:
    """An HTTP reply."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    cookies: tuple[str, ...] = ()
    """Values of Set-Cookie, the one header that comes several times."""


def read_parameters(
    operation: OperationModel,
    body: bytes,
    uri: Mapping[str, str],
    query: Mapping[str, list[str]],
    headers: Mapping[str, str],
) -> dict[str, Any]:
    """Return a request's parameters in Python types (bytes for blobs, datetime for timestamps).

    Raises:
        ServiceError: SerializationException, when the body is not the JSON object that the service expects.
    """
    shape = operation.input_shape
    if shape is None:
        return {}
    payload = shape.serialization.get("payload")
    if payload and shape.members[payload].type_name == "blob":
        params = {payload: body}
    elif payload:
        params = {payload: _from_wire(shape.members[payload], _json_object(body))} if body else {}
    else:
        params = _from_wire(shape, _json_object(body))
    for name, member, place in _members_outside_body(shape):
        value = _value_outside_body(member, place, uri, query, headers)
        if value is not None:
            params[name] = value
    return params


@cache
def _members_outside_body(shape: Shape) -> list[tuple[str, Shape, tuple[str, str]]]:
    """Return the members that travel in the address or the headers, each with its place and its name there."""
    return [
        (name, member, (member.serialization["location"], member.serialization.get("name", name)))
        for name, member in shape.members.items()
        if "location" in member.serialization
    ]


def _value_outside_body(
    member: Shape,
    place_and_key: tuple[str, str],
    uri: Mapping[str, str],
    query: Mapping[str, list[str]],
    headers: Mapping[str, str],
) -> Any:
    place, key = place_and_key
    if place == "uri":
        return _from_text(member, uri.get(key))
    if place == "header":
        return _from_text(member, headers.get(key))
    if place == "querystring" and key in query:
        values = query[key]
        return (
            [_from_text(member.member, text) for text in values]
            if member.type_name == "list"
            else _from_text(member, values[0])
        )
    return None


def _json_object(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body) if body else {}
    except (ValueError, RecursionError) as error:  # the latter: nested too deeply
        raise ServiceError("SerializationException", f"Could not parse request body into json: {error}") from error
    if not isinstance(value, dict):
        raise ServiceError("SerializationException", "Start of structure or map found where not expected.")
    return value


def _from_wire(shape: Shape | None, value: Any) -> Any:
    """Turn JSON values into Python's; what does not fit stays as it is, for the validation to name."""
    if shape is None or value is None:
        return value
    kind = shape.type_name
    if isinstance(value, dict) and kind in {"structure", "map"} and not getattr(shape, "is_document_type", False):
        if kind == "map":
            return {key: _from_wire(shape.value, item) for key, item in value.items()}
        return {_member_name(shape, key): _from_wire(_member(shape, key), item) for key, item in value.items()}
    if kind == "list" and isinstance(value, list):
        return [_from_wire(shape.member, item) for item in value]
    return _scalar_from_wire(kind, value)


def _scalar_from_wire(kind: str, value: Any) -> Any:
    if kind == "blob" and isinstance(value, str):
        return _decoded(value)
    if kind == "timestamp" and isinstance(value, int | float | str) and not isinstance(value, bool):
        return _moment(value)
    if kind in {"double", "float"} and value in _NO_NUMBERS:
        return float(value)
    return value


def _moment(value: float | str) -> Any:
    try:
        return parse_timestamp(value)
    except (ValueError, OverflowError, RuntimeError):  # the last: botocore has tried all that it knows
        return value


def _member_name(shape: Shape, key: str) -> str:
    if key in shape.members:
        return key
    return next((name for name, member in shape.members.items() if member.serialization.get("name") == key), key)


def _member(shape: Shape, key: str) -> Shape | None:
    return shape.members.get(_member_name(shape, key))


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise ServiceError("SerializationException", f"a blob is not base64: {error}") from error


def _from_text(shape: Shape, text: str | None) -> Any:
    if text is None:
        return None
    kind = shape.type_name
    if kind in {"integer", "long"}:
        return int(text) if _WHOLE_NUMBER.fullmatch(text) else text
    if kind == "boolean":
        return {"true": True, "false": False}.get(text.lower(), text)
    return _moment(text) if kind == "timestamp" else text


def write_reply(operation: OperationModel, reply: dict[str, Any]) -> Reply:
    """Write a reply's members as the operation's protocol has it."""
    shape = operation.output_shape
    status = operation.http.get("responseCode", 200)
    headers = {"Content-Type": _content_type(operation)}
    members = dict(shape.members) if shape else {}
    for name, member in list(members.items()):
        place, value = member.serialization.get("location"), reply.get(name)
        if place == "header" and value is not None:
            headers[member.serialization.get("name", name)] = str(value)
        elif place == "statusCode" and value is not None:
            status = int(value)
        if place:
            del members[name]
    payload = shape.serialization.get("payload") if shape else None
    if payload:
        return Reply(status, headers, _payload_bytes(shape.members[payload], reply.get(payload)))
    body = {
        members[name].serialization.get("name", name): _to_wire(members[name], value)
        for name, value in reply.items()
        if name in members and value is not None
    }
    return Reply(
        status, headers, json.dumps(body).encode() if shape or operation.service_model.protocol == "json" else b""
    )


def _content_type(operation: OperationModel) -> str:
    if operation.service_model.protocol == "json":
        return f"application/x-amz-json-{operation.service_model.metadata.get('jsonVersion', '1.1')}"
    return "application/json"


def _payload_bytes(shape: Shape, value: Any) -> bytes:
    if shape.type_name == "blob":
        return value.encode() if isinstance(value, str) else bytes(value or b"")
    return json.dumps(_to_wire(shape, value)).encode()


def _to_wire(shape: Shape, value: Any) -> Any:
    kind = shape.type_name
    if kind == "structure" and not getattr(shape, "is_document_type", False):
        return {
            shape.members[name].serialization.get("name", name): _to_wire(shape.members[name], item)
            for name, item in value.items()
            if item is not None
        }
    if kind == "list":
        return [_to_wire(shape.member, item) for item in value]
    if kind == "map":
        return {key: _to_wire(shape.value, item) for key, item in value.items()}
    if kind == "blob":
        return base64.b64encode(value).decode()
    if kind == "timestamp":
        return _timestamp(shape, value)
    return value


def _timestamp(shape: Shape, value: datetime) -> Any:
    moment = value if value.tzinfo else value.replace(tzinfo=UTC)
    if shape.serialization.get("timestampFormat") == "iso8601":
        return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return round(moment.timestamp(), 3)


def write_error(protocol: str, service: str, error: ServiceError, request_id: str) -> Reply:
    """Write an error as the service's protocol has it."""
    if protocol in JSON_PROTOCOLS:
        return _json_error(service, error)
    if service == "s3":
        body = _xml("Error", _error_fields(error) + f"<RequestId>{request_id}</RequestId>")
        return Reply(error.status, {"Content-Type": "application/xml"}, body.encode())
    if protocol == "smithy-rpc-v2-cbor":
        return _cbor_error(error)
    inner = f"<Error><Type>Sender</Type>{_error_fields(error)}</Error><RequestId>{request_id}</RequestId>"
    return Reply(error.status, {"Content-Type": "text/xml"}, _xml("ErrorResponse", inner).encode())


def _json_error(service: str, error: ServiceError) -> Reply:
    fields = {"__type": error.code, "message": error.message, "Message": error.message, **error.members}
    if service == "lambda":
        fields = {"Type": "User" if error.status < 500 else "Service", "message": error.message, **error.members}
    headers = {"Content-Type": "application/json", "x-amzn-ErrorType": error.code}
    if "retryAfterSeconds" in fields:  # the one member of an error that the models place in a header
        headers["Retry-After"] = str(fields.pop("retryAfterSeconds"))
    return Reply(error.status, headers, json.dumps(fields, default=str).encode())


def _error_fields(error: ServiceError) -> str:
    return f"<Code>{escape(error.code)}</Code><Message>{escape(error.message)}</Message>"


def _xml(element: str, inner: str) -> str:
    return f'<?xml version="1.0" encoding="UTF-8"?>\n<{element}>{inner}</{element}>'


def _cbor_text(text: str) -> bytes:
    raw = text.encode()
    return b"\x7a" + len(raw).to_bytes(4, "big") + raw


def _cbor_error(error: ServiceError) -> Reply:
    pairs: Iterable[tuple[str, str]] = (("__type", error.code), ("message", error.message))
    body = b"\xa2" + b"".join(_cbor_text(key) + _cbor_text(value) for key, value in pairs)
    return Reply(error.status, {"Content-Type": "application/cbor", "smithy-protocol": "rpc-v2-cbor"}, body)
