"""Roles hold exactly their statements, and only a new role is waited for."""

import json
from datetime import UTC, datetime, timedelta

import pytest
from botocore.exceptions import ClientError

from opslib.aws import roles
from opslib.aws.ledger import start_run
from opslib.aws.session import client
from opslib.errors import ConfigurationError

LIST = [{"Effect": "Allow", "Action": "s3:ListAllMyBuckets", "Resource": "*"}]
LOOK = [{"Effect": "Allow", "Action": "sts:GetCallerIdentity", "Resource": "*"}]


def test_a_role_is_made_and_brought_up_to_date(run) -> None:
    arn = roles.ensure_role(run, run.name("worker"), "lambda.amazonaws.com", LIST)
    assert roles.ensure_role(run, run.name("worker"), "sagemaker.amazonaws.com", LOOK) == arn
    assert arn.endswith(f":role/opslib/{run.name('worker')}")
    role = client("iam").get_role(RoleName=run.name("worker"))["Role"]
    assert role["AssumeRolePolicyDocument"]["Statement"][0]["Principal"] == {"Service": "sagemaker.amazonaws.com"}
    assert role["Tags"] == run.tags
    inline = client("iam").get_role_policy(RoleName=run.name("worker"), PolicyName=roles.POLICY_NAME)
    assert inline["PolicyDocument"]["Statement"] == LOOK
    assert [resource.identifier for resource in run.resources()] == [run.name("worker")]


def test_a_role_of_somebody_else_is_left_alone(run, role) -> None:
    name = role.rsplit("/", 1)[-1]
    before = client("iam").get_role(RoleName=name)["Role"]["AssumeRolePolicyDocument"]
    with pytest.raises(ConfigurationError, match="has not made"):
        roles.ensure_role(run, name, "lambda.amazonaws.com", LIST)
    assert client("iam").get_role(RoleName=name)["Role"]["AssumeRolePolicyDocument"] == before
    assert run.resources() == ()


def test_the_function_role_names_the_endpoint(run) -> None:
    roles.ensure_function_role(run, "photos", run.name("function"))
    inline = client("iam").get_role_policy(RoleName=run.name("lambda"), PolicyName=roles.POLICY_NAME)
    assert ":endpoint/photos" in json.dumps(inline["PolicyDocument"])


def test_deleting_a_role_twice_is_fine(run) -> None:
    roles.ensure_execution_role(run, "some-bucket")
    roles.delete_role(run.name("execution"))
    roles.delete_role(run.name("execution"))


def test_another_run_cannot_take_over_a_role(run, tmp_path) -> None:
    roles.ensure_role(run, run.name("worker"), "lambda.amazonaws.com", LIST)
    with pytest.raises(ConfigurationError):
        roles.ensure_role(start_run(home=tmp_path / "other"), run.name("worker"), "lambda.amazonaws.com", LIST)


REFUSED = ClientError(
    {
        "Error": {
            "Code": "InvalidParameterValueException",
            "Message": "The role defined for the function cannot be assumed by Lambda.",
        }
    },
    "CreateFunction",
)


def test_a_new_role_is_waited_for(run, monkeypatch) -> None:
    monkeypatch.setattr(roles.time, "sleep", lambda _: None)
    arn = roles.ensure_role(run, run.name("worker"), "lambda.amazonaws.com", LIST)
    answers = iter([REFUSED, REFUSED, "made"])

    def create() -> str:
        answer = next(answers)
        if isinstance(answer, ClientError):
            raise answer
        return answer

    assert roles.once_role_is_known(arn, create) == "made"


def test_an_old_role_is_not_waited_for(run, monkeypatch) -> None:
    arn = roles.ensure_role(run, run.name("worker"), "lambda.amazonaws.com", LIST)
    later = datetime.now(UTC) + timedelta(minutes=5)
    monkeypatch.setattr(roles, "datetime", type("Later", (), {"now": staticmethod(lambda _: later)}))
    with pytest.raises(ClientError):
        roles.once_role_is_known(arn, lambda: (_ for _ in ()).throw(REFUSED))


def test_a_role_that_does_not_exist_is_reported_at_once(rehearsal) -> None:
    with pytest.raises(ClientError):
        roles.once_role_is_known("arn:aws:iam::000000000000:role/nobody", lambda: (_ for _ in ()).throw(REFUSED))
