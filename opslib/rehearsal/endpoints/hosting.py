"""What an endpoint runs: production variants with their fleets, started together and chosen by weight."""

import random
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from opslib.rehearsal.endpoints.fleet import Fleet, ModelNotServing
from opslib.rehearsal.endpoints.model_data import ModelDataFailed


class HostingFailed(Exception):  # noqa: N818 - it becomes a FailureReason
    """A variant did not come into service; the text is SageMaker's FailureReason."""


@dataclass
class Variant:
    """A production variant: its name, its share of the traffic, its image and its instances."""

    name: str
    weight: float
    image: str
    fleet: Fleet
    deployed_at: datetime = field(default_factory=lambda: datetime.now(UTC))

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
        return {
            "VariantName": self.name,
            "DeployedImages": [images],
            "CurrentWeight": self.weight,
            "DesiredWeight": self.weight,
            "CurrentInstanceCount": self.fleet.healthy_count,
            "DesiredInstanceCount": self.fleet.count,
        }


class Hosting:
    """The variants of an endpoint."""

    def __init__(self, variants: Sequence[Variant]) -> None:
        """Take the variants; nothing is started yet."""
        self.variants: Mapping[str, Variant] = {variant.name: variant for variant in variants}
        self._random = random.Random()  # noqa: S311 - traffic, not secrets

    def start(self) -> None:
        """Start every variant.

        Raises:
            HostingFailed: one of them failed; all are closed then.
        """
        try:
            with ThreadPoolExecutor(len(self.variants)) as pool:
                list(pool.map(Variant.start, self.variants.values()))
        except BaseException:
            self.close()
            raise

    def choose(self) -> Variant:
        """Return a variant, each as often as its weight asks for."""
        variants = list(self.variants.values())
        weights = [variant.weight for variant in variants]
        return self._random.choices(variants, weights if any(weights) else None)[0]

    def close(self) -> None:
        """Kill every instance of every variant."""
        for variant in self.variants.values():
            variant.fleet.close()

    def retire(self) -> None:
        """Let the requests under way finish, then close; in the background."""
        threading.Thread(target=self._drain_and_close, name="endpoint-retire", daemon=True).start()

    def _drain_and_close(self) -> None:
        for variant in self.variants.values():
            variant.fleet.drain()
        self.close()
