"""From an endpoint configuration to what it asks for: variants with containers, capture and shadows."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moto.sagemaker.models import Model

from opslib.rehearsal.endpoints.data_capture import DataCapture
from opslib.rehearsal.endpoints.fleet import Fleet
from opslib.rehearsal.endpoints.hosting import Hosting, HostingSettings, Variant, VariantFleet
from opslib.rehearsal.endpoints.images import find_program
from opslib.rehearsal.endpoints.instances import HEALTH_CHECK_SECONDS, ModelContainer
from opslib.rehearsal.endpoints.metrics import VariantMetrics
from opslib.rehearsal.endpoints.model_data import fetch_model, find_model_data
from opslib.rehearsal.endpoints.serverless import ServerlessFleet
from opslib.rehearsal.identity import assume_role, role_credentials
from opslib.rehearsal.log_streams import LogStream
from opslib.rehearsal.monitoring.extension import Metric
from opslib.rehearsal.role_storage import RoleStorage
from opslib.rehearsal.site import Site
from opslib.rehearsal.training.cores import share_of_cores

_KEPT_LINES = 10_000
"""Of an instance's log: a model server writes a line for every request."""


@dataclass(frozen=True)
class VariantPlan:
    """A variant of an endpoint configuration, with the model that it names."""

    settings: Mapping[str, Any]
    model: Model


@dataclass(frozen=True)
class HostingPlan:
    """What to build: for which endpoint, of which configuration, and who else runs on this machine."""

    region: str
    endpoint_name: str
    settings: HostingSettings
    variants: Sequence[VariantPlan]
    shadows: Sequence[VariantPlan] = ()
    count_neighbours: Callable[[], int] = lambda: 0
    """The number of instances of other endpoints."""

    @property
    def instances(self) -> Counter[str]:
        """How many instances of each type it has in the beginning."""
        counts: Counter[str] = Counter()
        for settings in (one.settings for one in (*self.variants, *self.shadows)):
            counts[settings.get("InstanceType", "")] += settings.get("InitialInstanceCount", 0)
        return counts


class HostingBuilder:
    """Builds hostings; each container gets the address of the rehearsal and its role's credentials."""

    def __init__(self, site: Site) -> None:
        """Keep the rehearsal."""
        self._site = site

    def build(self, plan: HostingPlan) -> Hosting:
        """Return the hosting, not yet started."""
        fleets: list[VariantFleet] = []

        def count_cores() -> int:
            instances = sum(max(1, fleet.count) for fleet in fleets) + plan.count_neighbours()
            return max(1, len(share_of_cores(0, 1)) // max(1, instances))

        variants = [self._build_variant(plan, one, count_cores) for one in plan.variants]
        shadows = [self._build_variant(plan, one, count_cores) for one in plan.shadows]
        fleets += [variant.fleet for variant in (*variants, *shadows)]
        storage = RoleStorage(assume_role(plan.settings.role_arn, "SageMaker"))
        capture_config, capture = plan.settings.capture_config or {}, None
        if capture_config and capture_config.get("EnableCapture", True):
            capture = DataCapture(capture_config, plan.endpoint_name, storage)
        return Hosting(variants, plan.settings, storage, shadows=shadows, capture=capture)

    def _build_variant(self, plan: HostingPlan, one: VariantPlan, count_cores: Callable[[], int]) -> Variant:
        settings, model = one.settings, one.model
        name = settings["VariantName"]
        container = ModelContainer(
            directory=self._site.directory,
            variables=self.variables(model, plan.region),
            fetch_model=model_fetcher(model),
            open_log=_log_opener(model, plan, name),
            startup_seconds=settings.get("ContainerStartupHealthCheckTimeoutInSeconds", HEALTH_CHECK_SECONDS),
            count_cores=count_cores,
            program=find_program(model.primary_container["Image"]),
        )
        return Variant(
            name=name,
            weight=settings.get("InitialVariantWeight", 1.0),
            image=model.primary_container["Image"],
            fleet=self._build_fleet(plan, settings, container),
            metrics=VariantMetrics(self._site.monitoring, plan.region, plan.endpoint_name, name),
            instance_type=settings.get("InstanceType", ""),
        )

    def _build_fleet(self, plan: HostingPlan, settings: Mapping[str, Any], container: ModelContainer) -> VariantFleet:
        if "ServerlessConfig" not in settings:
            routing = settings.get("RoutingConfig", {}).get("RoutingStrategy")
            return Fleet(container, settings["InitialInstanceCount"], at_random=routing == "RANDOM")
        names = {"EndpointName": plan.endpoint_name, "VariantName": settings["VariantName"]}

        def note(name: str, value: float, unit: str) -> None:
            self._site.monitoring.observe(Metric.of(plan.region, "AWS/SageMaker", name, **names), value, unit)

        return ServerlessFleet(container, settings["ServerlessConfig"], note=note)

    def variables(self, model: Model, region: str) -> dict[str, str]:
        """Return the container's variables; an isolated model gets no credentials, as on AWS."""
        ours = {"AWS_REGION": region, "AWS_DEFAULT_REGION": region}
        if not model.enable_network_isolation:
            ours |= role_credentials(model.execution_role_arn, "SageMaker")
            ours |= {"AWS_ENDPOINT_URL": self._site.endpoint_url, "AWS_EC2_METADATA_DISABLED": "true"}
        return ours | model.primary_container.get("Environment", {})


def model_fetcher(model: Model) -> Callable[[Path], None]:
    """Return what brings a model into a directory, with the permissions of its role."""
    data = find_model_data(model.primary_container)

    def fetch(directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        if data:
            fetch_model(RoleStorage(assume_role(model.execution_role_arn, "SageMaker")), data, directory)

    return fetch


def _log_opener(model: Model, plan: HostingPlan, variant_name: str) -> Callable[[str], Callable[[Sequence[str]], None]]:
    principal = assume_role(model.execution_role_arn, "SageMaker")
    group = f"/aws/sagemaker/Endpoints/{plan.endpoint_name}"
    return lambda instance_id: (
        LogStream(principal, plan.region, group, f"{variant_name}/{instance_id}", kept_lines=_KEPT_LINES).write
    )
