"""Variants that may not be scaled for the kind of their instances."""

from moto.sagemaker.models import sagemaker_backends

from opslib.rehearsal.calls import ACCOUNT_ID, ServiceError
from opslib.rehearsal.scaling.targets import TargetKey

_BURSTABLE = ("ml.t2.", "ml.t3.", "ml.t3a.", "ml.t4g.")


def require_steady_instances(key: TargetKey) -> None:
    """Refuse a variant on burstable instances, as AWS does.

    Raises:
        ServiceError: ValidationException, in AWS's words.
    """
    instance_type = _instance_type(key)
    if instance_type.startswith(_BURSTABLE):
        message = (
            f"You cannot register a variant with {instance_type} instance type as a scalable target. This is because "
            "the burstable performance of these instances can lead to unpredictable behavior with Auto Scaling."
        )
        raise ServiceError("ValidationException", message)


def _instance_type(key: TargetKey) -> str:
    backend = sagemaker_backends[ACCOUNT_ID][key.region]
    match key.resource_id.split("/"):
        case ["endpoint", endpoint_name, "variant", variant_name] if endpoint_name in backend.endpoints:
            config = backend.endpoint_configs.get(backend.endpoints[endpoint_name].endpoint_config_name)
            variants = config.production_variants if config else []
            types = [one.get("InstanceType") for one in variants if one["VariantName"] == variant_name]
            return types[0] if types and types[0] else ""
        case _:
            return ""
