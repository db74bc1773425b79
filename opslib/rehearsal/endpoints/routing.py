"""Which of an endpoint's hostings answers the next request: the one in service, or the one that an update brings."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from opslib.rehearsal.endpoints.hosting import Hosting


class TrafficRoute:
    """The hosting in service, and a share of the traffic for the one that may follow it.

    Whoever asks a hosting holds it, so that it is not closed between the choice and the answer.
    """

    def __init__(self) -> None:
        """Start with nothing in service."""
        self._current: Hosting | None = None
        self._next: Hosting | None = None
        self._share = 0.0
        self._credit = 0.0
        self._lock = threading.Lock()

    @property
    def current(self) -> Hosting | None:
        """The hosting that has most of the traffic; None: the endpoint is not in service."""
        return self._next if self._next is not None and self._share >= 1 else self._current

    @property
    def hostings(self) -> list[Hosting]:
        """Everything that gets traffic."""
        return [one for one in (self._current, self._next) if one is not None]

    @contextmanager
    def held(self) -> Iterator[Hosting | None]:
        """Choose a hosting and keep it running while the block runs."""
        with self._lock:
            hosting = self._choose()
            if hosting is not None:
                hosting.hold()
        try:
            yield hosting
        finally:
            if hosting is not None:
                hosting.release()

    def put(self, hosting: Hosting | None) -> Hosting | None:
        """Give all traffic to a hosting, and return the one that had it."""
        with self._lock:
            old, self._current = self._current, hosting
            self._next, self._share = None, 0.0
        return old

    def share(self, following: Hosting, share: float) -> None:
        """Give a share of the traffic (0 to 1) to a hosting that may follow; never more, however few requests come."""
        with self._lock:
            if self._next is not following:
                self._credit = 0.0
            self._next, self._share = following, share

    def take_back(self) -> None:
        """Give all traffic back to the hosting in service."""
        with self._lock:
            self._next, self._share = None, 0.0

    def _choose(self) -> Hosting | None:
        if self._next is None:
            return self._current
        self._credit = min(self._credit + self._share, 1.0 + self._share)
        if self._credit < 1.0 - 1e-9:
            return self._current
        self._credit -= 1.0
        return self._next
