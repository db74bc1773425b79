"""Environments that are kept ready for a version: initialised ahead of invocations, replaced when they end."""

import logging
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from opslib.rehearsal.functions.concurrency import Throttled
from opslib.rehearsal.functions.environment import FunctionEnvironment

logger = logging.getLogger(__name__)


class ProvisionedEnvironments:
    """So many environments of one version as were asked for; an invocation takes one that is idle."""

    def __init__(self, version: str, build: Callable[[], FunctionEnvironment]) -> None:
        """Start with none; `build` makes an environment that is not initialised yet."""
        self.version = version
        self.requested = 0
        self.status = "IN_PROGRESS"
        self._reason = ""
        self._modified = datetime.now(UTC)
        self._build = build
        self._idle: list[FunctionEnvironment] = []
        self._busy: set[FunctionEnvironment] = set()
        self._starting: FunctionEnvironment | None = None
        self._closed = self._filling = False
        self._lock = threading.Lock()

    @property
    def busy(self) -> int:
        """How many run an invocation now."""
        return len(self._busy)

    @property
    def available(self) -> int:
        """How many are initialised, busy ones too."""
        return len(self._idle) + len(self._busy)

    def describe(self) -> dict[str, Any]:
        """Return what GetProvisionedConcurrencyConfig shows."""
        available = min(self.available, self.requested)
        shown: dict[str, Any] = {
            "RequestedProvisionedConcurrentExecutions": self.requested,
            "AvailableProvisionedConcurrentExecutions": available,
            "AllocatedProvisionedConcurrentExecutions": available,
            "Status": self.status,
            "LastModified": self._modified.strftime("%Y-%m-%dT%H:%M:%S+0000"),
        }
        return shown | ({"StatusReason": self._reason} if self._reason else {})

    def resize(self, count: int) -> None:
        """Ask for so many, and return at once; the status tells when they are there."""
        with self._lock:
            self.requested, self.status, self._reason = count, "IN_PROGRESS", ""
            self._modified = datetime.now(UTC)
        self._fill_soon()

    def take(self) -> FunctionEnvironment | None:
        """Take an idle environment, to be given back; None when all are busy or not ready yet."""
        while True:
            with self._lock:
                taken = self._idle.pop() if self._idle else None
                if taken is None:
                    return None
                self._busy.add(taken)
            if not taken.has_exited:
                return taken
            self.give_back(taken, ended=True)

    def give_back(self, environment: FunctionEnvironment, *, ended: bool = False) -> None:
        """Take an environment back; another one replaces it when it cannot go on, or has `ended`."""
        with self._lock:
            self._busy.discard(environment)
            keep = not ended and environment.usable and not self._closed and self.available < self.requested
            if keep:
                self._idle.append(environment)
        if not keep:
            environment.close()
            self._fill_soon()

    def close(self) -> None:
        """End the idle environments now, one that is being initialised too, and each busy one after its invocation."""
        with self._lock:
            self._closed = True
            environments, self._idle = [*self._idle, *filter(None, [self._starting])], []
        for environment in environments:
            environment.close()

    def _fill_soon(self) -> None:
        with self._lock:
            if self._closed or self._filling:
                return
            self._filling = True
        threading.Thread(target=self._fill, name="provisioned-concurrency", daemon=True).start()

    def _fill(self) -> None:
        """Start what is missing, one after the other, and end what is too many."""
        while self._is_missing_one():
            try:
                reason = self._add_one()
            except Throttled:
                reason = "This machine has no memory for another environment"
            except Exception as error:  # e.g. no process could be started: the status says so, and another try may
                logger.exception("provisioned concurrency of version %s", self.version)
                reason = f"{type(error).__name__}: {error}"
            if reason:
                with self._lock:
                    self.status, self._reason, self._filling = "FAILED", reason, False
                return

    def _add_one(self) -> str:
        """Start another environment; return why it cannot be initialised, or nothing."""
        environment = self._build()
        with self._lock:
            self._starting = None if self._closed else environment
        reason = environment.prepare() if self._starting else "It is not wanted any more"
        with self._lock:
            self._starting = None
            keep = not reason and not self._closed
            if keep:
                self._idle.append(environment)
        if not keep:
            environment.close()
        return reason

    def _is_missing_one(self) -> bool:
        with self._lock:
            surplus = max(0, min(self.available - self.requested, len(self._idle)))
            ending, self._idle = self._idle[:surplus], self._idle[surplus:]
            missing = self.available < self.requested and not self._closed
            if not missing:
                self.status, self._filling = "READY", False
        for environment in ending:
            environment.close()
        return missing
