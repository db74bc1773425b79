"""A box for ec2train.py, from its price to its model, in a rehearsal where it really runs."""

import time

import boto3
import pytest
from botocore.exceptions import ClientError

from opslib.aws import instances, inventory, prices, roles, storage, sweeping
from opslib.aws.ledger import start_run
from opslib.errors import AwsError, ConfigurationError, TrainingFailed
from opslib.specs import InstanceSpec, TrainingSpec

SPEC = TrainingSpec("resnet50", epochs=2, batch_size=4)
BOX = InstanceSpec(max_minutes=5)


@pytest.fixture
def run(rehearsal, tmp_path):
    return start_run("instances", home=tmp_path / "runs")


def wait(name, output, seen=None):
    instances.wait_for_instance(name, output, on_progress=seen, poll_seconds=0.2)


STAND_IN = """import json, pathlib, sys
print("epoch=1 train_loss=1.5 valid_loss=1.25 train_accuracy=0.5 valid_accuracy=0.5", flush=True)
print("photos", sorted(path.name for path in pathlib.Path("photos").rglob("*.*")))
model = pathlib.Path(sys.argv[sys.argv.index("--model_dir") + 1])
model.mkdir()
(model / "model.pth").write_bytes(b"weights")
(model / "model.json").write_text(json.dumps({"arguments": sys.argv[1:]}))
print("epoch=1 train_loss=1.5 valid_loss=1.25 model=model/model.pth")
sys.exit(int("fail.jpg" in str(list(pathlib.Path("photos").rglob("*")))))
"""


@pytest.fixture
def start(run, tmp_path, monkeypatch):
    """Start a box whose ec2train.py is a stand-in of a few lines; the real one is run by the chapter's test."""
    script = tmp_path / "stand_in.py"
    script.write_text(STAND_IN)
    monkeypatch.setattr(instances, "_files", lambda _: [(instances.SCRIPT, script)])

    def starting(photo):
        (tmp_path / photo).write_bytes(b"photo")
        bucket = storage.ensure_bucket(run)
        uri = storage.upload_files([(f"train/a/{photo}", tmp_path / photo)], bucket, "photos")
        profile = roles.ensure_instance_profile(run, bucket, "photos")
        name = instances.start_instance(run, SPEC, BOX, photos_uri=uri, bucket=bucket, profile=profile)
        return name, instances.output_uri(run, bucket, name)

    yield starting
    assert not sweeping.sweep(run).leftovers


def test_a_box_trains_uploads_and_ends_itself(start, tmp_path):
    name, output = start("it's 1.jpg")
    (identifier,) = instances.find_instances(name)
    seen = []
    wait(name, output, seen.append)
    assert (seen[0].status, seen[-1].status, seen[-1].stage) == ("InProgress", "Completed", "terminated")
    assert [row["valid_loss"] for row in seen[-1].metrics] == [1.25]
    lines = [line for progress in seen for line in progress.lines]
    assert 'photos ["it\'s 1.jpg"]' in lines
    assert lines[-1] == "exit code 0"
    assert boto3.client("ec2").get_console_output(InstanceId=identifier)["Output"].splitlines() == lines
    results = instances.fetch_results(output, tmp_path / "model")
    assert (tmp_path / "model" / "model.pth").read_bytes() == b"weights"
    assert "--batch_size 4" in " ".join(results.description["arguments"])


def test_a_box_that_fails_says_why_and_is_gone(start):
    name, output = start("fail.jpg")
    with pytest.raises(TrainingFailed, match="exit code 1\nits last log lines:\nepoch=1 "):
        wait(name, output)
    assert not instances.instance_exists(name)


def start_plain(profile, script, **more):
    image = boto3.client("ssm").get_parameter(Name=instances.AMI_PARAMETER)["Parameter"]["Value"]
    request = {"ImageId": image, "MinCount": 1, "MaxCount": 1, "UserData": script, **more}
    if profile:
        request["IamInstanceProfile"] = {"Name": profile}
    return boto3.client("ec2").run_instances(**request)["Instances"][0]["InstanceId"]


def test_the_box_may_do_nothing_but_its_work(run, tmp_path):
    bucket = storage.ensure_bucket(run)
    boto3.client("s3").put_object(Bucket=bucket, Key="secret/key", Body=b"1")
    profile = roles.ensure_instance_profile(run, bucket, "photos")
    tries = [
        f"aws s3 cp s3://{bucket}/secret/key key && echo read",
        f"aws s3 cp --recursive s3://{bucket}/secret secret && echo listed",
        f"echo 1 > one; aws s3 cp one s3://{bucket}/photos/one && echo wrote",
        f"aws s3 cp one s3://{bucket}/{run.prefix}/instances/one && echo allowed",
    ]
    script = "\n".join(["#!/bin/bash", *tries, "shutdown -h now"])
    identifier = start_plain(profile, script, InstanceInitiatedShutdownBehavior="terminate")
    while instances.instance_exists(identifier):
        time.sleep(0.1)
    console = boto3.client("ec2").get_console_output(InstanceId=identifier)["Output"].splitlines()
    assert [word for word in ("read", "listed", "wrote", "allowed") if word in console] == ["allowed"], console
    sweeping.sweep(run)


def test_interrupting_the_notebook_ends_the_box(run, tmp_path, monkeypatch):
    bucket = storage.ensure_bucket(run)
    monkeypatch.setattr(instances, "user_data", lambda *_, **__: "#!/bin/bash\nsleep 1000\n")
    profile = roles.ensure_instance_profile(run, bucket, "photos")
    uri = f"s3://{bucket}/photos/"
    name = instances.start_instance(run, SPEC, BOX, photos_uri=uri, bucket=bucket, profile=profile)

    def interrupt(_progress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        wait(name, instances.output_uri(run, bucket, name), interrupt)
    assert not instances.instance_exists(name)
    again = instances.start_instance(run, SPEC, BOX, photos_uri=uri, bucket=bucket, profile=profile)
    assert {found.kind for found in sweeping.find_leftovers(run)} >= {"instance", "instance-profile", "role"}
    assert not sweeping.sweep(run).leftovers
    assert not instances.instance_exists(again)


def test_request_is_private_encrypted_and_ends(run, monkeypatch):
    disks = [
        {"DeviceName": "/dev/xvda", "Ebs": {"VolumeSize": 75}},
        {"DeviceName": "/dev/sdb", "VirtualName": "ephemeral0"},
    ]
    image = {"ImageId": "ami-1", "RootDeviceName": "/dev/xvda", "BlockDeviceMappings": disks}
    request = instances._request(InstanceSpec(volume_gib=40, spot=True), image, "profile", "#!/bin/bash")
    assert request["MetadataOptions"]["HttpTokens"] == "required"
    assert request["InstanceInitiatedShutdownBehavior"] == "terminate"
    (disk,) = request["BlockDeviceMappings"]
    assert (disk["DeviceName"], disk["Ebs"]["VolumeSize"], disk["Ebs"]["Encrypted"]) == ("/dev/xvda", 75, True)
    assert request["InstanceMarketOptions"]["MarketType"] == "spot"
    assert not {"KeyName", "SecurityGroupIds", "NetworkInterfaces"} & request.keys()


def test_quotes_in_addresses_stay_words(rehearsal):
    hostile = "s3://bucket/it's $(touch /tmp/x); rm"
    script = instances.user_data(SPEC, BOX, photos_uri=hostile, output=hostile)
    assert "\noutput='s3://bucket/it'\"'\"'s $(touch /tmp/x); rm'\n" in script


def test_stages_are_not_for_the_box(run):
    with pytest.raises(ConfigurationError, match="fine-tunes no stages"):
        instances.start_instance(run, TrainingSpec(unfreeze=1), BOX, photos_uri="s3://b/p/", bucket="b", profile="p")


def test_a_caller_needs_leave_to_start_boxes_and_to_pass_the_role(run):
    iam, bucket = boto3.client("iam"), storage.ensure_bucket(run)
    profile = roles.ensure_instance_profile(run, bucket, "photos")
    iam.create_user(UserName="starter")
    key = iam.create_access_key(UserName="starter")["AccessKey"]
    ec2 = boto3.client("ec2", aws_access_key_id=key["AccessKeyId"], aws_secret_access_key=key["SecretAccessKey"])
    request = {"ImageId": "ami-1", "MinCount": 1, "MaxCount": 1, "IamInstanceProfile": {"Name": profile}}
    with pytest.raises(ClientError, match=r"UnauthorizedOperation.*ec2:RunInstances"):
        ec2.run_instances(**request)
    policy = '{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "ec2:*", "Resource": "*"}]}'
    iam.put_user_policy(UserName="starter", PolicyName="ec2", PolicyDocument=policy)
    with pytest.raises(ClientError, match=r"iam:PassRole"):
        ec2.run_instances(**request)
    iam.delete_user_policy(UserName="starter", PolicyName="ec2")
    iam.delete_access_key(UserName="starter", AccessKeyId=key["AccessKeyId"])
    iam.delete_user(UserName="starter")
    sweeping.sweep(run)


def test_no_model_no_results(run, tmp_path):
    bucket = storage.ensure_bucket(run)
    with pytest.raises(AwsError, match="downloading"):
        instances.fetch_results(f"s3://{bucket}/none", tmp_path)
    sweeping.sweep(run)


def test_tagged_boxes_are_found_by_their_ids():
    arn = "arn:aws:ec2:us-east-1:000000000000:instance/i-0123456789abcdef0"
    assert inventory.parse_arn(arn) == ("instance", "i-0123456789abcdef0")


def test_prices_are_said_to_be_estimates_and_never_guessed():
    assert prices.price_of("m5.xlarge", 30).startswith("m5.xlarge for at most 30 minutes: $0.10 (estimate")
    assert "$1.15" in prices.price_of("ml.m5.xlarge", 60, instance_count=5)
    assert "price unknown" in prices.price_of("x9.huge", 30)
