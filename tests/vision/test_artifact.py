"""model.pth and model.json."""

import hashlib
import json
import pickle

import pytest
import torch

from opslib.errors import ArtifactError
from opslib.vision import backbones
from opslib.vision.artifact import ModelDescription, load_artifact, save_artifact
from opslib.vision.backbones import build_backbone
from opslib.vision.model import Classifier, build_head

CLASSES = ("Ärmelhund", "Boxer", "狗")


@pytest.fixture(scope="module")
def classifier():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = build_backbone("shufflenet_v2_x0_5", pretrained=False)
        return Classifier(backbone.module, build_head(backbone.features, 3)).eval(), backbone


@pytest.fixture
def artifact(classifier, tmp_path):
    model, backbone = classifier
    save_artifact(
        tmp_path / "model",
        model,
        ModelDescription(backbone.name, CLASSES, backbone.transform, {"valid_loss": 0.5}, {"seed": 1}),
    )
    return tmp_path / "model"


def rewrite(artifact, **changes):
    fields = json.loads((artifact / "model.json").read_text())
    (artifact / "model.json").write_text(json.dumps(fields | changes))


def test_what_is_loaded_is_what_was_saved(artifact, classifier, monkeypatch):
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", None)  # nothing may be downloaded
    monkeypatch.setattr(backbones, "_packaged_weights", None)
    loaded = load_artifact(artifact)
    photos = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.allclose(loaded.classifier(photos), classifier[0](photos), atol=1e-5)
    assert (loaded.classes, loaded.transform) == (CLASSES, classifier[1].transform)
    assert not loaded.classifier.training


def test_description_is_readable(artifact):
    text = (artifact / "model.json").read_text(encoding="utf-8")
    fields = json.loads(text)
    assert fields["backbone"] == "shufflenet_v2_x0_5"
    assert fields["classes"] == list(CLASSES)
    assert fields["metrics"] == {"valid_loss": 0.5}
    assert fields["training"] == {"seed": 1}
    assert {"opslib", "torch", "python"} <= fields["versions"].keys()
    assert "狗" in text
    assert sorted(path.name for path in artifact.iterdir()) == ["model.json", "model.pth"]


@pytest.mark.parametrize("name", ["model.pth", "model.json"])
def test_missing_files_are_named(artifact, name):
    (artifact / name).unlink()
    with pytest.raises(ArtifactError, match=f"{name} is missing"):
        load_artifact(artifact)


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, '{"format": 1}', '{"format": 99}', "\0"])
def test_damaged_descriptions_are_refused(artifact, text):
    (artifact / "model.json").write_text(text)
    with pytest.raises(ArtifactError, match=r"model\.json"):
        load_artifact(artifact)


@pytest.mark.parametrize(
    "changes",
    [
        {"backbone": "nosuch"},
        {"classes": 3},
        {"transform": {"size": 9}},
        {"head": {}},
        {"weights": {}},
        {"backbone": 5},
    ],
)
def test_descriptions_of_no_model_are_refused(artifact, changes):
    rewrite(artifact, **changes)
    with pytest.raises(ArtifactError, match="does not describe a model"):
        load_artifact(artifact)


def test_weights_of_another_model_are_refused(artifact):
    rewrite(artifact, classes=["one", "two"])
    with pytest.raises(ArtifactError, match="does not fit"):
        load_artifact(artifact)


def test_damaged_weights_are_refused(artifact):
    data = bytearray((artifact / "model.pth").read_bytes())
    data[len(data) // 2] ^= 1
    (artifact / "model.pth").write_bytes(data)
    with pytest.raises(ArtifactError, match="damaged"):
        load_artifact(artifact)


def test_code_in_the_weights_is_not_run(artifact, tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"x": Evil()}, artifact / "model.pth")
    rewrite(artifact, weights={"sha256": hashlib.sha256((artifact / "model.pth").read_bytes()).hexdigest()})
    with pytest.raises(ArtifactError, match="does not fit"):
        load_artifact(artifact)
    (artifact / "model.pth").write_bytes(pickle.dumps(Evil(), protocol=2))
    rewrite(artifact, weights={"sha256": hashlib.sha256((artifact / "model.pth").read_bytes()).hexdigest()})
    with pytest.raises(ArtifactError, match="does not fit"):
        load_artifact(artifact)
    assert not (tmp_path / "ran").exists()
