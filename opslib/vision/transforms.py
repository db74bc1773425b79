"""What a backbone wants to see: one definition for training, evaluation and inference."""

import random
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy
import torch
from PIL import Image

from opslib.errors import ConfigurationError

Box = tuple[float, float, float, float]
"""Left, upper, right and lower edge in pixels of the photo."""

CROP_SCALE = (0.08, 1.0)
"""Smallest and largest part of a photo's area in a random crop: torchvision's defaults, which the reference took."""


@dataclass(frozen=True)
class TransformSpec:
    """The view that a backbone was pretrained on.

    The photo is cropped to a centred square of `crop_fraction` times its shorter side, resized to `size` x `size`
    pixels and normalised with `mean` and `std` per channel (of values from 0 to 1). That is "resize the shorter side to
    size / crop_fraction, then crop the centre" in one step, which never squashes and never blows up a thin photo.
    """

    size: int = 224
    crop_fraction: float = 0.875
    interpolation: str = "bicubic"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        """Refuse a view that cannot be computed."""
        if not (0 < self.size <= 4096 and 0 < self.crop_fraction <= 1 and self.interpolation in _RESAMPLING):
            raise ConfigurationError(
                f"no such view: {self}",
                hint=f"interpolation is one of {', '.join(_RESAMPLING)}; 0 < crop_fraction <= 1",
            )
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ConfigurationError(f"mean and std hold one number for each of 3 channels, std above 0: {self}")

    @property
    def decoded_side(self) -> int:
        """Return the shorter side in pixels below which a decoder must not shrink a photo (see `decode_photo`)."""
        return 2 * round(self.size / self.crop_fraction)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "TransformSpec":
        """Return the specification that `to_dict` wrote, also after a trip through JSON.

        Raises:
            ConfigurationError: A field is missing, unknown or of another type.
        """
        try:
            return cls(**{**fields, "mean": tuple(map(float, fields["mean"])), "std": tuple(map(float, fields["std"]))})
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigurationError(f"not a transform: {dict(fields)} ({error!r})") from error


_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def evaluation_pixels(spec: TransformSpec) -> Callable[[Image.Image], numpy.ndarray]:
    """Return the transform of an RGB photo to the pixels of its centre view: uint8, shape (size, size, 3)."""

    def pixels(photo: Image.Image) -> numpy.ndarray:
        return _crop(photo, centre_box(photo.size, spec.crop_fraction), spec)

    return pixels


def training_pixels(
    spec: TransformSpec, *, scale: tuple[float, float] = CROP_SCALE
) -> Callable[[Image.Image, random.Random], numpy.ndarray]:
    """Return the transform of an RGB photo and a random generator to a random resized crop, mirrored half of the time.

    The generator is an argument, so that a view depends on its seed and not on the order in which threads run.

    Args:
        spec: The backbone's view.
        scale: Smallest and largest part of the photo's area that a crop shows.

    Returns:
        A function whose result is uint8 of shape (size, size, 3).
    """

    def pixels(photo: Image.Image, rng: random.Random) -> numpy.ndarray:
        view = _crop(photo, random_box(photo.size, rng, scale), spec)
        return view[:, ::-1] if rng.random() < 0.5 else view

    return pixels


def normalised(pixels: torch.Tensor, spec: TransformSpec) -> torch.Tensor:
    """Return pixels uint8 (..., size, size, 3) as what the backbone takes: float32 (..., 3, size, size)."""
    values = pixels.movedim(-1, -3).to(torch.float32).div_(255)
    return values.sub_(_per_channel(spec.mean, values)).div_(_per_channel(spec.std, values))


def evaluation_transform(spec: TransformSpec) -> Callable[[Image.Image], torch.Tensor]:
    """Return the transform of an RGB photo to the centre view: float32, shape (3, size, size)."""
    pixels = evaluation_pixels(spec)
    return lambda photo: normalised(torch.from_numpy(pixels(photo)), spec)


def centre_box(size: tuple[int, int], crop_fraction: float) -> Box:
    """Return the centred square of `crop_fraction` times the shorter side of a photo of `size` (width, height)."""
    width, height = size
    side = min(width, height) * crop_fraction
    left, upper = (width - side) / 2, (height - side) / 2
    return left, upper, left + side, upper + side


def random_box(size: tuple[int, int], rng: random.Random, scale: tuple[float, float]) -> Box:
    """Return a random crop of `scale` times the photo's area, its sides from 3:4 to 4:3 (torchvision's ranges)."""
    width, height = size
    for _ in range(10):
        area = width * height * rng.uniform(*scale)
        ratio = (4 / 3) ** rng.uniform(-1, 1)
        crop_width, crop_height = (area * ratio) ** 0.5, (area / ratio) ** 0.5
        if crop_width <= width and crop_height <= height:
            left, upper = rng.uniform(0, width - crop_width), rng.uniform(0, height - crop_height)
            return left, upper, left + crop_width, upper + crop_height
    return centre_box(size, 1.0)


def _crop(photo: Image.Image, box: Box, spec: TransformSpec) -> numpy.ndarray:
    return numpy.array(photo.resize((spec.size, spec.size), _RESAMPLING[spec.interpolation], box=box))


def _per_channel(values: tuple[float, float, float], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32, device=like.device).view(3, 1, 1)
