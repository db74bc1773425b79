"""The run of a transform job: instances are started, every file is sent through one of them, its answers are written.

A file with a record that fails gets no output; the other files do, and the job fails. Source:
docs.aws.amazon.com/sagemaker/latest/dg/batch-transform.html
"""

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from moto.sagemaker.models import Model

from opslib.errors import OpslibError
from opslib.rehearsal.endpoints.instances import ModelNotServing
from opslib.rehearsal.endpoints.model_data import ModelDataFailed
from opslib.rehearsal.identity import assume_role
from opslib.rehearsal.role_storage import RoleStorage, StorageRefused, split_uri
from opslib.rehearsal.site import Site
from opslib.rehearsal.transforms.host import RequestFailed, TransformHost
from opslib.rehearsal.transforms.inputs import InputFailed, InputFile, find_files, read_file
from opslib.rehearsal.transforms.job import TransformJob
from opslib.rehearsal.transforms.records import PayloadTooLarge, cut, put_together

_NO_PING = (
    "AlgorithmError: Model container failed to respond to ping. Please ensure /ping endpoint is implemented and "
    "responds with an HTTP 200 status code"
)
_INTERNAL = "InternalServerError: We encountered an internal error. Please try again."
_SEE_LOGS = "See job logs for more information"


class TransformRun:
    """Runs one job on a thread; `request_stop` ends it early."""

    def __init__(self, job: TransformJob, model: Model, site: Site, region: str) -> None:
        """Open the session of the model's role, in which the job works."""
        session = assume_role(model.execution_role_arn, "SageMaker")
        self._job = job
        self._region = region
        self._storage = RoleStorage(session)
        count = job.params["TransformResources"]["InstanceCount"]
        self._hosts = [TransformHost(job, model, site, session, region) for _ in range(count)]
        self._thread = threading.Thread(target=self._run, name=f"transform-{job.name}", daemon=True)

    def start(self) -> None:
        """Start the job's thread."""
        self._thread.start()

    def request_stop(self) -> None:
        """End the job; what is written stays."""
        if self._job.ask_to_stop():
            self._close_hosts()

    def kill(self) -> None:
        """End the job at once and wait for its thread: the rehearsal is over."""
        self.request_stop()
        self._thread.join()

    def _run(self) -> None:
        reason = _INTERNAL
        try:
            reason = self._perform()
        finally:
            self._close_hosts()
            self._job.end(reason)

    def _perform(self) -> str:
        """Do what the job is for; return why it failed, or nothing."""
        try:
            files = find_files(self._job.params, self._storage, self._region)
            with ThreadPoolExecutor(len(self._hosts)) as pool:
                list(pool.map(TransformHost.start, self._hosts))
        except (InputFailed, ModelDataFailed, OpslibError) as error:
            return f"ClientError: {error}"
        except ModelNotServing:
            return _NO_PING
        self._job.begin()
        with ThreadPoolExecutor(len(self._hosts)) as pool:
            shares = [files[position :: len(self._hosts)] for position in range(len(self._hosts))]
            kinds = {kind for found in pool.map(self._transform_share, self._hosts, shares) for kind in found}
        for kind in ("AlgorithmError", "ClientError"):
            if kind in kinds:
                return f"{kind}: {_SEE_LOGS}"
        return ""

    def _transform_share(self, host: TransformHost, files: Sequence[InputFile]) -> set[str]:
        """Send an instance's files through it; return the kinds of errors that there were."""
        kinds = set()
        with ThreadPoolExecutor(self._job.requests_at_once) as senders:
            for file in files:
                if self._job.is_stopped():
                    break
                with _noted(host, file, kinds):
                    self._transform(host, file, senders)
        return kinds

    def _transform(self, host: TransformHost, file: InputFile, senders: ThreadPoolExecutor) -> None:
        is_gzip = self._job.params["TransformInput"].get("CompressionType", "None") == "Gzip"
        content = read_file(file, self._storage, is_gzip=is_gzip)
        max_bytes = self._job.max_payload_mb * 2**20 or None
        bodies = cut(content, by_line=self._job.by_line, many_at_once=self._job.many_at_once, max_bytes=max_bytes)
        answers = senders.map(host.ask, list(bodies))  # in the order of the bodies; the first failure ends it
        by_line = self._job.params["TransformOutput"].get("AssembleWith", "None") == "Line"
        output = put_together(list(answers), by_line=by_line)
        bucket, _ = split_uri(self._job.params["TransformOutput"]["S3OutputPath"])
        self._storage.write(bucket, file.output_key, output)

    def _close_hosts(self) -> None:
        for host in self._hosts:
            host.close()


@contextmanager
def _noted(host: TransformHost, file: InputFile, kinds: set[str]) -> Iterator[None]:
    """Note a file's failure in the data log and in `kinds`."""
    try:
        yield
    except RequestFailed as failure:
        kind, text = failure.kind, str(failure)
    except PayloadTooLarge:
        kind, text = "ClientError", "Too much data for max payload size"
    except (InputFailed, StorageRefused) as error:
        kind, text = "ClientError", f"ClientError: {error}"
    else:
        return
    kinds.add(kind)
    host.note("\n".join(f"{file.bucket}/{file.key}: {line}" for line in text.splitlines()))
