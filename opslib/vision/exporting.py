"""The trained classifier as ONNX: what a CPU answers from three times as fast as from torch.

It is made once, at the end of training, and only kept when OpenVINO computes the same scores from it. On two cores a
photo through ResNet-50 takes 22 ms instead of 70 with folded BatchNorm and 81 without; two at once take 20 ms each.
"""

import importlib.util
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy
import torch

from opslib.vision.model import Classifier
from opslib.vision.runtimes import as_onnx, compile_network
from opslib.vision.transforms import TransformSpec, normalised

ONNX_FILE = "model.onnx"
TOLERANCE = 1e-3
"""Largest difference of a score from torch's, as a share of the largest score."""
_CHECKED_PHOTOS = 4


@dataclass(frozen=True)
class Export:
    """What `model.json` says under `runtime`: the file, what reads it, and how far it is from torch.

    `largest_difference` is that of a score, as a share of the largest one, over `checked_photos` pictures of noise.
    For int8, `accuracies` are those of float32 and int8 on the validation photos.
    """

    file: str
    engine: str
    precision: str
    largest_difference: float
    checked_photos: int
    accuracies: dict[str, float] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON types."""
        return asdict(self)


def can_export() -> bool:
    """Return whether what writes and reads ONNX is installed."""
    return all(importlib.util.find_spec(name) for name in ("onnx", "openvino"))


def export_classifier(directory: Path, classifier: Classifier, transform: TransformSpec) -> Export | None:
    """Write `model.onnx` and return what it is; None, and no file, when it cannot be made or does not agree.

    Args:
        directory: Where it goes, beside `model.pth`.
        classifier: In evaluation mode, on the CPU.
        transform: What the classifier wants to see.
    """
    if not can_export():
        return None
    content = as_onnx(classifier, transform.size)
    compiled = compile_network(content, transform, threads=1, streams=1) if content else None
    if compiled is None:
        return None
    difference = _largest_difference(compiled, classifier, transform)
    if difference > TOLERANCE:
        return None
    partial = directory / f"{ONNX_FILE}.partial"
    partial.write_bytes(content)
    partial.replace(directory / ONNX_FILE)
    return Export(ONNX_FILE, "openvino", "float32", difference, _CHECKED_PHOTOS)


def _largest_difference(compiled: Any, classifier: Classifier, transform: TransformSpec) -> float:
    size, largest = transform.size, 0.0
    noise = numpy.random.default_rng(0).integers(0, 256, (_CHECKED_PHOTOS, size, size, 3), dtype=numpy.uint8)
    request = compiled.create_infer_request()
    for pixels in noise:
        with torch.inference_mode():
            expected = classifier(normalised(torch.from_numpy(pixels), transform).unsqueeze(0)).numpy()
        actual = request.infer({0: pixels[None]})[0]
        largest = max(largest, float(abs(actual - expected).max() / abs(expected).max()))
    return largest
