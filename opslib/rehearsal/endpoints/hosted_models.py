"""Models and endpoint configurations, and the instances that an endpoint configuration asks for."""

import os
from typing import TYPE_CHECKING, Any

from moto.sagemaker.models import FakeEndpointConfig, Model, sagemaker_backends

from opslib.rehearsal.calls import ACCOUNT_ID, Call, Operation, ServiceError
from opslib.rehearsal.endpoints.fleet import HEALTH_CHECK_SECONDS, Fleet, ModelContainer
from opslib.rehearsal.endpoints.hosting import Hosting, Variant
from opslib.rehearsal.endpoints.model_data import fetch_model, find_model_data, require_model_data
from opslib.rehearsal.identity import assume_role, require_passable_role, role_credentials
from opslib.rehearsal.log_streams import LogStream
from opslib.rehearsal.role_storage import RoleStorage
from opslib.rehearsal.site import Site

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path


REHEARSED_IMAGE = "pytorch-inference"
"""The repository whose containers the model server stands for."""

_UNREHEARSED_SETTINGS = ("AsyncInferenceConfig", "ExplainerConfig", "ShadowProductionVariants")
_UNREHEARSED_VARIANT = ("ServerlessConfig", "CoreDumpConfig", "ManagedInstanceScaling", "AcceleratorType")


class HostedModels:
    """The operations on models and endpoint configurations."""

    def __init__(self, site: Site) -> None:
        """Keep the rehearsal, whose address the containers get."""
        self._site = site
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
        for variant in variants:
            self._model(call, variant["ModelName"])
            if not variant.get("InstanceType") or not variant.get("InitialInstanceCount"):
                raise _invalid(
                    f"InstanceType and InitialInstanceCount are required for variant {variant['VariantName']}."
                )
        config = FakeEndpointConfig(
            ACCOUNT_ID, call.region, name, [], {}, {}, call.params.get("Tags", []), call.params.get("KmsKeyId", "")
        )
        config.production_variants = variants
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
        }

    def delete_endpoint_config(self, call: Call) -> dict[str, Any]:
        """Delete an endpoint configuration; endpoints made with it go on."""
        del _configs(call)[self._config(call, call.params["EndpointConfigName"]).endpoint_config_name]
        return {}

    def build_hosting(self, call: Call, config_name: str, endpoint_name: str) -> Hosting:
        """Return the variants of a configuration, not yet started."""
        variants = self._config(call, config_name).production_variants
        total = sum(variant["InitialInstanceCount"] for variant in variants)
        threads = max(1, (os.cpu_count() or 1) // total)
        return Hosting([self._build_variant(call, variant, endpoint_name, threads) for variant in variants])

    def _build_variant(self, call: Call, variant: dict[str, Any], endpoint_name: str, threads: int) -> Variant:
        model = self._model(call, variant["ModelName"])
        routing = variant.get("RoutingConfig", {}).get("RoutingStrategy")
        container = ModelContainer(
            directory=self._site.directory,
            variables={**_thread_settings(threads), **self._variables(model, call.region)},
            fetch_model=self._fetcher(model),
            open_log=_log_opener(model, call.region, endpoint_name, variant["VariantName"]),
            startup_seconds=variant.get("ContainerStartupHealthCheckTimeoutInSeconds", HEALTH_CHECK_SECONDS),
        )
        fleet = Fleet(
            container, variant["InitialInstanceCount"], least_outstanding=routing == "LEAST_OUTSTANDING_REQUESTS"
        )
        image = model.primary_container["Image"]
        return Variant(variant["VariantName"], variant.get("InitialVariantWeight", 1.0), image, fleet)

    def _variables(self, model: Model, region: str) -> dict[str, str]:
        """Return the container's variables; an isolated model gets no credentials, as on AWS."""
        ours = {"AWS_REGION": region, "AWS_DEFAULT_REGION": region}
        if not model.enable_network_isolation:
            ours |= role_credentials(model.execution_role_arn, "SageMaker")
            ours |= {"AWS_ENDPOINT_URL": self._site.endpoint_url, "AWS_EC2_METADATA_DISABLED": "true"}
        return ours | model.primary_container.get("Environment", {})

    @staticmethod
    def _fetcher(model: Model) -> "Callable[[Path], None]":
        data = find_model_data(model.primary_container)

        def fetch(directory: "Path") -> None:
            directory.mkdir(parents=True, exist_ok=True)
            if data:
                fetch_model(RoleStorage(assume_role(model.execution_role_arn, "SageMaker")), data, directory)

        return fetch

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


def _thread_settings(threads: int) -> dict[str, str]:
    """Return the thread settings of an instance, which shares this machine with everything else that is rehearsed.

    Threads that wait must sleep: those that spin beside one busy neighbour made 26 ms a photo 228 on two cores.
    """
    return {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}


def _only_container(call: Call) -> dict[str, Any]:
    containers = [call.params["PrimaryContainer"]] if "PrimaryContainer" in call.params else []
    containers += call.params.get("Containers", [])
    if len(containers) != 1 or containers[0].get("Mode", "SingleModel") != "SingleModel":
        raise _invalid("Only models of one container, with one model in it, can be rehearsed.")
    image = containers[0].get("Image", "")
    if REHEARSED_IMAGE not in image:
        raise _invalid(
            f"Requested image {image} not found. (The rehearsal has AWS's PyTorch inference containers, "
            f"{REHEARSED_IMAGE}, and no others.)"
        )
    return containers[0]


def _check_rehearsed(params: dict[str, Any]) -> None:
    """Refuse what would be accepted and then not be done."""
    names = [name for name in _UNREHEARSED_SETTINGS if params.get(name)]
    names += [name for variant in params["ProductionVariants"] for name in _UNREHEARSED_VARIANT if variant.get(name)]
    if params.get("DataCaptureConfig", {}).get("EnableCapture"):
        names.append("DataCaptureConfig")
    if names:
        raise _invalid(f"{', '.join(names)} of an endpoint configuration cannot be rehearsed yet; leave it out.")


def _log_opener(
    model: Model, region: str, endpoint_name: str, variant_name: str
) -> "Callable[[str], Callable[[Sequence[str]], None]]":
    principal = assume_role(model.execution_role_arn, "SageMaker")
    group = f"/aws/sagemaker/Endpoints/{endpoint_name}"
    return lambda instance_id: LogStream(principal, region, group, f"{variant_name}/{instance_id}").write


def _models(call: Call) -> dict[str, Model]:
    return sagemaker_backends[ACCOUNT_ID][call.region]._models


def _configs(call: Call) -> dict[str, FakeEndpointConfig]:
    return sagemaker_backends[ACCOUNT_ID][call.region].endpoint_configs


def _arn(call: Call, kind: str, name: str) -> str:
    return call.arn(f"{kind}/{name}").lower()


def _invalid(message: str) -> ServiceError:
    return ServiceError("ValidationException", message)
