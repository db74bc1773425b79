"""Who calls, with which permissions, and the temporary credentials of roles. Users, roles and policies are moto's.

The standard variables hold an administrator of account 000000000000. Jobs, model servers and functions run with
temporary credentials of their role, and may do what the role's policies allow, as on AWS.
"""

import json
from collections.abc import Mapping
from datetime import UTC
from functools import lru_cache
from typing import Any

from moto.iam.exceptions import NotFoundException
from moto.iam.models import IAMBackend, Role, iam_backends
from moto.sts.models import sts_backends

from opslib.rehearsal.calls import ACCOUNT_ID, Call, Principal, ServiceError
from opslib.rehearsal.gateway.actions import Need
from opslib.rehearsal.gateway.permissions import (
    Context,
    Decision,
    Statement,
    decide,
    names_principal,
    statements_of,
    trusts,
)

ADMINISTRATOR = "rehearsal"
"""Name of the user whose access key is in the standard variables."""

SESSION_SECONDS = 7 * 24 * 3600
"""Life of a role's credentials. AWS renews those of a running container; here they outlast any rehearsal instead."""

_ALLOW_ALL = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}
_REFUSALS = {
    "sagemaker": (
        "ValidationException",
        "Could not assume role {arn}. Please ensure that the role exists and allows "
        "principal 'sagemaker.amazonaws.com' to assume the role.",
    ),
    "lambda": ("InvalidParameterValueException", "The role defined for the function cannot be assumed by Lambda."),
}


def policy_statements(principal: Principal) -> list[Statement]:
    """Return the statements of the policies of the user, its groups, or the role."""
    backend, name = _iam(), principal.name
    if principal.role_name:
        role = backend.roles.get(_role_id(name)) if name else None
        documents = [*role.policies.values(), *_attached(role)] if role else []
    else:
        user = backend.users[name]
        groups = backend.get_groups_for_user(name)
        inline = [policy for owner in (user, *groups) for policy in owner.policies.values()]
        documents = [*inline, *(document for owner in (user, *groups) for document in _attached(owner))]
    return [statement for document in documents for statement in statements_of(_document(document))]


def _iam() -> IAMBackend:
    return iam_backends[ACCOUNT_ID]["aws"]


def _role_id(name: str) -> str:
    return next((identifier for identifier, role in _iam().roles.items() if role.name == name), "")


def _attached(owner: Any) -> list[Any]:
    versions = [version for policy in owner.managed_policies.values() for version in policy.versions]
    return [version.document for version in versions if version.is_default]


def _document(document: Any) -> dict[str, Any]:
    return _parsed(document) if isinstance(document, str) else document


@lru_cache(maxsize=256)  # a policy is asked for every line of a log and every invocation, and can be long
def _parsed(document: str) -> dict[str, Any]:
    return json.loads(document)


def create_administrator() -> Principal:
    """Create the user of the standard variables, who may do everything, and return it with its access key."""
    backend = _iam()
    user = backend.create_user("us-east-1", ADMINISTRATOR)
    backend.put_user_policy(ADMINISTRATOR, "everything", json.dumps(_ALLOW_ALL))
    key = backend.create_access_key(ADMINISTRATOR)
    return Principal(user.arn, key.access_key_id, key.secret_access_key)


def find_principal(access_key_id: str) -> Principal | None:
    """Return the owner of an access key, or None when there is no such (active) key."""
    backend = _iam()
    for user in backend.users.values():
        for key in user.access_keys:
            if key.access_key_id == access_key_id and key.status == "Active":
                return Principal(user.arn, access_key_id, key.secret_access_key)
    for session in sts_backends[ACCOUNT_ID]["aws"].assumed_roles:
        if session.access_key_id == access_key_id:
            return _session_principal(session)
    return None


def _session_principal(session: Any) -> Principal:
    return Principal(
        arn=session.arn,
        access_key_id=session.access_key_id,
        secret=session.secret_access_key,
        token=session.session_token,
        expires=session.expiration.replace(tzinfo=UTC),
        role_name=session.role_arn.rpartition("/")[2],
    )


def assume_role(role_arn: str, session_name: str) -> Principal:
    """Return a new session of a role, as a service does that runs something in it; nothing is checked."""
    session = sts_backends[ACCOUNT_ID]["aws"].assume_role(
        region_name="us-east-1", role_session_name=session_name, role_arn=role_arn, policy="",
        duration=SESSION_SECONDS, external_id="",
    )  # fmt: skip
    return _session_principal(session)


def role_credentials(role_arn: str, session_name: str) -> dict[str, str]:
    """Return the variables that give a process a role's temporary credentials."""
    session = assume_role(role_arn, session_name)
    return {
        "AWS_ACCESS_KEY_ID": session.access_key_id,
        "AWS_SECRET_ACCESS_KEY": session.secret,
        "AWS_SESSION_TOKEN": session.token,
    }


def require_permission(principal: Principal, need: Need, context: Context, resource_policy: str = "") -> None:
    """Refuse what neither the principal's policies nor the resource's own policy allow, or what one of them denies.

    Raises:
        ServiceError: AccessDeniedException in AWS's words.
    """
    everything = {**context, **need.context, "aws:principalarn": [principal.arn], "aws:principalaccount": [ACCOUNT_ID]}
    own = decide(policy_statements(principal), need.action, need.resources, everything)
    others = _resource_policy_decision(principal, need, everything, resource_policy)
    if Decision.EXPLICIT_DENY not in (own, others) and Decision.ALLOW in (own, others):
        return
    if own is Decision.EXPLICIT_DENY:
        why = "with an explicit deny in an identity-based policy"
    elif others is Decision.EXPLICIT_DENY:
        why = "with an explicit deny in a resource-based policy"
    else:
        why = f"because no identity-based policy allows the {need.action} action"
    where = f'"{need.resources[0]}"' if need.action.startswith("s3:") else need.resources[0]
    raise ServiceError(
        "AccessDeniedException",
        f"User: {principal.arn} is not authorized to perform: {need.action} on resource: {where} {why}",
        status=403,
    )


def _resource_policy_decision(principal: Principal, need: Need, context: Context, policy: str) -> Decision:
    statements = statements_of(_parsed(policy)) if policy else []
    concerned = [statement for statement in statements if names_principal(statement, ("AWS", principal.arn))]
    return decide(concerned, need.action, need.resources, context)


def find_role(role_arn: str) -> Role | None:
    """Return moto's role, or None."""
    try:
        return _iam().get_role_by_arn(role_arn)
    except NotFoundException:
        return None


def require_passable_role(call: Call, role_arn: str, service: str = "") -> None:
    """Refuse a role that the caller may not pass, that does not exist, or that does not trust the service.

    `service` is "sagemaker" or "lambda"; by default the call's own.

    Raises:
        ServiceError: AccessDeniedException for iam:PassRole; else what the service says of a role it cannot assume.
    """
    service = service or call.service
    host = f"{service}.amazonaws.com"
    require_permission(call.principal, Need("iam:PassRole", (role_arn,), {"iam:passedtoservice": [host]}), {})
    role = find_role(role_arn)
    context = {"aws:sourceaccount": [ACCOUNT_ID], "aws:sourcearn": [call.arn("*", service)]}
    if role is None or not trusts(_trust_statements(role), "sts:AssumeRole", ("Service", host), context):
        code, message = _REFUSALS[service]
        raise ServiceError(code, message.format(arn=role_arn))


def require_assumable_role(principal: Principal, params: Mapping[str, Any]) -> None:
    """Refuse sts:AssumeRole of a role that does not exist or does not trust the caller.

    Raises:
        ServiceError: AccessDenied, which does not tell the two apart, as on AWS.
    """
    arn = params.get("RoleArn", "")
    role = find_role(arn)
    context = {"sts:externalid": [params["ExternalId"]]} if "ExternalId" in params else {}
    if role is None or not trusts(_trust_statements(role), "sts:AssumeRole", ("AWS", principal.arn), context):
        message = f"User: {principal.arn} is not authorized to perform: sts:AssumeRole on resource: {arn}"
        raise ServiceError("AccessDenied", message, status=403)


def _trust_statements(role: Role) -> list[Statement]:
    return statements_of(_document(role.assume_role_policy_document))
