"""The load generator against targets that are slow, that stall, that refuse: what it sends, and what it says of it."""

import contextlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy
import pytest

from opslib.aws import load

TARGET = load.endpoint_target("dogs", b"\xff\xd8\xff a photo")
CROWD = 150


class Stalling(ThreadingHTTPServer):
    """Answers nobody until a crowd waits; after ten seconds without one it answers all the same."""

    request_queue_size = CROWD
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.crowd = threading.Barrier(CROWD)


class _Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        with contextlib.suppress(threading.BrokenBarrierError):
            self.server.crowd.wait(10)
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"[]")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def at(monkeypatch):
    """Send what is meant for AWS to a port of this machine."""

    def point(port: int) -> None:
        for name, value in {"ACCESS_KEY_ID": "x", "SECRET_ACCESS_KEY": "x", "DEFAULT_REGION": "us-east-1"}.items():
            monkeypatch.setenv(f"AWS_{name}", value)
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")

    return point


@pytest.fixture
def stalling() -> Iterator[Stalling]:
    with Stalling() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_a_target_that_stalls_gets_its_requests_when_they_are_due(at, stalling) -> None:
    at(stalling.server_port)
    report = load.run_load(TARGET, load.LoadPlan.constant(CROWD, 1), senders=1)
    assert report.answered == CROWD
    # The crowd is there after a second: the first to come has waited for as long, and none for longer.
    assert 500 < report.latencies_ms.max() < 9000


def test_what_is_refused_is_told_by_name(at) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Answer) as gone:
        port = gone.server_port
    at(port)
    report = load.run_load(TARGET, load.LoadPlan.constant(20, 0.5))
    assert report.counts == {"EndpointConnectionError": 10}
    assert "EndpointConnectionError  10" in str(report)
    assert "nothing was answered" in str(report)


def one_at_a_time(seconds: float, late_ms: float = 0.0):
    """Stand in for `run_load`: a target that needs so long for an answer, and answers one request after the other."""

    def run_load(_target: load.Target, plan: load.LoadPlan, **_: object) -> load.LoadReport:
        free, latencies, due = 0.0, [], plan.due_seconds()
        for moment in due:
            free = max(free, moment) + seconds
            latencies.append(1000 * (free - moment) + (late_ms if plan.peak_rps > 100 else 0))
        answered = (load.ANSWERED,) * len(due)
        late = late_ms if plan.peak_rps > 100 else 0.0
        return load.LoadReport(plan, numpy.array(due), numpy.array(latencies), answered, 0.0, late)

    return run_load


def test_answers_per_second_are_the_targets_where_it_falls_behind() -> None:
    plan = load.LoadPlan.constant(10, 2)
    assert one_at_a_time(0.5)(TARGET, plan).answered_rps == pytest.approx(2, rel=0.02)
    assert one_at_a_time(0.001)(TARGET, plan).answered_rps == pytest.approx(10, rel=0.01)


@pytest.mark.parametrize("seconds", [4.0, 2.0, 0.4, 0.05, 0.004])
def test_the_knee_of_a_target_however_slow_it_is(monkeypatch, seconds) -> None:
    monkeypatch.setattr(load, "run_load", one_at_a_time(seconds))
    knee = load.find_knee(TARGET)
    assert knee.idle_ms == pytest.approx(1000 * seconds)
    assert 0.8 < knee.max_rps * seconds < 1.25
    assert not knee.is_generator_limited


def test_a_knee_beyond_which_the_generator_was_late_says_so(monkeypatch) -> None:
    monkeypatch.setattr(load, "run_load", one_at_a_time(0.001, late_ms=50))
    knee = load.find_knee(TARGET)
    assert knee.max_rps <= 100
    assert knee.is_generator_limited
