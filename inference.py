"""The four functions that a SageMaker PyTorch container calls: `model_fn` once, the others for every request.

In:  `image/jpeg`, `image/png`, `image/webp` or `application/x-image` (the photo's bytes), or `application/json` with
     `{"url": "https://..."}` if OPSLIB_URL_HOSTS allows the host.
Out: `application/json`: the raw scores, a list of lists in class order, as in `[[1.25, -0.5, ...]]`.
     `application/json;verbose`: `{"predicted_label": "...", "top_k": [...], "scores": [[...]]}`, where `top_k` holds up
     to five `{"label": "...", "probability": 0.93}`, the best first.

A request that cannot be answered raises `RequestError`, which carries the 4xx status and the reason.
"""

import json
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from opslib.vision.artifact import open_artifact
from opslib.vision.decoding import PhotoDecodingError, decode_photo, give_memory_back
from opslib.vision.fetching import fetch_photo
from opslib.vision.refusals import RequestError
from opslib.vision.serving import Scorer, build_scorer
from opslib.vision.settings import url_hosts
from opslib.vision.transforms import TransformSpec, evaluation_pixels

JSON = "application/json"
VERBOSE = "application/json;verbose"
"""JumpStart's name for scores with their labels."""

PHOTO_TYPES = frozenset({"image/jpeg", "image/jpg", "image/png", "image/webp", "application/x-image"})
"""The photo's own bytes; which format they are in is read from the bytes."""

MAX_PHOTO_BYTES = 25 * 1024 * 1024
"""Largest body or fetched photo; the service in front may allow less."""

_LARGE_PHOTO = threading.Lock()
"""Held by the one large photo that is decoded: a file of 85 kB can be a WebP that takes 1 GB."""

TOP_K = 5
"""How many classes the verbose answer names."""


@dataclass(frozen=True)
class Prediction:
    """Raw scores of one photo in class order, and the classes."""

    scores: list[float]
    classes: Sequence[str]


@dataclass(frozen=True)
class ServedModel:
    """What computes the scores, the classes in their order, and what a photo is turned into."""

    scorer: Scorer
    classes: Sequence[str]
    transform: TransformSpec


def model_fn(model_dir: str) -> ServedModel:
    """Load the model once, when the server starts, and warm it up; nothing is downloaded.

    Raises:
        ArtifactError: The folder holds no model of ours.
        ConfigurationError: An OPSLIB_* variable is unknown or wrong.
    """
    url_hosts(os.environ)  # a wrong setting must stop the server, not every request
    give_memory_back()
    artifact = open_artifact(Path(model_dir))
    scorer = build_scorer(artifact, "cuda" if torch.cuda.is_available() else "cpu")
    return ServedModel(scorer, artifact.classes, artifact.transform)


def input_fn(request_body: bytes | bytearray | str, content_type: str) -> bytes:
    """Return the photo's bytes: the body itself, or what its URL points to.

    AWS's toolkit hands over `application/json` bodies as text and all others as bytes.

    Raises:
        RequestError: 400, 403, 413, 415 or 424; the message says why.
    """
    kind = (content_type or "").partition(";")[0].strip().lower()
    body = request_body.encode() if isinstance(request_body, str) else bytes(request_body)
    if len(body) > MAX_PHOTO_BYTES:
        raise RequestError(413, f"the body has more than {MAX_PHOTO_BYTES:,} bytes")
    if kind in PHOTO_TYPES:
        return body
    if kind == JSON:
        return fetch_photo(_requested_url(body), url_hosts(os.environ), max_bytes=MAX_PHOTO_BYTES)
    served = ", ".join((*sorted(PHOTO_TYPES), JSON))
    raise RequestError(415, f"content type {content_type!r} is not served; send one of {served}")


def predict_fn(input_data: bytes, model: ServedModel) -> Prediction:
    """Decode one photo and return its raw scores; any number of threads may do so at once.

    Raises:
        RequestError: The bytes are no photo that we decode (400, 413, 415).
    """
    try:
        photo = decode_photo(input_data, shortest_side=model.transform.decoded_side, while_large=_LARGE_PHOTO)
    except PhotoDecodingError as error:
        raise RequestError(error.status_code, error.message) from error
    pixels = evaluation_pixels(model.transform)(photo)
    return Prediction(model.scorer.scores(pixels), model.classes)


def output_fn(prediction: Prediction, accept: str) -> tuple[str, str]:
    """Return the body and its content type.

    Raises:
        RequestError: 406, the client accepts neither form.
    """
    kind = _accepted(accept)
    if kind == JSON:
        return json.dumps([prediction.scores]), JSON
    probabilities = torch.tensor(prediction.scores).softmax(dim=0)
    top = probabilities.topk(min(TOP_K, len(prediction.classes)))
    named = [
        {"label": prediction.classes[index], "probability": probability}
        for probability, index in zip(top.values.tolist(), top.indices.tolist(), strict=True)
    ]
    fields = {"predicted_label": named[0]["label"], "top_k": named, "scores": [prediction.scores]}
    return json.dumps(fields, ensure_ascii=False), VERBOSE


def _requested_url(body: bytes) -> str:
    try:
        fields = json.loads(body)
        json.dumps(fields, ensure_ascii=False).encode()  # half of a surrogate pair is no text: nobody could answer it
    except (ValueError, RecursionError) as error:
        raise RequestError(400, "the body is not JSON") from error
    if not isinstance(fields, dict) or list(fields) != ["url"] or not isinstance(fields["url"], str):
        raise RequestError(400, 'the JSON body is not {"url": "https://..."}')
    return fields["url"]


def _accepted(accept: str) -> str:
    """Return the form that the client likes best; the order of its list counts where its weights (q) are equal."""
    choices = []
    for entry in (accept or "*/*").split(","):
        kind, *parameters = (part.strip().lower() for part in entry.split(";"))
        weight = next((_weight(parameter[2:]) for parameter in parameters if parameter.startswith("q=")), 1.0)
        if weight > 0 and kind in (JSON, "application/*", "*/*"):
            choices.append((weight, VERBOSE if kind == JSON and "verbose" in parameters else JSON))
    if not choices:
        raise RequestError(406, f"{accept!r} is not served; accept {JSON} or {VERBOSE}")
    return max(choices, key=lambda choice: choice[0])[1]


def _weight(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0
