"""The HTTP server in front of the gate: HTTP/1.1 with connections that stay open, one thread each.

werkzeug's server closes every connection after its reply; with the connections kept, an upload of 2,000 photos takes
half the time.
"""

import io
import logging
import socket
import sys
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, BinaryIO
from urllib.parse import unquote_to_bytes

from moto.core.request import (
    PRESERVED_HEADER_NAMES_ENVIRON_KEY,
    environ_key_for_header,
    should_preserve_original_header_name,
)

from opslib.rehearsal.gateway.protocols import Reply

logger = logging.getLogger(__name__)

MAX_BODY_BYTES = 5 * 2**30
"""The largest body that any service takes: S3's limit of one PUT."""

_MAX_LINE_BYTES = 65_536
_MOST_FIELDS = 100

Respond = Callable[[dict[str, Any], bytes], Reply]
"""From a request (as a WSGI environ, because that is what moto reads) and its body to the reply."""


class BodyTooLarge(Exception):  # noqa: N818 - it becomes a reply of HTTP
    """A request announces more than any service takes."""


class MalformedHeaders(Exception):  # noqa: N818 - it becomes a reply of HTTP
    """A request's headers are too long, too many, or none; `status` says which."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class Fields:
    """A request's header fields as they came, for the few questions that are asked of them here.

    The base class reads them as an e-mail's, which takes as long as all else that this module does for an invocation.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._fields: list[tuple[str, str]] = []
        while (line := stream.readline(_MAX_LINE_BYTES + 1)) not in {b"\r\n", b"\n", b""}:
            if len(line) > _MAX_LINE_BYTES or len(self._fields) >= _MOST_FIELDS:
                raise MalformedHeaders(431)
            name, colon, value = line.decode("latin-1").partition(":")
            if line[:1] in {b" ", b"\t"} and self._fields:  # a folded line
                name, value, colon = self._fields[-1][0], f"{self._fields.pop()[1]} {line.decode('latin-1')}", ":"
            if not colon:
                raise MalformedHeaders(400)
            self._fields.append((name, value.strip()))

    def get(self, name: str, default: str = "") -> str:
        """Return the first field of this name."""
        return next((value for known, value in self._fields if known.lower() == name.lower()), default)

    def items(self) -> list[tuple[str, str]]:
        """Return all fields in their order."""
        return self._fields


IDLE_SECONDS = 60.0
"""A connection on which nothing comes for so long is closed, as AWS's own are."""


class RequestHandler(BaseHTTPRequestHandler):
    """Reads a request whole, asks `server.respond`, and writes the reply at once."""

    timeout = IDLE_SECONDS
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: "HttpServer"

    def setup(self) -> None:
        """Note the connection, so that the server can close it."""
        super().setup()
        self.server.connections.add(self.connection)

    def finish(self) -> None:
        """Forget the connection."""
        self.server.connections.discard(self.connection)
        super().finish()

    def parse_request(self) -> bool:
        """Read the request's head; False when it was answered already, with an error."""
        command, _, rest = self.raw_requestline.decode("latin-1").partition(" ")
        path, _, version = rest.rstrip("\r\n").partition(" ")
        if version != "HTTP/1.1" or not path.startswith("/"):
            return super().parse_request()
        self.requestline, self.request_version, self.command = f"{command} {path} {version}", version, command
        self.path = "/" + path.lstrip("/") if path.startswith("//") else path
        try:
            self.headers = Fields(self.rfile)
        except MalformedHeaders as error:
            self.close_connection = True
            self.send_error(error.status)
            return False
        self.close_connection = self.headers.get("Connection").lower() == "close"
        return self.headers.get("Expect").lower() != "100-continue" or self.handle_expect_100()

    def answer(self) -> None:
        """Answer one request."""
        try:
            body = self._read_body()
        except ValueError:
            self.send_error(400)
            return
        except BodyTooLarge:
            self.send_error(413)
            return
        try:
            reply = self.server.respond(self._environ(len(body)), body)
        except BaseException:
            self._write(Reply(500, {"Content-Type": "application/json"}, b'{"__type": "InternalFailure"}'))
            raise
        self._write(reply)

    # The names that the base class calls, by the method of the request.
    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = do_PATCH = do_OPTIONS = answer  # noqa: N815

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self._read(_length(self.headers.get("Content-Length") or "0", 10))
        chunks = []
        while size := _length(self.rfile.readline().partition(b";")[0].decode("latin-1").strip(), 16):
            chunks.append(self._read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():  # trailers
            continue
        return b"".join(chunks)

    def _read(self, length: int) -> bytes:
        content = self.rfile.read(length)
        if len(content) < length:
            raise ConnectionAbortedError("the client went away in the middle of its request")
        return content

    def _environ(self, length: int) -> dict[str, Any]:
        path, _, query = self.path.partition("?")
        environ = {
            "REQUEST_METHOD": self.command,
            "REQUEST_URI": self.path,
            "RAW_URI": self.path,
            "SCRIPT_NAME": "",
            "PATH_INFO": unquote_to_bytes(path).decode("latin-1"),  # as PEP 3333 has it
            "QUERY_STRING": query,
            "SERVER_NAME": self.server.server_address[0],
            "SERVER_PORT": str(self.server.server_address[1]),
            "SERVER_PROTOCOL": self.request_version,
            "REMOTE_ADDR": self.client_address[0],
            "wsgi.url_scheme": "http",
            "wsgi.version": (1, 0),
            "wsgi.errors": sys.stderr,
            "wsgi.multithread": True,
            "wsgi.multiprocess": False,
            "wsgi.run_once": False,
            "wsgi.input": io.BytesIO(),
            "wsgi.input_terminated": True,
        }
        return environ | self._header_variables() | {"CONTENT_LENGTH": str(length)}

    def _header_variables(self) -> dict[str, Any]:
        names: dict[str, str] = {}
        variables: dict[str, Any] = {PRESERVED_HEADER_NAMES_ENVIRON_KEY: names}
        for name, value in self.headers.items():
            key = environ_key_for_header(name)
            if "_" in name:  # only S3's own metadata may have underscores, and moto wants to know their spelling
                if not should_preserve_original_header_name(name):
                    continue
                names[key] = name
            variables[key] = f"{variables[key]},{value}" if key in variables else value
        variables.pop("HTTP_TRANSFER_ENCODING", None)
        return variables

    def _write(self, reply: Reply) -> None:
        has_no_body = self.command == "HEAD" or reply.status in {204, 304}
        lines = [f"{self.protocol_version} {reply.status} {_phrase(reply.status)}"]
        lines += [f"{name}: {value}" for name, value in reply.headers.items() if name.lower() != "connection"]
        lines += [f"Set-Cookie: {cookie}" for cookie in reply.cookies]
        head = "\r\n".join(lines).encode("latin-1", "replace") + b"\r\n\r\n"
        left = memoryview(head if has_no_body else head + reply.body)
        while left:  # not at once: the time-out would be that of the whole, and a client may read slowly
            left = left[self.connection.send(left) :]

    def log_message(self, format: str, *args: Any) -> None:
        """Keep requests out of the log."""


def _length(text: str, base: int) -> int:
    """Return the length of a body or a chunk.

    Raises:
        ValueError: it is no number.
        BodyTooLarge: AWS takes no body of this size.
    """
    if not text.isascii() or not text.isalnum():
        raise ValueError(f"{text!r} is not a length")
    length = int(text, base)
    if length > MAX_BODY_BYTES:
        raise BodyTooLarge
    return length


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Status"


class HttpServer(ThreadingHTTPServer):
    """Answers on a socket that listens already."""

    daemon_threads = True

    def __init__(self, listener: socket.socket, respond: Respond) -> None:
        super().__init__(listener.getsockname(), RequestHandler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.respond = respond
        self.connections: set[socket.socket] = set()
        self._thread = threading.Thread(target=self.serve_forever, args=(0.05,), name="rehearsal", daemon=True)

    def start(self) -> None:
        """Start answering, on a thread of its own."""
        self._thread.start()

    def stop(self) -> None:
        """Stop answering and close every connection."""
        self.shutdown()
        self._thread.join()
        self.server_close()
        for connection in list(self.connections):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:  # closed by the client just now
                continue

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - the base class's signature
        """Log what went wrong, unless the client only went away."""
        if not isinstance(sys.exception(), ConnectionError):
            logger.exception("the rehearsal failed to answer a request")
