"""Which IAM actions on which resources a call needs, and the condition keys that it carries.

Source: https://docs.aws.amazon.com/service-authorization/latest/reference/ (Amazon S3, Amazon SageMaker AI, AWS Lambda,
CloudWatch Logs, CloudWatch, IAM, STS). Services that are not named here are asked for with resource `*`.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from opslib.rehearsal.calls import ACCOUNT_ID


@dataclass(frozen=True)
class Need:
    """A permission that a call needs: an action, and the forms in which its one resource may be written."""

    action: str
    resources: tuple[str, ...] = ("*",)
    context: dict[str, list[str]] = field(default_factory=dict)


FUNCTION_NAME = re.compile(
    r"(?:arn:aws[\w-]*:lambda:(?P<region>[a-z0-9-]+):)?(?:(?P<account>\d{12}):)?(?:function:)?"
    r"(?P<name>[\w.-]+)(?::(?P<qualifier>\$LATEST|[\w-]+))?"
)
"""What FunctionName may hold (docs.aws.amazon.com/lambda/latest/api/API_Invoke.html): a name or an ARN, or a part."""

_PREFIXES = {
    "cloudwatch": "cloudwatch",
    "resourcegroupstaggingapi": "tag",
    "sagemaker-runtime": "sagemaker",
    "sagemaker-metrics": "sagemaker",
}
_ACTIONS = {
    ("lambda", "Invoke"): "InvokeFunction",
    ("lambda", "InvokeAsync"): "InvokeFunction",
    ("lambda", "InvokeWithResponseStream"): "InvokeFunction",
}
_SAGEMAKER_NAMES = {
    "TrainingJobName": "training-job",
    "HyperParameterTuningJobName": "hyper-parameter-tuning-job",
    "ProcessingJobName": "processing-job",
    "TransformJobName": "transform-job",
    "ModelName": "model",
    "EndpointConfigName": "endpoint-config",
    "EndpointName": "endpoint",
}
_IAM_NAMES = {"RoleName": "role", "UserName": "user", "PolicyName": "policy", "InstanceProfileName": "instance-profile"}


def needs_of(service: str, operation: str, params: Mapping[str, Any], region: str) -> list[Need]:
    """Return the permissions that an operation needs (S3's are in `s3_needs`)."""
    action = f"{_PREFIXES.get(service, service)}:{_ACTIONS.get((service, operation), operation)}"
    place = f"{region}:{ACCOUNT_ID}"
    context = dict(_tag_context(params))
    if service in {"sagemaker", "sagemaker-runtime"}:
        return _sagemaker_needs(action, params, place, context)
    resources: tuple[str, ...] = ("*",)
    if service == "lambda" and "FunctionName" in params:
        resources = (_function_arn(action, params, place),)
    elif service == "logs":
        resources = _log_resources(params, place)
    elif service == "iam":
        resources = _iam_resources(operation, params)
    elif service == "sts" and "RoleArn" in params:
        resources = (params["RoleArn"],)
    elif service == "cloudwatch" and operation == "PutMetricData":
        context["cloudwatch:namespace"] = [params.get("Namespace", "")]
    return [Need(action, resources, context)]


def _tag_context(params: Mapping[str, Any]) -> Iterator[tuple[str, list[str]]]:
    tags = params.get("Tags") or params.get("tags")
    if isinstance(tags, list):
        tags = {tag.get("Key", ""): tag.get("Value", "") for tag in tags if isinstance(tag, dict)}
    if isinstance(tags, dict) and tags:
        yield "aws:tagkeys", list(tags)
        for key, value in tags.items():
            yield f"aws:requesttag/{key}".lower(), [value]


def _sagemaker_needs(action: str, params: Mapping[str, Any], place: str, context: dict[str, list[str]]) -> list[Need]:
    verb = action.partition(":")[2]
    named = [
        f"arn:aws:sagemaker:{place}:{kind}/{params[name]}".lower()
        for name, kind in _SAGEMAKER_NAMES.items()
        if name in params
    ]
    if verb in {"AddTags", "DeleteTags", "ListTags"}:
        named = [params.get("ResourceArn", "*")]
    if verb.startswith(("List", "Search")) and verb != "ListTags":
        named = []
    if verb in {"CreateEndpointConfig", "CreateTransformJob"}:  # they name models, too, but are the resource alone
        named = named[:1]
    needs = [Need(action, (arn,), context) for arn in named] or [Need(action, context=context)]
    if verb.startswith("Create") and params.get("Tags"):
        needs.append(Need("sagemaker:AddTags", needs[-1].resources, context))
    return needs


def _function_arn(action: str, params: Mapping[str, Any], place: str) -> str:
    """Return the resource of a call: an invocation that names a version or an alias is one of that, not of all."""
    found = FUNCTION_NAME.fullmatch(params["FunctionName"])
    if not found:
        return "*"
    if found["region"]:
        place = f"{found['region']}:{found['account'] or ACCOUNT_ID}"
    qualifier = params.get("Qualifier") or found["qualifier"]
    behind = f":{qualifier}" if qualifier and action == "lambda:InvokeFunction" else ""
    return f"arn:aws:lambda:{place}:function:{found['name']}{behind}"


def _log_resources(params: Mapping[str, Any], place: str) -> tuple[str, ...]:
    group = params.get("logGroupName") or params.get("logGroupIdentifier") or params.get("logGroupNamePrefix")
    if not group:
        return (params.get("resourceArn") or f"arn:aws:logs:{place}:log-group::log-stream:", "*")[:1]
    arn = group if group.startswith("arn:") else f"arn:aws:logs:{place}:log-group:{group}"
    stream = params.get("logStreamName")
    return (f"{arn}:log-stream:{stream}",) if stream else (arn, f"{arn}:*", f"{arn}:log-stream:")


def _iam_resources(operation: str, params: Mapping[str, Any]) -> tuple[str, ...]:
    if "PolicyArn" in params and not params.get("RoleName") and not params.get("UserName"):
        return (params["PolicyArn"],)
    if operation.startswith("List") and not params:
        return ("*",)
    path = params.get("Path", "/")
    for name, kind in _IAM_NAMES.items():
        if name in params:
            return (f"arn:aws:iam::{ACCOUNT_ID}:{kind}{path}{params[name]}",)
    return ("*",)


_S3_ACTIONS = {
    "ListBuckets": "ListAllMyBuckets",
    "ListObjects": "ListBucket",
    "ListObjectsV2": "ListBucket",
    "HeadBucket": "ListBucket",
    "ListObjectVersions": "ListBucketVersions",
    "ListMultipartUploads": "ListBucketMultipartUploads",
    "ListParts": "ListMultipartUploadParts",
    "HeadObject": "GetObject",
    "DeleteObjects": "DeleteObject",
    "CreateMultipartUpload": "PutObject",
    "UploadPart": "PutObject",
    "CompleteMultipartUpload": "PutObject",
    "CopyObject": "PutObject",
    "UploadPartCopy": "PutObject",
    "PostObject": "PutObject",
    "PutPublicAccessBlock": "PutBucketPublicAccessBlock",
    "GetPublicAccessBlock": "GetBucketPublicAccessBlock",
    "DeletePublicAccessBlock": "PutBucketPublicAccessBlock",
    "PutBucketEncryption": "PutEncryptionConfiguration",
    "GetBucketEncryption": "GetEncryptionConfiguration",
    "DeleteBucketEncryption": "PutEncryptionConfiguration",
    "PutBucketLifecycleConfiguration": "PutLifecycleConfiguration",
    "GetBucketLifecycleConfiguration": "GetLifecycleConfiguration",
    "DeleteBucketLifecycle": "PutLifecycleConfiguration",
    "PutBucketNotificationConfiguration": "PutBucketNotification",
    "GetBucketNotificationConfiguration": "GetBucketNotification",
    "PutBucketCors": "PutBucketCORS",
    "GetBucketCors": "GetBucketCORS",
    "DeleteBucketTagging": "PutBucketTagging",
}


def s3_needs(operation: str, bucket: str, key: str, query: Mapping[str, list[str]]) -> list[Need]:
    """Return the permissions that an S3 operation needs on a bucket or on one of its objects."""
    action = f"s3:{_S3_ACTIONS.get(operation, operation)}"
    if not bucket:
        return [Need(action)]
    if action in {"s3:ListBucket", "s3:ListBucketVersions"}:
        context = {f"s3:{name}": query[name] for name in ("prefix", "delimiter", "max-keys") if name in query}
        return [Need(action, (f"arn:aws:s3:::{bucket}",), context)]
    return [Need(action, (f"arn:aws:s3:::{bucket}/{key}" if key else f"arn:aws:s3:::{bucket}",))]
