"""CloudWatch, as far as the rehearsal performs it: metrics of what runs here, and alarms that watch them.

Everything is on the rehearsal's clock: a period of a minute is a minute of that clock, and so is an alarm's wait.
"""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from opslib.rehearsal.calls import Operation
from opslib.rehearsal.clock import Clock
from opslib.rehearsal.monitoring.alarm_calls import AlarmCalls
from opslib.rehearsal.monitoring.alarms import Alarm
from opslib.rehearsal.monitoring.queries import MetricQueries
from opslib.rehearsal.monitoring.store import Metric, MetricStore, Sample
from opslib.rehearsal.monitoring.watch import AlarmWatch

__all__ = ["AlarmListener", "Metric", "Monitoring"]

AlarmListener = Callable[[str, str, str, datetime], None]
"""Told of an alarm: its region, its name, its state, and when, on the rehearsal's clock."""


class Monitoring:
    """The metrics and alarms of a rehearsal; other extensions write metrics and read alarms here."""

    def __init__(self, clock: Clock) -> None:
        """Start with no metric and no alarm."""
        self._clock = clock
        self._store = MetricStore()
        self._queries = MetricQueries(self._store, clock)
        self._watch = AlarmWatch(clock, self._datapoints)
        self._calls = AlarmCalls(self._watch, clock)
        named = {**self._queries.operations, **self._calls.operations}
        self.operations: dict[str, Operation] = {f"cloudwatch.{name}": answer for name, answer in named.items()}

    def stop(self) -> None:
        """End the evaluation of alarms."""
        self._watch.stop()

    def observe(self, metric: Metric, value: float, unit: str = "None") -> None:
        """Record one event now; at a speed of s it stands for s of them."""
        self._add(metric, value, self._clock.speed, unit)

    def gauge(self, metric: Metric, value: float, unit: str = "None", *, fine: bool = True) -> None:
        """Record one sample now, of something that is measured at intervals; `fine` keeps it by the second."""
        self._add(metric, value, 1, unit, fine=fine)

    def series(
        self, metric: Metric, *, statistic: str, period_seconds: int, periods: int
    ) -> list[tuple[datetime, float]]:
        """Return a statistic of the last complete periods, oldest first; periods without data are left out."""
        end = self._clock.time() // period_seconds * period_seconds
        found = []
        for number in range(periods, 0, -1):
            at = end - number * period_seconds
            sample = self._store.sample(metric, at, period_seconds)
            if sample is not None:
                found.append((datetime.fromtimestamp(at, UTC), sample.statistic(statistic)))
        return found

    def alarm_state(self, region: str, name: str) -> str | None:
        """Return OK, ALARM or INSUFFICIENT_DATA; None when there is no such alarm."""
        alarm = self._watch.find(region, name)
        return alarm.state if alarm else None

    def on_alarm(self, listener: AlarmListener) -> None:
        """Call `listener` at every change of state, and at every evaluation of an alarm that is in ALARM."""
        self._watch.listeners.append(listener)

    def put_alarm(self, region: str, params: Mapping[str, Any]) -> None:
        """Make or change an alarm, as PutMetricAlarm does."""
        self._calls.put(region, params)

    def delete_alarm(self, region: str, name: str) -> None:
        """Delete an alarm, if it is there."""
        self._watch.remove(region, name)

    def _add(self, metric: Metric, value: float, weight: float, unit: str, *, fine: bool = False) -> None:
        sample = Sample(unit=unit)
        sample.add(value, weight)
        self._store.add(metric, self._clock.time(), sample, fine=fine)

    def _datapoints(self, alarm: Alarm, end: float, periods: int) -> list[tuple[datetime, float]]:
        """Return an alarm's datapoints of the periods before a time, oldest first."""
        seconds = alarm.period_seconds
        start = datetime.fromtimestamp(end - periods * seconds, UTC)
        queries = alarm.queries
        # An alarm's window slides: its periods are over when it is evaluated, wherever the clock's hour began.
        found = self._queries.series_of(alarm.region, queries, start, datetime.fromtimestamp(end, UTC), origin=end)
        returned = next(one["Id"] for one in queries if one.get("ReturnData", True))
        return [(datetime.fromtimestamp(at, UTC), value) for at, value in sorted(found[returned].items())]
