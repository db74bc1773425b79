"""What AWS says reaches the user with a hint and without account ids."""

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError

from opslib.aws.failures import explained, gone_is_fine, is_absent, masked
from opslib.errors import AwsError


def refusal(code: str, message: str = "no") -> ClientError:
    """Return an error as a client raises it."""
    return ClientError({"Error": {"Code": code, "Message": message}}, "Operation")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("NoSuchBucket", "The specified bucket does not exist"),
        ("404", "Not Found"),
        ("NoSuchEntity", "The role with name x cannot be found."),
        ("ResourceNotFoundException", "Function not found"),
        ("ResourceNotFound", "Requested resource not found."),
        ("ValidationException", 'Could not find endpoint "arn:aws:sagemaker:us-east-1:123456789012:endpoint/x".'),
        ("ValidationException", "Requested resource not found."),
    ],
)
def test_absent_things_are_recognised(code: str, message: str) -> None:
    assert is_absent(refusal(code, message))


def test_another_refusal_is_not_absence() -> None:
    assert not is_absent(refusal("ValidationException", "1 validation error detected"))
    assert not is_absent(refusal("AccessDenied", "not found"))


def test_explained_keeps_the_services_words_and_adds_a_hint() -> None:
    with pytest.raises(AwsError) as caught, explained("making bucket b"):
        raise refusal("AccessDenied", "User: arn:aws:iam::123456789012:user/me is not authorized")
    assert caught.value.message == "making bucket b: AccessDenied: User: arn:aws:iam::…9012:user/me is not authorized"
    assert "policies" in caught.value.hint
    assert isinstance(caught.value.__cause__, ClientError)


def test_an_unreachable_service_asks_for_the_network() -> None:
    with pytest.raises(AwsError) as caught, explained("asking"):
        raise EndpointConnectionError(endpoint_url="http://127.0.0.1:1")
    assert "AWS_ENDPOINT_URL" in caught.value.hint


def test_only_absence_is_passed_over() -> None:
    with gone_is_fine():
        raise refusal("NoSuchEntity")
    with pytest.raises(ClientError), gone_is_fine():
        raise refusal("AccessDenied")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("arn:aws:sagemaker:us-east-1:123456789012:endpoint/x", "arn:aws:sagemaker:us-east-1:…9012:endpoint/x"),
        ("Endpoint x of account 123456789012 not found.", "Endpoint x of account …9012 not found."),
        ("https://sqs.us-east-1.amazonaws.com/123456789012/queue", "https://sqs.us-east-1.amazonaws.com/…9012/queue"),
        ("line at 1700000000000, step 20261122", "line at 1700000000000, step 20261122"),
    ],
)
def test_account_ids_are_masked(text: str, expected: str) -> None:
    assert masked(text) == expected
