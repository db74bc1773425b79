"""The resource policy of a function: whom it lets in besides those whom their own policies allow.

moto keeps the statements. A version or an alias has a policy of its own: the statements that name it.
Source: docs.aws.amazon.com/lambda/latest/api/API_AddPermission.html and lambda/latest/dg/urls-auth.html.
"""

import json
import re
import uuid
from collections.abc import Callable
from typing import Any

from moto.awslambda.models import LambdaFunction

from opslib.rehearsal.calls import Call, Operation, ServiceError
from opslib.rehearsal.functions.metrics import Target
from opslib.rehearsal.functions.revisions import require_revision_id

_CONDITIONS = {
    "SourceArn": ("ArnLike", "AWS:SourceArn"),
    "SourceAccount": ("StringEquals", "AWS:SourceAccount"),
    "PrincipalOrgID": ("StringEquals", "aws:PrincipalOrgID"),
    "FunctionUrlAuthType": ("StringEquals", "lambda:FunctionUrlAuthType"),
    "InvokedViaFunctionUrl": ("Bool", "lambda:InvokedViaFunctionUrl"),
    "EventSourceToken": ("StringEquals", "lambda:EventSourceToken"),
}
"""What a call may name, and the condition that it becomes."""


class ResourcePolicy:
    """The operations on policies."""

    def __init__(self, find: Callable[[Call], LambdaFunction]) -> None:
        """Take what finds the function of a call."""
        self._find = find
        self.operations: dict[str, Operation] = {
            "lambda.AddPermission": self.add,
            "lambda.GetPolicy": self.get,
            "lambda.RemovePermission": self.remove,
        }

    def add(self, call: Call) -> dict[str, Any]:
        """Add a statement to the policy of a function, a version or an alias."""
        function, sid = self._find(call), call.params["StatementId"]
        target = Target.of(call, function)
        if target.qualifier == "$LATEST":
            reason = "We currently do not support adding policies for $LATEST."
            raise ServiceError("InvalidParameterValueException", reason)
        require_revision_id(call, _revision(function, target))
        if any(one["Sid"] == sid for one in _statements(function, target)):
            reason = f"The statement id ({sid}) provided already exists. Please provide a new statement id, or remove "
            raise ServiceError("ResourceConflictException", f"{reason}the existing statement.", status=409)
        statement = {
            "Sid": sid,
            "Effect": "Allow",
            "Principal": _principal(call.params["Principal"]),
            "Action": call.params["Action"],
            "Resource": target.resource_arn,
        }
        if conditions := _conditions(call.params):
            statement["Condition"] = conditions
        function.policy.statements.append(statement)
        return {"Statement": json.dumps(statement)}

    def get(self, call: Call) -> dict[str, Any]:
        """Return the policy of a function, a version or an alias."""
        function = self._find(call)
        target = Target.of(call, function)
        if not (statements := _statements(function, target)):
            raise _missing("The resource you requested does not exist.")
        return {"Policy": _document(statements), "RevisionId": _revision(function, target)}

    def remove(self, call: Call) -> dict[str, Any]:
        """Take a statement out of a policy."""
        function, sid = self._find(call), call.params["StatementId"]
        target = Target.of(call, function)
        found = [one for one in _statements(function, target) if one["Sid"] == sid]
        if not found:
            raise _missing(f"Statement {sid} is not found in resource policy.")
        require_revision_id(call, _revision(function, target))
        function.policy.statements.remove(found[0])
        return {}


def policy_of(function: LambdaFunction) -> str:
    """Return the policy as a document; empty when there is none."""
    statements = function.policy.statements
    return _document(statements) if statements else ""


def _document(statements: list[dict[str, Any]]) -> str:
    return json.dumps({"Version": "2012-10-17", "Id": "default", "Statement": statements})


def _statements(function: LambdaFunction, target: Target) -> list[dict[str, Any]]:
    return [one for one in function.policy.statements if one["Resource"] == target.without_latest.resource_arn]


def _revision(function: LambdaFunction, target: Target) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, str(_statements(function, target))))


def _missing(reason: str) -> ServiceError:
    return ServiceError("ResourceNotFoundException", reason, status=404)


def _principal(named: str) -> Any:
    if named == "*":
        return "*"
    if re.fullmatch(r"\d{12}", named):
        return {"AWS": f"arn:aws:iam::{named}:root"}
    return {"AWS": named} if named.startswith("arn:") else {"Service": named}


def _conditions(params: dict[str, Any]) -> dict[str, dict[str, str]]:
    conditions: dict[str, dict[str, str]] = {}
    for name, (operator, key) in _CONDITIONS.items():
        if name in params:
            value = params[name]
            conditions.setdefault(operator, {})[key] = str(value).lower() if isinstance(value, bool) else value
    return conditions
