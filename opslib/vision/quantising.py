"""The exported classifier in int8, if that costs next to no accuracy.

EfficientNet-Lite0 answers one and a half times as fast in int8 as in float32. How often it is right is measured on the
validation photos, which took no part in the calibration; the test photos are not looked at.
"""

import logging
import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy

from opslib.vision.data import Photo
from opslib.vision.decoding import decode_photo
from opslib.vision.exporting import ONNX_FILE, Export
from opslib.vision.runtimes import compile_network, from_pixels
from opslib.vision.threads import usable_cores
from opslib.vision.transforms import TransformSpec, evaluation_pixels

INT8_FILE = "model.xml"
"""OpenVINO's own format, with its weights in model.bin: ONNX has no words for everything in it."""
MOST_ACCURACY_LOST = 0.005


@dataclass(frozen=True)
class Calibration:
    """The photos that int8 is made with: those of which `count` calibrate, and those on which it is judged."""

    train: Sequence[Photo]
    valid: Sequence[Photo]
    count: int


def quantise_export(
    directory: Path, export: Export, transform: TransformSpec, calibration: Calibration, log: Callable[[str], None]
) -> Export:
    """Put an int8 model in the place of `model.onnx`, if it is right as often to half a point; return what is there.

    A model that was trained is not lost when int8 cannot be made of it: then float32 stays, and the log says why.

    Args:
        directory: Where `export_classifier` wrote.
        export: What it wrote.
        transform: What the classifier wants to see.
        calibration: The photos.
        log: Receives a line that says what was measured and decided.
    """
    partial = directory / f"partial.{INT8_FILE}"
    try:
        accuracies = _write_int8(directory / ONNX_FILE, partial, transform, calibration)
    except Exception as error:  # noqa: BLE001 - of nncf and OpenVINO, on a network that they may not know
        log(f"int8 not made, float32 stays: {error}")
        _settle(directory, partial, is_kept=False)
        return export
    is_kept = accuracies["float32"] - accuracies["int8"] <= MOST_ACCURACY_LOST
    shown = ", ".join(f"{name} {accuracy:.4f}" for name, accuracy in accuracies.items())
    log(f"int8 {'kept' if is_kept else 'refused'}: validation accuracy {shown}")
    _settle(directory, partial, is_kept=is_kept)
    export = replace(export, accuracies=accuracies)
    return replace(export, file=INT8_FILE, precision="int8") if is_kept else export


def _write_int8(
    onnx_file: Path, int8_file: Path, transform: TransformSpec, calibration: Calibration
) -> dict[str, float]:
    """Write the int8 model; return how often it is right, and how often float32 is."""
    content, pixels = onnx_file.read_bytes(), _pixels_of(transform)
    train = list(calibration.train)
    chosen = random.Random(0).sample(train, min(calibration.count, len(train)))  # noqa: S311 - a sample, not a secret
    _save(_quantise(content, transform, [pixels(photo)[None] for photo in chosen]), int8_file)
    cores = usable_cores()
    return {
        name: _accuracy(compile_network(source, transform, threads=cores, streams=cores), calibration.valid, pixels)
        for name, source in (("float32", content), ("int8", int8_file))
    }


def _settle(directory: Path, partial: Path, *, is_kept: bool) -> None:
    """Leave one model in the folder: int8 in the place of ONNX, or ONNX as it was."""
    for suffix in (".bin", ".xml"):
        written = partial.with_suffix(suffix)
        if is_kept:
            written.replace((directory / INT8_FILE).with_suffix(suffix))
        else:
            written.unlink(missing_ok=True)
    if is_kept:
        (directory / ONNX_FILE).unlink()


def _pixels_of(transform: TransformSpec) -> Callable[[Photo], numpy.ndarray]:
    crop = evaluation_pixels(transform)
    return lambda photo: crop(decode_photo(photo.path.read_bytes(), shortest_side=transform.decoded_side))


def _quantise(content: bytes, transform: TransformSpec, photos: Sequence[numpy.ndarray]) -> Any:
    import nncf
    import openvino

    for name in ("nncf", "torch.utils.cpp_extension"):
        logging.getLogger(name).setLevel(logging.ERROR)
    network = from_pixels(openvino.Core().read_model(content), transform)
    return nncf.quantize(
        network, nncf.Dataset(list(photos)), preset=nncf.QuantizationPreset.MIXED, subset_size=len(photos)
    )


def _save(network: Any, path: Path) -> None:
    import openvino

    openvino.save_model(network, path, compress_to_fp16=False)


def _accuracy(compiled: Any, photos: Sequence[Photo], pixels: Callable[[Photo], numpy.ndarray]) -> float:
    """Return how often a network is right, a photo a thread."""

    def is_right(photo: Photo) -> bool:
        scores = compiled.create_infer_request().infer({0: pixels(photo)[None]})[0][0]
        return int(scores.argmax()) == photo.label

    with ThreadPoolExecutor(usable_cores()) as pool:
        return sum(pool.map(is_right, photos)) / len(photos)
