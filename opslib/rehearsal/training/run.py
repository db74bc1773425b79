"""A training job while it runs: from the download of its data to its artifacts in S3, on a thread of its own."""

import shutil
import socket
import tarfile
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial

from opslib.errors import RehearsalError
from opslib.rehearsal.calls import Principal
from opslib.rehearsal.identity import role_credentials
from opslib.rehearsal.log_streams import LogStream
from opslib.rehearsal.processes.termination import terminate_program
from opslib.rehearsal.role_storage import RoleStorage, StorageRefused
from opslib.rehearsal.site import Site
from opslib.rehearsal.training.artifacts import upload_artifacts, upload_checkpoints
from opslib.rehearsal.training.channels import read_channels
from opslib.rehearsal.training.host import TrainingHost
from opslib.rehearsal.training.job import TrainingJob
from opslib.rehearsal.training.metrics import MetricReader

LOG_GROUP = "/aws/sagemaker/TrainingJobs"
GRACE_SECONDS = 120
"""Time between SIGTERM and SIGKILL when a job is stopped, as on AWS."""


class TrainingRun:
    """Runs one job; `request_stop` ends it early."""

    def __init__(self, job: TrainingJob, site: Site, region: str, session: Principal) -> None:
        self._job = job
        self._site = site
        self._region = region
        self._session = session
        self._storage = RoleStorage(session)
        self._metrics = MetricReader(job, region)
        self._directory = site.directory / "training" / job.name
        self._hosts: list[TrainingHost] = []
        self._lock = threading.Lock()
        self._stopped_as = ""
        self._killed = False
        self._timers: list[threading.Timer] = []
        self._thread = threading.Thread(target=self._run, name=f"training-{job.name}", daemon=True)

    def start(self) -> None:
        """Start the job's thread and the clock of its longest run."""
        seconds = self._job.params.get("StoppingCondition", {}).get("MaxRuntimeInSeconds", 86400)
        self._after(seconds, partial(self.request_stop, "MaxRuntimeExceeded"))
        self._thread.start()

    def join(self) -> None:
        """Wait until the job has ended."""
        self._thread.join()

    def request_stop(self, stage: str) -> None:
        """Send SIGTERM, and SIGKILL after the grace; the job then ends in `stage`: Stopped or MaxRuntimeExceeded."""
        with self._lock:
            if self._stopped_as or self._job.status != "InProgress":
                return
            self._stopped_as = stage
            self._job.move_to("Stopping")
            for host in self._hosts:
                if host.process and not terminate_program(host.process.pid):
                    host.process.terminate(GRACE_SECONDS)
        self._after(GRACE_SECONDS, self._kill_hosts)

    def kill(self) -> None:
        """End the job at once: the rehearsal is over."""
        self._killed = True
        self._kill_hosts()

    def _kill_hosts(self) -> None:
        with self._lock:
            for host in self._hosts:
                if host.process:
                    host.process.kill()

    def _after(self, seconds: float, action: partial | object) -> None:
        timer = threading.Timer(seconds, action)
        timer.daemon = True
        self._timers.append(timer)
        timer.start()

    def _run(self) -> None:
        try:
            stage = self._perform()
        except BaseException:
            self._job.fail("InternalServerError: We encountered an internal error. Please try again.")
            self._job.move_to("Failed")
            raise
        finally:
            self._kill_hosts()
            for timer in self._timers:
                timer.cancel()
            shutil.rmtree(self._directory, ignore_errors=True)
        self._job.move_to(stage)

    def _perform(self) -> str:
        """Do what the job is for; return the stage it ends in."""
        self._job.move_to("Downloading")
        try:
            self._prepare()
        except (StorageRefused, tarfile.TarError, EOFError, zlib.error, OSError) as error:
            self._job.fail(f"ClientError: Data download failed:Unable to download object {error}")
            return "Failed"
        try:
            self._train()
        except RehearsalError as error:
            self._job.fail(f"ClientError: {error.message}")
            return "Failed"
        if self._killed:
            return "Stopped"
        return self._upload()

    def _prepare(self) -> None:
        count = self._job.params["ResourceConfig"].get("InstanceCount", 1)
        port = _free_port()
        hosts = [TrainingHost(self._job, self._directory, position, count) for position in range(count)]
        for host in hosts:
            host.prepare(read_channels(self._job.params), self._storage, port)
        self._hosts = hosts

    def _train(self) -> None:
        """Start every host's program and wait for all; the first that fails ends the others."""
        with self._lock:
            if self._stopped_as or self._killed:
                return
            self._job.move_to("Training")
            for host in self._hosts:
                host.start(self._credentials(host), self._endpoint(), partial(self._hear, self._open_log(host)))
        with ThreadPoolExecutor(len(self._hosts)) as waiters:
            endings = {waiters.submit(host.process.wait): host for host in self._hosts if host.process}
            for ending in as_completed(endings):
                if ending.result() and not self._job.failure_reason and not self._stopped_as:
                    self._job.fail(endings[ending].failure_reason(ending.result()))
                    self._kill_hosts()

    def _upload(self) -> str:
        if not self._stopped_as:
            self._job.move_to("Uploading")
        try:
            upload_artifacts(
                self._job,
                [host.model_directory for host in self._hosts],
                [host.output_directory for host in self._hosts],
                self._storage,
            )
            for host in self._hosts:
                upload_checkpoints(self._job, host.checkpoint_directory, self._storage)
        except StorageRefused as error:
            if not self._job.failure_reason:
                self._job.fail(f"ClientError: Artifact upload failed:Unable to upload object {error}")
        if self._job.failure_reason:
            return "Failed"
        return self._stopped_as or "Completed"

    def _credentials(self, host: TrainingHost) -> dict[str, str]:
        return role_credentials(self._job.params["RoleArn"], f"SageMaker-{host.name}")

    def _endpoint(self) -> dict[str, str]:
        # AWS_REGION and no AWS_DEFAULT_REGION: a container on AWS has no more, and boto3 there wants a region too.
        return {
            "AWS_ENDPOINT_URL": self._site.endpoint_url,
            "AWS_REGION": self._region,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def _open_log(self, host: TrainingHost) -> LogStream:
        stream = f"{self._job.name}/{host.name}-{int(time.time())}"
        return LogStream(self._session, self._region, LOG_GROUP, stream)

    def _hear(self, log: LogStream, line: str) -> None:
        log.write([line])
        self._metrics.read(line)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
