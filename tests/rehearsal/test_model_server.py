"""The PyTorch container's program, asked directly: more than it can take, and clients that leave."""

import http.client
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from opslib.rehearsal.endpoints import model_server
from tests.rehearsal.serving import until

INFERENCE = """
import os, time

def model_fn(model_dir):
    return os.path.join(model_dir, "go")

def predict_fn(data, go):
    while data == b"wait" and not os.path.exists(go):
        time.sleep(0.01)
    return data

def input_fn(body, content_type):
    return body

def output_fn(prediction, accept):
    return prediction, "text/plain"
"""


class Serving:
    """A running server: its port, its model's folder and its log."""

    def __init__(self, port: int, model: Path) -> None:
        self.port, self.model, self.log = port, model, model.parent / "log"

    def ask(self, body: bytes = b"now", path: str = "/invocations") -> int:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request("POST" if body else "GET", path, body, {"Content-Type": "text/plain"})
            return connection.getresponse().status
        finally:
            connection.close()


@pytest.fixture
def serving(tmp_path) -> Iterator[Serving]:
    model = tmp_path / "model"
    (model / "code").mkdir(parents=True)
    (model / "code" / "inference.py").write_text(INFERENCE)
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    command = [sys.executable, "-P", model_server.__file__, "--socket", str(listener.fileno())]
    variables = {**os.environ, "SM_MODEL_DIR": str(model)}
    server = Serving(listener.getsockname()[1], model)
    with listener, server.log.open("w") as log:
        process = subprocess.Popen(command, pass_fds=[listener.fileno()], env=variables, stdout=log, stderr=log)
    try:
        until(lambda: server.ask(b"", "/ping") == 200)
        yield server
    finally:
        (model / "go").touch()
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def test_a_queue_that_is_full_is_said_at_once(serving):
    over = 20
    with ThreadPoolExecutor(model_server.JOB_QUEUE_SIZE + 1 + over) as pool:
        answers = [pool.submit(serving.ask, b"wait") for _ in range(model_server.JOB_QUEUE_SIZE + 1 + over)]
        until(lambda: sum(answer.done() for answer in answers) == over)
        assert {answer.result() for answer in answers if answer.done()} == {503}
        assert serving.ask(b"", "/ping") == 200
        (serving.model / "go").touch()
        assert sum(answer.result() == 200 for answer in answers) == model_server.JOB_QUEUE_SIZE + 1
    assert serving.ask() == 200


def test_a_client_that_leaves_is_no_failure(serving):
    with socket.create_connection(("127.0.0.1", serving.port)) as client:
        client.sendall(b"POST /invocations HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nhalf of it")
    with socket.create_connection(("127.0.0.1", serving.port)) as client:
        client.sendall(b"POST /invocations HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nhalf of it")
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1000) == b""
    assert serving.ask() == 200
    assert "Traceback" not in serving.log.read_text()
