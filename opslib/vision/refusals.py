"""Requests that the model refuses, as exceptions that AWS's inference toolkit turns into an HTTP status."""

import http

from opslib.errors import OpslibError

try:
    # AWS's PyTorch container answers 500 to everything but this class and its subclasses
    # (sagemaker_inference/transformer.py, Transformer.transform).
    from sagemaker_inference.errors import BaseInferenceToolkitError as _ToolkitError
except ImportError:

    class _ToolkitError(Exception):
        """Stands in where the toolkit is not installed, with the toolkit's constructor."""

        def __init__(self, status_code: int, message: str, phrase: str) -> None:
            super().__init__(status_code, message, phrase)
            self.status_code, self.message, self.phrase = status_code, message, phrase


class RequestError(OpslibError, _ToolkitError):
    """A request that gets a 4xx answer.

    Attributes:
        status_code: HTTP status.
        message: The reason, for the client.
        phrase: HTTP's own words for the status.
    """

    def __init__(self, status_code: int, message: str) -> None:
        """Keep the status and the reason."""
        # Not OpslibError's constructor: after it comes the toolkit's class here, and that takes three arguments.
        _ToolkitError.__init__(self, status_code, message, http.HTTPStatus(status_code).phrase)
        self.hint = ""
