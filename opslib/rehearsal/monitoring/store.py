"""Where metrics are kept: the values of a minute together, those of a second for what is sampled more often.

Statistics are those of https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/Statistics-definitions.html.
Percentiles are read from a histogram whose buckets are 1 % wide.
"""

import math
import threading
from array import array
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

MINUTE_SECONDS = 60
FINE_KEPT_SECONDS = 3 * 3600
"""How long the values of single seconds are kept, as on AWS."""
KEPT_SECONDS = 15 * 24 * 3600
"""How long those of a minute are kept, as on AWS."""
MOST_METRICS = 20_000

_NOTHING: Counter[int] = Counter()
"""What stands in the place of a spread that is packed."""

_BUCKET_WIDTH = math.log(1.01)
_BUCKET_OF_ONE = 100_000
_NEXT_TO_NOTHING = 1e-12


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


@dataclass(slots=True)
class Sample:
    """The values of a period: how many, their sum, their extremes, and how they are spread.

    Weeks of periods are kept, and few are ever read: `pack` puts the spread of one that is over into less room.
    """

    count: float = 0.0
    total: float = 0.0
    smallest: float = math.inf
    largest: float = -math.inf
    spread: Counter[int] = field(default_factory=Counter)
    unit: str = "None"
    _packed: tuple[bytes, bytes] = (b"", b"")

    def pack(self) -> None:
        """Take less room, at the price of unpacking for each look."""
        if self.spread:
            self._packed = (array("i", self.spread).tobytes(), array("f", self.spread.values()).tobytes())
            self.spread = _NOTHING

    def _unpacked(self) -> Counter[int]:
        if self.spread is not _NOTHING:
            return self.spread
        return Counter(dict(zip(array("i", self._packed[0]), array("f", self._packed[1]), strict=True)))

    def add(self, value: float, weight: float) -> None:
        """Count a value `weight` times."""
        self.spread = self._unpacked()
        self.count += weight
        self.total += value * weight
        self.smallest, self.largest = min(self.smallest, value), max(self.largest, value)
        self.spread[_bucket(value)] += weight

    def merge(self, other: "Sample") -> None:
        """Count another period's values, too."""
        self.spread = self._unpacked()
        self.count += other.count
        self.total += other.total
        self.smallest, self.largest = min(self.smallest, other.smallest), max(self.largest, other.largest)
        self.spread.update(other._unpacked())
        self.unit = other.unit

    def statistic(self, name: str) -> float:
        """Return Sum, Average, Minimum, Maximum, SampleCount or a percentile such as p95 or p99.9."""
        if name.startswith("p"):
            return self._percentile(float(name[1:]))
        simple = {"Sum": self.total, "Minimum": self.smallest, "Maximum": self.largest, "SampleCount": self.count}
        return self.total / self.count if name == "Average" else simple[name]

    def _percentile(self, percent: float) -> float:
        if percent in {0, 100}:
            return self.largest if percent else self.smallest
        wanted, seen, spread = self.count * percent / 100, 0.0, self._unpacked()
        for bucket in sorted(spread):
            seen += spread[bucket]
            if seen >= wanted * (1 - 1e-12):
                return min(max(_middle(bucket), self.smallest), self.largest)
        return self.largest


def _bucket(value: float) -> int:
    size = abs(value)
    if size < _NEXT_TO_NOTHING:
        return 0
    place = round(math.log(size) / _BUCKET_WIDTH) + _BUCKET_OF_ONE
    return place if value > 0 else -place


def _middle(bucket: int) -> float:
    return math.copysign(math.exp((abs(bucket) - _BUCKET_OF_ONE) * _BUCKET_WIDTH), bucket) if bucket else 0.0


@dataclass
class _Values:
    """One metric's values, by the start of the minute or the second that they belong to."""

    minutes: dict[int, Sample] = field(default_factory=dict)
    seconds: dict[int, Sample] = field(default_factory=dict)
    newest: float = 0.0

    def add(self, at: float, sample: Sample, *, fine: bool) -> None:
        self.newest = max(self.newest, at)
        self._merge(self.minutes, int(at // MINUTE_SECONDS) * MINUTE_SECONDS, sample, KEPT_SECONDS)
        if fine:
            self._merge(self.seconds, int(at), sample, FINE_KEPT_SECONDS)

    def _merge(self, samples: dict[int, Sample], start: int, sample: Sample, kept_seconds: int) -> None:
        if start < self.newest - kept_seconds:
            return
        if start not in samples:
            if samples:
                samples[next(reversed(samples))].pack()
            samples[start] = Sample()
            for old in [one for one in samples if one < self.newest - kept_seconds]:
                del samples[old]
        samples[start].merge(sample)


class MetricStore:
    """All metrics of all regions; any thread may write and read."""

    def __init__(self) -> None:
        """Start with none."""
        self._values: dict[Metric, _Values] = {}
        self._lock = threading.Lock()

    def add(self, metric: Metric, at: float, sample: Sample, *, fine: bool = False) -> None:
        """Keep values of a moment (seconds since 1970); `fine` keeps them by the second, too."""
        with self._lock:
            values = self._values.get(metric)
            if values is None:
                values = self._values[metric] = _Values()
                if len(self._values) > MOST_METRICS:
                    del self._values[min(self._values, key=lambda one: self._values[one].newest or at)]
            values.add(at, sample, fine=fine)

    def sample(self, metric: Metric, start: float, seconds: int) -> Sample | None:
        """Return what was measured from `start` on for so long; None when nothing was."""
        with self._lock:
            values = self._values.get(metric)
            if values is None:
                return None
            by_minute = seconds % MINUTE_SECONDS == 0
            step, samples = (MINUTE_SECONDS, values.minutes) if by_minute else (1, values.seconds)
            asked = range(int(start), int(start) + seconds, step)
            # Whichever are fewer: a period may be longer than anything that is kept.
            fewest, others = (asked, samples) if len(asked) < len(samples) else (samples, asked)
            found = [samples[at] for at in fewest if at in others]
            if not found:
                return None
            whole = Sample()
            for one in found:
                whole.merge(one)
            return whole

    def metrics(self, region: str) -> Iterable[tuple[Metric, float]]:
        """Return the metrics of a region, and when each was last written to."""
        with self._lock:
            return [(metric, values.newest) for metric, values in self._values.items() if metric.region == region]
