"""IAM's decisions, as AWS documents them."""

import pytest

from opslib.rehearsal.calls import ServiceError
from opslib.rehearsal.gateway.permissions import Decision, decide, names_principal, trusts

ALLOW, DENY, NOTHING = Decision.ALLOW, Decision.EXPLICIT_DENY, Decision.IMPLICIT_DENY
OBJECT = "arn:aws:s3:::photos/train/cat.jpg"
READ = {"Effect": "Allow", "Action": "s3:GetObject", "Resource": "arn:aws:s3:::photos/*"}


@pytest.mark.parametrize(
    ("statements", "decision"),
    [
        ([], NOTHING),
        ([READ], ALLOW),
        ([{**READ, "Action": ["s3:Get*"]}], ALLOW),
        ([{**READ, "Action": "S3:getobject"}], ALLOW),
        ([{**READ, "Action": "s3:PutObject"}], NOTHING),
        ([{**READ, "Resource": "arn:aws:s3:::photos"}], NOTHING),
        ([{**READ, "Resource": "arn:aws:s3:::photo?/train/*"}], ALLOW),
        ([{**READ, "Resource": "arn:aws:s3:::photos/[a-z]*"}], NOTHING),
        ([{"Effect": "Allow", "NotAction": "iam:*", "Resource": "*"}], ALLOW),
        ([{"Effect": "Allow", "NotAction": "s3:*", "Resource": "*"}], NOTHING),
        ([{"Effect": "Allow", "Action": "*", "NotResource": "arn:aws:s3:::photos/*"}], NOTHING),
        ([READ, {"Effect": "Deny", "Action": "s3:*", "Resource": "*"}], DENY),
        ([{"Effect": "Deny", "Action": "s3:*", "Resource": "*"}, READ], DENY),
    ],
)
def test_statements(statements, decision):
    assert decide(statements, "s3:GetObject", [OBJECT], {}) is decision


@pytest.mark.parametrize(
    ("condition", "holds"),
    [
        ({"StringEquals": {"cloudwatch:namespace": ["a", "b"]}}, True),
        ({"StringEquals": {"CloudWatch:Namespace": "b"}}, True),
        ({"StringNotEquals": {"cloudwatch:namespace": "b"}}, False),
        ({"StringLike": {"cloudwatch:namespace": "?"}}, True),
        ({"StringEquals": {"s3:prefix": "x"}}, False),
        ({"StringEqualsIfExists": {"s3:prefix": "x"}}, True),
        ({"StringNotEquals": {"s3:prefix": "x"}}, True),
        ({"Null": {"s3:prefix": "true"}}, True),
        ({"Null": {"cloudwatch:namespace": "true"}}, False),
        ({"Bool": {"aws:SecureTransport": "false"}}, False),
        ({"Bool": {"aws:SecureTransport": True}}, True),
        ({"NumericLessThanEquals": {"s3:max-keys": "10"}}, True),
        ({"DateGreaterThan": {"aws:CurrentTime": "2020-01-01T00:00:00Z"}}, True),
        ({"ForAllValues:StringEquals": {"aws:TagKeys": ["run", "name"]}}, True),
        ({"ForAllValues:StringEquals": {"aws:TagKeys": ["run"]}}, False),
        ({"ForAnyValue:StringEquals": {"aws:TagKeys": ["run"]}}, True),
        ({"StringEquals": {"cloudwatch:namespace": "b"}, "Bool": {"aws:SecureTransport": "false"}}, False),
    ],
)
def test_conditions(condition, holds):
    context = {
        "cloudwatch:namespace": ["b"],
        "aws:securetransport": ["true"],
        "s3:max-keys": ["10"],
        "aws:currenttime": ["2026-01-01T00:00:00Z"],
        "aws:tagkeys": ["run", "name"],
    }
    statement = {"Effect": "Allow", "Action": "*", "Resource": "*", "Condition": condition}
    assert (decide([statement], "s3:GetObject", [OBJECT], context) is ALLOW) is holds


def test_an_unknown_condition_operator_is_not_passed_over():
    statement = {"Effect": "Deny", "Action": "*", "Resource": "*", "Condition": {"StringEqual": {"a": "b"}}}
    with pytest.raises(ServiceError, match="StringEqual"):
        decide([statement], "s3:GetObject", [OBJECT], {})


SESSION = ("AWS", "arn:aws:sts::000000000000:assumed-role/job/session")


@pytest.mark.parametrize(
    ("principal", "named"),
    [
        ("*", True),
        ({"AWS": "*"}, True),
        ({"AWS": "000000000000"}, True),
        ({"AWS": ["arn:aws:iam::000000000000:root"]}, True),
        ({"AWS": "arn:aws:iam::000000000000:role/job"}, True),
        ({"AWS": "arn:aws:iam::000000000000:role/other"}, False),
        ({"Service": "lambda.amazonaws.com"}, False),
    ],
)
def test_principals(principal, named):
    assert names_principal({"Principal": principal}, SESSION) is named


def test_a_trust_policy_is_for_the_services_it_names():
    statement = {"Effect": "Allow", "Action": "sts:AssumeRole", "Principal": {"Service": "sagemaker.amazonaws.com"}}
    assert trusts([statement], "sts:AssumeRole", ("Service", "sagemaker.amazonaws.com"), {})
    assert not trusts([statement], "sts:AssumeRole", ("Service", "lambda.amazonaws.com"), {})
