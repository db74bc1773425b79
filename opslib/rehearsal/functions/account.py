"""What an account may have of Lambda, and what it uses.

Sources: docs.aws.amazon.com/lambda/latest/api/API_GetAccountSettings.html, and gettingstarted-limits.html of the guide.
"""

from typing import Any

from moto.awslambda.models import lambda_backends

from opslib.rehearsal.calls import ACCOUNT_ID, Call
from opslib.rehearsal.functions.code import MAX_UNZIPPED_BYTES
from opslib.rehearsal.functions.concurrency import ACCOUNT_CONCURRENCY, reservations

MAX_STORED_BYTES = 75 * 2**30
"""All versions of all functions and layers together."""

MAX_ZIPPED_BYTES = 50 * 2**20
"""A deployment package that is sent with the call."""


def get_account_settings(call: Call) -> dict[str, Any]:
    """Return limits and usage of the region; what functions reserve is no longer there for the others."""
    backend = lambda_backends[ACCOUNT_ID][call.region]
    versions = list(backend.list_functions("ALL"))
    return {
        "AccountLimit": {
            "TotalCodeSize": MAX_STORED_BYTES,
            "CodeSizeUnzipped": MAX_UNZIPPED_BYTES,
            "CodeSizeZipped": MAX_ZIPPED_BYTES,
            "ConcurrentExecutions": ACCOUNT_CONCURRENCY,
            "UnreservedConcurrentExecutions": ACCOUNT_CONCURRENCY - sum(reservations(call.region).values()),
        },
        "AccountUsage": {
            "TotalCodeSize": sum(one.code_size for one in versions),
            "FunctionCount": sum(one.version == "$LATEST" for one in versions),
        },
    }
