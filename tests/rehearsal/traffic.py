"""Load on an endpoint that goes on while a test does something to it, and what became of each request."""

import threading
import time
from collections import Counter
from dataclasses import dataclass
from types import TracebackType

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError


@dataclass(frozen=True)
class Attempt:
    """One request: when it was under way, what answered, and the error's code if there was one."""

    started: float
    ended: float
    answer: str = ""
    error: str = ""


class Traffic:
    """Requests from several threads, one after the other in each, while the block runs."""

    def __init__(self, endpoint: str, *, threads: int = 6, pause_seconds: float = 0.0) -> None:
        self.attempts: list[Attempt] = []
        self._endpoint = endpoint
        self._pause_seconds = pause_seconds
        self._stopped = threading.Event()
        self._clients = [
            boto3.client("sagemaker-runtime", config=Config(retries={"total_max_attempts": 1})) for _ in range(threads)
        ]
        self._threads = [threading.Thread(target=self._send, args=(client,)) for client in self._clients]

    def __enter__(self) -> "Traffic":
        """Start."""
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop, once every request has ended."""
        self._stopped.set()
        for thread in self._threads:
            thread.join()
        for client in self._clients:
            client.close()

    @property
    def failures(self) -> list[Attempt]:
        """The requests that were answered with an error."""
        return [attempt for attempt in self.attempts if attempt.error]

    @property
    def answers(self) -> Counter[str]:
        """How often each answer came."""
        return Counter(attempt.answer for attempt in self.attempts if not attempt.error)

    def _send(self, client) -> None:
        while not self._stopped.wait(self._pause_seconds):
            started = time.monotonic()
            try:
                reply = client.invoke_endpoint(EndpointName=self._endpoint, Body=b"photo")
                ended = Attempt(started, time.monotonic(), answer=reply["Body"].read().decode())
            except ClientError as error:
                ended = Attempt(started, time.monotonic(), error=error.response["Error"]["Code"])
            self.attempts.append(ended)
