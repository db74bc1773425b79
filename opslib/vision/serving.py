"""Scores of one photo after another, from many threads at once, by the fastest way that this machine has.

On a CPU with OpenVINO there are two networks over the same file: one that puts all cores on a photo, for when nobody
else asks, and one that gives each core a photo of its own, for when several do (ResNet-50 on two cores: 22 ms for one
photo, or 50 photos/s). On a GPU, and where OpenVINO is not installed, torch computes what has come together meanwhile.
"""

import importlib.util
import logging
import os
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Protocol

import numpy
import torch

from opslib.errors import ArtifactError
from opslib.vision.artifact import Artifact, LoadedModel
from opslib.vision.exporting import ONNX_FILE
from opslib.vision.folding import fold_batch_norm
from opslib.vision.runtimes import compile_network, on_device
from opslib.vision.threads import usable_cores
from opslib.vision.transforms import normalised

logger = logging.getLogger(__name__)

THREADS_PER_CORE = 2
"""While one thread of a core computes, the other reads and decodes the next photo."""
MOST_PHOTOS = {"cpu": 1, "cuda": 32}
"""Photos that torch computes at once: on a CPU a batch of photos takes as long as one after the other."""
LONGEST_WAIT_SECONDS = 0.004
"""How long a photo waits on a GPU for others to come."""
_WORKER = "model_service_worker.py"
"""The program of a worker process of TorchServe and of MMS."""


class Scorer(Protocol):
    """Computes scores; may be called by any number of threads."""

    name: str

    def scores(self, pixels: numpy.ndarray) -> list[float]:
        """Return the scores of a photo, uint8 of shape (size, size, 3), in class order."""


def serving_cores() -> int:
    """Return how many cores this process may use: its share of SM_NUM_CPUS where that is set, or of those there are."""
    cores = min(_number("SM_NUM_CPUS") or usable_cores(), usable_cores())
    if Path(sys.argv[0]).name != _WORKER:
        return cores
    # TorchServe and MMS start as many processes as there are cores, unless they are told a number.
    return max(1, cores // (_number("SAGEMAKER_MODEL_SERVER_WORKERS") or cores))


def _number(name: str) -> int:
    """Return the number that a variable of the environment holds, 0 if it holds none."""
    told = os.environ.get(name, "")
    return int(told) if told.isdecimal() else 0


def serving_threads() -> int:
    """Return how many photos should be under way at once, each in a thread that waits for its scores.

    A batch cannot have more photos than there are threads.
    """
    return max(serving_cores() * THREADS_PER_CORE, MOST_PHOTOS["cuda"] if torch.cuda.is_available() else 1)


def build_scorer(artifact: Artifact, device: str = "cpu") -> Scorer:
    """Return the fastest scorer for a model, warmed up: its first photo takes no longer than the others.

    Raises:
        ArtifactError: the network or its weights do not belong to the description.
    """
    scorer = _fast_scorer(artifact) if device == "cpu" else None
    scorer = scorer or TorchScorer(artifact.load(device))
    size = artifact.transform.size
    for _ in range(2):
        scores = scorer.scores(numpy.zeros((size, size, 3), dtype=numpy.uint8))
    if len(scores) != len(artifact.classes):
        raise ArtifactError(
            f"the network of {artifact.directory} gives {len(scores)} scores for {len(artifact.classes)} classes",
            hint="model.json and the network belong to different models: unpack the archive again",
        )
    logger.info("scores are computed by %s on %s, %d cores", scorer.name, device, serving_cores())
    return scorer


def _fast_scorer(artifact: Artifact) -> Scorer | None:
    """Return OpenVINO's scorer, or None when the artifact or this machine has not what it takes."""
    known = artifact.metadata.get("runtime") or {}
    file = artifact.directory / Path(str(known.get("file", ONNX_FILE))).name
    if known.get("engine") != "openvino" or not file.is_file():
        return None
    if not importlib.util.find_spec("openvino"):
        logger.warning("openvino is not installed here: torch computes the scores, three times as slowly")
        return None
    cores, source = serving_cores(), file.read_bytes() if file.suffix == ".onnx" else file
    alone = compile_network(source, artifact.transform, threads=cores, streams=1)
    together = compile_network(source, artifact.transform, threads=cores, streams=cores) if cores > 1 else alone
    if alone is None or together is None:
        logger.warning("openvino cannot read %s: torch computes the scores, three times as slowly", file.name)
        return None
    return OpenVinoScorer(alone, together)


@dataclass
class _Requests(threading.local):
    """The inference requests of a thread, by the network that they belong to."""

    def __init__(self) -> None:
        self.by_network: dict[int, Any] = {}


class OpenVinoScorer:
    """Puts all cores on a photo that is alone, and one core on each of several."""

    name = "openvino"

    def __init__(self, alone: Any, together: Any) -> None:
        """Take the two compiled networks."""
        self._alone, self._together = alone, together
        self._under_way = 0
        self._lock = threading.Lock()
        self._requests = _Requests()

    def scores(self, pixels: numpy.ndarray) -> list[float]:
        """Return the scores of a photo."""
        with self._lock:
            self._under_way += 1
            network = self._alone if self._under_way == 1 else self._together
        try:
            request = self._requests.by_network.get(id(network))
            if request is None:
                request = self._requests.by_network[id(network)] = network.create_infer_request()
            return [float(score) for score in request.infer({0: pixels[None]})[0][0]]
        finally:
            with self._lock:
                self._under_way -= 1


class TorchScorer:
    """One thread computes for all others, in batches of what has come together."""

    name = "torch"

    def __init__(self, model: LoadedModel) -> None:
        """Fold the network's BatchNorm and start the thread."""
        self._model = model
        self._most = MOST_PHOTOS[model.device.type]
        model.classifier.backbone = fold_batch_norm(model.classifier.backbone, model.transform.size)
        self._start()

    def _start(self) -> None:
        self._waiting: SimpleQueue[tuple[numpy.ndarray, Future[list[float]]]] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, args=(self._waiting,), name="scores", daemon=True)
        self._thread.start()

    def scores(self, pixels: numpy.ndarray) -> list[float]:
        """Return the scores of a photo."""
        if not self._thread.is_alive():  # this process was forked off the one that loaded the model
            self._start()
        answer: Future[list[float]] = Future()
        self._waiting.put((pixels, answer))
        return answer.result()

    def _run(self, waiting: SimpleQueue) -> None:
        torch.set_num_threads(serving_cores())
        while True:
            batch = collect(waiting.get, self._most, LONGEST_WAIT_SECONDS, lambda seconds: waiting.get(timeout=seconds))
            answers = [answer for _, answer in batch]
            try:
                rows = self._compute([pixels for pixels, _ in batch])
            except Exception as error:  # noqa: BLE001 - whoever waits for it gets it
                for answer in answers:
                    answer.set_exception(error)
            else:
                for answer, row in zip(answers, rows, strict=True):
                    answer.set_result(row)

    @torch.inference_mode()
    def _compute(self, photos: Sequence[numpy.ndarray]) -> list[list[float]]:
        device = self._model.device
        batch = normalised(on_device(numpy.stack(photos), device), self._model.transform)
        return self._model.classifier(batch.contiguous(memory_format=torch.channels_last)).float().cpu().tolist()


def collect(
    first: Callable[[], Any], most: int, longest_wait_seconds: float, following: Callable[[float], Any]
) -> list[Any]:
    """Return a batch: the first that comes, and what follows within a moment, up to a number.

    Args:
        first: Waits for the first one.
        most: The largest batch.
        longest_wait_seconds: How long the first one may wait for others.
        following: Waits so long for another one; raises `queue.Empty` when none comes.
    """
    import queue
    import time

    batch = [first()]
    deadline = time.monotonic() + longest_wait_seconds
    while len(batch) < most:
        try:
            batch.append(following(max(0.0, deadline - time.monotonic())))
        except queue.Empty:
            break
    return batch
