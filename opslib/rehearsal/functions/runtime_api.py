"""Lambda's Runtime API: the local HTTP server from which a runtime takes invocations and to which it gives the results.

One server for each environment, on 127.0.0.1 at a free port, spoken to by AWS's own client (`awslambdaric`).
Source: docs.aws.amazon.com/lambda/latest/dg/runtimes-api.html.
"""

import io
import json
import queue
import re
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MAX_RESPONSE_BYTES = 6_291_556
"""Largest response of a handler: 6 MB and 100 bytes for the envelope."""

_MAX_HEADER_BYTES = 60_000
"""More of a header is cut: http.server refuses a request with more, and the runtime puts tracebacks into one."""

_INVOCATION = re.compile(r"/2018-06-01/runtime/invocation/(?P<request_id>[\w-]+)/(?P<kind>response|error)")


@dataclass(frozen=True)
class Invocation:
    """One event on its way to the handler; `deadline_ms` is in milliseconds since 1970."""

    request_id: str
    payload: bytes
    deadline_ms: int
    function_arn: str
    client_context: str = ""


@dataclass(frozen=True)
class Message:
    """What the runtime said: `kind` is ready, response, error, init_error or too_large."""

    kind: str
    payload: bytes = b""
    request_id: str = ""


class RuntimeApi:
    """The server of one environment: `send` an invocation, then read `messages` until its response is there."""

    def __init__(self, freeze: Callable[[], None], thaw: Callable[[], None]) -> None:
        """Listen at a free port; `address` is what AWS_LAMBDA_RUNTIME_API must hold.

        `freeze` is called when the runtime waits for an invocation, `thaw` when it gets one.
        """
        self._freeze, self._thaw = freeze, thaw
        self.messages: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self.invocations: queue.SimpleQueue[Invocation | None] = queue.SimpleQueue()
        self._was_ready = False
        self._expected = ""
        self._server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"api": self}))
        self._server.daemon_threads = True
        self.address = f"127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.1,), name="runtime-api", daemon=True).start()

    def send(self, invocation: Invocation) -> None:
        """Hand an invocation to the runtime, which takes it when it asks for the next one."""
        self._expected = invocation.request_id
        self.invocations.put(invocation)

    def next_invocation(self) -> Invocation | None:
        """Wait for an invocation; the first call tells that the initialisation is over. None: the server is closed."""
        if not self._was_ready:
            self._was_ready = True
            self.messages.put(Message("ready"))
        try:
            return self.invocations.get_nowait()
        except queue.Empty:
            if not self._expected:  # what runs beside the runtime may ask, too, while a request is under way
                self._freeze()
        invocation = self.invocations.get()
        self._thaw()
        if invocation is None:
            self.invocations.put(None)  # for whoever else waits
        return invocation

    def take(self, message: Message) -> bool:
        """Pass on what the runtime said; False for a second answer, or one to a request that is not under way."""
        if message.kind != "init_error":
            if not self._expected or message.request_id != self._expected:
                return False
            self._expected = ""
        self.messages.put(message)
        return True

    def close(self) -> None:
        """Stop listening and release a runtime that waits."""
        self.invocations.put(None)
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a runtime that was killed while it spoke."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _CutLines(io.BufferedReader):
    def readline(self, size: int | None = -1) -> bytes:
        """Return a line, cut where it is longer than a header may be; `size` is what the caller would take."""
        line = start = super().readline(size)
        while len(line) > _MAX_HEADER_BYTES and not line.endswith(b"\n"):
            line = super().readline(size)
        return start if len(start) <= _MAX_HEADER_BYTES else start[:_MAX_HEADER_BYTES] + b"\r\n"


class _Handler(BaseHTTPRequestHandler):
    api: RuntimeApi
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def setup(self) -> None:
        """Read through what cuts long lines."""
        super().setup()
        self.rfile = _CutLines(self.rfile.detach())

    def do_GET(self) -> None:
        """Answer `next`, after as long as it takes."""
        if self.path != "/2018-06-01/runtime/invocation/next":
            self._reply(404, b"{}")
            return
        invocation = self.api.next_invocation()
        if invocation is None:  # nobody is there any more to be answered
            self.close_connection = True
            return
        headers = {
            "Lambda-Runtime-Aws-Request-Id": invocation.request_id,
            "Lambda-Runtime-Deadline-Ms": str(invocation.deadline_ms),
            "Lambda-Runtime-Invoked-Function-Arn": invocation.function_arn,
        }
        if invocation.client_context:
            headers["Lambda-Runtime-Client-Context"] = invocation.client_context
        self._reply(200, invocation.payload, headers)

    def do_POST(self) -> None:
        """Take a response or an error."""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        found = _INVOCATION.fullmatch(self.path)
        if self.path == "/2018-06-01/runtime/init/error":
            message = Message("init_error", body)
        elif found and found["kind"] == "response" and len(body) > MAX_RESPONSE_BYTES:
            message = Message("too_large", request_id=found["request_id"])
        elif found:
            message = Message(found["kind"], body, found["request_id"])
        else:
            self._reply(404, b"{}")
            return
        self._answer(message, taken=self.api.take(message))

    def _answer(self, message: Message, *, taken: bool) -> None:
        if not taken:
            self._reply(400, b'{"errorMessage": "Invalid request ID", "errorType": "InvalidRequestID"}')
        elif message.kind == "too_large":
            reason = f"Exceeded maximum allowed payload size ({MAX_RESPONSE_BYTES} bytes)."
            self._reply(413, json.dumps({"errorMessage": reason, "errorType": "RequestEntityTooLarge"}).encode())
        else:
            self._reply(202, b'{"status":"OK"}')

    def _reply(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response_only(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
