"""Load for a long time: no request may fail, and no process may grow.

    python benchmarks/endurance.py [--minutes 30] [--share 0.7] [--json FILE]

It trains a small drawn set, deploys it on one instance behind a function, finds the knee of the instance, and sends
`share` of it for so many minutes, at the times of an open loop. Meanwhile it reads the memory of every process of the
rehearsal from /proc. A process is flat when the slope of its memory is no more than three times the slope's own
standard error, or below a hundredth of its size in an hour, and when it has no more files open at rest after the load
than it had at rest before: connections come and go with the load and close when they are idle, a leak stays. Nor may
there be more processes. Requests fail on a machine that is busy with something else, too: so the minutes in which some
failed are told, and the seconds that the host took from this machine.
"""

import argparse
import json
import os
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy
from rehearsal import train

from opslib.aws import endpoints, load, sweeping
from opslib.rehearsal import daemon
from opslib.specs import EndpointSpec

SAMPLE_EVERY_SECONDS = 5.0
REST_SECONDS = 75.0
"""Longer than the minute for which the rehearsal's servers keep an idle connection open."""
WARM_UP_SHARE = 0.2
"""Of the time: allocators fill their pools and caches reach their bounds, which is no growth."""
MEBIBYTE = 2**20


@dataclass
class Watched:
    """One process: its command, and what was read of it."""

    command: str
    seconds: list[float] = field(default_factory=list)
    rss_bytes: list[int] = field(default_factory=list)

    def growth(self) -> dict[str, float]:
        """Return the memory at the end in MiB, and its slope with the slope's standard error in MiB an hour."""
        first = int(len(self.seconds) * WARM_UP_SHARE)
        hours, sizes = numpy.array(self.seconds[first:]) / 3600, numpy.array(self.rss_bytes[first:]) / MEBIBYTE
        (slope, _), covariance = numpy.polyfit(hours, sizes, 1, cov=True)
        return {"rss_mib": sizes[-1], "slope": slope, "error": covariance[0, 0] ** 0.5}


def descendants(pid: int) -> Iterator[int]:
    """Yield a process and all that it started."""
    yield pid
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            yield from descendants(int(child))


@contextmanager
def watched(pid: int) -> Iterator[dict[int, Watched]]:
    """Read the memory of a tree of processes until the block ends."""
    found: dict[int, Watched] = {}
    over, started = threading.Event(), time.monotonic()

    def look() -> None:
        while not over.wait(SAMPLE_EVERY_SECONDS):
            for one in list(descendants(pid)):
                sample(found, one, time.monotonic() - started)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join()


def sample(found: dict[int, Watched], pid: int, seconds: float) -> None:
    """Add one look at a process, unless it has ended meanwhile."""
    folder = Path(f"/proc/{pid}")
    try:
        pages = int((folder / "statm").read_text().split()[1])
        command = (folder / "cmdline").read_text().replace("\0", " ")
    except (FileNotFoundError, ProcessLookupError):
        return
    process = found.setdefault(pid, Watched(command[:100]))
    process.seconds.append(seconds)
    process.rss_bytes.append(pages * os.sysconf("SC_PAGE_SIZE"))


def files_at_rest(pid: int) -> dict[int, Counter[str]]:
    """Wait until idle connections have closed, and count the open files of a tree of processes by what they are."""
    time.sleep(REST_SECONDS)
    return {one: Counter(open_files(one)) for one in descendants(pid)}


def open_files(pid: int) -> Iterator[str]:
    """Yield what each open file of a process is: a path, or `socket`, `pipe` or the like without its number."""
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed since it was listed
            target = str(link.readlink())
            yield target if target.startswith("/") else target.partition(":")[0]


def stolen_seconds() -> float:
    """Return the seconds that the host gave to other machines, of all cores, since this one started."""
    return int(Path("/proc/stat").read_text().split(maxsplit=9)[8]) / os.sysconf("SC_CLK_TCK")


def is_flat(growth: dict[str, object]) -> bool:
    """Tell whether a process does not grow: not more than its noise, or than a hundredth in an hour."""
    return growth["slope"] <= max(3 * growth["error"], growth["rss_mib"] / 100) and not growth["files_more"]


def measure(directory: Path, minutes: float, share: float, server: int) -> dict[str, object]:
    """Return the figures of the load, and of every process that lived through it."""
    run, model_uri, role, photo = train(directory)
    endpoint = endpoints.deploy_model(run, EndpointSpec(), model_uri=model_uri, role=role, overrule_gate=True)
    target = load.endpoint_target(endpoint, photo)
    knee = load.find_knee(target)
    rate = share * knee.max_rps
    print(f"one instance takes {knee.max_rps:.1f} requests/s; {minutes:g} minutes at {rate:.1f} follow", flush=True)
    before, stolen = files_at_rest(server), stolen_seconds()
    with watched(server) as processes:
        report = load.run_load(target, load.LoadPlan.constant(rate, minutes * 60))
    after = files_at_rest(server)
    lived = {pid for pid, one in processes.items() if len(one.seconds) >= 10} & before.keys() & after.keys()
    rows = {
        processes[pid].command: processes[pid].growth() | {"files_more": dict(after[pid] - before[pid])}
        for pid in sorted(lived)
    }
    return {
        "knee_rps": knee.max_rps,
        "rate_rps": rate,
        "requests": report.requests,
        "failed": report.requests - report.answered,
        "failed_by_minute": failed_by_minute(report),
        "stolen_seconds": round(stolen_seconds() - stolen, 1),
        "p95_ms": report.p95_ms,
        "processes": rows,
        "processes_more": len(after) - len(before),
        "flat": all(map(is_flat, rows.values())) and len(after) <= len(before),
        "left": len(sweeping.sweep(run).leftovers),
    }


def failed_by_minute(report: load.LoadReport) -> dict[int, int]:
    """Return the minutes of the load in which requests failed, and how many."""
    moments = zip(report.due, report.outcomes, strict=True)
    return dict(sorted(Counter(int(due // 60) for due, outcome in moments if outcome != load.ANSWERED).items()))


def show(figures: dict[str, object]) -> None:
    """Print the figures, a row for each process."""
    for name, figure in figures.items():
        if name != "processes":
            print(f"{name:<16}{figure}")
    print(f"{'MiB':>8}{'MiB/h':>9}{'+-':>8}{'files':>7}  process")
    for command, growth in figures["processes"].items():
        files, verdict = sum(growth["files_more"].values()), "" if is_flat(growth) else "GROWS"
        cells = f"{growth['rss_mib']:8.1f}{growth['slope']:9.2f}{growth['error']:8.2f}{files:+7d}"
        print(f"{cells}  {command}  {verdict}")


def main() -> None:
    """Measure, print, and write the figures as JSON when asked to; end with 1 when a request failed or one grew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--share", type=float, default=0.7, help="of the knee's requests/s (default %(default)s)")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["OPSLIB_REHEARSAL_HOME"] = str(Path(scratch) / "rehearsal")
        # Not in this process: the generator's own lists of latencies grow, as they must.
        state = daemon.ensure_started("us-east-1", 0, 1.0)
        os.environ.update(state.variables)
        try:
            figures = measure(Path(scratch), options.minutes, options.share, state.pid)
        finally:
            daemon.ensure_stopped()
    show(figures)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    raise SystemExit(0 if figures["flat"] and not figures["failed"] else 1)


if __name__ == "__main__":
    main()
