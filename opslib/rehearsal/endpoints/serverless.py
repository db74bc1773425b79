"""Serverless variants: containers that start when they are asked, serve one request each, and end when nobody asks.

Above MaxConcurrency a request is refused with ThrottlingException; a container that holds more than its memory size is
killed. Sources: docs.aws.amazon.com/sagemaker/latest/dg/serverless-endpoints.html and -monitoring.html. AWS does not
say how long a container stays warm; here it is five minutes of the wall's clock.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from opslib.rehearsal.calls import ServiceError
from opslib.rehearsal.endpoints.container_client import ContainerReply
from opslib.rehearsal.endpoints.instances import INVOCATION_SECONDS, ModelContainer, ModelInstance

IDLE_SECONDS = 300.0
"""How long a container stays warm after its last request."""

MAX_BODY_BYTES = 4 * 2**20
"""Largest request and response of a serverless endpoint, 4 MB."""

_LOOK_SECONDS = 0.2
"""How often idle containers and the memory of the others are looked at."""

MEMORY_SIZES_MB = (1024, 2048, 3072, 4096, 5120, 6144)
_INSTANCE_ONLY = (
    "InstanceType", "InitialInstanceCount", "AcceleratorType", "CoreDumpConfig", "ManagedInstanceScaling",
    "RoutingConfig", "VolumeSizeInGB", "ContainerStartupHealthCheckTimeoutInSeconds",
    "ModelDataDownloadTimeoutInSeconds",
)  # fmt: skip

Note = Callable[[str, float, str], None]
"""Takes a metric of the variant: its name, value and unit."""


def check_serverless(variant: Mapping[str, Any]) -> None:
    """Refuse a variant of an endpoint configuration whose ServerlessConfig AWS would refuse.

    Raises:
        ServiceError: ValidationException.
    """
    config, name = variant["ServerlessConfig"], variant["VariantName"]
    mixed = [setting for setting in _INSTANCE_ONLY if variant.get(setting)]
    if mixed:
        raise _invalid(f"{', '.join(mixed)} cannot be used with ServerlessConfig in variant {name}.")
    if config["MemorySizeInMB"] not in MEMORY_SIZES_MB:
        sizes = ", ".join(map(str, MEMORY_SIZES_MB))
        raise _invalid(f"MemorySizeInMB of variant {name} must be one of {sizes}.")
    check_concurrency(name, config)


def check_concurrency(variant_name: str, config: Mapping[str, Any]) -> None:
    """Refuse a ServerlessConfig with more provisioned concurrency than it may have of any kind.

    Raises:
        ServiceError: ValidationException.
    """
    if config.get("ProvisionedConcurrency", 0) > config["MaxConcurrency"]:
        raise _invalid(
            f"ProvisionedConcurrency of variant {variant_name} must be less than or equal to MaxConcurrency."
        )


def check_serverless_endpoint(params: Mapping[str, Any]) -> None:
    """Refuse what AWS has for instances only, in an endpoint configuration with a serverless variant.

    Raises:
        ServiceError: ValidationException.
    """
    variants, capture = params["ProductionVariants"], params.get("DataCaptureConfig")
    if not any(variant.get("ServerlessConfig") for variant in variants):
        return
    if len(variants) > 1:
        raise _invalid("Serverless inference supports one production variant of an endpoint.")
    if capture and capture.get("EnableCapture", True):
        raise _invalid("Data capture is not supported with serverless inference.")


class ServerlessFleet:
    """The containers of one serverless variant; it has the interface of `fleet.Fleet`."""

    def __init__(
        self,
        container: ModelContainer,
        config: Mapping[str, Any],
        *,
        note: Note = lambda _name, _value, _unit: None,
        idle_seconds: float = IDLE_SECONDS,
    ) -> None:
        """Take a ServerlessConfig; `note` gets the metrics that only serverless variants have."""
        self.config = dict(config)
        self._container = container
        self._note = note
        self._idle_seconds = idle_seconds
        self._warm: list[tuple[float, ModelInstance]] = []  # when each became idle; the last used is used next
        self._busy: set[ModelInstance] = set()
        self._taken = 0
        self._ended = threading.Event()
        self._changed = threading.Condition()

    @property
    def count(self) -> int:
        """The number of containers at this moment; 0 when nobody has asked for a while."""
        return len(self._warm) + len(self._busy)

    @property
    def healthy_count(self) -> int:
        """The same: a container that is not healthy is none."""
        return self.count

    def describe(self) -> dict[str, Any]:
        """Return what DescribeEndpoint shows of the variant in place of numbers of instances."""
        return {"CurrentServerlessConfig": self.config, "DesiredServerlessConfig": self.config}

    def start(self) -> None:
        """Start the provisioned containers, or one to see whether the model serves at all.

        Raises:
            ModelNotServing: it does not.
        """
        self._start_warm(self.config.get("ProvisionedConcurrency", 0) or 1)
        threading.Thread(target=self._look_after, name="serverless", daemon=True).start()

    def reconfigure(self, config: Mapping[str, Any]) -> None:
        """Change MaxConcurrency and ProvisionedConcurrency, and start what is provisioned and not there.

        Raises:
            ModelNotServing: a container did not start.
        """
        self.config = self.config | config
        self._start_warm(self.config.get("ProvisionedConcurrency", 0) - self.count)

    def resize(self, count: int) -> None:
        """Do nothing: the number of containers follows the requests."""

    def invoke(
        self, body: bytes, headers: Mapping[str, str], *, timeout_seconds: float | None = None
    ) -> ContainerReply:
        """Send a request to a container of its own, warm or new; the time-out is 60 seconds if none is given.

        Raises:
            ServiceError: ThrottlingException; MaxConcurrency requests are under way.
            ModelNotServing: the container did not start, ended, or held more than its memory size.
            InvocationTimedOut: it did not answer in time.
        """
        with self._slot():
            instance, setup_seconds = self._take_warm(), 0.0
            if instance is None:
                started = time.perf_counter()
                instance = self._cold_start()
                setup_seconds = time.perf_counter() - started
                self._note("ModelSetupTime", setup_seconds * 1e6, "Microseconds")
            try:
                reply = instance.invoke(body, headers, timeout_seconds)
            except BaseException:
                self._discard(instance)
                raise
            self._keep_warm(instance)
            return replace(reply, setup_seconds=setup_seconds)

    def drain(self) -> None:
        """Wait until no request is under way."""
        with self._changed:
            self._changed.wait_for(lambda: self._taken == 0, timeout=INVOCATION_SECONDS)

    def close(self) -> None:
        """Kill every container."""
        with self._changed:
            self._ended.set()
            instances = [*(instance for _, instance in self._warm), *self._busy]
            self._warm.clear()
            self._busy.clear()
            self._changed.notify_all()
        for instance in instances:
            instance.close()

    @contextmanager
    def _slot(self) -> Iterator[None]:
        limit = self.config["MaxConcurrency"]
        with self._changed:
            if self._taken >= limit:
                raise ServiceError("ThrottlingException", "Rate exceeded")
            self._taken += 1
            taken = self._taken
        self._note_concurrency(taken, limit)
        try:
            yield
        finally:
            with self._changed:
                self._taken -= 1
                self._changed.notify_all()

    def _note_concurrency(self, taken: int, limit: int) -> None:
        self._note("ServerlessConcurrentExecutionsUtilization", taken / limit, "None")
        provisioned = self.config.get("ProvisionedConcurrency", 0)
        if provisioned:
            kind = "" if taken <= provisioned else "Spillover"
            self._note("ServerlessProvisionedConcurrencyUtilization", taken / provisioned, "None")
            self._note("ServerlessProvisionedConcurrencyExecutions", taken, "Count")
            self._note(f"ServerlessProvisionedConcurrency{kind}Invocations", 1, "Count")

    def _start_warm(self, count: int) -> None:
        with ThreadPoolExecutor(max(1, count)) as pool:
            for instance in pool.map(lambda _: self._cold_start(), range(count)):
                self._keep_warm(instance)

    def _take_warm(self) -> ModelInstance | None:
        with self._changed:
            while self._warm:
                _, instance = self._warm.pop()
                if instance.healthy:
                    self._busy.add(instance)
                    return instance
                instance.close()
        return None

    def _cold_start(self) -> ModelInstance:
        instance = ModelInstance(self._container)
        with self._changed:
            self._busy.add(instance)
        try:
            instance.start()
        except BaseException:
            self._discard(instance)
            raise
        return instance

    def _keep_warm(self, instance: ModelInstance) -> None:
        with self._changed:
            self._busy.discard(instance)
            if not self._ended.is_set():
                self._warm.append((time.monotonic(), instance))
                self._changed.notify_all()
                return
        instance.close()

    def _discard(self, instance: ModelInstance) -> None:
        with self._changed:
            self._busy.discard(instance)
        instance.close()

    def _look_after(self) -> None:
        """End containers that were idle for long, and those that hold more memory than they may."""
        while not self._ended.wait(_LOOK_SECONDS):
            with self._changed:
                busy, idle = list(self._busy), self._take_idle()
            for instance in idle:
                instance.close()
            for instance in busy:
                usage = instance.usage()
                if usage and usage[1] > self.config["MemorySizeInMB"] * 2**20:
                    instance.close()  # its request fails, and `invoke` forgets it

    def _take_idle(self) -> list[ModelInstance]:
        """Return the containers to end, never the provisioned ones; they are warm no longer."""
        due = [one for one in self._warm if one[0] + self._idle_seconds <= time.monotonic()]
        ended = due[: max(0, self.count - self.config.get("ProvisionedConcurrency", 0))]
        self._warm = [one for one in self._warm if one not in ended]
        return [instance for _, instance in ended]


def _invalid(message: str) -> ServiceError:
    return ServiceError("ValidationException", message)
