"""Provisioned concurrency: its operations on versions and aliases, and its environments.

Sources: docs.aws.amazon.com/lambda/latest/dg/provisioned-concurrency.html and
lambda/latest/api/API_PutProvisionedConcurrencyConfig.html.
"""

import threading
from collections.abc import Callable
from typing import Any

from moto.awslambda.models import LambdaFunction

from opslib.rehearsal.calls import Call, Operation, ServiceError
from opslib.rehearsal.clock import Clock
from opslib.rehearsal.functions.concurrency import Concurrency
from opslib.rehearsal.functions.metrics import FunctionMetrics, Target
from opslib.rehearsal.functions.pool import FunctionPool
from opslib.rehearsal.functions.provisioned import ProvisionedEnvironments
from opslib.rehearsal.functions.records import find_function, page

SAMPLE_EVERY_SECONDS = 60.0
_SHORTEST_WAIT_SECONDS = 0.1
"""Of the wall: at high speeds fewer samples are taken."""


class Provisioning:
    """What is provisioned, by function and qualifier."""

    def __init__(
        self,
        pool_of: Callable[[LambdaFunction], FunctionPool],
        concurrency: Concurrency,
        metrics: FunctionMetrics,
        clock: Clock,
    ) -> None:
        """Take what gives a version's environments, where concurrency is set aside, and where metrics go."""
        self._pool_of = pool_of
        self._concurrency = concurrency
        self._metrics = metrics
        self._clock = clock
        self._configured: dict[Target, ProvisionedEnvironments] = {}
        self._lock = threading.RLock()
        self._stopping = threading.Event()
        self._sampler: threading.Thread | None = None
        self.operations: dict[str, Operation] = {
            "lambda.PutProvisionedConcurrencyConfig": self.put,
            "lambda.GetProvisionedConcurrencyConfig": self.get,
            "lambda.ListProvisionedConcurrencyConfigs": self.list,
            "lambda.DeleteProvisionedConcurrencyConfig": self.delete,
        }

    def stop(self) -> None:
        """End every environment."""
        self._stopping.set()
        with self._lock:
            configured = list(self._configured.values())
            self._configured.clear()
        for environments in configured:
            environments.close()

    def put(self, call: Call) -> dict[str, Any]:
        """Provision a version or an alias; the environments start in the background."""
        target = _target(call)
        self.provision(target, call.params["ProvisionedConcurrentExecutions"])
        nothing = {"AvailableProvisionedConcurrentExecutions": 0, "AllocatedProvisionedConcurrentExecutions": 0}
        begun = {"Status": "IN_PROGRESS", **({} if self._configured[target].available else nothing)}
        return self._configured[target].describe() | begun

    def get(self, call: Call) -> dict[str, Any]:
        """Return what is provisioned, and whether it is there."""
        target = _target(call)
        find_function(target.region, target.name, target.qualifier)
        environments = self._configured.get(target)
        if environments is None:
            message = "No Provisioned Concurrency Config found for this function"
            raise ServiceError("ProvisionedConcurrencyConfigNotFoundException", message, status=404)
        return environments.describe()

    def list(self, call: Call) -> dict[str, Any]:
        """Return a page of what a function has provisioned."""
        function = find_function(call.region, call.params["FunctionName"])
        name = function.function_name
        own = [pair for pair in list(self._configured.items()) if (pair[0].region, pair[0].name) == (call.region, name)]
        arn = call.arn(f"function:{name}")
        own.sort(key=lambda pair: pair[0])
        shown = [{"FunctionArn": f"{arn}:{target.qualifier}", **one.describe()} for target, one in own]
        return page(call, "ProvisionedConcurrencyConfigs", shown)

    def delete(self, call: Call) -> dict[str, Any]:
        """Provision nothing any more."""
        target = _target(call)
        find_function(target.region, target.name, target.qualifier)
        self.remove(target)
        return {}

    def provision(self, target: Target, count: int) -> None:
        """Ask for so many environments, and return at once.

        Raises:
            ServiceError: what Lambda refuses: an unpublished version, one that another qualifier provisions, or more
                than the function or the account may have.
        """
        function = find_function(target.region, target.name, target.qualifier)
        if function.version == "$LATEST" or target.qualifier in {"", "$LATEST"}:
            reason = "Provisioned Concurrency Configs cannot be applied to unpublished function versions."
            raise ServiceError("InvalidParameterValueException", reason)
        pool = self._pool_of(function)
        with self._lock:
            self._require_alone(target, str(function.version))
            self._concurrency.set_aside(target, count)
            environments = self._configured.get(target)
            if environments is None:
                environments = ProvisionedEnvironments(str(function.version), pool.build_provisioned)
                self._configured[target] = environments
            environments.resize(count)
            self._sample_from_now_on()

    def remove(self, target: Target) -> None:
        """End what a qualifier has provisioned, if anything."""
        with self._lock:
            environments = self._configured.pop(target, None)
            self._concurrency.give_back(target)
        if environments:
            environments.close()

    def remove_all(self, region: str, name: str, qualifier: str | None) -> None:
        """End what a function has provisioned, or one of its versions."""
        for target in [one for one in list(self._configured) if (one.region, one.name) == (region, name)]:
            if qualifier in {None, target.qualifier}:
                self.remove(target)

    def follow(self, target: Target) -> None:
        """Move what an alias has provisioned to the version that it names now."""
        with self._lock:
            old = self._configured.get(target)
            function = find_function(target.region, target.name, target.qualifier)
            if old is None or old.version == str(function.version):
                return
            pool = self._pool_of(function)
            new = ProvisionedEnvironments(str(function.version), pool.build_provisioned)
            self._configured[target] = new
        new.resize(old.requested)
        old.close()

    def of(self, function: LambdaFunction) -> tuple[Target, ProvisionedEnvironments] | None:
        """Return what is provisioned for a version, by its number or by an alias; None: nothing."""
        name, version = function.function_name, str(function.version)
        for target, environments in list(self._configured.items()):
            if (target.region, target.name, environments.version) == (function.region, name, version):
                return target, environments
        return None

    def find(self, target: Target) -> ProvisionedEnvironments | None:
        """Return what a qualifier has provisioned; None: nothing."""
        return self._configured.get(target)

    def _require_alone(self, target: Target, version: str) -> None:
        for other, environments in self._configured.items():
            same = (other.region, other.name, environments.version) == (target.region, target.name, version)
            if not same or other == target:
                continue
            if target.qualifier == version:
                reason = "Version is pointed by a Provisioned Concurrency alias"
            else:
                reason = (
                    "Alias can't be used for Provisioned Concurrency configuration on an already Provisioned version"
                )
            raise ServiceError("ResourceConflictException", reason, status=409)

    def _sample_from_now_on(self) -> None:
        if self._sampler is None:
            self._sampler = threading.Thread(target=self._sample, name="provisioned-metrics", daemon=True)
            self._sampler.start()

    def _sample(self) -> None:
        """Write the utilisation at intervals, so that it is known while nobody calls."""
        wait_seconds = max(_SHORTEST_WAIT_SECONDS, self._clock.wall_seconds(SAMPLE_EVERY_SECONDS))
        while not self._stopping.wait(wait_seconds):
            for target, environments in list(self._configured.items()):
                busy, available = environments.busy, environments.available
                self._metrics.write_provisioned(target, busy=busy, available=available)


def _target(call: Call) -> Target:
    name = find_function(call.region, call.params["FunctionName"]).function_name
    return Target(call.region, name, call.params["Qualifier"])
