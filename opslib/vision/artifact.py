"""The trained model on disk: `model.pth` (weights) and `model.json` (everything else, for people and programs)."""

import hashlib
import json
import pickle
import platform
from collections.abc import Mapping, Sequence
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
        "runtime": dict(description.runtime) if description.runtime else None,
        "versions": _versions(),
        "weights": {"file": WEIGHTS_FILE, "bytes": weights.stat().st_size, "sha256": _sha256(weights)},
    }
    write_json(directory / DESCRIPTION_FILE, fields)


def write_json(path: Path, fields: Mapping[str, Any]) -> None:
    """Write readable JSON in one step: a reader sees the old file or the new one, never half of it."""
    partial = path.with_suffix(path.suffix + ".partial")
    partial.write_text(json.dumps(fields, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(path)


def load_artifact(directory: Path, device: str | torch.device = "cpu") -> LoadedModel:
    """Load what `save_artifact` wrote, without a download and without running code from the file.

    Raises:
        ArtifactError: A file is missing, damaged, of a newer format, or the two do not belong together.
    """
    fields = _read_description(directory / DESCRIPTION_FILE)
    try:
        classes = tuple(map(str, fields["classes"]))
        transform = TransformSpec.from_dict(fields["transform"])
        backbone = build_backbone(str(fields["backbone"]), pretrained=False)
        head = build_head(fields["head"]["features"], len(classes))
        digest = fields["weights"]["sha256"]
    except (KeyError, TypeError, ConfigurationError) as error:
        raise ArtifactError(f"{directory / DESCRIPTION_FILE} does not describe a model: {error!r}") from error
    classifier = Classifier(backbone.module, head)
    _load_weights(classifier, directory / WEIGHTS_FILE, digest)
    classifier = classifier.eval().to(device=device, memory_format=torch.channels_last)
    return LoadedModel(classifier, classes, transform, fields, torch.device(device))


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


def _load_weights(classifier: Classifier, path: Path, digest: str) -> None:
    try:
        if _sha256(path) != digest:
            raise ArtifactError(f"{path} is damaged, or belongs to another {DESCRIPTION_FILE}")
        state = torch.load(path, map_location="cpu", weights_only=True)
        classifier.load_state_dict(state)
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} is missing", hint="a model directory holds model.pth and model.json") from error
    except (OSError, EOFError, RuntimeError, TypeError, AttributeError, pickle.UnpicklingError) as error:
        raise ArtifactError(f"{path} does not fit {DESCRIPTION_FILE}: {error}") from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _versions() -> dict[str, str]:
    return {"opslib": __version__, "python": platform.python_version(), "torch": torch.__version__}
