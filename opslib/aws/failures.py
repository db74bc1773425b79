"""What AWS says when it refuses, and what to do about it."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    EndpointConnectionError,
    NoCredentialsError,
    PartialCredentialsError,
)

from opslib.errors import AwsError

_ABSENT_CODES = {
    "404",
    "NoSuchBucket",
    "NoSuchEntity",
    "NoSuchKey",
    "NotFound",
    "RecordNotFound",
    "ResourceNotFound",
    "ResourceNotFoundException",
}
_ABSENT_WORDS = re.compile(r"could not find|does not exist|not found", re.IGNORECASE)
_ACCOUNT = re.compile(r"(?<=:)\d{8}(?=\d{4}:)|(?<=account )\d{8}(?=\d{4}\b)|(?<=/)\d{8}(?=\d{4}\b)")

_HINTS = {
    "AccessDenied": "the caller's policies do not allow this: ask for the action and resource named above",
    "AccessDeniedException": "the caller's policies do not allow this: ask for the action and resource named above",
    "ExpiredToken": "the credentials have expired: log in again",
    "ExpiredTokenException": "the credentials have expired: log in again",
    "InvalidClientTokenId": "the access key is not known here: check the credentials and which AWS they belong to",
    "UnrecognizedClientException": "the access key is not known here: check the credentials and the region",
    "InvalidAccessKeyId": "the access key is not known here: check the credentials and which AWS they belong to",
    "ResourceLimitExceeded": "raise the quota in Service Quotas, or choose another instance type or a smaller count",
    "ThrottlingException": "AWS asked us to slow down; try again in a minute",
}


def error_code(error: ClientError) -> str:
    """Return the service's error code, e.g. `NoSuchBucket`."""
    return str(error.response.get("Error", {}).get("Code", ""))


def error_message(error: ClientError) -> str:
    """Return the service's own words, with account ids masked to their last four digits."""
    return masked(str(error.response.get("Error", {}).get("Message", "")) or str(error))


def masked(text: str) -> str:
    """Return `text` with the account ids in ARNs and messages masked to their last four digits."""
    return _ACCOUNT.sub("…", text)


def is_absent(error: ClientError) -> bool:
    """Tell whether AWS refused because the thing named does not exist.

    SageMaker answers `ValidationException: Could not find endpoint ...` where others have a code of their own.
    """
    code = error_code(error)
    return code in _ABSENT_CODES or (
        code in {"ValidationException", "ValidationError"} and bool(_ABSENT_WORDS.search(error_message(error)))
    )


def hint_for(error: Exception) -> str:
    """Return what to do about an error of botocore, or an empty string."""
    if isinstance(error, ClientError):
        return _HINTS.get(error_code(error), "")
    if isinstance(error, NoCredentialsError | PartialCredentialsError):
        return 'run `aws configure` or `aws sso login`, or rehearse: eval "$(python -m opslib.rehearsal start)"'
    if isinstance(error, EndpointConnectionError | ConnectTimeoutError):
        return "is the network up? In a rehearsal, compare AWS_ENDPOINT_URL with `python -m opslib.rehearsal status`"
    return ""


@contextmanager
def gone_is_fine() -> Iterator[None]:
    """Pass over AWS's refusal, inside the block, to delete what does not exist."""
    try:
        yield
    except ClientError as error:
        if not is_absent(error):
            raise


@contextmanager
def explained(action: str, *, hint: str = "") -> Iterator[None]:
    """Turn botocore's errors inside the block into `AwsError("<action>: <the service's own words>")`.

    Args:
        action: What was being done, e.g. "creating bucket photos".
        hint: What to do about it; without one, a hint that fits the error code.

    Raises:
        AwsError: AWS refused, could not be reached, or has no credentials to go by.
    """
    try:
        yield
    except ClientError as error:
        words = f"{action}: {error_code(error)}: {error_message(error)}"
        raise AwsError(words, hint=hint or hint_for(error)) from error
    except BotoCoreError as error:
        raise AwsError(f"{action}: {error}", hint=hint or hint_for(error)) from error
