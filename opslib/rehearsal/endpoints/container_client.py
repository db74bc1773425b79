"""HTTP to one model server: connections that stay open, and errors that tell whether the server had the request.

A few lines of HTTP/1.1 over sockets, because a general client costs four times the processor time of the gateway's
other work for an invocation.
"""

import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass

_CONNECT_SECONDS = 2.0
_LONGEST_IDLE_SECONDS = 3.0
"""Connections that were idle for longer are not used again: uvicorn closes them after five seconds."""
_MOST_IDLE = 64
_READ_BYTES = 256 * 1024
_JOINED_BYTES = 64 * 1024
"""A request of at most this size leaves in one piece."""


class NotDelivered(Exception):  # noqa: N818 - told apart from errors of ours: another server may take the request
    """The server did not read the whole request, so it was not carried out."""


class AnswerLost(Exception):  # noqa: N818
    """The server read the request, and its connection ended before the answer did."""


@dataclass(frozen=True)
class ContainerReply:
    """What a container answered; the names of the headers are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    setup_seconds: float = 0.0
    """How long the request had waited for a container to start."""


class ContainerClient:
    """Connections to one server on 127.0.0.1, taken by whoever asks next."""

    def __init__(self, address: tuple[str, int]) -> None:
        """Take the server's address; nothing is sent yet."""
        self._address = address
        self._idle: list[tuple[float, socket.socket]] = []
        self._is_closed = False
        self._lock = threading.Lock()

    def request(
        self, method: str, path: str, body: bytes, headers: Mapping[str, str], timeout_seconds: float
    ) -> ContainerReply:
        """Send a request and return the answer.

        Raises:
            NotDelivered: no connection, or it ended before the server had read the request.
            AnswerLost: the connection ended after that.
            TimeoutError: no whole answer within `timeout_seconds`.
        """
        deadline = time.monotonic() + timeout_seconds
        connection = self._connection()
        try:
            _send(connection, _head(method, path, len(body), headers), body, deadline)
            reply, stays_open = _Reader(connection, deadline).read()
        except BaseException:
            connection.close()
            raise
        self._put_back(connection, stays_open)
        return reply

    def close(self) -> None:
        """Close what is idle, and what is in use when its answer is there."""
        with self._lock:
            idle, self._idle, self._is_closed = self._idle, [], True
        for _, connection in idle:
            connection.close()

    def _connection(self) -> socket.socket:
        while True:
            with self._lock:
                since, connection = self._idle.pop() if self._idle else (0.0, None)
            if connection is None:
                return self._connect()
            if time.monotonic() - since < _LONGEST_IDLE_SECONDS and _is_open(connection):
                return connection
            connection.close()

    def _connect(self) -> socket.socket:
        try:
            connection = socket.create_connection(self._address, timeout=_CONNECT_SECONDS)
        except OSError as error:
            raise NotDelivered(str(error)) from error
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def _put_back(self, connection: socket.socket, stays_open: bool) -> None:
        now = time.monotonic()
        with self._lock:
            old = [one for one in self._idle if now - one[0] >= _LONGEST_IDLE_SECONDS]
            del self._idle[: len(old)]  # those at the bottom are the oldest
            if stays_open and not self._is_closed and len(self._idle) < _MOST_IDLE:
                self._idle.append((now, connection))
            else:
                old.append((now, connection))
        for _, one in old:
            one.close()


def _is_open(connection: socket.socket) -> bool:
    """Return whether the server has neither closed the connection nor sent what nobody asked for."""
    connection.setblocking(False)
    try:
        connection.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _head(method: str, path: str, length: int, headers: Mapping[str, str]) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", f"Content-Length: {length}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode("utf-8", "replace") + b"\r\n\r\n"


def _send(connection: socket.socket, head: bytes, body: bytes, deadline: float) -> None:
    pieces = [head + body] if len(body) <= _JOINED_BYTES else [head, body]
    try:
        for piece in pieces:
            connection.settimeout(_remaining(deadline))
            connection.sendall(piece)
    except TimeoutError:
        raise
    except OSError as error:
        raise NotDelivered(str(error)) from error


def _remaining(deadline: float) -> float:
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        raise TimeoutError("the container did not answer in time")
    return seconds


class _Reader:
    """Reads one answer from a connection."""

    def __init__(self, connection: socket.socket, deadline: float) -> None:
        self._connection = connection
        self._deadline = deadline
        self._buffer = bytearray()
        self._has_begun = False

    def read(self) -> tuple[ContainerReply, bool]:
        """Return the answer, and whether the connection can be used again."""
        while True:
            status, headers = self._read_head()
            if status >= 200:  # those below are announcements
                break
        is_closing = headers.get("connection", "").lower() == "close"
        if status in {204, 304}:
            body = b""
        elif "chunked" in headers.get("transfer-encoding", "").lower():
            body = self._read_chunks()
        elif "content-length" in headers:
            body = self._take(_whole_number(headers["content-length"], 10))
        else:
            body, is_closing = self._read_to_end(), True
        return ContainerReply(status, headers, body), not is_closing and not self._buffer

    def _read_head(self) -> tuple[int, dict[str, str]]:
        first, *lines = self._take_until(b"\r\n\r\n").decode("latin-1").split("\r\n")
        parts = first.split(" ", 2)
        if len(parts) < 2 or not parts[0].startswith("HTTP/1."):
            raise AnswerLost("the answer is not HTTP")
        headers = {}
        for line in lines:
            name, _, value = line.partition(":")
            headers[name.strip().lower()] = value.strip()
        if parts[0] == "HTTP/1.0":
            headers.setdefault("connection", "close")
        return _whole_number(parts[1], 10), headers

    def _read_chunks(self) -> bytes:
        chunks = []
        while size := _whole_number(self._take_until(b"\r\n").partition(b";")[0].decode("latin-1"), 16):
            chunks.append(self._take(size))
            self._take_until(b"\r\n")
        while self._take_until(b"\r\n"):  # trailers
            continue
        return b"".join(chunks)

    def _read_to_end(self) -> bytes:
        while self._fill():
            continue
        body, self._buffer = bytes(self._buffer), bytearray()
        return body

    def _take_until(self, mark: bytes) -> bytes:
        """Return what stands before the mark, and drop both."""
        while (end := self._buffer.find(mark)) < 0:
            self._fill_or_fail()
        taken = bytes(self._buffer[:end])
        del self._buffer[: end + len(mark)]
        return taken

    def _take(self, count: int) -> bytes:
        while len(self._buffer) < count:
            self._fill_or_fail()
        taken = bytes(self._buffer[:count])
        del self._buffer[:count]
        return taken

    def _fill_or_fail(self) -> None:
        if not self._fill():
            raise AnswerLost("the container closed the connection")

    def _fill(self) -> bool:
        self._connection.settimeout(_remaining(self._deadline))
        try:
            piece = self._connection.recv(_READ_BYTES)
        except ConnectionResetError as error:
            if self._has_begun:
                raise AnswerLost(str(error)) from error
            # The kernel resets a connection, instead of closing it, when the process ends with input unread.
            raise NotDelivered(str(error)) from error
        except TimeoutError:
            raise
        except OSError as error:
            raise AnswerLost(str(error)) from error
        self._has_begun = self._has_begun or bool(piece)
        self._buffer += piece
        return bool(piece)


def _whole_number(text: str, base: int) -> int:
    try:
        return int(text, base)
    except ValueError as error:
        raise AnswerLost(f"the answer is not HTTP: {text!r} is no number") from error
