"""The ways in which an environment fails, in Lambda's words: what its caller gets, and what stands in the log.

Source: docs.aws.amazon.com/lambda/latest/dg/troubleshooting-invocation.html.
"""

import json
import signal
from datetime import UTC, datetime

from opslib.rehearsal.functions.runtime_api import MAX_RESPONSE_BYTES


class Failed(Exception):  # noqa: N818 - it becomes a reply of Lambda's, never an error of ours
    """The environment cannot go on: the payload for the caller, the line for the log, the type of error for the report.

    Without a type it is a time-out.
    """

    def __init__(self, payload: bytes, log_line: str, error_type: str = "") -> None:
        super().__init__(log_line)
        self.payload = payload
        self.log_line = log_line
        self.error_type = error_type


def _error(error_type: str, message: str) -> bytes:
    return json.dumps({"errorType": error_type, "errorMessage": message}).encode()


def timed_out(request_id: str, seconds: int) -> Failed:
    """The handler took longer than the function's time-out."""
    reason = f"Task timed out after {seconds:.2f} seconds"
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    payload = _error("Sandbox.Timedout", f"RequestId: {request_id} Error: {reason}")
    return Failed(payload, f"{now} {request_id} {reason}\n")


def exited(request_id: str, code: int) -> Failed:
    """The process ended: `code` is its exit code, 128 + n after signal n."""
    named = signal.strsignal(code - 128) if code - 128 in signal.valid_signals() else None
    if named:
        reason = f"Runtime exited with error: signal: {named.lower()}"
    elif code:
        reason = f"Runtime exited with error: exit status {code}"
    else:
        reason = "Runtime exited without providing a reason"
    told = f"RequestId: {request_id} Error: {reason}"
    error_type = "Runtime.ExitError"
    return Failed(_error(error_type, told), f"{told}\n{error_type}", error_type)


def init_failed(payload: bytes) -> Failed:
    """The runtime said why the code could not be loaded."""
    try:
        error_type = json.loads(payload)["errorType"]
    except (ValueError, RecursionError, TypeError, KeyError):  # the code of a function can say anything
        error_type = "Runtime.Unknown"
    return Failed(payload, "", error_type)


def too_large() -> Failed:
    """The response is larger than Lambda passes on."""
    reason = f"Response payload size exceeded maximum allowed payload size ({MAX_RESPONSE_BYTES} bytes)."
    error_type = "Function.ResponseSizeTooLarge"
    return Failed(_error(error_type, reason), "", error_type)
