"""A sweep takes what the run made, nothing else, and says what it could not take."""

import shutil

import pytest

from opslib.aws import endpoints, inventory, logs, roles, storage
from opslib.aws.inventory import KINDS, parse_arn
from opslib.aws.ledger import Run, new_token, open_run, start_run
from opslib.aws.session import client
from opslib.aws.sweeping import Found, find_leftovers, sweep
from opslib.errors import AwsError, ConfigurationError

LOOK = [{"Effect": "Allow", "Action": "sts:GetCallerIdentity", "Resource": "*"}]


def furnish(run: Run) -> set[Found]:
    """Make a bucket, a role and a log group; return them."""
    bucket = storage.ensure_bucket(run)
    client("s3").put_object(Bucket=bucket, Key="photos/a.jpg", Body=b"x")
    roles.ensure_role(run, run.name("worker"), "lambda.amazonaws.com", LOOK)
    group = logs.function_group(run.name("function"))
    logs.ensure_log_group(run, group)
    return {Found("bucket", bucket), Found("role", run.name("worker")), Found("log-group", group)}


def test_a_sweep_takes_everything_once(run) -> None:
    made = furnish(run)
    assert set(find_leftovers(run)) == made
    report = sweep(run)
    assert set(report.deleted) == made
    assert (report.leftovers, report.failures) == ((), ())
    assert f"run {run.run_id}: 3 deleted, 0 left" in str(report)
    again = sweep(run.run_id, run.directory.parent)
    assert (again.deleted, again.leftovers, again.failures) == ((), (), ())


def test_a_sweep_needs_no_ledger(run) -> None:
    made = furnish(run)
    shutil.rmtree(run.directory)
    assert set(sweep(open_run(run.run_id, run.directory.parent)).deleted) == made


def test_another_runs_things_stay(run, tmp_path) -> None:
    neighbour = start_run(run_id=f"{run.run_id}-2", home=tmp_path / "other")
    theirs = furnish(neighbour)
    furnish(run)
    sweep(run)
    assert set(find_leftovers(neighbour)) == theirs
    assert sweep(neighbour).leftovers == ()


def test_what_was_written_down_but_never_made_is_no_trouble(run) -> None:
    for kind in KINDS:
        run.record(kind, f"s3://{run.name('no')}/x/" if kind == "prefix" else run.name("no"))
    report = sweep(run)
    assert (report.deleted, report.leftovers, report.failures) == ((), (), ())


def test_in_a_bucket_of_the_users_only_the_runs_prefix_goes(run, bucket) -> None:
    storage.ensure_bucket(run, bucket)
    for key in ("photos/a.jpg", f"{run.prefix}/training/model.tar.gz"):
        client("s3").put_object(Bucket=bucket, Key=key, Body=b"x")
    assert sweep(run).deleted == (Found("prefix", f"s3://{bucket}/{run.prefix}/"),)
    assert list(storage.list_objects(bucket, "")) == ["photos/a.jpg"]


def test_one_thing_that_stays_does_not_keep_the_rest(run, monkeypatch) -> None:
    made = furnish(run)
    worker = Found("role", run.name("worker"))

    def refuse(name: str) -> None:
        raise AwsError(f"deleting role {name}: DeleteConflict: arn:aws:iam::…9012:role/x is in use")

    with monkeypatch.context() as patch:
        patch.setitem(KINDS, "role", inventory.Kind(refuse, KINDS["role"].exists, KINDS["role"].find))
        report = sweep(run)
    assert set(report.deleted) == made - {worker}
    assert report.leftovers == (worker,)
    assert "DeleteConflict" in report.failures[0]
    assert f"LEFT     role {worker.identifier}" in str(report)


def test_what_cannot_be_asked_for_counts_as_left(run, monkeypatch) -> None:
    run.record("role", run.name("worker"))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE")
    report = sweep(run)
    assert report.leftovers == (Found("role", run.name("worker")),)
    assert any("InvalidClientTokenId" in failure for failure in report.failures)
    monkeypatch.undo()


def test_everything_of_an_endpoint_is_found_by_name(run, model_uri) -> None:
    role = roles.ensure_execution_role(run, run.name("data"))
    name = endpoints.deploy_model(run, endpoints.EndpointSpec(container="pytorch"), model_uri=model_uri, role=role)
    for kind in ("endpoint", "endpoint-config", "model"):
        assert KINDS[kind].find(run.name_prefix) == [name]
    shutil.rmtree(run.directory)
    report = sweep(run)
    assert {found.kind for found in report.deleted} == {
        "endpoint", "endpoint-config", "model", "log-group", "role", "bucket",
    }  # fmt: skip
    assert [found.kind for found in report.deleted] == sorted((f.kind for f in report.deleted), key=list(KINDS).index)


def test_a_model_that_the_endpoint_only_borrows_stays(run, model_uri) -> None:
    role, sagemaker, theirs = (
        roles.ensure_execution_role(run, run.name("data")),
        client("sagemaker"),
        f"x-{new_token()}",
    )
    image = "763104351884.dkr.ecr.us-east-1.amazonaws.com/pytorch-inference:2.6.0-cpu-py312"
    container = {"Image": image, "ModelDataUrl": model_uri}
    sagemaker.create_model(ModelName=theirs, PrimaryContainer=container, ExecutionRoleArn=role)
    variant = {"VariantName": "v", "ModelName": theirs, "InstanceType": "ml.m5.large", "InitialInstanceCount": 1}
    sagemaker.create_endpoint_config(EndpointConfigName=theirs, ProductionVariants=[variant])
    sagemaker.create_endpoint(EndpointName=run.name("endpoint"), EndpointConfigName=theirs, Tags=run.tags)
    assert Found("endpoint", run.name("endpoint")) in sweep(run).deleted
    for kind in ("endpoint-config", "model"):
        assert KINDS[kind].exists(theirs)
        KINDS[kind].delete(theirs)


@pytest.mark.parametrize(
    ("variable", "value"), [("AWS_DEFAULT_REGION", "eu-west-1"), ("AWS_ENDPOINT_URL", "http://127.0.0.1:9")]
)
def test_another_aws_than_the_runs_own_is_not_asked(run, monkeypatch, variable: str, value: str) -> None:
    furnish(run)
    with monkeypatch.context() as patch:
        patch.setenv(variable, value)  # where nothing would be found, and everything be taken for gone
        with pytest.raises(ConfigurationError, match=f"{run.run_id} made things in us-east-1"):
            sweep(run)


def test_not_a_run_id() -> None:
    with pytest.raises(ConfigurationError, match="run id"):
        sweep("../..")


@pytest.mark.parametrize(
    ("arn", "expected"),
    [
        ("arn:aws:s3:::photos", ("bucket", "photos")),
        ("arn:aws:logs:us-east-1:123456789012:log-group:/aws/lambda/f", ("log-group", "/aws/lambda/f")),
        ("arn:aws:logs:us-east-1:123456789012:log-group:/aws/lambda/f:*", ("log-group", "/aws/lambda/f")),
        ("arn:aws:lambda:us-east-1:123456789012:function:f", ("function", "f")),
        ("arn:aws:sagemaker:us-east-1:123456789012:endpoint-config/e", ("endpoint-config", "e")),
        ("arn:aws:sagemaker:us-east-1:123456789012:training-job/j", ("training-job", "j")),
        ("arn:aws:sagemaker:us-east-1:123456789012:hyper-parameter-tuning-job/t", ("tuning-job", "t")),
        ("arn:aws:sqs:us-east-1:123456789012:q", ("resource", "arn:aws:sqs:us-east-1:123456789012:q")),
    ],
)
def test_arns_are_told_apart(arn: str, expected: tuple[str, str]) -> None:
    assert parse_arn(arn) == expected


def test_an_unknown_tagged_resource_is_shown_without_its_account() -> None:
    assert str(Found("resource", "arn:aws:sqs:us-east-1:123456789012:q")) == "resource arn:aws:sqs:us-east-1:…9012:q"
