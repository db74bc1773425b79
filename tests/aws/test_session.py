"""Clients follow the environment, and no account id is shown whole."""

import pytest

from opslib.aws import session
from opslib.errors import AwsError, ConfigurationError


def test_a_client_is_made_once(rehearsal) -> None:
    assert session.client("s3") is session.client("s3")
    assert session.client("s3").meta.endpoint_url == rehearsal.endpoint_url


def test_a_changed_environment_gives_new_clients(rehearsal, monkeypatch) -> None:
    before = session.client("sts")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    assert session.client("sts") is not before
    assert session.client("sts").meta.region_name == session.region() == "eu-west-1"


def test_whereabouts_of_a_rehearsal(rehearsal) -> None:
    where = session.whereabouts()
    assert (where.kind, where.account, where.endpoint) == ("rehearsal", "000000000000", rehearsal.endpoint_url)
    assert "nothing is billed" in str(where)


def test_a_real_account_is_masked(rehearsal, monkeypatch) -> None:
    monkeypatch.setattr(session, "account_id", lambda: "123456789012")
    where = session.whereabouts()
    assert where.kind == "aws"
    assert where.account == "…9012"
    assert "12345678" not in str(where)
    assert "billed" in str(where)


def test_no_region_says_what_to_set(rehearsal, monkeypatch, tmp_path) -> None:
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    monkeypatch.delenv("AWS_REGION", raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(ConfigurationError, match="AWS_DEFAULT_REGION"):
        session.client("s3")


def test_an_unknown_profile_is_a_configuration_error(rehearsal, monkeypatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(ConfigurationError, match="nobody"):
        session.region()


def test_missing_credentials_say_what_to_do(rehearsal, monkeypatch, tmp_path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(AwsError, match="aws configure"):
        session.whereabouts()


def test_wrong_credentials_are_refused_in_aws_own_words(rehearsal, monkeypatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE")
    with pytest.raises(AwsError, match="InvalidClientTokenId"):
        session.whereabouts()


def test_retries_give_way_to_the_users_own_setting(monkeypatch) -> None:
    assert session.client_config("s3").retries == {"mode": "standard", "total_max_attempts": 5}
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    assert session.client_config("s3").retries is None


def test_a_client_outwaits_the_longest_answer() -> None:
    assert session.client_config("lambda").read_timeout > 900
    assert session.client_config("sagemaker-runtime").read_timeout >= 70


def test_the_sdk_session_stages_in_the_given_bucket(rehearsal, bucket) -> None:
    sdk = session.sagemaker_session(bucket, "some/prefix")
    assert sdk.default_bucket() == bucket
    assert sdk.default_bucket_prefix == "some/prefix"
    assert sdk.sagemaker_client.meta.endpoint_url == rehearsal.endpoint_url
