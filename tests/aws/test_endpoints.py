"""Endpoints come into service whole or not at all, and what they say of a photo is told in their own words."""

import json

import pytest

from opslib.aws import endpoints, predictions, roles, storage
from opslib.aws.endpoints import classify, deploy_model
from opslib.aws.inventory import KINDS
from opslib.aws.ledger import new_token
from opslib.aws.logs import endpoint_group, list_log_groups
from opslib.aws.session import client
from opslib.aws.sweeping import find_leftovers, sweep
from opslib.errors import AwsError, ConfigurationError, EndpointFailed, ModelRefused
from opslib.specs import EndpointSpec
from tests.aws.conftest import GOOD_METRICS, INFERENCE, put_archive, put_model

JPEG = b"\xff\xd8\xff a photo"


def test_an_endpoint_from_model_to_nothing(run, model_uri, tmp_path) -> None:
    looks: list[endpoints.EndpointProgress] = []
    role = roles.ensure_execution_role(run, run.name("data"))
    spec = EndpointSpec(url_hosts=("example.org", "example.com"), container="pytorch")
    name = deploy_model(run, spec, model_uri=model_uri, role=role, on_progress=looks.append)
    assert name == run.name("endpoint")
    assert looks[-1].status == "InService"
    assert looks[-1].elapsed_seconds < 10
    container = client("sagemaker").describe_model(ModelName=name)["PrimaryContainer"]
    assert container["Environment"]["SAGEMAKER_SUBMIT_DIRECTORY"] == "/opt/ml/model/code"
    assert container["Environment"]["OPSLIB_URL_HOSTS"] == "example.org,example.com"
    assert "/pytorch-inference:2.6" in container["Image"]

    prediction = classify(name, JPEG)
    assert prediction.label == "Affenpinscher"
    assert prediction.top == [("Affenpinscher", 0.75), ("Beagle", 0.25)]
    assert prediction.scores == [float(len(JPEG)), 0.5]
    (tmp_path / "photo.jpg").write_bytes(JPEG)
    assert classify(name, tmp_path / "photo.jpg") == prediction
    with pytest.raises(EndpointFailed, match=r"the model answered 415.*this is not a photo"):
        classify(name, b"nonsense")

    with pytest.raises(ConfigurationError, match="already"):
        deploy_model(run, EndpointSpec(container="pytorch"), model_uri=model_uri, role=role, name=name)
    endpoints.delete_endpoint(name)
    endpoints.delete_endpoint(name)
    assert {found.kind for found in find_leftovers(run)} == {"bucket", "role"}
    with pytest.raises(AwsError, match="asking endpoint"):
        classify(name, JPEG)


def test_a_model_that_does_not_load_leaves_nothing(run, model_uri) -> None:
    broken = put_model(run.name("data"), "broken.tar.gz", broken="yes")
    role = roles.ensure_execution_role(run, run.name("data"))
    with pytest.raises(EndpointFailed, match="did not come into service") as caught:
        deploy_model(run, EndpointSpec(container="pytorch"), model_uri=broken, role=role)
    assert "this model is broken" in caught.value.message  # its own log lines
    assert {found.kind for found in find_leftovers(run)} == {"bucket", "role"}
    assert list_log_groups(endpoint_group(run.name("endpoint"))) == []


def test_a_missing_model_leaves_nothing(run) -> None:
    bucket = storage.ensure_bucket(run)
    role = roles.ensure_execution_role(run, bucket)
    with pytest.raises(AwsError, match="there is no model"):
        deploy_model(run, EndpointSpec(container="pytorch"), model_uri=f"s3://{bucket}/none.tar.gz", role=role)
    assert {found.kind for found in find_leftovers(run)} == {"bucket", "role"}


@pytest.mark.parametrize(
    ("files", "why"),
    [
        ({"model.json": json.dumps({"metrics": GOOD_METRICS | {"valid_loss": 9.0}})}, "valid_loss 9.00 is above"),
        ({"model.json": json.dumps({"metrics": {}})}, "valid_loss, .* missing"),
        ({"model.json": json.dumps({"metrics": None})}, "no metrics"),
        ({"model.json": "[]"}, "no metrics"),
        ({"model.json": "{"}, "no metrics"),
        ({"model.json": " " * (5 << 20)}, "5242880 bytes"),
        ({"other/model.json": json.dumps({"metrics": GOOD_METRICS})}, r"holds no model\.json"),
    ],
)
def test_a_model_that_fails_the_gate_is_refused_before_anything_is_made(run, files: dict[str, str], why: str) -> None:
    bucket = storage.ensure_bucket(run)
    uri = put_archive(bucket, "refused.tar.gz", {"code/inference.py": INFERENCE, **files})
    with pytest.raises(ModelRefused, match=why):
        deploy_model(run, EndpointSpec(container="pytorch"), model_uri=uri, role="no role is needed to refuse")
    assert {resource.kind for resource in run.resources()} == {"bucket"}


def test_bytes_that_are_no_archive_are_refused(run) -> None:
    bucket = storage.ensure_bucket(run)
    whole = client("s3").get_object(Bucket=bucket, Key=storage.split_uri(put_model(bucket, "whole"))[1])["Body"].read()
    for body in (b"", b"nonsense", whole[: len(whole) // 2]):
        client("s3").put_object(Bucket=bucket, Key="broken.tar.gz", Body=body)
        with pytest.raises(ModelRefused, match="not a whole tar"):
            deploy_model(run, EndpointSpec(container="pytorch"), model_uri=f"s3://{bucket}/broken.tar.gz", role="none")


def test_the_gate_can_be_overruled(run) -> None:
    bucket = storage.ensure_bucket(run)
    theirs = put_archive(bucket, "theirs.tar.gz", {"code/inference.py": INFERENCE})
    role = roles.ensure_execution_role(run, bucket)
    name = deploy_model(run, EndpointSpec(container="pytorch"), model_uri=theirs, role=role, overrule_gate=True)
    assert endpoints.endpoint_exists(name)


def test_an_interrupted_wait_leaves_nothing(run, model_uri) -> None:
    def interrupt(_: endpoints.EndpointProgress) -> None:
        raise KeyboardInterrupt

    role = roles.ensure_execution_role(run, run.name("data"))
    with pytest.raises(KeyboardInterrupt):
        deploy_model(run, EndpointSpec(container="pytorch"), model_uri=model_uri, role=role, on_progress=interrupt)
    assert not endpoints.endpoint_exists(run.name("endpoint"))
    assert not KINDS["model"].exists(run.name("endpoint"))


@pytest.mark.parametrize("with_config", [True, False])
def test_a_name_that_is_somebody_elses_is_refused_and_survives_the_sweep(run, model_uri, with_config: bool) -> None:
    name, sagemaker = f"theirs-{new_token(8)}", client("sagemaker")
    role = roles.ensure_execution_role(run, run.name("data"))
    image = {"Image": "763104351884.dkr.ecr.us-east-1.amazonaws.com/pytorch-inference:2.6.0-cpu-py312"}
    sagemaker.create_model(ModelName=name, PrimaryContainer=image, ExecutionRoleArn=role)
    kind = "model"
    if with_config:
        variant = {"VariantName": "v", "ModelName": name, "InstanceType": "ml.m5.large", "InitialInstanceCount": 1}
        sagemaker.create_endpoint_config(EndpointConfigName=name, ProductionVariants=[variant])
        sagemaker.delete_model(ModelName=name)
        kind = "endpoint-config"
    with pytest.raises(ConfigurationError, match="already"):
        deploy_model(run, EndpointSpec(container="pytorch"), model_uri=model_uri, role=role, name=name)
    sweep(run)
    assert KINDS[kind].exists(name)
    KINDS[kind].delete(name)


def test_a_log_group_of_a_former_endpoint_stays_as_it_is(run, model_uri) -> None:
    name, logs = f"theirs-{new_token(8)}", client("logs")
    logs.create_log_group(logGroupName=endpoint_group(name))
    role = roles.ensure_execution_role(run, run.name("data"))
    deploy_model(run, EndpointSpec(container="pytorch"), model_uri=model_uri, role=role, name=name)
    assert sweep(run).leftovers == ()
    (group,) = logs.describe_log_groups(logGroupNamePrefix=endpoint_group(name))["logGroups"]
    assert "retentionInDays" not in group
    logs.delete_log_group(logGroupName=endpoint_group(name))


def test_a_name_that_is_too_long_is_refused(run) -> None:
    with pytest.raises(ConfigurationError, match="63"):
        deploy_model(run, EndpointSpec(container="pytorch"), model_uri="s3://b/k", role="r", name="x" * 64)


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (JPEG, "image/jpeg"),
        (b"\x89PNG\r\n\x1a\n...", "image/png"),
        (b"RIFF\x00\x00\x00\x00WEBPVP8 ", "image/webp"),
        (b"RIFF\x00\x00\x00\x00WAVEfmt ", "application/x-image"),
        (b"", "application/x-image"),
    ],
)
def test_content_types_are_seen_in_the_first_bytes(head: bytes, expected: str) -> None:
    assert predictions.content_type_of(head) == expected


@pytest.mark.parametrize("body", [b"<html>", b"[[1.0]]", b"null", json.dumps({"predicted_label": "x"}).encode()])
def test_another_models_answer_is_not_taken_for_ours(body: bytes) -> None:
    with pytest.raises(EndpointFailed, match=r"not one of inference\.py"):
        predictions.parse_prediction(body)


def test_a_missing_file_is_named(tmp_path) -> None:
    with pytest.raises(ConfigurationError, match=r"none\.jpg"):
        classify("x", tmp_path / "none.jpg")


def test_latency_is_the_median_of_the_calls(monkeypatch) -> None:
    clock = iter([0.0, 0.010, 0.0, 0.020, 0.0, 0.090])
    monkeypatch.setattr(predictions.time, "perf_counter", lambda: next(clock))
    calls: list[int] = []
    latency = predictions.measure_latency(lambda: calls.append(1), count=3)
    assert latency.p50_ms == pytest.approx(20)
    assert 20 < latency.p95_ms <= 90
    assert len(calls) == 4  # one to open the connection
    with pytest.raises(ConfigurationError):
        predictions.measure_latency(lambda: None, count=1)
