"""What AWS would refuse is refused, in AWS's words; replies fit AWS's models."""

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError
from moto.core.utils import get_service_model

from opslib.rehearsal.calls import ServiceError
from opslib.rehearsal.gateway.validation import reply_faults, validate_request, without_absent

SAGEMAKER = get_service_model("sagemaker")


def refusal(operation: str, **params) -> ServiceError:
    with pytest.raises(ServiceError) as refused:
        validate_request("sagemaker", SAGEMAKER.operation_model(operation).input_shape, params)
    return refused.value


def test_a_missing_member_is_named_as_aws_names_it():
    error = refusal("StopTrainingJob")
    assert error.code == "ValidationException"
    assert error.message == (
        "1 validation error detected: Value null at 'trainingJobName' failed to satisfy constraint: "
        "Member must not be null"
    )


def test_every_failed_constraint_is_listed():
    error = refusal("ListTrainingJobs", MaxResults=101, NameContains="a_b", StatusEquals="Done")
    assert error.message.startswith("3 validation errors detected: ")
    assert (
        "Value '101' at 'maxResults' failed to satisfy constraint: Member must have value less than or equal to 100"
        in (error.message)
    )
    assert "Value 'a_b' at 'nameContains' failed to satisfy constraint: Member must satisfy regular expression" in (
        error.message
    )
    assert "Member must satisfy enum value set: [InProgress, Completed, Failed, Stopping, Stopped" in error.message


def test_members_of_lists_are_numbered():
    error = refusal("AddTags", ResourceArn="arn:aws:sagemaker:us-east-1:000000000000:model/a", Tags=[{"Key": "a"}])
    assert "Value null at 'tags.1.member.value'" in error.message


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"TrainingJobName": 5}, "TrainingJobName is of type int; the service expects string"),
        ({"TrainingJobname": "a"}, 'Unknown parameter in input: "TrainingJobname", must be one of: TrainingJobName'),
    ],
)
def test_other_types_and_other_names_are_refused(params, words):
    error = refusal("StopTrainingJob", **params)
    assert error.code == "SerializationException"
    assert words in error.message


def test_the_gate_refuses_what_a_careless_client_sends(rehearsal):
    client = boto3.client("sagemaker", config=Config(parameter_validation=False))
    with pytest.raises(ClientError, match=r"ValidationException.*Member must not be null"):
        client.stop_training_job()


def test_a_reply_that_is_not_awss_is_found_out():
    shape = SAGEMAKER.operation_model("DescribeTrainingJob").output_shape
    faults = reply_faults(shape, {"TrainingJobName": "a", "Colour": "red", "TrainingTimeInSeconds": "7"})
    assert any("Colour" in fault for fault in faults)
    assert any("TrainingTimeInSeconds is of type str" in fault for fault in faults)
    assert any("'trainingJobArn'" in fault for fault in faults)


def test_absent_structures_are_left_out_and_empty_lists_kept():
    shape = SAGEMAKER.operation_model("DescribeModel").output_shape
    reply = {"ModelName": "a", "VpcConfig": {}, "PrimaryContainer": {"Image": "i", "ImageConfig": {}}, "Containers": []}
    assert without_absent(shape, reply) == {"ModelName": "a", "PrimaryContainer": {"Image": "i"}, "Containers": []}
