"""CloudWatch log streams that jobs, model servers and functions write to, with the permissions of their role.

SageMaker and Lambda write logs as the role: without logs:CreateLogGroup, logs:CreateLogStream or logs:PutLogEvents the
lines are lost without an error, as on AWS.
"""

import threading
import time
from collections.abc import Sequence

from moto.logs.models import LogEvent, logs_backends

from opslib.rehearsal.calls import ACCOUNT_ID, Principal, ServiceError
from opslib.rehearsal.gateway.actions import needs_of
from opslib.rehearsal.identity import require_permission

_DECISION_SECONDS = 1.0
"""How long a decision of IAM holds for a stream."""


class LogStream:
    """One stream of a log group; both are created with the first line."""

    def __init__(
        self, principal: Principal, region: str, group: str, stream: str, *, kept_lines: int | None = None
    ) -> None:
        """Name the stream; `principal` is the session of the role that writes to it.

        Of a stream that goes on for ever, like a model server's, only the last `kept_lines` are kept: it is in memory.
        """
        self._principal = principal
        self._region = region
        self._group = group
        self._stream = stream
        self._kept_lines = kept_lines
        self._decisions: dict[str, tuple[float, bool]] = {}
        self._lock = threading.Lock()

    def write(self, lines: Sequence[str]) -> None:
        """Append one event for each line, now."""
        now = time.time_ns() // 1_000_000
        events = [{"timestamp": now, "message": line} for line in lines if line]
        with self._lock:
            if events and self._is_open():
                backend = logs_backends[ACCOUNT_ID][self._region]
                backend.put_log_events(self._group, self._stream, events)
                self._forget(backend.groups[self._group].streams[self._stream].events)

    def _forget(self, events: list[LogEvent]) -> None:
        if self._kept_lines is not None and len(events) > 1.1 * self._kept_lines:
            del events[: -self._kept_lines]

    def _is_open(self) -> bool:
        """Create what is missing; False when the role may not."""
        backend = logs_backends[ACCOUNT_ID][self._region]
        if not self._may("PutLogEvents", logStreamName=self._stream):
            return False
        if self._group not in backend.groups:
            if not self._may("CreateLogGroup"):
                return False
            backend.ensure_log_group(self._group)
        if self._stream not in backend.groups[self._group].streams:
            if not self._may("CreateLogStream", logStreamName=self._stream):
                return False
            backend.ensure_log_stream(self._group, self._stream)
        return True

    def _may(self, operation: str, **params: str) -> bool:
        """Ask IAM, once a second: a model server writes hundreds of lines in that time."""
        until, is_allowed = self._decisions.get(operation, (0.0, False))
        if time.monotonic() >= until:
            is_allowed = self._is_allowed(operation, **params)
            self._decisions[operation] = (time.monotonic() + _DECISION_SECONDS, is_allowed)
        return is_allowed

    def _is_allowed(self, operation: str, **params: str) -> bool:
        try:
            for need in needs_of("logs", operation, {"logGroupName": self._group, **params}, self._region):
                require_permission(self._principal, need, {})
        except ServiceError:
            return False
        return True
