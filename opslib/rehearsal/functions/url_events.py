"""What a function URL makes of a request, and of what the function returns: payload format 2.0.

Source: docs.aws.amazon.com/lambda/latest/dg/urls-invocation.html.
"""

import base64
import binascii
import json
import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import parse_qsl

from opslib.rehearsal.calls import ACCOUNT_ID, Principal
from opslib.rehearsal.gateway.incoming import Incoming
from opslib.rehearsal.gateway.protocols import Reply

_TEXTS = ("text/", "application/json", "application/javascript", "application/xml", "application/x-www-form-urlencoded")
"""Content types whose bodies stand in the event as they are; others are base64."""

_OWN_HEADERS = frozenset({"connection", "content-length", "date", "transfer-encoding", "set-cookie"})
"""What the server says itself, whatever the function returns."""

_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


@dataclass(frozen=True)
class UrlRequest:
    """A request of a function URL: as it came, the URL's id, its path behind that, who signed it, and when it came."""

    incoming: Incoming
    url_id: str
    path: str
    principal: Principal | None
    moment: datetime


def build_event(request: UrlRequest) -> dict[str, Any]:
    """Return the event that the function gets."""
    incoming = request.incoming
    headers = {name: value for name, value in incoming.headers.items() if name != "cookie"}
    event: dict[str, Any] = {
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": request.path,  # as it came: unlike an HTTP API, a function URL decodes nothing
        "rawQueryString": incoming.signed.query,
        "headers": headers,
        "requestContext": _request_context(request),
        "isBase64Encoded": False,
    }
    if cookie := incoming.headers.get("cookie"):
        event["cookies"] = [one.strip() for one in cookie.split(";")]
    if values := _query_values(incoming.signed.query):
        event["queryStringParameters"] = values
    if incoming.body:
        event |= _body(incoming.body, headers.get("content-type", ""))
    return event


def _request_context(request: UrlRequest) -> dict[str, Any]:
    incoming, principal = request.incoming, request.principal
    context: dict[str, Any] = {
        "accountId": ACCOUNT_ID if principal else "anonymous",
        "apiId": request.url_id,
        "domainName": incoming.headers.get("host", ""),
        "domainPrefix": request.url_id,
        "http": {
            "method": incoming.signed.method,
            "path": request.path,
            "protocol": "HTTP/1.1",
            "sourceIp": incoming.environ["REMOTE_ADDR"],
            "userAgent": incoming.headers.get("user-agent", ""),
        },
        "requestId": incoming.request_id,
        "routeKey": "$default",
        "stage": "$default",
        "time": request.moment.strftime("%d/%b/%Y:%H:%M:%S %z"),
        "timeEpoch": int(request.moment.timestamp() * 1000),
    }
    if principal:
        iam = {"accessKey": principal.access_key_id, "accountId": ACCOUNT_ID, "userArn": principal.arn}
        context["authorizer"] = {"iam": iam}
    return context


def _query_values(query: str) -> dict[str, str]:
    values: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        values[name] = f"{values[name]},{value}" if name in values else value
    return values


def _body(body: bytes, content_type: str) -> dict[str, Any]:
    if content_type.lower().startswith(_TEXTS):
        try:
            return {"body": body.decode(), "isBase64Encoded": False}
        except UnicodeDecodeError:  # text in another encoding goes the way of what is no text
            pass
    return {"body": base64.b64encode(body).decode(), "isBase64Encoded": True}


def read_result(payload: bytes) -> Reply:
    """Return the reply that a function's result asks for; what has no `statusCode` is the body of a 200.

    Raises:
        ValueError: it is no reply of HTTP, which a function URL answers with 502.
    """
    result = json.loads(payload)
    if not isinstance(result, dict) or "statusCode" not in result:
        body = result.encode() if isinstance(result, str) else payload
        return Reply(200, {"Content-Type": "application/json"}, body)
    status = int(result["statusCode"])
    if not 200 <= status <= 599:
        raise ValueError(f"{status} is no status of an answer")
    headers = {"Content-Type": "application/json"}
    for name, value in dict(result.get("headers") or {}).items():
        if not _HEADER_NAME.fullmatch(str(name)):
            raise ValueError(f"{name!r} is no name of a header")
        if str(name).lower() not in _OWN_HEADERS:
            _set(headers, str(name), _one_line(str(value)))
    cookies = tuple(_one_line(str(one)) for one in result.get("cookies") or ())
    return Reply(status, headers, _reply_body(result), cookies)


def _set(headers: dict[str, str], name: str, value: str) -> None:
    """Set a header, in whatever case it stands there already."""
    for known in [one for one in headers if one.lower() == name.lower()]:
        del headers[known]
    headers[name] = value


def _one_line(text: str) -> str:
    """Refuse what would end a header, and begin another one or the body."""
    if any(character in text for character in "\r\n\0"):
        raise ValueError(f"{text!r} is no header")
    return text


def _reply_body(result: dict[str, Any]) -> bytes:
    body = result.get("body")
    if body is None:
        return b""
    if not isinstance(body, str):
        raise ValueError("the body of a reply is text")
    try:
        return base64.b64decode(body, validate=True) if result.get("isBase64Encoded") else body.encode()
    except binascii.Error as error:
        raise ValueError("the body is no base64") from error
