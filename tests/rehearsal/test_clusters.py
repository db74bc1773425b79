"""Training jobs of several hosts: ports, cores, logs, lost and hanging hosts; with torch, see `test_real_training`."""

import os
import signal
import socket
import sys

import boto3
import psutil
import pytest

from opslib.rehearsal.training.ports import HeldPort
from tests.rehearsal.jobs import LOG_GROUP, TERMINAL, Job, host_logs, wait_until


@pytest.fixture
def job(role, bucket) -> Job:
    job = Job(role, bucket)
    job.request["ResourceConfig"] |= {"InstanceCount": 2}
    return job


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
