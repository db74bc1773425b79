"""CloudWatch, as far as the rehearsal performs it: metrics of what runs here, and alarms that watch them."""

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from opslib.rehearsal.calls import Operation
from opslib.rehearsal.clock import Clock

AlarmListener = Callable[[str, str, str, datetime], None]
"""Told of an alarm: its region, its name, its state, and when, on the rehearsal's clock."""


class Monitoring:
    """The metrics and alarms of a rehearsal; other extensions write metrics and read alarms here."""

    def __init__(self, clock: Clock) -> None:
        """Start with no metric and no alarm."""
        self._clock = clock
        self._listeners: list[AlarmListener] = []
        self.operations: dict[str, Operation] = {}

    def stop(self) -> None:
        """End the evaluation of alarms."""

    def observe(
        self, region: str, namespace: str, name: str, dimensions: Mapping[str, str], value: float, unit: str = "None"
    ) -> None:
        """Record one event now; at a speed of s it stands for s of them."""

    def gauge(
        self, region: str, namespace: str, name: str, dimensions: Mapping[str, str], value: float, unit: str = "None"
    ) -> None:
        """Record one sample now, of something that is measured at intervals."""

    def series(
        self, region: str, namespace: str, name: str, dimensions: Mapping[str, str], *, statistic: str,
        period_seconds: int, periods: int,
    ) -> list[tuple[datetime, float]]:  # fmt: skip
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
