"""Every kind of resource that a run makes: how to find those of a run, tell whether one is there, and delete it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from opslib.aws.buckets import bucket_exists, delete_bucket
from opslib.aws.endpoints import (
    delete_endpoint_alone,
    delete_endpoint_config,
    delete_model,
    endpoint_config_exists,
    endpoint_exists,
    model_exists,
)
from opslib.aws.failures import explained, gone_is_fine
from opslib.aws.functions import delete_function, function_exists, list_functions
from opslib.aws.instances import delete_instance, instance_exists, list_instances
from opslib.aws.ledger import RUN_TAG
from opslib.aws.logs import delete_log_group, endpoint_group, function_group, list_log_groups
from opslib.aws.monitoring import alarm_exists, delete_alarm, list_alarms
from opslib.aws.roles import (
    ROLE_PATH,
    delete_instance_profile,
    delete_role,
    instance_profile_exists,
    list_instance_profiles,
)
from opslib.aws.scaling import delete_scaling, list_targets, target_exists
from opslib.aws.session import client
from opslib.aws.storage import delete_prefix, list_objects, split_uri
from opslib.aws.training import delete_training, training_exists
from opslib.aws.tuning import delete_tuning, tuning_exists


@dataclass(frozen=True)
class Kind:
    """How to handle one kind of resource, each named by its identifier.

    Attributes:
        delete: Deletes one; succeeds when it is already gone.
        exists: Tells whether one is there.
        find: Returns the identifiers that begin with a prefix.
    """

    delete: Callable[[str], object]
    exists: Callable[[str], bool]
    find: Callable[[str], list[str]]


def _lists(operation: str, items: str, name_key: str) -> Callable[[str], list[str]]:
    """Return a search by name among SageMaker's things; `NameContains` is the narrowest filter it offers."""

    def find(prefix: str) -> list[str]:
        with explained(f"asking SageMaker to {operation} named {prefix}*"):
            pages = client("sagemaker").get_paginator(operation).paginate(NameContains=prefix)
            names = [item[name_key] for page in pages for item in page[items]]
        return [name for name in names if name.startswith(prefix)]

    return find


def _role_exists(name: str) -> bool:
    with explained(f"looking at role {name}"), gone_is_fine():
        client("iam").get_role(RoleName=name)
        return True
    return False


def _find_roles(prefix: str) -> list[str]:
    with explained(f"listing the roles under {ROLE_PATH}"):
        pages = client("iam").get_paginator("list_roles").paginate(PathPrefix=ROLE_PATH)
        names = [role["RoleName"] for page in pages for role in page["Roles"]]
    return [name for name in names if name.startswith(prefix)]


def _find_buckets(prefix: str) -> list[str]:
    with explained("listing buckets"):
        names = [bucket["Name"] for bucket in client("s3").list_buckets()["Buckets"]]
    return [name for name in names if name.startswith(prefix)]


def _prefix_exists(uri: str) -> bool:
    bucket, prefix = split_uri(uri)
    return bucket_exists(bucket) and bool(list_objects(bucket, prefix))


def _find_log_groups(prefix: str) -> list[str]:
    return [*list_log_groups(endpoint_group(prefix)), *list_log_groups(function_group(prefix))]


KINDS: dict[str, Kind] = {
    "instance": Kind(delete_instance, instance_exists, list_instances),
    # before the training jobs: as long as it runs, it starts more of them
    "tuning-job": Kind(
        delete_tuning,
        tuning_exists,
        _lists("list_hyper_parameter_tuning_jobs", "HyperParameterTuningJobSummaries", "HyperParameterTuningJobName"),
    ),
    "training-job": Kind(
        delete_training,
        training_exists,
        _lists("list_training_jobs", "TrainingJobSummaries", "TrainingJobName"),
    ),
    "function": Kind(delete_function, function_exists, list_functions),
    # before the endpoint, which it would go on to scale; its policies and their alarms go with it
    "scalable-target": Kind(delete_scaling, target_exists, list_targets),
    # alone: what the run's endpoint was given later may be somebody else's
    "endpoint": Kind(delete_endpoint_alone, endpoint_exists, _lists("list_endpoints", "Endpoints", "EndpointName")),
    "endpoint-config": Kind(
        delete_endpoint_config,
        endpoint_config_exists,
        _lists("list_endpoint_configs", "EndpointConfigs", "EndpointConfigName"),
    ),
    "model": Kind(delete_model, model_exists, _lists("list_models", "Models", "ModelName")),
    "alarm": Kind(delete_alarm, alarm_exists, list_alarms),
    "log-group": Kind(delete_log_group, lambda name: name in list_log_groups(name), _find_log_groups),
    "instance-profile": Kind(delete_instance_profile, instance_profile_exists, list_instance_profiles),
    "role": Kind(delete_role, _role_exists, _find_roles),
    "prefix": Kind(delete_prefix, _prefix_exists, lambda _: []),
    "bucket": Kind(delete_bucket, bucket_exists, _find_buckets),
}
"""Kinds in the order in which they are deleted.

What runs and is billed goes first, logs after what writes them, and roles after what they serve: without its role,
SageMaker cannot clean up an endpoint (DeleteEndpoint in SageMaker's API reference).
"""

_KIND_IN_ARNS = {"hyper-parameter-tuning-job": "tuning-job"}
"""Where SageMaker's ARNs call a kind by another name."""

UNKNOWN = "resource"
"""Kind of what carries a run's tag and is none of ours; its identifier is the ARN."""


def find_by_tag(run_id: str) -> Iterator[tuple[str, str]]:
    """Yield kind and identifier of what carries the run's tag.

    The tagging API lags behind: what it lists may be gone already. It does not know roles.

    Raises:
        AwsError: AWS refused.
    """
    with explained(f"asking what is tagged {RUN_TAG}={run_id}"):
        pages = client("resourcegroupstaggingapi").get_paginator("get_resources")
        for page in pages.paginate(TagFilters=[{"Key": RUN_TAG, "Values": [run_id]}]):
            for found in page["ResourceTagMappingList"]:
                yield parse_arn(found["ResourceARN"])


def parse_arn(arn: str) -> tuple[str, str]:
    """Return kind and identifier of an ARN; for a kind that is none of ours, `("resource", arn)`."""
    service, resource = arn.split(":")[2], arn.split(":", 5)[5]
    if service == "s3":
        return "bucket", resource
    if service == "logs" and resource.startswith("log-group:"):
        return "log-group", resource.split(":")[1]
    if service == "lambda" and resource.startswith("function:"):
        return "function", resource.split(":")[1]
    if service == "cloudwatch" and resource.startswith("alarm:"):
        return "alarm", resource.partition(":")[2]
    kind, _, name = resource.partition("/")
    if service == "ec2" and kind == "instance":
        return "instance", name
    kind = _KIND_IN_ARNS.get(kind, kind)
    return (kind, name) if service == "sagemaker" and kind in KINDS else (UNKNOWN, arn)
