"""Traffic: requests a second over time, from a file, from CloudWatch or from a pattern."""

import bisect
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from opslib.errors import ConfigurationError
from opslib.traffic_files import read_cloudwatch, read_csv

_DAY_SECONDS = 86_400
_PERIOD_SECONDS = 60.0
"""Of CloudWatch's sums."""
_STEP_SECONDS = 10
"""Of a ramp, whose rate is constant for so long."""


@dataclass(frozen=True)
class Traffic:
    """Requests a second, constant between two `edges`.

    `edges` are seconds, one more than `rates`: rate i is that from edge i to edge i + 1.
    """

    edges: tuple[float, ...]
    rates: tuple[float, ...]

    def __post_init__(self) -> None:
        """Refuse what is no course of time or no rate."""
        if not self.rates or len(self.edges) != len(self.rates) + 1:
            raise ConfigurationError("traffic is at least one rate, and one edge more than rates")
        if not all(a < b for a, b in itertools.pairwise(self.edges)) or not math.isfinite(sum(self.edges)):
            raise ConfigurationError("the times of a traffic are in order and differ")
        if not all(0 <= rate < math.inf for rate in self.rates):
            raise ConfigurationError("requests a second are 0 or more")

    @classmethod
    def from_csv(cls, path: Path | str) -> "Traffic":
        """Read a table of two columns: a time (seconds, or ISO 8601) and requests a second from then on.

        The earliest time becomes 0; the last rate holds for as long as the one before it. See `traffic_files.read_csv`.

        Raises:
            ConfigurationError: it is no such file.
        """
        points = read_csv(path)
        times, rates = zip(*points, strict=True)
        edges = [*times, times[-1] + times[-1] - times[-2]]
        return cls(tuple(edge - times[0] for edge in edges), rates)

    @classmethod
    def from_cloudwatch(cls, reply: Mapping[str, Any] | Path | str, period_seconds: float | None = None) -> "Traffic":
        """Take a GetMetricData or GetMetricStatistics reply, or a file with its JSON: the Sum of Invocations.

        Periods that are missing are periods without requests.

        Args:
            reply: what CloudWatch said. Of a GetMetricData reply the first query counts.
            period_seconds: of the sums; by default the shortest time between two of them.

        Raises:
            ConfigurationError: it has no sums.
        """
        sums = read_cloudwatch(reply)
        first, last = sums[0][0], sums[-1][0]
        gaps = [later - earlier for (earlier, _), (later, _) in itertools.pairwise(sums)]
        period = period_seconds or min(gaps, default=_PERIOD_SECONDS)
        rates = [0.0] * (round((last - first) / period) + 1)
        for moment, value in sums:
            rates[round((moment - first) / period)] += value / period
        return cls(tuple(index * period for index in range(len(rates) + 1)), tuple(rates))

    @classmethod
    def day(cls, peak_rps: float, *, night_rps: float = 0.0, peak_hour: float = 14.0) -> "Traffic":
        """Return a day of offices: quiet at night, twelve hours of a smooth hill around its peak; a rate a minute."""
        hours = [(minute + 0.5) / 60 for minute in range(_DAY_SECONDS // 60)]
        away = [min(abs(hour - peak_hour), 24 - abs(hour - peak_hour)) for hour in hours]
        hill = [math.cos(math.pi * distance / 12) ** 2 if distance < 6 else 0.0 for distance in away]
        return cls(
            tuple(60.0 * minute for minute in range(len(hours) + 1)),
            tuple(night_rps + (peak_rps - night_rps) * height for height in hill),
        )

    @classmethod
    def ramp(cls, peak_rps: float, *, up_seconds: float, hold_seconds: float = 0, down_seconds: float = 0) -> "Traffic":
        """Return a ramp from 0 to the peak, a time at the peak, and a ramp back to 0."""
        edges, rates = [0.0], []
        for first, last, seconds in (
            (0.0, peak_rps, up_seconds),
            (peak_rps, peak_rps, hold_seconds),
            (peak_rps, 0.0, down_seconds),
        ):
            count, start = math.ceil(seconds / _STEP_SECONDS), edges[-1]
            edges += [start + seconds * (index + 1) / count for index in range(count)]
            rates += [first + (last - first) * (index + 0.5) / count for index in range(count)]
        return cls(tuple(edges), tuple(rates))

    def followed_by(self, rate: float, seconds: float) -> "Traffic":
        """Return this traffic and then so many seconds of a constant rate."""
        return Traffic((*self.edges, self.edges[-1] + seconds), (*self.rates, rate))

    def rate_at(self, at: float) -> float:
        """Return the requests a second at a time; 0 before the first edge and after the last."""
        index = bisect.bisect_right(self.edges, at) - 1
        return self.rates[index] if 0 <= index < len(self.rates) else 0.0

    def requests_between(self, begin: float, end: float) -> float:
        """Return how many requests come in a time."""
        return self._until(end) - self._until(begin)

    def requests_above(self, rate: float, begin: float, end: float) -> float:
        """Return how many requests of a time are beyond `rate` a second."""
        first = max(0, bisect.bisect_right(self.edges, begin) - 1)
        total = 0.0
        for index in range(first, len(self.rates)):
            if self.edges[index] >= end:
                break
            seconds = min(end, self.edges[index + 1]) - max(begin, self.edges[index])
            total += max(0.0, self.rates[index] - rate) * max(0.0, seconds)
        return total

    @cached_property
    def _sums(self) -> list[float]:
        """How many requests have come until each edge."""
        spans = zip(self.rates, itertools.pairwise(self.edges), strict=True)
        return [0.0, *itertools.accumulate(rate * (end - begin) for rate, (begin, end) in spans)]

    def _until(self, at: float) -> float:
        index = bisect.bisect_right(self.edges, at) - 1
        if index < 0:
            return 0.0
        if index >= len(self.rates):
            return self._sums[-1]
        return self._sums[index] + self.rates[index] * (at - self.edges[index])
