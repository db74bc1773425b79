"""Training jobs through boto3: what AWS documents of the container, the statuses, the artifacts and the failures."""

import json
import re
from itertools import pairwise

import boto3
import psutil
import pytest
from botocore.exceptions import ClientError

from tests.rehearsal.jobs import LOG_GROUP, Job, wait_until


@pytest.fixture
def job(role, bucket) -> Job:
    return Job(role, bucket)


def put(bucket: str, **objects: str) -> None:
    for key, text in objects.items():
        boto3.client("s3").put_object(Bucket=bucket, Key=key.replace("__", "/"), Body=text.encode())


def refused(call, *arguments, **params) -> tuple[str, str]:
    with pytest.raises(ClientError) as error:
        call(*arguments, **params)
    return error.value.response["Error"]["Code"], error.value.response["Error"]["Message"]


def test_a_job_gets_its_input_and_leaves_its_output(job, bucket):
    put(bucket, photos__train__a="A", photos__train__b="B", photos__c="C", photoshop="not one of them")
    script = """
import json, os, pathlib, sys
root = pathlib.Path(os.environ["SM_CHANNEL_TRAINING"])
found = {str(p.relative_to(root)): p.read_text() for p in root.rglob("*") if p.is_file()}
model, output = pathlib.Path(os.environ["SM_MODEL_DIR"]), pathlib.Path(os.environ["SM_OUTPUT_DATA_DIR"])
(model / "code").mkdir()
(model / "code" / "seen.json").write_text(json.dumps({"argv": sys.argv, "found": found}))
(output / "report.txt").write_text("done")
"""
    described = job.script(script, learning_rate="0.1", text='"quoted"', b="x y").channel("training", "photos/").ended()
    assert described["TrainingJobStatus"] == "Completed", described.get("FailureReason")
    seen = json.loads(job.artifact("model.tar.gz")["code/seen.json"])
    assert seen["found"] == {"train/a": "A", "train/b": "B", "c": "C"}
    assert seen["argv"] == ["train.py", "-b", "x y", "--learning_rate", "0.1", "--text", "quoted"]
    assert job.artifact("output.tar.gz") == {"report.txt": "done"}
    where = f"s3://{bucket}/jobs/{job.name}/output/model.tar.gz"
    assert described["ModelArtifacts"]["S3ModelArtifacts"] == where


def test_the_container_finds_what_awss_containers_find(job, bucket):
    put(bucket, data__a="A")
    script = """
import json, os, pathlib
root = pathlib.Path(os.environ["SM_INPUT_CONFIG_DIR"])
config = {p.stem: json.loads(p.read_text()) for p in root.iterdir()}
config["environment"] = {k: v for k, v in os.environ.items()}
pathlib.Path(os.environ["SM_MODEL_DIR"], "config.json").write_text(json.dumps(config))
"""
    job.script(script, epochs="3").channel("training", "data").ended(
        Environment={"COLOUR": "red", "D": "/opt/ml/model"}
    )
    config = json.loads(job.artifact("model.tar.gz")["config.json"])
    assert config["hyperparameters"]["epochs"] == "3"
    assert config["inputdataconfig"]["training"]["TrainingInputMode"] == "File"
    resources, environment = config["resourceconfig"], config["environment"]
    assert (resources["current_host"], resources["hosts"]) == ("algo-1", ["algo-1"])
    assert resources["current_instance_type"] == "ml.m5.large"
    assert environment["TRAINING_JOB_NAME"] == job.name
    assert environment["SM_HP_EPOCHS"] == "3"
    assert environment["SM_CHANNELS"] == '["training"]'
    assert environment["COLOUR"] == "red"
    assert environment["D"] == environment["SM_MODEL_DIR"]
    assert environment["AWS_ACCESS_KEY_ID"].startswith("ASIA")
    assert "AWS_PROFILE" not in environment


def test_statuses_move_as_on_aws(job):
    described = job.shell("exit 0").ended()
    steps = described["SecondaryStatusTransitions"]
    assert [step["Status"] for step in steps] == ["Starting", "Downloading", "Training", "Uploading", "Completed"]
    assert all(before["EndTime"] == after["StartTime"] for before, after in pairwise(steps))
    assert described["CreationTime"] <= described["TrainingStartTime"] <= described["TrainingEndTime"]
    assert described["BillableTimeInSeconds"] == described["TrainingTimeInSeconds"] >= 1


def test_logs_and_metrics_can_be_followed_while_the_job_runs(job):
    job.python("import time\nprint('epoch=0 valid_loss=0.5 valid_loss=0.25')\nprint('loss=nan')\ntime.sleep(100)")
    definitions = [{"Name": "valid:loss", "Regex": r"valid_loss=(\S+)"}, {"Name": "loss", "Regex": r"\bloss=(\S+)"}]
    job.request["AlgorithmSpecification"]["MetricDefinitions"] = definitions
    job.create()
    wait_until(lambda: "FinalMetricDataList" in job.describe())
    described = job.describe()
    assert described["TrainingJobStatus"] == "InProgress"
    assert described["SecondaryStatus"] == "Training"
    assert [(metric["MetricName"], metric["Value"]) for metric in described["FinalMetricDataList"]] == [
        ("valid:loss", 0.25)
    ]
    assert job.logs()[0] == "epoch=0 valid_loss=0.5 valid_loss=0.25"
    streams = boto3.client("logs").describe_log_streams(logGroupName=LOG_GROUP, logStreamNamePrefix=job.name)
    assert re.fullmatch(rf"{job.name}/algo-1-\d{{10}}", streams["logStreams"][0]["logStreamName"])
    dimensions = [{"Name": "TrainingJobName", "Value": job.name}]
    metrics = boto3.client("cloudwatch").list_metrics(Namespace=LOG_GROUP, Dimensions=dimensions)["Metrics"]
    assert {metric["MetricName"] for metric in metrics} == {"valid:loss"}
    job.client.stop_training_job(TrainingJobName=job.name)
    wait_until(lambda: job.describe()["TrainingJobStatus"] == "Stopped")


def test_a_failing_script_says_why(job):
    described = job.shell(
        "echo 'no photos of class 7' > /opt/ml/output/failure; echo left > /opt/ml/model/m; exit 3"
    ).ended()
    assert described["TrainingJobStatus"] == described["SecondaryStatus"] == "Failed"
    assert described["FailureReason"] == "AlgorithmError: no photos of class 7, exit code: 3"
    assert described["SecondaryStatusTransitions"][-1]["StatusMessage"] == "Training job failed"


def test_a_failure_reason_is_at_most_1024_characters_and_keeps_the_exit_code(job):
    described = job.shell("head -c 5000 /dev/zero | tr '\\0' x > /opt/ml/output/failure; exit 1").ended()
    assert len(described["FailureReason"]) == 1024
    assert described["FailureReason"].endswith("x, exit code: 1")


def test_a_script_that_raises_without_a_failure_file(job):
    described = job.script("raise SystemExit('photos are missing')").ended()
    reason = described["FailureReason"]
    assert reason.startswith('AlgorithmError: ExecuteUserScriptError:\nExitCode 1\nErrorMessage "')
    assert "photos are missing" in reason
    assert reason.endswith(", exit code: 1")


def test_a_command_that_does_not_exist(job):
    job.request["AlgorithmSpecification"]["ContainerEntrypoint"] = ["no-such-program"]
    assert "No such file or directory: no-such-program" in job.ended()["FailureReason"]


STOPPABLE = """
import os, pathlib, signal, subprocess, sys, time
model = pathlib.Path(os.environ["MODEL"])
def stop(*_):
    (model / "saved").write_text("at the last moment")
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)", "helper"])
print("running", helper.pid, flush=True)
time.sleep(1000)
"""


def test_a_stopped_job_may_save_its_work(job):
    # Under a shell that does not handle SIGTERM, as the SDK's sm_train.sh does not.
    job.program(STOPPABLE).create(Environment={"MODEL": "/opt/ml/model"})
    line = wait_until(lambda: [line for line in job.logs() if line.startswith("running")] if log_exists(job) else None)
    job.client.stop_training_job(TrainingJobName=job.name)
    assert job.describe()["TrainingJobStatus"] in {"Stopping", "Stopped"}
    wait_until(lambda: job.describe()["TrainingJobStatus"] == "Stopped")
    described = job.describe()
    assert [step["Status"] for step in described["SecondaryStatusTransitions"]][-2:] == ["Stopping", "Stopped"]
    assert "FailureReason" not in described
    assert job.artifact("model.tar.gz") == {"saved": "at the last moment"}
    assert not psutil.pid_exists(int(line[0].split()[1]))


def log_exists(job: Job) -> bool:
    groups = boto3.client("logs").describe_log_groups(logGroupNamePrefix=LOG_GROUP)["logGroups"]
    return bool(groups) and job.describe()["SecondaryStatus"] == "Training"


def test_a_job_that_ignores_sigterm_is_killed_after_the_grace(job, monkeypatch):
    monkeypatch.setattr("opslib.rehearsal.training.run.GRACE_SECONDS", 0.2)
    job.shell("trap '' TERM; touch /opt/ml/model/m; echo up; while :; do sleep 0.01; done").create()
    wait_until(lambda: log_exists(job) and job.logs() == ["up"])
    job.client.stop_training_job(TrainingJobName=job.name)
    wait_until(lambda: job.describe()["TrainingJobStatus"] == "Stopped")
    assert job.artifact("model.tar.gz") == {"m": ""}
    code, message = refused(job.client.stop_training_job, TrainingJobName=job.name)
    assert (code, message.split(" in status ")[1]) == ("ValidationException", "Stopped.")


def test_a_job_that_runs_too_long_is_stopped(job):
    described = job.shell("exec sleep 1000").ended(StoppingCondition={"MaxRuntimeInSeconds": 1})
    assert (described["TrainingJobStatus"], described["SecondaryStatus"]) == ("Stopped", "MaxRuntimeExceeded")


def test_hosts_run_side_by_side_and_share_the_input(job, bucket):
    put(bucket, **{f"shards__{number}": str(number) for number in range(4)})
    job.channel("training", "shards/", distribution="ShardedByS3Key").shell(
        "ls /opt/ml/input/data/training > /opt/ml/model/$CURRENT_HOST"
    )
    described = job.ended(ResourceConfig=job.request["ResourceConfig"] | {"InstanceCount": 2})
    assert described["TrainingJobStatus"] == "Completed"
    assert job.artifact("model.tar.gz") == {"algo-1": "0\n2\n", "algo-2": "1\n3\n"}


def test_a_host_that_fails_ends_the_others(job):
    job.shell("if [ $CURRENT_HOST = algo-2 ]; then echo lost > /opt/ml/output/failure; exit 9; fi; exec sleep 1000")
    described = job.ended(ResourceConfig=job.request["ResourceConfig"] | {"InstanceCount": 2})
    assert described["FailureReason"] == "AlgorithmError: algo-2: lost, exit code: 9"


def test_a_manifest_names_the_objects(job, bucket):
    put(
        bucket,
        all__x__1="1",
        all__2="2",
        all__3="3",
        manifest=json.dumps([{"prefix": f"s3://{bucket}/all/"}, "x/1", "3"]),
    )
    job.channel("training", "manifest", kind="ManifestFile").shell(
        "cd /opt/ml/input/data/training; find . -type f | sort"
    )
    job.ended()
    assert job.logs() == ["./3", "./x/1"]


@pytest.mark.parametrize(
    ("prefix", "names"),
    [("one/file.csv", ["file.csv"]), ("one/f", ["file.csv"]), ("one", ["file.csv"]), ("", ["file.csv", "one"])],
)
def test_a_prefix_is_a_folder_a_file_or_a_beginning(job, bucket, prefix, names):
    put(bucket, one__file="x")
    boto3.client("s3").copy_object(Bucket=bucket, Key="one/file.csv", CopySource=f"{bucket}/one/file")
    boto3.client("s3").delete_object(Bucket=bucket, Key="one/file")
    job.channel("training", prefix).shell("cd /opt/ml/input/data/training; find . -mindepth 1 | sed 's|.*/||' | sort")
    job.ended()
    assert job.logs() == names


def test_input_that_is_not_there_is_refused_at_once(job, bucket, role):
    code, message = refused(job.channel("training", "nothing").shell("exit 0").create)
    assert code == "ValidationException"
    assert message.startswith(f'No S3 objects found under S3 URL "s3://{bucket}/nothing" given in input data source.')
    assert f'the role "{role}" has "s3:ListBucket" permissions on bucket "{bucket}"' in message
    assert refused(job.describe) == ("ValidationException", "Requested resource not found.")


def test_a_role_without_rights_fails_as_on_aws(job, bucket, role):
    put(bucket, data__a="A")
    name = role.split("/")[1]
    everything = {"Effect": "Allow", "Action": "*", "Resource": "*"}
    no_reading = {"Effect": "Deny", "Action": "s3:GetObject", "Resource": "*"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [everything, no_reading]})
    boto3.client("iam").put_role_policy(RoleName=name, PolicyName="everything", PolicyDocument=policy)
    described = job.channel("training", "data").shell("exit 0").ended()
    reason = f"Unable to download object s3://{bucket}/data/a (AccessDenied: Access Denied)"
    assert described["FailureReason"] == f"ClientError: Data download failed:{reason}"


def test_a_role_that_does_not_trust_sagemaker_is_refused(job, role):
    name = role.split("/")[1]
    trust = {"Effect": "Allow", "Action": "sts:AssumeRole", "Principal": {"Service": "ec2.amazonaws.com"}}
    document = json.dumps({"Version": "2012-10-17", "Statement": [trust]})
    boto3.client("iam").update_assume_role_policy(RoleName=name, PolicyDocument=document)
    message = f"Could not assume role {role}. Please ensure that the role exists and allows principal "
    message += "'sagemaker.amazonaws.com' to assume the role."
    assert refused(job.shell("exit 0").create) == ("ValidationException", message)


def test_the_job_itself_may_do_only_what_its_role_may(job, bucket, role):
    statements = [
        {"Effect": "Allow", "Action": ["s3:PutObject"], "Resource": f"arn:aws:s3:::{bucket}/jobs/*"},
        {"Effect": "Allow", "Action": "s3:GetObject", "Resource": f"arn:aws:s3:::{bucket}/code.tar.gz"},
        {"Effect": "Allow", "Action": "logs:*", "Resource": "*"},
    ]
    policy = json.dumps({"Version": "2012-10-17", "Statement": statements})
    boto3.client("iam").put_role_policy(RoleName=role.split("/")[1], PolicyName="everything", PolicyDocument=policy)
    job.script(f"""
import boto3, os
s3 = boto3.client("s3", region_name=os.environ["AWS_REGION"])
s3.put_object(Bucket="{bucket}", Key="jobs/note", Body=b"")
try:
    s3.list_buckets()
except s3.exceptions.ClientError as error:
    print(error.response["Error"]["Code"])
""")
    assert job.ended()["TrainingJobStatus"] == "Completed", job.describe()
    assert job.logs() == ["AccessDenied"]


def test_names_are_unique_until_the_job_is_deleted(job):
    arn = job.shell("exit 0").ended()["TrainingJobArn"]
    code, message = refused(job.create)
    assert code == "ResourceInUse"
    assert arn in message
    job.client.delete_training_job(TrainingJobName=job.name)
    job.ended()
    job.client.delete_training_job(TrainingJobName=job.name)
    assert refused(job.client.delete_training_job, TrainingJobName=job.name)[0] == "ResourceNotFound"


def test_a_running_job_cannot_be_deleted(job):
    job.shell("exec sleep 1000").create()
    assert refused(job.client.delete_training_job, TrainingJobName=job.name)[0] == "ResourceInUse"
    job.client.stop_training_job(TrainingJobName=job.name)
    wait_until(lambda: job.describe()["TrainingJobStatus"] == "Stopped")


def test_jobs_are_listed_by_name_status_and_page(job, role, bucket):
    jobs = [job, Job(role, bucket), Job(role, bucket)]
    for number, one in enumerate(jobs):
        one.name = one.request["TrainingJobName"] = f"{job.name}-{number}"
        one.shell(f"exit {number % 2}").ended()

    def names(**filters):
        pages = job.client.get_paginator("list_training_jobs").paginate(
            NameContains=job.name, PaginationConfig={"PageSize": 2}, **filters
        )  # fmt: skip
        return [summary["TrainingJobName"] for page in pages for summary in page["TrainingJobSummaries"]]

    assert names(SortOrder="Descending") == [one.name for one in reversed(jobs)]
    assert names(StatusEquals="Failed") == [jobs[1].name]
    assert names(SortBy="Status") == [jobs[0].name, jobs[2].name, jobs[1].name]
    assert names(CreationTimeAfter=jobs[1].describe()["TrainingEndTime"]) == [jobs[2].name]


def test_tags_are_found_by_the_tagging_api(job):
    arn = job.shell("exit 0").ended(Tags=[{"Key": "opslib:run", "Value": job.name}])["TrainingJobArn"]
    found = boto3.client("resourcegroupstaggingapi").get_resources(
        TagFilters=[{"Key": "opslib:run", "Values": [job.name]}]
    )
    assert [resource["ResourceARN"] for resource in found["ResourceTagMappingList"]] == [arn]
    assert job.client.list_tags(ResourceArn=arn)["Tags"] == [{"Key": "opslib:run", "Value": job.name}]


@pytest.mark.parametrize("what", ["an image alone", "Pipe mode"])
def test_what_cannot_be_rehearsed_is_refused(job, bucket, what):
    put(bucket, data__a="A")
    if what == "Pipe mode":
        job.shell("exit 0").channel("training", "data")
        job.request["AlgorithmSpecification"]["TrainingInputMode"] = "Pipe"
    assert refused(job.create)[0] == "NotImplemented"


def test_checkpoints_go_on_where_the_last_job_ended(job, role, bucket):
    where = {"S3Uri": f"s3://{bucket}/checkpoints", "LocalPath": "/opt/ml/checkpoints"}
    line = "cat /opt/ml/checkpoints/*; echo saved >> /opt/ml/checkpoints/epoch"
    job.shell(line).ended(CheckpointConfig=where)
    second = Job(role, bucket).shell(line)
    assert second.ended(CheckpointConfig=where)["TrainingJobStatus"] == "Completed"
    assert second.logs() == ["saved"]


def test_two_thousand_photos_are_there_in_seconds(job, bucket):
    from opslib.rehearsal.identity import assume_role
    from opslib.rehearsal.role_storage import RoleStorage

    storage = RoleStorage(assume_role(job.request["RoleArn"], "test"))
    for number in range(2000):
        storage.write(bucket, f"photos/{number % 133}/{number}.jpg", b"x" * 8000)
    described = job.channel("training", "photos").shell("find /opt/ml/input/data -type f | wc -l").ended()
    assert [line.strip() for line in job.logs()] == ["2000"]
    step = next(step for step in described["SecondaryStatusTransitions"] if step["Status"] == "Downloading")
    assert (step["EndTime"] - step["StartTime"]).total_seconds() < 6
