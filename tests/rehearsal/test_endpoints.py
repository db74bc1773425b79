import io
import json
import time

import boto3
import psutil
import pytest
from botocore.exceptions import ClientError

from opslib.rehearsal.endpoints import instances as model_instances
from tests.rehearsal.serving import (
    IMAGE,
    INFERENCE,
    allow,
    client_of,
    is_running,
    log_lines,
    make_role,
    pack_model,
    settled,
    unique,
    until,
)

MISSED_PING = (
    "The primary container for production variant AllTraffic did not pass the ping health check. "
    "Please check CloudWatch logs for this endpoint."
)


@pytest.fixture
def make_model(rehearsal, bucket, role):
    """Return a function that uploads a model.tar.gz and creates a model of it; returns the model's name."""
    made = []

    def make(files=None, *, content: bytes = b"", role_arn: str = role, **container) -> str:
        name = unique("model")
        body = content or pack_model(files or {"code/inference.py": INFERENCE})
        boto3.client("s3").put_object(Bucket=bucket, Key=f"{name}/model.tar.gz", Body=body)
        definition = {"Image": IMAGE, "ModelDataUrl": f"s3://{bucket}/{name}/model.tar.gz", **container}
        boto3.client("sagemaker").create_model(ModelName=name, ExecutionRoleArn=role_arn, PrimaryContainer=definition)
        made.append(name)
        return name

    yield make
    for name in made:
        boto3.client("sagemaker").delete_model(ModelName=name)


@pytest.fixture
def deploy(make_model):
    """Return a function that makes an endpoint of a model and waits until it has settled; returns its name."""
    sagemaker, made = boto3.client("sagemaker"), []

    def make(model: str = "", *, wait: bool = True, **variant) -> str:
        name = unique("endpoint")
        create_config(name, model or make_model(), **variant)
        sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=name)
        made.append(name)
        if wait:
            settled(name)
        return name

    yield make
    for name in made:
        settled(name)
        sagemaker.delete_endpoint(EndpointName=name)
        sagemaker.delete_endpoint_config(EndpointConfigName=name)


def create_config(name: str, model: str, **variant) -> None:
    settings = {
        "VariantName": "AllTraffic",
        "ModelName": model,
        "InstanceType": "ml.m5.large",
        "InitialInstanceCount": 1,
    }
    boto3.client("sagemaker").create_endpoint_config(
        EndpointConfigName=name, ProductionVariants=[{**settings, **variant}]
    )


def ask(endpoint: str, body: bytes = b"photo", content_type: str = "image/jpeg", **more) -> dict:
    reply = boto3.client("sagemaker-runtime").invoke_endpoint(
        EndpointName=endpoint, Body=body, ContentType=content_type, **more
    )
    return json.loads(reply["Body"].read())


def refusal(endpoint: str, body: bytes = b"photo", content_type: str = "image/jpeg") -> dict:
    with pytest.raises(ClientError) as caught:
        ask(endpoint, body, content_type)
    return caught.value.response


def test_an_endpoint_comes_into_service_and_answers(deploy):
    sagemaker, started = boto3.client("sagemaker"), time.monotonic()
    name = deploy(wait=False)
    description = sagemaker.describe_endpoint(EndpointName=name)
    assert description["EndpointStatus"] == "Creating"
    assert description["EndpointArn"].endswith(f":000000000000:endpoint/{name}")
    description = settled(name)
    assert time.monotonic() - started < 10
    assert description["EndpointStatus"] == "InService"
    [variant] = description["ProductionVariants"]
    assert (variant["CurrentInstanceCount"], variant["DesiredInstanceCount"], variant["CurrentWeight"]) == (1, 1, 1.0)
    reply = boto3.client("sagemaker-runtime").invoke_endpoint(EndpointName=name, Body=b"abc", ContentType="image/jpeg")
    assert reply["ContentType"] == "application/json"
    assert reply["InvokedProductionVariant"] == "AllTraffic"
    answer = json.loads(reply["Body"].read())
    assert (answer["type"], answer["length"], answer["accept"]) == ("bytes", 3, "application/json")
    assert ask(name, b"{}", "application/json")["type"] == "str"
    assert ask(name, Accept="application/json;verbose")["accept"] == "application/json;verbose"


def test_the_container_has_the_roles_credentials_and_nothing_of_the_users(deploy, make_model, monkeypatch):
    monkeypatch.setenv("SECRET_OF_THE_USER", "x")
    variables = ask(deploy(make_model(Environment={"OPSLIB_URL_HOSTS": "photos.example"})))["variables"]
    assert {"AWS_SESSION_TOKEN", "AWS_REGION", "SM_MODEL_DIR", "SM_NUM_CPUS", "OPSLIB_URL_HOSTS"} <= set(variables)
    assert "SECRET_OF_THE_USER" not in variables


def test_what_is_not_in_service_is_not_found(deploy):
    assert refusal("nobody")["Error"] == {
        "Code": "ValidationError",
        "Message": "Endpoint nobody of account 000000000000 not found.",
    }
    name = deploy(wait=False)
    assert refusal(name)["Error"]["Message"] == f"Endpoint {name} of account 000000000000 not found."
    with pytest.raises(ClientError, match="Cannot update in-progress endpoint"):
        boto3.client("sagemaker").delete_endpoint(EndpointName=name)


def test_names_are_taken_once_and_found_or_refused_in_awss_words(deploy, make_model):
    sagemaker, name, model = boto3.client("sagemaker"), deploy(), make_model()
    with pytest.raises(ClientError, match="Cannot create already existing endpoint "):
        sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=name)
    with pytest.raises(ClientError, match="Cannot create already existing endpoint configuration"):
        create_config(name, model)
    with pytest.raises(ClientError, match="Could not find endpoint configuration"):
        sagemaker.create_endpoint(EndpointName=unique("endpoint"), EndpointConfigName="nothing")
    with pytest.raises(ClientError, match="Could not find model"):
        create_config(unique("config"), "nothing")
    for operation, parameter in (("endpoint", "EndpointName"), ("endpoint_config", "EndpointConfigName")):
        with pytest.raises(ClientError, match=r"ValidationException.*Could not find"):
            getattr(sagemaker, f"describe_{operation}")(**{parameter: "nothing"})


@pytest.mark.parametrize(
    ("content_type", "status", "side", "first_line"),
    [
        ("text/refused", 415, "client", "this type is not served"),
        ("text/broken", 500, "server", "broken on purpose"),
        ("text/looks-refused", 500, "server", "with a status, but not of the toolkit's class"),
    ],
)
def test_exceptions_become_model_errors(deploy, content_type, status, side, first_line):
    name = deploy()
    response = refusal(name, content_type=content_type)
    assert response["ResponseMetadata"]["HTTPStatusCode"] == 424
    assert response["Error"]["Code"] == "ModelError"
    assert response["Error"]["Message"].startswith(f'Received {side} error ({status}) from primary with message "')
    assert response["OriginalStatusCode"] == status
    assert response["OriginalMessage"].splitlines()[0] == first_line
    assert response["LogStreamArn"].endswith(f":log-group:/aws/sagemaker/Endpoints/{name}")
    assert ask(name)["length"] == 5
    assert until(lambda: any("Traceback" in line for line in log_lines(f"/aws/sagemaker/Endpoints/{name}")))


def test_a_body_of_more_than_25_megabytes_is_refused(deploy):
    name = deploy()
    response = refusal(name, b"x" * 26_214_401)
    assert response["ResponseMetadata"]["HTTPStatusCode"] == 413
    assert "HTTP content length exceeded 26214400 bytes" in response["Error"]["Message"]
    assert ask(name, b"x" * 26_214_400)["length"] == 26_214_400


def test_a_model_that_cannot_be_loaded_fails_the_endpoint(deploy, make_model):
    script = "def model_fn(model_dir):\n    raise RuntimeError('no weights here')\n"
    name = deploy(make_model({"code/inference.py": script}))
    description = boto3.client("sagemaker").describe_endpoint(EndpointName=name)
    assert (description["EndpointStatus"], description["FailureReason"]) == ("Failed", MISSED_PING)
    assert any("no weights here" in line for line in log_lines(f"/aws/sagemaker/Endpoints/{name}"))


@pytest.mark.parametrize(
    "content",
    [b"this is no archive", pack_model({"../outside.py": "x = 1"})],
    ids=["not a tar.gz", "leaves its folder"],
)
def test_an_archive_that_cannot_be_unpacked_fails_the_endpoint(deploy, make_model, content):
    description = settled(deploy(make_model(content=content)))
    assert description["EndpointStatus"] == "Failed"
    assert description["FailureReason"].startswith("Failed to extract model data archive")


def test_a_model_whose_data_the_role_cannot_read_is_refused(make_model, bucket):
    stranger = make_role("sagemaker.amazonaws.com", allow("logs:*"))
    with pytest.raises(ClientError, match="Could not access model data at s3://"):
        make_model(role_arn=stranger)
    with pytest.raises(ClientError, match="Could not access model data at s3://"):
        make_model(ModelDataUrl=f"s3://{bucket}/nothing/model.tar.gz")
    with pytest.raises(ClientError, match="ValidationException"):
        make_model(role_arn=make_role("lambda.amazonaws.com", allow("*")))


def test_without_permission_to_log_the_endpoint_serves_and_no_line_is_kept(deploy, make_model):
    name = deploy(make_model(role_arn=make_role("sagemaker.amazonaws.com", allow("s3:GetObject"))))
    assert ask(name)["length"] == 5
    assert log_lines(f"/aws/sagemaker/Endpoints/{name}") == []


def test_every_instance_is_a_process_and_none_outlives_the_endpoint(deploy, rehearsal):
    name = deploy(InitialInstanceCount=2)
    pids = set()
    until(lambda: pids.add(ask(name)["pid"]) or len(pids) == 2)
    sagemaker = boto3.client("sagemaker")
    sagemaker.update_endpoint_weights_and_capacities(
        EndpointName=name, DesiredWeightsAndCapacities=[{"VariantName": "AllTraffic", "DesiredInstanceCount": 1}]
    )
    [variant] = settled(name)["ProductionVariants"]
    assert variant["CurrentInstanceCount"] == 1
    assert sum(is_running(pid) for pid in pids) == 1
    other = deploy()
    pid = ask(other)["pid"]
    parent = psutil.Process(pid).parent().pid
    sagemaker.delete_endpoint(EndpointName=other)
    assert not is_running(pid)
    assert not is_running(parent)
    with pytest.raises(ClientError, match="Could not find endpoint"):
        sagemaker.describe_endpoint(EndpointName=other)
    sagemaker.create_endpoint(EndpointName=other, EndpointConfigName=other)


def test_a_container_that_ends_is_replaced(deploy):
    name = deploy()
    pid = ask(name)["pid"]
    response = refusal(name, content_type="text/exit")
    assert (response["Error"]["Code"], response["OriginalStatusCode"]) == ("ModelError", 503)
    assert until(lambda: answers(name))["pid"] != pid


def test_a_container_that_hangs_is_given_up_and_replaced(deploy, monkeypatch):
    monkeypatch.setattr(model_instances, "INVOCATION_SECONDS", 1.0)
    name = deploy()
    response = refusal(name, content_type="text/hang")
    assert response["OriginalStatusCode"] == 0
    assert "timed out while waiting for a response from container" in response["OriginalMessage"]
    assert until(lambda: answers(name))["served"] == 1


def answers(endpoint: str) -> dict | None:
    try:
        return ask(endpoint)
    except boto3.client("sagemaker-runtime").exceptions.ModelError:
        return None


def test_an_update_takes_over_without_a_gap_and_a_bad_one_leaves_the_old_in_service(deploy, make_model):
    sagemaker, name, config, bad = boto3.client("sagemaker"), deploy(), unique("config"), unique("config")
    pid = ask(name)["pid"]
    create_config(bad, make_model({"code/inference.py": "def model_fn(model_dir):\n    raise RuntimeError\n"}))
    sagemaker.update_endpoint(EndpointName=name, EndpointConfigName=bad)
    assert ask(name)["pid"] == pid
    description = settled(name)
    assert (description["EndpointStatus"], description["FailureReason"]) == ("InService", MISSED_PING)
    assert description["EndpointConfigName"] == name
    create_config(config, make_model(), VariantName="Next")
    sagemaker.update_endpoint(EndpointName=name, EndpointConfigName=config)
    assert ask(name)["pid"] == pid
    description = settled(name)
    assert (description["EndpointConfigName"], description.get("FailureReason")) == (config, None)
    assert ask(name)["pid"] != pid
    until(lambda: not is_running(pid))


def test_traffic_follows_the_weights_and_the_target(deploy, make_model):
    sagemaker, runtime = boto3.client("sagemaker"), boto3.client("sagemaker-runtime")
    name, model = unique("endpoint"), make_model()
    shared = {"ModelName": model, "InstanceType": "ml.m5.large", "InitialInstanceCount": 1}
    variants = [
        {"VariantName": "Old", "InitialVariantWeight": 0.0, **shared},
        {"VariantName": "New", "InitialVariantWeight": 1.0, **shared},
    ]
    sagemaker.create_endpoint_config(EndpointConfigName=name, ProductionVariants=variants)
    sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=name)
    settled(name)
    replies = [runtime.invoke_endpoint(EndpointName=name, Body=b"x") for _ in range(8)]
    assert {reply["InvokedProductionVariant"] for reply in replies} == {"New"}
    targeted = runtime.invoke_endpoint(EndpointName=name, Body=b"x", TargetVariant="Old")
    assert targeted["InvokedProductionVariant"] == "Old"
    sagemaker.delete_endpoint(EndpointName=name)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"ServerlessConfig": {"MemorySizeInMB": 2048, "MaxConcurrency": 1}}, "ServerlessConfig"),
        ({"InstanceType": "ml.none.large"}, "enum value set"),
    ],
)
def test_what_cannot_be_rehearsed_is_refused(make_model, change, words):
    with pytest.raises(ClientError, match=words):
        create_config(unique("config"), make_model(), **change)


def test_images_that_the_model_server_does_not_stand_for_are_refused(make_model):
    with pytest.raises(ClientError, match=r"Requested image .* not found"):
        make_model(Image="763104351884.dkr.ecr.us-east-1.amazonaws.com/tensorflow-inference:2.16-cpu")


def test_invoking_needs_permission_for_exactly_that_endpoint(deploy):
    name, other = deploy(), deploy()
    arn = boto3.client("sagemaker").describe_endpoint(EndpointName=name)["EndpointArn"]
    caller = client_of("sagemaker-runtime", allow("sagemaker:InvokeEndpoint", resource=arn))
    assert json.loads(caller.invoke_endpoint(EndpointName=name, Body=b"x")["Body"].read())["length"] == 1
    with pytest.raises(ClientError, match="is not authorized to perform: sagemaker:InvokeEndpoint") as caught:
        caller.invoke_endpoint(EndpointName=other, Body=b"x")
    assert caught.value.response["Error"]["Code"] == "AccessDeniedException"


def test_requirements_that_are_met_cost_nothing_and_others_are_pips(deploy, make_model):
    name = deploy(
        make_model({"code/inference.py": INFERENCE, "code/requirements.txt": "psutil>=1  # finds processes\n"})
    )
    lines = log_lines(f"/aws/sagemaker/Endpoints/{name}")
    assert "Requirement already satisfied: psutil>=1" in lines
    files = {"code/inference.py": INFERENCE, "code/requirements.txt": "./not-a-package\n"}
    name = deploy(make_model(files))
    assert settled(name)["FailureReason"] == MISSED_PING
    assert any("not-a-package" in line for line in log_lines(f"/aws/sagemaker/Endpoints/{name}"))


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")  # what AWS's container serves by default, deprecated or not
def test_a_torchscript_model_without_a_script_is_served_by_the_default_functions(deploy, make_model):
    import torch

    saved = io.BytesIO()
    torch.jit.save(torch.jit.trace(torch.nn.Linear(3, 2), torch.zeros(1, 3)), saved)
    started = time.monotonic()
    name = deploy(make_model({"model.pt": saved.getvalue()}))
    assert time.monotonic() - started < 20  # alone on two cores: 4
    scores = ask(name, b"[[1, 2, 3]]", "application/json")
    assert [len(row) for row in scores] == [2]
    assert refusal(name, b"x", "application/unknown")["OriginalStatusCode"] == 500  # the toolkit's own answer
