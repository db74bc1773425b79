"""The rules of Application Auto Scaling: when a policy's alarms ring, and what capacity follows.

Nothing here has a clock or a metric of its own: times are seconds on whichever clock the caller has. The rehearsal's
scaler and the planner both call these functions, so that a plan is what the rehearsal does.

AWS documents the proportion, the cooldowns and which policy wins; the number of datapoints and the 10 % are what its
alarms show. It takes the newest datapoint here, which AWS does not tell. Sources:
docs.aws.amazon.com/autoscaling/application/userguide/target-tracking-scaling-policy-overview.html and
step-scaling-policy-overview.html
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

HIGH_DATAPOINTS = 3
LOW_SECONDS = 900
LOW_SHARE_OF_TARGET = 0.9
"""Between this share of the target and the target nothing happens, or the capacity would swing to and fro."""

AT_MAXIMUM = "AlreadyAtMaxCapacity"
AT_MINIMUM = "AlreadyAtMinCapacity"
AT_DESIRED = "AlreadyAtDesiredCapacity"
FLAPPING = "AutoScalingAnticipatedFlapping"
UNSCALABLE = "TargetServicePutResourceAsUnscalable"
COOLING_DOWN = "CoolingDown"
"""Not a reason that AWS shows: a cooldown leaves no trace in DescribeScalingActivities."""
SUSPENDED = "Suspended"
"""Not a reason that AWS shows either."""


@dataclass(frozen=True)
class AlarmRule:
    """An alarm of a policy: it rings when each of the last `datapoints` periods is on the wrong side of `threshold`."""

    threshold: float
    is_high: bool
    datapoints: int
    period_seconds: int = 60

    def rings(self, values: Sequence[float | None]) -> bool:
        """Return whether it rings after these periods, oldest first; None stands for a period without data."""
        last = values[-self.datapoints :]
        return len(last) == self.datapoints and all(value is not None and self._is_breached(value) for value in last)

    def _is_breached(self, value: float) -> bool:
        return value > self.threshold if self.is_high else value < self.threshold


@dataclass(frozen=True)
class TargetTracking:
    """A policy that keeps a metric, which is a mean per unit of capacity, at its target."""

    target: float
    scale_out_cooldown_seconds: float = 300
    scale_in_cooldown_seconds: float = 300
    disable_scale_in: bool = False
    period_seconds: int = 60

    @property
    def high_alarm(self) -> AlarmRule:
        """The alarm that asks for more: three periods above the target."""
        return AlarmRule(self.target, is_high=True, datapoints=HIGH_DATAPOINTS, period_seconds=self.period_seconds)

    @property
    def low_alarm(self) -> AlarmRule:
        """The alarm that asks for less: a quarter of an hour below 0.9 of the target."""
        threshold, datapoints = self.target * LOW_SHARE_OF_TARGET, LOW_SECONDS // self.period_seconds
        return AlarmRule(threshold, is_high=False, datapoints=datapoints, period_seconds=self.period_seconds)

    def cooldown_seconds(self, *, out: bool) -> float:
        """Return how long the policy rests after an activity of this direction."""
        return self.scale_out_cooldown_seconds if out else self.scale_in_cooldown_seconds

    def next_capacity(self, capacity: int, value: float) -> int:
        """Return the least capacity at which the same load would be at the target or below."""
        # A billionth less, lest 3 x (10 / 3) become 10.000000000000002 and so 11.
        return math.ceil(capacity * value / self.target * (1 - 1e-9))


@dataclass(frozen=True)
class Step:
    """An adjustment for a metric that is between `lower` and `upper` beyond the alarm's threshold."""

    adjustment: int
    lower: float = -math.inf
    upper: float = math.inf

    def covers(self, breach: float) -> bool:
        """Return whether it is for this distance: the bound nearer to the threshold belongs to the step."""
        return self.lower <= breach < self.upper if breach >= 0 else self.lower < breach <= self.upper


@dataclass(frozen=True)
class StepScaling:
    """A policy that adjusts the capacity by how far an alarm's metric is beyond the alarm's threshold."""

    steps: tuple[Step, ...]
    adjustment_type: str = "ChangeInCapacity"
    scale_cooldown_seconds: float = 300
    least_adjustment: int = 0
    """MinAdjustmentMagnitude, for PercentChangeInCapacity."""

    def cooldown_seconds(self, *, out: bool) -> float:  # noqa: ARG002 - a step policy has one for both directions
        """Return how long the policy rests after an activity."""
        return self.scale_cooldown_seconds

    def next_capacity(self, capacity: int, breach: float) -> int:
        """Return the capacity for a metric that is `breach` above (or, negative, below) the threshold."""
        step = next((step for step in self.steps if step.covers(breach)), None)
        if step is None:
            return capacity
        if self.adjustment_type == "ExactCapacity":
            return step.adjustment
        change = step.adjustment
        if self.adjustment_type == "PercentChangeInCapacity":
            change = self._whole_change(capacity * step.adjustment / 100)
        return max(0, capacity + change)

    def _whole_change(self, change: float) -> int:
        """Round as AWS does: towards zero, but at least one, and at least MinAdjustmentMagnitude."""
        if change == 0:
            return 0
        size = max(1, math.floor(abs(change)), self.least_adjustment)
        return size if change > 0 else -size


@dataclass(frozen=True)
class Ring:
    """An alarm that rings: its policy, and the newest value of its metric.

    For a step policy `value` is the distance from the alarm's threshold. `is_high` is None for it: its steps know the
    direction.
    """

    policy: TargetTracking | StepScaling
    value: float
    is_high: bool | None = None

    def next_capacity(self, capacity: int) -> int:
        """Return the capacity that the policy asks for; an alarm of one direction asks for nothing of the other."""
        wanted = self.policy.next_capacity(capacity, self.value)
        if self.is_high is None:
            return wanted
        return max(capacity, wanted) if self.is_high else min(capacity, wanted)


@dataclass(frozen=True)
class Bounds:
    """Between what the capacity stays, and which directions are suspended."""

    minimum: int
    maximum: int
    is_out_suspended: bool = False
    is_in_suspended: bool = False

    def around(self, capacity: int) -> int:
        """Return the nearest capacity within the bounds."""
        return max(self.minimum, min(self.maximum, capacity))


@dataclass(frozen=True)
class Cooldowns:
    """Until when a resource rests after its last activities, in seconds."""

    out_until: float = -math.inf
    in_until: float = -math.inf
    capacity_before: int = 0
    """Before the scale-out whose cooldown runs: what it added counts as part of what the next one adds."""

    def after(self, before: int, capacity: int, seconds: float, at: float) -> "Cooldowns":
        """Return the cooldowns after an activity that ended `at` these seconds; a scale-out ends that of a scale-in."""
        if capacity < before:
            return Cooldowns(self.out_until, at + seconds, self.capacity_before)
        first = self.capacity_before if at < self.out_until else before
        return Cooldowns(out_until=at + seconds, capacity_before=first)


@dataclass(frozen=True)
class Decision:
    """What follows from the alarms that ring: a capacity, or the reason why it stays as it is."""

    capacity: int
    reason: str = ""
    ring: Ring | None = None
    """The alarm that decided."""


def agreed(rings: Sequence[Ring], policies: Collection[TargetTracking | StepScaling]) -> list[Ring]:
    """Return the rings that count: target tracking scales in only when all its policies of a resource want to."""
    trackers = [one for one in policies if isinstance(one, TargetTracking) and not one.disable_scale_in]
    low = sum(ring.is_high is False for ring in rings)
    return [ring for ring in rings if ring.is_high is not False or low >= len(trackers)]


def decide(rings: Sequence[Ring], capacity: int, bounds: Bounds, cooldowns: Cooldowns, at: float) -> Decision:
    """Return the capacity after the alarms that ring `at` these seconds: of several the largest wins.

    Args:
        rings: the alarms that ring; at least one.
        capacity: how much is there now, and asked for.
        bounds: the least and the most that is allowed.
        cooldowns: of the resource.
        at: the time.
    """
    cooling = at < cooldowns.out_until
    base = min(cooldowns.capacity_before, capacity) if cooling else capacity
    most, ring = _largest(rings, base)
    if most > base:
        return _scale_out(ring, most, capacity, bounds)
    least, ring = _largest(rings, capacity)
    if least >= capacity:
        return Decision(capacity, _reason_to_stay(ring, capacity, bounds), ring)
    return _scale_in(ring, least, capacity, bounds, is_cooling=at < cooldowns.in_until)


def _reason_to_stay(ring: Ring, capacity: int, bounds: Bounds) -> str:
    if ring.is_high is not False:
        return AT_DESIRED
    return FLAPPING if capacity > bounds.minimum else AT_MINIMUM  # one less would be above the target again


def _largest(rings: Sequence[Ring], capacity: int) -> tuple[int, Ring]:
    ring = max(rings, key=lambda one: one.next_capacity(capacity))
    return ring.next_capacity(capacity), ring


def _scale_out(ring: Ring, wanted: int, capacity: int, bounds: Bounds) -> Decision:
    if capacity >= bounds.maximum:
        return Decision(capacity, AT_MAXIMUM, ring)
    if wanted <= capacity:  # no larger than what the scale-out before has added
        return Decision(capacity, COOLING_DOWN, ring)
    if bounds.is_out_suspended:
        return Decision(capacity, SUSPENDED, ring)
    return Decision(bounds.around(wanted), ring=ring)


def _scale_in(ring: Ring, wanted: int, capacity: int, bounds: Bounds, *, is_cooling: bool) -> Decision:
    if capacity <= bounds.minimum:
        return Decision(capacity, AT_MINIMUM, ring)
    if is_cooling:
        return Decision(capacity, COOLING_DOWN, ring)
    if bounds.is_in_suspended:
        return Decision(capacity, SUSPENDED, ring)
    return Decision(max(bounds.minimum, wanted), ring=ring)
