"""The view of a backbone."""

import json
import random
import time

import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from opslib.errors import ConfigurationError
from opslib.vision.transforms import TransformSpec, centre_box, evaluation_transform, random_box, training_pixels


def picture(size=(300, 200)):
    return Image.effect_mandelbrot(size, (-2, -1.2, 1, 1.2), 50).convert("RGB")


@pytest.mark.parametrize("size", [(300, 200), (200, 300), (256, 256)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_same_view_as_torchvisions_resize_and_centre_crop(size, interpolation):
    spec = TransformSpec(interpolation=interpolation)
    theirs = v2.Compose(
        [
            v2.Resize(256, interpolation=v2.InterpolationMode(interpolation), antialias=True),
            v2.CenterCrop(224),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(spec.mean, spec.std),
        ]
    )
    ours = evaluation_transform(spec)(picture(size))
    assert (ours.shape, ours.dtype) == ((3, 224, 224), torch.float32)
    assert (ours - theirs(picture(size))).abs().mean() < 0.06


def test_photos_are_never_squashed():
    disc = Image.new("RGB", (600, 200), "white")
    disc.paste("black", (250, 50, 350, 150))
    view = evaluation_transform(TransformSpec(size=64, crop_fraction=1.0))(disc)[0]
    dark = view < 0
    assert dark.any(dim=0).sum() == dark.any(dim=1).sum() == 32


def test_normalised_with_the_backbones_own_numbers():
    spec = TransformSpec(size=8, mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 1.0))
    view = evaluation_transform(spec)(Image.new("RGB", (20, 20), (255, 0, 51)))
    assert view[:, 0, 0].tolist() == pytest.approx([1.0, -1.0, 0.2])


def test_thin_photos_cost_no_more_than_others():
    started = time.process_time()
    for size in ((1, 60_000), (60_000, 1), (1, 1)):
        assert evaluation_transform(TransformSpec())(Image.new("RGB", size)).shape == (3, 224, 224)
    assert time.process_time() - started < 1


def test_specification_survives_json():
    spec = TransformSpec(size=256, crop_fraction=0.9, interpolation="bilinear", mean=(0.1, 0.2, 0.3), std=(1, 2, 3))
    assert TransformSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


@pytest.mark.parametrize(
    "change",
    [
        {"size": 0},
        {"size": 10**6},
        {"size": "x"},
        {"crop_fraction": 1.1},
        {"interpolation": "magic"},
        {"std": (0, 1, 1)},
        {"mean": (1,)},
        {"mean": "abc"},
        {"extra": 1},
    ],
)
def test_impossible_views_are_refused(change):
    with pytest.raises(ConfigurationError):
        TransformSpec.from_dict(TransformSpec().to_dict() | change)


def test_training_view_depends_on_its_generator_alone():
    view = training_pixels(TransformSpec(size=32))
    first, again, other = (view(picture(), random.Random(seed)) for seed in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()


def test_random_crops_lie_in_the_photo_and_keep_their_scale():
    rng = random.Random(0)
    for size in ((300, 200), (200, 300), (50, 2000)):
        for _ in range(200):
            left, upper, right, lower = random_box(size, rng, (0.5, 1.0))
            assert 0 <= left < right <= size[0] + 1e-6
            assert 0 <= upper < lower <= size[1] + 1e-6
            assert 0.7 < (right - left) / (lower - upper) < 1.4
    assert centre_box((300, 200), 0.5) == (100, 50, 200, 150)
