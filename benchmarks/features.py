"""The feature pass: what each runtime makes of it, and what it costs beyond bare decoding and bare computing.

    python benchmarks/features.py [--photos DIR] [--backbone NAME] [--json FILE]

All rows are measured in this run on the same photos, with all cores. `plain eager loop` is what most training scripts
do: decode, normalise, and call the network with batches of 32.
"""

import argparse
import copy
import json
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy
import torch
from torch.nn import functional

from opslib.vision.backbones import OFFLINE_BACKBONE, Backbone, build_backbone
from opslib.vision.data import Photo, open_photos
from opslib.vision.decoding import decode_photo
from opslib.vision.features import FeatureExtractor
from opslib.vision.folding import fold_batch_norm
from opslib.vision.runtimes import Runtime, build_runtime
from opslib.vision.samples import draw_sample
from opslib.vision.threads import usable_cores
from opslib.vision.transforms import evaluation_pixels, evaluation_transform, normalised

CPU = torch.device("cpu")
PLAIN_PHOTOS, CHUNK = 320, 400
Timed = tuple[float, torch.Tensor]
"""Seconds, and the features of shape (photos, features)."""


def decoder(backbone: Backbone) -> Callable[[Photo], numpy.ndarray]:
    """Return the function from a photo file to the pixels of its centre view."""
    pixels, side = evaluation_pixels(backbone.transform), backbone.transform.decoded_side
    return lambda photo: pixels(decode_photo(photo.path.read_bytes(), shortest_side=side))


def plain_eager(backbone: Backbone, photos: Sequence[Photo]) -> Timed:
    """Run the plain loop: batches of 32, one after the other, torch's own threads."""
    view, side = evaluation_transform(backbone.transform), backbone.transform.decoded_side
    rows, started = [], time.perf_counter()
    with torch.inference_mode():
        for start in range(0, len(photos), 32):
            batch = [decode_photo(p.path.read_bytes(), shortest_side=side) for p in photos[start : start + 32]]
            rows.append(backbone.module(torch.stack([view(photo) for photo in batch])))
    return time.perf_counter() - started, torch.cat(rows)


def ours(backbone: Backbone, photos: Sequence[Photo]) -> Timed:
    """Run the extractor, its runtime built before the clock starts, without a cache."""
    extractor = FeatureExtractor(backbone, CPU)
    assert extractor.runtime  # built here
    started = time.perf_counter()
    features = extractor.centre_views(photos)
    return time.perf_counter() - started, features.values


def bare_passes(backbone: Backbone, photos: Sequence[Photo]) -> tuple[float, float]:
    """Return the seconds of decoding every photo and nothing else, and of computing every photo and nothing else.

    Photos are taken in chunks, decoded and computed in turn, so that a busy moment of the machine hits both.
    """
    cores = usable_cores()
    decode, runtime = decoder(backbone), build_runtime(backbone, CPU, cores)
    decoding = computing = 0.0
    with ThreadPoolExecutor(2 * cores, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for start in range(0, len(photos), CHUNK):
            begun = time.perf_counter()
            pixels = list(pool.map(decode, photos[start : start + CHUNK]))
            decoded = time.perf_counter()
            size = runtime.batch_size
            batches = [numpy.stack(pixels[row : row + size]) for row in range(0, len(pixels), size)]
            stacked = time.perf_counter()
            list(pool.map(runtime.compute, batches))
            decoding, computing = decoding + decoded - begun, computing + time.perf_counter() - stacked
    return decoding, computing


def runtimes(backbone: Backbone) -> dict[str, tuple[int, int, Callable[[numpy.ndarray], object]]]:
    """Return batch size, threads that call at once, and the call, of every runtime that is installed here."""
    cores, view = usable_cores(), backbone.transform

    @torch.inference_mode()
    def by_torch(module: torch.nn.Module, layout: torch.memory_format, pixels: numpy.ndarray) -> torch.Tensor:
        return module(normalised(torch.from_numpy(pixels), view).contiguous(memory_format=layout))

    plain, last = torch.contiguous_format, torch.channels_last
    # A module is moved to another layout in place: each row gets a copy of its own.
    reordered = copy.deepcopy(backbone.module).to(memory_format=last)
    folded = fold_batch_norm(backbone.module, view.size).to(memory_format=last)
    best: Runtime = build_runtime(backbone, CPU, cores)
    found = {
        "eager, batches of 32": (32, 1, lambda pixels: by_torch(backbone.module, plain, pixels)),
        "eager, channels_last": (32, 1, lambda pixels: by_torch(reordered, last, pixels)),
        "folded, 4 a core": (4, cores, lambda pixels: by_torch(folded, last, pixels)),
        f"{best.name}, 1 a core": (best.batch_size, cores, best.compute),
    }
    if onnx := onnx_runtime(backbone):
        found["onnxruntime, 1 a core"] = (1, cores, onnx)
    return found


def onnx_runtime(backbone: Backbone) -> Callable[[numpy.ndarray], object] | None:
    """Return the network in ONNX Runtime; None where it is not installed."""
    try:
        import onnxruntime
    except ImportError:
        return None
    from opslib.vision.runtimes import _as_onnx

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(_as_onnx(backbone.module, backbone.transform.size), options)
    name = session.get_inputs()[0].name
    return lambda pixels: session.run(
        None, {name: normalised(torch.from_numpy(pixels), backbone.transform).contiguous().numpy()}
    )


def runtime_table(backbone: Backbone, photos: Sequence[Photo]) -> dict[str, float]:
    """Return the photos/s of every runtime on photos that are already decoded."""
    pixels, rates = [decoder(backbone)(photo) for photo in photos], {}
    for name, (size, workers, compute) in runtimes(backbone).items():
        batches = [numpy.stack(pixels[start : start + size]) for start in range(0, len(pixels), size)]
        threads = torch.get_num_threads() if workers == 1 else 1
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(threads,)) as pool:
            list(pool.map(compute, batches[: 2 * workers]))
            started = time.perf_counter()
            list(pool.map(compute, batches))
            rates[name] = len(pixels) / (time.perf_counter() - started)
    return rates


def measure(backbone: Backbone, photos: Sequence[Photo]) -> dict[str, float]:
    """Return photos/s of the plain loop, of ours and of the bare passes, and how far the features are apart."""
    few = photos[:PLAIN_PHOTOS]
    plain_eager(backbone, few[:32]), ours(backbone, few[:32])
    plain_seconds, plain_values = plain_eager(backbone, few)
    our_seconds, our_values = ours(backbone, photos)
    decoding, computing = bare_passes(backbone, photos)
    close = functional.cosine_similarity(plain_values, our_values[: len(few)])
    return {
        "plain_photos_per_second": len(few) / plain_seconds,
        "our_photos_per_second": len(photos) / our_seconds,
        "feature_pass_speedup": len(photos) / our_seconds / (len(few) / plain_seconds),
        "bare_decode_seconds": decoding,
        "bare_forward_seconds": computing,
        "pass_over_limit": our_seconds / (decoding + computing),
        "largest_difference": (plain_values - our_values[: len(few)]).abs().max().item(),
        "smallest_cosine": close.min().item(),
    }


def main() -> None:
    """Measure, print the tables, and write them as JSON when asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, help="folder of photos (default: a drawn sample)")
    parser.add_argument("--backbone", default=OFFLINE_BACKBONE)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as scratch:
        if options.photos is None:
            draw_sample(Path(scratch) / "sample")
        photos = list(open_photos(options.photos or Path(scratch) / "sample"))
        backbone = build_backbone(options.backbone)
        rates = runtime_table(backbone, photos[:PLAIN_PHOTOS])
        figures = measure(backbone, photos)
    slowest = rates["eager, batches of 32"]
    for name, rate in rates.items():
        print(f"{name:<28}{rate:8.1f} photos/s computed  {rate / slowest:6.2f}x of eager")
    for name, figure in figures.items():
        print(f"{name:<28}{figure:12.6g}")
    if options.json:
        options.json.write_text(json.dumps(figures | {"photos_per_second": rates}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
