"""What a function URL tells browsers of other origins.

Source: docs.aws.amazon.com/lambda/latest/api/API_Cors.html.
"""

from collections.abc import Mapping
from typing import Any


def is_preflight(cors: Mapping[str, Any], method: str, headers: Mapping[str, str]) -> bool:
    """Return whether this is a browser's question before a request, which Lambda answers without the function."""
    return bool(cors) and method == "OPTIONS" and "access-control-request-method" in headers


def cors_headers(cors: Mapping[str, Any], headers: Mapping[str, str]) -> dict[str, str]:
    """Return the headers for the origin of a request; none when it is not among those that are allowed."""
    origin, allowed = headers.get("origin", ""), cors.get("AllowOrigins", [])
    if not origin or not {"*", origin} & set(allowed):
        return {}
    found = {"Access-Control-Allow-Origin": "*" if "*" in allowed else origin, "Vary": "Origin"}
    lists = {
        "AllowMethods": "Access-Control-Allow-Methods",
        "AllowHeaders": "Access-Control-Allow-Headers",
        "ExposeHeaders": "Access-Control-Expose-Headers",
    }
    found |= {header: ",".join(cors[name]) for name, header in lists.items() if cors.get(name)}
    if cors.get("AllowCredentials"):
        found["Access-Control-Allow-Credentials"] = "true"
    if cors.get("MaxAge"):
        found["Access-Control-Max-Age"] = str(cors["MaxAge"])
    return found
