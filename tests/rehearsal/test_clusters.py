"""Training jobs of several hosts: torchrun across hosts and jobs, cores, logs, lost and hanging hosts."""

import os
import signal
import socket
import sys

import boto3
import psutil
import pytest

from opslib.rehearsal.training.ports import HeldPort
from tests.rehearsal.jobs import LOG_GROUP, TERMINAL, Job, wait_until

TORCH = """
import os, socket, torch, torch.distributed as ranks
ranks.init_process_group("gloo")
total = torch.tensor([float(os.environ["RANK"]) + 1])
ranks.all_reduce(total)
print(os.environ["SM_CURRENT_HOST"], "rank", os.environ["RANK"], "of", os.environ["WORLD_SIZE"], "sum", total.item())
if ranks.get_rank() == 1 and os.environ.get("DIES"):
    os.kill(os.getpid(), 9)
if os.environ.get("DIES"):
    ranks.all_reduce(total)
ranks.barrier()
ranks.destroy_process_group()
"""


@pytest.fixture
def job(role, bucket) -> Job:
    job = Job(role, bucket)
    job.request["ResourceConfig"] |= {"InstanceCount": 2}
    return job


def host_logs(name: str) -> dict[str, list[str]]:
    logs = boto3.client("logs")
    streams = logs.describe_log_streams(logGroupName=LOG_GROUP, logStreamNamePrefix=f"{name}/")["logStreams"]
    return {
        stream["logStreamName"].split("/")[1].rpartition("-")[0]: [
            event["message"]
            for event in logs.get_log_events(
                logGroupName=LOG_GROUP, logStreamName=stream["logStreamName"], startFromHead=True
            )["events"]
        ]
        for stream in streams
    }


def trainer(role: str, bucket: str, folder, name: str, **environment: str):
    from sagemaker.core.helper.session_helper import Session
    from sagemaker.train import ModelTrainer
    from sagemaker.train.configs import Compute, OutputDataConfig, SourceCode, StoppingCondition
    from sagemaker.train.distributed import Torchrun

    (folder / "train.py").write_text(TORCH)
    return ModelTrainer(
        sagemaker_session=Session(default_bucket=bucket, default_bucket_prefix="sdk"),
        role=role, training_image="image", base_job_name=name, environment=environment,
        source_code=SourceCode(source_dir=str(folder), entry_script="train.py"),
        compute=Compute(instance_type="ml.m5.large", instance_count=2, volume_size_in_gb=1),
        distributed=Torchrun(process_count_per_node=1),
        stopping_condition=StoppingCondition(max_runtime_in_seconds=100),
        output_data_config=OutputDataConfig(s3_output_path=f"s3://{bucket}/jobs"),
    )  # fmt: skip


def test_clusters_at_the_same_time_never_meet_and_a_lost_rank_is_named(role, bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("SAGEMAKER_VALIDATE_ROLE", "false")
    names = []
    for name, environment in (("first", {}), ("second", {"DIES": "1"})):
        (tmp_path / name).mkdir()
        started = trainer(role, bucket, tmp_path / name, name, **environment)
        started.train(wait=False, logs=False)
        names.append(started._latest_training_job.training_job_name)
    client = boto3.client("sagemaker")

    def described(name: str) -> dict:
        return client.describe_training_job(TrainingJobName=name)

    wait_until(lambda: all(described(name)["TrainingJobStatus"] in TERMINAL for name in names), seconds=100)
    for name in names:
        said = {host: [line for line in lines if "sum" in line] for host, lines in host_logs(name).items()}
        assert said == {f"algo-{n + 1}": [f"algo-{n + 1} rank {n} of 2 sum 3.0"] for n in (0, 1)}
    assert described(names[0])["TrainingJobStatus"] == "Completed", described(names[0])["FailureReason"]
    assert described(names[1])["FailureReason"].startswith("AlgorithmError: algo-2: ")


def test_a_port_is_held_until_it_is_used_and_given_back():
    port = HeldPort()
    asked = []
    for _ in range(200):
        with socket.socket() as other:
            other.bind(("", 0))
            asked.append(other.getsockname()[1])
    assert port.number not in asked
    if sys.platform == "linux":
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", port.number))
    with socket.socket() as store:
        store.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        store.bind(("", port.number))
        store.listen()
        socket.create_connection(("127.0.0.1", port.number)).close()
    port.release()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux pins processes to cores")
def test_hosts_share_the_cores(job):
    job.script("import os; print(sorted(os.sched_getaffinity(0)), os.environ['OMP_NUM_THREADS'])")
    job.ended()
    cores = sorted(os.sched_getaffinity(0))
    said = [lines[0].rpartition(" ") for _, lines in sorted(host_logs(job.name).items())]
    shares = [set(eval(cores)) for cores, _, _ in said]
    assert set.union(*shares) == set(cores)
    assert len(cores) < 2 or not shares[0] & shares[1]
    assert [threads for _, _, threads in said] == [str(max(1, os.cpu_count() // 2))] * 2


def test_a_killed_host_ends_the_job_and_leaves_nothing(job):
    job.shell("echo $$; exec sleep 1000").create()
    wait_until(lambda: job.describe()["SecondaryStatus"] == "Training")
    group = boto3.client("logs").describe_log_groups
    wait_until(lambda: group(logGroupNamePrefix=LOG_GROUP)["logGroups"] and len(host_logs(job.name)) == 2)
    pids = {host: int(lines[0]) for host, lines in host_logs(job.name).items()}
    os.kill(pids["algo-2"], signal.SIGKILL)
    wait_until(lambda: job.describe()["TrainingJobStatus"] in TERMINAL)
    assert job.describe()["FailureReason"] == "AlgorithmError: algo-2: , exit code: 137"
    assert not any(psutil.pid_exists(pid) for pid in pids.values())
    described = job.describe()
    assert described["BillableTimeInSeconds"] == described["TrainingTimeInSeconds"]  # of each instance, as on AWS


def test_a_host_that_hangs_after_the_others_have_ended_is_given_up(job, monkeypatch):
    monkeypatch.setattr("opslib.rehearsal.training.cluster.IDLE_SECONDS", 0.5)
    job.shell("if [ $CURRENT_HOST = algo-2 ]; then exec sleep 1000; fi")
    reason = job.ended()["FailureReason"]
    assert reason.startswith("AlgorithmError: algo-2: neither computed nor printed")


def test_a_host_that_computes_longer_than_the_others_is_waited_for(job, monkeypatch):
    monkeypatch.setattr("opslib.rehearsal.training.cluster.IDLE_SECONDS", 1.5)
    job.script("import os, time\nwhile os.environ['SM_CURRENT_HOST'] == 'algo-2' and time.process_time() < 2: pass")
    assert job.ended()["TrainingJobStatus"] == "Completed"
