"""Models and endpoint configurations, and the plan of what an endpoint configuration asks for."""

from collections.abc import Callable, Mapping
from typing import Any

from moto.sagemaker.models import FakeEndpointConfig, Model, sagemaker_backends

from opslib.rehearsal.calls import ACCOUNT_ID, Call, Operation, ServiceError
from opslib.rehearsal.endpoints.async_invocations import check_async
from opslib.rehearsal.endpoints.changes import require_unique_names
from opslib.rehearsal.endpoints.hosting import HostingSettings
from opslib.rehearsal.endpoints.hosting_builder import HostingPlan, VariantPlan
from opslib.rehearsal.endpoints.images import REHEARSED_IMAGES, find_program
from opslib.rehearsal.endpoints.model_data import find_model_data, require_model_data
from opslib.rehearsal.endpoints.serverless import check_serverless, check_serverless_endpoint
from opslib.rehearsal.endpoints.shadow import check_shadows
from opslib.rehearsal.identity import assume_role, require_passable_role
from opslib.rehearsal.role_storage import RoleStorage

_UNREHEARSED_SETTINGS = ("ExplainerConfig", "EnableNetworkIsolation", "MetricsConfig", "CrossRegionTrafficConfig")
_UNREHEARSED_CONTAINER = ("ModelPackageName", "AdditionalModelDataSources", "InferenceSpecificationName")
_UNREHEARSED_VARIANT = ("CoreDumpConfig", "ManagedInstanceScaling", "AcceleratorType", "InstancePools")
_SHOWN_SETTINGS = (
    "DataCaptureConfig", "AsyncInferenceConfig", "ShadowProductionVariants", "ExecutionRoleArn", "VpcConfig",
)  # fmt: skip
"""What moto's record of a configuration has no place for."""


class HostedModels:
    """The operations on models and endpoint configurations."""

    def __init__(self) -> None:
        """Name the operations."""
        self.operations: dict[str, Operation] = {
            "sagemaker.CreateModel": self.create_model,
            "sagemaker.DescribeModel": self.describe_model,
            "sagemaker.DeleteModel": self.delete_model,
            "sagemaker.CreateEndpointConfig": self.create_endpoint_config,
            "sagemaker.DescribeEndpointConfig": self.describe_endpoint_config,
            "sagemaker.DeleteEndpointConfig": self.delete_endpoint_config,
        }

    def create_model(self, call: Call) -> dict[str, Any]:
        """Create a model of one PyTorch container whose data exists and which its role may read."""
        name, role, models = call.params["ModelName"], call.params.get("ExecutionRoleArn"), _models(call)
        if name in models:
            raise _invalid(f'Cannot create already existing model "{models[name].arn}".')
        container = _only_container(call)
        if not role:
            raise _invalid("Execution role ARN is required.")
        require_passable_role(call, role)
        data = find_model_data(container)
        if data:
            require_model_data(RoleStorage(assume_role(role, "SageMaker")), data, role, call.region)
        model = sagemaker_backends[ACCOUNT_ID][call.region].create_model(
            name, role, container, call.params.get("VpcConfig"), None, call.params.get("Tags", [])
        )
        model.arn = model.arn.lower()
        model.enable_network_isolation = call.params.get("EnableNetworkIsolation", False)
        return {"ModelArn": model.arn}

    def describe_model(self, call: Call) -> dict[str, Any]:
        """Return a model."""
        model = self._model(call, call.params["ModelName"])
        return {
            "ModelName": model.model_name,
            "ModelArn": model.arn,
            "PrimaryContainer": model.primary_container,
            "ExecutionRoleArn": model.execution_role_arn,
            "EnableNetworkIsolation": model.enable_network_isolation,
            "VpcConfig": model.vpc_config or None,
            "CreationTime": model.creation_time,
        }

    def delete_model(self, call: Call) -> dict[str, Any]:
        """Delete a model; endpoints that serve it go on."""
        del _models(call)[self._model(call, call.params["ModelName"]).model_name]
        return {}

    def create_endpoint_config(self, call: Call) -> dict[str, Any]:
        """Create an endpoint configuration of models that exist."""
        name, configs = call.params["EndpointConfigName"], _configs(call)
        if name in configs:
            raise _invalid(f'Cannot create already existing endpoint configuration "{configs[name].arn}".')
        _check_rehearsed(call.params)
        variants = call.params["ProductionVariants"]
        for variant in (*variants, *call.params.get("ShadowProductionVariants", [])):
            _check_variant(variant)
            self._model(call, variant["ModelName"])
        config = FakeEndpointConfig(
            ACCOUNT_ID, call.region, name, [], {}, {}, call.params.get("Tags", []), call.params.get("KmsKeyId", "")
        )
        config.production_variants = variants
        config.shown_settings = {one: call.params[one] for one in _SHOWN_SETTINGS if call.params.get(one)}
        config.arn = config.endpoint_config_arn = config.endpoint_config_arn.lower()
        configs[name] = config
        return {"EndpointConfigArn": config.arn}

    def describe_endpoint_config(self, call: Call) -> dict[str, Any]:
        """Return an endpoint configuration."""
        config = self._config(call, call.params["EndpointConfigName"])
        return {
            "EndpointConfigName": config.endpoint_config_name,
            "EndpointConfigArn": config.arn,
            "ProductionVariants": config.production_variants,
            "KmsKeyId": config.kms_key_id or None,
            "CreationTime": config.creation_time,
            **config.shown_settings,
        }

    def delete_endpoint_config(self, call: Call) -> dict[str, Any]:
        """Delete an endpoint configuration; endpoints made with it go on."""
        del _configs(call)[self._config(call, call.params["EndpointConfigName"]).endpoint_config_name]
        return {}

    def plan_hosting(
        self,
        call: Call,
        config_name: str,
        retained: Mapping[str, Mapping[str, Any]],
        count_neighbours: Callable[[], int],
    ) -> HostingPlan:
        """Return what a configuration asks for; `retained` are settings, by variant, that win over its own."""
        config = self._config(call, config_name)
        settings = config.shown_settings
        role_arn = self._model(call, config.production_variants[0]["ModelName"]).execution_role_arn
        capture = settings.get("DataCaptureConfig")
        return HostingPlan(
            region=call.region,
            endpoint_name=call.params["EndpointName"],
            settings=HostingSettings(config_name, settings.get("AsyncInferenceConfig"), capture, role_arn),
            variants=[
                self._plan_variant(call, one | retained.get(one["VariantName"], {}))
                for one in config.production_variants
            ],
            shadows=[self._plan_variant(call, one) for one in settings.get("ShadowProductionVariants", [])],
            count_neighbours=count_neighbours,
        )

    def _plan_variant(self, call: Call, variant: Mapping[str, Any]) -> VariantPlan:
        return VariantPlan(variant, self._model(call, variant["ModelName"]))

    def _model(self, call: Call, name: str) -> Model:
        model = _models(call).get(name)
        if model is None:
            raise _invalid(f'Could not find model "{_arn(call, "model", name)}".')
        return model

    def _config(self, call: Call, name: str) -> FakeEndpointConfig:
        config = _configs(call).get(name)
        if config is None:
            raise _invalid(f'Could not find endpoint configuration "{_arn(call, "endpoint-config", name)}".')
        return config


def _only_container(call: Call) -> dict[str, Any]:
    containers = [call.params["PrimaryContainer"]] if "PrimaryContainer" in call.params else []
    containers += call.params.get("Containers", [])
    if len(containers) != 1 or containers[0].get("Mode", "SingleModel") != "SingleModel":
        raise _invalid("Only models of one container, with one model in it, can be rehearsed.")
    names = [name for name in _UNREHEARSED_CONTAINER if containers[0].get(name)]
    if names:
        raise _invalid(f"{', '.join(names)} of a model cannot be rehearsed yet; leave it out.")
    image = containers[0].get("Image", "")
    if find_program(image) is None:
        raise _invalid(
            f"Requested image {image} not found. (The rehearsal has AWS's inference containers "
            f"{', '.join(REHEARSED_IMAGES)}, and no others.)"
        )
    return containers[0]


def _check_rehearsed(params: dict[str, Any]) -> None:
    """Refuse what AWS would refuse, and what would be accepted and then not be done."""
    variants = [*params["ProductionVariants"], *params.get("ShadowProductionVariants", [])]
    names = [name for name in _UNREHEARSED_SETTINGS if params.get(name)]
    names += [name for variant in variants for name in _UNREHEARSED_VARIANT if variant.get(name)]
    if names:
        raise _invalid(f"{', '.join(names)} of an endpoint configuration cannot be rehearsed yet; leave it out.")
    require_unique_names(params["ProductionVariants"])
    check_serverless_endpoint(params)
    check_async(params)
    check_shadows(params)


def _check_variant(variant: Mapping[str, Any]) -> None:
    if not variant.get("ModelName"):
        name = variant["VariantName"]
        raise _invalid(f"ModelName is required for variant {name} (inference components cannot be rehearsed).")
    if variant.get("ServerlessConfig"):
        check_serverless(variant)
    elif not variant.get("InstanceType") or not variant.get("InitialInstanceCount"):
        raise _invalid(f"InstanceType and InitialInstanceCount are required for variant {variant['VariantName']}.")


def _models(call: Call) -> dict[str, Model]:
    return sagemaker_backends[ACCOUNT_ID][call.region]._models


def _configs(call: Call) -> dict[str, FakeEndpointConfig]:
    return sagemaker_backends[ACCOUNT_ID][call.region].endpoint_configs


def _arn(call: Call, kind: str, name: str) -> str:
    return call.arn(f"{kind}/{name}").lower()


def _invalid(message: str) -> ServiceError:
    return ServiceError("ValidationException", message)
