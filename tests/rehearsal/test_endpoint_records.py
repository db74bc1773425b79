"""Models, endpoint configurations and endpoints as records: their lists, their tags, and what is refused of them."""

import boto3
import pytest
from botocore.exceptions import ClientError

from tests.rehearsal.serving import IMAGE, pack_model, settled, unique


@pytest.fixture
def model(bucket, role):
    """The name of a model, with capitals in it."""
    sagemaker, name = boto3.client("sagemaker"), unique("Model")
    boto3.client("s3").put_object(Bucket=bucket, Key="model.tar.gz", Body=pack_model({"code/inference.py": SERVES}))
    container = {"Image": IMAGE, "ModelDataUrl": f"s3://{bucket}/model.tar.gz"}
    sagemaker.create_model(ModelName=name, ExecutionRoleArn=role, PrimaryContainer=container)
    yield name
    sagemaker.delete_model(ModelName=name)


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
    assert model in names(*asked, CreationTimeAfter=created, MaxResults=100)
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
    for gone in (f"{arn}x", arn.replace(":model/", ":pipeline/"), arn.replace(":model/", ":nothing/")):
        with pytest.raises(ClientError, match=r"ValidationException.*Could not find"):
            sagemaker.list_tags(ResourceArn=gone)


def test_the_name_of_an_endpoint_is_taken_whatever_its_case(endpoint, configure):
    with pytest.raises(ClientError, match="Cannot create already existing endpoint"):
        boto3.client("sagemaker").create_endpoint(EndpointName=endpoint.upper(), EndpointConfigName=configure())
