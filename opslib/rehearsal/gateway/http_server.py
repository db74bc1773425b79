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
from typing import Any
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

Respond = Callable[[dict[str, Any], bytes], Reply]
"""From a request (as a WSGI environ, because that is what moto reads) and its body to the reply."""


class BodyTooLarge(Exception):  # noqa: N818 - it becomes a reply of HTTP
    """A request announces more than any service takes."""


class RequestHandler(BaseHTTPRequestHandler):
    """Reads a request whole, asks `server.respond`, and writes the reply at once."""

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
        head = "\r\n".join(lines).encode("latin-1", "replace") + b"\r\n\r\n"
        self.wfile.write(head if has_no_body else head + reply.body)

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
