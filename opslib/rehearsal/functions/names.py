"""What a call names a function by: its name, or a whole or partial ARN, each with or without a qualifier behind it.

Source: docs.aws.amazon.com/lambda/latest/api/API_Invoke.html and lambda/latest/dg/lambda-api-permissions-ref.html.
"""

from dataclasses import replace
from typing import Any

from opslib.rehearsal.calls import ACCOUNT_ID, Call, Operation, ServiceError
from opslib.rehearsal.gateway.actions import FUNCTION_NAME
from opslib.rehearsal.gateway.incoming import operation_model


def by_plain_name(operation: Operation) -> Operation:
    """Return an operation that finds the plain name in FunctionName, and in Qualifier what stood behind it."""

    def named(call: Call) -> dict[str, Any]:
        return operation(replace(call, params=_plain(call)) if "FunctionName" in call.params else call)

    return named


def _plain(call: Call) -> dict[str, Any]:
    found = FUNCTION_NAME.fullmatch(call.params["FunctionName"])
    if not found:
        raise _refused(f"{call.params['FunctionName']} names no function.")
    _require_here(call, found["region"], found["account"])
    qualifier, wanted = found["qualifier"], call.params.get("Qualifier")
    params = {**call.params, "FunctionName": found["name"]}
    if qualifier is None:
        return params
    if "Qualifier" not in operation_model("lambda", call.operation).input_shape.members:
        raise _refused(
            "This operation is permitted on Lambda functions only. Aliases and versions do not support this operation. "
            "Please specify either a function name or an unqualified function ARN."
        )
    if wanted not in {None, qualifier}:
        raise _refused("The derived qualifier from the function name does not match the specified qualifier.")
    return {**params, "Qualifier": qualifier}


def _require_here(call: Call, region: str | None, account: str | None) -> None:
    if region not in {None, call.region}:
        reason = f"Functions from '{region}' are not reachable in this region ('{call.region}')"
        raise ServiceError("ResourceNotFoundException", reason, status=404)
    if account not in {None, ACCOUNT_ID}:
        reason = f"is not authorized to perform: lambda:{call.operation} on resource: {call.params['FunctionName']}"
        raise ServiceError("AccessDeniedException", f"User: {call.principal.arn} {reason}", status=403)


def _refused(reason: str) -> ServiceError:
    return ServiceError("InvalidParameterValueException", reason)
