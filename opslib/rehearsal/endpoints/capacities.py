"""The number of instances of a variant, as Application Auto Scaling reads and sets it."""

from collections.abc import Callable, Sequence

from opslib.rehearsal.calls import ServiceError
from opslib.rehearsal.endpoints.changes import added_instances, refuse_excess
from opslib.rehearsal.endpoints.fleet import Fleet
from opslib.rehearsal.endpoints.hosting import Variant
from opslib.rehearsal.endpoints.live import LiveEndpoint


class VariantCapacities:
    """Variants by resource id, "endpoint/<name>/variant/<variant>"; only those that run on instances."""

    dimension = "sagemaker:variant:DesiredInstanceCount"

    def __init__(
        self, find: Callable[[str, str], LiveEndpoint | None], running: Callable[[str], Sequence[Variant]]
    ) -> None:
        """Take what finds an endpoint by region and name, and all variants that run in a region."""
        self._find = find
        self._running = running

    def desired_capacity(self, region: str, resource_id: str) -> int | None:
        """Return how many instances are asked for; None when there is no such variant."""
        fleet = self._fleet(region, resource_id)
        return fleet.desired_count if fleet else None

    def is_moving(self, region: str, resource_id: str) -> bool:
        """Return whether the endpoint is being changed, so that it cannot be scaled now."""
        endpoint = self._find(region, _names(resource_id)[0])
        return endpoint is not None and endpoint.is_moving

    def set_capacity(self, region: str, resource_id: str, count: int) -> None:
        """Ask for so many instances; the endpoint is Updating until they are there.

        Raises:
            ServiceError: ValidationException; there is no such variant, or the endpoint is being changed.
                ResourceLimitExceeded; the account has not so many instances.
        """
        endpoint_name, variant_name = _names(resource_id)
        endpoint = self._find(region, endpoint_name)
        if endpoint is None or self._fleet(region, resource_id) is None:
            raise ServiceError("ValidationException", f"Could not find {resource_id}.")
        changes = [{"VariantName": variant_name, "DesiredInstanceCount": count}]
        refuse_excess(self._running(region), added_instances(endpoint.route.current, changes))
        endpoint.resize(changes)

    def _fleet(self, region: str, resource_id: str) -> Fleet | None:
        endpoint_name, variant_name = _names(resource_id)
        endpoint = self._find(region, endpoint_name)
        hosting = endpoint.route.current if endpoint else None
        variant: Variant | None = hosting.variants.get(variant_name) if hosting else None
        return variant.fleet if variant and isinstance(variant.fleet, Fleet) else None


def _names(resource_id: str) -> tuple[str, str]:
    """Return the endpoint's and the variant's name; empty ones for what is no variant."""
    match resource_id.split("/"):
        case ["endpoint", endpoint_name, "variant", variant_name]:
            return endpoint_name, variant_name
        case _:
            return "", ""
