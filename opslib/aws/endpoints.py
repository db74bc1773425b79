"""Endpoints: a model, its configuration and the endpoint made in one go, asked for answers, and taken down."""

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from botocore.exceptions import ClientError

from opslib import gate
from opslib.aws.failures import explained, gone_is_fine, is_absent, masked
from opslib.aws.ledger import LONGEST_NAME, Run
from opslib.aws.logs import delete_log_group, endpoint_group, ensure_log_group, log_tail
from opslib.aws.model_archives import model_metrics
from opslib.aws.predictions import Latency, Prediction, classify, measure_latency
from opslib.aws.roles import once_role_is_known
from opslib.aws.session import client, current_session, region
from opslib.aws.storage import object_exists
from opslib.errors import AwsError, ConfigurationError, EndpointFailed
from opslib.specs import EndpointSpec

__all__ = [
    "EndpointProgress",
    "Latency",
    "Prediction",
    "classify",
    "delete_endpoint",
    "delete_endpoint_alone",
    "delete_endpoint_config",
    "delete_model",
    "deploy_model",
    "endpoint_config_exists",
    "endpoint_exists",
    "measure_latency",
    "model_exists",
]

FRAMEWORK_VERSION, PYTHON_VERSION = "2.6.0", "py312"
"""AWS's last PyTorch inference container (TorchServe)."""
RAY_VERSION = "v1.1"
"""Of AWS's Ray Serve container: aws.github.io/deep-learning-containers/ray/changelog."""
_GPU_AMI = "al2-ami-sagemaker-inference-gpu-3-1"
"""With the driver that the CUDA image of Ray Serve needs."""

VARIANT = "AllTraffic"
IN_SERVICE_SECONDS = 1800
"""How long an endpoint may take; SageMaker gives up earlier on a container that does not answer /ping."""

_POLL_SECONDS, _SLOW_POLL_SECONDS, _FAST_FOR_SECONDS = 0.5, 5.0, 30.0
_MOVING = {"Creating", "Updating", "SystemUpdating", "RollingBack", "Deleting"}


@dataclass(frozen=True)
class EndpointProgress:
    """One look at an endpoint on its way: its status and the seconds since it was asked for."""

    name: str
    status: str
    elapsed_seconds: float


def deploy_model(  # noqa: PLR0913  overruling the gate has to be said by name, at the call
    run: Run,
    spec: EndpointSpec,
    *,
    model_uri: str,
    role: str,
    name: str = "",
    on_progress: Callable[[EndpointProgress], object] | None = None,
    overrule_gate: bool = False,
) -> str:
    """Make an endpoint of a trained model, wait until it is in service, and return its name.

    Before anything is created the model is judged by the figures in its `model.json` (`opslib.gate`).

    Model, endpoint configuration and endpoint bear the same name. When the endpoint does not come into service, all
    three and the log group are deleted again.

    Args:
        run: The run that owns them.
        spec: Instance type and count, and the hosts that photos may be fetched from.
        model_uri: The `model.tar.gz` of a training job, with `code/inference.py` in it.
        role: ARN of the execution role.
        name: A name of your own, of at most 63 characters; by default a new one of the run's.
        on_progress: Told at every look.
        overrule_gate: Deploy the model unseen, whatever the gate would say of it.

    Raises:
        ModelRefused: it failed the gate, or holds no figures to judge it by; nothing was created.
        EndpointFailed: it did not come into service; the message holds SageMaker's reason and the last log lines.
        AwsError: AWS refused.
        ConfigurationError: `name` is too long, or taken.
    """
    endpoint = name or run.fresh_name("endpoint")
    _refuse_name(endpoint)
    if not object_exists(model_uri):  # SageMaker would say so in the words that it has for a role it cannot assume
        raise AwsError(
            f"there is no model at {model_uri}", hint="training_results(...).model_uri is the URI of a job's model"
        )
    if not overrule_gate:
        gate.judge(model_metrics(model_uri), model_uri).raise_if_refused()
    with ExitStack() as undo:  # an interrupted wait must not leave an endpoint that is billed by the hour
        with explained(f"making endpoint {endpoint}"):
            _create(run, spec, endpoint, undo, {"model_uri": model_uri, "role": role})
        _wait_in_service(endpoint, on_progress)
        undo.pop_all()
    return endpoint


def _refuse_name(name: str) -> None:
    """Refuse a name that is too long, or taken: what is not ours must not get into the ledger, nor be taken down."""
    if len(name) > LONGEST_NAME:
        raise ConfigurationError(f"endpoint name {name!r} has more than {LONGEST_NAME} characters")
    taken = [kind for kind, exists in _EXISTS.items() if exists(name)]
    if taken:
        raise ConfigurationError(
            f"the {taken[0]} {name} exists already", hint="choose another name, or delete_endpoint first"
        )


def _create(run: Run, spec: EndpointSpec, name: str, undo: ExitStack, source: dict[str, str]) -> None:
    from sagemaker.core import resources, shapes

    where = {"session": current_session(), "region": region()}
    tags = [shapes.Tag(key=tag["Key"], value=tag["Value"]) for tag in run.tags]
    if ensure_log_group(run, endpoint_group(name)):
        undo.callback(delete_log_group, endpoint_group(name))
    container = shapes.ContainerDefinition(
        image=_image(spec), model_data_url=source["model_uri"], environment=_environment(spec)
    )
    run.record("model", name)
    once_role_is_known(
        source["role"],
        lambda: resources.Model.create(
            model_name=name, primary_container=container, execution_role_arn=source["role"], tags=tags, **where
        ),
    )
    undo.callback(delete_model, name)
    variant = shapes.ProductionVariant(
        variant_name=VARIANT,
        model_name=name,
        instance_type=spec.instance_type,
        initial_instance_count=spec.instance_count,
        initial_variant_weight=1.0,
        **({"inference_ami_version": _GPU_AMI} if spec.container == "ray" and _has_gpu(spec) else {}),
    )
    run.record("endpoint-config", name)
    resources.EndpointConfig.create(endpoint_config_name=name, production_variants=[variant], tags=tags, **where)
    undo.callback(delete_endpoint_config, name)
    run.record("endpoint", name)
    resources.Endpoint.create(endpoint_name=name, endpoint_config_name=name, tags=tags, **where)
    undo.callback(delete_endpoint_alone, name)


def _image(spec: EndpointSpec) -> str:
    from sagemaker.core import image_uris

    pytorch = image_uris.retrieve(
        "pytorch",
        region=region(),
        version=FRAMEWORK_VERSION,
        py_version=PYTHON_VERSION,
        instance_type=spec.instance_type,
        image_scope="inference",
    )
    if spec.container == "pytorch":
        return pytorch
    # The SDK does not know the Ray Serve images yet; they are in the registry of AWS's other containers.
    return f"{pytorch.rpartition('/')[0]}/ray:serve-ml-sagemaker-{'cuda' if _has_gpu(spec) else 'cpu'}-{RAY_VERSION}"


def _has_gpu(spec: EndpointSpec) -> bool:
    return spec.instance_type.split(".")[1][0] in "gp"


def _environment(spec: EndpointSpec) -> dict[str, str]:
    """Variables of AWS's PyTorch container: which script holds the four functions, and where it was unpacked."""
    pytorch = {
        "SAGEMAKER_PROGRAM": "inference.py",
        "SAGEMAKER_SUBMIT_DIRECTORY": "/opt/ml/model/code",
        "SAGEMAKER_CONTAINER_LOG_LEVEL": "20",
        "SAGEMAKER_REGION": region(),
    }
    variables = pytorch if spec.container == "pytorch" else {}
    return variables | ({"OPSLIB_URL_HOSTS": ",".join(spec.url_hosts)} if spec.url_hosts else {})


def _wait_in_service(name: str, on_progress: Callable[[EndpointProgress], object] | None) -> None:
    started = time.monotonic()
    while True:
        description = _describe(name)
        progress = EndpointProgress(name, description["EndpointStatus"], time.monotonic() - started)
        if on_progress:
            on_progress(progress)
        if progress.status == "InService":
            return
        if progress.status not in _MOVING or progress.elapsed_seconds > IN_SERVICE_SECONDS:
            raise EndpointFailed(
                _failure(description), hint="the model server's own lines say more than SageMaker's reason"
            )
        time.sleep(_poll_seconds(progress.elapsed_seconds))


def _poll_seconds(elapsed_seconds: float) -> float:
    return _POLL_SECONDS if elapsed_seconds < _FAST_FOR_SECONDS else _SLOW_POLL_SECONDS


def _describe(name: str) -> dict[str, Any]:
    with explained(f"looking at endpoint {name}"):
        return client("sagemaker").describe_endpoint(EndpointName=name)


def _failure(description: dict[str, Any]) -> str:
    name, status = description["EndpointName"], description["EndpointStatus"]
    why = masked(description.get("FailureReason", f"it is still {status} after {IN_SERVICE_SECONDS} s"))
    tail = masked(log_tail(endpoint_group(name)))
    return f"endpoint {name} did not come into service: {why}" + (f"\nits last log lines:\n{tail}" if tail else "")


def endpoint_exists(name: str) -> bool:
    """Tell whether there is an endpoint of that name, in whatever state.

    Raises:
        AwsError: AWS refused.
    """
    return _is_described("describe_endpoint", EndpointName=name)


def endpoint_config_exists(name: str) -> bool:
    """Tell whether there is an endpoint configuration of that name.

    Raises:
        AwsError: AWS refused.
    """
    return _is_described("describe_endpoint_config", EndpointConfigName=name)


def model_exists(name: str) -> bool:
    """Tell whether there is a model of that name.

    Raises:
        AwsError: AWS refused.
    """
    return _is_described("describe_model", ModelName=name)


_EXISTS = {"endpoint": endpoint_exists, "endpoint configuration": endpoint_config_exists, "model": model_exists}


def _is_described(operation: str, **names: str) -> bool:
    with explained(f"looking for {', '.join(names.values())}"), gone_is_fine():
        getattr(client("sagemaker"), operation)(**names)
        return True
    return False


def delete_endpoint(name: str) -> None:
    """Delete an endpoint with its configuration, models and log group; succeeds when they are already gone.

    Raises:
        AwsError: AWS refused.
    """
    config = ""
    with explained(f"looking at endpoint {name}"), gone_is_fine():
        config = client("sagemaker").describe_endpoint(EndpointName=name)["EndpointConfigName"]
    delete_endpoint_alone(name)
    for model in _models_of(config or name):
        delete_model(model)
    delete_endpoint_config(config or name)
    delete_log_group(endpoint_group(name))


def _models_of(config: str) -> list[str]:
    with explained(f"looking at endpoint configuration {config}"), gone_is_fine():
        variants = client("sagemaker").describe_endpoint_config(EndpointConfigName=config)["ProductionVariants"]
        return [variant["ModelName"] for variant in variants if "ModelName" in variant]
    return []


def delete_endpoint_alone(name: str) -> None:
    """Delete an endpoint, but neither configuration nor models, and wait until it is gone.

    SageMaker refuses to delete one that is being created or updated, so that is waited for. Succeeds when it is
    already gone.

    Raises:
        EndpointFailed: it did not go.
        AwsError: AWS refused.
    """
    sagemaker, started, asked = client("sagemaker"), time.monotonic(), False
    with explained(f"deleting endpoint {name}"), gone_is_fine():
        while True:
            status = sagemaker.describe_endpoint(EndpointName=name)["EndpointStatus"]
            elapsed_seconds = time.monotonic() - started
            if elapsed_seconds > IN_SERVICE_SECONDS:
                raise EndpointFailed(
                    f"endpoint {name} is still {status} after {IN_SERVICE_SECONDS} s: it is billed until it goes"
                )
            if not asked:
                asked = _ask_to_delete(name, status)
            time.sleep(_poll_seconds(elapsed_seconds))


def _ask_to_delete(name: str, status: str) -> bool:
    try:
        client("sagemaker").delete_endpoint(EndpointName=name)
    except ClientError as error:
        if is_absent(error) or status not in _MOVING:
            raise
        return False
    return True


def delete_endpoint_config(name: str) -> None:
    """Delete an endpoint configuration; succeeds when it is already gone.

    Raises:
        AwsError: AWS refused.
    """
    with explained(f"deleting endpoint configuration {name}"), gone_is_fine():
        client("sagemaker").delete_endpoint_config(EndpointConfigName=name)


def delete_model(name: str) -> None:
    """Delete a model (not its artifact in S3); succeeds when it is already gone.

    Raises:
        AwsError: AWS refused.
    """
    with explained(f"deleting model {name}"), gone_is_fine():
        client("sagemaker").delete_model(ModelName=name)
