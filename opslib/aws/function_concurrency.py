"""The concurrency of a Lambda function: reserved, which is free, and provisioned, which is paid for by the second."""

import time

from botocore.exceptions import WaiterError

from opslib.aws.failures import explained, gone_is_fine, masked
from opslib.aws.session import client
from opslib.errors import FunctionFailed
from opslib.specs import FunctionSpec

PROVISIONED_ALIAS = "live"
"""The alias whose environments are kept ready; who calls the function without it gets one on demand."""

_MAX_WAIT_SECONDS = 600.0
_POLL_SECONDS = 0.5
_POLL = {"Delay": 1, "MaxAttempts": 300}


def ensure_concurrency(name: str, spec: FunctionSpec) -> None:
    """Reserve and provision what the specification says, and give back what it does not name.

    Provisioned concurrency belongs to a version: the present code and configuration are published, and
    PROVISIONED_ALIAS stands for that version. Returns when the environments are ready.

    Raises:
        FunctionFailed: the environments could not be made ready; the message holds Lambda's reason.
        AwsError: AWS refused, e.g. because the account must keep 100 unreserved.
    """
    with explained(f"setting the concurrency of function {name}"):
        wanted = spec.provisioned_concurrency or 0
        # What is provisioned must fit into what is reserved at every moment, so that the smaller one goes first.
        if wanted <= _provisioned(name):
            _provision(name, wanted)
            _reserve(name, spec.reserved_concurrency)
        else:
            _reserve(name, spec.reserved_concurrency)
            _provision(name, wanted)


def _reserve(name: str, concurrency: int | None) -> None:
    """Reserve concurrency, which is a floor and a ceiling at once, or give a reservation back."""
    if concurrency is None:
        with gone_is_fine():
            client("lambda").delete_function_concurrency(FunctionName=name)
    else:
        client("lambda").put_function_concurrency(FunctionName=name, ReservedConcurrentExecutions=concurrency)


def _provisioned(name: str) -> int:
    """Return what the alias has provisioned now, 0 for nothing."""
    pages = client("lambda").get_paginator("list_provisioned_concurrency_configs").paginate(FunctionName=name)
    found = [one for page in pages for one in page["ProvisionedConcurrencyConfigs"]]
    ours = [one for one in found if one["FunctionArn"].endswith(f":{PROVISIONED_ALIAS}")]
    return sum(one["RequestedProvisionedConcurrentExecutions"] for one in ours)


def _provision(name: str, count: int) -> None:
    if not count:
        if _provisioned(name):
            client("lambda").delete_provisioned_concurrency_config(FunctionName=name, Qualifier=PROVISIONED_ALIAS)
        return
    _point_alias(name, _publish(name))
    if _provisioned(name) != count:
        client("lambda").put_provisioned_concurrency_config(
            FunctionName=name, Qualifier=PROVISIONED_ALIAS, ProvisionedConcurrentExecutions=count
        )
    _wait_until_ready(name)


def _publish(name: str) -> str:
    """Return the version of the present code and configuration; a new one only when they have changed."""
    version = client("lambda").publish_version(FunctionName=name)["Version"]
    try:
        waiter = client("lambda").get_waiter("published_version_active")
        waiter.wait(FunctionName=name, Qualifier=version, WaiterConfig=_POLL)
    except WaiterError as error:
        why = masked(error.last_response.get("StateReason") or str(error))
        raise FunctionFailed(f"version {version} of function {name} did not become ready: {why}") from error
    return version


def _point_alias(name: str, version: str) -> None:
    """Let the alias stand for a version; what it has provisioned follows."""
    alias = {}
    with gone_is_fine():
        alias = client("lambda").get_alias(FunctionName=name, Name=PROVISIONED_ALIAS)
    settings = {"FunctionName": name, "Name": PROVISIONED_ALIAS, "FunctionVersion": version}
    if not alias:
        client("lambda").create_alias(**settings)
    elif alias["FunctionVersion"] != version:
        client("lambda").update_alias(**settings)


def _wait_until_ready(name: str) -> None:
    deadline = time.monotonic() + _MAX_WAIT_SECONDS
    while time.monotonic() < deadline:
        found = client("lambda").get_provisioned_concurrency_config(FunctionName=name, Qualifier=PROVISIONED_ALIAS)
        if found["Status"] == "READY":
            return
        if found["Status"] == "FAILED":
            why = masked(found.get("StatusReason", "no reason given"))
            raise FunctionFailed(f"the environments of function {name} could not be made ready: {why}")
        time.sleep(_POLL_SECONDS)
    raise FunctionFailed(f"the environments of function {name} were not ready after {_MAX_WAIT_SECONDS:.0f} s")
