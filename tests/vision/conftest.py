"""Photos for the vision tests: folders written from a list of keys, and a small drawn sample."""

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from PIL import Image

from opslib.vision.samples import draw_sample
from opslib.vision.threads import single_threaded_torch


@pytest.fixture(autouse=True, scope="package")
def _one_thread():
    with single_threaded_torch():  # the tests of other modules want the cores as well
        yield


@pytest.fixture
def write_photos(tmp_path) -> Callable[[Iterable[str]], Path]:
    """Write a small photo, different each time, for every path below `tmp_path`/photos."""

    def write(paths: Iterable[str]) -> Path:
        root = tmp_path / "photos"
        for number, path in enumerate(paths):
            file = root / path
            file.parent.mkdir(parents=True, exist_ok=True)
            picture = Image.new("RGB", (24, 20), (number % 256, number // 256 * 40, 90))
            picture.save(file, "PNG" if file.suffix.lower() == ".png" else "JPEG")
        return root

    return write


@pytest.fixture(scope="package")
def sample(tmp_path_factory) -> Path:
    """Six drawn breeds."""
    folder = tmp_path_factory.mktemp("drawn") / "sample"
    draw_sample(folder, breeds=6, seed=3, per_breed={"train": 6, "valid": 2, "test": 2})
    return folder
