"""Scores from many threads at once, by OpenVINO and by torch, and the file that they come from."""

import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Empty, SimpleQueue

import numpy
import pytest
import torch

import inference
from opslib.errors import ArtifactError
from opslib.vision import artifact, exporting, serving
from opslib.vision.artifact import ModelDescription, load_artifact, open_artifact, save_artifact
from opslib.vision.backbones import build_backbone
from opslib.vision.exporting import ONNX_FILE, export_classifier
from opslib.vision.model import Classifier, build_head
from opslib.vision.transforms import normalised

CLASSES = ("a", "b", "c")


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("exported")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = build_backbone("efficientnet_lite0")
        classifier = Classifier(backbone.module, build_head(backbone.features, len(CLASSES))).eval()
    export = export_classifier(directory, classifier, backbone.transform)
    description = ModelDescription(backbone.name, CLASSES, backbone.transform, {}, {}, export.to_dict())
    save_artifact(directory, classifier, description)
    return directory


@pytest.fixture(scope="module")
def photos():
    return numpy.random.default_rng(1).integers(0, 256, (8, 256, 256, 3), dtype=numpy.uint8)


@pytest.fixture(scope="module")
def expected(model_dir, photos):
    model = load_artifact(model_dir)
    with torch.inference_mode():
        return model.classifier(normalised(torch.from_numpy(photos), model.transform)).numpy()


def test_the_export_says_what_it_is(model_dir):
    runtime = json.loads((model_dir / "model.json").read_text())["runtime"]
    assert (runtime["file"], runtime["engine"], runtime["precision"]) == (ONNX_FILE, "openvino", "float32")
    assert 0 <= runtime["largest_difference"] < exporting.TOLERANCE


@pytest.mark.parametrize("engine", ["openvino", "torch"])
def test_eight_threads_get_the_scores_of_their_own_photos(model_dir, photos, expected, engine):
    opened = open_artifact(model_dir)
    scorer = serving.build_scorer(opened) if engine == "openvino" else serving.TorchScorer(opened.load())
    assert scorer.name == engine
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            found = numpy.array(list(pool.map(scorer.scores, photos)))
            assert numpy.abs(found - expected).max() < 1e-3 * numpy.abs(expected).max()


def test_torch_serves_where_openvino_is_not_installed(model_dir, monkeypatch, caplog):
    find = serving.importlib.util.find_spec
    monkeypatch.setattr(serving.importlib.util, "find_spec", lambda name: None if name == "openvino" else find(name))
    with caplog.at_level(logging.WARNING):
        model = inference.model_fn(str(model_dir))
    assert model.scorer.name == "torch"
    assert [record.message for record in caplog.records if "openvino is not installed" in record.message]


@pytest.fixture
def copied(model_dir, tmp_path):
    """A copy of the model, to be damaged."""
    return Path(shutil.copytree(model_dir, tmp_path / "model"))


def test_a_file_that_openvino_cannot_read_is_not_fatal(copied, caplog):
    (copied / ONNX_FILE).write_bytes(b"not a network")
    fields = json.loads((copied / "model.json").read_text())
    fields["runtime"]["sha256"] = {ONNX_FILE: hashlib.sha256(b"not a network").hexdigest()}
    (copied / "model.json").write_text(json.dumps(fields))
    assert inference.model_fn(str(copied)).scorer.name == "torch"
    assert "cannot read" in caplog.text


def test_a_damaged_network_does_not_answer(copied):
    data = bytearray((copied / ONNX_FILE).read_bytes())
    data[len(data) // 2] ^= 1
    (copied / ONNX_FILE).write_bytes(data)
    with pytest.raises(ArtifactError, match=r"model\.onnx is damaged"):
        inference.model_fn(str(copied))
    (copied / ONNX_FILE).unlink()
    with pytest.raises(ArtifactError, match=r"model\.onnx is missing"):
        inference.model_fn(str(copied))


def test_openvino_answers_without_the_networks_weights_in_torch(model_dir, monkeypatch):
    monkeypatch.setattr(artifact, "build_backbone", None)  # half of a server's start would go there
    assert inference.model_fn(str(model_dir)).scorer.name == "openvino"


def test_a_description_of_fewer_classes_than_the_network_has_is_refused(copied):
    description = json.loads((copied / "model.json").read_text())
    description["classes"] = description["classes"][1:]
    (copied / "model.json").write_text(json.dumps(description))
    with pytest.raises(ArtifactError, match="scores for"):
        serving.build_scorer(open_artifact(copied))


def test_an_artifact_of_an_opslib_before_digests_is_served(copied):
    fields = json.loads((copied / "model.json").read_text())
    del fields["runtime"]["sha256"]
    (copied / "model.json").write_text(json.dumps(fields))
    assert inference.model_fn(str(copied)).scorer.name == "openvino"


def test_nothing_is_exported_that_computes_something_else(model_dir, tmp_path, monkeypatch):
    model = load_artifact(model_dir)
    monkeypatch.setattr(exporting, "TOLERANCE", -1.0)
    assert export_classifier(tmp_path, model.classifier, model.transform) is None
    assert not list(tmp_path.iterdir())


FORKED = """
import os, sys, threading
from pathlib import Path
import numpy
from opslib.vision import serving
from opslib.vision.artifact import open_artifact

opened = open_artifact(Path(sys.argv[1]))
scorer = serving.build_scorer(opened) if sys.argv[2] == "openvino" else serving.TorchScorer(opened.load())
photo = numpy.zeros((256, 256, 3), dtype=numpy.uint8)
expected = scorer.scores(photo)
child = os.fork()
if child == 0:
    threading.Timer(20, os._exit, [2]).start()
    os._exit(0 if scorer.scores(photo) == expected else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked here")
@pytest.mark.parametrize("engine", ["openvino", "torch"])
def test_a_process_that_was_forked_after_loading_answers(model_dir, engine):
    command = [sys.executable, "-W", "ignore", "-c", FORKED, str(model_dir), engine]
    assert subprocess.run(command, check=False, timeout=60).returncode == 0


def test_an_error_reaches_the_one_who_asked(model_dir):
    scorer = serving.TorchScorer(load_artifact(model_dir))
    with pytest.raises(IndexError, match="Dimension"):
        scorer.scores(numpy.zeros(2, dtype=numpy.uint8))
    assert len(scorer.scores(numpy.zeros((256, 256, 3), dtype=numpy.uint8))) == len(CLASSES)


def test_a_batch_is_what_comes_within_a_moment():
    queue = SimpleQueue()
    for item in range(5):
        queue.put(item)

    def following(seconds):
        return queue.get(timeout=seconds)

    assert serving.collect(queue.get, 3, 0.01, following) == [0, 1, 2]
    assert serving.collect(queue.get, 3, 0.01, following) == [3, 4]
    with pytest.raises(Empty):
        queue.get(timeout=0.001)


@pytest.fixture
def eight_cores(monkeypatch):
    """A machine of eight cores that says nothing of them."""
    for name in ("SM_NUM_CPUS", "SAGEMAKER_MODEL_SERVER_WORKERS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(serving, "usable_cores", lambda: 8)
    return monkeypatch


@pytest.mark.parametrize(("told", "cores"), [("1", 1), ("16", 8), ("", 8), ("nonsense", 8), ("0", 8), ("2.5", 8)])
def test_sagemaker_says_how_many_cores_there_are(eight_cores, told, cores):
    eight_cores.setenv("SM_NUM_CPUS", told)
    assert serving.serving_cores() == cores


@pytest.mark.parametrize(("workers", "cores"), [("", 1), ("0", 1), ("many", 1), ("1", 8), ("3", 2), ("20", 1)])
def test_worker_processes_of_torchserve_share_the_cores(eight_cores, workers, cores):
    eight_cores.setenv("SAGEMAKER_MODEL_SERVER_WORKERS", workers)
    assert serving.serving_cores() == 8  # this process is no worker
    eight_cores.setattr(serving.sys, "argv", ["/venv/ts/model_service_worker.py"])
    assert serving.serving_cores() == cores


@pytest.mark.parametrize(("has_gpu", "threads"), [(True, serving.MOST_PHOTOS["cuda"]), (False, 2)])
def test_there_are_threads_for_a_gpus_largest_batch(monkeypatch, has_gpu, threads):
    monkeypatch.setenv("SM_NUM_CPUS", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    assert serving.serving_threads() == threads
