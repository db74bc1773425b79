"""A training job while it runs: from the download of its data to its artifacts in S3, on a thread of its own.

A job on managed spot instances may be interrupted, and then makes another attempt: its hosts get SIGTERM and a grace,
their checkpoints are saved, everything else of them is lost, and new hosts begin with those checkpoints, or from the
start when there are none: https://docs.aws.amazon.com/sagemaker/latest/dg/model-managed-spot-training.html
"""

import shutil
import tarfile
import threading
import time
import zlib
from collections.abc import Callable, Mapping
from functools import partial

from opslib.errors import RehearsalError
from opslib.rehearsal.calls import Principal, ServiceError
from opslib.rehearsal.identity import role_credentials
from opslib.rehearsal.log_streams import LogStream
from opslib.rehearsal.role_storage import RoleStorage, StorageRefused
from opslib.rehearsal.site import Site
from opslib.rehearsal.training.artifacts import upload_artifacts
from opslib.rehearsal.training.cluster import Cluster
from opslib.rehearsal.training.host import TrainingHost
from opslib.rehearsal.training.job import TrainingJob
from opslib.rehearsal.training.metrics import MetricReader

LOG_GROUP = "/aws/sagemaker/TrainingJobs"
GRACE_SECONDS = 120
"""Time between SIGTERM and SIGKILL when a job is stopped or interrupted, as on AWS."""

DEFAULT_MAX_RUNTIME_SECONDS = 86400
_INTERRUPTIBLE = frozenset({"Starting", "Downloading", "Training"})


class TrainingRun:
    """Runs one job; `request_stop` ends it early, `interrupt` takes its spot instances away for a while."""

    def __init__(self, job: TrainingJob, site: Site, region: str, session: Principal) -> None:
        self._job = job
        self._site = site
        self._region = region
        self._session = session
        self._storage = RoleStorage(session)
        self._metrics = MetricReader(job, region, site.monitoring)
        self._directory = site.directory / "training" / job.name
        self._cluster: Cluster | None = None
        self._lock = threading.Lock()
        self._stopped_as = ""
        self._killed = False
        self._away_seconds: float | None = None
        self._end_of_wait = threading.Event()
        self._timers: list[threading.Timer] = []
        self._thread = threading.Thread(target=self._run, name=f"training-{job.name}", daemon=True)

    def start(self) -> None:
        """Start the job's thread, and the clock of its longest wait when it is on spot instances."""
        seconds = self._job.params.get("StoppingCondition", {}).get("MaxWaitTimeInSeconds")
        if seconds:
            self._after(seconds, partial(self.request_stop, "MaxWaitTimeExceeded"))
        self._thread.start()

    def join(self) -> None:
        """Wait until the job has ended."""
        self._thread.join()

    def request_stop(self, stage: str) -> None:
        """Send SIGTERM, and SIGKILL after the grace; the job then ends in `stage`: Stopped, MaxRuntimeExceeded, ..."""
        with self._lock:
            if self._stopped_as or self._job.status != "InProgress":
                return
            self._stopped_as = stage
            self._job.move_to("Stopping")
            self._end_of_wait.set()
            if self._away_seconds is None:  # else the SIGTERM of the interruption is enough
                self._terminate()

    def interrupt(self, away_seconds: float) -> None:
        """Take the spot instances away: SIGTERM, and SIGKILL after the grace; others are there after some seconds.

        Raises:
            ServiceError: ValidationException; the job is not on spot instances, or has none at the moment.
        """
        with self._lock:
            stage = self._job.secondary_status
            if not self._job.params.get("EnableManagedSpotTraining"):
                raise ServiceError("ValidationException", f"The job {self._job.name} is not on managed spot instances.")
            if self._away_seconds is not None or stage not in _INTERRUPTIBLE:
                raise ServiceError("ValidationException", f"The job {self._job.name} has no instances now: {stage}.")
            self._away_seconds = away_seconds
            self._terminate()

    def kill(self) -> None:
        """End the job at once: the rehearsal is over."""
        self._killed = True
        self._end_of_wait.set()
        with self._lock:
            if self._cluster:
                self._cluster.kill()

    def _terminate(self) -> None:
        if self._cluster:
            self._cluster.terminate(GRACE_SECONDS)
            self._after(GRACE_SECONDS, self._cluster.kill)

    @property
    def _ends_anyway(self) -> bool:
        return bool(self._stopped_as) or self._killed or self._away_seconds is not None

    def _after(self, seconds: float, action: Callable[[], None]) -> threading.Timer:
        timer = threading.Timer(seconds, action)
        timer.daemon = True
        self._timers.append(timer)
        timer.start()
        return timer

    def _run(self) -> None:
        try:
            stage = self._perform()
        except BaseException:
            self._job.fail("InternalServerError: We encountered an internal error. Please try again.")
            self._job.move_to("Failed")
            raise
        finally:
            for timer in self._timers:
                timer.cancel()
            shutil.rmtree(self._directory, ignore_errors=True)
        self._job.move_to(stage)

    def _perform(self) -> str:
        """Make attempts until one is not interrupted; return the stage that the job ends in."""
        while (stage := self._attempt()) == "Interrupted":
            with self._lock:
                away_seconds, self._away_seconds = self._away_seconds or 0.0, None
                if not self._stopped_as:
                    self._job.move_to("Interrupted")
            self._end_of_wait.wait(away_seconds)
            with self._lock:
                if self._stopped_as or self._killed:
                    return self._stopped_as or "Stopped"
                self._job.move_to("Starting")
        return stage

    def _attempt(self) -> str:
        """Do what the job is for, on new hosts; return the stage that this ends in."""
        shutil.rmtree(self._directory, ignore_errors=True)
        cluster = Cluster(self._job, self._directory, self._storage)
        with self._lock:
            self._cluster = cluster
        limit = self._job.params.get("StoppingCondition", {}).get("MaxRuntimeInSeconds", DEFAULT_MAX_RUNTIME_SECONDS)
        left_seconds = max(0.0, limit - self._job.used_seconds)
        clock = self._after(left_seconds, partial(self.request_stop, "MaxRuntimeExceeded"))
        try:
            return self._train_on(cluster)
        finally:
            clock.cancel()
            with self._lock:
                self._cluster = None
            cluster.close()

    def _train_on(self, cluster: Cluster) -> str:
        with self._lock:
            if not self._stopped_as:
                self._job.move_to("Downloading")
        try:
            cluster.prepare()
        except (StorageRefused, tarfile.TarError, EOFError, zlib.error, OSError) as error:
            self._job.fail(f"ClientError: Data download failed:Unable to download object {error}")
            return "Failed"
        try:
            self._train(cluster)
        except RehearsalError as error:
            self._job.fail(f"ClientError: {error.message}")
            return "Failed"
        if self._killed:
            return "Stopped"
        with self._lock:
            is_interrupted = self._away_seconds is not None and not self._stopped_as
            if not is_interrupted and not self._stopped_as:
                self._job.move_to("Uploading")
        return self._save_checkpoints(cluster) if is_interrupted else self._upload(cluster)

    def _train(self, cluster: Cluster) -> None:
        """Start every host's program and wait for all; the first that fails ends the others."""
        with self._lock:
            if self._ends_anyway:
                return
            self._job.move_to("Training")
            cluster.start(self._variables, self._listener)
        self._job.fail(cluster.wait(lambda: not self._ends_anyway))

    def _save_checkpoints(self, cluster: Cluster) -> str:
        try:
            cluster.upload_checkpoints()
        except StorageRefused as error:
            self._job.fail(f"ClientError: Artifact upload failed:Unable to upload object {error}")
            return "Failed"
        return "Interrupted"

    def _upload(self, cluster: Cluster) -> str:
        models = [host.model_directory for host in cluster.hosts]
        outputs = [host.output_directory for host in cluster.hosts]
        try:
            cluster.upload_checkpoints()  # first: they are kept even if the artifacts are refused
            upload_artifacts(self._job, models, outputs, self._storage)
        except StorageRefused as error:
            if not self._job.failure_reason:
                self._job.fail(f"ClientError: Artifact upload failed:Unable to upload object {error}")
        if self._job.failure_reason:
            return "Failed"
        return self._stopped_as or "Completed"

    def _variables(self, host: TrainingHost) -> Mapping[str, str]:
        # AWS_REGION and no AWS_DEFAULT_REGION: a container on AWS has no more, and boto3 there wants a region too.
        return {
            "AWS_ENDPOINT_URL": self._site.endpoint_url,
            "AWS_REGION": self._region,
            "AWS_EC2_METADATA_DISABLED": "true",
            **role_credentials(self._job.params["RoleArn"], f"SageMaker-{host.name}"),
        }

    def _listener(self, host: TrainingHost) -> Callable[[str], None]:
        stream = f"{self._job.name}/{host.name}-{int(time.time())}"
        return partial(self._hear, LogStream(self._session, self._region, LOG_GROUP, stream))

    def _hear(self, log: LogStream, line: str) -> None:
        log.write([line])
        self._metrics.read(line)
