"""What UpdateEndpointWeightsAndCapacities may ask for, and the number of instances that an account has.

Source: docs.aws.amazon.com/sagemaker/latest/APIReference/API_UpdateEndpointWeightsAndCapacities.html
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from opslib.rehearsal.calls import ServiceError
from opslib.rehearsal.endpoints.fleet import Fleet
from opslib.rehearsal.endpoints.hosting import Hosting, Variant
from opslib.rehearsal.endpoints.serverless import ServerlessFleet, check_concurrency

MOST_INSTANCES = 20
"""Instances of one type for a use in a region; on AWS a quota that can be raised, here what a machine bears."""

Change = Mapping[str, Any]
"""A DesiredWeightAndCapacity."""


def require_unique_names(variants: Sequence[Mapping[str, Any]]) -> None:
    """Refuse variants, or changes of them, that name one of them twice.

    Raises:
        ServiceError: ValidationException.
    """
    names = [variant["VariantName"] for variant in variants]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise _invalid(f"Variant names must be unique: {', '.join(twice)}.")


def check_changes(hosting: Hosting, changes: Sequence[Change], endpoint_arn: str) -> None:
    """Refuse changes of variants that are not there, or that the variants cannot take.

    Raises:
        ServiceError: ValidationException.
    """
    require_unique_names(changes)
    unknown = [change["VariantName"] for change in changes if change["VariantName"] not in hosting.variants]
    if unknown:
        raise _invalid(f"Could not find variant(s) {', '.join(unknown)} of endpoint {endpoint_arn}.")
    for change in changes:
        _check(hosting, hosting.variants[change["VariantName"]], change)


def check_successor(hosting: Hosting, following: Hosting) -> None:
    """Refuse to go from instances to serverless variants; the other way round is allowed.

    Source: docs.aws.amazon.com/sagemaker/latest/dg/serverless-endpoints-update.html

    Raises:
        ServiceError: ValidationException.
    """
    has_instances = any(isinstance(variant.fleet, Fleet) for variant in hosting.variants.values())
    if has_instances and any(isinstance(variant.fleet, ServerlessFleet) for variant in following.variants.values()):
        raise _invalid("An instance-based endpoint cannot be converted to a serverless endpoint.")


def added_instances(hosting: Hosting, changes: Iterable[Change]) -> Counter[str]:
    """Return how many instances of each type the changes add."""
    added: Counter[str] = Counter()
    for change in changes:
        if "DesiredInstanceCount" in change:
            variant = hosting.variants[change["VariantName"]]
            added[variant.instance_type] += change["DesiredInstanceCount"] - variant.fleet.count
    return added


def refuse_excess(running: Sequence[Variant], added: Mapping[str, int]) -> None:
    """Refuse more instances of a type than an account has, beside those that run.

    Raises:
        ServiceError: ResourceLimitExceeded.
    """
    for instance_type, delta in added.items():
        used = sum(variant.fleet.count for variant in running if variant.instance_type == instance_type)
        require_quota(f"{instance_type} for endpoint usage", used, delta)


def require_quota(usage: str, used: int, delta: int) -> None:
    """Refuse more instances than an account has of a type for a use.

    Raises:
        ServiceError: ResourceLimitExceeded.
    """
    if delta > 0 and used + delta > MOST_INSTANCES:
        raise ServiceError(
            "ResourceLimitExceeded",
            f"The account-level service limit '{usage}' is {MOST_INSTANCES} Instances, with current utilization of "
            f"{used} Instances and a request delta of {delta} Instances. Please use AWS Service Quotas to request an "
            "increase for this quota.",
        )


def _check(hosting: Hosting, variant: Variant, change: Change) -> None:
    count, serverless = change.get("DesiredInstanceCount"), change.get("ServerlessUpdateConfig")
    if isinstance(variant.fleet, Fleet):
        if serverless:
            raise _invalid(f"ServerlessUpdateConfig cannot be used with variant {variant.name}: it has instances.")
        if count == 0 and not hosting.async_config:
            raise _invalid(f"DesiredInstanceCount of variant {variant.name} must be at least 1.")
    if isinstance(variant.fleet, ServerlessFleet):
        if count is not None:
            raise _invalid(f"DesiredInstanceCount cannot be used with variant {variant.name}: it is serverless.")
        check_concurrency(variant.name, {**variant.fleet.config, **(serverless or {})})


def _invalid(message: str) -> ServiceError:
    return ServiceError("ValidationException", message)
