"""Who may do what: signatures, IAM, and AWS's own words when it says no."""

import json
import urllib.error
import urllib.request
import uuid

import boto3
import pytest
from botocore.exceptions import ClientError

from opslib.rehearsal.identity import role_credentials

ACCOUNT = "000000000000"


def allow(*actions: str, resource="*", **more) -> dict:
    return {"Effect": "Allow", "Action": list(actions), "Resource": resource, **more}


@pytest.fixture
def session_of(rehearsal):
    """Make a role with the given statements and return a boto3 session of it."""
    iam, names = boto3.client("iam"), []

    def make(*statements: dict) -> boto3.Session:
        name = f"limited-{uuid.uuid4().hex[:8]}"
        trust = {"Effect": "Allow", "Action": "sts:AssumeRole", "Principal": {"Service": "sagemaker.amazonaws.com"}}
        document = json.dumps({"Version": "2012-10-17", "Statement": [trust]})
        arn = iam.create_role(RoleName=name, AssumeRolePolicyDocument=document)["Role"]["Arn"]
        names.append(name)
        if statements:
            policy = json.dumps({"Version": "2012-10-17", "Statement": statements})
            iam.put_role_policy(RoleName=name, PolicyName="inline", PolicyDocument=policy)
        keys = role_credentials(arn, "session")
        return boto3.Session(
            keys["AWS_ACCESS_KEY_ID"], keys["AWS_SECRET_ACCESS_KEY"], keys["AWS_SESSION_TOKEN"], rehearsal.region
        )

    yield make
    for name in names:
        for policy in iam.list_role_policies(RoleName=name)["PolicyNames"]:
            iam.delete_role_policy(RoleName=name, PolicyName=policy)
        for policy in iam.list_attached_role_policies(RoleName=name)["AttachedPolicies"]:
            iam.detach_role_policy(RoleName=name, PolicyArn=policy["PolicyArn"])
        iam.delete_role(RoleName=name)


def refused(call, **params) -> tuple[str, str]:
    with pytest.raises(ClientError) as error:
        call(**params)
    return error.value.response["Error"]["Code"], error.value.response["Error"]["Message"]


def test_the_standard_variables_are_an_administrator_of_account_zero(rehearsal):
    identity = boto3.client("sts").get_caller_identity()
    assert identity["Account"] == ACCOUNT
    assert identity["Arn"] == f"arn:aws:iam::{ACCOUNT}:user/rehearsal"


@pytest.mark.parametrize(
    ("service", "operation", "code"),
    [
        ("s3", "list_buckets", "InvalidAccessKeyId"),
        ("iam", "list_roles", "InvalidClientTokenId"),
        ("sts", "get_caller_identity", "InvalidClientTokenId"),
        ("sagemaker", "list_models", "UnrecognizedClientException"),
        ("lambda", "list_functions", "UnrecognizedClientException"),
    ],
)
def test_an_unknown_key_is_refused(rehearsal, service, operation, code):
    stranger = boto3.client(service, aws_access_key_id="AKIA" + "A" * 16, aws_secret_access_key="x")
    assert refused(getattr(stranger, operation))[0] == code


@pytest.mark.parametrize(
    ("service", "operation", "code"),
    [
        ("s3", "list_buckets", "SignatureDoesNotMatch"),
        ("iam", "list_roles", "SignatureDoesNotMatch"),
        ("sagemaker", "list_models", "InvalidSignatureException"),
    ],
)
def test_a_wrong_secret_is_refused(rehearsal, service, operation, code):
    key = rehearsal.environment["AWS_ACCESS_KEY_ID"]
    liar = boto3.client(service, aws_access_key_id=key, aws_secret_access_key="not the secret")
    assert refused(getattr(liar, operation))[0] == code


@pytest.mark.parametrize("path", ["/", "/bucket/key", "/moto-api/state", "/latest/meta-data/"])
def test_unsigned_requests_get_nothing(rehearsal, path):
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(rehearsal.endpoint_url + path)
    assert error.value.code == 403
    error.value.close()


def test_a_denied_call_names_who_what_and_where(session_of):
    code, message = refused(
        session_of(allow("s3:*")).client("sagemaker").describe_endpoint, EndpointName="photos"
    )  # fmt: skip
    assert code == "AccessDeniedException"
    assert message.startswith(f"User: arn:aws:sts::{ACCOUNT}:assumed-role/limited-")
    assert message.endswith(
        f"is not authorized to perform: sagemaker:DescribeEndpoint on resource: arn:aws:sagemaker:us-east-1:{ACCOUNT}:"
        "endpoint/photos because no identity-based policy allows the sagemaker:DescribeEndpoint action"
    )


def test_s3_permissions_are_by_bucket_and_key(session_of, bucket):
    boto3.client("s3").put_object(Bucket=bucket, Key="open/a b+ü.txt", Body=b"text")
    boto3.client("s3").put_object(Bucket=bucket, Key="closed/b.txt", Body=b"text")
    s3 = session_of(
        allow("s3:GetObject", resource=f"arn:aws:s3:::{bucket}/open/*"),
        allow("s3:ListBucket", resource=f"arn:aws:s3:::{bucket}", Condition={"StringLike": {"s3:prefix": "open/*"}}),
    ).client("s3")
    assert s3.get_object(Bucket=bucket, Key="open/a b+ü.txt")["Body"].read() == b"text"
    assert s3.list_objects_v2(Bucket=bucket, Prefix="open/")["KeyCount"] == 1
    assert refused(s3.list_objects_v2, Bucket=bucket, Prefix="closed/")[0] == "AccessDenied"
    assert refused(s3.get_object, Bucket=bucket, Key="closed/b.txt")[0] == "AccessDenied"
    assert refused(s3.head_object, Bucket=bucket, Key="closed/b.txt")[0] == "403"
    assert refused(s3.put_object, Bucket=bucket, Key="open/c.txt", Body=b"")[0] == "AccessDenied"
    code, message = refused(s3.copy_object, Bucket=bucket, Key="open/d", CopySource=f"{bucket}/closed/b.txt")
    assert code == "AccessDenied"
    assert "s3:PutObject" in message


def test_a_bucket_policy_that_wants_tls_lets_the_rehearsal_in_and_denies_what_it_denies(bucket):
    s3 = boto3.client("s3")
    everything = [f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/*"]
    tls = {
        "Effect": "Deny",
        "Principal": "*",
        "Action": "s3:*",
        "Resource": everything,
        "Condition": {"Bool": {"aws:SecureTransport": "false"}},
    }
    frozen = {
        "Effect": "Deny",
        "Principal": "*",
        "Action": "s3:PutObject",
        "Resource": f"arn:aws:s3:::{bucket}/frozen/*",
    }
    s3.put_bucket_policy(Bucket=bucket, Policy=json.dumps({"Version": "2012-10-17", "Statement": [tls, frozen]}))
    s3.put_object(Bucket=bucket, Key="a", Body=b"a")
    assert s3.get_object(Bucket=bucket, Key="a")["Body"].read() == b"a"
    code, message = refused(s3.put_object, Bucket=bucket, Key="frozen/a", Body=b"a")
    assert code == "AccessDenied"
    assert "with an explicit deny in a resource-based policy" in message


def test_metrics_may_be_limited_to_a_namespace(session_of):
    only = {"StringEquals": {"cloudwatch:namespace": "mine"}}
    cloudwatch = session_of(allow("cloudwatch:PutMetricData", Condition=only)).client("cloudwatch")
    datum = [{"MetricName": "m", "Value": 1.0}]
    cloudwatch.put_metric_data(Namespace="mine", MetricData=datum)
    code, message = refused(cloudwatch.put_metric_data, Namespace="theirs", MetricData=datum)
    assert code in {"AccessDenied", "AccessDeniedException"}
    assert "cloudwatch:PutMetricData" in message


def test_logs_may_be_limited_to_a_group(session_of):
    logs = session_of(allow("logs:*", resource=f"arn:aws:logs:*:{ACCOUNT}:log-group:/mine/*:*")).client("logs")
    name = f"/mine/{uuid.uuid4().hex}"
    logs.create_log_group(logGroupName=name)
    logs.create_log_stream(logGroupName=name, logStreamName="s")
    logs.delete_log_group(logGroupName=name)
    assert refused(logs.create_log_group, logGroupName="/theirs/a")[0] == "AccessDeniedException"


def test_awss_managed_policies_can_be_attached(session_of, bucket):
    session = session_of()
    role = session.client("sts").get_caller_identity()["Arn"].split("/")[1]
    boto3.client("iam").attach_role_policy(RoleName=role, PolicyArn="arn:aws:iam::aws:policy/AmazonS3ReadOnlyAccess")
    assert "Contents" not in session.client("s3").list_objects_v2(Bucket=bucket)
    assert refused(session.client("s3").delete_bucket, Bucket=bucket)[0] == "AccessDenied"


def test_a_role_is_assumed_only_by_whom_it_trusts(session_of):
    iam, sts = boto3.client("iam"), boto3.client("sts")
    role = session_of().client("sts").get_caller_identity()["Arn"].split("/")[1]
    arn = f"arn:aws:iam::{ACCOUNT}:role/{role}"
    code, message = refused(sts.assume_role, RoleArn=arn, RoleSessionName="me")
    assert code == "AccessDenied"
    assert message.endswith(f"is not authorized to perform: sts:AssumeRole on resource: {arn}")
    trust = {"Effect": "Allow", "Action": "sts:AssumeRole", "Principal": {"AWS": f"arn:aws:iam::{ACCOUNT}:root"}}
    iam.update_assume_role_policy(
        RoleName=role, PolicyDocument=json.dumps({"Version": "2012-10-17", "Statement": [trust]})
    )
    keys = sts.assume_role(RoleArn=arn, RoleSessionName="me")["Credentials"]
    session = boto3.Session(keys["AccessKeyId"], keys["SecretAccessKey"], keys["SessionToken"])
    assert session.client("sts").get_caller_identity()["Arn"] == f"arn:aws:sts::{ACCOUNT}:assumed-role/{role}/me"
    stolen = boto3.Session(keys["AccessKeyId"], keys["SecretAccessKey"])
    assert refused(stolen.client("sts").get_caller_identity)[0] == "InvalidClientTokenId"


def test_a_presigned_address_is_good_until_it_expires(bucket):
    s3 = boto3.client("s3")
    s3.put_object(Bucket=bucket, Key="a b", Body=b"photo")
    params = {"Bucket": bucket, "Key": "a b"}
    with urllib.request.urlopen(s3.generate_presigned_url("get_object", params)) as reply:
        assert reply.read() == b"photo"
    for address in (
        s3.generate_presigned_url("get_object", params, -10),
        f"{s3.generate_presigned_url('get_object', params)}x",
    ):
        with pytest.raises(urllib.error.HTTPError) as error:
            urllib.request.urlopen(address)
        assert error.value.code == 403
        error.value.close()


def test_what_cannot_be_rehearsed_says_so(rehearsal):
    code, message = refused(boto3.client("sagemaker").list_spaces)
    assert code == "NotImplemented"
    assert message == "sagemaker:ListSpaces cannot be rehearsed yet"


@pytest.mark.parametrize(
    ("granted", "named", "allowed"),
    [
        ("f", "f", True),
        ("f", f"{ACCOUNT}:f", True),
        ("f", f"arn:aws:lambda:us-east-1:{ACCOUNT}:function:f", True),
        ("f", "f:live", False),
        ("f", f"{ACCOUNT}:function:f:live", False),
        ("f:live", "f:live", True),
        ("f:live", "f", False),
        ("f:live", "f:1", False),
        ("f:*", "f:1", True),
    ],
)
def test_a_permission_on_a_function_is_none_on_its_versions(session_of, granted, named, allowed):
    resource = f"arn:aws:lambda:us-east-1:{ACCOUNT}:function:{granted}"
    caller = session_of(allow("lambda:InvokeFunction", resource=resource)).client("lambda")
    name, _, qualifier = named.rpartition(":") if named.endswith(("live", "1")) else (named, "", "")
    for params in ({"FunctionName": named}, {"FunctionName": name} | ({"Qualifier": qualifier} if qualifier else {})):
        code, _ = refused(caller.invoke, **params)
        assert code == ("ResourceNotFoundException" if allowed else "AccessDeniedException")
