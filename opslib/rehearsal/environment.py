"""The standard variables that decide which AWS a program talks to, set for a rehearsal and restored after it."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import boto3

from opslib.rehearsal.calls import Principal

_TELEMETRY_OPT_OUT = {
    "SchemaVersion": "1.0",
    "SageMaker": {"PythonSDK": {"Modules": {"TelemetryOptOut": True}}},
}


def standard_variables(endpoint_url: str, region: str, principal: Principal, directory: Path) -> dict[str, str]:
    """Return the variables that send AWS's SDKs and CLI to a rehearsal, as `principal`.

    `directory` receives the SageMaker SDK's configuration: without it the SDK reports every call to a host of AWS,
    whatever the endpoint. The metadata service of an EC2 machine is switched off, so that no real role is found.
    """
    config = directory / "sagemaker-config.json"  # YAML is a superset of JSON
    config.write_text(json.dumps(_TELEMETRY_OPT_OUT), encoding="utf-8")
    return {
        "AWS_ENDPOINT_URL": endpoint_url,
        "AWS_DEFAULT_REGION": region,
        "AWS_REGION": region,
        "AWS_ACCESS_KEY_ID": principal.access_key_id,
        "AWS_SECRET_ACCESS_KEY": principal.secret,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "SAGEMAKER_USER_CONFIG_OVERRIDE": str(config),
    }


def overriding_variables(present: Mapping[str, str]) -> list[str]:
    """Return the names of present variables that would win over the standard ones, or point elsewhere."""
    fixed = {
        "AWS_PROFILE",
        "AWS_DEFAULT_PROFILE",
        "AWS_SESSION_TOKEN",
        "AWS_SECURITY_TOKEN",
        "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS",
        "AWS_ROLE_ARN",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
        "AWS_USE_FIPS_ENDPOINT",
        "AWS_USE_DUALSTACK_ENDPOINT",
        "AWS_CA_BUNDLE",
    }
    return sorted(name for name in present if name in fixed or name.startswith("AWS_ENDPOINT_URL_"))


def _forget_default_session() -> None:
    """Let boto3 look again: its default session keeps the credentials and the region of its first use."""
    boto3.DEFAULT_SESSION = None


def set_variables(variables: Mapping[str, str]) -> dict[str, str | None]:
    """Set the variables in this process, unset what would win over them; return what to restore."""
    unset = overriding_variables(os.environ)
    before = {name: os.environ.get(name) for name in (*variables, *unset)}
    for name in unset:
        del os.environ[name]
    os.environ.update(variables)
    _forget_default_session()
    return before


def restore_variables(before: Mapping[str, str | None]) -> None:
    """Put the variables back as `set_variables` found them."""
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    _forget_default_session()
