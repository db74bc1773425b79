"""python -m opslib.rehearsal: start, status, stop, run; and nothing left, even after kill -9."""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "opslib.rehearsal"]

SLEEPING_JOB = """
import boto3, json, sys, time
sagemaker, s3, iam = (boto3.client(name) for name in ("sagemaker", "s3", "iam"))
s3.create_bucket(Bucket="bucket-of-the-test")
statement = {"Effect": "Allow", "Action": "sts:AssumeRole", "Principal": {"Service": "sagemaker.amazonaws.com"}}
document = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
role = iam.create_role(RoleName="job", AssumeRolePolicyDocument=document)["Role"]["Arn"]
line = f"(setsid sleep {sys.argv[1]} &); exec sleep {sys.argv[1]}"
specification = {"TrainingImage": "i", "TrainingInputMode": "File", "ContainerEntrypoint": ["sh", "-c", line]}
resources = {"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 1}
sagemaker.create_training_job(TrainingJobName="job", RoleArn=role, AlgorithmSpecification=specification,
                              OutputDataConfig={"S3OutputPath": "s3://bucket-of-the-test/o"}, ResourceConfig=resources)
"""


def wait_until(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def living(mark: str) -> list[int]:
    return [process.pid for process in psutil.process_iter(["cmdline"]) if mark in (process.info["cmdline"] or [])]


@pytest.fixture
def mark(request) -> str:
    """A number of seconds that nobody else sleeps."""
    return f"2{abs(hash((request.node.name, os.getpid()))) % 10**9:09d}"


@pytest.fixture
def shell(tmp_path):
    """Run a line of shell with a state directory of its own; whatever was started is ended afterwards."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "SAGEMAKER_"))}
    environment |= {
        "OPSLIB_REHEARSAL_HOME": str(tmp_path / "home"),
        "AWS_PROFILE": "mine",
        "REHEARSAL": shlex.join(COMMAND),
    }

    def run(line: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            ["bash", "-c", line], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False
        )  # fmt: skip

    yield run
    run("$REHEARSAL stop")


def test_start_status_and_stop(shell):
    assert shell("$REHEARSAL status").returncode == 3
    first = shell("$REHEARSAL start")
    assert first.returncode == 0, first.stderr
    lines = first.stdout.splitlines()
    assert "unset AWS_PROFILE" in lines
    assert all(line.startswith(("export ", "unset ")) for line in lines)
    assert shell("$REHEARSAL start").stdout == first.stdout
    asked = shell(
        'eval "$($REHEARSAL start)"; $REHEARSAL status; '
        f'{sys.executable} -c \'import boto3; print(boto3.client("sts").get_caller_identity()["Account"])\''
    )
    assert asked.stdout.strip() == "000000000000", asked.stderr
    assert "this shell leads to it" in asked.stderr
    stopped = shell('eval "$($REHEARSAL start)"; eval "$($REHEARSAL stop)"; echo "left: $AWS_ENDPOINT_URL"')
    assert stopped.stdout == "left: \n"
    assert shell("$REHEARSAL status").returncode == 3


def test_kill_9_of_a_detached_rehearsal_leaves_no_process_and_the_next_start_is_fresh(shell, mark, tmp_path):
    done = shell(f'eval "$($REHEARSAL start)"; {sys.executable} -c {shlex.quote(SLEEPING_JOB)} {mark}')
    assert done.returncode == 0, done.stderr
    wait_until(lambda: len(living(mark)) == 2)
    server = int(shell("$REHEARSAL status").stderr.partition("(process ")[2].partition(")")[0])
    os.kill(server, signal.SIGKILL)
    wait_until(lambda: not living(mark))
    assert shell("$REHEARSAL status").returncode == 3
    assert not (tmp_path / "home" / "state.json").exists()
    again = shell('eval "$($REHEARSAL start)"; $REHEARSAL status; echo $AWS_ENDPOINT_URL')
    assert again.stdout.startswith("http://127.0.0.1:"), again.stderr


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("exit 7", 7),
        ("kill -TERM $$", 128 + signal.SIGTERM),
        ("test $AWS_ACCESS_KEY_ID && test -z $AWS_PROFILE && exit 5", 5),
    ],
)
def test_run_exits_as_the_command_does(shell, line, code):
    assert shell(f"$REHEARSAL run -- bash -c {shlex.quote(line)}").returncode == code


def test_run_says_when_the_command_does_not_exist(shell):
    done = shell("$REHEARSAL run -- no-such-command")
    assert done.returncode == 127
    assert "No such file or directory: no-such-command" in done.stderr


def test_run_leaves_nothing_behind(shell, mark):
    program = f"{SLEEPING_JOB}\nimport subprocess\nsubprocess.Popen(['setsid', 'sleep', sys.argv[1]])"
    done = shell(f"$REHEARSAL run -- {sys.executable} -W ignore -c {shlex.quote(program)} {mark}")
    assert done.returncode == 0, done.stderr
    assert living(mark) == []


@contextmanager
def start_run(*command: str) -> Iterator[subprocess.Popen]:
    # A shell's job in the background, these tests perhaps, ignores SIGINT, and so would all that it starts.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    running = subprocess.Popen([*COMMAND, "run", "--", *command], cwd=ROOT, stdin=subprocess.DEVNULL)
    signal.signal(signal.SIGINT, before)
    with running:
        try:
            yield running
        finally:
            running.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_run_forwards_signals(mark, number, tmp_path):
    up = tmp_path / "up"
    line = f"trap 'exit 40' INT TERM; touch {up}; while :; do sleep 0.02; done"
    with start_run("bash", "-c", line, mark) as running:
        wait_until(up.exists)
        running.send_signal(number)
        assert running.wait(20) == 40
    assert living(mark) == []


def test_kill_9_of_run_leaves_no_process(mark):
    program = f"{SLEEPING_JOB}\ntime.sleep(float(sys.argv[1]))"
    with start_run(sys.executable, "-c", program, mark) as running:
        wait_until(
            lambda: len(living(mark)) == 3 + 2
        )  # run and its keeper name it too; then the command, and two sleeps
        running.kill()
    wait_until(lambda: not living(mark))
