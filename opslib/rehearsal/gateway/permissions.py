"""IAM's decision: what a set of policies says about an action on a resource, conditions included.

Source: https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_evaluation-logic.html. Identity policies and
bucket policies are evaluated; permissions boundaries, session policies and service control policies are not.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from enum import Enum
from functools import lru_cache
from ipaddress import ip_address, ip_network
from typing import Any

from opslib.rehearsal.calls import ServiceError

Statement = Mapping[str, Any]
Context = Mapping[str, Sequence[str]]
"""Condition keys (in lower case) and their values in a request."""


class Decision(Enum):
    """What policies say: explicit deny wins over allow, and allow over the implicit deny."""

    ALLOW = "allow"
    EXPLICIT_DENY = "explicit deny"
    IMPLICIT_DENY = "implicit deny"


def statements_of(document: Mapping[str, Any]) -> list[Statement]:
    """Return the statements of a policy document."""
    return _as_list(document.get("Statement", []))


def decide(statements: Iterable[Statement], action: str, resources: Sequence[str], context: Context) -> Decision:
    """Return what the statements say about an action.

    `resources` are the forms in which one resource may be written, e.g. a log group with and without the final `:*`; a
    statement that names one of them applies.
    """
    decision = Decision.IMPLICIT_DENY
    for statement in statements:
        if _concerns(statement, action, resources) and _conditions_hold(statement.get("Condition", {}), context):
            if statement.get("Effect") == "Deny":
                return Decision.EXPLICIT_DENY
            decision = Decision.ALLOW
    return decision


def trusts(statements: Iterable[Statement], action: str, principal: tuple[str, str], context: Context) -> bool:
    """Return whether a trust policy lets a principal, e.g. ("Service", "lambda.amazonaws.com"), assume the role."""
    named = [statement for statement in statements if names_principal(statement, principal)]
    return decide(named, action, ["*"], context) is Decision.ALLOW


def names_principal(statement: Statement, principal: tuple[str, str]) -> bool:
    """Return whether a statement of a resource policy is about a principal: ("AWS", arn) or ("Service", name)."""
    if "NotPrincipal" in statement:
        return not _is_among(statement["NotPrincipal"], principal)
    return _is_among(statement.get("Principal", {}), principal)


def _is_among(element: Any, principal: tuple[str, str]) -> bool:
    kind, name = principal
    if element == "*":
        return True
    named = _as_list(element.get(kind, []))
    if "*" in named or name in named:
        return True
    account = name.split(":")[4] if kind == "AWS" else ""
    role = _role_of_session(name)
    return bool(account) and any(one in {account, f"arn:aws:iam::{account}:root", role} for one in named)


def _role_of_session(arn: str) -> str:
    match = re.fullmatch(r"arn:aws:sts::(\d+):assumed-role/([^/]+)/.+", arn)
    return f"arn:aws:iam::{match[1]}:role/{match[2]}" if match else arn


def _concerns(statement: Statement, action: str, resources: Sequence[str]) -> bool:
    if "NotAction" in statement:
        applies = not any(_like(pattern.lower(), action.lower()) for pattern in _as_list(statement["NotAction"]))
    else:
        applies = any(_like(pattern.lower(), action.lower()) for pattern in _as_list(statement.get("Action", [])))
    if not applies:
        return False
    if "NotResource" in statement:
        return not _names_any(statement["NotResource"], resources)
    return "Resource" not in statement or _names_any(statement["Resource"], resources)


def _names_any(element: Any, resources: Sequence[str]) -> bool:
    return any(_like(pattern, resource) for pattern in _as_list(element) for resource in resources)


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


@lru_cache(maxsize=4096)
def _pattern(text: str) -> re.Pattern[str]:
    return re.compile("".join({"*": ".*", "?": "."}.get(part, re.escape(part)) for part in text), re.DOTALL)


def _like(pattern: str, text: str) -> bool:
    return _pattern(pattern).fullmatch(text) is not None


def _compare_dates(compare: Callable[[float, float], bool]) -> Callable[[str, str], bool]:
    def moment(text: str) -> float:
        is_epoch = text.replace(".", "", 1).isdigit()
        return float(text) if is_epoch else datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()

    return lambda wanted, actual: compare(moment(actual), moment(wanted))


_COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "Equals": lambda actual, wanted: actual == wanted,
    "LessThan": lambda actual, wanted: actual < wanted,
    "LessThanEquals": lambda actual, wanted: actual <= wanted,
    "GreaterThan": lambda actual, wanted: actual > wanted,
    "GreaterThanEquals": lambda actual, wanted: actual >= wanted,
}

_OPERATORS: dict[str, Callable[[str, str], bool]] = {
    "StringEquals": lambda wanted, actual: wanted == actual,
    "StringEqualsIgnoreCase": lambda wanted, actual: wanted.lower() == actual.lower(),
    "StringLike": _like,
    "ArnEquals": _like,
    "ArnLike": _like,
    "Bool": lambda wanted, actual: str(wanted).lower() == actual.lower(),
    "IpAddress": lambda wanted, actual: ip_address(actual) in ip_network(wanted, strict=False),
    **{
        f"Numeric{name}": (lambda wanted, actual, compare=compare: compare(float(actual), float(wanted)))
        for name, compare in _COMPARISONS.items()
    },
    **{f"Date{name}": _compare_dates(compare) for name, compare in _COMPARISONS.items()},
}
_NEGATIONS = {
    "StringNotEquals": "StringEquals",
    "StringNotEqualsIgnoreCase": "StringEqualsIgnoreCase",
    "StringNotLike": "StringLike",
    "ArnNotEquals": "ArnEquals",
    "ArnNotLike": "ArnLike",
    "NotIpAddress": "IpAddress",
    "NumericNotEquals": "NumericEquals",
    "DateNotEquals": "DateEquals",
}


def _conditions_hold(conditions: Mapping[str, Mapping[str, Any]], context: Context) -> bool:
    return all(
        _condition_holds(operator, _as_list(wanted), context.get(key.lower()))
        for operator, keys in conditions.items()
        for key, wanted in keys.items()
    )


def _condition_holds(operator: str, wanted: list[str], actual: Sequence[str] | None) -> bool:
    quantifier, _, name = operator.rpartition(":")
    name, if_exists = name.removesuffix("IfExists"), name.endswith("IfExists")
    if name == "Null":
        return (str(wanted[0]).lower() == "true") is (actual is None)
    negated = name in _NEGATIONS
    compare = _OPERATORS.get(_NEGATIONS.get(name, name))
    if compare is None:
        raise ServiceError("MalformedPolicyDocument", f"the rehearsal knows no condition operator {operator!r}")
    if actual is None:
        return if_exists or negated or quantifier == "ForAllValues"
    matches = [any(compare(value, one) for value in wanted) != negated for one in actual]
    return any(matches) if quantifier == "ForAnyValue" else all(matches)
