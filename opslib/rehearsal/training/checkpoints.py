"""A host's checkpoints: fetched before it starts, and uploaded to CheckpointConfig's address while it runs.

AWS copies what changes in the directory all the time. So does this, about every second, and is stricter: a file goes to
S3 when it has not changed since the look before, no process of the host has it open to write, and its name is not that
of a temporary file, so that no half of a checkpoint is ever there. Unlike here, AWS also deletes in S3 what is deleted
in the directory: https://docs.aws.amazon.com/sagemaker/latest/dg/model-checkpoints.html
"""

import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil

from opslib.rehearsal.role_storage import RoleStorage, StorageRefused, split_uri
from opslib.rehearsal.training.channels import Channel, fetch_channel
from opslib.rehearsal.training.job import TrainingJob

LOOK_SECONDS = 0.5
"""Time between two looks at the directory; a file is uploaded at the second look that finds it unchanged."""

_TEMPORARY = re.compile(r".*\.(tmp|temp|part|partial)([-._~0-9].*)?|\.partial.*|\.?tmp\w{8}")
_WRITING = re.compile(r"[wa+]")
Signature = tuple[int, int, int]
"""A file's inode, time of change in nanoseconds and size in bytes: together they change with its content."""


class CheckpointSync:
    """Keeps S3 up to date with one host's checkpoint directory; does nothing for a job without CheckpointConfig."""

    def __init__(self, job: TrainingJob, directory: Path, storage: RoleStorage, pid: Callable[[], int | None]) -> None:
        """Prepare it; `pid` returns the id of the host's program, once there is one."""
        self._uri = _uri(job)
        self._directory = directory
        self._storage = storage
        self._pid = pid
        self._uploaded: dict[str, Signature] = {}
        self._seen: dict[str, Signature] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, name=f"checkpoints-{job.name}", daemon=True)

    def fetch(self) -> None:
        """Bring the host what earlier jobs, or this one before an interruption, left in S3.

        Raises:
            StorageRefused: one of them cannot be read.
        """
        if self._uri:
            self._directory.mkdir(parents=True, exist_ok=True)
            channel = Channel("checkpoints", self._uri, "S3Prefix", "FullyReplicated", {})
            fetch_channel(channel, self._storage, self._directory, (0, 1))
            self._uploaded = dict(self._files())

    def start(self) -> None:
        """Follow the directory from now on."""
        if self._uri:
            self._thread.start()

    def finish(self) -> None:
        """Upload what is not in S3 yet; the host has ended.

        Raises:
            StorageRefused: the role may not write there, or there is no such bucket.
        """
        self.abandon()
        for name, signature in self._files() if self._uri else ():
            if self._uploaded.get(name) != signature:
                self._upload(name, signature)

    def abandon(self) -> None:
        """Follow it no longer."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def _follow(self) -> None:
        while not self._ended.wait(LOOK_SECONDS):
            with suppress(StorageRefused):  # the job learns of it at its end, as on AWS
                self._look()

    def _look(self) -> None:
        found = dict(self._files())
        changed = {name: signature for name, signature in found.items() if self._uploaded.get(name) != signature}
        at_rest = [name for name, signature in changed.items() if self._seen.get(name) == signature]
        self._seen = found
        written = _open_to_write(self._pid()) if at_rest else set()
        for name in at_rest:
            if str(self._directory / name) not in written:
                self._upload(name, changed[name])

    def _upload(self, name: str, signature: Signature) -> None:
        content = _read(self._directory / name, signature)
        if content is not None:
            bucket, prefix = split_uri(self._uri)
            self._storage.write(bucket, f"{prefix}{name}", content)
            self._uploaded[name] = signature

    def _files(self) -> Iterator[tuple[str, Signature]]:
        for folder, _, names in os.walk(self._directory):
            for path in (Path(folder, name) for name in names if not _TEMPORARY.fullmatch(name)):
                with suppress(OSError):  # it has just been renamed or deleted
                    if path.is_file():
                        yield str(path.relative_to(self._directory)), _signature(path.stat())


def _uri(job: TrainingJob) -> str:
    uri = job.params.get("CheckpointConfig", {}).get("S3Uri", "")
    return f"{uri.rstrip('/')}/" if uri else ""


def _signature(status: os.stat_result) -> Signature:
    return status.st_ino, status.st_mtime_ns, status.st_size


def _read(path: Path, signature: Signature) -> bytes | None:
    """Return the content that belongs to a signature; None when the file is another meanwhile."""
    try:
        with path.open("rb") as file:
            content = file.read()
            unchanged = _signature(os.fstat(file.fileno())) == signature
    except OSError:
        return None
    return content if unchanged else None


def _open_to_write(pid: int | None) -> set[str]:
    """Return the files that a program and its descendants write at the moment; only Linux tells."""
    written: set[str] = set()
    with suppress(psutil.Error):
        root = psutil.Process(pid)
        for process in (root, *root.children(recursive=True)):
            with suppress(psutil.Error):
                files = process.open_files()
                written |= {file.path for file in files if _WRITING.search(getattr(file, "mode", "r"))}
    return written
