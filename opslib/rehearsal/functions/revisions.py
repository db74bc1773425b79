"""Revisions of functions and aliases: an id that changes with each of them, for callers who change only what they saw.

Source: docs.aws.amazon.com/lambda/latest/api/API_UpdateFunctionCode.html (RevisionId).
"""

import uuid
from typing import Any

from opslib.rehearsal.calls import Call, ServiceError


def renew_revision(record: Any) -> None:
    """Give a function, version or alias another revision; a function's is renewed once more when it is ready."""
    record.revision_id = str(uuid.uuid4())


def require_revision(call: Call, record: Any) -> None:
    """Refuse a call that names another revision than the present one.

    Raises:
        ServiceError: PreconditionFailedException.
    """
    require_revision_id(call, record.revision_id)


def require_revision_id(call: Call, present: str) -> None:
    """Refuse a call that names another revision than this one.

    Raises:
        ServiceError: PreconditionFailedException.
    """
    if call.params.get("RevisionId", present) != present:
        reason = (
            "The Revision Id provided does not match the latest Revision Id. "
            "Call the GetFunction/GetAlias API to retrieve the latest Revision Id"
        )
        raise ServiceError("PreconditionFailedException", reason, status=412)
