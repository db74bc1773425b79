"""The instances of a production variant: each invocation goes to the one with the fewest under way."""

import random
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from opslib.rehearsal.endpoints.container_client import ContainerReply
from opslib.rehearsal.endpoints.instances import (
    HEALTH_CHECK_SECONDS,
    INVOCATION_SECONDS,
    InvocationTimedOut,
    ModelContainer,
    ModelInstance,
    ModelNotServing,
    NotSent,
)

__all__ = [
    "HEALTH_CHECK_SECONDS",
    "INVOCATION_SECONDS",
    "ContainerReply",
    "Fleet",
    "InvocationTimedOut",
    "ModelContainer",
    "ModelInstance",
    "ModelNotServing",
]

PATIENCE_SECONDS = 20.0
"""How long an invocation waits for an instance when all are being replaced."""

_PING_EVERY_SECONDS = 5.0
_random = random.Random()  # noqa: S311 - traffic, not secrets


class Fleet:
    """The instances of one production variant."""

    def __init__(self, container: ModelContainer, count: int, *, at_random: bool = False) -> None:
        """Prepare `count` instances; requests go to the least loaded of them, or to a random one."""
        self._container = container
        self._at_random = at_random
        self._changed = threading.Condition()
        self._closed = threading.Event()
        self._instances = self._prepare(count)
        self.desired_count = count
        """The number of instances that was asked for last."""

    @property
    def instances(self) -> Sequence[ModelInstance]:
        """The instances of this moment."""
        return tuple(self._instances)

    @property
    def count(self) -> int:
        """The number of instances, healthy or not."""
        return len(self._instances)

    @property
    def healthy_count(self) -> int:
        """The number of instances that get traffic."""
        return sum(instance.healthy for instance in self._instances)

    def describe(self) -> dict[str, Any]:
        """Return what DescribeEndpoint shows of the instances."""
        return {"CurrentInstanceCount": self.healthy_count, "DesiredInstanceCount": self.desired_count}

    def start(self) -> None:
        """Start all instances at the same time and wait until every one is healthy.

        Raises:
            ModelNotServing: one of them is not; all are closed then.
        """
        try:
            _start_all(self._instances)
        except BaseException:
            self.close()
            raise
        threading.Thread(target=self._ping, name="fleet-ping", daemon=True).start()

    def resize(self, count: int) -> None:
        """Add instances and wait until they are healthy, or take some away when their requests are answered.

        Raises:
            ModelNotServing: a new instance is not healthy; the fleet stays as it was.
        """
        self.desired_count = count
        added = self._prepare(count - self.count)
        try:
            _start_all(added)
        except BaseException:
            self.desired_count = self.count
            for instance in added:
                instance.close()
            raise
        for instance in self._exchange(added, count):
            self._wait_until_idle(instance)
            instance.close()

    def invoke(
        self, body: bytes, headers: Mapping[str, str], *, timeout_seconds: float | None = None
    ) -> ContainerReply:
        """Send a request to one healthy instance; to another one when that has ended before it read the request.

        Raises:
            ModelNotServing: no instance became healthy for a while, or the chosen one ended.
            InvocationTimedOut: the chosen one did not answer in time (60 seconds if none is given).
        """
        patience_ends = time.monotonic() + PATIENCE_SECONDS
        while True:
            with self._chosen(patience_ends) as instance:
                try:
                    return instance.invoke(body, headers, timeout_seconds)
                except NotSent:
                    continue

    def drain(self) -> None:
        """Wait until no request is under way."""
        for instance in self.instances:
            self._wait_until_idle(instance)

    def close(self) -> None:
        """Kill every instance."""
        self._closed.set()
        for instance in self.instances:
            instance.close()
        self._notify()

    def _prepare(self, count: int) -> list[ModelInstance]:
        return [ModelInstance(self._container, self._notify) for _ in range(count)]

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _exchange(self, added: Sequence[ModelInstance], count: int) -> Sequence[ModelInstance]:
        """Let the new instances have traffic, and return those that get no more: first what is not healthy."""
        with self._changed:
            everything = sorted([*self._instances, *added], key=lambda one: not one.healthy)
            self._instances, removed = everything[:count], everything[count:]
            if self._closed.is_set():  # meanwhile
                removed = everything
            self._changed.notify_all()
        return removed

    @contextmanager
    def _chosen(self, patience_ends: float) -> Iterator[ModelInstance]:
        with self._changed:
            while not (healthy := [instance for instance in self._instances if instance.healthy]):
                seconds = patience_ends - time.monotonic()
                if seconds <= 0 or self._closed.is_set():
                    raise ModelNotServing("no container is healthy")
                self._changed.wait(seconds)
            fewest = 0 if self._at_random else min(instance.outstanding for instance in healthy)
            instance = _random.choice([one for one in healthy if self._at_random or one.outstanding == fewest])
            instance.outstanding += 1
        try:
            yield instance
        finally:
            with self._changed:
                instance.outstanding -= 1
                self._changed.notify_all()

    def _wait_until_idle(self, instance: ModelInstance) -> None:
        with self._changed:
            self._changed.wait_for(lambda: instance.outstanding == 0, timeout=INVOCATION_SECONDS)

    def _ping(self) -> None:
        while not self._closed.wait(_PING_EVERY_SECONDS):
            for instance in self.instances:
                instance.check_health()


def _start_all(instances: Sequence[ModelInstance]) -> None:
    if instances:
        with ThreadPoolExecutor(len(instances)) as pool:
            list(pool.map(ModelInstance.start, instances))
