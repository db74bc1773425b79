"""Downloads against a real server that breaks off, changes its mind and lies."""

import hashlib
import random
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from opslib.errors import DownloadError
from opslib.vision.download import download

CONTENT = random.Random(0).randbytes(1_000_000)
CHECKSUM = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves `content`, at most `bytes_per_answer` of it at a time; `requests` keeps the Range headers."""

    content, tag, bytes_per_answer, status = CONTENT, '"one"', 10**9, 0

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests = []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/dogs.zip"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server, asked = self.server, self.headers.get("Range")
        server.requests.append(asked)
        if server.status:
            return self.send_error(server.status)
        start = 0
        if asked and self.headers.get("If-Range") == server.tag:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(server.content) - 1}/{len(server.content)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(server.content) - start))
        self.send_header("ETag", server.tag)
        self.end_headers()
        return self.wfile.write(server.content[start : start + server.bytes_per_answer])

    def log_message(self, *arguments):
        """Say nothing."""


@pytest.fixture
def server():
    with Server() as running:
        threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield running
        running.shutdown()


def fetch(server, path, sha256=CHECKSUM):
    return download(server.url, path, sha256=sha256, pause_seconds=0)


def test_file_is_fetched_once(server, tmp_path):
    path = tmp_path / "new" / "dogs.zip"
    assert fetch(server, path) == path
    assert fetch(server, path).read_bytes() == CONTENT
    assert server.requests == [None]
    assert [file.name for file in path.parent.iterdir()] == ["dogs.zip"]


def test_broken_download_goes_on_where_it_stopped(server, tmp_path):
    server.bytes_per_answer = 400_000
    assert fetch(server, tmp_path / "dogs.zip").read_bytes() == CONTENT
    assert server.requests == [None, "bytes=400000-", "bytes=800000-"]


def test_another_process_goes_on_too(server, tmp_path):
    (tmp_path / "dogs.zip.partial").write_bytes(CONTENT[:300_000])
    (tmp_path / "dogs.zip.partial.version").write_text('"one"')
    assert fetch(server, tmp_path / "dogs.zip").read_bytes() == CONTENT
    assert server.requests == ["bytes=300000-"]


def test_new_version_on_the_server_starts_over(server, tmp_path):
    (tmp_path / "dogs.zip.partial").write_bytes(b"old" * 1000)
    (tmp_path / "dogs.zip.partial.version").write_text('"zero"')
    assert fetch(server, tmp_path / "dogs.zip").read_bytes() == CONTENT


def test_wrong_checksum_leaves_nothing(server, tmp_path):
    with pytest.raises(DownloadError, match="checksum"):
        fetch(server, tmp_path / "dogs.zip", sha256="0" * 64)
    assert list(tmp_path.iterdir()) == []


def test_refusal_is_final_and_server_errors_are_not(server, tmp_path):
    server.status = 404
    with pytest.raises(DownloadError, match="404"):
        fetch(server, tmp_path / "dogs.zip")
    assert len(server.requests) == 1
    server.status = 503
    with pytest.raises(DownloadError, match="503"):
        fetch(server, tmp_path / "dogs.zip")
    assert len(server.requests) == 1 + 5


def test_server_that_sends_nothing_is_given_up(server, tmp_path):
    server.bytes_per_answer = 0
    with pytest.raises(DownloadError, match="breaks off"):
        fetch(server, tmp_path / "dogs.zip")
    assert len(server.requests) == 5


def test_no_server(tmp_path):
    with pytest.raises(DownloadError, match="cannot be fetched"):
        download("http://127.0.0.1:9/dogs.zip", tmp_path / "dogs.zip", pause_seconds=0)
