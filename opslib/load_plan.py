"""When requests are due: requests per second over time, to be sent by `opslib.aws.load`."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from opslib.errors import ConfigurationError

_MOST_REQUESTS = 10_000_000


@dataclass(frozen=True)
class LoadPlan:
    """Requests per second over time.

    Attributes:
        steps: Stretches of time: requests/s at the beginning, at the end, and seconds of the wall.
    """

    steps: tuple[tuple[float, float, float], ...]

    def __post_init__(self) -> None:
        """Refuse what nobody could send."""
        for first, last, seconds in self.steps:
            finite = all(map(math.isfinite, (first, last, seconds)))
            if not (finite and first >= 0 and last >= 0 and seconds > 0):
                raise ConfigurationError(f"no load: from {first} to {last} requests/s in {seconds} s")
        requests = sum((first + last) / 2 * seconds for first, last, seconds in self.steps)
        if requests > _MOST_REQUESTS:
            raise ConfigurationError(f"{requests:.3g} requests are too many: a plan has {_MOST_REQUESTS:,} at most")

    @classmethod
    def constant(cls, rps: float, seconds: float) -> "LoadPlan":
        """Send the same number every second."""
        return cls(((rps, rps, seconds),))

    @classmethod
    def ramp(cls, rps: float, seconds: float, *, hold_seconds: float = 0) -> "LoadPlan":
        """Go from nothing to `rps` and, after a while there, back to nothing; up and down take `seconds` each."""
        hold = ((rps, rps, hold_seconds),) if hold_seconds else ()
        return cls(((0, rps, seconds), *hold, (rps, 0, seconds)))

    @classmethod
    def staircase(cls, rates: Sequence[float], seconds: float) -> "LoadPlan":
        """Stay at each of several rates for some seconds."""
        return cls(tuple((rate, rate, seconds) for rate in rates))

    @property
    def seconds(self) -> float:
        """How long it takes, on the wall's clock."""
        return sum(seconds for *_, seconds in self.steps)

    @property
    def peak_rps(self) -> float:
        """The most requests per second at any time."""
        return max((max(first, last) for first, last, _ in self.steps), default=0.0)

    def due_seconds(self) -> list[float]:
        """Return when each request is due, in seconds after the beginning, evenly spaced at the rate of the time."""
        due, carried, begin = [], 0.0, 0.0
        for first, last, seconds in self.steps:
            count = (first + last) / 2 * seconds
            due.extend(begin + _moment(number - carried, first, last, seconds) for number in _whole(carried, count))
            carried, begin = (carried + count) % 1.0, begin + seconds
        return due


def _whole(carried: float, count: float) -> range:
    """Return the numbers of the requests that fall into a stretch, `carried` being begun before it."""
    return range(1, math.floor(carried + count + 1e-9) + 1)


def _moment(number: float, first: float, last: float, seconds: float) -> float:
    """Return when the rate, which changes evenly, has made `number` requests."""
    slope = (last - first) / seconds
    if abs(slope) < 1e-12:
        return number / first
    return (math.sqrt(max(0.0, first * first + 2 * slope * number)) - first) / slope
