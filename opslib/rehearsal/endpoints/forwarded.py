"""What of a request reaches the container: SageMaker strips all headers but these.

Source: docs.aws.amazon.com/sagemaker/latest/APIReference/API_runtime_InvokeEndpoint.html
"""

from collections.abc import Mapping
from typing import Any

FORWARDED = {
    "ContentType": "Content-Type",
    "Accept": "Accept",
    "CustomAttributes": "X-Amzn-SageMaker-Custom-Attributes",
    "InferenceId": "X-Amzn-SageMaker-Inference-Id",
}
"""From a parameter of the call to the container's header."""


def container_headers(params: Mapping[str, Any]) -> dict[str, str]:
    """Return the headers that a container gets with a request of these parameters."""
    return {"Accept": "*/*"} | {header: params[name] for name, header in FORWARDED.items() if name in params}
