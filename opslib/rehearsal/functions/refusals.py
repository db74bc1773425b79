"""Lambda's operations that cannot be rehearsed: refused, because moto would know nothing of them, or pretend."""

from typing import Any

from moto.awslambda.responses import LambdaResponse
from moto.core.utils import camelcase_to_underscores

from opslib.rehearsal.calls import Call, Operation, ServiceError
from opslib.rehearsal.gateway.incoming import service_model

_PRETENDED = frozenset({"CreateEventSourceMapping"})
"""moto keeps the mapping, but nothing would be read from its source."""


def refused_operations() -> dict[str, Operation]:
    """Return what refuses each operation that moto does not answer, or answers without doing it."""
    names = service_model("lambda").operation_names
    unknown = {name for name in names if not hasattr(LambdaResponse, camelcase_to_underscores(name))}
    return {f"lambda.{name}": refuse for name in unknown | _PRETENDED}


def refuse(call: Call) -> dict[str, Any]:
    """Refuse a call.

    Raises:
        ServiceError: NotImplemented.
    """
    raise ServiceError("NotImplemented", f"lambda:{call.operation} cannot be rehearsed yet", status=501)
