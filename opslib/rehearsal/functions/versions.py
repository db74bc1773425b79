"""Versions of a function: its code and configuration as they were when they were published, under a number.

moto keeps the records. Source: docs.aws.amazon.com/lambda/latest/dg/configuration-versions.html.
"""

import copy
import threading
from collections.abc import Callable
from typing import Any

from moto.awslambda.models import LambdaFunction, lambda_backends

from opslib.rehearsal.calls import ACCOUNT_ID, Call, Operation, ServiceError
from opslib.rehearsal.functions.records import find_function, page
from opslib.rehearsal.functions.revisions import renew_revision
from opslib.rehearsal.functions.settings import configuration

_PASSING = ("FunctionArn", "Version", "LastModified", "RevisionId", "State", "LastUpdateStatus")
"""What may differ without there being anything new to publish."""
_publishing = threading.Lock()
"""Two at once must not both find that there is something new."""


class Versions:
    """The operations that publish versions and list them."""

    def __init__(self, updatable: Callable[[Call], LambdaFunction]) -> None:
        """Take what finds a function that is not being changed at this moment."""
        self._updatable = updatable
        self.operations: dict[str, Operation] = {
            "lambda.PublishVersion": self.publish,
            "lambda.ListVersionsByFunction": self.list,
        }

    def publish(self, call: Call) -> dict[str, Any]:
        """Publish the present code and configuration, if they are what the caller takes them for."""
        function = self._updatable(call)
        present, expected = configuration(function)["CodeSha256"], call.params.get("CodeSha256")
        if expected and expected != present:
            reason = f"CodeSHA256 ({expected}) is different from current CodeSHA256 in $LATEST ({present}). "
            raise _refused(f"{reason}Please try again with the CodeSHA256 in $LATEST.")
        return configuration(publish_version(function, call.params.get("Description", "")))

    def list(self, call: Call) -> dict[str, Any]:
        """Return a page of versions, $LATEST first."""
        name = find_function(call.region, call.params["FunctionName"]).function_name
        versions = list(lambda_backends[ACCOUNT_ID][call.region].list_versions_by_function(name))
        return page(call, "Versions", [configuration(one) for one in versions])


def publish_version(function: LambdaFunction, description: str = "") -> LambdaFunction:
    """Return a version of the present code and configuration: the last one, if nothing has changed since.

    Numbers are not used again when versions are deleted.
    """
    with _publishing:
        return _published(function, description)


def _published(function: LambdaFunction, description: str) -> LambdaFunction:
    storage = lambda_backends[ACCOUNT_ID][function.region]._lambdas
    versions, wanted = storage._functions[function.function_name]["versions"], _what_runs(function)
    if versions and versions[-1].published_from == wanted:
        return versions[-1]
    function.versions_published = getattr(function, "versions_published", 0) + 1
    version = copy.copy(function)
    version.set_version(function.versions_published)
    version.published_from, version.description = wanted, description or function.description
    version.state, version.last_update_status = "Active", "Successful"
    renew_revision(version)
    storage._arns[version.function_arn] = version
    versions.append(version)
    return version


def require_deletable(function: LambdaFunction, qualifier: str) -> None:
    """Refuse to delete what is no version of its own, and a version that an alias leads to.

    Raises:
        ServiceError: InvalidParameterValueException or ResourceConflictException.
    """
    if qualifier == "$LATEST":
        raise _refused("$LATEST version cannot be deleted without deleting the function.")
    if qualifier != str(function.version):
        raise _refused("Deletion of aliases is not currently supported.")
    aliases = lambda_backends[ACCOUNT_ID][function.region].list_aliases(function.function_name)
    weights = {one.name: (one.routing_config or {}).get("AdditionalVersionWeights", {}) for one in aliases}
    leading = [one.name for one in aliases if qualifier in {one.function_version, *weights[one.name]}]
    if leading:
        reason = f"Unable to delete version because the following aliases reference it: [{', '.join(leading)}]"
        raise ServiceError("ResourceConflictException", reason, status=409)


def _what_runs(function: LambdaFunction) -> dict[str, Any]:
    shown = configuration(function).items()
    return {name: value for name, value in shown if not name.startswith(_PASSING)}


def _refused(reason: str) -> ServiceError:
    return ServiceError("InvalidParameterValueException", reason)
