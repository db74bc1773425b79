"""Models, endpoint configurations and endpoints as records: their lists, their tags, and what is refused of them."""

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import boto3
import pytest
from botocore.exceptions import ClientError

from opslib.rehearsal.endpoints.live import LiveEndpoint
from tests.rehearsal.serving import IMAGE, pack_model, settled, unique, until


@pytest.fixture
def model(bucket, role):
    """The name of a model, with capitals in it."""
    sagemaker, name = boto3.client("sagemaker"), unique("Model")
    boto3.client("s3").put_object(Bucket=bucket, Key="model.tar.gz", Body=pack_model({"code/inference.py": SERVES}))
    container = {"Image": IMAGE, "ModelDataUrl": f"s3://{bucket}/model.tar.gz"}
    sagemaker.create_model(ModelName=name, ExecutionRoleArn=role, PrimaryContainer=container)
    yield name
    sagemaker.delete_model(ModelName=name)


DRAFT = {"S3Uri": "s3://bucket/draft/", "S3DataType": "S3Prefix", "CompressionType": "None"}
SERVES = """
def model_fn(directory):
    return directory

def predict_fn(data, model):
    return "answer"

def output_fn(prediction, accept):
    return prediction, "text/plain"
"""


@pytest.fixture
def configure(model):
    """Return a function that makes an endpoint configuration of the model; returns its name."""
    sagemaker, made = boto3.client("sagemaker"), []

    def make(name: str = "", *variants: dict, **settings) -> str:
        name = name or unique("Config")
        sagemaker.create_endpoint_config(
            EndpointConfigName=name, ProductionVariants=list(variants) or [variant(model)], **settings
        )
        made.append(name)
        return name

    yield make
    for name in made:
        sagemaker.delete_endpoint_config(EndpointConfigName=name)


@pytest.fixture
def endpoint(configure):
    """The name of an endpoint in service, with capitals in it."""
    sagemaker, name = boto3.client("sagemaker"), unique("Endpoint")
    sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=configure(), Tags=[{"Key": "run", "Value": "1"}])
    settled(name)
    yield name
    sagemaker.delete_endpoint(EndpointName=name)


def variant(model: str, **changed) -> dict:
    settings = {"ModelName": model, "VariantName": "AllTraffic", "InstanceType": "ml.m5.large"}
    return {**settings, "InitialInstanceCount": 1, **changed}


def names(operation: str, member: str, name: str, **filters) -> list[str]:
    reply = getattr(boto3.client("sagemaker"), operation)(**filters)
    return [one[name] for one in reply[member]]


def test_lists_come_in_pages_of_ten_the_newest_first(configure):
    stem = unique("Many")
    made = [configure(f"{stem}-{number:02d}") for number in range(12)]
    asked = ("list_endpoint_configs", "EndpointConfigs", "EndpointConfigName")
    assert names(*asked, NameContains=stem) == made[:1:-1]
    assert names(*asked, NameContains=stem.lower(), MaxResults=3) == made[:-4:-1]
    assert names(*asked, NameContains=stem, SortBy="Name", SortOrder="Ascending") == made[:10]
    pages = boto3.client("sagemaker").get_paginator("list_endpoint_configs").paginate(NameContains=stem)
    assert [one["EndpointConfigName"] for page in pages for one in page["EndpointConfigs"]] == made[::-1]
    with pytest.raises(ClientError, match="Invalid NextToken"):
        boto3.client("sagemaker").list_endpoint_configs(NextToken="x")


def test_models_are_filtered_by_name_and_time(model):
    asked = ("list_models", "Models", "ModelName")
    created = boto3.client("sagemaker").describe_model(ModelName=model)["CreationTime"]
    assert names(*asked, NameContains=model) == [model]
    assert names(*asked, NameContains="no-such-model") == []
    assert model in names(*asked, CreationTimeAfter=created - timedelta(seconds=1), MaxResults=100)
    assert model not in names(*asked, CreationTimeBefore=created.replace(year=2000), MaxResults=100)


def test_endpoints_are_filtered_by_status(endpoint):
    asked = ("list_endpoints", "Endpoints", "EndpointName")
    assert names(*asked, NameContains=endpoint.lower(), StatusEquals="InService") == [endpoint]
    assert names(*asked, NameContains=endpoint, StatusEquals="Failed") == []


def test_tags_of_names_with_capitals_are_changed_and_listed(endpoint, model):
    sagemaker = boto3.client("sagemaker")
    arn = sagemaker.describe_endpoint(EndpointName=endpoint)["EndpointArn"]
    sagemaker.add_tags(ResourceArn=arn, Tags=[{"Key": "run", "Value": "2"}, {"Key": "team", "Value": "a"}])
    tags = sagemaker.list_tags(ResourceArn=arn)["Tags"]
    assert tags == [{"Key": "run", "Value": "2"}, {"Key": "team", "Value": "a"}]
    sagemaker.delete_tags(ResourceArn=arn, TagKeys=["run", "nothing"])
    assert sagemaker.list_tags(ResourceArn=arn)["Tags"] == [{"Key": "team", "Value": "a"}]
    arn = sagemaker.describe_model(ModelName=model)["ModelArn"]
    one = [{"Key": "a", "Value": "b"}]
    assert sagemaker.add_tags(ResourceArn=arn, Tags=one)["Tags"] == one
    for gone in (
        f"{arn}x",
        arn.replace(":model/", ":pipeline/"),
        arn.replace(":model/", ":nothing/"),
        arn.replace(":model/", ":list-model/"),
    ):
        with pytest.raises(ClientError, match=r"ValidationException.*Could not find"):
            sagemaker.list_tags(ResourceArn=gone)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"EnableNetworkIsolation": True}, "EnableNetworkIsolation of an endpoint configuration cannot be rehearsed"),
        ({"MetricsConfig": {"EnableEnhancedMetrics": True}}, "MetricsConfig of an endpoint configuration cannot be"),
    ],
)
def test_settings_that_nothing_would_come_of_are_refused(configure, settings, words):
    with pytest.raises(ClientError, match=f"ValidationException.*{words}"):
        configure(**settings)


@pytest.mark.parametrize(
    "setting",
    [{"ModelPackageName": "dogs"}, {"AdditionalModelDataSources": [{"ChannelName": "draft", "S3DataSource": DRAFT}]}],
    ids=["ModelPackageName", "AdditionalModelDataSources"],
)
def test_containers_of_which_a_part_would_be_missing_are_refused(role, setting):
    container = {"Image": IMAGE, **setting}
    with pytest.raises(ClientError, match=f"ValidationException.*{next(iter(setting))} of a model cannot be rehearsed"):
        boto3.client("sagemaker").create_model(ModelName="m", ExecutionRoleArn=role, PrimaryContainer=container)


def test_variants_need_names_of_their_own_and_models(configure, model):
    with pytest.raises(ClientError, match=r"ValidationException.*Variant names must be unique: AllTraffic"):
        configure("", variant(model), variant(model))
    nothing = {"VariantName": "AllTraffic", "InstanceType": "ml.m5.large", "InitialInstanceCount": 1}
    with pytest.raises(ClientError, match=r"ValidationException.*ModelName is required for variant AllTraffic"):
        configure("", nothing)
    pools = [{"InstanceType": "ml.m5.large", "Priority": 1}]
    with pytest.raises(ClientError, match=r"ValidationException.*InstancePools of an endpoint configuration cannot be"):
        configure("", {"VariantName": "AllTraffic", "ModelName": model, "InstancePools": pools})


def test_more_instances_than_an_account_has_are_refused(configure, endpoint, model):
    sagemaker, large = boto3.client("sagemaker"), configure("", variant(model, InitialInstanceCount=1000))
    limit = "ResourceLimitExceeded.*'ml.m5.large for endpoint usage' is 20 Instances, with current utilization of"
    with pytest.raises(ClientError, match=limit):
        sagemaker.create_endpoint(EndpointName=unique("endpoint"), EndpointConfigName=large)
    with pytest.raises(ClientError, match=limit):
        sagemaker.update_endpoint(EndpointName=endpoint, EndpointConfigName=large)
    with pytest.raises(ClientError, match=f"{limit} 1 Instances and a request delta of 20 Instances"):
        change(endpoint, DesiredInstanceCount=21)


def test_scaling_has_no_more_instances_than_the_account(endpoint):
    scaling = boto3.client("application-autoscaling")
    target = {
        "ServiceNamespace": "sagemaker",
        "ResourceId": f"endpoint/{endpoint}/variant/AllTraffic",
        "ScalableDimension": "sagemaker:variant:DesiredInstanceCount",
    }
    scaling.register_scalable_target(**target, MinCapacity=30, MaxCapacity=50)

    def tried() -> list[dict]:
        return scaling.describe_scaling_activities(ServiceNamespace="sagemaker", ResourceId=target["ResourceId"])[
            "ScalingActivities"
        ]

    activity = until(tried)[0]
    scaling.deregister_scalable_target(**target)
    assert (activity["StatusCode"], "service limit" in activity["StatusMessage"]) == ("Failed", True)


def test_changes_that_a_variant_cannot_take_are_refused(endpoint):
    with pytest.raises(ClientError, match=r"ValidationException.*ServerlessUpdateConfig"):
        change(endpoint, ServerlessUpdateConfig={"MaxConcurrency": 2})
    twice = [{"VariantName": "AllTraffic", "DesiredWeight": weight} for weight in (1, 2)]
    with pytest.raises(ClientError, match=r"ValidationException.*Variant names must be unique: AllTraffic"):
        boto3.client("sagemaker").update_endpoint_weights_and_capacities(
            EndpointName=endpoint, DesiredWeightsAndCapacities=twice
        )


def change(endpoint: str, **wanted) -> None:
    boto3.client("sagemaker").update_endpoint_weights_and_capacities(
        EndpointName=endpoint, DesiredWeightsAndCapacities=[{"VariantName": "AllTraffic", **wanted}]
    )


@pytest.mark.parametrize(
    "parameter",
    ["TargetModel", "TargetContainerHostname", "EnableExplanations", "InferenceComponentName", "SessionId"],
)
def test_parameters_of_an_invocation_that_nothing_would_come_of_are_refused(endpoint, parameter):
    with pytest.raises(ClientError, match=f"ValidationError.*{parameter} cannot be used with endpoint {endpoint}"):
        boto3.client("sagemaker-runtime").invoke_endpoint(EndpointName=endpoint, Body=b"x", **{parameter: "abc"})


def test_why_a_change_failed_is_told_until_the_next_change(endpoint, bucket):
    s3 = boto3.client("s3")
    archive = s3.get_object(Bucket=bucket, Key="model.tar.gz")["Body"].read()
    s3.delete_object(Bucket=bucket, Key="model.tar.gz")
    change(endpoint, DesiredInstanceCount=2)
    failed = settled(endpoint)
    assert (failed["EndpointStatus"], "Failed to download model data" in failed["FailureReason"]) == ("InService", True)
    s3.put_object(Bucket=bucket, Key="model.tar.gz", Body=archive)
    change(endpoint, DesiredInstanceCount=2)
    done = settled(endpoint)
    assert (done["ProductionVariants"][0]["CurrentInstanceCount"], done.get("FailureReason")) == (2, None)


def test_instances_are_not_replaced_by_a_serverless_variant(configure, endpoint, model):
    serverless = {"ServerlessConfig": {"MemorySizeInMB": 1024, "MaxConcurrency": 1}}
    config = configure("", {"VariantName": "AllTraffic", "ModelName": model, **serverless})
    with pytest.raises(ClientError, match=r"ValidationException.*to a serverless endpoint"):
        boto3.client("sagemaker").update_endpoint(EndpointName=endpoint, EndpointConfigName=config)


def test_an_endpoint_that_is_being_deleted_is_not_changed(configure, monkeypatch):
    sagemaker, name, config = boto3.client("sagemaker"), unique("endpoint"), configure()
    sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=config)
    settled(name)
    begun, gate, close = threading.Event(), threading.Event(), LiveEndpoint.close
    monkeypatch.setattr(LiveEndpoint, "close", lambda endpoint: (begun.set(), gate.wait(20), close(endpoint)))
    with ThreadPoolExecutor(1) as pool:
        deletion = pool.submit(sagemaker.delete_endpoint, EndpointName=name)
        assert begun.wait(20)
        assert sagemaker.describe_endpoint(EndpointName=name)["EndpointStatus"] == "Deleting"
        for change in (
            lambda: sagemaker.delete_endpoint(EndpointName=name),
            lambda: sagemaker.update_endpoint(EndpointName=name, EndpointConfigName=config),
        ):
            with pytest.raises(ClientError, match=r"ValidationException.*Cannot update in-progress endpoint"):
                change()
        gate.set()
        deletion.result()


def test_the_name_of_an_endpoint_is_taken_whatever_its_case(endpoint, configure):
    with pytest.raises(ClientError, match="Cannot create already existing endpoint"):
        boto3.client("sagemaker").create_endpoint(EndpointName=endpoint.upper(), EndpointConfigName=configure())
