"""Fixtures that every test folder shares: a rehearsal for the whole session, and a role and a bucket in it."""

import json
import os
import uuid
from collections.abc import Iterator

# Before anything loads OpenMP: the threads of one of pytest's workers must not spin on the cores of the other.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import boto3
import pytest

from opslib import rehearsal as local_aws


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory) -> Iterator[None]:
    """Keep the features that tests compute out of the user's cache, and the user's out of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPSLIB_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def rehearsal() -> Iterator[local_aws.Rehearsal]:
    """A local AWS in this process; the standard variables lead to it."""
    with local_aws.start() as running:
        yield running


@pytest.fixture
def role(rehearsal) -> Iterator[str]:
    """The ARN of a role that SageMaker and Lambda may assume, and that may do everything."""
    iam = boto3.client("iam")
    name = f"role-{uuid.uuid4().hex[:12]}"
    trust = {
        "Effect": "Allow",
        "Action": "sts:AssumeRole",
        "Principal": {"Service": ["sagemaker.amazonaws.com", "lambda.amazonaws.com"]},
    }
    everything = {"Effect": "Allow", "Action": "*", "Resource": "*"}
    document = json.dumps({"Version": "2012-10-17", "Statement": [trust]})
    arn = iam.create_role(RoleName=name, AssumeRolePolicyDocument=document)["Role"]["Arn"]
    policy = json.dumps({"Version": "2012-10-17", "Statement": [everything]})
    iam.put_role_policy(RoleName=name, PolicyName="everything", PolicyDocument=policy)
    yield arn
    iam.delete_role_policy(RoleName=name, PolicyName="everything")
    iam.delete_role(RoleName=name)


@pytest.fixture
def bucket(rehearsal) -> Iterator[str]:
    """The name of an empty bucket, deleted with all that is in it afterwards."""
    name = f"bucket-{uuid.uuid4().hex[:12]}"
    boto3.client("s3").create_bucket(Bucket=name)
    yield name
    contents = boto3.resource("s3").Bucket(name)
    contents.objects.delete()
    contents.delete()
