"""Which AWS the code speaks to: one cached client per service, and a line that says where you are.

The standard variables (`AWS_ENDPOINT_URL`, `AWS_DEFAULT_REGION`, credentials) decide; nothing here asks whether a
service is real or rehearsed.
"""

import os
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import boto3
from botocore.config import Config
from botocore.exceptions import ProfileNotFound

import opslib
from opslib.aws.failures import explained
from opslib.errors import ConfigurationError

if TYPE_CHECKING:
    from sagemaker.core.helper.session_helper import Session

REHEARSAL_ACCOUNT = "000000000000"
"""Account id that AWS never gives to a customer; the rehearsal's identity."""

READ_TIMEOUT_SECONDS = {
    # A container has 60 s to answer, and AWS's documentation of InvokeEndpoint asks for 70 s on the client's side.
    "sagemaker-runtime": 70,
    # A synchronous invocation lasts up to 900 s; a shorter socket time-out would make botocore invoke it again.
    "lambda": 910,
}

_lock = threading.RLock()
_cache: dict[tuple[tuple[str, str], ...], tuple[boto3.Session, dict[str, Any]]] = {}


def _environment() -> tuple[tuple[str, str], ...]:
    """Return the variables that decide identity and endpoint: a changed environment must give new clients."""
    return tuple(sorted((name, value) for name, value in os.environ.items() if name.startswith("AWS_")))


def _current() -> tuple[boto3.Session, dict[str, Any]]:
    environment = _environment()
    with _lock:
        if environment not in _cache:
            _cache.clear()  # clients of a former environment would keep its credentials alive
            _cache[environment] = (boto3_session(), {})
        return _cache[environment]


def current_session() -> boto3.Session:
    """Return the boto3 session that the clients of `client` come from, the same until an `AWS_*` variable changes.

    Raises:
        ConfigurationError: `AWS_PROFILE` names a profile that does not exist.
    """
    return _current()[0]


def boto3_session() -> boto3.Session:
    """Return a new boto3 session of the current environment (for the SageMaker SDK, which wants one of its own).

    Raises:
        ConfigurationError: `AWS_PROFILE` names a profile that does not exist.
    """
    try:
        return boto3.Session()
    except ProfileNotFound as error:
        raise ConfigurationError(
            str(error), hint="set AWS_PROFILE to a profile of ~/.aws/config, or unset it"
        ) from error


def client_config(service: str) -> Config:
    """Return how a client of `service` waits and retries.

    Retries are botocore's standard mode with five attempts in all, unless `AWS_RETRY_MODE` or `AWS_MAX_ATTEMPTS`
    is set: an explicit Config would outrank both.
    """
    retries: dict[str, Any] = {"mode": "standard", "total_max_attempts": 5}
    chosen = {"AWS_RETRY_MODE", "AWS_MAX_ATTEMPTS"} & os.environ.keys()
    return Config(
        connect_timeout=10,
        read_timeout=READ_TIMEOUT_SECONDS.get(service, 60),
        max_pool_connections=32,
        retries=None if chosen else retries,
        user_agent_extra=f"opslib/{opslib.__version__}",
    )


def client(service: str) -> Any:
    """Return the boto3 client of `service` for the current environment.

    Clients are thread-safe and cached until an `AWS_*` variable changes.

    Raises:
        ConfigurationError: no region is set.
    """
    session, clients = _current()
    with _lock:
        if service not in clients:
            clients[service] = session.client(service, region_name=region(), config=client_config(service))
        return clients[service]


def single_attempt_client(service: str, connections: int) -> Any:
    """Return a new client that never tries again, with room for so many connections: for measuring."""
    config = client_config(service).merge(
        Config(max_pool_connections=connections, retries={"mode": "standard", "total_max_attempts": 1})
    )
    return boto3_session().client(service, region_name=region(), config=config)


def region() -> str:
    """Return the region, as boto3 finds it: `AWS_DEFAULT_REGION`, then the profile (`AWS_REGION` is not read).

    Raises:
        ConfigurationError: no region is set.
    """
    name = _current()[0].region_name
    if not name:
        raise ConfigurationError(
            "no AWS region is set",
            hint="export AWS_DEFAULT_REGION=us-east-1, or run `aws configure`; or rehearse: "
            'eval "$(python -m opslib.rehearsal start)"',
        )
    return name


def _caller() -> dict[str, str]:
    clients = _current()[1]
    if "caller" not in clients:
        with explained("asking AWS who we are"):
            clients["caller"] = client("sts").get_caller_identity()
    return clients["caller"]


def account_id() -> str:
    """Return the twelve-digit id of the caller's account; for ARNs, not for printing.

    Raises:
        AwsError: there are no credentials, or AWS refuses them.
    """
    return _caller()["Account"]


def partition() -> str:
    """Return the partition of ARNs here: `aws`, `aws-cn` or `aws-us-gov`.

    Raises:
        AwsError: there are no credentials, or AWS refuses them.
    """
    return _caller()["Arn"].split(":")[1]


def address() -> str:
    """Return region and endpoint, by which one AWS is told from another without asking it; empty without a region."""
    if not current_session().region_name:
        return ""
    return f"{region()} ({client('sts').meta.endpoint_url})"


@dataclass(frozen=True)
class Whereabouts:
    """Which AWS the code speaks to; `account` is masked to its last four digits unless it is the rehearsal's."""

    kind: str
    region: str
    endpoint: str
    account: str

    def __str__(self) -> str:
        """Return one line for the top of a notebook."""
        if self.kind == "rehearsal":
            return f"Rehearsal on this machine ({self.endpoint}, account {self.account}): nothing is billed."
        return f"AWS, region {self.region}, account {self.account}: what you create is billed."


def whereabouts() -> Whereabouts:
    """Return which AWS the code speaks to, asking STS (so credentials that do not work are noticed here).

    Raises:
        AwsError: there are no credentials, or AWS refuses them.
        ConfigurationError: no region is set.
    """
    rehearsed = account_id() == REHEARSAL_ACCOUNT
    return Whereabouts(
        kind="rehearsal" if rehearsed else "aws",
        region=region(),
        endpoint=client("sts").meta.endpoint_url,
        account=account_id() if rehearsed else f"…{account_id()[-4:]}",
    )


def sagemaker_session(bucket: str, prefix: str = "") -> "Session":
    """Return a new SageMaker SDK session that stages its files under `s3://<bucket>/<prefix>`.

    Without a bucket the SDK makes one of its own and asks the real STS host for the account, whatever
    `AWS_ENDPOINT_URL` says (`Session.default_bucket` and `Session.account_id` in sagemaker 3.27).
    """
    from sagemaker.core.helper.session_helper import Session  # 2 s: only those who train or deploy pay for it

    region()
    return Session(
        boto_session=boto3_session(),
        sagemaker_runtime_client=client("sagemaker-runtime"),
        default_bucket=bucket,
        default_bucket_prefix=prefix or None,
    )
