"""Lambda functions: made or brought up to date, invoked, and taken down with their logs."""

import base64
import hashlib
import io
import json
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from botocore.exceptions import WaiterError

import opslib
from opslib.aws.failures import explained, gone_is_fine, masked
from opslib.aws.function_concurrency import ensure_concurrency
from opslib.aws.ledger import Run
from opslib.aws.logs import delete_log_group, ensure_log_group, function_group
from opslib.aws.roles import once_role_is_known
from opslib.aws.session import client
from opslib.errors import ConfigurationError, FunctionFailed
from opslib.specs import FunctionSpec

RUNTIME = "python3.13"
CODE = Path(opslib.__file__).resolve().parent.parent / "lambda_function.py"
"""The handler at the project's root."""

_POLL = {"Delay": 1, "MaxAttempts": 300}
_ZIP_TIME = (1980, 1, 1, 0, 0, 0)
"""The earliest time a zip can hold: the same code always makes the same archive, so an update can be skipped."""


@dataclass(frozen=True)
class FunctionReply:
    """What a Lambda function answered.

    Attributes:
        status_code: The handler's own `statusCode`; Lambda's (200) when its answer has none.
        payload: The handler's answer, decoded from JSON.
        request_id: Lambda's id of the invocation, also in its log lines.
        log_tail: The last 4 KB of the invocation's log, REPORT line included.
    """

    status_code: int
    payload: Any
    request_id: str
    log_tail: str

    @property
    def scores(self) -> list[float]:
        """The raw scores of the one photo, in class order; from the JSON in `body`.

        Raises:
            FunctionFailed: the answer holds none, because it is an error.
        """
        try:
            return [float(score) for score in json.loads(self.payload["body"])[0]]
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise FunctionFailed(f"the function answered {self.status_code}: {_shown(self.payload)}") from error

    @property
    def init_seconds(self) -> float:
        """How long its environment took to start; 0.0 when it was there already."""
        return self._reported("Init Duration")

    @property
    def duration_seconds(self) -> float:
        """How long the handler took, without the start."""
        return self._reported("Duration")

    def _reported(self, field: str) -> float:
        found = re.search(rf"\t{field}: ([\d.]+) ms", self.log_tail)
        return float(found[1]) / 1000 if found else 0.0


def build_package(code: Path) -> bytes:
    """Return a zip of one Python file, the same bytes for the same code.

    Raises:
        ConfigurationError: the file cannot be read.
    """
    try:
        source = code.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{code} cannot be read: {error.strerror}") from error
    package = io.BytesIO()
    with zipfile.ZipFile(package, "w", zipfile.ZIP_DEFLATED) as archive:
        entry = zipfile.ZipInfo(code.name, date_time=_ZIP_TIME)
        entry.compress_type = zipfile.ZIP_DEFLATED
        entry.external_attr = 0o644 << 16  # Lambda runs as another user, who must be able to read it
        archive.writestr(entry, source)
    return package.getvalue()


def ensure_function(run: Run, spec: FunctionSpec, *, endpoint_name: str, role: str, code: Path = CODE) -> str:
    """Make the run's Lambda function, or bring it up to date; return its name when it is ready to be invoked.

    What is provisioned answers to who invokes the alias `function_concurrency.PROVISIONED_ALIAS`.

    Args:
        run: The run that owns it.
        spec: Time-out, memory, reserved and provisioned concurrency.
        endpoint_name: What the function finds in its variable ENDPOINT_NAME.
        role: ARN of its role (`ensure_function_role`).
        code: The file with `lambda_handler`.

    Raises:
        FunctionFailed: Lambda could not make it ready; the message holds its reason.
        AwsError: AWS refused.
        ConfigurationError: `code` cannot be read.
    """
    name, package = run.name("function"), build_package(Path(code))
    settings: dict[str, Any] = {
        "FunctionName": name,
        "Runtime": RUNTIME,
        "Role": role,
        "Handler": f"{Path(code).stem}.lambda_handler",
        "Timeout": spec.timeout_seconds,
        "MemorySize": spec.memory_mb,
        "Environment": {"Variables": {"ENDPOINT_NAME": endpoint_name}},
    }
    ensure_log_group(run, function_group(name))  # its role may not make one: see policies.function_statements
    run.record("function", name)
    tags = {tag["Key"]: tag["Value"] for tag in run.tags}
    with explained(f"making function {name}"):
        existing = _describe(name)
        if existing:
            _update(existing, settings, package)
        else:
            once_role_is_known(
                role, lambda: client("lambda").create_function(**settings, Code={"ZipFile": package}, Tags=tags)
            )
            _wait("function_active_v2", name)
    ensure_concurrency(name, spec)
    return name


def _describe(name: str) -> dict[str, Any]:
    """Return the function's configuration, empty when there is no such function."""
    with gone_is_fine():
        return client("lambda").get_function_configuration(FunctionName=name)
    return {}


def _update(existing: dict[str, Any], settings: dict[str, Any], package: bytes) -> None:
    """Bring code and configuration up to date; Lambda takes one change at a time, so each is waited for."""
    name = settings["FunctionName"]
    if existing["CodeSha256"] != base64.b64encode(hashlib.sha256(package).digest()).decode():
        client("lambda").update_function_code(FunctionName=name, ZipFile=package)
        _wait("function_updated_v2", name)
    if any(existing.get(key) != value for key, value in settings.items()):
        once_role_is_known(settings["Role"], lambda: client("lambda").update_function_configuration(**settings))
        _wait("function_updated_v2", name)


def _wait(waiter: str, name: str) -> None:
    try:
        client("lambda").get_waiter(waiter).wait(FunctionName=name, WaiterConfig=_POLL)
    except WaiterError as error:
        last = error.last_response.get("Configuration", error.last_response)
        why = last.get("StateReason") or last.get("LastUpdateStatusReason") or str(error)
        raise FunctionFailed(f"function {name} did not become ready: {masked(why)}") from error


def invoke_function(name: str, event: dict[str, Any], *, qualifier: str = "") -> FunctionReply:
    """Invoke a function with an event and wait for its answer; `qualifier` names a version or an alias.

    Raises:
        FunctionFailed: the handler raised, timed out or ran out of memory; the message holds its last log lines.
        AwsError: AWS refused, e.g. because all reserved concurrency is in use.
    """
    with explained(f"invoking function {name}"):
        extra = {"Qualifier": qualifier} if qualifier else {}
        answer = client("lambda").invoke(FunctionName=name, Payload=json.dumps(event).encode(), LogType="Tail", **extra)
        body = answer["Payload"].read()
    log_tail = base64.b64decode(answer.get("LogResult", "")).decode(errors="replace")
    payload = json.loads(body) if body else None
    if "FunctionError" in answer:
        raise FunctionFailed(_failure(name, payload, log_tail), hint=f"all its lines: log group {function_group(name)}")
    status = payload.get("statusCode") if isinstance(payload, dict) else None
    return FunctionReply(
        status_code=status if isinstance(status, int) else answer["StatusCode"],
        payload=payload,
        request_id=answer["ResponseMetadata"]["RequestId"],
        log_tail=log_tail,
    )


def _failure(name: str, payload: Any, log_tail: str) -> str:
    lines = "\n".join(f"  | {line}" for line in log_tail.splitlines()[-20:])
    return masked(f"function {name} failed: {_shown(payload)}" + (f"\nits last log lines:\n{lines}" if lines else ""))


def _shown(payload: Any) -> str:
    if isinstance(payload, dict) and "errorMessage" in payload:
        kind = payload.get("errorType")
        return f"{kind}: {payload['errorMessage']}" if kind else str(payload["errorMessage"])
    return masked(json.dumps(payload))[:500]


def function_exists(name: str) -> bool:
    """Tell whether there is a function of that name.

    Raises:
        AwsError: AWS refused.
    """
    with explained(f"looking at function {name}"):
        return bool(_describe(name))


def list_functions(prefix: str) -> list[str]:
    """Return the names of the functions that begin with `prefix`.

    Raises:
        AwsError: AWS refused.
    """
    with explained("listing functions"):
        pages = client("lambda").get_paginator("list_functions").paginate()
        names = [function["FunctionName"] for page in pages for function in page["Functions"]]
    return [name for name in names if name.startswith(prefix)]


def delete_function(name: str) -> None:
    """Delete a function and its log group; succeeds when they are already gone.

    Raises:
        AwsError: AWS refused.
    """
    with explained(f"deleting function {name}"), gone_is_fine():
        client("lambda").delete_function(FunctionName=name)
    delete_log_group(function_group(name))
