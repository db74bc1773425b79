"""The trained model on disk: `model.pth` (weights) and `model.json` (everything else, for people and programs).

Beside them may stand what a faster runtime reads (`exporting`): the description then has its digest, too.
"""

import hashlib
import json
import pickle
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from opslib import __version__
from opslib.errors import ArtifactError, ConfigurationError
from opslib.vision.backbones import build_backbone
from opslib.vision.model import HIDDEN_FEATURES, Classifier, build_head
from opslib.vision.transforms import TransformSpec

FORMAT = 1
"""Version of the artifact's layout."""

WEIGHTS_FILE = "model.pth"
DESCRIPTION_FILE = "model.json"
RUNTIME_SUFFIXES = frozenset({".onnx", ".xml", ".bin"})
"""Of the files that a runtime reads beside them: ONNX, or OpenVINO's graph and weights."""


@dataclass(frozen=True)
class LoadedModel:
    """A classifier in evaluation mode on `device`, its classes in the order of its scores, and what it wants to see."""

    classifier: Classifier
    classes: tuple[str, ...]
    transform: TransformSpec
    metadata: Mapping[str, Any]
    device: torch.device


@dataclass(frozen=True)
class ModelDescription:
    """What `model.json` says beyond the weights: enough to build the classifier anywhere."""

    backbone: str
    classes: Sequence[str]
    transform: TransformSpec
    metrics: Mapping[str, Any]
    training: Mapping[str, Any]
    runtime: Mapping[str, Any] | None = None


def save_artifact(directory: Path, classifier: Classifier, description: ModelDescription) -> None:
    """Write `model.pth` and `model.json`; each appears whole or not at all, the description last.

    The weights are the state dict of the whole classifier, so that loading it downloads nothing.
    """
    directory.mkdir(parents=True, exist_ok=True)
    weights = directory / WEIGHTS_FILE
    partial = weights.with_suffix(".pth.partial")
    state = {name: value.detach().cpu().contiguous() for name, value in classifier.state_dict().items()}
    torch.save(state, partial)
    partial.replace(weights)
    fields = {
        "format": FORMAT,
        "backbone": description.backbone,
        "head": {"features": classifier.head[0].in_features, "hidden": HIDDEN_FEATURES},
        "classes": list(description.classes),
        "transform": description.transform.to_dict(),
        "metrics": dict(description.metrics),
        "training": dict(description.training),
        "runtime": _runtime(directory, description.runtime) if description.runtime else None,
        "versions": _versions(),
        "weights": {"file": WEIGHTS_FILE, "bytes": weights.stat().st_size, "sha256": _sha256(weights)},
    }
    write_json(directory / DESCRIPTION_FILE, fields)


def _runtime(directory: Path, runtime: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is known of a runtime's file, with the digests of all files that belong to it."""
    files = sorted(directory.glob(f"{Path(str(runtime['file'])).stem}.*"))
    return {**runtime, "sha256": {file.name: _sha256(file) for file in files if file.suffix in RUNTIME_SUFFIXES}}


def write_json(path: Path, fields: Mapping[str, Any]) -> None:
    """Write readable JSON in one step: a reader sees the old file or the new one, never half of it."""
    partial = path.with_suffix(path.suffix + ".partial")
    partial.write_text(json.dumps(fields, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(path)


@dataclass(frozen=True)
class Artifact:
    """What `save_artifact` wrote, every file of it whole; the network itself is built by `load`.

    That takes a second and a half, which a server that answers from a faster runtime's file can save.
    """

    directory: Path
    classes: tuple[str, ...]
    transform: TransformSpec
    metadata: Mapping[str, Any]

    def load(self, device: str | torch.device = "cpu") -> LoadedModel:
        """Build the classifier and load its weights, without a download and without running code from the file.

        Raises:
            ArtifactError: The weights and the description do not belong together.
        """
        with _described(self.directory):
            backbone = build_backbone(str(self.metadata["backbone"]), pretrained=False)
            head = build_head(self.metadata["head"]["features"], len(self.classes))
        classifier = Classifier(backbone.module, head)
        _load_weights(classifier, self.directory / WEIGHTS_FILE)
        classifier = classifier.eval().to(device=device, memory_format=torch.channels_last)
        return LoadedModel(classifier, self.classes, self.transform, self.metadata, torch.device(device))


def open_artifact(directory: Path) -> Artifact:
    """Read the description of an artifact, and check that its files are those that were written.

    Raises:
        ArtifactError: A file is missing, damaged, or of a newer format.
    """
    fields = _read_description(directory / DESCRIPTION_FILE)
    with _described(directory):
        classes = tuple(map(str, fields["classes"]))
        transform = TransformSpec.from_dict(fields["transform"])
        digests = {WEIGHTS_FILE: fields["weights"]["sha256"]} | dict((fields.get("runtime") or {}).get("sha256", {}))
    for name, digest in digests.items():
        _check_digest(directory / Path(name).name, digest)
    return Artifact(directory, classes, transform, fields)


def load_artifact(directory: Path, device: str | torch.device = "cpu") -> LoadedModel:
    """Open an artifact and load its classifier; see `open_artifact` and `Artifact.load`."""
    return open_artifact(directory).load(device)


@contextmanager
def _described(directory: Path) -> Iterator[None]:
    """Say of what is missing or wrong in a description that it is so."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, ConfigurationError) as error:
        raise ArtifactError(f"{directory / DESCRIPTION_FILE} does not describe a model: {error!r}") from error


def _read_description(path: Path) -> dict[str, Any]:
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} is missing", hint="a model directory holds model.pth and model.json") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} cannot be read: {error}") from error
    if not isinstance(fields, dict) or fields.get("format") != FORMAT:
        raise ArtifactError(f"{path} is not of format {FORMAT}", hint="load it with the opslib that wrote it")
    return fields


def _check_digest(path: Path, digest: str) -> None:
    try:
        if _sha256(path) != digest:
            raise ArtifactError(f"{path} is damaged, or belongs to another {DESCRIPTION_FILE}")
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} is missing", hint="a model directory holds model.pth and model.json") from error
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error}") from error


def _load_weights(classifier: Classifier, path: Path) -> None:
    try:
        classifier.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except (OSError, EOFError, RuntimeError, TypeError, AttributeError, pickle.UnpicklingError) as error:
        raise ArtifactError(f"{path} does not fit {DESCRIPTION_FILE}: {error}") from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _versions() -> dict[str, str]:
    return {"opslib": __version__, "python": platform.python_version(), "torch": torch.__version__}
