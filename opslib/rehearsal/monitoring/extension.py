"""CloudWatch, as far as the rehearsal performs it: metrics of what runs here, and alarms that watch them."""

# ruff: noqa: ARG002 - nothing is kept yet: other extensions write metrics and read alarms by these names
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from opslib.rehearsal.calls import Operation
from opslib.rehearsal.clock import Clock

AlarmListener = Callable[[str, str, str, datetime], None]
"""Told of an alarm: its region, its name, its state, and when, on the rehearsal's clock."""


@dataclass(frozen=True)
class Metric:
    """The name of one metric: where it is kept, and of what it tells."""

    region: str
    namespace: str
    name: str
    dimensions: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, region: str, namespace: str, name: str, **dimensions: str) -> "Metric":
        """Name a metric by its dimensions, in whatever order they are given."""
        return cls(region, namespace, name, tuple(sorted(dimensions.items())))


class Monitoring:
    """The metrics and alarms of a rehearsal; other extensions write metrics and read alarms here."""

    def __init__(self, clock: Clock) -> None:
        """Start with no metric and no alarm."""
        self._clock = clock
        self._listeners: list[AlarmListener] = []
        self.operations: dict[str, Operation] = {}

    def stop(self) -> None:
        """End the evaluation of alarms."""

    def observe(self, metric: Metric, value: float, unit: str = "None") -> None:
        """Record one event now; at a speed of s it stands for s of them."""

    def gauge(self, metric: Metric, value: float, unit: str = "None") -> None:
        """Record one sample now, of something that is measured at intervals."""

    def series(
        self, metric: Metric, *, statistic: str, period_seconds: int, periods: int
    ) -> list[tuple[datetime, float]]:
        """Return a statistic of the last complete periods, oldest first; periods without data are left out."""
        return []

    def alarm_state(self, region: str, name: str) -> str | None:
        """Return OK, ALARM or INSUFFICIENT_DATA; None when there is no such alarm."""
        return None

    def on_alarm(self, listener: AlarmListener) -> None:
        """Call `listener` at every change of state, and at every evaluation of an alarm that is in ALARM."""
        self._listeners.append(listener)

    def put_alarm(self, region: str, params: Mapping[str, Any]) -> None:
        """Make or change an alarm, as PutMetricAlarm does."""

    def delete_alarm(self, region: str, name: str) -> None:
        """Delete an alarm, if it is there."""
