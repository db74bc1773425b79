"""The sample set that needs no download: drawn dogs of invented breeds, the same bytes for the same seed."""

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from PIL import Image

from opslib.errors import PhotosError
from opslib.vision.breeds import Breed, invent_breeds
from opslib.vision.canvas import Placement
from opslib.vision.dogs import draw_dog
from opslib.vision.scenes import draw_foreground, draw_scene, light_scene

BREEDS = 133
"""As many classes as the reference project's dogs."""

PHOTOS_PER_BREED = {"train": 8, "valid": 2, "test": 2}

_SUPERSAMPLING = 2
_SIZES = ((224, 224), (240, 200), (256, 192), (192, 240))


def draw_sample(
    directory: Path, *, breeds: int = BREEDS, seed: int = 0, per_breed: Mapping[str, int] | None = None
) -> None:
    """Draw photos of dogs into `directory`/{train,valid,test}/BREED, which appears whole or not at all.

    Pose, place, light, camera and coat differ from photo to photo: the breeds can be told apart, but not easily.
    One process for every core draws its share of the breeds.

    Args:
        directory: A new folder.
        breeds: Number of classes, at most 434.
        seed: Same seed and Pillow version, same bytes.
        per_breed: Photos of each breed by split.

    Raises:
        PhotosError: A drawing process failed.
    """
    counts = dict(per_breed or PHOTOS_PER_BREED)
    directory = directory.absolute()  # the drawing processes work in another directory
    directory.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    try:
        _draw_in_processes(partial, breeds, seed, counts)
        partial.chmod(0o755)  # mkdtemp made it private
        partial.replace(directory)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def draw_photo(breed: Breed, rng: random.Random) -> Image.Image:
    """Draw one photo of a dog of a breed."""
    width, height = rng.choice(_SIZES)
    size = (width * _SUPERSAMPLING, height * _SUPERSAMPLING)  # so that the dog's outline comes out smooth
    picture = draw_scene((width, height), rng.uniform(0.35, 0.7), rng).resize(size, Image.Resampling.BILINEAR)
    placement = Placement(
        x=size[0] * rng.uniform(0.4, 0.56),
        y=size[1] * rng.uniform(0.5, 0.62),
        scale=min(size) * rng.uniform(0.2, 0.29),
        turn=rng.gauss(0, 0.09),
        mirrored=rng.random() < 0.5,
    )
    draw_dog(picture, breed, placement, rng)
    draw_foreground(picture, rng)
    return light_scene(picture.reduce(_SUPERSAMPLING), rng)


def _draw_in_processes(directory: Path, breeds: int, seed: int, counts: Mapping[str, int]) -> None:
    # Plain processes: multiprocessing would import the caller's main module again, or fork a process full of threads.
    parts = min(os.cpu_count() or 1, breeds)
    project = Path(__file__).resolve().parents[2]
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", __name__, json.dumps([str(directory), breeds, seed, counts, part, parts])],
            cwd=project,
            stderr=subprocess.PIPE,
        )
        for part in range(parts)
    ]
    try:
        errors = [process.communicate()[1] for process in processes]
    finally:
        for process in processes:
            process.kill()  # only those that an interrupt left running
    if any(process.returncode for process in processes):
        raise PhotosError(f"the sample could not be drawn: {b''.join(errors).decode(errors='replace').strip()}")


def _draw_part(directory: str, breeds: int, seed: int, counts: Mapping[str, int], part: int, parts: int) -> None:
    for breed in invent_breeds(breeds, seed)[part::parts]:
        for split, count in counts.items():
            folder = Path(directory, split, breed.name)
            folder.mkdir(parents=True)
            for number in range(1, count + 1):
                rng = random.Random(f"{seed}/{breed.name}/{split}/{number}")  # noqa: S311 - drawing, not secrets
                draw_photo(breed, rng).save(folder / f"{split}_{number:02}.jpg", quality=85)


if __name__ == "__main__":
    _draw_part(*json.loads(sys.argv[1]))
