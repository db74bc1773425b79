"""SageMaker hosting: models, endpoint configurations, and endpoints that really serve.

moto keeps the records (and their tags); here they get AWS's checks, and endpoints get instances. Source:
docs.aws.amazon.com/sagemaker/latest/APIReference (CreateModel, CreateEndpointConfig, CreateEndpoint, UpdateEndpoint,
UpdateEndpointWeightsAndCapacities, DeleteEndpoint).
"""

import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from moto.sagemaker.models import FakeEndpoint, SageMakerModelBackend, sagemaker_backends

from opslib.errors import OpslibError
from opslib.rehearsal.calls import ACCOUNT_ID, Call, Operation, ServiceError
from opslib.rehearsal.endpoints.fleet import ModelNotServing
from opslib.rehearsal.endpoints.hosted_models import HostedModels
from opslib.rehearsal.endpoints.hosting import Hosting, HostingFailed
from opslib.rehearsal.endpoints.invocations import Invocations
from opslib.rehearsal.endpoints.model_data import ModelDataFailed
from opslib.rehearsal.site import Site

_IN_PROGRESS = frozenset({"Creating", "Updating", "SystemUpdating", "RollingBack", "Deleting"})
Key = tuple[str, str]
"""An endpoint: region and name."""


class EndpointsExtension:
    """The part of SageMaker hosting that the rehearsal performs; lists and tags are moto's."""

    def __init__(self, site: Site) -> None:
        """Start with no endpoint."""
        self._models = HostedModels(site)
        self._hostings: dict[Key, Hosting] = {}
        self._in_service: set[Key] = set()
        self._lock = threading.RLock()
        self.operations: dict[str, Operation] = {
            "sagemaker.CreateEndpoint": self.create_endpoint,
            "sagemaker.DescribeEndpoint": self.describe_endpoint,
            "sagemaker.UpdateEndpoint": self.update_endpoint,
            "sagemaker.UpdateEndpointWeightsAndCapacities": self.update_weights_and_capacities,
            "sagemaker.DeleteEndpoint": self.delete_endpoint,
            **self._models.operations,
            **Invocations(self._find_in_service).operations,
        }

    def stop(self) -> None:
        """Kill every instance."""
        with self._lock:
            hostings = list(self._hostings.values())
            self._hostings.clear()
            self._in_service.clear()
        for hosting in hostings:
            hosting.close()

    def create_endpoint(self, call: Call) -> dict[str, Any]:
        """Create an endpoint; it is Creating until its instances answer /ping."""
        name, config = call.params["EndpointName"], call.params["EndpointConfigName"]
        backend = _backend(call)
        with self._lock:
            if name in backend.endpoints:
                raise _invalid(f'Cannot create already existing endpoint "{backend.endpoints[name].arn}".')
            hosting = self._models.build_hosting(call, config, name)
            record = backend.create_endpoint(name, config, call.params.get("Tags", []))
            record.arn, record.endpoint_status = record.arn.lower(), "Creating"
            self._hostings[call.region, name] = hosting
        _in_background(lambda: self._bring_into_service((call.region, name), record, hosting))
        return {"EndpointArn": record.arn}

    def describe_endpoint(self, call: Call) -> dict[str, Any]:
        """Return an endpoint's status, variants and, when it failed, why."""
        record = self._record(call)
        hosting = self._hostings.get((call.region, record.endpoint_name))
        serving = hosting if record.endpoint_status not in {"Creating", "Failed"} else None
        return {
            "EndpointName": record.endpoint_name,
            "EndpointArn": record.arn,
            "EndpointConfigName": record.endpoint_config_name,
            "EndpointStatus": record.endpoint_status,
            "FailureReason": record.failure_reason,
            "ProductionVariants": [one.describe() for one in serving.variants.values()] if serving else None,
            "CreationTime": record.creation_time,
            "LastModifiedTime": record.last_modified_time,
        }

    def update_endpoint(self, call: Call) -> dict[str, Any]:
        """Start instances of another configuration, then let them take over; the old ones serve until then."""
        record, config = self._changeable(call), call.params["EndpointConfigName"]
        hosting = self._models.build_hosting(call, config, record.endpoint_name)
        _set_status(record, "Updating")
        _in_background(lambda: self._take_over((call.region, record.endpoint_name), record, hosting, config))
        return {"EndpointArn": record.arn}

    def update_weights_and_capacities(self, call: Call) -> dict[str, Any]:
        """Change the shares of the traffic and the numbers of instances."""
        record = self._changeable(call)
        hosting, wanted = self._hostings[call.region, record.endpoint_name], call.params["DesiredWeightsAndCapacities"]
        unknown = [change["VariantName"] for change in wanted if change["VariantName"] not in hosting.variants]
        if unknown:
            raise _invalid(f"Could not find variant(s) {', '.join(unknown)} of endpoint {record.arn}.")
        _set_status(record, "Updating")
        _in_background(lambda: _resize(record, hosting, wanted))
        return {"EndpointArn": record.arn}

    def delete_endpoint(self, call: Call) -> dict[str, Any]:
        """Delete an endpoint and kill its instances; refused while it is being created or updated, as on AWS."""
        with self._lock:
            record = self._record(call)
            self._refuse_in_progress(record)
            _set_status(record, "Deleting")
            hosting = self._hostings.pop((call.region, record.endpoint_name), None)
            self._in_service.discard((call.region, record.endpoint_name))
        if hosting:
            hosting.close()
        del _backend(call).endpoints[record.endpoint_name]
        return {}

    def _find_in_service(self, region: str, name: str) -> Hosting | None:
        return self._hostings.get((region, name)) if (region, name) in self._in_service else None

    def _record(self, call: Call) -> FakeEndpoint:
        name = call.params["EndpointName"]
        record = _backend(call).endpoints.get(name)
        if record is None:
            raise _invalid(f'Could not find endpoint "{call.arn(f"endpoint/{name}").lower()}".')
        return record

    def _changeable(self, call: Call) -> FakeEndpoint:
        record = self._record(call)
        self._refuse_in_progress(record)
        if record.endpoint_status != "InService":
            raise _invalid(f'Cannot update endpoint "{record.arn}" in status {record.endpoint_status}.')
        return record

    @staticmethod
    def _refuse_in_progress(record: FakeEndpoint) -> None:
        if record.endpoint_status in _IN_PROGRESS:
            raise _invalid(f'Cannot update in-progress endpoint "{record.arn}".')

    def _bring_into_service(self, key: Key, record: FakeEndpoint, hosting: Hosting) -> None:
        if not _started(hosting, record):
            _set_status(record, "Failed")
            return
        with self._lock:
            if self._hostings.get(key) is hosting:  # else the rehearsal has ended meanwhile
                self._in_service.add(key)
        _set_status(record, "InService")

    def _take_over(self, key: Key, record: FakeEndpoint, hosting: Hosting, config: str) -> None:
        if not _started(hosting, record):
            _set_status(record, "InService")
            return
        with self._lock:
            old = self._hostings.get(key)
            if old is None:  # the rehearsal has ended meanwhile
                hosting.close()
                return
            self._hostings[key] = hosting
        record.endpoint_config_name, record.failure_reason = config, None
        _set_status(record, "InService")
        old.retire()


def _started(hosting: Hosting, record: FakeEndpoint) -> bool:
    """Start what an endpoint runs; False, with the reason in the record, when it does not come into service."""
    try:
        hosting.start()
    except (HostingFailed, OpslibError) as error:
        record.failure_reason = str(error)
        return False
    except BaseException:
        record.failure_reason = "Request to service failed. If failure persists after retry, contact customer support."
        _set_status(record, "Failed")  # or it could never be deleted
        raise
    return True


def _resize(record: FakeEndpoint, hosting: Hosting, wanted: list[dict[str, Any]]) -> None:
    try:
        for change in wanted:
            variant = hosting.variants[change["VariantName"]]
            variant.weight = change.get("DesiredWeight", variant.weight)
            variant.fleet.resize(change.get("DesiredInstanceCount", variant.fleet.count))
    except (ModelNotServing, ModelDataFailed) as error:
        record.failure_reason = f"New instances did not come into service: {error}"
    finally:
        _set_status(record, "InService")


def _set_status(record: FakeEndpoint, status: str) -> None:
    record.last_modified_time = datetime.now(UTC)
    record.endpoint_status = status


def _backend(call: Call) -> SageMakerModelBackend:
    return sagemaker_backends[ACCOUNT_ID][call.region]


def _invalid(message: str) -> ServiceError:
    return ServiceError("ValidationException", message)


def _in_background(work: Callable[[], None]) -> None:
    threading.Thread(target=work, name="endpoint", daemon=True).start()
