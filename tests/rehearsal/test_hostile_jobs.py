"""Training jobs whose data, archives, settings or scripts are out to do harm: each ends, says why, leaves nothing."""

import io
import os
import tarfile
import threading

import boto3
import pytest
from botocore.exceptions import ClientError

from tests.rehearsal.jobs import TERMINAL, Job, wait_until
from tests.rehearsal.serving import is_running


@pytest.fixture
def job(role, bucket):
    """A job that is not created yet."""
    return Job(role, bucket)


def put(bucket: str, key: str, content: bytes = b"x") -> None:
    boto3.client("s3").put_object(Bucket=bucket, Key=key, Body=content)


def archive(name: str, **fields: object) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as packed:
        entry = tarfile.TarInfo(name)
        for field, value in fields.items():
            setattr(entry, field, value)
        packed.addfile(entry, io.BytesIO())
    return content.getvalue()


def test_no_key_leads_out_of_its_channel(job, bucket, tmp_path):
    put(bucket, f"data/{tmp_path}/absolute.txt")
    put(bucket, f"more/../../../../../../../../../..{tmp_path}/made/dots.txt")
    for prefix in ("data/", "more/"):
        ended = Job(job.request["RoleArn"], bucket).channel("data", prefix).shell("true").ended()
        assert ended["TrainingJobStatus"] == "Failed"
        assert "leaves the channel's directory" in ended["FailureReason"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("keys", "kind"),
    [
        (["data/a", "data/a/b"], "S3Prefix"),
        (["data/" + "a" * 300], "S3Prefix"),
        (["data/manifest"], "ManifestFile"),
    ],
    ids=["file and folder", "long name", "names that are none"],
)
def test_data_that_cannot_lie_in_a_directory_fail_the_job(job, bucket, keys, kind):
    for key in keys:
        put(bucket, key, b'[{"prefix": "s3://bucket/"}, {"name": 1}]')
    ended = job.channel("data", keys[0] if kind == "ManifestFile" else "data/", kind=kind).shell("true").ended()
    assert ended["FailureReason"].startswith("ClientError: Data download failed:Unable to download object s3://")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        os.urandom(1000),
        archive("train.py")[:-12],
        archive("../../../../train.py"),
        archive("a" * 300),
        archive("link", type=tarfile.SYMTYPE, linkname="/etc"),
        archive("train.py", type=tarfile.FIFOTYPE),
    ],
    ids=["empty", "noise", "cut off", "outside", "long name", "link", "pipe"],
)
def test_code_that_cannot_be_unpacked_fails_the_job(job, bucket, content):
    job.script("print('ran')")
    put(bucket, "code.tar.gz", content)
    ended = job.ended()
    assert ended["TrainingJobStatus"] == "Failed"
    assert not ended["FailureReason"].startswith("InternalServerError")


@pytest.mark.parametrize("name", ["sagemaker_program", "sagemaker_submit_directory"])
def test_a_script_may_have_any_name_but_must_be_there(job, name):
    job.script("print('ran')", deep="[" * 2000)
    job.request["HyperParameters"][name] = "5"
    reason = job.ended()["FailureReason"]
    assert reason.startswith(("AlgorithmError: ", "ClientError: "))


def test_a_null_character_is_no_variable_and_a_line_break_is_one(job, role, bucket):
    assert job.shell("true").ended(Environment={"A": "a\0b"})["FailureReason"].startswith("ClientError: ")
    line = 'test "$A" = "$(printf "a\\nb")"'
    assert Job(role, bucket).shell(line).ended(Environment={"A": "a\nb"})["TrainingJobStatus"] == "Completed"


def test_a_refused_job_leaves_no_record(job):
    job.shell("true").request["AlgorithmSpecification"]["MetricDefinitions"] = [{"Name": "m", "Regex": "("}]
    with pytest.raises(ClientError, match="ValidationException"):
        job.create()
    with pytest.raises(ClientError, match="not found"):
        job.describe()


def test_checkpoints_stay_in_the_container(job, bucket):
    with pytest.raises(ClientError, match="NotImplemented"):
        job.shell("true").create(CheckpointConfig={"S3Uri": f"s3://{bucket}/c", "LocalPath": "/opt/ml/../../etc"})


def test_of_many_jobs_of_one_name_one_runs(job):
    answers = []

    def create():
        try:
            answers.append(job.client.create_training_job(**job.request)["TrainingJobArn"])
        except ClientError as error:
            answers.append(error.response["Error"]["Code"])

    job.shell("true")
    threads = [threading.Thread(target=create) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers)[:7] == ["ResourceInUse"] * 7
    wait_until(lambda: job.describe()["TrainingJobStatus"] in TERMINAL)


KEEPER_KILLER = """
import os, signal, subprocess
daemon = subprocess.Popen(["setsid", "sleep", "1000"])
print("daemon", daemon.pid, flush=True)
keeper = os.getpid()
while "kept_process.py" not in open(f"/proc/{keeper}/cmdline").read():
    keeper = int(open(f"/proc/{keeper}/stat").read().rpartition(")")[2].split()[1])
os.kill(keeper, signal.SIGKILL)
signal.pause()
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="the script looks for its keeper in /proc")  # noqa: PTH110
def test_a_script_that_kills_its_keeper_leaves_nothing(job):
    ended = job.program(KEEPER_KILLER).ended()
    assert ended["TrainingJobStatus"] == "Failed"
    assert ended["FailureReason"].endswith("exit code: 137")
    pid = next(int(line.split()[1]) for line in job.logs() if line.startswith("daemon"))
    assert not is_running(pid)


@pytest.mark.parametrize(
    "line", ["mkdir /opt/ml/output/failure", "mkfifo /opt/ml/output/failure", "ln -s /dev/zero /opt/ml/output/failure"]
)
def test_a_failure_file_that_is_none_is_not_read(job, line):
    assert job.shell(f"{line}; exit 3").ended()["FailureReason"] == "AlgorithmError: , exit code: 3"


def test_strange_files_are_no_trouble_in_a_model(job):
    line = "cd /opt/ml/model; mkfifo pipe; ln -s . loop; ln -s nowhere dangling; rm -rf $HOME $TMPDIR; echo 1 > model"
    assert job.shell(line).ended()["TrainingJobStatus"] == "Completed"
    assert job.artifact("model.tar.gz")["model"] == "1\n"


def test_a_progress_bar_of_one_long_line_does_not_stop_the_metrics(job):
    definition = [{"Name": "loss", "Regex": ".*loss: ([0-9.]+)"}]
    job.program("import sys\nsys.stdout.write('|||| ' * 40_000 + '\\r' + 'loss: 0.25\\n')")
    job.request["AlgorithmSpecification"]["MetricDefinitions"] = definition
    assert job.ended()["FinalMetricDataList"][0]["Value"] == 0.25
