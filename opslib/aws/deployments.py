"""Another model behind the same endpoint: shifted over step by step, and back by itself when an alarm rings.

Source: docs.aws.amazon.com/sagemaker/latest/dg/deployment-guardrails.html
"""

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from opslib import gate
from opslib.aws.endpoints import VARIANT, delete_endpoint_config, delete_model
from opslib.aws.failures import explained, masked
from opslib.aws.ledger import Run
from opslib.aws.model_archives import model_metrics
from opslib.aws.session import client
from opslib.aws.storage import object_exists
from opslib.errors import AwsError, ConfigurationError, DeploymentRolledBack, EndpointFailed
from opslib.specs import ShiftSpec

_POLL_SECONDS = 1.0
_MOVING = {"Updating", "SystemUpdating", "RollingBack"}
_KEPT_OF_MODELS = ("VpcConfig", "EnableNetworkIsolation")
_KEPT_OF_CONFIGS = (
    "DataCaptureConfig", "AsyncInferenceConfig", "ShadowProductionVariants", "ExplainerConfig", "KmsKeyId",
    "ExecutionRoleArn", "VpcConfig", "EnableNetworkIsolation", "MetricsConfig", "CrossRegionTrafficConfig",
)  # fmt: skip
"""What an endpoint configuration says beside its variants and its name."""
_STEPS = {"canary": "CANARY", "linear": "LINEAR", "all_at_once": "ALL_AT_ONCE"}


@dataclass(frozen=True)
class ShiftProgress:
    """One look at an endpoint that changes its model: status, stage of the deployment, seconds since it began."""

    status: str
    stage: str
    elapsed_seconds: float


def shift_model(
    run: Run,
    endpoint_name: str,
    *,
    model_uri: str,
    shift: ShiftSpec,
    on_progress: Callable[[ShiftProgress], object] | None = None,
    overrule_gate: bool = False,
) -> None:
    """Put another model behind an endpoint, as the one before is run: image, role, instances, all settings.

    When it is rolled back, what was made for the new model is deleted; the old one has served throughout. After a
    success the old model and its configuration stay until the run is swept.

    Args:
        run: The run that owns the new model.
        endpoint_name: An endpoint in service with one production variant.
        model_uri: The `model.tar.gz` of the new model.
        shift: How the traffic goes over, and the alarms that send it back.
        on_progress: Told at every look.
        overrule_gate: Deploy the model unseen, whatever the gate would say of it.

    Raises:
        ModelRefused: the new model failed the gate; nothing was changed.
        DeploymentRolledBack: an alarm rang, or the new instances did not come into service; the message says which.
        ConfigurationError: the endpoint has several production variants.
        AwsError: AWS refused.
    """
    if not object_exists(model_uri):
        raise AwsError(f"there is no model at {model_uri}", hint="training_results(...).model_uri is a job's model")
    if not overrule_gate:
        gate.judge(model_metrics(model_uri), model_uri).raise_if_refused()
    config = run.fresh_name("endpoint")
    with ExitStack() as undo:
        with explained(f"changing the model of endpoint {endpoint_name}"):
            _create_config(run, endpoint_name, config, model_uri, undo)
            client("sagemaker").update_endpoint(
                EndpointName=endpoint_name, EndpointConfigName=config, DeploymentConfig=deployment_config(shift)
            )
        after = _wait(endpoint_name, on_progress)
        if after["EndpointConfigName"] != config:
            why = masked(after.get("FailureReason", "SageMaker gave no reason"))
            raise DeploymentRolledBack(
                f"endpoint {endpoint_name} serves the old model again: {why}",
                hint="the log group of the endpoint has the new model's lines, the alarm's history its figures",
            )
        undo.pop_all()


def deployment_config(shift: ShiftSpec) -> dict[str, Any]:
    """Return a shift as UpdateEndpoint's DeploymentConfig."""
    routing: dict[str, Any] = {"Type": _STEPS[shift.kind], "WaitIntervalInSeconds": shift.wait_seconds}
    size = {"Type": "CAPACITY_PERCENT", "Value": shift.share_percent}
    if shift.kind == "canary":
        routing["CanarySize"] = size
    elif shift.kind == "linear":
        routing["LinearStepSize"] = size
    config: dict[str, Any] = {
        "BlueGreenUpdatePolicy": {
            "TrafficRoutingConfiguration": routing,
            "TerminationWaitInSeconds": 0,
            "MaximumExecutionTimeoutInSeconds": 60 * shift.max_minutes,
        }
    }
    if shift.alarms:
        config["AutoRollbackConfiguration"] = {"Alarms": [{"AlarmName": name} for name in shift.alarms]}
    return config


def _create_config(run: Run, endpoint_name: str, name: str, model_uri: str, undo: ExitStack) -> None:
    """Make model and configuration as the endpoint has them now, but for the model's data."""
    sagemaker = client("sagemaker")
    endpoint = sagemaker.describe_endpoint(EndpointName=endpoint_name)
    config = sagemaker.describe_endpoint_config(EndpointConfigName=endpoint["EndpointConfigName"])
    variant = _only_variant(endpoint_name, config)
    model = sagemaker.describe_model(ModelName=variant["ModelName"])
    served = model.get("PrimaryContainer") or model["Containers"][0]
    container = {key: value for key, value in served.items() if key not in {"ModelDataUrl", "ModelDataSource"}}
    container |= {"ModelDataUrl": model_uri}
    run.record("model", name)
    kept = {key: model[key] for key in ("ExecutionRoleArn", *_KEPT_OF_MODELS) if key in model}
    sagemaker.create_model(ModelName=name, PrimaryContainer=container, Tags=run.tags, **kept)
    undo.callback(delete_model, name)
    changed = {"ModelName": name}
    if "InitialInstanceCount" in variant:  # scaling may have changed it since the endpoint was made
        # An asynchronous endpoint may have none just now, but none begins with none.
        changed["InitialInstanceCount"] = max(1, endpoint["ProductionVariants"][0]["DesiredInstanceCount"])
    run.record("endpoint-config", name)
    sagemaker.create_endpoint_config(
        EndpointConfigName=name,
        ProductionVariants=[{**variant, **changed}],
        Tags=run.tags,
        **{key: config[key] for key in _KEPT_OF_CONFIGS if key in config},
    )
    undo.callback(delete_endpoint_config, name)


def _only_variant(endpoint_name: str, config: dict[str, Any]) -> dict[str, Any]:
    variants = config["ProductionVariants"]
    if len(variants) != 1:
        raise ConfigurationError(
            f"endpoint {endpoint_name} has {len(variants)} production variants; a model is changed where there is one",
            hint="UpdateEndpoint takes a configuration of your own for several",
        )
    return variants[0]


def _wait(endpoint_name: str, on_progress: Callable[[ShiftProgress], object] | None) -> dict[str, Any]:
    started = time.monotonic()
    while True:
        with explained(f"looking at endpoint {endpoint_name}"):
            description = client("sagemaker").describe_endpoint(EndpointName=endpoint_name)
        status = description["EndpointStatus"]
        if on_progress is not None:
            on_progress(ShiftProgress(status, _stage(description), time.monotonic() - started))
        if status == "InService":
            return description
        if status not in _MOVING:
            why = masked(description.get("FailureReason", "SageMaker gave no reason"))
            raise EndpointFailed(f"endpoint {endpoint_name} is {status}: {why}")
        time.sleep(_POLL_SECONDS)


def _stage(description: dict[str, Any]) -> str:
    pending = description.get("PendingDeploymentSummary", {}).get("ProductionVariants", [])
    stages = [status["Status"] for variant in pending for status in variant.get("VariantStatus", [])]
    return stages[-1] if stages else ""


__all__ = ["VARIANT", "ShiftProgress", "deployment_config", "shift_model"]
