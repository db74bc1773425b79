"""What CloudWatch gets of a function: each invocation as it ends, each throttle, and what is provisioned.

Source: docs.aws.amazon.com/lambda/latest/dg/monitoring-metrics-types.html. The metrics by ExecutedVersion are not kept.
"""

from dataclasses import dataclass

from moto.awslambda.models import LambdaFunction

from opslib.rehearsal.calls import ACCOUNT_ID, Call
from opslib.rehearsal.functions.environment import Outcome
from opslib.rehearsal.monitoring.extension import Metric, Monitoring

NAMESPACE = "AWS/Lambda"


@dataclass(frozen=True, order=True)
class Target:
    """What was called: a function, by `qualifier` a version or an alias of it, empty for neither."""

    region: str
    name: str
    qualifier: str = ""

    @classmethod
    def of(cls, call: Call, function: LambdaFunction) -> "Target":
        """Return what a call names."""
        return cls(function.region, function.function_name, call.params.get("Qualifier", ""))

    @property
    def arn(self) -> str:
        """The ARN, always with a qualifier."""
        return f"arn:aws:lambda:{self.region}:{ACCOUNT_ID}:function:{self.name}:{self.qualifier or '$LATEST'}"

    @property
    def resource_arn(self) -> str:
        """The ARN as policies name it: with a qualifier only if one was named."""
        return self.arn if self.qualifier else self.arn.removesuffix(":$LATEST")

    @property
    def without_latest(self) -> "Target":
        """The same with one way to name $LATEST: without a qualifier."""
        return Target(self.region, self.name) if self.qualifier == "$LATEST" else self

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


@dataclass(frozen=True)
class Running:
    """How many invocations run at a moment, and how much of the account's concurrency is spoken for."""

    of_function: int
    of_region: int
    unreserved: int
    """Of the region's functions that reserve nothing."""
    claimed: int
    """What is not there for further ones of those."""


class FunctionMetrics:
    """Writes the metrics of every function."""

    def __init__(self, monitoring: Monitoring) -> None:
        """Take where the metrics go."""
        self._monitoring = monitoring

    def write_running(self, target: Target, running: Running) -> None:
        """Write how many invocations run as one begins: of the function, and of all functions of the region."""
        self._monitoring.gauge(target.of_function("ConcurrentExecutions"), running.of_function, "Count", fine=False)
        for name, count in (
            ("ConcurrentExecutions", running.of_region),
            ("UnreservedConcurrentExecutions", running.unreserved),
            ("ClaimedAccountConcurrency", running.claimed),
        ):
            self._monitoring.gauge(Metric.of(target.region, NAMESPACE, name), count, "Count", fine=False)

    def write_outcome(self, target: Target, outcome: Outcome, *, is_provisioned: bool) -> None:
        """Count an invocation that has ended."""
        self._observe(target, "Invocations", 1)
        self._observe(target, "Errors", bool(outcome.function_error))
        self._observe(target, "Throttles", 0)
        self._observe(target, "Duration", outcome.duration_ms, "Milliseconds")
        if is_provisioned:
            self._observe(target, "ProvisionedConcurrencyInvocations", 1)

    def count(self, target: Target, metric: str) -> None:
        """Count one event, e.g. of Throttles; what is throttled is none of the Invocations."""
        self._observe(target, metric, 1)

    def write_provisioned(self, target: Target, *, busy: int, available: int) -> None:
        """Write how much of what is provisioned is in use, as a count and as a share."""
        share = busy / available if available else 0.0
        self._monitoring.gauge(target.of_qualifier("ProvisionedConcurrentExecutions"), busy, "Count", fine=False)
        self._monitoring.gauge(target.of_qualifier("ProvisionedConcurrencyUtilization"), share, "Count", fine=False)

    def write_url_request(self, target: Target, status: int, latency_ms: float) -> None:
        """Count a request of a function URL."""
        self._observe(target, "UrlRequestCount", 1)
        self._observe(target, "UrlRequestLatency", latency_ms, "Milliseconds")
        self._observe(target, "Url4xxCount", 400 <= status < 500)
        self._observe(target, "Url5xxCount", status >= 500)

    def _observe(self, target: Target, metric: str, value: float, unit: str = "Count") -> None:
        for one in target.metrics(metric):
            self._monitoring.observe(one, value, unit)
