"""One API call as the rehearsal's operations see it, and the errors that they answer with.

An operation of the rehearsal is a function from a `Call` to the reply's members (a dict of the Python types that boto3
shows: datetime, bytes, ...). It is registered under "service.Operation" by an extension (see `site.Extension`).
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

ACCOUNT_ID = "000000000000"
"""The account of every rehearsal: no real account has this id, so nobody takes a rehearsal for AWS."""


class ServiceError(Exception):
    """The answer of a service that refuses a call; botocore raises it in the client as ClientError.

    `members` are the further members of the error's structure, e.g. OriginalStatusCode of ModelError.
    """

    def __init__(self, code: str, message: str, status: int = 400, members: Mapping[str, Any] | None = None) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.status = status
        self.members = dict(members or {})


@dataclass(frozen=True)
class Principal:
    """A user or a role's session: the one who signed a call, or whom a service acts for."""

    arn: str
    access_key_id: str
    secret: str
    token: str = ""
    expires: datetime | None = None
    role_name: str = ""

    @property
    def name(self) -> str:
        """The user's or the role's name."""
        return self.role_name or self.arn.rpartition("/")[2]

    @property
    def has_expired(self) -> bool:
        """Whether these are temporary credentials whose time is over."""
        return self.expires is not None and datetime.now(UTC) > self.expires


@dataclass(frozen=True)
class Call:
    """An authenticated, validated and permitted call."""

    service: str
    operation: str
    params: dict[str, Any]
    principal: Principal
    region: str
    request_id: str
    headers: Mapping[str, str] = field(default_factory=dict)
    arrived: float = field(default_factory=time.perf_counter)
    """When the request was there, in seconds of `time.perf_counter`."""

    def arn(self, resource: str, service: str = "") -> str:
        """Return the ARN of a resource of this call's region, e.g. `call.arn("training-job/x")`."""
        return f"arn:aws:{service or self.service.partition('-')[0]}:{self.region}:{ACCOUNT_ID}:{resource}"


Operation = Callable[[Call], dict[str, Any]]

Witness = Callable[[Call], Callable[[bytes], bytes]]
"""Sees a call that moto will answer, and returns what turns the body of that answer into the one that is sent.

It raises ServiceError to refuse the call.
"""
