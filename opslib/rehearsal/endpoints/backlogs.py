"""The queue of an asynchronous endpoint: requests wait for a free place on an instance, or expire.

An instance works on MaxConcurrentInvocationsPerInstance requests at once. The times in the queue are on the rehearsal's
clock; at a speed of s a request stands for s requests, so the sizes of the backlog are multiplied by it: arrivals,
capacity and backlog fit together as on AWS. Source:
docs.aws.amazon.com/sagemaker/latest/dg/async-inference-monitor.html
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from opslib.rehearsal.calls import Call
from opslib.rehearsal.clock import Clock

METRIC_SECONDS = 60.0
"""Between two samples of the backlog, on the rehearsal's clock."""

_LOOK_SECONDS = 0.05
"""How often a waiting request looks for an instance that has come or become free, on the wall."""


@dataclass(frozen=True)
class QueuedRequest:
    """One asynchronous invocation; times are of the rehearsal's clock, in seconds since 1970."""

    call: Call
    inference_id: str
    output_uri: str | None
    failure_uri: str | None
    queued_at: float
    expires_at: float


@dataclass(frozen=True)
class BacklogSample:
    """How much waits or is under way, how long the oldest has waited, and the number of instances."""

    size: int
    oldest_seconds: float
    instances: int


@dataclass(frozen=True)
class BacklogWork:
    """What a queue does with its requests, each function called on a thread of the queue's."""

    places: Callable[[], tuple[int, int]]
    """The number of healthy instances, and of requests that one of them takes at once."""
    perform: Callable[[QueuedRequest], None]
    expire: Callable[[QueuedRequest], None]
    sample: Callable[[BacklogSample], None]


class Backlog:
    """The queue of one endpoint."""

    def __init__(self, clock: Clock, work: BacklogWork) -> None:
        """Start the queue's thread."""
        self._clock = clock
        self._work = work
        self._waiting: deque[QueuedRequest] = deque()
        self._under_way = 0
        self._closed = False
        self._changed = threading.Condition()
        self._next_sample = time.monotonic()
        threading.Thread(target=self._run, name="async-backlog", daemon=True).start()

    def put(self, request: QueuedRequest) -> None:
        """Let a request wait for its turn."""
        with self._changed:
            self._waiting.append(request)
            self._changed.notify_all()

    def close(self) -> None:
        """Forget what waits; what is under way goes on."""
        with self._changed:
            self._closed = True
            self._waiting.clear()
            self._changed.notify_all()

    def _run(self) -> None:
        while not self._closed:
            self._expire()
            while (request := self._next()) is not None:
                threading.Thread(target=self._perform, args=(request,), name="async-invocation", daemon=True).start()
            self._sample_when_due()
            with self._changed:
                pause = _LOOK_SECONDS if self._waiting else self._next_sample - time.monotonic()
                if not self._closed:
                    self._changed.wait(max(0.001, pause))

    def _next(self) -> QueuedRequest | None:
        """Return the oldest request if there is a place for it."""
        instances, per_instance = self._work.places()
        with self._changed:
            if not self._waiting or self._under_way >= instances * per_instance:
                return None
            self._under_way += 1
            return self._waiting.popleft()

    def _perform(self, request: QueuedRequest) -> None:
        try:
            self._work.perform(request)
        finally:
            with self._changed:
                self._under_way -= 1
                self._changed.notify_all()

    def _expire(self) -> None:
        now = self._clock.time()
        with self._changed:
            expired = [request for request in self._waiting if request.expires_at <= now]
            for request in expired:
                self._waiting.remove(request)
        for request in expired:
            self._work.expire(request)

    def _sample_when_due(self) -> None:
        if time.monotonic() < self._next_sample:
            return
        self._next_sample = time.monotonic() + self._clock.wall_seconds(METRIC_SECONDS)
        instances, _ = self._work.places()
        with self._changed:
            oldest = self._clock.time() - self._waiting[0].queued_at if self._waiting else 0.0
            size = len(self._waiting) + self._under_way
        self._work.sample(BacklogSample(size, oldest, instances))
