"""How calls name targets, and how replies name what belongs to them."""

import uuid
from collections.abc import Sequence
from typing import Any

from opslib.rehearsal.calls import ACCOUNT_ID, Call, ServiceError
from opslib.rehearsal.listing import one_page
from opslib.rehearsal.scaling.scaler import Scaler
from opslib.rehearsal.scaling.targets import ScalableTarget, TargetKey

_PAGE = 50


def find(scaler: Scaler, call: Call) -> ScalableTarget:
    """Return the target that a call names.

    Raises:
        ServiceError: ObjectNotFoundException; it is not registered.
    """
    key = TargetKey.of(call)
    target = scaler.targets.get(key)
    if target is None:
        raise ServiceError("ObjectNotFoundException", f"No scalable target registered for {key}")
    return target


def matching(scaler: Scaler, call: Call) -> list[ScalableTarget]:
    """Return the targets that a Describe call names by service, resource and dimension."""
    params = call.params
    with scaler.lock:
        return [
            one
            for one in scaler.targets.values()
            if (one.key.region, one.key.namespace) == (call.region, params["ServiceNamespace"])
            and params.get("ResourceId") in {None, one.key.resource_id}
            and params.get("ScalableDimension") in {None, one.key.dimension}
        ]


def arn_of(key: TargetKey, kind: str, end: str) -> str:
    """Return a new ARN of something that belongs to a target: a scalingPolicy or a scheduledAction."""
    place = f"arn:aws:autoscaling:{key.region}:{ACCOUNT_ID}:{kind}:{uuid.uuid4()}"
    return f"{place}:resource/{key.namespace}/{key.resource_id}:{end}"


def page(call: Call, member: str, items: Sequence[dict[str, Any]], *, most: int = _PAGE) -> dict[str, Any]:
    """Return the page of a Describe call's items that it asks for.

    Raises:
        ServiceError: ValidationException or InvalidNextTokenException; it asks for what no page is.
    """
    params = {"MaxResults": most, **call.params}
    if not 1 <= params["MaxResults"] <= most:
        raise ServiceError("ValidationException", f"MaxResults must be between 1 and {most}.")
    if "ScalableDimension" in params and not (params.get("ResourceId") or params.get("ResourceIds")):
        message = "If you specify a scalable dimension, you must also specify a resource ID."
        raise ServiceError("ValidationException", message)
    try:
        shown, token = one_page(items, params)
    except ServiceError as error:
        raise ServiceError("InvalidNextTokenException", error.message) from error
    return {member: list(shown), "NextToken": token}
