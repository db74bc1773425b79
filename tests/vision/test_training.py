"""Training of the head, and what is said about it."""

import dataclasses
import random
import re

import pytest
import torch
from PIL import Image
from torch.nn import functional

from opslib.errors import ConfigurationError, PhotosError
from opslib.specs import METRIC_REGEXES, OBJECTIVE_METRIC, TrainingSpec
from opslib.vision.backbones import build_backbone
from opslib.vision.data import Photos, open_photos
from opslib.vision.evaluation import calibration_error, evaluate, summarise
from opslib.vision.features import FeatureExtractor, Features
from opslib.vision.fitting import Course, EpochMetrics, best_epoch, fit
from opslib.vision.model import build_head
from opslib.vision.sharing import Share
from opslib.vision.training import HeadTraining, Surroundings, train


def clusters(count=50, classes=3, noise=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, 8, generator=torch.Generator().manual_seed(99)) * 2
    labels = torch.arange(count) % classes
    return Features(centres[labels] + noise * torch.randn(count, 8, generator=generator), labels)


def head_problem(train_views, valid, classes, spec):
    """Return what `fit` trains: a head on features alone."""
    photos = {"train": (None,) * len(train_views), "valid": (None,) * len(valid)}
    share = Share(Photos(None, tuple(range(classes)), photos), {}, {})
    return HeadTraining({"train": train_views, "valid": valid}, torch.arange(len(train_views)), share, spec)


class Fitted:
    """A trained head: its history and its best epoch."""

    def __init__(self, train_views, valid, classes, spec, on_epoch=lambda _: None):
        problem = head_problem(train_views, valid, classes, dataclasses.replace(spec, views=1))
        self.history = fit(problem, spec, Course(on_epoch=on_epoch))
        self.head, self.best = problem.module, best_epoch(self.history)


def loss_of(head, features):
    with torch.inference_mode():
        return functional.cross_entropy(head(features.values), features.labels).item()


def weights(head):
    return torch.cat([parameter.detach().flatten() for parameter in head.parameters()])


SPEC = TrainingSpec(epochs=30, batch_size=16, learning_rate=0.01, patience=3)


def test_weights_of_the_lowest_validation_loss_are_kept():
    valid = clusters(40, noise=2.5, seed=1)
    trained = Fitted(clusters(noise=2.5), valid, 3, SPEC)
    losses = [metrics.valid_loss for metrics in trained.history]
    assert trained.best.valid_loss == min(losses)
    assert loss_of(trained.head, valid) == pytest.approx(min(losses))
    assert trained.best.epoch < len(losses)


def test_training_stops_when_patience_ends():
    trained = Fitted(clusters(noise=2.5), clusters(40, noise=2.5, seed=1), 3, SPEC)
    assert len(trained.history) == trained.best.epoch + SPEC.patience < SPEC.epochs


def test_seed_decides_everything_and_nothing_else_does():
    torch.manual_seed(1)
    first = Fitted(clusters(), clusters(seed=1), 3, SPEC)
    torch.manual_seed(2)
    again = Fitted(clusters(), clusters(seed=1), 3, SPEC)
    other = Fitted(clusters(), clusters(seed=1), 3, TrainingSpec(epochs=30, seed=5))
    assert torch.equal(weights(first.head), weights(again.head))
    assert not torch.equal(weights(first.head), weights(other.head))


def test_training_leaves_the_global_generator_alone():
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    Fitted(clusters(), clusters(seed=1), 3, TrainingSpec(epochs=1))
    assert torch.equal(torch.rand(1), expected)


def test_losses_are_means_per_photo_whatever_the_batches():
    spec = {"epochs": 1, "learning_rate": 1e-12}
    rows = [
        Fitted(clusters(50), clusters(seed=1), 3, TrainingSpec(batch_size=size, **spec)).history[0]
        for size in (1, 16, 49, 50, 64)
    ]
    assert [row.train_loss for row in rows] == pytest.approx([rows[0].train_loss] * 5, rel=1e-5)
    assert len({row.train_accuracy for row in rows}) == 1
    assert 0 <= rows[0].train_accuracy <= 1


def test_diverged_training_says_so():
    broken = Features(torch.full((8, 8), float("nan")), torch.zeros(8, dtype=torch.int64))
    with pytest.raises(ConfigurationError, match="not a number after epoch 1"):
        Fitted(broken, clusters(), 3, SPEC)


def test_report_counts_photos():
    scores, labels = torch.eye(3)[[0, 0, 0, 1, 1]] * 5, torch.tensor([0, 0, 1, 1, 1])
    report = evaluate(scores, labels, ["a", "b", "c"], ["test/a/1", "test/a/2", "test/b/3", "test/b/4", "test/b/5"])
    assert report["test_photos"] == 5
    assert report["test_accuracy"] == pytest.approx(0.8)
    assert report["test_top5"] == 1.0
    assert report["chance_accuracy"] == pytest.approx(1 / 3)
    assert report["confusion_matrix"] == [[2, 0, 0], [1, 2, 0], [0, 0, 0]]
    assert [row["recall"] for row in report["per_class"]] == [1.0, pytest.approx(2 / 3), None]
    assert [row["precision"] for row in report["per_class"]] == [pytest.approx(2 / 3), 1.0, None]
    (mistake,) = report["mistakes"]
    assert (mistake["photo"], mistake["label"], mistake["predicted"]) == ("test/b/3", "b", "a")
    assert mistake["probability"] > 0.9


def test_calibration_is_worked_out_by_hand():
    # Sure by 0.9 four times and right three times: off by 0.15; sure by 0.6 once and right: off by 0.4.
    probabilities = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.9, 0.1], [0.9, 0.1], [0.4, 0.6]])
    error = calibration_error(probabilities.log(), torch.tensor([0, 0, 0, 1, 1]))
    assert error == pytest.approx((4 * 0.15 + 1 * 0.4) / 5, abs=1e-6)


def test_figures_that_give_a_dead_model_away():
    labels = torch.tensor([0, 1, 2, 0])
    figures = summarise(torch.tensor([[2.0, 1.0, 0.0]]).repeat(4, 1), labels, "valid")
    assert figures["valid_predicted_classes"] == 1
    assert figures["valid_score_spread"] == 0.0
    assert figures["valid_accuracy"] == 0.5
    spread = summarise(torch.tensor([[0.0, 1.0], [2.0, 1.0]]), torch.tensor([0, 1]), "valid")["valid_score_spread"]
    assert spread == pytest.approx(0.5)


def test_top5_is_among_five():
    features = clusters(60, classes=12)
    with torch.inference_mode():
        scores = build_head(8, 12)(features.values)
    report = evaluate(scores, features.labels, [str(label) for label in range(12)])
    assert report["test_accuracy"] <= report["test_top5"] < 1


def test_printed_line_is_read_by_the_tuners_expressions():
    line = EpochMetrics(3, 0.123456, 0.9, 1.5e-7, 0.25, 2.0).line(40)
    found = {name: re.search(regex, line) for name, regex in METRIC_REGEXES.items()}
    values = {name: float(match[1]) for name, match in found.items() if match}
    assert values == pytest.approx(
        {"train:loss": 0.123456, "train:accuracy": 0.9, "valid:loss": 0, "valid:accuracy": 0.25}, abs=1e-6
    )


@pytest.fixture(scope="module")
def trained(sample):
    lines, rows = [], []
    spec = TrainingSpec(backbone="efficientnet_lite0", epochs=8, views=2, batch_size=8, patience=2)
    return train(open_photos(sample), spec, Surroundings(log=lines.append, on_epoch=rows.append)), lines, rows


def test_drawn_breeds_are_learnt(trained):
    model, _, rows = trained
    assert list(model.history) == rows
    assert model.report["test_accuracy"] > 2 * model.report["chance_accuracy"]
    assert set(model.seconds) == {"backbone", "features", "head"}
    assert model.metrics["valid_loss"] == model.best.valid_loss == min(row.valid_loss for row in rows)
    assert model.metrics["chance_loss"] == pytest.approx(1.7918, abs=1e-4)
    (row,) = model.ranks
    assert (row["train_photos"], row["valid_photos"], row["test_photos"]) == (36, 12, 12)


def test_last_objective_in_the_log_is_the_artifacts(trained):
    model, lines, _ = trained
    found = [match[1] for line in lines if (match := re.search(METRIC_REGEXES[OBJECTIVE_METRIC], line))]
    assert len(found) == len(model.history) + 1
    assert float(found[-1]) == pytest.approx(model.best.valid_loss, abs=1e-6)
    for name in ("test:accuracy", "test:top5"):
        assert re.search(METRIC_REGEXES[name], lines[-2])


def test_test_photos_decide_nothing(sample, tmp_path, trained):
    other = tmp_path / "other"
    for path in sorted(sample.rglob("*.jpg")):
        target = other / path.relative_to(sample)
        target.parent.mkdir(parents=True, exist_ok=True)
        if "test" in path.parts:
            Image.new("RGB", (40, 40), "grey").save(target)
        else:
            target.write_bytes(path.read_bytes())
    spec = TrainingSpec(backbone="efficientnet_lite0", epochs=8, views=2, batch_size=8, patience=2)
    model = train(open_photos(other), spec)
    assert torch.equal(weights(model.classifier.head), weights(trained[0].classifier.head))


@pytest.mark.parametrize("missing", ["valid", "class"])
def test_too_few_photos_to_train_on(sample, tmp_path, missing):
    photos = open_photos(sample)
    if missing == "class":
        one = {split: tuple(photo for photo in files if photo.label == 0) for split, files in photos.files.items()}
        photos = type(photos)(photos.root, photos.classes[:1], one)
    else:
        photos = type(photos)(photos.root, photos.classes, {**photos.files, missing: ()})
    with pytest.raises(PhotosError):
        train(photos, SPEC)


@pytest.fixture(scope="module")
def extractor():
    return FeatureExtractor(build_backbone("efficientnet_lite0"), torch.device("cpu"), workers=3)


def test_features_are_in_the_order_of_the_photos(extractor, sample):
    photos = open_photos(sample).files["train"]
    everything, one_by_one = extractor.centre_views(photos), [extractor.centre_views([photo]) for photo in photos[:7]]
    assert everything.labels.tolist() == [photo.label for photo in photos]
    assert torch.allclose(everything.values[:7], torch.cat([one.values for one in one_by_one]), atol=1e-3)


def test_random_views_depend_on_seed_and_key(extractor, sample):
    photos = list(open_photos(sample).files["train"][:6])
    shuffled = random.Random(0).sample(photos, 6)
    first, again = extractor.random_views(photos, "1").values, extractor.random_views(shuffled, "1").values
    order = [shuffled.index(photo) for photo in photos]
    assert torch.allclose(first, again[order], atol=1e-3)
    assert not torch.allclose(first, extractor.random_views(photos, "2").values, atol=1e-3)


def test_photo_that_cannot_be_decoded_is_named(extractor, sample, tmp_path):
    photos = open_photos(sample).files["test"]
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(photos[0].path.read_bytes()[:500])
    bad = type(photos[0])(broken, 0, "test/x/broken.jpg")
    with pytest.raises(PhotosError, match=r"test/x/broken\.jpg"):
        extractor.centre_views([*photos, bad])


def test_threads_of_torch_are_restored(extractor, sample):
    threads = torch.get_num_threads()
    extractor.centre_views(open_photos(sample).files["test"][:3])
    assert torch.get_num_threads() == threads
    assert len(extractor.centre_views([])) == 0
