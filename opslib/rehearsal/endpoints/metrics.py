"""What CloudWatch gets of an endpoint: each invocation as it ends, and the load of the instances at intervals.

Source: docs.aws.amazon.com/sagemaker/latest/dg/monitoring-cloudwatch.html
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import psutil

from opslib.rehearsal.clock import Clock
from opslib.rehearsal.endpoints.fleet import Fleet
from opslib.rehearsal.endpoints.instances import ModelInstance
from opslib.rehearsal.monitoring.extension import Metric, Monitoring

CONCURRENCY_EVERY_SECONDS = 10.0
USAGE_EVERY_SECONDS = 60.0
_SHORTEST_WAIT_SECONDS = 0.1
"""Of the wall: at high speeds fewer samples are taken."""

_EACH_INVOCATION = (
    "Invocations", "InvocationsPerInstance", "ModelLatency", "OverheadLatency", "Invocation4XXErrors",
    "Invocation5XXErrors", "InvocationModelErrors",
)  # fmt: skip


@dataclass
class Outcome:
    """What became of one invocation; the times are in seconds of the wall."""

    started: float = field(default_factory=time.perf_counter)
    model_seconds: float | None = None
    """How long the container took; None when it did not answer."""
    status: int = 0
    """What the container answered; 0 when it did not."""


class VariantMetrics:
    """The metrics of one production variant, and how many of its invocations are under way."""

    def __init__(self, monitoring: Monitoring, region: str, endpoint_name: str, variant_name: str) -> None:
        """Name the metrics once: an invocation writes seven of them."""
        names = {"EndpointName": endpoint_name, "VariantName": variant_name}
        self._monitoring = monitoring
        self._each = [Metric.of(region, "AWS/SageMaker", name, **names) for name in _EACH_INVOCATION]
        self._concurrency = Metric.of(region, "AWS/SageMaker", "ConcurrentRequestsPerModel", **names)
        self._cpu = Metric.of(region, "/aws/sagemaker/Endpoints", "CPUUtilization", **names)
        self._memory = Metric.of(region, "/aws/sagemaker/Endpoints", "MemoryUtilization", **names)
        self._disk = Metric.of(region, "/aws/sagemaker/Endpoints", "DiskUtilization", **names)
        self._under_way = 0
        self._lock = threading.Lock()

    @contextmanager
    def invocation(self, count_instances: Callable[[], int]) -> Iterator[Outcome]:
        """Count an invocation; what the block learns of it goes into the outcome."""
        outcome = Outcome()
        with self._lock:
            self._under_way += 1
        try:
            yield outcome
        finally:
            with self._lock:
                self._under_way -= 1
            self._record(outcome, count_instances())

    def sample_concurrency(self, instances: int) -> None:
        """Write how many invocations are under way on an instance, and zeros while nobody asks.

        So does AWS: a variant without traffic is scaled in to its minimum, which needs a metric.
        """
        self._monitoring.gauge(self._concurrency, self._under_way / max(1, instances), "None")
        if not self._under_way:
            self._monitoring.gauge(self._each[1], 0, "None")

    def write_usage(self, cpu_percent: float, memory_percent: float, disk_percent: float) -> None:
        """Write the load of one instance: 100 for each busy core, and the shares of the memory and of the disk."""
        self._monitoring.gauge(self._cpu, cpu_percent, "Percent")
        self._monitoring.gauge(self._memory, memory_percent, "Percent")
        self._monitoring.gauge(self._disk, disk_percent, "Percent")

    def _record(self, outcome: Outcome, instances: int) -> None:
        observe, seconds = self._monitoring.observe, time.perf_counter() - outcome.started
        count, per_instance, model, overhead, errors_4xx, errors_5xx, errors = self._each
        observe(count, 1, "None")
        observe(per_instance, 1 / max(1, instances), "None")
        if outcome.model_seconds is not None:
            observe(model, outcome.model_seconds * 1e6, "Microseconds")
            observe(overhead, (seconds - outcome.model_seconds) * 1e6, "Microseconds")
        is_4xx = 400 <= outcome.status < 500
        observe(errors_4xx, int(is_4xx), "None")
        observe(errors_5xx, int(not is_4xx and outcome.status != 200), "None")
        observe(errors, int(outcome.status != 200), "None")


class LoadSampler:
    """Samples an endpoint's variants on the rehearsal's clock: concurrency every 10 seconds, usage every minute."""

    def __init__(self, clock: Clock, find: Callable[[], Sequence[tuple[VariantMetrics, object]]]) -> None:
        """Take what finds the metrics and the fleet of each variant that serves."""
        self._clock = clock
        self._find = find
        self._stopped = threading.Event()
        self._before: dict[ModelInstance, tuple[float, float]] = {}

    def start(self) -> None:
        """Start to sample, on a thread of its own."""
        threading.Thread(target=self._run, name="endpoint-load", daemon=True).start()

    def stop(self) -> None:
        """Stop."""
        self._stopped.set()

    def _run(self) -> None:
        pause = max(_SHORTEST_WAIT_SECONDS, self._clock.wall_seconds(CONCURRENCY_EVERY_SECONDS))
        self._sample_usage()  # what usage is measured from
        usage_due = self._clock.time() + USAGE_EVERY_SECONDS
        while not self._stopped.wait(pause):
            for metrics, fleet in self._find():
                metrics.sample_concurrency(fleet.healthy_count if isinstance(fleet, Fleet) else 1)
            if self._clock.time() >= usage_due:
                self._sample_usage()
                usage_due = max(usage_due + USAGE_EVERY_SECONDS, self._clock.time())

    def _sample_usage(self) -> None:
        memory_bytes, now, known = psutil.virtual_memory().total, time.monotonic(), self._before
        self._before = {}
        for metrics, fleet in self._find():
            for instance in fleet.instances if isinstance(fleet, Fleet) else ():
                usage = instance.usage()
                if usage is None:
                    continue
                self._before[instance] = (now, usage[0])
                since, seconds = known.get(instance, (now, usage[0]))
                if now > since and usage[0] >= seconds:  # less: the container was replaced
                    cpu_percent = 100 * (usage[0] - seconds) / (now - since)
                    metrics.write_usage(cpu_percent, 100 * usage[1] / memory_bytes, 100 * instance.disk_share())
