"""What computes the features of a photo: the fastest way that this machine has, behind one function.

`benchmarks/features.py` prints the table; on two cores, photos of 256 x 256 pixels through EfficientNet-Lite0, in
photos/s: eager torch in batches of 32 19, folded and channels_last in batches of 4 123, ONNX Runtime 247, OpenVINO 300.
"""

import importlib.util
import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import local
from typing import Any

import numpy
import torch
from torch import nn

from opslib.vision.backbones import Backbone
from opslib.vision.folding import fold_batch_norm
from opslib.vision.transforms import TransformSpec, normalised

# On a CPU the activations of a larger batch no longer fit the heap that malloc reuses: with 32 photos half of the time
# goes to the kernel, which maps and clears pages (32 photos per CPU second, against 64 in batches of 4).
PHOTOS_PER_BATCH = {"cpu": 4, "cuda": 64}
"""Photos that torch computes at once, by the type of the device."""

_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Runtime:
    """A backbone ready to run.

    Attributes:
        name: `openvino`, or `torch`.
        precision: In which the features are computed: `float32`, or `bfloat16` on a GPU.
        batch_size: The number of photos in a batch; a torch runtime takes any number.
        compute: Pixels uint8 (N, size, size, 3) to features float32 (N, features) on the CPU; may be called by
            `workers` threads at once.
    """

    name: str
    precision: str
    batch_size: int
    compute: Callable[[numpy.ndarray], torch.Tensor]


def precision_on(device: torch.device) -> str:
    """Return the precision of features on a device: `bfloat16` on GPUs that have it, otherwise `float32`."""
    return "bfloat16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "float32"


def build_runtime(backbone: Backbone, device: torch.device, workers: int) -> Runtime:
    """Build the fastest runtime for a backbone: OpenVINO on a CPU where it is installed and agrees, otherwise torch.

    Args:
        backbone: The network; it is not changed.
        device: Where to compute.
        workers: The number of photos that are computed at once on a CPU, each by one core.
    """
    if device.type == "cpu" and importlib.util.find_spec("openvino") and importlib.util.find_spec("onnx"):
        candidate = _openvino_runtime(backbone, workers)
        if candidate is not None and _agrees(candidate, backbone):
            return candidate
    return _torch_runtime(backbone, device)


def _torch_runtime(backbone: Backbone, device: torch.device) -> Runtime:
    module = fold_batch_norm(backbone.module, backbone.transform.size)
    module = module.to(device=device, memory_format=torch.channels_last)
    compute = partial(_compute_by_torch, module, backbone.transform, device)
    return Runtime("torch", precision_on(device), PHOTOS_PER_BATCH[device.type], compute)


@torch.inference_mode()
def _compute_by_torch(
    module: nn.Module, view: TransformSpec, device: torch.device, pixels: numpy.ndarray
) -> torch.Tensor:
    photos = normalised(on_device(pixels, device), view).contiguous(memory_format=torch.channels_last)
    with torch.autocast(device.type, torch.bfloat16, enabled=precision_on(device) == "bfloat16"):
        return module(photos).float().cpu()


def on_device(pixels: numpy.ndarray, device: torch.device) -> torch.Tensor:
    """Return pixels where they are computed; from pinned memory a copy goes on while kernels of before still run."""
    batch = torch.from_numpy(pixels)
    return batch.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else batch


def _openvino_runtime(backbone: Backbone, workers: int) -> Runtime | None:
    """Return the backbone in OpenVINO, a stream of its own for each worker; None if it cannot be converted."""
    content = as_onnx(backbone.module, backbone.transform.size)
    compiled = compile_network(content, backbone.transform, threads=workers, streams=workers) if content else None
    if compiled is None:
        return None
    requests = local()

    def compute(pixels: numpy.ndarray) -> torch.Tensor:
        if not hasattr(requests, "own"):
            requests.own = compiled.create_infer_request()
        # The result lies in the request's own memory, which the next photo overwrites.
        return torch.from_numpy(requests.own.infer({0: pixels})[0].copy())

    return Runtime("openvino", "float32", 1, compute)


def compile_network(source: bytes | Path, view: TransformSpec, *, threads: int, streams: int) -> Any:
    """Return a network compiled by OpenVINO, from pixels to outputs; None if OpenVINO cannot.

    Args:
        source: What `as_onnx` returned, or OpenVINO's own file, which takes pixels already.
        view: Mean and standard deviation that are built into it.
        threads: Cores to use in all.
        streams: Photos that are computed at once; each has its share of the threads.
    """
    import openvino

    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": streams,
        "INFERENCE_PRECISION_HINT": "f32",
        # Several processes on one machine would all be pinned to the same first cores.
        "ENABLE_CPU_PINNING": False,
    }
    core = openvino.Core()
    try:
        network = core.read_model(source) if isinstance(source, Path) else from_pixels(core.read_model(source), view)
        return core.compile_model(network, "CPU", settings)
    except RuntimeError:  # no network, or an operator that it does not have
        return None


def as_onnx(module: nn.Module, size: int) -> bytes:
    """Return a network as ONNX for one photo at a time, or nothing when it cannot be traced or written as ONNX.

    Tracing takes a quarter of the two seconds of OpenVINO's own `convert_model`.
    """
    content = io.BytesIO()
    # torch would rather have its other exporter used, which takes 3 s and needs one more package.
    with warnings.catch_warnings(action="ignore"), _attention_in_small_steps():
        try:
            torch.onnx.export(module, (torch.zeros(1, 3, size, size),), content, dynamo=False)
        except Exception:  # noqa: BLE001 - the network's own code, run with what is no number, may raise anything
            return b""
    return content.getvalue()


@contextmanager
def _attention_in_small_steps() -> Iterator[None]:
    """Keep torch from computing an attention layer in one operation, for which ONNX has no word (ViT)."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def from_pixels(model: Any, view: TransformSpec) -> Any:
    """Put the normalisation into the graph: a photo goes in as it was decoded, a quarter of the bytes."""
    from openvino import Layout, Type
    from openvino.preprocess import PrePostProcessor

    steps = PrePostProcessor(model)
    steps.input().tensor().set_element_type(Type.u8).set_layout(Layout("NHWC"))
    steps.input().model().set_layout(Layout("NCHW"))
    to_float = steps.input().preprocess().convert_element_type(Type.f32)
    to_float.mean([255 * value for value in view.mean]).scale([255 * value for value in view.std])
    return steps.build()


def _agrees(candidate: Runtime, backbone: Backbone) -> bool:
    """Tell whether a runtime computes what the backbone itself does, on noise."""
    size = backbone.transform.size
    noise = numpy.random.default_rng(0).integers(0, 256, (1, size, size, 3), dtype=numpy.uint8)
    with torch.inference_mode():
        expected = backbone.module(normalised(torch.from_numpy(noise), backbone.transform))
    difference = (candidate.compute(noise) - expected).abs().max()
    return difference.item() <= _TOLERANCE * expected.abs().max().item()
