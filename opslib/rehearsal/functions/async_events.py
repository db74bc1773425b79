"""Asynchronous invocation: events that wait, are tried again, and go to a destination in the end.

Retries and ages are on the rehearsal's clock.
Sources: docs.aws.amazon.com/lambda/latest/dg/invocation-async-error-handling.html and
invocation-async-retain-records.html.
"""

import json
import threading
from dataclasses import dataclass
from typing import Any

from opslib.rehearsal.calls import ServiceError
from opslib.rehearsal.clock import Clock
from opslib.rehearsal.functions.async_settings import MAX_AGE_SECONDS, MAX_RETRIES, AsyncSettings, destinations
from opslib.rehearsal.functions.concurrency import Throttled
from opslib.rehearsal.functions.destinations import deliver
from opslib.rehearsal.functions.environment import Outcome
from opslib.rehearsal.functions.runner import Event, Runner

RETRY_AFTER_SECONDS = (60.0, 120.0)
"""When a failed event is tried again: after one minute, then after two more."""

LONGEST_BACKOFF_SECONDS = 300.0
"""A throttled event is tried again after a second, then after twice as long each time, and at last so often."""

ERROR_MESSAGE_BYTES = 1024
"""How much of an error goes to a dead-letter queue."""


@dataclass(frozen=True)
class _Ended:
    """How an event ended: Lambda's word for it, how often it ran, and its last outcome if it ran at all."""

    condition: str
    count: int
    outcome: Outcome | None


class AsyncEvents:
    """The events that wait for their function, each in a thread of its own."""

    def __init__(self, runner: Runner, settings: AsyncSettings, clock: Clock) -> None:
        """Take what runs an event, and how each function wants it."""
        self._runner = runner
        self._settings = settings
        self._clock = clock
        self._stopping = threading.Event()

    def stop(self) -> None:
        """Start no further retry."""
        self._stopping.set()

    def accept(self, event: Event) -> None:
        """Run an event later."""
        self._runner.metrics.count(event.target, "AsyncEventsReceived")
        threading.Thread(target=self._follow, args=(event,), name="async-invoke", daemon=True).start()

    def _follow(self, event: Event) -> None:
        settings = self._settings.of(event.target.without_latest)
        ended = self._run_until_it_ends(event, settings)
        if ended is None:
            return
        failed = ended.condition != "Success"
        if failed:
            self._runner.metrics.count(event.target, "AsyncEventsDropped")
        arn = destinations(settings).get("OnFailure" if failed else "OnSuccess")
        if arn and not deliver(event.function.role, arn, self._record(event, ended), {}):
            self._runner.metrics.count(event.target, "DestinationDeliveryFailures")
        if failed:
            self._bury(event, ended)

    def _run_until_it_ends(self, event: Event, settings: dict[str, Any]) -> _Ended | None:
        """Run an event until it succeeds, fails too often or is too old; None when the rehearsal ends before that."""
        retries = settings.get("MaximumRetryAttempts", MAX_RETRIES)
        too_late = self._clock.time() + settings.get("MaximumEventAgeInSeconds", MAX_AGE_SECONDS)
        count, outcome, backoff_seconds = 0, None, 1.0
        while not self._stopping.is_set():
            try:
                outcome = self._runner.run(event)
                count += 1
                if not outcome.function_error:
                    return _Ended("Success", count, outcome)
                if count > retries:
                    return _Ended("RetriesExhausted", count, outcome)
                wait_seconds = RETRY_AFTER_SECONDS[count - 1]
            except Throttled:
                self._runner.metrics.count(event.target, "Throttles")
                wait_seconds, backoff_seconds = backoff_seconds, min(2 * backoff_seconds, LONGEST_BACKOFF_SECONDS)
            except ServiceError:  # it is being updated
                wait_seconds = 1.0
            if self._clock.time() + wait_seconds > too_late:
                return _Ended("EventAgeExceeded", count, outcome)
            self._stopping.wait(self._clock.wall_seconds(wait_seconds))
        return None

    def _record(self, event: Event, ended: _Ended) -> str:
        """Return the invocation record that a destination gets."""
        record: dict[str, Any] = {
            "version": "1.0",
            "timestamp": self._clock.now().isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "requestContext": {
                "requestId": event.request_id,
                "functionArn": event.target.arn,
                "condition": ended.condition,
                "approximateInvokeCount": ended.count,
            },
            "requestPayload": json.loads(event.payload),
        }
        if ended.outcome:
            failure = {"functionError": ended.outcome.function_error} if ended.outcome.function_error else {}
            version = str(event.function.version)
            record["responseContext"] = {"statusCode": 200, "executedVersion": version, **failure}
            record["responsePayload"] = _decoded(ended.outcome.payload)
        return json.dumps(record)

    def _bury(self, event: Event, ended: _Ended) -> None:
        """Send the event to the function's dead-letter queue, if it has one."""
        arn = getattr(event.function, "dead_letter_arn", "")
        if not arn:
            return
        answer = _decoded(ended.outcome.payload) if ended.outcome else None
        message = str(answer.get("errorMessage", "")) if isinstance(answer, dict) else ""
        attributes = {
            "RequestID": ("String", event.request_id),
            "ErrorCode": ("Number", "200" if ended.outcome else "429"),
            "ErrorMessage": ("String", message[:ERROR_MESSAGE_BYTES] or ended.condition),
        }
        if not deliver(event.function.role, arn, event.payload.decode(), attributes):
            self._runner.metrics.count(event.target, "DeadLetterErrors")


def _decoded(payload: bytes) -> Any:
    try:
        return json.loads(payload)
    except ValueError:
        return payload.decode(errors="replace")
