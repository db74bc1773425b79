"""Load on an endpoint or a function: requests at given moments, and what became of each.

The loop is open: requests are sent when they are due, not when the one before is answered, as those of many callers
are. A latency counts from the moment at which its request was due: where a slow answer holds others up, their wait is
in the figures (https://www.scylladb.com/2021/04/22/on-coordinated-omission/). Nothing is sent twice.
"""

import base64
import json
import math
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import numpy

from opslib.aws.load_report import LATE_SECONDS, LoadReport
from opslib.aws.load_sender import ANSWERED, THROTTLED
from opslib.aws.predictions import VERBOSE, content_type_of
from opslib.errors import ConfigurationError, OpslibError
from opslib.load_plan import LoadPlan

__all__ = [
    "ANSWERED", "THROTTLED", "Knee", "LoadPlan", "LoadProgress", "LoadReport", "Target", "endpoint_target", "find_knee",
    "function_target", "holds", "run_load",
]  # fmt: skip

_START_SECONDS = 60.0
_REQUESTS_PER_SENDER = 60.0
"""Requests/s of one process: a third of what boto3 can send from one core."""
_MOST_SENDERS = 8
_THREADS = 512
"""Requests that a sender may have under way: what comes in the seconds for which a target stalls."""
_LEAST_REQUESTS = 20
"""At each rate: too many callers of a slow target must have the time to queue up."""


@dataclass(frozen=True)
class Target:
    """What is asked, and with what: made by `endpoint_target` or `function_target`."""

    kind: str
    name: str
    body: bytes
    content_type: str = "application/json"
    extra: dict[str, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return it as the senders read it."""
        return {**vars(self), "body": base64.b64encode(self.body).decode()}


def endpoint_target(name: str, photo: bytes, *, variant: str = "") -> Target:
    """Ask an endpoint what is in a photo; `variant` asks one of its production variants."""
    extra = {"Accept": VERBOSE} | ({"TargetVariant": variant} if variant else {})
    return Target("endpoint", name, photo, content_type_of(photo), extra)


def function_target(name: str, event: dict[str, Any], *, qualifier: str = "") -> Target:
    """Invoke a function with an event; `qualifier` names a version or an alias."""
    extra = {"Qualifier": qualifier} if qualifier else {}
    return Target("function", name, json.dumps(event).encode(), extra=extra)


@dataclass(frozen=True)
class LoadProgress:
    """A look at a load while it runs: seconds on the wall, and what became of the requests so far."""

    elapsed_seconds: float
    seconds: float
    requests: int
    sent: int
    counts: Counter[str]
    recent_p95_ms: float


def run_load(
    target: Target, plan: LoadPlan, *, on_progress: Callable[[LoadProgress], object] | None = None, senders: int = 0
) -> LoadReport:
    """Send a plan's requests to a target and return what became of each.

    Args:
        target: What to ask.
        plan: When.
        on_progress: Receives a look about every fifth of a second.
        senders: Processes that send; 0 takes one for every 60 requests/s, at most eight.

    Raises:
        OpslibError: a sender did not start, or ended early.
        ConfigurationError: the plan has no request in it.
    """
    due = plan.due_seconds()
    if not due:
        raise ConfigurationError("the plan has no request in it", hint="raise its rate or its seconds")
    count = senders or min(_MOST_SENDERS, max(1, math.ceil(plan.peak_rps / _REQUESTS_PER_SENDER)))
    with ExitStack() as stack:
        processes = [stack.enter_context(_sender(target, due[number::count])) for number in range(count)]
        for process in processes:
            _require_ready(process)
        begin = time.time() + 0.05
        rows = _collected(processes, begin, plan, len(due), on_progress)
    if len(rows) != len(due):
        raise OpslibError(f"{len(due) - len(rows)} of {len(due)} requests have no outcome: a sender ended early")
    return _report(plan, sorted(rows))


@contextmanager
def _sender(target: Target, due: Sequence[float]) -> Iterator[subprocess.Popen]:
    command = [sys.executable, "-m", "opslib.aws.load_sender"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=dict(os.environ))
    try:
        order = {"target": target.as_json(), "due": list(due), "threads": _THREADS}
        with suppress(BrokenPipeError):  # it has ended: whoever waits for it to be ready says so
            process.stdin.write(json.dumps(order) + "\n")
            process.stdin.flush()
        yield process
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            with suppress(BrokenPipeError):
                pipe.close()


def _require_ready(process: subprocess.Popen) -> None:
    watchdog = threading.Timer(_START_SECONDS, process.kill)
    watchdog.start()
    ready = process.stdout.readline()
    watchdog.cancel()
    if not ready:
        raise OpslibError("a sender of requests did not start", hint="its error is above, on standard error")


def _collected(
    processes: Sequence[subprocess.Popen],
    begin: float,
    plan: LoadPlan,
    requests: int,
    on_progress: Callable[[LoadProgress], object] | None,
) -> list[list[Any]]:
    rows: list[list[Any]] = []

    def read(process: subprocess.Popen, number: int) -> None:
        for line in process.stdout:
            rows.extend([*row, number] for row in json.loads(line))

    readers = [threading.Thread(target=read, args=(one, number), daemon=True) for number, one in enumerate(processes)]
    for process, reader in zip(processes, readers, strict=True):
        process.stdin.write(f"{begin!r}\n")
        process.stdin.flush()
        reader.start()
    while any(reader.is_alive() for reader in readers):
        time.sleep(0.2)
        if on_progress is not None:
            on_progress(_look(rows[:], time.time() - begin, plan, requests))
    return rows


def _look(rows: Sequence[Sequence[Any]], elapsed: float, plan: LoadPlan, requests: int) -> LoadProgress:
    recent = [1000 * (ended - due) for due, _, ended, outcome, _ in rows[-500:] if outcome == ANSWERED]
    p95 = float(numpy.percentile(recent, 95)) if recent else math.nan
    counts = Counter(row[3] for row in rows)
    return LoadProgress(max(0.0, elapsed), plan.seconds, requests, len(rows), counts, p95)


def _report(plan: LoadPlan, rows: Sequence[Sequence[Any]]) -> LoadReport:
    due, started, ended = (numpy.array([row[column] for row in rows], dtype=float) for column in range(3))
    senders, late = numpy.array([row[4] for row in rows]), started - due
    for number in set(senders.tolist()):
        own = senders == number
        begun, done = numpy.sort(started[own]), numpy.sort(ended[own])
        under_way = numpy.searchsorted(begun, due[own]) - numpy.searchsorted(done, due[own])
        # A request that waits for a free thread waits for the target: it is late, too, but not the generator's fault.
        late[own] = numpy.where(under_way < _THREADS, late[own], 0.0)
    late_share, late_p95_ms = float((late > LATE_SECONDS).mean()), 1000 * float(numpy.percentile(late, 95))
    return LoadReport(plan, due, 1000 * (ended - due), tuple(row[3] for row in rows), late_share, late_p95_ms)


@dataclass(frozen=True)
class Knee:
    """The most that a target takes while it still answers quickly.

    Attributes:
        max_rps: The highest rate at which all is well, in requests/s.
        p95_ms: The 95th percentile of the latencies at that rate.
        idle_ms: The median latency of one request at a time.
        limit_ms: The highest p95 that counts as quick.
        evidence: What each rate brought, in the order in which they were tried.
    """

    max_rps: float
    p95_ms: float
    idle_ms: float
    limit_ms: float
    evidence: tuple[LoadReport, ...]

    @property
    def is_generator_limited(self) -> bool:
        """Whether the generator was late at the highest rate that held, or the next one: the target may take more."""
        beyond = [one.plan.peak_rps for one in self.evidence if one.plan.peak_rps > self.max_rps]
        edges = {self.max_rps, min(beyond, default=self.max_rps)}
        near = [one for one in self.evidence if one.plan.peak_rps in edges]
        return any(one.is_generator_limited or one.late_p95_ms > self.limit_ms / 2 for one in near)

    def rows(self) -> list[tuple[float, float, float, bool]]:
        """Return a row for each rate, the lowest first: requests/s, share answered, p95 in ms, and whether it held."""
        found = [(one.plan.peak_rps, one.success_rate, one.p95_ms, holds(one, self.limit_ms)) for one in self.evidence]
        return sorted(found)

    def _repr_html_(self) -> str:
        heads = "<tr><th>requests/s</th><th>answered</th><th>p95</th><th></th></tr>"
        cells = "".join(
            f"<tr><td>{rate:.1f}</td><td>{share:.1%}</td><td>{p95:.0f} ms</td><td>{'held' if held else 'too much'}</td>"
            "</tr>"
            for rate, share, p95, held in self.rows()
        )
        summary = f"{self.max_rps:.1f} requests/s with p95 {self.p95_ms:.0f} ms (at most {self.limit_ms:.0f} ms)"
        if self.is_generator_limited:
            summary += "; the generator itself was late: the target may take more"
        return f"<table>{heads}{cells}</table><p>knee: {summary}</p>"


def find_knee(
    target: Target,
    *,
    limit_ms: float = 0.0,
    step_seconds: float = 5.0,
    refinements: int = 3,
    on_progress: Callable[[LoadProgress], object] | None = None,
) -> Knee:
    """Find the highest rate that a target answers quickly and completely.

    The rate is doubled until it is too much, then the last interval is halved a few times. It is too much when less
    than 99 % is answered, or when the 95th percentile of the latencies is above the limit. A target that needs seconds
    for an answer takes minutes: twenty requests are sent at each rate.

    Args:
        target: What to ask: one instance, for a figure that can be multiplied.
        limit_ms: The highest p95 that counts as quick; 0 takes four times the median of one request at a time.
        step_seconds: How long each rate is held at least.
        refinements: How often the last interval is halved.
        on_progress: Receives looks at each step.

    Raises:
        OpslibError: the target does not answer even one request at a time.
    """
    alone = _alone(target, step_seconds, on_progress)
    limit = limit_ms or 4 * alone.p50_ms
    evidence: list[LoadReport] = []

    def is_well(rate: float) -> bool:
        steady = LoadPlan.constant(rate, max(step_seconds, _LEAST_REQUESTS / rate))
        evidence.append(run_load(target, steady, on_progress=on_progress))
        return holds(evidence[-1], limit)

    good, bad = 0.0, max(2 * alone.plan.peak_rps, 500 / alone.p50_ms)
    while is_well(bad):
        good, bad = bad, 2 * bad
        if evidence[-1].is_generator_limited:  # a higher rate would measure the generator
            return _knee(good, alone.p50_ms, limit, evidence)
    for _ in range(refinements if good else refinements + 2):
        middle = (good + bad) / 2
        good, bad = (middle, bad) if is_well(middle) else (good, middle)
    return _knee(good, alone.p50_ms, limit, evidence)


def _alone(target: Target, seconds: float, on_progress: Callable[[LoadProgress], object] | None) -> LoadReport:
    """Send requests so far apart that none waits for another; the first one wakes the target up."""
    single = LoadPlan.constant(10.0, 0.1)
    for _ in range(2):
        report = run_load(target, single, on_progress=on_progress)
        if report.success_rate < 1:
            raise OpslibError(f"the target does not answer even one request at a time: {dict(report.counts)}")
    rate = min(2.0, 500 / report.p50_ms)
    report = run_load(target, LoadPlan.constant(rate, max(3.0, seconds / 2, 4 / rate)), on_progress=on_progress)
    if report.success_rate < 1:
        raise OpslibError(f"the target does not answer at {rate:.2g} requests/s: {dict(report.counts)}")
    return report


def _knee(rate: float, idle_ms: float, limit_ms: float, evidence: Sequence[LoadReport]) -> Knee:
    held = [one for one in evidence if one.plan.peak_rps == rate]
    return Knee(rate, held[-1].p95_ms if held else math.nan, idle_ms, limit_ms, tuple(evidence))


def holds(report: LoadReport, limit_ms: float) -> bool:
    """Tell whether a target was equal to a load: at least 99 % answered, the 95th percentile within the limit."""
    return report.success_rate >= 0.99 and report.p95_ms <= limit_ms
