"""Another model behind an endpoint that was made elsewhere: everything but the model stays as it was."""

import pytest

from opslib.aws import deployments, roles, storage
from opslib.aws.ledger import Run
from opslib.aws.session import client
from opslib.aws.sweeping import sweep
from opslib.errors import ConfigurationError
from opslib.specs import ShiftSpec
from tests.aws.conftest import put_model

IMAGE = "763104351884.dkr.ecr.us-east-1.amazonaws.com/pytorch-inference:2.6-cpu-py312"
AT_ONCE = ShiftSpec("all_at_once", wait_seconds=0)
VPC = {"SecurityGroupIds": ["sg-1"], "Subnets": ["subnet-1"]}
INSTANCES = {"InstanceType": "ml.m5.large", "InitialInstanceCount": 1}


def make_endpoint(run: Run, model_uri: str, *variants: dict, **settings) -> str:
    """Make an endpoint whose model is isolated and in a VPC, and wait until it is in service."""
    sagemaker, name = client("sagemaker"), run.fresh_name("endpoint")
    for kind in ("model", "endpoint-config", "endpoint"):
        run.record(kind, name)
    sagemaker.create_model(
        ModelName=name,
        PrimaryContainer={"Image": IMAGE, "ModelDataUrl": model_uri},
        ExecutionRoleArn=roles.ensure_execution_role(run, run.name("data")),
        VpcConfig=VPC,
        EnableNetworkIsolation=True,
        Tags=run.tags,
    )
    sagemaker.create_endpoint_config(
        EndpointConfigName=name,
        ProductionVariants=[{"ModelName": name, **variant} for variant in variants],
        Tags=run.tags,
        **settings,
    )
    sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=name, Tags=run.tags)
    sagemaker.get_waiter("endpoint_in_service").wait(EndpointName=name, WaiterConfig={"Delay": 1})
    return name


def serving(endpoint: str) -> tuple[dict, dict]:
    """Return the configuration that an endpoint serves, and the model in it."""
    sagemaker = client("sagemaker")
    name = sagemaker.describe_endpoint(EndpointName=endpoint)["EndpointConfigName"]
    config = sagemaker.describe_endpoint_config(EndpointConfigName=name)
    return config, sagemaker.describe_model(ModelName=config["ProductionVariants"][0]["ModelName"])


def test_what_an_endpoint_was_set_to_outlives_its_model(run, model_uri) -> None:
    bucket = storage.ensure_bucket(run)
    capture = {
        "EnableCapture": True,
        "InitialSamplingPercentage": 100,
        "DestinationS3Uri": f"s3://{bucket}/seen",
        "CaptureOptions": [{"CaptureMode": "Input"}],
    }
    name = make_endpoint(run, model_uri, {"VariantName": "V", **INSTANCES}, DataCaptureConfig=capture)
    other = put_model(bucket, "other.tar.gz")
    deployments.shift_model(run, name, model_uri=other, shift=AT_ONCE)
    config, model = serving(name)
    assert model["PrimaryContainer"]["ModelDataUrl"] == other
    assert config["DataCaptureConfig"] == capture
    assert (model["VpcConfig"], model["EnableNetworkIsolation"]) == (VPC, True)


def test_a_serverless_endpoint_gets_another_model_too(run, model_uri) -> None:
    serverless = {"MemorySizeInMB": 2048, "MaxConcurrency": 1}
    name = make_endpoint(run, model_uri, {"VariantName": "V", "ServerlessConfig": serverless})
    other = put_model(storage.ensure_bucket(run), "other.tar.gz")
    deployments.shift_model(run, name, model_uri=other, shift=AT_ONCE)
    assert serving(name)[0]["ProductionVariants"][0]["ServerlessConfig"] == serverless
    assert sweep(run).leftovers == ()


def test_an_endpoint_of_several_variants_is_refused(run, model_uri) -> None:
    variants = [{"VariantName": name, **INSTANCES} for name in ("A", "B")]
    name = make_endpoint(run, model_uri, *variants)
    with pytest.raises(ConfigurationError, match="2 production variants"):
        deployments.shift_model(run, name, model_uri=model_uri, shift=AT_ONCE)
