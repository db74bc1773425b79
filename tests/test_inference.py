"""The four functions of inference.py, from a good photo to the list of hostile requests."""

import io
import json
import math
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest
import torch
from PIL import Image

import inference
from opslib.errors import ArtifactError, ConfigurationError
from opslib.vision.artifact import ModelDescription, save_artifact
from opslib.vision.backbones import build_backbone
from opslib.vision.model import Classifier, build_head
from opslib.vision.refusals import RequestError
from opslib.vision.threads import single_threaded_torch
from tests.hostile import HostileInput, good_photo, hostile_inputs

CLASSES = ("Affenpinscher", "Boxer", "Chihuahua", "Dachshund", "Eurasier", "Foxhound", "Grünwald-Bracke")


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    """A model with an untrained head: what it says is wrong, how it says it is not."""
    directory = tmp_path_factory.mktemp("model")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = build_backbone("efficientnet_lite0")
        classifier = Classifier(backbone.module, build_head(backbone.features, len(CLASSES)))
    save_artifact(directory, classifier, ModelDescription(backbone.name, CLASSES, backbone.transform, {}, {}))
    return directory


@pytest.fixture(scope="module")
def model(model_dir):
    with single_threaded_torch():  # the tests of other modules want the cores as well
        yield inference.model_fn(str(model_dir))


def answer(model, body, content_type="image/jpeg", accept="application/json"):
    """Return status, body and content type, as a model server would."""
    try:
        prediction = inference.predict_fn(inference.input_fn(body, content_type), model)
        return 200, *inference.output_fn(prediction, accept)
    except RequestError as error:
        assert error.phrase
        return error.status_code, error.message, ""


def test_raw_scores_are_a_list_of_lists_in_class_order(model):
    status, body, content_type = answer(model, good_photo())
    assert (status, content_type) == (200, "application/json")
    (scores,) = json.loads(body)
    assert len(scores) == len(CLASSES)
    assert all(isinstance(score, float) for score in scores)


def test_verbose_answer_names_the_best_classes(model):
    _, plain, _ = answer(model, good_photo())
    _, body, content_type = answer(model, good_photo(), accept="application/json;verbose")
    verbose = json.loads(body)
    scores = json.loads(plain)[0]
    assert content_type == "application/json;verbose"
    assert verbose["scores"] == [scores]
    assert verbose["predicted_label"] == CLASSES[scores.index(max(scores))] == verbose["top_k"][0]["label"]
    probabilities = [entry["probability"] for entry in verbose["top_k"]]
    assert len(probabilities) == 5
    assert probabilities == sorted(probabilities, reverse=True)
    assert probabilities[0] == pytest.approx(math.exp(max(scores)) / sum(map(math.exp, scores)), rel=1e-4)


def test_the_client_weighs_the_forms(model):
    accept = "application/json;q=0.5, application/json;verbose;q=0.9"
    assert answer(model, good_photo(), accept=accept)[2] == "application/json;verbose"
    assert answer(model, good_photo(), accept="")[2] == "application/json"


def test_rotated_by_exif_is_the_same_photo(model, tmp_path):
    upright = Image.effect_mandelbrot((200, 200), (-2, -1.5, 1, 1.5), 60).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    upright.save(tmp_path / "upright.png")
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    bodies = [answer(model, (tmp_path / f"{name}.png").read_bytes(), "image/png")[1] for name in ("upright", "turned")]
    assert bodies[0] == bodies[1]


@pytest.mark.parametrize("hostile", hostile_inputs(), ids=lambda hostile: hostile.name)
def test_hostile_input_gets_its_answer_and_a_good_photo_the_same_as_ever(model, hostile: HostileInput):
    status, body, _ = answer(model, hostile.body, hostile.content_type, hostile.accept)
    assert status == hostile.expected_status, body
    assert body.strip()
    assert answer(model, good_photo()) == answer(model, good_photo())


def test_at_least_forty_hostile_inputs_with_names_of_their_own():
    names = [hostile.name for hostile in hostile_inputs()]
    assert len(set(names)) == len(names) >= 40


def test_text_bodies_are_taken_for_json_only(model):
    assert answer(model, '{"url": "https://example.com/dog.jpg"}', "application/json")[0] == 403
    assert answer(model, "{}", "application/json")[0] == 400


def test_oversized_body_is_refused_before_it_is_read(model):
    assert answer(model, bytes(inference.MAX_PHOTO_BYTES + 1))[0] == 413


def test_allowed_host_is_fetched(model, monkeypatch):
    asked = []

    def fetch(url, hosts, *, max_bytes):
        asked.append((url, hosts, max_bytes))
        return good_photo()

    monkeypatch.setenv("OPSLIB_URL_HOSTS", "Example.com, cdn.example.com")
    monkeypatch.setattr(inference, "fetch_photo", fetch)
    assert answer(model, b'{"url": "https://example.com/dog.jpg"}', "application/json")[0] == 200
    assert asked == [
        ("https://example.com/dog.jpg", frozenset({"example.com", "cdn.example.com"}), inference.MAX_PHOTO_BYTES)
    ]


def test_wrong_settings_stop_the_server(model_dir, monkeypatch):
    monkeypatch.setenv("OPSLIB_URL_HOST", "example.com")
    with pytest.raises(ConfigurationError, match="OPSLIB_URL_HOST"):
        inference.model_fn(str(model_dir))
    monkeypatch.delenv("OPSLIB_URL_HOST")
    monkeypatch.setenv("OPSLIB_URL_HOSTS", "https://example.com/")
    with pytest.raises(ConfigurationError, match="host names"):
        inference.model_fn(str(model_dir))


def test_no_model_no_server(tmp_path):
    with pytest.raises(ArtifactError, match=r"model\.json"):
        inference.model_fn(str(tmp_path))


def test_functions_take_what_the_toolkit_passes():
    # sagemaker_inference counts parameters: one more than these, and it would pass its context too.
    counts = {"model_fn": 1, "input_fn": 2, "predict_fn": 2, "output_fn": 2}
    assert {name: getattr(inference, name).__code__.co_argcount for name in counts} == counts


def test_large_photos_are_decoded_one_after_the_other_and_small_ones_pass_them(model, monkeypatch):
    file = io.BytesIO()
    Image.new("L", (4000, 3001)).save(file, "PNG", compress_level=1)
    begins, goes_on = Event(), Event()

    class Turn:
        def __enter__(self):
            begins.set()
            assert goes_on.wait(30)

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(inference, "_LARGE_PHOTO", Turn())
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(answer, model, file.getvalue(), "image/png")
        assert begins.wait(30)
        assert answer(model, good_photo())[0] == 200
        assert not waiting.done()
        goes_on.set()
        assert waiting.result()[0] == 200
