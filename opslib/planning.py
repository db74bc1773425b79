"""Plans how many instances a policy would have at a traffic: the rules of the live scaler over a day in milliseconds.

What is simulated: requests per instance are summed a minute at a time, the policy's alarms look at them when a minute
is over, a scale-out is in service after the start of its instances, and nothing is scaled meanwhile. CloudWatch on AWS
tells of a minute up to two minutes late; add that to what is planned. Source of the rules: `opslib.scaling_rules`.
"""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from opslib import scaling_rules as rules
from opslib.errors import ConfigurationError
from opslib.specs import ScalingSpec
from opslib.tables import Table
from opslib.traffic import Traffic

PERIOD_SECONDS = 60


@dataclass(frozen=True)
class InstanceCapacity:
    """What one instance takes, costs, and needs to start.

    `max_rps` is the knee: more requests a second than that wait or fail. `startup_seconds` is from the decision until
    the instance is in service; on AWS some minutes, measured best.
    """

    max_rps: float
    dollars_per_hour: float = 0.0
    startup_seconds: float = 300.0

    def __post_init__(self) -> None:
        """Refuse what no instance is."""
        if not 0 < self.max_rps < math.inf:
            raise ConfigurationError(f"max_rps is {self.max_rps}", hint="one instance takes some requests a second")
        if not (0 <= self.dollars_per_hour < math.inf and 0 <= self.startup_seconds < math.inf):
            raise ConfigurationError("an instance costs nothing or more, and starts in no time or more")


@dataclass(frozen=True)
class PlannedActivity:
    """A change of capacity: when it is decided and when it is in service, in the traffic's seconds."""

    started_seconds: float
    ended_seconds: float
    before: int
    after: int
    cause: str
    """"AlarmHigh" or "AlarmLow"."""


@dataclass(frozen=True)
class Plan:
    """What a policy makes of a traffic, a minute a row.

    `times` are the minutes' begins in seconds; `instances` those in service then; `requests` and `over_capacity` the
    requests of the minute, and those of them beyond what the instances take; `dollars` the price of all instances,
    which are paid from the decision on.
    """

    times: tuple[float, ...]
    instances: tuple[int, ...]
    requests: tuple[float, ...]
    over_capacity: tuple[float, ...]
    dollars: float
    activities: tuple[PlannedActivity, ...] = ()

    @property
    def share_over_capacity(self) -> float:
        """The part of the requests that the instances in service could not take, from 0 to 1."""
        requests = sum(self.requests)
        return sum(self.over_capacity) / requests if requests else 0.0

    @property
    def instance_hours(self) -> float:
        """Hours of instances in service."""
        ends = [*self.times[1:], self.times[-1] + PERIOD_SECONDS]
        spans = zip(self.instances, self.times, ends, strict=True)
        return sum(count * (end - begin) for count, begin, end in spans) / 3600


def plan(traffic: Traffic, spec: ScalingSpec, capacity: InstanceCapacity, *, instances: int | None = None) -> Plan:
    """Simulate a policy against a traffic.

    Args:
        traffic: requests a second over time.
        spec: the policy and its bounds.
        capacity: of one instance.
        instances: how many there are at the beginning; by default the least that the policy allows.
    """
    simulation = _Simulation(traffic, spec, capacity, instances or spec.min_instances)
    begin, rows = traffic.edges[0], []
    minutes = math.ceil((traffic.edges[-1] - begin) / PERIOD_SECONDS)
    for minute in range(minutes):
        start = begin + minute * PERIOD_SECONDS
        count = simulation.in_service_at(start)
        rows.append((start, count, *simulation.pass_minute(start)))
        simulation.evaluate(start + PERIOD_SECONDS)
    times, counts, requests, over = zip(*rows, strict=True)
    return Plan(times, counts, requests, over, simulation.dollars, tuple(simulation.activities))


@dataclass
class _Simulation:
    """The state of a variant between two evaluations."""

    traffic: Traffic
    spec: ScalingSpec
    capacity: InstanceCapacity
    in_service: int
    wanted: int = field(init=False)
    dollars: float = 0.0
    activities: list[PlannedActivity] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.policy = tracking(self.spec)
        self.bounds = rules.Bounds(self.spec.min_instances, self.spec.max_instances)
        self.in_service = self.wanted = self.bounds.around(self.in_service)
        self.ready_at = -math.inf
        self.cooldowns = rules.Cooldowns()
        self.values: list[float | None] = []

    def in_service_at(self, at: float) -> int:
        """Return how many instances are in service, and begin the cooldown of what has been completed."""
        if self.in_service != self.wanted and at >= self.ready_at:
            seconds = self.policy.cooldown_seconds(out=self.wanted > self.in_service)
            self.cooldowns = self.cooldowns.after(self.in_service, self.wanted, seconds, self.ready_at)
            self.in_service = self.wanted
        return self.in_service

    def pass_minute(self, start: float) -> tuple[float, float]:
        """Sum a minute up; return its requests and how many were beyond the instances."""
        end = start + PERIOD_SECONDS
        self.dollars += max(self.wanted, self.in_service) * self.capacity.dollars_per_hour * (end - start) / 3600
        cuts = [start, *([self.ready_at] if start < self.ready_at < end else []), end]
        per_instance = over = 0.0
        for begin, until in itertools.pairwise(cuts):
            count = self.in_service_at(begin)
            per_instance += self.traffic.requests_between(begin, until) / count
            over += self.traffic.requests_above(count * self.capacity.max_rps, begin, until)
        self.values.append(per_instance)
        return self.traffic.requests_between(start, end), over

    def evaluate(self, at: float) -> None:
        """Do what the policy's alarms ask for at the end of a minute; nothing while instances start."""
        capacity = self.in_service_at(at)
        rings = [
            rules.Ring(self.policy, self.values[-1] or 0.0, alarm.is_high)
            for alarm in (self.policy.high_alarm, self.policy.low_alarm)
            if alarm.rings(self.values)
        ]
        if self.in_service != self.wanted or not rings:
            return
        decision = rules.decide(rings, capacity, self.bounds, self.cooldowns, at)
        if decision.capacity == capacity:
            return
        self.wanted = decision.capacity
        # Instances that leave are gone at once: the others are in service already.
        self.ready_at = at + (self.capacity.startup_seconds if self.wanted > capacity else 0)
        cause = "AlarmHigh" if self.wanted > capacity else "AlarmLow"
        self.activities.append(PlannedActivity(at, self.ready_at, capacity, self.wanted, cause))


def tracking(spec: ScalingSpec) -> rules.TargetTracking:
    """Return the policy of a specification: SageMakerVariantInvocationsPerInstance at its target."""
    return rules.TargetTracking(
        spec.target_invocations, spec.scale_out_cooldown_seconds, spec.scale_in_cooldown_seconds
    )


@dataclass(frozen=True)
class Comparison(Table):
    """Plans of the same traffic side by side; the last line of a cell shows it as a table."""

    plans: Mapping[str, Plan]

    @property
    def rows(self) -> list[dict[str, str | int | float]]:
        """One row a plan: name, most instances, instance hours, dollars, percent over capacity, activities."""
        return [
            {
                "policy": name,
                "most instances": max(one.instances),
                "instance hours": round(one.instance_hours, 2),
                "dollars": round(one.dollars, 2),
                "over capacity (%)": round(100 * one.share_over_capacity, 2),
                "activities": len(one.activities),
            }
            for name, one in self.plans.items()
        ]


def compare(plans: Mapping[str, Plan]) -> Comparison:
    """Put plans of the same traffic side by side, each under the name of its policy.

    Raises:
        ConfigurationError: there is no plan.
    """
    if not plans:
        raise ConfigurationError("there is no plan to compare", hint='pass them by name: compare({"reference": ...})')
    return Comparison(dict(plans))
