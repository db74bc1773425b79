"""What may be set on a Lambda function, how its configuration is shown, and the variables that its process gets."""

from datetime import datetime
from pathlib import Path
from typing import Any

from moto.awslambda.models import LambdaFunction

from opslib.rehearsal.calls import ServiceError
from opslib.rehearsal.functions.destinations import require_destination
from opslib.rehearsal.functions.log_format import log_variables, logging_config
from opslib.rehearsal.identity import role_credentials

MAX_VARIABLES_BYTES = 4096
"""Largest size of all environment variables together."""

_LARGEST = {"Timeout": 900, "MemorySize": 10240}
"""Quotas that are not in botocore's model: seconds and MB."""

MAX_NAME_LENGTH = 64
"""Of a function's name alone; botocore's model allows for an ARN."""

_RETIRED_RUNTIMES = ("python2.7", "python3.6", "python3.7", "python3.8")
_RESERVED_VARIABLES = frozenset(
    {
        "_HANDLER",
        "_X_AMZN_TRACE_ID",
        "AWS_DEFAULT_REGION",
        "AWS_REGION",
        "AWS_EXECUTION_ENV",
        "AWS_LAMBDA_FUNCTION_NAME",
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE",
        "AWS_LAMBDA_FUNCTION_VERSION",
        "AWS_LAMBDA_INITIALIZATION_TYPE",
        "AWS_LAMBDA_LOG_FORMAT",
        "AWS_LAMBDA_LOG_GROUP_NAME",
        "AWS_LAMBDA_LOG_LEVEL",
        "AWS_LAMBDA_LOG_STREAM_NAME",
        "AWS_ACCESS_KEY",
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "AWS_LAMBDA_RUNTIME_API",
        "LAMBDA_TASK_ROOT",
        "LAMBDA_RUNTIME_DIR",
    }
)


def check_settings(params: dict[str, Any], present: dict[str, Any]) -> None:
    """Refuse settings that Lambda refuses, and those that cannot be rehearsed.

    `present` holds the settings that a call does not name, on an update.

    Raises:
        ServiceError: ValidationException or InvalidParameterValueException.
    """
    for name, largest in _LARGEST.items():
        if params.get(name, 0) > largest:
            raise _out_of_bounds(name, params[name], f"value less than or equal to {largest}")
    if len(params["FunctionName"]) > MAX_NAME_LENGTH:
        raise _out_of_bounds("FunctionName", params["FunctionName"], f"length less than or equal to {MAX_NAME_LENGTH}")
    _check_runtime(params, {**present, **params})
    _check_variables(params.get("Environment", {}).get("Variables", {}))
    for name in ("Layers", "VpcConfig", "FileSystemConfigs"):
        if params.get(name):
            raise _refused(f"{name} of a function cannot be rehearsed yet; leave it out.")


def _check_runtime(params: dict[str, Any], settings: dict[str, Any]) -> None:
    if settings.get("PackageType", "Zip") != "Zip":
        raise _refused("Container images cannot be rehearsed; send a zip.")
    if not settings.get("Runtime") or not settings.get("Handler"):
        raise _refused("Runtime and Handler are mandatory parameters for functions created with deployment packages.")
    runtime = params.get("Runtime", "python")
    if runtime in _RETIRED_RUNTIMES:
        raise _refused(
            f"The runtime parameter of {runtime} is no longer supported for creating or updating AWS Lambda functions. "
            "We recommend you use a supported runtime while creating or updating functions."
        )
    if not runtime.startswith("python"):
        raise _refused(f"Functions of the runtime {runtime} cannot be rehearsed: only Python's can.")


def _check_variables(variables: dict[str, str]) -> None:
    sentence = (
        "Lambda was unable to configure your environment variables because the environment variables you have provided"
    )
    reserved = [name for name in variables if name in _RESERVED_VARIABLES]
    if reserved:
        raise _refused(
            f"{sentence} contains reserved keys that are currently not supported for modification. "
            f"Reserved keys used in this request: {', '.join(reserved)}"
        )
    if sum(len(name.encode()) + len(value.encode()) for name, value in variables.items()) > MAX_VARIABLES_BYTES:
        raise _refused(f"{sentence} exceeded the 4KB limit.")


def _out_of_bounds(name: str, value: Any, bound: str) -> ServiceError:
    where = f"Value '{value}' at '{name[0].lower()}{name[1:]}' failed to satisfy constraint"
    return ServiceError("ValidationException", f"1 validation error detected: {where}: Member must have {bound}")


def _refused(message: str) -> ServiceError:
    return ServiceError("InvalidParameterValueException", message)


def require_dead_letter(params: dict[str, Any], role_arn: str) -> None:
    """Refuse a dead-letter queue or topic to which the function's role may not send.

    Raises:
        ServiceError: InvalidParameterValueException.
    """
    if arn := params.get("DeadLetterConfig", {}).get("TargetArn"):
        require_destination(role_arn, arn)


def keep_settings(function: LambdaFunction, params: dict[str, Any]) -> None:
    """Keep with moto's record what it does not keep: the form of the log, and where dead letters go.

    Raises:
        ServiceError: InvalidParameterValueException.
    """
    function.logging_config = logging_config(
        params.get("LoggingConfig", {}), getattr(function, "logging_config", {}), function.function_name
    )
    if "DeadLetterConfig" in params:
        function.dead_letter_arn = params["DeadLetterConfig"].get("TargetArn", "")  # an empty name takes it away


def log_settings(function: LambdaFunction) -> dict[str, str]:
    """Return a function's LoggingConfig, with Lambda's defaults while it is being created."""
    return getattr(function, "logging_config", None) or logging_config({}, {}, function.function_name)


def configuration(function: LambdaFunction) -> dict[str, Any]:
    """Return a function's configuration as Lambda shows it."""
    shown = {name: value for name, value in function.get_configuration().items() if value not in (None, [], {})}
    shown["LastUpdateStatus"] = function.last_update_status
    shown["LastModified"] = (
        datetime.fromisoformat(function.last_modified).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "+0000"
    )
    shown["LoggingConfig"] = log_settings(function)
    shown["RevisionId"] = getattr(function, "revision_id", "")
    if arn := getattr(function, "dead_letter_arn", ""):
        shown["DeadLetterConfig"] = {"TargetArn": arn}
    if function.state == "Pending":
        shown["StateReason"], shown["StateReasonCode"] = "The function is being created.", "Creating"
    if function.state == "Failed":
        shown["StateReason"], shown["StateReasonCode"] = function.state_reason, "InternalError"
    if function.last_update_status == "Failed":
        shown["LastUpdateStatusReason"], shown["LastUpdateStatusReasonCode"] = function.state_reason, "InternalError"
    if function.last_update_status == "InProgress":
        shown["LastUpdateStatusReason"] = "The function is being created."
        shown["LastUpdateStatusReasonCode"] = "Creating"
    return shown


def function_variables(function: LambdaFunction, stream: str, task_root: Path, endpoint_url: str) -> dict[str, str]:
    """Return the environment of a function's process: Lambda's variables, the role's credentials and the user's own.

    Two are the rehearsal's: AWS_ENDPOINT_URL leads the SDK to it, and AWS_EC2_METADATA_DISABLED keeps it from looking
    for an EC2 machine's role.
    """
    return {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "LANG": "en_US.UTF-8",
        "TZ": ":UTC",
        "_HANDLER": function.handler,
        "AWS_REGION": function.region,
        "AWS_DEFAULT_REGION": function.region,
        "AWS_EXECUTION_ENV": f"AWS_Lambda_{function.run_time}",
        "AWS_LAMBDA_FUNCTION_NAME": function.function_name,
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": str(function.memory_size),
        "AWS_LAMBDA_FUNCTION_VERSION": str(function.version),
        "AWS_LAMBDA_LOG_GROUP_NAME": log_settings(function)["LogGroup"],
        "AWS_LAMBDA_LOG_STREAM_NAME": stream,
        "LAMBDA_TASK_ROOT": str(task_root),
        "AWS_ENDPOINT_URL": endpoint_url,
        "AWS_EC2_METADATA_DISABLED": "true",
        **log_variables(log_settings(function)),
        **role_credentials(function.role, function.function_name),
        **function.environment_vars,
    }
