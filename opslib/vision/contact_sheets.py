"""Many photos at a glance: a row for each of some classes."""

import random

from PIL import Image, ImageDraw, ImageFont, ImageOps

from opslib.errors import PhotosError
from opslib.vision.data import Photo, Photos
from opslib.vision.decoding import PhotoDecodingError, decode_photo

_GAP = 6
_CAPTION = 20
_INK, _PAPER, _MISSING = (60, 66, 76), (255, 255, 255), (225, 228, 232)


def contact_sheet(
    photos: Photos, *, rows: int = 6, per_row: int = 8, side: int = 112, split: str = "train", seed: int = 0
) -> Image.Image:
    """Draw a picture of photos of some classes, a row each, with the name of the class above it.

    Args:
        photos: What to show from.
        rows: Number of classes; fewer are shown if there are fewer.
        per_row: Photos of each class.
        side: Width and height of a photo in pixels; it is cropped to a square.
        split: The split to show.
        seed: Chooses the classes and the photos.

    Raises:
        PhotosError: The split is empty.
    """
    by_class: dict[int, list[Photo]] = {}
    for photo in photos.files[split]:
        by_class.setdefault(photo.label, []).append(photo)
    if not by_class:
        raise PhotosError(f"there are no {split} photos to show")
    rng = random.Random(seed)  # noqa: S311 - a choice of pictures
    labels = sorted(rng.sample(sorted(by_class), min(rows, len(by_class))))
    height = side + _CAPTION + _GAP
    sheet = Image.new("RGB", (per_row * (side + _GAP) + _GAP, len(labels) * height + _GAP), _PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for row, label in enumerate(labels):
        top = _GAP + row * height
        draw.text((_GAP, top), photos.classes[label], fill=_INK, font=font)
        shown = rng.sample(by_class[label], min(per_row, len(by_class[label])))
        for column, photo in enumerate(shown):
            sheet.paste(_thumbnail(photo, side), (_GAP + column * (side + _GAP), top + _CAPTION))
    return sheet


def _thumbnail(photo: Photo, side: int) -> Image.Image:
    """Return the photo cropped to a square; one that cannot be decoded is a grey tile."""
    try:
        return ImageOps.fit(decode_photo(photo.path.read_bytes(), shortest_side=2 * side), (side, side))
    except (PhotoDecodingError, OSError):
        return Image.new("RGB", (side, side), _MISSING)
