"""The rehearsal's clock, which may run faster than the wall's: a policy with minutes in it is watched in seconds.

On this clock are CloudWatch's metrics and alarms, auto scaling, and the waits of a deployment; processes, latencies and
time-outs take the time that they take, on the wall.

At a speed of 20, what happens in a second of the wall stands for 20 seconds: one request counts as 20 in the metrics.
So requests per second, and what is derived from them (targets, knees), are the same figures at every speed.
"""

import time
from datetime import UTC, datetime

from opslib.errors import ConfigurationError

FASTEST = 3600.0
"""An hour a second: beyond that no process starts in less than a day."""


class Clock:
    """A clock that shows the wall's time when it is made, and then runs `speed` times as fast."""

    def __init__(self, speed: float = 1.0) -> None:
        """Start the clock.

        Raises:
            ConfigurationError: it would stand still, run backwards or run too fast.
        """
        if not 1 <= speed <= FASTEST:
            raise ConfigurationError(
                f"the rehearsal's speed is {speed:g}", hint=f"it is a number from 1 (the wall's) to {FASTEST:g}"
            )
        self.speed = speed
        self._started, self._origin = time.monotonic(), time.time()

    def time(self) -> float:
        """Return the time in seconds since 1970."""
        return self._origin + (time.monotonic() - self._started) * self.speed

    def now(self) -> datetime:
        """Return the time, in UTC."""
        return datetime.fromtimestamp(self.time(), UTC)

    def wall_seconds(self, seconds: float) -> float:
        """Return how long `seconds` of this clock take on the wall."""
        return seconds / self.speed
