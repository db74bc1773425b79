"""The one who looks at all alarms when their periods end, and tells whoever listens."""

import logging
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial

from opslib.rehearsal.calls import ServiceError
from opslib.rehearsal.clock import Clock
from opslib.rehearsal.monitoring.actions import perform_actions
from opslib.rehearsal.monitoring.alarms import ALARM, Alarm, Datapoint

logger = logging.getLogger(__name__)

_TICK_SECONDS = 10
"""The shortest time between two evaluations of an alarm."""
_EXTRA_PERIODS = 2
"""As AWS does, more than the evaluation periods are looked at when some of these have no data."""

Listener = Callable[[str, str, str, datetime], None]


class AlarmWatch:
    """Holds the alarms and evaluates each when a period of its own ends."""

    def __init__(self, clock: Clock, datapoints: Callable[[Alarm, float, int], list[Datapoint]]) -> None:
        """Take what reads an alarm's datapoints before a time; the thread starts with the first alarm."""
        self._clock = clock
        self._datapoints = datapoints
        self._alarms: dict[tuple[str, str], Alarm] = {}
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self.lock = threading.RLock()
        self.listeners: list[Listener] = []

    def find(self, region: str, name: str) -> Alarm | None:
        """Return an alarm."""
        return self._alarms.get((region, name))

    def alarms(self, region: str) -> list[Alarm]:
        """Return the alarms of a region by their names."""
        with self.lock:
            return sorted((one for one in self._alarms.values() if one.region == region), key=lambda one: one.name)

    def keep(self, alarm: Alarm) -> None:
        """Watch an alarm from now on."""
        with self.lock:
            self._alarms[alarm.region, alarm.name] = alarm
            if self._thread is None and not self._stopped.is_set():
                self._thread = threading.Thread(target=self._run, name="alarms", daemon=True)
                self._thread.start()

    def remove(self, region: str, name: str) -> None:
        """Forget an alarm, if it is there."""
        with self.lock:
            self._alarms.pop((region, name), None)

    def change(self, alarm: Alarm, state: str, reason: str, data: str) -> None:
        """Put an alarm into a state and tell of it."""
        now = self._clock.now()
        with self.lock:
            before = alarm.state
            alarm.change(state, reason, data, now)
        if before != state:
            self._tell(alarm, before, now)

    def stop(self) -> None:
        """Look no more."""
        self._stopped.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout=10)

    def _run(self) -> None:
        ended = self._clock.time() // _TICK_SECONDS * _TICK_SECONDS
        while True:
            due = ended + _TICK_SECONDS
            if self._stopped.wait(max(0.001, self._clock.wall_seconds(due - self._clock.time()))):
                return
            ended = self._clock.time() // _TICK_SECONDS * _TICK_SECONDS
            with self.lock:
                # At high speeds ticks are skipped: a minute that has ended between two looks counts all the same.
                alarms = [one for one in self._alarms.values() if _has_period_ended(one, due - _TICK_SECONDS, ended)]
            for alarm in alarms:
                try:
                    self._evaluate(alarm, ended // alarm.evaluation_seconds * alarm.evaluation_seconds)
                except Exception:  # a fault of ours in one alarm: the others are still looked at
                    logger.exception("alarm %s could not be evaluated", alarm.name)

    def _evaluate(self, alarm: Alarm, end: float) -> None:
        end = end // alarm.period_seconds * alarm.period_seconds if alarm.period_seconds <= 60 else end
        try:
            points = self._datapoints(alarm, end, alarm.periods + _EXTRA_PERIODS)
        except ServiceError as error:  # e.g. an expression that divides what is not there
            logger.warning("alarm %s: %s", alarm.name, error)
            points = []
        own = [point for point in points if point[0].timestamp() >= end - alarm.periods * alarm.period_seconds]
        points = own if len(own) == alarm.periods else points
        now = datetime.fromtimestamp(end, UTC)
        with self.lock:
            if self._alarms.get((alarm.region, alarm.name)) is not alarm:
                return
            before, state = alarm.state, alarm.judge(points, now)
            if state != before:
                alarm.change(state, *alarm.explain(state, points, now), now)
        if state == ALARM or state != before:
            self._tell(alarm, before, now)

    def _tell(self, alarm: Alarm, before: str, now: datetime) -> None:
        if not alarm.params.get("ActionsEnabled", True):
            return
        told = [partial(listener, alarm.region, alarm.name, alarm.state, now) for listener in list(self.listeners)]
        if alarm.state != before:
            told.append(partial(perform_actions, alarm, before, now))
        for tell in told:
            try:
                tell()
            except ServiceError as error:  # of one listener: the others are still told
                logger.warning("alarm %s: %s", alarm.name, error)
            except Exception:
                logger.exception("alarm %s: somebody could not be told", alarm.name)


def _has_period_ended(alarm: Alarm, before: float, now: float) -> bool:
    return now // alarm.evaluation_seconds > before // alarm.evaluation_seconds
