"""Function URLs: addresses at which a function answers HTTP, signed by the caller or, if the policy says so, open.

One server on 127.0.0.1 has them all, as `http://127.0.0.1:<port>/<url-id>/`: AWS gives each a host name of its own.
Sources: docs.aws.amazon.com/lambda/latest/dg/urls-configuration.html, urls-auth.html and urls-monitoring.html.
"""

import json
import socket
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any

from moto.awslambda.models import LambdaFunction

from opslib.rehearsal.calls import Call, Operation, Principal, ServiceError
from opslib.rehearsal.functions.aliases import routed
from opslib.rehearsal.functions.cors import cors_headers, is_preflight
from opslib.rehearsal.functions.invocations import MAX_PAYLOAD_BYTES, Invocations
from opslib.rehearsal.functions.metrics import FunctionMetrics, Target
from opslib.rehearsal.functions.records import find_function, page
from opslib.rehearsal.functions.resource_policy import policy_of
from opslib.rehearsal.functions.runner import Event
from opslib.rehearsal.functions.url_events import UrlRequest, build_event, read_result
from opslib.rehearsal.gateway.actions import Need
from opslib.rehearsal.gateway.gate import authenticate
from opslib.rehearsal.gateway.http_server import HttpServer
from opslib.rehearsal.gateway.incoming import Incoming
from opslib.rehearsal.gateway.permissions import Decision, decide, statements_of
from opslib.rehearsal.gateway.protocols import Reply
from opslib.rehearsal.identity import require_permission

_ACTIONS = ("lambda:InvokeFunctionUrl", "lambda:InvokeFunction")
"""Both are needed, for URLs made since October 2025."""


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


@dataclass
class FunctionUrl:
    """One address: whose it is, and how it is set."""

    target: Target
    settings: dict[str, Any]
    url_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: str = field(default_factory=_now)
    modified: str = field(default_factory=_now)


class FunctionUrls:
    """The operations on function URLs, and the server behind the URLs."""

    def __init__(
        self, find: Callable[[Call], LambdaFunction], invocations: Invocations, metrics: FunctionMetrics
    ) -> None:
        """Take what finds a function and what runs it; the server starts with the first URL."""
        self._find = find
        self._invocations = invocations
        self._metrics = metrics
        self._urls: dict[Target, FunctionUrl] = {}
        self._server: HttpServer | None = None
        self._lock = threading.Lock()
        self.operations: dict[str, Operation] = {
            "lambda.CreateFunctionUrlConfig": self.create,
            "lambda.GetFunctionUrlConfig": self.get,
            "lambda.UpdateFunctionUrlConfig": self.update,
            "lambda.DeleteFunctionUrlConfig": self.delete,
            "lambda.ListFunctionUrlConfigs": self.list,
        }

    def stop(self) -> None:
        """Stop answering."""
        with self._lock:
            server, self._server = self._server, None
        if server:
            server.stop()

    def forget(self, region: str, name: str) -> None:
        """Drop the URLs of a function that is deleted."""
        for target in [one for one in list(self._urls) if (one.region, one.name) == (region, name)]:
            self._urls.pop(target, None)

    def create(self, call: Call) -> dict[str, Any]:
        """Give a function or an alias an address."""
        target = self._target(call)
        if target in self._urls:
            arn = target.resource_arn
            reason = f"Failed to create function url config for [functionArn = {arn}]. Error message:  "
            message = f"{reason}FunctionUrlConfig exists for this Lambda function"
            raise ServiceError("ResourceConflictException", message, status=409)
        _require_buffered(call)
        settings = {name: call.params[name] for name in ("AuthType", "Cors") if name in call.params}
        url = self._urls[target] = FunctionUrl(target, settings)
        return {name: value for name, value in self._shown(url).items() if name != "LastModifiedTime"}

    def get(self, call: Call) -> dict[str, Any]:
        """Return how an address is set."""
        return self._shown(self._existing(call))

    def update(self, call: Call) -> dict[str, Any]:
        """Change who may call, or from which origins."""
        url = self._existing(call)
        _require_buffered(call)
        url.settings |= {name: call.params[name] for name in ("AuthType", "Cors") if name in call.params}
        url.modified = _now()
        return self._shown(url)

    def delete(self, call: Call) -> dict[str, Any]:
        """Take an address away."""
        del self._urls[self._existing(call).target]
        return {}

    def list(self, call: Call) -> dict[str, Any]:
        """Return a page of a function's addresses."""
        function = self._find(call)
        ours = [one for key, one in sorted(self._urls.items()) if (key.region, key.name) == _name(function)]
        return page(call, "FunctionUrlConfigs", [self._shown(one) for one in ours])

    def _target(self, call: Call) -> Target:
        return Target.of(call, self._find(call)).without_latest

    def _existing(self, call: Call) -> FunctionUrl:
        url = self._urls.get(self._target(call))
        if url is None:
            reason = "The resource you requested does not exist."
            raise ServiceError("ResourceNotFoundException", reason, status=404)
        return url

    def _shown(self, url: FunctionUrl) -> dict[str, Any]:
        return {
            "FunctionUrl": f"http://127.0.0.1:{self._port()}/{url.url_id}/",
            "FunctionArn": url.target.resource_arn,
            "InvokeMode": "BUFFERED",
            "CreationTime": url.created,
            "LastModifiedTime": url.modified,
            **url.settings,
        }

    def _port(self) -> int:
        with self._lock:
            if self._server is None:
                self._server = HttpServer(socket.create_server(("127.0.0.1", 0)), self.respond)
                self._server.start()
            return self._server.server_address[1]

    def respond(self, environ: dict[str, Any], body: bytes) -> Reply:
        """Answer a request of any of the URLs."""
        incoming, started = Incoming(environ, body, str(uuid.uuid4())), time.perf_counter()
        url_id, _, path = incoming.signed.path.lstrip("/").partition("/")
        url = next((one for one in list(self._urls.values()) if one.url_id == url_id), None)
        if url is None:
            return _finished(_forbidden(), incoming, {})
        reply = self._answer(url, f"/{path}", incoming)
        self._metrics.write_url_request(url.target, reply.status, 1000 * (time.perf_counter() - started))
        return _finished(reply, incoming, cors_headers(url.settings.get("Cors", {}), incoming.headers))

    def _answer(self, url: FunctionUrl, path: str, incoming: Incoming) -> Reply:
        if is_preflight(url.settings.get("Cors", {}), incoming.signed.method, incoming.headers):
            return Reply(200)
        try:
            function = find_function(url.target.region, url.target.name, url.target.qualifier)
            principal = _admitted(url, function, incoming)
            event = build_event(UrlRequest(incoming, url.url_id, path, principal, datetime.now(UTC)))
            return self._run(url, function, incoming.request_id, json.dumps(event).encode())
        except ServiceError as error:
            headers = {"Content-Type": "application/json", "x-amzn-ErrorType": error.code}
            if "retryAfterSeconds" in error.members:
                headers["Retry-After"] = error.members["retryAfterSeconds"]
            return Reply(error.status, headers, json.dumps({"Message": error.message}).encode())

    def _run(self, url: FunctionUrl, function: LambdaFunction, request_id: str, payload: bytes) -> Reply:
        if len(payload) > MAX_PAYLOAD_BYTES["RequestResponse"]:
            raise ServiceError("RequestEntityTooLargeException", "Request Entity Too Large", status=413)
        version = routed(function, url.target.qualifier)
        outcome = self._invocations.run_now(Event(version, url.target, request_id, payload))
        try:
            if not outcome.function_error:
                return read_result(outcome.payload)
        except (ValueError, TypeError, RecursionError):  # a function can return anything
            pass
        return Reply(502, {"Content-Type": "application/json"}, b"Internal Server Error")


def _admitted(url: FunctionUrl, function: LambdaFunction, incoming: Incoming) -> Principal | None:
    """Return who signed a request; None when the URL asks for no signature.

    Raises:
        ServiceError: AccessDeniedException, when neither the caller's policies nor the function's let it in.
    """
    kind, policy = url.settings["AuthType"], policy_of(function)
    context = {"lambda:functionurlauthtype": [kind], "lambda:invokedviafunctionurl": ["true"]}
    if kind == "NONE":
        public = [one for one in statements_of(json.loads(policy or "{}")) if one["Principal"] in ("*", {"AWS": "*"})]
        if any(decide(public, action, [url.target.resource_arn], context) is not Decision.ALLOW for action in _ACTIONS):
            raise _not_allowed()
        return None
    if incoming.signature is None or incoming.signature.service != "lambda":
        raise _not_allowed()
    principal = authenticate(incoming)
    try:
        for action in _ACTIONS:
            require_permission(principal, Need(action, (url.target.resource_arn,)), context, policy)
    except ServiceError as error:
        raise _not_allowed() from error
    return principal


def _not_allowed() -> ServiceError:
    where = "https://docs.aws.amazon.com/lambda/latest/dg/urls-auth.html"
    reason = f"Forbidden. For troubleshooting Function URL authorization issues, see: {where}"
    return ServiceError("AccessDeniedException", reason, status=403)


def _forbidden() -> Reply:
    headers = {"Content-Type": "application/json", "x-amzn-ErrorType": "AccessDeniedException"}
    return Reply(403, headers, b'{"Message":"Forbidden"}')


def _finished(reply: Reply, incoming: Incoming, cors: dict[str, str]) -> Reply:
    headers = {"Content-Length": str(len(reply.body)), "x-amzn-RequestId": incoming.request_id}
    headers["Date"] = format_datetime(datetime.now(UTC), usegmt=True)
    own = {name.lower() for name in cors}
    theirs = {name: value for name, value in reply.headers.items() if name.lower() not in own}
    return Reply(reply.status, {**theirs, **cors, **headers}, reply.body, reply.cookies)


def _require_buffered(call: Call) -> None:
    if call.params.get("InvokeMode", "BUFFERED") != "BUFFERED":
        reason = "Response streaming cannot be rehearsed: Lambda's Python runtimes have none. Leave InvokeMode out."
        raise ServiceError("InvalidParameterValueException", reason)


def _name(function: LambdaFunction) -> tuple[str, str]:
    return function.region, function.function_name
