"""IAM policies as pure functions: `*_statements` return lists that compose with `+`; `policy` wraps them.

Every ARN is spelled out, so that a shown policy is the policy in force.
"""

import json
from dataclasses import dataclass
from typing import Any

Statement = dict[str, Any]


@dataclass(frozen=True)
class Place:
    """Where ARNs live: partition (`aws`), region and the twelve-digit account id."""

    partition: str
    region: str
    account: str

    def arn(self, service: str, resource: str) -> str:
        """Return the ARN of a regional resource, e.g. `arn("sagemaker", "endpoint/photos")`."""
        return f"arn:{self.partition}:{service}:{self.region}:{self.account}:{resource}"

    def bucket_arn(self, bucket: str) -> str:
        """Return the ARN of a bucket, which names neither region nor account."""
        return f"arn:{self.partition}:s3:::{bucket}"


def policy(statements: list[Statement]) -> str:
    """Return the policy document of `statements` as JSON."""
    return json.dumps({"Version": "2012-10-17", "Statement": statements})


def trust_statements(service: str) -> list[Statement]:
    """Let an AWS service, e.g. `lambda.amazonaws.com`, assume the role."""
    return [{"Effect": "Allow", "Principal": {"Service": service}, "Action": "sts:AssumeRole"}]


def read_bucket_statements(place: Place, bucket: str) -> list[Statement]:
    """List a bucket and read its objects; SageMaker asks for the location before it reads."""
    arn = place.bucket_arn(bucket)
    return [
        {"Effect": "Allow", "Action": ["s3:GetBucketLocation", "s3:ListBucket"], "Resource": arn},
        {"Effect": "Allow", "Action": "s3:GetObject", "Resource": f"{arn}/*"},
    ]


def write_objects_statements(place: Place, bucket: str, prefix: str) -> list[Statement]:
    """Write objects under `s3://<bucket>/<prefix>/`, and clear up a broken multipart upload there."""
    arn = f"{place.bucket_arn(bucket)}/{prefix}/*"
    return [{"Effect": "Allow", "Action": ["s3:AbortMultipartUpload", "s3:PutObject"], "Resource": arn}]


def mirror_checkpoints_statements(place: Place, bucket: str, prefix: str) -> list[Statement]:
    """Delete checkpoints: SageMaker deletes in S3 what a job deletes or renames in its checkpoint folder.

    docs.aws.amazon.com/sagemaker/latest/dg/model-checkpoints.html
    """
    arn = f"{place.bucket_arn(bucket)}/{prefix}/checkpoints/*"
    return [{"Effect": "Allow", "Action": "s3:DeleteObject", "Resource": arn}]


def log_statements(place: Place, log_group: str, *, create_group: bool) -> list[Statement]:
    """Write the streams of one log group (a trailing `*` names several).

    The `:*` at the end is how policies name a log group for every action but tagging:
    docs.aws.amazon.com/AmazonCloudWatch/latest/logs/iam-access-control-overview-cwl.html
    """
    actions = ["logs:CreateLogStream", "logs:DescribeLogStreams", "logs:PutLogEvents"]
    if create_group:
        actions.insert(0, "logs:CreateLogGroup")
    return [{"Effect": "Allow", "Action": actions, "Resource": place.arn("logs", f"log-group:{log_group}:*")}]


def metric_statements(namespaces: str) -> list[Statement]:
    """Publish metrics to the namespaces of a pattern; PutMetricData has no resources, only this condition key."""
    return [
        {
            "Effect": "Allow",
            "Action": "cloudwatch:PutMetricData",
            "Resource": "*",
            "Condition": {"StringLike": {"cloudwatch:namespace": namespaces}},
        }
    ]


def image_statements(place: Place, repositories: tuple[str, ...]) -> list[Statement]:
    """Pull images of AWS's Deep Learning Containers; their registry's account differs from region to region."""
    arns = [f"arn:{place.partition}:ecr:{place.region}:*:repository/{name}" for name in repositories]
    pull = ["ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"]
    return [
        {"Effect": "Allow", "Action": pull, "Resource": arns},
        {"Effect": "Allow", "Action": "ecr:GetAuthorizationToken", "Resource": "*"},  # the action has no resources
    ]


def execution_statements(place: Place, bucket: str, prefix: str) -> list[Statement]:
    """What a training job and a model server may do: one bucket, SageMaker's logs and metrics, PyTorch's images.

    After "CreateTrainingJob API: Execution Role Permissions" and its CreateModel counterpart in
    docs.aws.amazon.com/sagemaker/latest/dg/sagemaker-roles.html, with `*` narrowed to what we use. They write under
    `prefix` only.
    """
    return (
        read_bucket_statements(place, bucket)
        + write_objects_statements(place, bucket, prefix)
        + mirror_checkpoints_statements(place, bucket, prefix)
        + log_statements(place, "/aws/sagemaker/TrainingJobs", create_group=True)
        + log_statements(place, "/aws/sagemaker/Endpoints/*", create_group=True)
        + metric_statements("/aws/sagemaker/*")
        + image_statements(place, ("pytorch-training", "pytorch-inference", "ray"))
    )


def instance_statements(place: Place, bucket: str, photos_prefix: str, prefix: str) -> list[Statement]:
    """What an EC2 box may do: read the photos, and read and write under `prefix`, where script and model lie."""
    arn, folders = place.bucket_arn(bucket), [f"{photos_prefix.strip('/')}/*", f"{prefix.strip('/')}/*"]
    listing = {"StringLike": {"s3:prefix": folders}}
    return [
        {"Effect": "Allow", "Action": "s3:ListBucket", "Resource": arn, "Condition": listing},
        {"Effect": "Allow", "Action": "s3:GetObject", "Resource": [f"{arn}/{folder}" for folder in folders]},
        *write_objects_statements(place, bucket, prefix.strip("/")),
    ]


def invoke_endpoint_statements(place: Place, endpoint_name: str) -> list[Statement]:
    """Invoke exactly one endpoint. SageMaker writes endpoint names in lower case in their ARNs."""
    arn = place.arn("sagemaker", f"endpoint/{endpoint_name.lower()}")
    return [{"Effect": "Allow", "Action": "sagemaker:InvokeEndpoint", "Resource": arn}]


def function_statements(place: Place, endpoint_name: str, function_name: str) -> list[Statement]:
    """What the Lambda function may do: call its endpoint, and write to its own log group, which exists before it.

    Without CreateLogGroup, log lines that arrive after the group was deleted cannot bring it back.
    """
    return invoke_endpoint_statements(place, endpoint_name) + log_statements(
        place, f"/aws/lambda/{function_name}", create_group=False
    )


def tls_only_statements(place: Place, bucket: str) -> list[Statement]:
    """Bucket policy: refuse every request that does not come over TLS."""
    arn = place.bucket_arn(bucket)
    return [
        {
            "Effect": "Deny",
            "Principal": "*",
            "Action": "s3:*",
            "Resource": [arn, f"{arn}/*"],
            "Condition": {"Bool": {"aws:SecureTransport": "false"}},
        }
    ]
