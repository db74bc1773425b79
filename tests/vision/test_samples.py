"""The drawn sample."""

import hashlib
import subprocess

import pytest

from opslib.errors import PhotosError
from opslib.vision import samples
from opslib.vision.breeds import invent_breeds
from opslib.vision.data import open_photos
from opslib.vision.samples import draw_sample

FEW = {"train": 2, "valid": 1, "test": 1}


def digests(folder):
    return {key: hashlib.sha256(path.read_bytes()).hexdigest() for key, path in open_photos(folder).items()}


def test_same_seed_same_bytes_and_every_photo_differs(tmp_path):
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        draw_sample(tmp_path / name, breeds=3, seed=seed, per_breed=FEW)
    first = digests(tmp_path / "one")
    assert len(set(first.values())) == len(first) == 12
    assert digests(tmp_path / "two") == first
    assert not set(digests(tmp_path / "three").values()) & set(first.values())


def test_133_breeds_with_names_of_their_own():
    breeds = invent_breeds(133, 0)
    names = [breed.name for breed in breeds]
    assert names == sorted(names)
    assert names[0].startswith("001.")
    assert len({name.partition(".")[2] for name in names}) == 133
    assert invent_breeds(133, 0) == breeds


def test_failed_drawing_says_why_and_leaves_nothing(tmp_path, monkeypatch):
    real = subprocess.Popen
    monkeypatch.setattr(
        samples.subprocess, "Popen", lambda arguments, **options: real([*arguments[:-1], "not JSON"], **options)
    )
    with pytest.raises(PhotosError, match="JSONDecodeError"):
        draw_sample(tmp_path / "sample", breeds=2, per_breed=FEW)
    assert list(tmp_path.iterdir()) == []
