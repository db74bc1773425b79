"""Asynchronous invocation: events that wait, are tried again, and go to a destination in the end.

Retries and ages are on the rehearsal's clock.
Sources: docs.aws.amazon.com/lambda/latest/dg/invocation-async-error-handling.html and
invocation-async-retain-records.html.
"""

import heapq
import itertools
import json
import logging
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

from opslib.rehearsal.calls import ServiceError
from opslib.rehearsal.clock import Clock
from opslib.rehearsal.functions.async_settings import MAX_AGE_SECONDS, MAX_RETRIES, AsyncSettings, destinations
from opslib.rehearsal.functions.concurrency import Throttled
from opslib.rehearsal.functions.destinations import deliver
from opslib.rehearsal.functions.environment import Outcome
from opslib.rehearsal.functions.runner import Event, Runner

logger = logging.getLogger(__name__)

RETRY_AFTER_SECONDS = (60.0, 120.0)
"""When a failed event is tried again: after one minute, then after two more."""

LONGEST_BACKOFF_SECONDS = 300.0
"""A throttled event is tried again after a second, then after twice as long each time, and at last so often."""

ERROR_MESSAGE_BYTES = 1024
"""How much of an error goes to a dead-letter queue."""

MOST_AT_ONCE = 256
"""Events that run at the same time; the others wait in the queue, whose order and length Lambda leaves open, too."""


@dataclass(frozen=True, order=True)
class _Waiting:
    """An event in the queue: when it is due and when it is too old (by the rehearsal's clock), and what was tried."""

    due: float
    number: int
    event: Event = field(compare=False)
    too_old: float = field(compare=False)
    count: int = field(default=0, compare=False)
    backoff_seconds: float = field(default=1.0, compare=False)
    outcome: Outcome | None = field(default=None, compare=False)


@dataclass(frozen=True)
class _Ended:
    """How an event ended: Lambda's word for it, how often it ran, and its last outcome if it ran at all."""

    condition: str
    count: int
    outcome: Outcome | None


class AsyncEvents:
    """The queue of events; a thread hands each to a worker when it is due."""

    def __init__(self, runner: Runner, settings: AsyncSettings, clock: Clock) -> None:
        """Take what runs an event, and how each function wants it."""
        self._runner = runner
        self._settings = settings
        self._clock = clock
        self._queue: list[_Waiting] = []
        self._numbers = itertools.count()
        self._workers = ThreadPoolExecutor(MOST_AT_ONCE, thread_name_prefix="async-invoke")
        self._dispatcher: threading.Thread | None = None
        self._is_over = False
        self._changed = threading.Condition()

    def stop(self) -> None:
        """Start no further event."""
        with self._changed:
            self._is_over = True
            self._changed.notify()
        self._workers.shutdown(wait=False, cancel_futures=True)

    def accept(self, event: Event) -> None:
        """Run an event later."""
        self._runner.metrics.count(event.target, "AsyncEventsReceived")
        now, settings = self._clock.time(), self._settings_of(event)
        too_old = now + settings.get("MaximumEventAgeInSeconds", MAX_AGE_SECONDS)
        self._put(_Waiting(now, next(self._numbers), event, too_old))

    def _settings_of(self, event: Event) -> dict[str, Any]:
        return self._settings.of(event.target.without_latest)

    def _put(self, waiting: _Waiting) -> None:
        with self._changed:
            heapq.heappush(self._queue, waiting)
            if self._dispatcher is None:
                self._dispatcher = threading.Thread(target=self._dispatch, name="async-events", daemon=True)
                self._dispatcher.start()
            self._changed.notify()

    def _dispatch(self) -> None:
        while True:
            with self._changed:
                if self._is_over:
                    return
                left = self._queue[0].due - self._clock.time() if self._queue else None
                if left is None or left > 0:
                    self._changed.wait(None if left is None else self._clock.wall_seconds(left))
                    continue
                self._workers.submit(self._try, heapq.heappop(self._queue)).add_done_callback(_report)

    def _try(self, waiting: _Waiting) -> None:
        """Run an event; put it back until it succeeds, fails too often or is too old."""
        if not self._runner.exists(waiting.event.function):
            return  # deleted, and its events with it
        wait_seconds, backoff_seconds = 1.0, waiting.backoff_seconds
        try:
            outcome = self._runner.run(waiting.event)
            waiting = replace(waiting, outcome=outcome, count=waiting.count + 1)
            if not outcome.function_error:
                self._finish(waiting, "Success")
                return
            if waiting.count > self._settings_of(waiting.event).get("MaximumRetryAttempts", MAX_RETRIES):
                self._finish(waiting, "RetriesExhausted")
                return
            wait_seconds = RETRY_AFTER_SECONDS[waiting.count - 1]
        except Throttled:
            self._runner.metrics.count(waiting.event.target, "Throttles")
            if self._runner.concurrency.is_shut_off(waiting.event.function):
                self._finish(waiting, "ZeroReservedConcurrency")
                return
            wait_seconds, backoff_seconds = backoff_seconds, min(2 * backoff_seconds, LONGEST_BACKOFF_SECONDS)
        except ServiceError:  # it is being updated: in a second again
            pass
        due = self._clock.time() + wait_seconds
        if due > waiting.too_old:
            self._finish(waiting, "EventAgeExceeded")
        else:
            self._put(replace(waiting, due=due, backoff_seconds=backoff_seconds))

    def _finish(self, waiting: _Waiting, condition: str) -> None:
        event, ended = waiting.event, _Ended(condition, waiting.count, waiting.outcome)
        failed = condition != "Success"
        if failed:
            self._runner.metrics.count(event.target, "AsyncEventsDropped")
        arn = destinations(self._settings_of(event)).get("OnFailure" if failed else "OnSuccess")
        if arn and not deliver(event.function.role, arn, self._record(event, ended), {}):
            self._runner.metrics.count(event.target, "DestinationDeliveryFailures")
        if failed:
            self._bury(event, ended)

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


def _report(done: Future[None]) -> None:
    if not done.cancelled() and done.exception():
        logger.error("an asynchronous event was lost", exc_info=done.exception())
