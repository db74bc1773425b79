"""What Application Auto Scaling scales: anything whose capacity can be read and set."""

from typing import Protocol


class ScalableResource(Protocol):
    """One kind of resource whose capacity is scaled, e.g. the instances of endpoint variants.

    A resource of this kind is named by its region and its resource id, e.g. "endpoint/<name>/variant/<variant>".
    """

    dimension: str
    """The scalable dimension, e.g. "sagemaker:variant:DesiredInstanceCount"; it begins with the service namespace."""

    def desired_capacity(self, region: str, resource_id: str) -> int | None:
        """Return the capacity that was asked for last; None when there is no such resource."""

    def is_moving(self, region: str, resource_id: str) -> bool:
        """Return whether the resource is still on its way to a capacity, so that it cannot be scaled now."""

    def set_capacity(self, region: str, resource_id: str, count: int) -> None:
        """Ask for a capacity, and return at once.

        Raises:
            ServiceError: the resource's service refuses.
        """
