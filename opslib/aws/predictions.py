"""Asking an endpoint what is in a photo, and how long an answer takes."""

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from botocore.exceptions import ClientError

from opslib.aws.failures import error_code, error_message, explained, masked
from opslib.aws.session import client
from opslib.errors import ConfigurationError, EndpointFailed

VERBOSE = "application/json;verbose"
"""Accept term (JumpStart's) for an answer with names and probabilities beside the raw scores."""

_MAGIC = ((b"\xff\xd8\xff", "image/jpeg"), (b"\x89PNG\r\n\x1a\n", "image/png"))


@dataclass(frozen=True)
class Prediction:
    """What the endpoint sees in a photo.

    Attributes:
        label: The most probable class.
        probability: Its probability, from 0 to 1.
        top: The most probable classes with their probabilities, best first (five of them).
        scores: The raw score (logit) of every class, in the model's order of classes.
    """

    label: str
    probability: float
    top: list[tuple[str, float]]
    scores: list[float]


@dataclass(frozen=True)
class Latency:
    """How long a call took, in milliseconds: the median, the 95th percentile, and each time."""

    p50_ms: float
    p95_ms: float
    times_ms: tuple[float, ...]


def classify(endpoint_name: str, photo: bytes | Path, *, content_type: str = "") -> Prediction:
    """Ask an endpoint what is in a photo.

    Args:
        endpoint_name: The endpoint.
        photo: The photo's bytes, or its file.
        content_type: By default image/jpeg, image/png or image/webp as the first bytes say, else application/x-image.

    Raises:
        EndpointFailed: the model refused the photo or failed; the message holds its status and words.
        AwsError: AWS refused, or there is no such endpoint.
        ConfigurationError: the file cannot be read.
    """
    body = photo if isinstance(photo, bytes) else _read(Path(photo))
    with explained(f"asking endpoint {endpoint_name}"):
        try:
            answer = client("sagemaker-runtime").invoke_endpoint(
                EndpointName=endpoint_name, Body=body, ContentType=content_type or content_type_of(body), Accept=VERBOSE
            )
            return parse_prediction(answer["Body"].read())
        except ClientError as error:
            if error_code(error) != "ModelError":
                raise
            words = f"the model answered {error.response.get('OriginalStatusCode')}: {_original_words(error)}"
            raise EndpointFailed(f"endpoint {endpoint_name}: {words}") from error


def _original_words(error: ClientError) -> str:
    """Return what the model said; AWS's inference toolkit adds its traceback, which is in the log, too."""
    words = str(error.response.get("OriginalMessage", "")).partition("\nTraceback (most recent call last):")[0]
    return masked(words) or error_message(error)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error


def content_type_of(photo: bytes) -> str:
    """Return the content type that the first bytes of a photo show, else `application/x-image`: let the model look."""
    if photo[:4] == b"RIFF" and photo[8:12] == b"WEBP":
        return "image/webp"
    return next((kind for magic, kind in _MAGIC if photo.startswith(magic)), "application/x-image")


def parse_prediction(body: bytes) -> Prediction:
    """Return the prediction of an answer to `Accept: application/json;verbose`.

    Raises:
        EndpointFailed: it is something else: another model's answer.
    """
    try:
        answer = json.loads(body)
        top = [(entry["label"], float(entry["probability"])) for entry in answer["top_k"]]
        scores = [float(score) for score in answer["scores"][0]]
        return Prediction(answer["predicted_label"], top[0][1], top, scores)
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise EndpointFailed(
            f"the endpoint's answer is not one of inference.py's: {body[:200]!r}", hint="was it made by deploy_model?"
        ) from error


def measure_latency(call: Callable[[], object], count: int = 20) -> Latency:
    """Call something `count` times, one after the other, and return how long the calls took.

    A first call, which opens the connection, is made beforehand and not counted.

    Raises:
        ConfigurationError: `count` is less than 2.
    """
    if count < 2:
        raise ConfigurationError(f"count is {count}; percentiles need at least 2 calls")
    call()
    times = [_timed_ms(call) for _ in range(count)]
    percentiles = statistics.quantiles(times, n=20, method="inclusive")
    return Latency(statistics.median(times), percentiles[-1], tuple(times))


def _timed_ms(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return (time.perf_counter() - started) * 1000
