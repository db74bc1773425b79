"""Lambda's Invoke: synchronous, asynchronous, and dry; limits of payload and concurrency.

Sources: docs.aws.amazon.com/lambda/latest/api/API_Invoke.html, invocation-async-error-handling.html and
gettingstarted-limits.html.
"""

import base64
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from moto.awslambda.models import LambdaFunction

from opslib.rehearsal.calls import Call, Operation, ServiceError
from opslib.rehearsal.functions.aliases import routed
from opslib.rehearsal.functions.async_events import AsyncEvents
from opslib.rehearsal.functions.concurrency import Throttled
from opslib.rehearsal.functions.environment import Outcome
from opslib.rehearsal.functions.metrics import Target
from opslib.rehearsal.functions.runner import Event, Runner

MAX_PAYLOAD_BYTES = {"RequestResponse": 6_291_456, "DryRun": 6_291_456, "Event": 1_048_576}
"""Largest event, by invocation type."""

MAX_CONTEXT_BYTES = 3583
"""Largest client context, in base64."""

RETRY_AFTER_THROTTLE_SECONDS = "0"
"""What the Retry-After header of a throttled call says: Lambda names no time, an environment may be free at once."""


class Invocations:
    """The operations that run a function."""

    def __init__(self, find: Callable[[Call], LambdaFunction], runner: Runner, events: AsyncEvents) -> None:
        """Take what finds a function, what runs it, and what runs it later."""
        self._find = find
        self._runner = runner
        self._events = events
        self.operations: dict[str, Operation] = {
            "lambda.Invoke": self.invoke,
            "lambda.InvokeAsync": self.invoke_async,
        }

    def invoke(self, call: Call) -> dict[str, Any]:
        """Run a function and wait (RequestResponse), run it later (Event), or only check the call (DryRun)."""
        kind = call.params.get("InvocationType", "RequestResponse")
        function, payload = self._find(call), call.params.get("Payload") or b"{}"
        _check_payload(payload, kind)
        target = Target.of(call, function)
        function = routed(function, target.qualifier)
        if kind == "DryRun":
            return {"StatusCode": 204, "ExecutedVersion": str(function.version)}
        context = _client_context(call.params.get("ClientContext", ""))
        event = Event(function, target, call.request_id, payload, context)
        if kind == "Event":
            self._runner.pool_of(function)  # a function that is not ready refuses the event now
            self._events.accept(event)
            return {"StatusCode": 202}
        return _reply(call, function, self.run_now(event))

    def invoke_async(self, call: Call) -> dict[str, Any]:
        """Run a function later, by the older operation."""
        params = {**call.params, "InvocationType": "Event", "Payload": call.params["InvokeArgs"]}
        return {"Status": self.invoke(replace(call, params=params))["StatusCode"]}

    def run_now(self, event: Event) -> Outcome:
        """Run an event for a caller who waits for it.

        Raises:
            ServiceError: TooManyRequestsException.
        """
        try:
            self._runner.concurrency.count_request(event.function)
            return self._runner.run(event)
        except Throttled as error:
            self._runner.metrics.count(event.target, "Throttles")
            raise _throttled(error) from error


def _client_context(encoded: str) -> str:
    """Return the client's context as one line of JSON, fit for a header."""
    try:
        context = json.loads(base64.b64decode(encoded, validate=True)) if encoded else {}
    except (ValueError, RecursionError):
        context = None
    if not isinstance(context, dict) or len(encoded) > MAX_CONTEXT_BYTES:
        reason = f"Client context must be a valid Base64-encoded JSON object of up to {MAX_CONTEXT_BYTES} bytes."
        raise ServiceError("InvalidRequestContentException", reason)
    return json.dumps(context) if encoded else ""


def _check_payload(payload: bytes, kind: str) -> None:
    limit = MAX_PAYLOAD_BYTES[kind]
    if len(payload) > limit:
        reason = f"{len(payload)} byte payload is too large for the {kind} invocation type (limit {limit} bytes)"
        raise ServiceError("RequestTooLargeException", reason, status=413)
    try:
        json.loads(payload)
    except (ValueError, RecursionError) as error:
        reason = f"Could not parse request body into json: Could not parse payload into json: {error}"
        raise ServiceError("InvalidRequestContentException", reason) from error


def _throttled(throttled: Throttled) -> ServiceError:
    members = {"Reason": throttled.reason, "retryAfterSeconds": RETRY_AFTER_THROTTLE_SECONDS}
    return ServiceError("TooManyRequestsException", "Rate Exceeded.", status=429, members=members)


def _reply(call: Call, function: LambdaFunction, outcome: Outcome) -> dict[str, Any]:
    reply = {"StatusCode": 200, "ExecutedVersion": str(function.version), "Payload": outcome.payload}
    if outcome.function_error:
        reply["FunctionError"] = outcome.function_error
    if call.params.get("LogType") == "Tail":
        reply["LogResult"] = base64.b64encode(outcome.log_tail).decode()
    return reply
