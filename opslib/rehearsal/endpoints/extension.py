"""SageMaker hosting: models, endpoint configurations, and endpoints that really serve.

moto keeps the records; here they get AWS's checks, and endpoints get instances. Source:
docs.aws.amazon.com/sagemaker/latest/APIReference (CreateModel, CreateEndpointConfig, CreateEndpoint, UpdateEndpoint,
UpdateEndpointWeightsAndCapacities, DeleteEndpoint).
"""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from moto.sagemaker.models import FakeEndpoint, SageMakerModelBackend, sagemaker_backends

from opslib.rehearsal.calls import ACCOUNT_ID, Call, Operation, ServiceError
from opslib.rehearsal.endpoints.async_invocations import AsyncInvocations
from opslib.rehearsal.endpoints.capacities import VariantCapacities
from opslib.rehearsal.endpoints.changes import added_instances, check_changes, check_successor, refuse_excess
from opslib.rehearsal.endpoints.fleet import Fleet
from opslib.rehearsal.endpoints.hosted_models import HostedModels
from opslib.rehearsal.endpoints.hosting import Hosting, Variant
from opslib.rehearsal.endpoints.hosting_builder import HostingBuilder
from opslib.rehearsal.endpoints.invocations import Invocations
from opslib.rehearsal.endpoints.listings import Listings
from opslib.rehearsal.endpoints.live import LiveEndpoint, in_progress
from opslib.rehearsal.endpoints.rollout import Rollout, plan_rollout
from opslib.rehearsal.endpoints.tags import Tags
from opslib.rehearsal.site import Site

Key = tuple[str, str]
"""An endpoint: region and name."""


class EndpointsExtension:
    """The part of SageMaker hosting that the rehearsal performs."""

    def __init__(self, site: Site) -> None:
        """Start with no endpoint."""
        self._site = site
        self._models = HostedModels()
        self._builder = HostingBuilder(site)
        self._endpoints: dict[Key, LiveEndpoint] = {}
        self._lock = threading.RLock()
        self._queues = AsyncInvocations(site, self._find_in_service, self._held)
        self.capacities = VariantCapacities(lambda region, name: self._endpoints.get((region, name)), self._running)
        """What Application Auto Scaling reads and sets."""
        self.operations: dict[str, Operation] = {
            "sagemaker.CreateEndpoint": self.create_endpoint,
            "sagemaker.DescribeEndpoint": self.describe_endpoint,
            "sagemaker.UpdateEndpoint": self.update_endpoint,
            "sagemaker.UpdateEndpointWeightsAndCapacities": self.update_weights_and_capacities,
            "sagemaker.DeleteEndpoint": self.delete_endpoint,
            **self._models.operations,
            **Listings().operations,
            **Tags().operations,
            **Invocations(self._held).operations,
            **self._queues.operations,
        }

    def stop(self) -> None:
        """Kill every instance."""
        self._queues.stop()
        with self._lock:
            endpoints = list(self._endpoints.values())
            self._endpoints.clear()
        for endpoint in endpoints:
            endpoint.close()

    def create_endpoint(self, call: Call) -> dict[str, Any]:
        """Create an endpoint; it is Creating until its instances answer /ping."""
        name, config = call.params["EndpointName"], call.params["EndpointConfigName"]
        backend = _backend(call)
        with self._lock:
            if name.lower() in map(str.lower, backend.endpoints):  # as the ARN, which is in lower case
                arn = call.arn(f"endpoint/{name}").lower()
                raise _invalid(f'Cannot create already existing endpoint "{arn}".')
            hosting = self._build_hosting(call, config, {})
            with _closed_on_refusal(hosting):
                rollout = plan_rollout(call.params.get("DeploymentConfig"), _fewest_instances(hosting))
            record = backend.create_endpoint(name, config, call.params.get("Tags", []))
            record.arn = record.arn.lower()
            endpoint = self._endpoints[call.region, name] = LiveEndpoint(self._site, call.region, record)
            endpoint.last_rollout = rollout
            endpoint.create(hosting)
        if hosting.async_config:
            self._queues.watch(call.region, name)
        return {"EndpointArn": record.arn}

    def describe_endpoint(self, call: Call) -> dict[str, Any]:
        """Return an endpoint's status, variants and, when it failed, why."""
        record = self._record(call)
        endpoint = self._endpoints.get((call.region, record.endpoint_name))
        return {
            "EndpointName": record.endpoint_name,
            "EndpointArn": record.arn,
            "EndpointConfigName": record.endpoint_config_name,
            "EndpointStatus": record.endpoint_status,
            "FailureReason": record.failure_reason,
            "CreationTime": record.creation_time,
            "LastModifiedTime": record.last_modified_time,
            **(endpoint.describe() if endpoint else {}),
        }

    def update_endpoint(self, call: Call) -> dict[str, Any]:
        """Start instances of another configuration, then let them take over; the old ones serve until then."""
        endpoint, params = self._live(call), call.params
        endpoint.refuse_unless_in_service()
        retained = _retained(endpoint, params) if params.get("RetainAllVariantProperties") else {}
        hosting = self._build_hosting(call, params["EndpointConfigName"], retained)
        with _closed_on_refusal(hosting):
            check_successor(_serving(endpoint), hosting)
            endpoint.update(hosting, self._plan_rollout(call, endpoint, hosting))
        if hosting.async_config:
            self._queues.watch(call.region, params["EndpointName"])
        return {"EndpointArn": endpoint.record.arn}

    def update_weights_and_capacities(self, call: Call) -> dict[str, Any]:
        """Change the shares of the traffic and the numbers of instances."""
        endpoint, wanted = self._live(call), call.params["DesiredWeightsAndCapacities"]
        endpoint.refuse_unless_in_service()
        hosting = _serving(endpoint)
        check_changes(hosting, wanted, endpoint.record.arn)
        refuse_excess(self._running(call.region), added_instances(hosting, wanted))
        endpoint.resize(wanted)
        return {"EndpointArn": endpoint.record.arn}

    def delete_endpoint(self, call: Call) -> dict[str, Any]:
        """Delete an endpoint and kill its instances; refused while it is being created or updated, as on AWS."""
        with self._lock:
            record = self._record(call)
            endpoint = self._live(call)
            endpoint.begin_deletion()
            del self._endpoints[call.region, record.endpoint_name]
        self._queues.forget(call.region, record.endpoint_name)
        endpoint.close()
        del _backend(call).endpoints[record.endpoint_name]
        return {}

    @contextmanager
    def _held(self, region: str, name: str) -> Iterator[Hosting | None]:
        """Hold the hosting that answers the next request of an endpoint; None: it is not in service."""
        endpoint = self._endpoints.get((region, name))
        if endpoint is None:
            yield None
            return
        with endpoint.route.held() as hosting:
            yield hosting

    def _find_in_service(self, region: str, name: str) -> Hosting | None:
        endpoint = self._endpoints.get((region, name))
        return endpoint.route.current if endpoint else None

    def _record(self, call: Call) -> FakeEndpoint:
        name = call.params["EndpointName"]
        record = _backend(call).endpoints.get(name)
        if record is None:
            raise _invalid(f'Could not find endpoint "{call.arn(f"endpoint/{name}").lower()}".')
        return record

    def _live(self, call: Call) -> LiveEndpoint:
        record = self._record(call)
        endpoint = self._endpoints.get((call.region, record.endpoint_name))
        if endpoint is None:  # it is being deleted
            raise in_progress(record)
        return endpoint

    def _build_hosting(self, call: Call, config_name: str, retained: Mapping[str, Mapping[str, Any]]) -> Hosting:
        key = (call.region, call.params["EndpointName"])

        def count_neighbours() -> int:
            others = [endpoint for other, endpoint in list(self._endpoints.items()) if other != key]
            return sum(
                variant.fleet.count
                for endpoint in others
                for hosting in endpoint.hostings
                for variant in hosting.everything
            )

        plan = self._models.plan_hosting(call, config_name, retained, count_neighbours)
        refuse_excess(self._running(call.region), plan.instances)
        return self._builder.build(plan)

    def _running(self, region: str) -> list[Variant]:
        endpoints = [endpoint for key, endpoint in list(self._endpoints.items()) if key[0] == region]
        return [one for endpoint in endpoints for hosting in endpoint.hostings for one in hosting.everything]

    def _plan_rollout(self, call: Call, endpoint: LiveEndpoint, hosting: Hosting) -> Rollout:
        config = call.params.get("DeploymentConfig")
        if config is None and call.params.get("RetainDeploymentConfig") and endpoint.last_rollout:
            config = endpoint.last_rollout.config
        if not config:
            return Rollout()
        if set(hosting.variants) != set(endpoint.route.current.variants):
            raise _invalid("With DeploymentConfig the new endpoint configuration must have the same variant names.")
        rollout = plan_rollout(config, _fewest_instances(hosting))
        state_of = self._site.monitoring.alarm_state
        unknown = [name for name in rollout.alarms if state_of(call.region, name) is None]
        if unknown:
            raise _invalid(f"Could not find CloudWatch alarm(s): {', '.join(unknown)}.")
        return rollout


@contextmanager
def _closed_on_refusal(hosting: Hosting) -> Iterator[None]:
    """Remove what was prepared for a hosting when the call is refused after all."""
    try:
        yield
    except BaseException:
        hosting.close()
        raise


def _serving(endpoint: LiveEndpoint) -> Hosting:
    """Return what serves an endpoint; refuse its change while it is being deleted."""
    if endpoint.route.current is None:
        raise in_progress(endpoint.record)
    return endpoint.route.current


def _fewest_instances(hosting: Hosting) -> int:
    return max(1, min(variant.fleet.count for variant in hosting.variants.values()))


def _retained(endpoint: LiveEndpoint, params: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the weights and instance counts that an update with RetainAllVariantProperties keeps, by variant."""
    excluded = {one["VariantPropertyType"] for one in params.get("ExcludeRetainedVariantProperties", [])}
    retained: dict[str, dict[str, Any]] = {}
    for name, variant in endpoint.route.current.variants.items():
        kept = retained.setdefault(name, {})
        if "DesiredWeight" not in excluded:
            kept["InitialVariantWeight"] = variant.weight
        if "DesiredInstanceCount" not in excluded and isinstance(variant.fleet, Fleet):
            kept["InitialInstanceCount"] = variant.fleet.desired_count
    return retained


def _backend(call: Call) -> SageMakerModelBackend:
    return sagemaker_backends[ACCOUNT_ID][call.region]


def _invalid(message: str) -> ServiceError:
    return ServiceError("ValidationException", message)
