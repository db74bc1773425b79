"""What a Lambda function costs at a given traffic, and how often it starts cold: pure arithmetic, an estimate.

Invocations arrive at random (a Poisson process) and Lambda refuses or spills what finds everything busy, so that the
busy environments are Erlang's loss system. Prices: aws.amazon.com/lambda/pricing, x86, us-east-1, no free tier.
"""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

from opslib.errors import ConfigurationError
from opslib.sizing import REQUESTS_PER_CONCURRENCY
from opslib.specs import FunctionSpec
from opslib.tables import Table
from opslib.traffic import Traffic

DOLLARS_PER_REQUEST = 0.20 / 1e6
DOLLARS_PER_GB_SECOND = 0.0000166667
DOLLARS_PER_PROVISIONED_GB_SECOND = 0.0000041667
"""Of what is kept ready, used or not."""
DOLLARS_PER_GB_SECOND_ON_PROVISIONED = 0.0000097222
"""Of an invocation in an environment that is kept ready."""

PROVISIONED_STEP_SECONDS = 300.0
"""What is kept ready is paid for in steps of five minutes."""

ACCOUNT_CONCURRENCY = 1000
"""What a function without a reservation can have at most, by the default quota."""

KEPT_SECONDS = 600.0
"""How long an idle environment stays; AWS names no time, five to fifteen minutes are usual."""

_SPREAD = 3.0
"""Standard deviations above the mean: as many run at once at the busiest moments."""


@dataclass(frozen=True)
class FunctionTimes:
    """How long a function takes, measured: `warm_seconds` an invocation, `init_seconds` the start before a cold one."""

    warm_seconds: float
    init_seconds: float

    def __post_init__(self) -> None:
        """Refuse what is no time."""
        if not 0 < self.warm_seconds < math.inf or not 0 <= self.init_seconds < math.inf:
            raise ConfigurationError("warm_seconds is above 0, and init_seconds 0 or more")


@dataclass(frozen=True)
class FunctionCost:
    """A function at a traffic.

    Attributes:
        requests: How many arrive.
        throttled: How many of them are refused at first; a client that tries again is answered later.
        cold_starts: How many wait for the start of their environment.
        spilled: How many find everything that is provisioned busy.
        dollars: For all of it.
        idle_dollars: What of that is paid for environments that are kept ready, used or not.
    """

    requests: float
    throttled: float
    cold_starts: float
    spilled: float
    dollars: float
    idle_dollars: float


@dataclass(frozen=True)
class FunctionComparison(Table):
    """Costs of the same traffic side by side; the last line of a cell shows them as a table."""

    costs: Mapping[str, FunctionCost]

    @property
    def rows(self) -> list[dict[str, str | float]]:
        """One row a configuration, with shares in percent."""
        return [
            {
                "configuration": name,
                "requests": round(one.requests),
                "throttled (%)": _percent(one.throttled, one.requests),
                "cold starts": round(one.cold_starts, 1),
                "cold starts (%)": _percent(one.cold_starts, one.requests),
                "spilled over (%)": _percent(one.spilled, one.requests),
                "dollars": round(one.dollars, 4),
                "of that kept ready": round(one.idle_dollars, 4),
            }
            for name, one in self.costs.items()
        ]


def compare_functions(traffic: Traffic, specs: Mapping[str, FunctionSpec], times: FunctionTimes) -> FunctionComparison:
    """Put configurations side by side at the same traffic, each under its name.

    Raises:
        ConfigurationError: there is none.
    """
    if not specs:
        raise ConfigurationError("there is nothing to compare", hint='by name: {"reserved 10": FunctionSpec(...)}')
    return FunctionComparison({name: estimate_cost(traffic, spec, times) for name, spec in specs.items()})


def estimate_cost(traffic: Traffic, spec: FunctionSpec, times: FunctionTimes) -> FunctionCost:
    """Return what a configuration costs at a traffic, and how often it throttles and starts cold."""
    steps = [_step(*edge_and_rate, spec, times) for edge_and_rate in _constant_parts(traffic)]
    requests, throttled = sum(step.requests for step in steps), sum(step.throttled for step in steps)
    spilled, cold = sum(step.spilled for step in steps), _cold_starts(steps)
    provisioned, gigabytes = spec.provisioned_concurrency or 0, spec.memory_mb / 1024
    ready = requests - throttled - spilled if provisioned else 0.0
    on_demand_seconds = (requests - throttled - ready) * times.warm_seconds + cold * times.init_seconds
    seconds = math.ceil((traffic.edges[-1] - traffic.edges[0]) / PROVISIONED_STEP_SECONDS) * PROVISIONED_STEP_SECONDS
    idle = seconds * provisioned * gigabytes * DOLLARS_PER_PROVISIONED_GB_SECOND
    running = gigabytes * (
        on_demand_seconds * DOLLARS_PER_GB_SECOND + ready * times.warm_seconds * DOLLARS_PER_GB_SECOND_ON_PROVISIONED
    )
    dollars = idle + running + (requests - throttled) * DOLLARS_PER_REQUEST
    return FunctionCost(requests, throttled, cold, spilled, dollars, idle)


def lost_share(offered: float, servers: int) -> float:
    """Return the share of random arrivals that find every server busy: Erlang's B formula.

    `offered` is arrivals a second times the seconds that each stays (Little's law).
    """
    if offered <= 0:
        return 0.0
    share = 1.0
    for number in range(1, servers + 1):
        share = offered * share / (number + offered * share)
    return share


@dataclass(frozen=True)
class _Step:
    """A part of a traffic with a constant rate: what arrives in it, and the environments on demand that it needs."""

    start: float
    seconds: float
    requests: float
    throttled: float
    spilled: float
    """Answered, but by an environment on demand although there are provisioned ones."""
    environments: float


def _constant_parts(traffic: Traffic) -> list[tuple[float, float, float]]:
    """Return start, seconds and requests a second of each part."""
    edges = itertools.pairwise(traffic.edges)
    return [(start, end - start, rate) for (start, end), rate in zip(edges, traffic.rates, strict=True)]


def _step(start: float, seconds: float, rate: float, spec: FunctionSpec, times: FunctionTimes) -> _Step:
    offered, requests = rate * times.warm_seconds, rate * seconds
    most = ACCOUNT_CONCURRENCY if spec.reserved_concurrency is None else spec.reserved_concurrency
    provisioned = spec.provisioned_concurrency or 0
    refused = lost_share(offered, most)
    if rate > most * REQUESTS_PER_CONCURRENCY:
        refused = max(refused, 1 - most * REQUESTS_PER_CONCURRENCY / rate)
    not_ready = lost_share(offered, provisioned)
    at_once = min(most, offered + _SPREAD * math.sqrt(offered))
    spilled = requests * max(0.0, not_ready - refused) if provisioned else 0.0
    needed = max(at_once - provisioned, min(1.0, most))  # one at least, if anything runs on demand
    environments = min(needed, spilled if provisioned else requests)
    return _Step(start, seconds, requests, requests * refused, spilled, environments)


def _cold_starts(steps: list[_Step]) -> float:
    """Return how many environments are started: what a step needs more than those of the last minutes left idle.

    Where calls are rarer than an environment is kept, each of them has its chance to come too late.
    """
    started, most, kept = 0.0, 0.0, []
    for step in steps:
        kept = [one for one in kept if step.start - one.start - one.seconds < KEPT_SECONDS]
        started += max(0.0, step.environments - max((one.environments for one in kept), default=0.0))
        if step.environments:
            on_demand = step.spilled or step.requests - step.throttled
            most += on_demand
            rate = on_demand / step.seconds
            started += on_demand * math.exp(-rate * KEPT_SECONDS)
            kept.append(step)
    return min(started, most)


def _percent(part: float, whole: float) -> float:
    return round(100 * part / whole, 2) if whole else 0.0
