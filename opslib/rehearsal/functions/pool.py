"""The environments of a function version: reused while idle, added when all are busy."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psutil

from opslib.rehearsal.functions.concurrency import Throttled
from opslib.rehearsal.functions.environment import FunctionEnvironment

logger = logging.getLogger(__name__)

LEAST_FREE_SHARE = 0.05
"""Of the machine's memory: below that no environment starts, because a thousand of them fit into few machines."""

IDLE_SECONDS = 600.0
"""How long an environment is kept without an invocation; AWS does not document its own time."""


class FunctionPool:
    """The environments of one function version with one configuration."""

    def __init__(self, build_environment: Callable[[str], FunctionEnvironment]) -> None:
        """Start with no environment: the first invocation is a cold start.

        `build_environment` takes what AWS_LAMBDA_INITIALIZATION_TYPE is to say.
        """
        self._build_environment = build_environment
        self._idle: list[FunctionEnvironment] = []
        self._busy: set[FunctionEnvironment] = set()
        self._closed = False
        self._lock = threading.Lock()

    @contextmanager
    def environment(self) -> Iterator[FunctionEnvironment]:
        """Lend an environment for one invocation; `Concurrency` bounds how many there are.

        Raises:
            Throttled: a new one would take the last of the machine's memory.
        """
        environment = self._take()
        try:
            yield environment
        finally:
            self._give_back(environment)

    def build_provisioned(self) -> FunctionEnvironment:
        """Make an environment to be kept ready, which is not one of the pool's.

        Raises:
            Throttled: it would take the last of the machine's memory.
        """
        return self._build("provisioned-concurrency")

    def close(self) -> None:
        """Kill every environment, busy ones too."""
        with self._lock:
            self._closed = True
            environments = [*self._idle, *self._busy]
            self._idle.clear()
        for environment in environments:
            environment.close()

    def retire(self) -> None:
        """Kill the idle environments now and each busy one after its invocation: code or configuration has changed."""
        with self._lock:
            self._closed = True
            environments, self._idle = self._idle, []
        for environment in environments:
            environment.close()

    def _take(self) -> FunctionEnvironment:
        self._drop_expired()
        while True:
            with self._lock:
                environment = self._idle.pop() if self._idle else self._build("on-demand")
                self._busy.add(environment)
            if not environment.has_exited:
                return environment
            with self._lock:
                self._busy.discard(environment)
            environment.close()

    def _drop_expired(self) -> None:
        """Close what has been idle for long, before another one asks for memory."""
        oldest = time.monotonic() - IDLE_SECONDS
        with self._lock:
            expired = [one for one in self._idle if one.last_used < oldest]
            self._idle = [one for one in self._idle if one.last_used >= oldest]
        for one in expired:
            one.close()

    def _build(self, kind: str) -> FunctionEnvironment:
        memory = psutil.virtual_memory()
        if memory.available < LEAST_FREE_SHARE * memory.total:
            logger.warning("this machine has no memory for another environment")
            raise Throttled("ConcurrentInvocationLimitExceeded")
        return self._build_environment(kind)

    def _give_back(self, environment: FunctionEnvironment) -> None:
        with self._lock:
            self._busy.discard(environment)
            keep = environment.usable and not self._closed
            if keep:
                self._idle.append(environment)
        if not keep:
            environment.close()
