"""What an endpoint runs by one configuration: variants with their fleets, started together and chosen by weight."""

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

from opslib.rehearsal.endpoints.container_client import ContainerReply
from opslib.rehearsal.endpoints.data_capture import DataCapture
from opslib.rehearsal.endpoints.instances import INVOCATION_SECONDS, ModelNotServing
from opslib.rehearsal.endpoints.metrics import VariantMetrics
from opslib.rehearsal.endpoints.model_data import ModelDataFailed
from opslib.rehearsal.role_storage import RoleStorage


class HostingFailed(Exception):  # noqa: N818 - it becomes a FailureReason
    """A variant did not come into service; the text is SageMaker's FailureReason."""


class VariantFleet(Protocol):
    """What answers a variant's requests: instances, or the containers of a serverless variant."""

    @property
    def count(self) -> int:
        """How many there are, healthy or not."""

    @property
    def healthy_count(self) -> int:
        """How many get traffic."""

    def describe(self) -> dict[str, Any]:
        """Return what DescribeEndpoint shows of them."""

    def start(self) -> None:
        """Start them and wait until they are healthy."""

    def resize(self, count: int) -> None:
        """Change their number, and wait until it is so."""

    def invoke(
        self, body: bytes, headers: Mapping[str, str], *, timeout_seconds: float | None = None
    ) -> ContainerReply:
        """Send a request to one of them."""

    def drain(self) -> None:
        """Wait until no request is under way."""

    def close(self) -> None:
        """Kill them."""


@dataclass
class Variant:
    """A production variant: its name, its share of the traffic, its image and its instances."""

    name: str
    weight: float
    image: str
    fleet: VariantFleet
    metrics: VariantMetrics
    instance_type: str = ""
    """Empty: it is serverless."""
    deployed_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    turns: float = 0.0
    """How far the variant is behind its share of the traffic, in turns times weight."""

    def start(self) -> None:
        """Start the instances.

        Raises:
            HostingFailed: one of them is not healthy, or has no model.
        """
        try:
            self.fleet.start()
        except ModelDataFailed as error:
            raise HostingFailed(str(error)) from error
        except ModelNotServing as error:
            raise HostingFailed(
                f"The primary container for production variant {self.name} did not pass the ping health check. "
                "Please check CloudWatch logs for this endpoint."
            ) from error

    def describe(self) -> dict[str, Any]:
        """Return the variant as DescribeEndpoint shows it."""
        images = {"SpecifiedImage": self.image, "ResolvedImage": self.image, "ResolutionTime": self.deployed_at}
        weights = {"CurrentWeight": self.weight, "DesiredWeight": self.weight}
        return {"VariantName": self.name, "DeployedImages": [images], **weights, **self.fleet.describe()}


@dataclass(frozen=True)
class HostingSettings:
    """What an endpoint configuration asks for beside its variants."""

    config_name: str
    async_config: Mapping[str, Any] | None = None
    capture_config: Mapping[str, Any] | None = None
    role_arn: str = ""
    """The role of its models."""


class Hosting:
    """The variants of one endpoint configuration, in service or on the way there."""

    def __init__(
        self,
        variants: Sequence[Variant],
        settings: HostingSettings,
        storage: RoleStorage,
        *,
        shadows: Sequence[Variant] = (),
        capture: DataCapture | None = None,
    ) -> None:
        """Take the variants and the S3 of the models' role; nothing is started yet."""
        self.variants: Mapping[str, Variant] = {variant.name: variant for variant in variants}
        self.shadows: Mapping[str, Variant] = {variant.name: variant for variant in shadows}
        self.settings = settings
        self.storage = storage
        self.capture = capture
        self._holders = 0
        self._changed = threading.Condition()

    @property
    def async_config(self) -> Mapping[str, Any] | None:
        """The configuration of asynchronous invocations, if it is for them."""
        return self.settings.async_config

    @property
    def everything(self) -> Sequence[Variant]:
        """The production variants and the shadows."""
        return (*self.variants.values(), *self.shadows.values())

    def start(self) -> None:
        """Start every variant.

        Raises:
            HostingFailed: one of them failed; all are closed then.
        """
        try:
            with ThreadPoolExecutor(len(self.everything)) as pool:
                list(pool.map(Variant.start, self.everything))
        except BaseException:
            self.close()
            raise

    def choose(self) -> Variant:
        """Return a variant: the one that is furthest behind its share, so that each gets exactly its weight's."""
        variants = list(self.variants.values())
        if len(variants) == 1:
            return variants[0]
        with self._changed:
            has_weight = any(variant.weight for variant in variants)
            weights = [variant.weight if has_weight else 1.0 for variant in variants]
            for variant, weight in zip(variants, weights, strict=True):
                variant.turns += weight
            candidates = [one for one, weight in zip(variants, weights, strict=True) if weight]
            chosen = max(candidates, key=lambda one: one.turns)
            chosen.turns -= sum(weights)
        return chosen

    def hold(self) -> None:
        """Keep it running until `release`, even when another configuration takes its place."""
        with self._changed:
            self._holders += 1

    def release(self) -> None:
        """End what `hold` began."""
        with self._changed:
            self._holders -= 1
            self._changed.notify_all()

    def close(self) -> None:
        """Kill every instance of every variant."""
        for variant in self.everything:
            variant.fleet.close()
        if self.capture:
            self.capture.close()

    def retire(self) -> None:
        """Let the requests under way finish, then close; in the background."""
        threading.Thread(target=self._drain_and_close, name="endpoint-retire", daemon=True).start()

    def _drain_and_close(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._holders == 0, timeout=INVOCATION_SECONDS)
        for variant in self.everything:
            variant.fleet.drain()
        self.close()
