"""Lambda's Invoke: synchronous, asynchronous with its two retries, and dry; limits of payload and concurrency.

Sources: docs.aws.amazon.com/lambda/latest/api/API_Invoke.html, invocation-async-error-handling.html and
gettingstarted-limits.html.
"""

import base64
import json
import threading
from collections.abc import Callable
from typing import Any

from moto.awslambda.models import LambdaFunction

from opslib.rehearsal.calls import Call, Operation, ServiceError
from opslib.rehearsal.functions.aliases import routed
from opslib.rehearsal.functions.concurrency import Throttled
from opslib.rehearsal.functions.environment import Outcome
from opslib.rehearsal.functions.metrics import Target
from opslib.rehearsal.functions.runner import Event, Runner

MAX_PAYLOAD_BYTES = {"RequestResponse": 6_291_456, "DryRun": 6_291_456, "Event": 1_048_576}
"""Largest event, by invocation type."""

RETRY_AFTER_THROTTLE_SECONDS = "0"
"""What the Retry-After header of a throttled call says: Lambda names no time, an environment may be free at once."""

RETRY_AFTER_SECONDS = (60.0, 120.0)
"""When a failed asynchronous invocation is tried again: after one minute, then after two more."""


class Invocations:
    """The operations that run a function."""

    def __init__(self, find: Callable[[Call], LambdaFunction], runner: Runner) -> None:
        """Take what finds a function, and what runs it."""
        self._find = find
        self._runner = runner
        self._stopping = threading.Event()
        self.operations: dict[str, Operation] = {"lambda.Invoke": self.invoke}

    def stop(self) -> None:
        """Start no further retry."""
        self._stopping.set()

    def invoke(self, call: Call) -> dict[str, Any]:
        """Run a function and wait (RequestResponse), run it later (Event), or only check the call (DryRun)."""
        kind = call.params.get("InvocationType", "RequestResponse")
        function, payload = self._find(call), call.params.get("Payload") or b"{}"
        _check_payload(payload, kind)
        target = _target(call, function)
        function = routed(function, target.qualifier)
        if kind == "DryRun":
            return {"StatusCode": 204, "ExecutedVersion": str(function.version)}
        context = _client_context(call.params.get("ClientContext", ""))
        event = Event(function, target, call.request_id, payload, context)
        if kind == "Event":
            self._runner.pool_of(function)  # a function that is not ready refuses the event now
            threading.Thread(target=self._run_later, args=(event,), name="async-invoke", daemon=True).start()
            return {"StatusCode": 202}
        return _reply(call, function, self._run(event))

    def _run(self, event: Event) -> Outcome:
        try:
            return self._runner.run(event)
        except Throttled as error:
            self._runner.metrics.count(event.target, "Throttles")
            raise _throttled(error) from error

    def _run_later(self, event: Event) -> None:
        """Run an asynchronous event, twice more when the function fails; being throttled does not count."""
        waits = list(RETRY_AFTER_SECONDS)
        while not self._stopping.is_set():
            try:
                failed = bool(self._run(event).function_error)
                wait = waits.pop(0) if failed and waits else None
            except ServiceError:
                wait = 1.0
            if wait is None or self._stopping.wait(wait):
                return


def _target(call: Call, function: LambdaFunction) -> Target:
    """Return what the call names; a qualifier may also stand behind the name, as in `name:alias`."""
    named = call.params["FunctionName"].partition(f"{function.function_name}:")[2]
    return Target(function.region, function.function_name, call.params.get("Qualifier") or named)


def _client_context(encoded: str) -> str:
    """Return the client's context as one line of JSON, fit for a header."""
    try:
        return json.dumps(json.loads(base64.b64decode(encoded, validate=True))) if encoded else ""
    except (ValueError, RecursionError) as error:
        reason = "Client context must be a valid Base64-encoded JSON object."
        raise ServiceError("InvalidRequestContentException", reason) from error


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
    kind = "ReservedFunctionConcurrentInvocation" if throttled.is_reserved else "ConcurrentInvocation"
    members = {"Reason": f"{kind}LimitExceeded", "retryAfterSeconds": RETRY_AFTER_THROTTLE_SECONDS}
    return ServiceError("TooManyRequestsException", "Rate Exceeded.", status=429, members=members)


def _reply(call: Call, function: LambdaFunction, outcome: Outcome) -> dict[str, Any]:
    reply = {"StatusCode": 200, "ExecutedVersion": str(function.version), "Payload": outcome.payload}
    if outcome.function_error:
        reply["FunctionError"] = outcome.function_error
    if call.params.get("LogType") == "Tail":
        reply["LogResult"] = base64.b64encode(outcome.log_tail).decode()
    return reply
