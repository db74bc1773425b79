"""What CloudWatch gets of a function: each invocation as it ends, each throttle, and what is provisioned.

Source: docs.aws.amazon.com/lambda/latest/dg/monitoring-metrics-types.html. The metrics by ExecutedVersion are not kept.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from opslib.rehearsal.functions.environment import Outcome
from opslib.rehearsal.monitoring.extension import Metric, Monitoring

NAMESPACE = "AWS/Lambda"


@dataclass(frozen=True)
class Target:
    """What was called: a function, by `qualifier` a version or an alias of it, empty for neither."""

    region: str
    name: str
    qualifier: str = ""

    def metrics(self, metric: str) -> list[Metric]:
        """Return a metric of the function, of what was called by its qualifier, and of all functions of the region."""
        named = [Metric.of(self.region, NAMESPACE, metric), self.of_function(metric)]
        return [*named, self.of_qualifier(metric)] if self.qualifier else named

    def of_function(self, metric: str) -> Metric:
        """Return a metric of the function as a whole."""
        return Metric.of(self.region, NAMESPACE, metric, FunctionName=self.name)

    def of_qualifier(self, metric: str) -> Metric:
        """Return a metric of the version or alias."""
        resource = f"{self.name}:{self.qualifier}"
        return Metric.of(self.region, NAMESPACE, metric, FunctionName=self.name, Resource=resource)


@dataclass
class Running:
    """One invocation under way; the times are in seconds of the wall."""

    started: float = field(default_factory=time.perf_counter)
    outcome: Outcome | None = None
    """What came of it; None when it ended with an error of ours."""
    is_provisioned: bool = False


class FunctionMetrics:
    """Writes the metrics of every function."""

    def __init__(self, monitoring: Monitoring) -> None:
        """Take where the metrics go."""
        self._monitoring = monitoring

    @contextmanager
    def invocation(self, target: Target, running: int) -> Iterator[Running]:
        """Measure an invocation; `running` counts those of the function that run, this one included."""
        self._monitoring.gauge(target.of_function("ConcurrentExecutions"), running, "Count")
        measured = Running()
        yield measured
        if measured.outcome is not None:
            self._write(target, measured, measured.outcome)

    def throttled(self, target: Target) -> None:
        """Count an invocation that was refused; it is none of the Invocations."""
        self._observe(target, "Throttles", 1)

    def write_spillover(self, target: Target) -> None:
        """Count an invocation that found everything provisioned busy."""
        self._observe(target, "ProvisionedConcurrencySpilloverInvocations", 1)

    def write_provisioned(self, target: Target, *, busy: int, available: int) -> None:
        """Write how much of what is provisioned is in use, as a count and as a share."""
        share = busy / available if available else 0.0
        self._monitoring.gauge(target.of_qualifier("ProvisionedConcurrentExecutions"), busy, "Count")
        self._monitoring.gauge(target.of_qualifier("ProvisionedConcurrencyUtilization"), share, "Count")

    def count(self, target: Target, metric: str) -> None:
        """Count one event of asynchronous invocation, e.g. DeadLetterErrors."""
        self._observe(target, metric, 1)

    def _write(self, target: Target, measured: Running, outcome: Outcome) -> None:
        self._observe(target, "Invocations", 1)
        self._observe(target, "Errors", bool(outcome.function_error))
        self._observe(target, "Throttles", 0)
        self._observe(target, "Duration", outcome.duration_ms, "Milliseconds")
        if measured.is_provisioned:
            self._observe(target, "ProvisionedConcurrencyInvocations", 1)

    def _observe(self, target: Target, metric: str, value: float, unit: str = "Count") -> None:
        for one in target.metrics(metric):
            self._monitoring.observe(one, value, unit)
