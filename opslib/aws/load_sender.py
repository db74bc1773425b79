"""A process that sends requests at given moments and says what became of each: `python -m opslib.aws.load_sender`.

It reads one line of JSON, `{"target": ..., "due": [seconds, ...], "begin": seconds since 1970, "threads": n}`, and
writes lines of JSON lists `[due, started, ended, outcome]`, in seconds after `begin`. A process of its own for two
reasons: Python sends with one core per process, and a busy notebook must not delay what it measures.
"""

import base64
import json
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TextIO

from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError

from opslib.aws.failures import error_code
from opslib.aws.session import single_attempt_client
from opslib.open_files import allow_open_files

ANSWERED, THROTTLED = "answered", "throttled"
"""Outcomes; any other one is the name of an error."""

_THROTTLES = frozenset({"ThrottlingException", "TooManyRequestsException", "ServiceUnavailable", "Throttling"})
_REPORT_EVERY_SECONDS = 0.2

Send = Callable[[], str]
"""Sends one request and returns its outcome."""


def build_send(target: Mapping[str, Any], connections: int) -> Send:
    """Return what sends one request to a target (`load.Target.as_json`)."""
    service = "lambda" if target["kind"] == "function" else "sagemaker-runtime"
    caller = single_attempt_client(service, connections)
    body = base64.b64decode(target["body"])
    invoke = _invoke_function if target["kind"] == "function" else _invoke_endpoint

    def send() -> str:
        try:
            return invoke(caller, target, body)
        except ClientError as error:
            return outcome_of(error)
        except (BotoCoreError, HTTPClientError) as error:
            return type(error).__name__

    return send


def outcome_of(error: ClientError) -> str:
    """Return `throttled` for an answer that asks to come back later, otherwise the error's code."""
    code = error_code(error)
    busy = code == "ModelError" and error.response.get("OriginalStatusCode") == 503
    return THROTTLED if busy or code in _THROTTLES else code


def _invoke_endpoint(caller: Any, target: Mapping[str, Any], body: bytes) -> str:
    answer = caller.invoke_endpoint(
        EndpointName=target["name"], Body=body, ContentType=target["content_type"], **target["extra"]
    )
    answer["Body"].read()
    return ANSWERED


def _invoke_function(caller: Any, target: Mapping[str, Any], body: bytes) -> str:
    answer = caller.invoke(FunctionName=target["name"], Payload=body, **target["extra"])
    payload = answer["Payload"].read()
    if "FunctionError" in answer:
        return str(answer["FunctionError"])
    status = json.loads(payload or b"null")
    status = status.get("statusCode", 200) if isinstance(status, dict) else 200
    try:
        code = int(status)
    except (TypeError, ValueError):
        return f"status {status!r}"[:100]
    return ANSWERED if code < 400 else THROTTLED if code in {429, 503} else f"status {code}"


class Sender:
    """Sends each request when it is due, whatever became of those before it."""

    def __init__(self, send: Send, threads: int, output: TextIO) -> None:
        """Take what sends, how many may be under way, and where the outcomes go."""
        self._send, self._threads, self._output = send, threads, output
        self._done: list[tuple[float, float, float, str]] = []
        self._lock = threading.Lock()

    def run(self, due: Sequence[float], begin: float) -> None:
        """Send all, and report until the last one is answered."""
        over = threading.Event()
        reporter = threading.Thread(target=self._report, args=(over,))
        reporter.start()
        origin = time.monotonic() + begin - time.time()
        try:
            with ThreadPoolExecutor(self._threads) as pool:
                for moment in due:
                    pause = origin + moment - time.monotonic()
                    if pause > 0:
                        time.sleep(pause)
                    self._submit(pool, moment, origin)
        finally:
            over.set()
            reporter.join()

    def _submit(self, pool: ThreadPoolExecutor, due: float, origin: float) -> None:
        try:
            pool.submit(self._one, due, origin)
        except RuntimeError:  # the system gives no more threads: the request is in the queue of those that there are
            if not pool._threads:
                raise

    def _one(self, due: float, origin: float) -> None:
        started = time.monotonic() - origin
        try:
            outcome = self._send()
        except Exception as error:  # noqa: BLE001 - whatever it is, the request has an outcome
            outcome = type(error).__name__
        with self._lock:
            self._done.append((due, started, time.monotonic() - origin, outcome))

    def _report(self, over: threading.Event) -> None:
        ended = False
        while not ended:
            ended = over.wait(_REPORT_EVERY_SECONDS)
            with self._lock:
                done, self._done = self._done, []
            self._output.write(json.dumps(done) + "\n")
            self._output.flush()


def main() -> None:
    """Do what the line on standard input says; the first line of the output says that it is ready."""
    allow_open_files()  # or what the system refuses to open here would count as the target's failure
    order = json.loads(sys.stdin.readline())
    send = build_send(order["target"], order["threads"])
    sys.stdout.write("[]\n")
    sys.stdout.flush()
    begin = float(sys.stdin.readline())
    Sender(send, order["threads"], sys.stdout).run(order["due"], begin)


if __name__ == "__main__":
    main()
