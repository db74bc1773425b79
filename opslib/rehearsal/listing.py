"""What SageMaker's List calls have in common: filters by name, status and time, an order, pages."""

import base64
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol, TypeVar

from opslib.rehearsal.calls import ServiceError

_PAGE = 10


class Listed(Protocol):
    """A resource that can be listed."""

    name: str
    status: str
    creation_time: datetime
    last_modified_time: datetime


Item = TypeVar("Item")
ListedItem = TypeVar("ListedItem", bound=Listed)


def passes_filters(item: Listed, params: Mapping[str, Any]) -> bool:
    """Return whether a resource passes the filters of a List call."""
    earliest = datetime.min.replace(tzinfo=item.creation_time.tzinfo)
    latest = datetime.max.replace(tzinfo=item.creation_time.tzinfo)
    return (
        params.get("NameContains", "").lower() in item.name.lower()
        and params.get("StatusEquals", item.status) == item.status
        and params.get("CreationTimeAfter", earliest) <= item.creation_time <= params.get("CreationTimeBefore", latest)
        and params.get("LastModifiedTimeAfter", earliest) <= item.last_modified_time
        and item.last_modified_time <= params.get("LastModifiedTimeBefore", latest)
    )


def in_order(items: Iterable[ListedItem], by: str, order: str) -> list[ListedItem]:
    """Return the resources by "Name", "Status" or else their creation, "Ascending" or "Descending"."""
    keys: dict[str, Callable[[ListedItem], Any]] = {"Name": lambda item: item.name, "Status": lambda item: item.status}
    return sorted(items, key=keys.get(by, lambda item: item.creation_time), reverse=order == "Descending")


def one_page(items: Sequence[Item], params: Mapping[str, Any]) -> tuple[Sequence[Item], str | None]:
    """Return the page that a List call asks for, and the token of the next one.

    Raises:
        ServiceError: ValidationException; the token is none of ours.
    """
    start = _position(params.get("NextToken", ""))
    end = start + params.get("MaxResults", _PAGE)
    token = base64.b64encode(str(end).encode()).decode() if end < len(items) else None
    return items[start:end], token


def _position(token: str) -> int:
    try:
        return max(0, int(base64.b64decode(token))) if token else 0
    except ValueError as error:
        raise ServiceError("ValidationException", "Invalid NextToken.") from error
