"""Application Auto Scaling through boto3, of an endpoint that really has instances."""

import boto3
import pytest
from botocore.exceptions import ClientError

from tests.rehearsal.serving import settled, unique, until
from tests.rehearsal.test_endpoints import create_config, make_model  # noqa: F401 - the latter is a fixture

DIMENSION = "sagemaker:variant:DesiredInstanceCount"


def test_an_endpoint_is_scaled_and_its_deletion_takes_everything_along(make_model):  # noqa: F811 - the fixture
    endpoint, scaling = unique("endpoint"), boto3.client("application-autoscaling")
    create_config(endpoint, make_model())
    boto3.client("sagemaker").create_endpoint(EndpointName=endpoint, EndpointConfigName=endpoint)
    settled(endpoint)
    target = {
        "ServiceNamespace": "sagemaker",
        "ResourceId": f"endpoint/{endpoint}/variant/AllTraffic",
        "ScalableDimension": DIMENSION,
    }
    scaling.register_scalable_target(**target, MinCapacity=1, MaxCapacity=2, Tags={"run": "test"})
    policy = scaling.put_scaling_policy(
        **target,
        PolicyName="invocations",
        PolicyType="TargetTrackingScaling",
        TargetTrackingScalingPolicyConfiguration={
            "TargetValue": 30.0,
            "PredefinedMetricSpecification": {"PredefinedMetricType": "SageMakerVariantInvocationsPerInstance"},
            "ScaleOutCooldown": 30,
            "ScaleInCooldown": 30,
        },
    )
    assert len(policy["Alarms"]) == 2
    (shown,) = scaling.describe_scaling_policies(**target)["ScalingPolicies"]
    assert shown["TargetTrackingScalingPolicyConfiguration"]["TargetValue"] == 30
    (registered,) = scaling.describe_scalable_targets(ServiceNamespace="sagemaker", ResourceIds=[target["ResourceId"]])[
        "ScalableTargets"
    ]
    tags = scaling.list_tags_for_resource(ResourceARN=registered["ScalableTargetARN"])["Tags"]
    assert tags == {"run": "test"}
    scaling.register_scalable_target(**target, MinCapacity=2)
    (activity,) = scaling.describe_scaling_activities(**target)["ScalingActivities"]
    assert (activity["Cause"], activity["StatusCode"]) == ("minimum capacity was set to 2", "InProgress")
    assert settled(endpoint)["ProductionVariants"][0]["CurrentInstanceCount"] == 2
    until(lambda: "Successful" in scaling.describe_scaling_activities(**target)["ScalingActivities"][0]["StatusCode"])
    boto3.client("sagemaker").delete_endpoint(EndpointName=endpoint)
    boto3.client("sagemaker").delete_endpoint_config(EndpointConfigName=endpoint)
    until(lambda: not scaling.describe_scalable_targets(ServiceNamespace="sagemaker")["ScalableTargets"])
    with pytest.raises(ClientError, match="No scalable target registered for service namespace: sagemaker"):
        scaling.deregister_scalable_target(**target)


def test_a_variant_on_burstable_instances_is_refused(make_model):  # noqa: F811 - the fixture
    endpoint, sagemaker = unique("endpoint"), boto3.client("sagemaker")
    create_config(endpoint, make_model(), InstanceType="ml.t2.medium")
    sagemaker.create_endpoint(EndpointName=endpoint, EndpointConfigName=endpoint)
    settled(endpoint)
    with pytest.raises(ClientError, match=r"You cannot register a variant with ml\.t2\.medium instance type"):
        boto3.client("application-autoscaling").register_scalable_target(
            ServiceNamespace="sagemaker",
            ResourceId=f"endpoint/{endpoint}/variant/AllTraffic",
            ScalableDimension=DIMENSION,
            MinCapacity=1,
            MaxCapacity=2,
        )
    sagemaker.delete_endpoint(EndpointName=endpoint)
    sagemaker.delete_endpoint_config(EndpointConfigName=endpoint)
