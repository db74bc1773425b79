"""Roles that can do only what this project needs, and patience while IAM spreads the word of a new one."""

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from botocore.exceptions import ClientError

from opslib.aws import policies
from opslib.aws.failures import error_code, error_message, explained, gone_is_fine
from opslib.aws.ledger import RUN_TAG, Run
from opslib.aws.policies import Place, Statement
from opslib.aws.session import account_id, client, partition, region
from opslib.errors import ConfigurationError

Result = TypeVar("Result")

ROLE_PATH = "/opslib/"
"""IAM path of every role made here, so that they can be listed (and allowed) without looking at others."""

POLICY_NAME = "opslib"
SPREAD_SECONDS = 60
"""How long a new role may be unknown to other services; in practice about ten seconds."""


def here() -> Place:
    """Return the place of ARNs in the current account and region.

    Raises:
        AwsError: there are no credentials, or AWS refuses them.
    """
    return Place(partition(), region(), account_id())


def ensure_role(run: Run, name: str, service: str, statements: list[Statement]) -> str:
    """Make a role that `service` can assume and that allows `statements` and nothing else; return its ARN.

    A role that this run made before gets this trust policy and this inline policy instead of what it had.

    Raises:
        AwsError: IAM refused.
        ConfigurationError: there is a role of that name that this run has not made.
    """
    iam = client("iam")
    trust = policies.policy(policies.trust_statements(service))
    with explained(f"making role {name}"):
        if _is_ours(run, name):
            iam.update_assume_role_policy(RoleName=name, PolicyDocument=trust)
        else:
            run.record("role", name)
            iam.create_role(RoleName=name, Path=ROLE_PATH, AssumeRolePolicyDocument=trust, Tags=run.tags)
        iam.put_role_policy(RoleName=name, PolicyName=POLICY_NAME, PolicyDocument=policies.policy(statements))
        iam.get_waiter("role_exists").wait(RoleName=name, WaiterConfig={"Delay": 1, "MaxAttempts": SPREAD_SECONDS})
        return iam.get_role(RoleName=name)["Role"]["Arn"]


def _is_ours(run: Run, name: str) -> bool:
    """Tell whether the run made this role; False when there is none."""
    with gone_is_fine():
        if {"Key": RUN_TAG, "Value": run.run_id} in client("iam").get_role(RoleName=name)["Role"].get("Tags", []):
            return True
        raise ConfigurationError(
            f"there is a role {name} that run {run.run_id} has not made", hint="choose another name"
        )
    return False


def ensure_execution_role(run: Run, bucket: str) -> str:
    """Make the role of the run's training jobs and model servers; return its ARN.

    It reads `bucket`, and writes there only under the run's own prefix.

    Raises:
        AwsError: IAM refused.
    """
    statements = policies.execution_statements(here(), bucket, run.prefix)
    return ensure_role(run, run.name("execution"), "sagemaker.amazonaws.com", statements)


def ensure_function_role(run: Run, endpoint_name: str, function_name: str = "") -> str:
    """Make the role of the run's Lambda function; return its ARN.

    It may invoke exactly `endpoint_name`, and write to the function's own log group. Without `function_name` that is
    the function of `functions.ensure_function`.

    Raises:
        AwsError: IAM refused.
    """
    statements = policies.function_statements(here(), endpoint_name, function_name or run.name("function"))
    return ensure_role(run, run.name("lambda"), "lambda.amazonaws.com", statements)


def ensure_instance_profile(run: Run, bucket: str, photos_prefix: str) -> str:
    """Make the instance profile of the run's EC2 boxes, with a role of its own; return the profile's name.

    The role reads `photos_prefix` of `bucket`, and reads and writes under the run's instances/, nothing else.

    Raises:
        AwsError: IAM refused.
    """
    name, iam = run.name("instance"), client("iam")
    statements = policies.instance_statements(here(), bucket, photos_prefix, f"{run.prefix}/instances")
    ensure_role(run, name, "ec2.amazonaws.com", statements)
    with explained(f"making instance profile {name}"):
        if not instance_profile_exists(name):
            run.record("instance-profile", name)
            iam.create_instance_profile(InstanceProfileName=name, Path=ROLE_PATH, Tags=run.tags)
        if not iam.get_instance_profile(InstanceProfileName=name)["InstanceProfile"]["Roles"]:
            iam.add_role_to_instance_profile(InstanceProfileName=name, RoleName=name)
    return name


def instance_profile_exists(name: str) -> bool:
    """Tell whether there is an instance profile of that name.

    Raises:
        AwsError: IAM refused.
    """
    with explained(f"looking at instance profile {name}"), gone_is_fine():
        client("iam").get_instance_profile(InstanceProfileName=name)
        return True
    return False


def list_instance_profiles(prefix: str) -> list[str]:
    """Return the names of the instance profiles made here that begin with a prefix.

    Raises:
        AwsError: IAM refused.
    """
    with explained(f"listing the instance profiles under {ROLE_PATH}"):
        pages = client("iam").get_paginator("list_instance_profiles").paginate(PathPrefix=ROLE_PATH)
        names = [profile["InstanceProfileName"] for page in pages for profile in page["InstanceProfiles"]]
    return [name for name in names if name.startswith(prefix)]


def delete_instance_profile(name: str) -> None:
    """Delete an instance profile, not its role; succeeds when it is already gone.

    Raises:
        AwsError: IAM refused.
    """
    iam = client("iam")
    with explained(f"deleting instance profile {name}"), gone_is_fine():
        for role in iam.get_instance_profile(InstanceProfileName=name)["InstanceProfile"]["Roles"]:
            iam.remove_role_from_instance_profile(InstanceProfileName=name, RoleName=role["RoleName"])
        iam.delete_instance_profile(InstanceProfileName=name)


def delete_role(name: str) -> None:
    """Delete a role with its policies; succeeds when it is already gone.

    Raises:
        AwsError: IAM refused.
    """
    iam = client("iam")
    with explained(f"deleting role {name}"), gone_is_fine():
        for page in iam.get_paginator("list_role_policies").paginate(RoleName=name):
            for policy_name in page["PolicyNames"]:
                iam.delete_role_policy(RoleName=name, PolicyName=policy_name)
        for page in iam.get_paginator("list_attached_role_policies").paginate(RoleName=name):
            for attached in page["AttachedPolicies"]:
                iam.detach_role_policy(RoleName=name, PolicyArn=attached["PolicyArn"])
        iam.delete_role(RoleName=name)


def once_role_is_known(role: str, call: Callable[[], Result]) -> Result:
    """Return `call()`, repeated while a service does not yet know the new role of that ARN.

    IAM is eventually consistent: CreateFunction and CreateTrainingJob can refuse a role for some seconds after it
    was made. Only a role younger than a minute is waited for, so that a wrong one is reported at once.
    """
    delay_seconds = 1.0
    while True:
        try:
            return call()
        except ClientError as error:
            if not _may_be_unknown_yet(error) or not _is_new(role):
                raise
        time.sleep(delay_seconds)
        delay_seconds = min(5.0, delay_seconds * 1.5)


def _may_be_unknown_yet(error: ClientError) -> bool:
    """Lambda: "The role defined for the function cannot be assumed by Lambda."; SageMaker: "Could not assume role"."""
    refused = {"InvalidParameterValueException", "ValidationException"}
    words = error_message(error).lower()
    return error_code(error) in refused and "role" in words and "assume" in words


def _is_new(role: str) -> bool:
    try:
        made = client("iam").get_role(RoleName=role.rsplit("/", 1)[-1])["Role"]["CreateDate"]
    except ClientError:  # gone, or we may not ask: then there is nothing to wait for
        return False
    return datetime.now(UTC) - made < timedelta(seconds=SPREAD_SECONDS)
