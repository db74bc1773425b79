"""How asynchronous events of a function are treated: retries, age and destinations, and the operations that set it.

Source: docs.aws.amazon.com/lambda/latest/api/API_PutFunctionEventInvokeConfig.html.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from moto.awslambda.models import LambdaFunction

from opslib.rehearsal.calls import Call, Operation, ServiceError
from opslib.rehearsal.functions.destinations import require_destination
from opslib.rehearsal.functions.metrics import Target
from opslib.rehearsal.functions.records import page

MAX_RETRIES = 2
MAX_AGE_SECONDS = 21600
"""Six hours, the default and the longest."""

_MEMBERS = ("MaximumRetryAttempts", "MaximumEventAgeInSeconds", "DestinationConfig")


class AsyncSettings:
    """The settings of each function, version or alias."""

    def __init__(self, find: Callable[[Call], LambdaFunction]) -> None:
        """Take what finds the function of a call."""
        self._find = find
        self._settings: dict[Target, dict[str, Any]] = {}
        self.operations: dict[str, Operation] = {
            "lambda.PutFunctionEventInvokeConfig": self.put,
            "lambda.UpdateFunctionEventInvokeConfig": self.update,
            "lambda.GetFunctionEventInvokeConfig": self.get,
            "lambda.DeleteFunctionEventInvokeConfig": self.delete,
            "lambda.ListFunctionEventInvokeConfigs": self.list,
        }

    def of(self, target: Target) -> dict[str, Any]:
        """Return the settings of what was called; empty when there are none."""
        return self._settings.get(target, {})

    def forget(self, region: str, name: str) -> None:
        """Drop the settings of a function that is deleted."""
        for target in [one for one in self._settings if (one.region, one.name) == (region, name)]:
            self._settings.pop(target, None)

    def put(self, call: Call) -> dict[str, Any]:
        """Set everything; what the call does not name has its default."""
        return self._set(call, {})

    def update(self, call: Call) -> dict[str, Any]:
        """Set what the call names, and keep the rest."""
        return self._set(call, self._existing(call))

    def get(self, call: Call) -> dict[str, Any]:
        """Return the settings."""
        return self._existing(call)

    def delete(self, call: Call) -> dict[str, Any]:
        """Go back to the defaults."""
        self._existing(call)
        del self._settings[self._target(call)]
        return {}

    def list(self, call: Call) -> dict[str, Any]:
        """Return the settings of a function, its versions and aliases."""
        named = self._target(call)
        ours = [one for one in sorted(self._settings) if (one.region, one.name) == (named.region, named.name)]
        return page(call, "FunctionEventInvokeConfigs", [self._settings[one] for one in ours])

    def _set(self, call: Call, present: dict[str, Any]) -> dict[str, Any]:
        function, target = self._find(call), self._target(call)
        settings = {name: call.params[name] for name in _MEMBERS if name in call.params}
        if not settings:
            reason = "You must specify at least one of error handling or destination setting."
            raise ServiceError("InvalidParameterValueException", reason)
        for arn in destinations(settings).values():
            require_destination(function.role, arn)
        new = {"DestinationConfig": {"OnSuccess": {}, "OnFailure": {}}, **present, **settings}
        self._settings[target] = {**new, "FunctionArn": target.arn, "LastModified": datetime.now(UTC)}
        return self._settings[target]

    def _existing(self, call: Call) -> dict[str, Any]:
        target = self._target(call)
        if target not in self._settings:
            reason = f"The function {target.arn} doesn't have an EventInvokeConfig"
            raise ServiceError("ResourceNotFoundException", reason, status=404)
        return self._settings[target]

    def _target(self, call: Call) -> Target:
        return Target.of(call, self._find(call)).without_latest


def destinations(settings: dict[str, Any]) -> dict[str, str]:
    """Return the ARNs by OnSuccess and OnFailure, of those that are set."""
    wanted = settings.get("DestinationConfig", {})
    return {name: one["Destination"] for name, one in wanted.items() if one.get("Destination")}
