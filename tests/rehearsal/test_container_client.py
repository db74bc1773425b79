"""What the gateway makes of a model server's answers, and of servers that go away at a bad moment."""

import socket
import threading
import time

import pytest

from opslib.rehearsal.endpoints.container_client import AnswerLost, ContainerClient, NotDelivered

LARGE = b"x" * 4_000_000


@pytest.fixture
def serve():
    """Return a function that starts a server: it does what it is told with each connection, in turn."""
    listener, threads = socket.create_server(("127.0.0.1", 0)), []

    def start(*behaviours) -> ContainerClient:
        def run():
            for behave in behaviours:
                connection, _ = listener.accept()
                with connection:
                    behave(connection)

        threads.append(threading.Thread(target=run))
        threads[-1].start()
        return ContainerClient(listener.getsockname())

    yield start
    for thread in threads:
        thread.join(10)
    listener.close()


def read_request(connection: socket.socket) -> bytes:
    """Read one request with its body."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += connection.recv(65536)
    head, _, body = received.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    while len(body) < length:
        body += connection.recv(65536)
    return body


def answers(*replies: bytes):
    """Return a behaviour: one request after the other is read and answered."""

    def behave(connection):
        for reply in replies:
            read_request(connection)
            connection.sendall(reply)

    return behave


def ask(client: ContainerClient, body: bytes = b"photo", seconds: float = 5.0):
    reply = client.request("POST", "/invocations", body, {"Accept": "*/*"}, seconds)
    return reply.status, reply.body


def test_answers_of_every_length_are_read_and_the_connection_is_used_again(serve):
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nTrailer: 1\r\n\r\n"
    client = serve(
        answers(
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
            chunked,
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 4000000\r\n\r\n" + LARGE,
            b"HTTP/1.1 503 Busy\r\nRetry-After: 1\r\n\r\nuntil the end",
        )
    )
    assert ask(client) == (200, b"ok")
    assert ask(client, LARGE) == (200, b"abcde")
    assert ask(client) == (204, b"")
    assert ask(client) == (200, LARGE)
    assert ask(client) == (503, b"until the end")
    client.close()


def test_a_request_that_was_not_read_may_go_elsewhere_and_one_that_was_may_not(serve):
    def close_unread(connection):
        connection.recv(1)

    client = serve(close_unread, read_request, answers(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nab"))
    with pytest.raises(NotDelivered):
        ask(client)
    for _ in range(2):
        with pytest.raises(AnswerLost):
            ask(client)


def test_a_connection_that_was_closed_meanwhile_is_not_used(serve):
    once = answers(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n1")
    closed = threading.Event()

    def answer_and_close(connection):
        once(connection)
        connection.close()
        closed.set()

    client = serve(answer_and_close, once)
    assert ask(client) == (200, b"1")
    assert closed.wait(10)
    assert ask(client) == (200, b"1")
    client.close()


def test_a_server_that_is_not_there_or_says_nothing(serve):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = ContainerClient(listener.getsockname())
    with pytest.raises(NotDelivered):
        ask(client)
    silent = serve(lambda connection: connection.recv(65536) and connection.recv(1))
    started = time.monotonic()
    with pytest.raises(TimeoutError):
        ask(silent, seconds=0.1)
    assert time.monotonic() - started >= 0.1
