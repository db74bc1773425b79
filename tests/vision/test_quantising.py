"""int8 in the place of float32, or not."""

import shutil
import sys

import numpy
import pytest
import torch
from PIL import Image

from opslib.vision import quantising
from opslib.vision.artifact import ModelDescription, open_artifact, save_artifact
from opslib.vision.backbones import build_backbone
from opslib.vision.data import Photo
from opslib.vision.exporting import ONNX_FILE, export_classifier
from opslib.vision.model import Classifier, build_head
from opslib.vision.quantising import Calibration, quantise_export
from opslib.vision.serving import build_scorer


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    directory = tmp_path_factory.mktemp("float32")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = build_backbone("shufflenet_v2_x0_5", pretrained=False)
        classifier = Classifier(backbone.module, build_head(backbone.features, 2)).eval()
    return directory, classifier, backbone, export_classifier(directory, classifier, backbone.transform)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    directory, noise = tmp_path_factory.mktemp("photos"), numpy.random.default_rng(0)
    files = [directory / f"{number}.png" for number in range(6)]
    for file in files:
        Image.fromarray(noise.integers(0, 256, (240, 240, 3), dtype=numpy.uint8)).save(file)
    return [Photo(file, 0, file.name) for file in files]


@pytest.mark.parametrize("most", [1.0, -1.0], ids=["kept", "refused"])
def test_int8_is_kept_only_if_it_is_right_as_often(exported, photos, tmp_path, monkeypatch, most):
    directory, classifier, backbone, export = exported
    shutil.copytree(directory, tmp_path / "model")
    monkeypatch.setattr(quantising, "MOST_ACCURACY_LOST", most)
    lines: list[str] = []
    calibration = Calibration(photos, photos, 4)
    found = quantise_export(tmp_path / "model", export, backbone.transform, calibration, lines.append)
    is_kept = most == 1.0
    assert (found.precision, found.file) == (("int8", "model.xml") if is_kept else ("float32", ONNX_FILE))
    assert set(found.accuracies) == {"float32", "int8"}
    left = {path.name for path in (tmp_path / "model").iterdir()}
    assert left == ({"model.xml", "model.bin"} if is_kept else {ONNX_FILE})
    assert lines[0].startswith("int8 kept" if is_kept else "int8 refused")
    description = ModelDescription(backbone.name, ("a", "b"), backbone.transform, {}, {}, found.to_dict())
    save_artifact(tmp_path / "model", classifier, description)
    scorer = build_scorer(open_artifact(tmp_path / "model"))
    assert scorer.name == "openvino"
    assert len(scorer.scores(numpy.zeros((224, 224, 3), dtype=numpy.uint8))) == 2


def test_a_trained_model_is_not_lost_when_int8_cannot_be_made(exported, photos, tmp_path, monkeypatch):
    directory, _, backbone, export = exported
    shutil.copytree(directory, tmp_path / "model")
    monkeypatch.setitem(sys.modules, "nncf", None)  # as if it were not installed
    lines: list[str] = []
    calibration = Calibration(photos, photos, 4)
    assert quantise_export(tmp_path / "model", export, backbone.transform, calibration, lines.append) == export
    assert {path.name for path in (tmp_path / "model").iterdir()} == {ONNX_FILE}
    assert lines[0].startswith("int8 not made, float32 stays")
    assert "nncf" in lines[0]
