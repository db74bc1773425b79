"""AWS Lambda: functions that really run, with their states, checks, versions and reserved concurrency.

moto keeps the functions' records (with versions, aliases and tags); here they get their states and their environments.
Sources: docs.aws.amazon.com/lambda/latest/api, and functions-states.html and lambda-concurrency.html of the guide.
"""

import base64
import threading
import uuid
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from moto.awslambda.models import LambdaFunction, lambda_backends

from opslib.rehearsal.calls import ACCOUNT_ID, Call, Operation, ServiceError
from opslib.rehearsal.functions.account import get_account_settings
from opslib.rehearsal.functions.aliases import Aliases
from opslib.rehearsal.functions.async_events import AsyncEvents
from opslib.rehearsal.functions.async_settings import AsyncSettings
from opslib.rehearsal.functions.capacities import FunctionCapacities
from opslib.rehearsal.functions.code import read_code, remove_code, unpack_code
from opslib.rehearsal.functions.concurrency import Concurrency
from opslib.rehearsal.functions.environment import FunctionEnvironment, FunctionVersion
from opslib.rehearsal.functions.invocations import Invocations
from opslib.rehearsal.functions.log_format import build_log_format, logging_config
from opslib.rehearsal.functions.metrics import FunctionMetrics
from opslib.rehearsal.functions.names import by_plain_name
from opslib.rehearsal.functions.pool import FunctionPool
from opslib.rehearsal.functions.provisioning import Provisioning
from opslib.rehearsal.functions.records import ask_moto, find_function, page
from opslib.rehearsal.functions.refusals import refused_operations
from opslib.rehearsal.functions.resource_policy import ResourcePolicy
from opslib.rehearsal.functions.revisions import renew_revision, require_revision
from opslib.rehearsal.functions.runner import Runner
from opslib.rehearsal.functions.runtime import build_runtime
from opslib.rehearsal.functions.settings import (
    check_settings,
    configuration,
    function_variables,
    keep_settings,
    log_settings,
    require_dead_letter,
)
from opslib.rehearsal.functions.urls import FunctionUrls
from opslib.rehearsal.functions.versions import Versions, publish_version, require_deletable
from opslib.rehearsal.identity import assume_role, require_passable_role
from opslib.rehearsal.log_streams import LogStream
from opslib.rehearsal.site import Site


class FunctionsExtension:
    """The part of AWS Lambda that the rehearsal performs; what is not here (tags, aliases, policies) is moto's."""

    def __init__(self, site: Site) -> None:
        """Take nothing from the machine yet: the runtime is built with the first function."""
        self._site = site
        self._directory = site.directory / "functions"
        self._pools: dict[str, FunctionPool] = {}
        self._python: Path | None = None
        self._lock, self._building = threading.RLock(), threading.Lock()
        self._concurrency = Concurrency(self._find)
        metrics = FunctionMetrics(site.monitoring)
        self._provisioning = Provisioning(self._pool_of, self._concurrency, metrics, site.clock)
        runner = Runner(self._pool_of, _exists, self._concurrency, self._provisioning, metrics)
        self._async_settings = AsyncSettings(self._find)
        self._events = AsyncEvents(runner, self._async_settings, site.clock)
        invocations = Invocations(self._find, runner, self._events)
        self._urls = FunctionUrls(self._find, invocations, metrics)
        self.capacities = FunctionCapacities(self._provisioning)
        operations: dict[str, Operation] = {
            **refused_operations(),
            "lambda.GetAccountSettings": get_account_settings,
            "lambda.CreateFunction": self.create_function,
            "lambda.GetFunction": self.get_function,
            "lambda.GetFunctionConfiguration": self.get_function_configuration,
            "lambda.ListFunctions": self.list_functions,
            "lambda.UpdateFunctionCode": self.update_function_code,
            "lambda.UpdateFunctionConfiguration": self.update_function_configuration,
            "lambda.DeleteFunction": self.delete_function,
            **self._concurrency.operations,
            **self._provisioning.operations,
            **Versions(self._updatable).operations,
            **Aliases(self._provisioning).operations,
            **self._async_settings.operations,
            **invocations.operations,
            **self._urls.operations,
            **ResourcePolicy(self._find).operations,
        }
        self.operations = {name: by_plain_name(operation) for name, operation in operations.items()}

    def stop(self) -> None:
        """Kill every environment."""
        self._urls.stop()
        self._events.stop()
        self._provisioning.stop()
        with self._lock:
            pools = list(self._pools.values())
            self._pools.clear()
        for pool in pools:
            pool.close()
        for directory in self._directory.glob("*/task"):
            remove_code(directory)

    def create_function(self, call: Call) -> dict[str, Any]:
        """Create a function in state Pending; it becomes Active when its code is unpacked."""
        name = call.params["FunctionName"]
        check_settings(call.params, {})
        require_passable_role(call, call.params["Role"])
        require_dead_letter(call.params, call.params["Role"])
        logging_config(call.params.get("LoggingConfig", {}), {}, name)
        content = read_code(call, call.params["Code"])
        with self._lock:
            if name in self._names(call):
                raise ServiceError("ResourceConflictException", f"Function already exist: {name}", status=409)
            code = {"ZipFile": base64.b64encode(content).decode()}
            spec = {**call.params, "Code": code, "Publish": False}  # moto would count its versions in its own way
            function = ask_moto(lambda: lambda_backends[ACCOUNT_ID][call.region].create_function(spec))
        function.state, function.last_update_status = "Pending", "Successful"
        keep_settings(function, call.params)
        renew_revision(function)
        created = _shown(call, function)
        self._prepare(function, content)
        return created

    def get_function(self, call: Call) -> dict[str, Any]:
        """Return a function's configuration, tags and concurrency."""
        function = self._find(call)
        reply = {
            "Configuration": configuration(function),
            "Code": function.get_code().get("Code"),
            "Tags": function.tags,
        }
        reserved = find_function(call.region, function.function_name).reserved_concurrency
        if reserved is not None:
            reply["Concurrency"] = {"ReservedConcurrentExecutions": reserved}
        return {name: value for name, value in reply.items() if value}

    def get_function_configuration(self, call: Call) -> dict[str, Any]:
        """Return a function's configuration."""
        return configuration(self._find(call))

    def list_functions(self, call: Call) -> dict[str, Any]:
        """Return a page of functions, by name."""
        everything = lambda_backends[ACCOUNT_ID][call.region].list_functions(call.params.get("FunctionVersion"))
        functions = sorted(everything, key=lambda one: (one.function_name, str(one.version)))
        return page(call, "Functions", [configuration(one) for one in functions])

    def update_function_code(self, call: Call) -> dict[str, Any]:
        """Replace the code; the old code answers until the update is Successful."""
        function = self._updatable(call)
        content = read_code(call, call.params)
        if call.params.get("DryRun"):
            return configuration(function)
        function.update_function_code({"ZipFile": base64.b64encode(content).decode()})
        return self._update(call, function, content)

    def update_function_configuration(self, call: Call) -> dict[str, Any]:
        """Change handler, limits, variables or role; new environments have them."""
        function = self._updatable(call)
        check_settings(call.params, {"Runtime": function.run_time, "Handler": function.handler})
        if "Role" in call.params:
            require_passable_role(call, call.params["Role"])
        require_dead_letter(call.params, call.params.get("Role", function.role))
        keep_settings(function, call.params)
        function.update_configuration(call.params)
        return self._update(call, function, function.code_bytes)

    def delete_function(self, call: Call) -> dict[str, Any]:
        """Delete a function (or one version) and kill its environments, those that run an event at its end."""
        function = self._find(call)
        qualifier = call.params.get("Qualifier")
        if qualifier:
            require_deletable(function, qualifier)
        self._provisioning.remove_all(call.region, function.function_name, qualifier)
        if not qualifier:
            self._async_settings.forget(call.region, function.function_name)
            self._urls.forget(call.region, function.function_name)
        with self._lock:
            ask_moto(
                lambda: lambda_backends[ACCOUNT_ID][call.region].delete_function(call.params["FunctionName"], qualifier)
            )
            doomed = [key for key in self._pools if key == _key(function) or (not qualifier and _of(key, function))]
            pools = [self._pools.pop(key) for key in doomed]
        for pool in pools:
            pool.retire()
        return {}

    def _names(self, call: Call) -> set[str]:
        return {one.function_name for one in lambda_backends[ACCOUNT_ID][call.region].list_functions()}

    def _find(self, call: Call) -> LambdaFunction:
        return find_function(call.region, call.params["FunctionName"], call.params.get("Qualifier"))

    def _updatable(self, call: Call) -> LambdaFunction:
        function = self._find(call)
        if function.last_update_status == "InProgress":
            reason = f"An update is in progress for resource: {function.function_arn}"
            message = f"The operation cannot be performed at this time. {reason}"
            raise ServiceError("ResourceConflictException", message, status=409)
        _require_active(function)
        require_revision(call, function)
        return function

    def _update(self, call: Call, function: LambdaFunction, content: bytes) -> dict[str, Any]:
        function.last_update_status = "InProgress"
        function.last_modified = datetime.now(UTC).isoformat(timespec="milliseconds")
        renew_revision(function)
        updated = _shown(call, function)
        self._prepare(function, content)
        return updated

    def _prepare(self, function: LambdaFunction, content: bytes) -> None:
        """Unpack the code and make the function ready for invocations, in the background."""
        threading.Thread(target=self._build_pool, args=(function, content), name="function-code", daemon=True).start()

    def _build_pool(self, function: LambdaFunction, content: bytes) -> FunctionPool | None:
        """Make the environments of a function in place of those that it has; None when it failed or was deleted."""
        task_root = self._directory / uuid.uuid4().hex / "task"
        try:
            unpack_code(content, task_root)
        except OSError as error:  # e.g. the disk is full
            function.last_update_status, function.state_reason = "Failed", str(error)
            function.state = "Failed" if function.state == "Pending" else function.state
            return None
        pool = self._new_pool(function, task_root)
        with self._lock:
            if not _exists(function):
                remove_code(task_root)
                return None
            old = self._pools.get(_key(function))
            self._pools[_key(function)] = pool
        if (function.state, function.last_update_status) != ("Active", "Successful"):
            renew_revision(function)  # first: who waits for the state changes what it then sees
            function.state, function.last_update_status = "Active", "Successful"
        if old:
            old.retire()
        self._runtime()  # the first invocation may wait for it, but needs not begin it
        return pool

    def _new_pool(self, function: LambdaFunction, task_root: Path) -> FunctionPool:
        version = FunctionVersion(
            arn=function.function_arn,
            version=str(function.version),
            handler=function.handler,
            timeout_seconds=int(function.timeout),
            memory_mb=int(function.memory_size),
            python=self._runtime,
            task_root=task_root,
            log_format=build_log_format(log_settings(function)),
            variables=lambda stream: function_variables(function, stream, task_root, self._site.endpoint_url),
        )
        return FunctionPool(lambda kind: _new_environment(function, replace(version, initialization_type=kind)))

    def _runtime(self) -> Path:
        with self._lock:
            if self._python is None:
                self._python = build_runtime(self._directory / "runtime")
            return self._python

    def _pool_of(self, function: LambdaFunction) -> FunctionPool:
        """Return the environments of a function; a published version makes its own of the code it holds.

        Raises:
            ServiceError: ResourceConflictException, while the function is Pending, or
                ResourceNotFoundException, when it was deleted meanwhile.
        """
        _require_active(function)
        pool = self._pools.get(_key(function))
        if pool is None:
            with self._building:
                pool = self._pools.get(_key(function)) or self._build_pool(function, function.code_bytes)
        if pool is None:
            raise ServiceError("ResourceNotFoundException", f"Function not found: {function.function_arn}", status=404)
        return pool


def _new_environment(function: LambdaFunction, version: FunctionVersion) -> FunctionEnvironment:
    now = datetime.now(UTC)
    stream = f"{now:%Y/%m/%d}/[{version.version}]{uuid.uuid4().hex}"
    principal = assume_role(function.role, function.function_name)
    log = LogStream(principal, function.region, log_settings(function)["LogGroup"], stream)
    return FunctionEnvironment(version, stream, log.write)


def _shown(call: Call, function: LambdaFunction) -> dict[str, Any]:
    """Return the configuration of what was made or changed, as the version that it is published as."""
    shown = configuration(function)
    if not call.params.get("Publish"):
        return shown
    version = publish_version(function)
    return shown | {"Version": str(version.version), "FunctionArn": version.function_arn}


def _exists(function: LambdaFunction) -> bool:
    """Return whether a function is neither deleted, nor deleted and made anew."""
    try:
        return find_function(function.region, function.function_name, str(function.version)) is function
    except ServiceError:
        return False


def _require_active(function: LambdaFunction) -> None:
    if function.state != "Active":
        message = (
            "The operation cannot be performed at this time. The function is currently in the following state: "
            f"{function.state}"
        )
        raise ServiceError("ResourceConflictException", message, status=409)


def _key(function: LambdaFunction) -> str:
    return f"{function.region}/{function.function_name}/{function.version}"


def _of(key: str, function: LambdaFunction) -> bool:
    return key.startswith(f"{function.region}/{function.function_name}/")
