"""The provisioned concurrency of an alias or version, as Application Auto Scaling reads and sets it."""

from opslib.rehearsal.calls import ServiceError
from opslib.rehearsal.functions.metrics import Target
from opslib.rehearsal.functions.provisioning import Provisioning
from opslib.rehearsal.functions.records import find_function


class FunctionCapacities:
    """Aliases and versions by resource id, "function:<name>:<alias>"."""

    dimension = "lambda:function:ProvisionedConcurrency"

    def __init__(self, provisioning: Provisioning) -> None:
        """Take what provisions."""
        self._provisioning = provisioning

    def desired_capacity(self, region: str, resource_id: str) -> int | None:
        """Return how many environments are asked for, 0 for none; None when there is no such alias or version."""
        target = _target(region, resource_id)
        if not target.qualifier or not _exists(target):
            return None
        environments = self._provisioning.find(target)
        return environments.requested if environments else 0

    def is_moving(self, region: str, resource_id: str) -> bool:
        """Return whether environments are still started, so that it cannot be scaled now."""
        environments = self._provisioning.find(_target(region, resource_id))
        return environments is not None and environments.status == "IN_PROGRESS"

    def set_capacity(self, region: str, resource_id: str, count: int) -> None:
        """Ask for so many environments; none ends what is provisioned.

        Raises:
            ServiceError: Lambda refuses.
        """
        target = _target(region, resource_id)
        if count:
            self._provisioning.provision(target, count)
        else:
            self._provisioning.remove(target)


def _exists(target: Target) -> bool:
    try:
        find_function(target.region, target.name, target.qualifier)
    except ServiceError:
        return False
    return True


def _target(region: str, resource_id: str) -> Target:
    """Return what a resource id names; without a qualifier for what is no alias or version."""
    match resource_id.split(":"):
        case ["function", name, qualifier]:
            return Target(region, name, qualifier)
        case _:
            return Target(region, resource_id)
