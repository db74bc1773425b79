"""The hosts of a training job while they have their instances: prepared, started, watched and ended together."""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from opslib.rehearsal.processes.termination import terminate_program
from opslib.rehearsal.role_storage import RoleStorage
from opslib.rehearsal.training.channels import read_channels
from opslib.rehearsal.training.checkpoints import CheckpointSync
from opslib.rehearsal.training.host import TrainingHost
from opslib.rehearsal.training.job import TrainingJob
from opslib.rehearsal.training.ports import HeldPort

LAST_WORDS_SECONDS = 1.0
"""How long the others may go on when a host has failed: the one that was lost may say so after the others."""

IDLE_SECONDS = 60.0
"""How long a host may neither compute nor print when another has ended; on AWS it would hang until MaxRuntime."""

_IDLE_SHARE = 0.05  # of one core: a launcher that only looks for its workers' end uses less
_WATCH_SECONDS = 0.2
_KILLED = 128  # exit codes above are those of signals


@dataclass
class _Activity:
    """When a host was last seen to do something, and its figures then."""

    since: float
    cpu_seconds: float
    lines: int


class Cluster:
    """The hosts of one attempt at a job; `directory` is theirs alone."""

    def __init__(self, job: TrainingJob, directory: Path, storage: RoleStorage) -> None:
        count = job.params["ResourceConfig"].get("InstanceCount", 1)
        self.hosts = [TrainingHost(job, directory, position, count) for position in range(count)]
        self._job = job
        self._storage = storage
        self._port = HeldPort()
        self._syncs = [self._sync(host) for host in self.hosts]
        self._activities: dict[str, _Activity] = {}

    def _sync(self, host: TrainingHost) -> CheckpointSync:
        return CheckpointSync(
            self._job, host.checkpoint_directory, self._storage, lambda: host.process.pid if host.process else None
        )

    def prepare(self) -> None:
        """Lay out every host's directory and fetch its input and checkpoints.

        Raises:
            StorageRefused: an object cannot be read.
            tarfile.TarError: the code's archive is none.
        """
        channels = read_channels(self._job.params)
        for host, sync in zip(self.hosts, self._syncs, strict=True):
            host.prepare(channels, self._storage, self._port.number)
            sync.fetch()

    def start(
        self,
        variables: Callable[[TrainingHost], Mapping[str, str]],
        listener: Callable[[TrainingHost], Callable[[str], None]],
    ) -> None:
        """Start every host's program, with `variables(host)`; `listener(host)` gets its lines.

        Raises:
            RehearsalError: the command cannot be run.
        """
        for host, sync in zip(self.hosts, self._syncs, strict=True):
            host.start(variables(host), listener(host))
            sync.start()

    def wait(self, failure_counts: Callable[[], bool]) -> str:
        """Wait for the last host; return why the job fails, or "" when no host failed.

        The first host that fails ends the others, unless `failure_counts` says that the job is being ended anyway.
        """
        failed: list[tuple[TrainingHost, int]] = []
        hung, is_killed = "", False
        kill_at = float("inf")
        with ThreadPoolExecutor(len(self.hosts)) as waiters:
            pending = {waiters.submit(host.process.wait): host for host in self.hosts if host.process}
            while pending:
                ended_some = len(pending) < len(self.hosts)
                for host, code in _ended(pending, _WATCH_SECONDS if ended_some else None):
                    if code and not is_killed and failure_counts():
                        failed.append((host, code))
                        gathering = 0.0 if code > _KILLED else LAST_WORDS_SECONDS
                        kill_at = min(kill_at, time.monotonic() + gathering)
                if not failed and not hung:
                    hung = self._hung(list(pending.values())) if failure_counts() else ""
                if hung or time.monotonic() >= kill_at:
                    is_killed = True
                    self.kill()
        return hung if not failed else _cause(failed)

    def terminate(self, grace_seconds: float) -> None:
        """Send SIGTERM to every host's program."""
        for host in self.hosts:
            if host.process and not terminate_program(host.process.pid):
                host.process.terminate(grace_seconds)

    def kill(self) -> None:
        """End every host at once."""
        for host in self.hosts:
            if host.process:
                host.process.kill()

    def upload_checkpoints(self) -> None:
        """Upload what is not in S3 yet.

        Raises:
            StorageRefused: the role may not write there, or there is no such bucket.
        """
        for sync in self._syncs:
            sync.finish()

    def close(self) -> None:
        """Give back what the hosts held; they have ended."""
        self.kill()
        for sync in self._syncs:
            sync.abandon()
        self._port.release()

    def _hung(self, waiting_for: list[TrainingHost]) -> str:
        """Return why the job fails when a host does nothing any more although another has ended."""
        if len(waiting_for) == len(self.hosts):
            return ""
        moment = time.monotonic()
        for host in waiting_for:
            seen = self._activities.get(host.name)
            activity = _Activity(moment, host.cpu_seconds(), host.lines_heard)
            if seen is None or _was_active(seen, activity):
                self._activities[host.name] = activity
            elif moment - seen.since > IDLE_SECONDS:
                words = f"neither computed nor printed for {IDLE_SECONDS:.0f} seconds after another host had ended"
                return f"AlgorithmError: {host.name}: {words}, exit code: 137"
        return ""


def _was_active(before: _Activity, after: _Activity) -> bool:
    passed = after.since - before.since
    computed = abs(after.cpu_seconds - before.cpu_seconds)  # it falls when a process ends
    return after.lines != before.lines or (passed >= 1.0 and computed > _IDLE_SHARE * passed)


def _ended(pending: dict[Future[int], TrainingHost], seconds: float | None) -> list[tuple[TrainingHost, int]]:
    """Return the hosts that have ended within some seconds, with their exit codes, and wait for them no longer."""
    done, _ = wait(pending, timeout=seconds, return_when=FIRST_COMPLETED)
    return [(pending.pop(ending), ending.result()) for ending in done]


def _cause(failed: list[tuple[TrainingHost, int]]) -> str:
    """Return the FailureReason: that of the host that was killed, or whose worker was, before those that missed it."""
    reasons = [(host.failure_reason(code), code) for host, code in failed]
    killed = [reason for reason, code in reasons if code > _KILLED or "SIGKILL" in reason]
    return (killed or [reasons[0][0]])[0]
