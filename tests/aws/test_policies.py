"""Policies as they would be shown: exact resources, no wildcards but where an action has no resources."""

import json

from opslib.aws import policies
from opslib.aws.policies import Place

PLACE = Place("aws", "eu-west-1", "123456789012")


def granted(statements: list[policies.Statement]) -> dict[str, object]:
    """Return action to resource."""
    return {
        action: statement["Resource"]
        for statement in statements
        for action in ([statement["Action"]] if isinstance(statement["Action"], str) else statement["Action"])
    }


def test_the_function_may_invoke_exactly_its_endpoint() -> None:
    assert granted(policies.function_statements(PLACE, "photos", "asker")) == {
        "sagemaker:InvokeEndpoint": "arn:aws:sagemaker:eu-west-1:123456789012:endpoint/photos",
        "logs:CreateLogStream": "arn:aws:logs:eu-west-1:123456789012:log-group:/aws/lambda/asker:*",
        "logs:DescribeLogStreams": "arn:aws:logs:eu-west-1:123456789012:log-group:/aws/lambda/asker:*",
        "logs:PutLogEvents": "arn:aws:logs:eu-west-1:123456789012:log-group:/aws/lambda/asker:*",
    }


def test_endpoint_arns_are_lower_case() -> None:
    resource = granted(policies.invoke_endpoint_statements(PLACE, "PhotoEndpoint"))["sagemaker:InvokeEndpoint"]
    assert resource.endswith(":endpoint/photoendpoint")


def test_a_job_writes_only_under_its_runs_prefix() -> None:
    rights = granted(policies.execution_statements(PLACE, "photos", "run-1"))
    assert rights["s3:PutObject"] == "arn:aws:s3:::photos/run-1/*"
    assert rights["s3:DeleteObject"] == "arn:aws:s3:::photos/run-1/checkpoints/*"
    assert rights["s3:GetObject"] == "arn:aws:s3:::photos/*"
    assert rights["s3:ListBucket"] == "arn:aws:s3:::photos"


def test_stars_stand_only_where_an_action_has_no_resources() -> None:
    statements = policies.execution_statements(PLACE, "photos", "run-1")
    starred = {action for action, resource in granted(statements).items() if resource == "*"}
    assert starred == {"cloudwatch:PutMetricData", "ecr:GetAuthorizationToken"}
    assert not any("*" in action for action in granted(statements))
    metrics = next(one for one in statements if one["Action"] == "cloudwatch:PutMetricData")
    assert metrics["Condition"] == {"StringLike": {"cloudwatch:namespace": "/aws/sagemaker/*"}}


def test_statements_compose_into_one_document() -> None:
    document = json.loads(policies.policy(policies.trust_statements("lambda.amazonaws.com")))
    assert document["Version"] == "2012-10-17"
    assert document["Statement"][0]["Principal"] == {"Service": "lambda.amazonaws.com"}


def test_the_other_partitions_have_their_own_arns() -> None:
    china = Place("aws-cn", "cn-north-1", "123456789012")
    assert granted(policies.read_bucket_statements(china, "b"))["s3:GetObject"] == "arn:aws-cn:s3:::b/*"
