"""moto's records of functions, with its errors turned into ours, and pages of them."""

import re
from collections.abc import Callable
from typing import Any

from moto.awslambda.exceptions import LambdaClientError
from moto.awslambda.models import LambdaFunction, lambda_backends

from opslib.rehearsal.calls import ACCOUNT_ID, Call, ServiceError

_MARKER = re.compile(r"[0-9]{1,9}")


def ask_moto(act: Callable[[], Any]) -> Any:
    """Run what asks moto's records.

    Raises:
        ServiceError: moto's own error, e.g. ResourceNotFoundException.
    """
    try:
        return act()
    except LambdaClientError as error:
        raise ServiceError(error.error_type, error.message, status=error.code) from error


def find_function(region: str, name: str, qualifier: str | None = None) -> LambdaFunction:
    """Return a function by name or ARN: $LATEST, or the version that a number or an alias names.

    Raises:
        ServiceError: ResourceNotFoundException.
    """
    return ask_moto(lambda: lambda_backends[ACCOUNT_ID][region].get_function(name, qualifier or None))


def page(call: Call, member: str, found: list[Any]) -> dict[str, Any]:
    """Return the page that a call's Marker and MaxItems ask for, as the reply's `member`.

    Raises:
        ServiceError: InvalidParameterValueException.
    """
    marker, size = call.params.get("Marker") or "0", call.params.get("MaxItems", 50)
    if not _MARKER.fullmatch(marker):
        raise ServiceError("InvalidParameterValueException", "Invalid marker.")
    start, end = int(marker), int(marker) + min(size, 50)
    return {member: found[start:end], **({"NextMarker": str(end)} if end < len(found) else {})}
