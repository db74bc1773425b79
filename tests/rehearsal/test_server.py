"""Starting and stopping: quick, complete, and without a trace in this process."""

import os
import subprocess
import sys
import time
from pathlib import Path

import boto3
import pytest
from moto.logs.models import LogEvent

from opslib import rehearsal as local_aws
from opslib.errors import RehearsalError
from opslib.rehearsal.environment import restore_variables, set_variables

ROOT = Path(__file__).parents[2]


def run_program(text: str, **variables) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    return subprocess.run(
        [sys.executable, "-c", text], cwd=ROOT, env=environment | variables, capture_output=True, text=True, check=False
    )  # fmt: skip


def test_variables_are_set_and_put_back(monkeypatch):
    monkeypatch.setenv("AWS_PROFILE", "mine")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://elsewhere")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    monkeypatch.delenv("AWS_REGION", raising=False)
    before = dict(os.environ)
    restore = set_variables({"AWS_DEFAULT_REGION": "us-east-1", "AWS_REGION": "us-east-1"})
    assert "AWS_PROFILE" not in os.environ
    assert "AWS_ENDPOINT_URL_S3" not in os.environ
    assert os.environ["AWS_REGION"] == "us-east-1"
    restore_variables(restore)
    assert dict(os.environ) == before


def test_only_one_at_a_time_in_a_process(rehearsal):
    with pytest.raises(RehearsalError, match="already running"):
        local_aws.start()


def test_it_is_ready_within_two_seconds_and_leaves_no_trace():
    program = """
import os, pathlib, tempfile, time
before = dict(os.environ)
begin = time.process_time()  # not the wall: the machine may be busy with something else
from opslib import rehearsal
with rehearsal.start() as first:
    import socket
    host, port = first.endpoint_url.removeprefix("http://").split(":")
    socket.create_connection((host, int(port))).close()
    assert host == "127.0.0.1"
    assert time.process_time() - begin < 2, time.process_time() - begin
    import boto3
    boto3.client("s3").create_bucket(Bucket="only-in-the-first")
assert dict(os.environ) == before
assert not first.directory.exists()
second = rehearsal.start(region="eu-central-1")
assert boto3.Session().region_name == "eu-central-1"
assert boto3.client("s3").list_buckets()["Buckets"] == []
second.stop()
second.stop()
assert dict(os.environ) == before
third = rehearsal.start()       # ended by the end of the program
print(third.directory)
"""
    done = run_program(program)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert not Path(done.stdout.strip()).exists()


def test_a_taken_port_is_named():
    program = """
import socket
from opslib import rehearsal
from opslib.errors import RehearsalError
taken = socket.create_server(("127.0.0.1", 0))
for attempt in range(2):
    try:
        rehearsal.start(port=taken.getsockname()[1])
    except RehearsalError as error:
        print(error.message)
"""
    done = run_program(program)
    assert done.stdout.count("is taken") == 2, done.stderr


def test_directories_of_killed_rehearsals_are_removed_by_the_next():
    start = "import os\nfrom opslib import rehearsal\nprint(rehearsal.start().directory, flush=True)"
    killed = run_program(f"{start}\nos.kill(os.getpid(), 9)")
    left = Path(killed.stdout.strip())
    assert left.exists()
    assert run_program("from opslib import rehearsal\nrehearsal.start().stop()").returncode == 0
    assert not left.exists()


def test_nobody_but_its_stream_keeps_a_log_line(rehearsal):
    logs, group = boto3.client("logs"), f"/tests/{time.time_ns()}"
    logs.create_log_group(logGroupName=group)
    logs.create_log_stream(logGroupName=group, logStreamName="stream")
    events = [{"timestamp": int(time.time() * 1000), "message": f"line {number}"} for number in range(50)]
    logs.put_log_events(logGroupName=group, logStreamName="stream", logEvents=events)
    assert len(logs.get_log_events(logGroupName=group, logStreamName="stream")["events"]) == 50
    assert LogEvent.instances_tracked == []  # where moto would keep them when their stream has let go of them
    logs.delete_log_group(logGroupName=group)
