"""Aliases of a function: names for versions, with weights, that provisioned concurrency follows.

moto keeps the records.
Source: docs.aws.amazon.com/lambda/latest/dg/configuration-aliases.html and configuring-alias-routing.html.
"""

import random
from typing import Any

from moto.awslambda.models import LambdaFunction, lambda_backends

from opslib.rehearsal.calls import ACCOUNT_ID, Call, Operation, ServiceError
from opslib.rehearsal.functions.metrics import Target
from opslib.rehearsal.functions.provisioning import Provisioning
from opslib.rehearsal.functions.records import ask_moto, find_function, page
from opslib.rehearsal.functions.revisions import renew_revision, require_revision


class Aliases:
    """The operations that change aliases."""

    def __init__(self, provisioning: Provisioning) -> None:
        """Take what follows an alias."""
        self._provisioning = provisioning
        self.operations: dict[str, Operation] = {
            "lambda.CreateAlias": self.create,
            "lambda.GetAlias": self.get,
            "lambda.ListAliases": self.list,
            "lambda.UpdateAlias": self.update,
            "lambda.DeleteAlias": self.delete,
        }

    def create(self, call: Call) -> dict[str, Any]:
        """Give a version a name."""
        function, name = find_function(call.region, call.params["FunctionName"]), call.params["Name"]
        _require_routable(call, call.params["FunctionVersion"])
        backend = lambda_backends[ACCOUNT_ID][call.region]
        if any(one.name == name for one in backend.list_aliases(function.function_name)):
            message = f"Alias already exists: {function.function_arn}:{name}"
            raise ServiceError("ResourceConflictException", message, status=409)
        settings = (call.params.get("Description", ""), call.params.get("RoutingConfig"))
        version = call.params["FunctionVersion"]
        return _shown(ask_moto(lambda: backend.create_alias(name, function.function_name, version, *settings)))

    def get(self, call: Call) -> dict[str, Any]:
        """Return what a name stands for."""
        return _shown(_find(call))

    def list(self, call: Call) -> dict[str, Any]:
        """Return a page of a function's names, or of those of one version."""
        function, version = find_function(call.region, call.params["FunctionName"]), call.params.get("FunctionVersion")
        aliases = lambda_backends[ACCOUNT_ID][call.region].list_aliases(function.function_name)
        found = [_shown(one) for one in aliases if version in {None, one.function_version}]
        return page(call, "Aliases", found)

    def update(self, call: Call) -> dict[str, Any]:
        """Let a name stand for another version, or give it other weights; what it has provisioned follows."""
        function, name = find_function(call.region, call.params["FunctionName"]), call.params["Name"]
        backend, alias = lambda_backends[ACCOUNT_ID][call.region], _find(call)
        require_revision(call, alias)
        version = call.params.get("FunctionVersion", alias.function_version)
        _require_routable(call, version)
        settings = (call.params.get("Description"), call.params.get("RoutingConfig"))
        alias = ask_moto(lambda: backend.update_alias(name, function.function_name, version, *settings))
        renew_revision(alias)
        self._provisioning.follow(Target(call.region, function.function_name, name))
        return _shown(alias)

    def delete(self, call: Call) -> dict[str, Any]:
        """Delete a name, and end what it has provisioned."""
        function, name = find_function(call.region, call.params["FunctionName"]), call.params["Name"]
        lambda_backends[ACCOUNT_ID][call.region].delete_alias(name, function.function_name)
        self._provisioning.remove(Target(call.region, function.function_name, name))
        return {}


def _find(call: Call) -> Any:
    function, name = find_function(call.region, call.params["FunctionName"]), call.params["Name"]
    return ask_moto(lambda: lambda_backends[ACCOUNT_ID][call.region].get_alias(name, function.function_name))


def routed(function: LambdaFunction, qualifier: str) -> LambdaFunction:
    """Return the version that answers a call of an alias: its own, or by chance one of its additional versions."""
    backend = lambda_backends[ACCOUNT_ID][function.region]
    alias = next((one for one in backend.list_aliases(function.function_name) if one.name == qualifier), None)
    weights = (alias.routing_config or {}).get("AdditionalVersionWeights", {}) if alias else {}
    drawn = random.random()  # noqa: S311 - a share of the traffic, no secret
    for version, weight in weights.items():
        drawn -= weight
        if drawn < 0:
            return find_function(function.region, function.function_name, version)
    return function


def _require_routable(call: Call, version: str) -> None:
    weights = call.params.get("RoutingConfig", {}).get("AdditionalVersionWeights", {})
    for one in (version, *weights):
        find_function(call.region, call.params["FunctionName"], one)
    if weights and version == "$LATEST":
        reason = "$LATEST is not supported for an alias pointing to more than 1 version"
        raise ServiceError("InvalidParameterValueException", reason)
    if version in weights or len(weights) > 1 or not all(0 <= weight <= 1 for weight in weights.values()):
        reason = "AdditionalVersionWeights must name one other version, with a weight from 0.0 to 1.0."
        raise ServiceError("InvalidParameterValueException", reason)


def _shown(alias: Any) -> dict[str, Any]:
    return {name: value for name, value in alias.to_json().items() if value is not None}
