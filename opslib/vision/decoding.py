"""Bytes to an upright RGB picture: one function for training files and for requests, safe on hostile input."""

import io
import struct
from contextlib import AbstractContextManager, nullcontext

from PIL import ExifTags, Image, ImageChops

from opslib.errors import PhotosError

PHOTO_FORMATS = ("JPEG", "PNG", "WEBP")
"""The formats that are decoded (Pillow's names; JPEG includes the multi-picture files of phones)."""

MAX_PIXELS = 50_000_000
"""Largest photo that is decoded: 50 megapixels are 150 MB of RGB."""

LARGE_PIXELS = 12_000_000
"""A photo of more pixels takes up to 1 GB while it is decoded (WebP of 50 megapixels), one of fewer up to 300 MB."""

_BLOCK_BYTES = 256 << 20
"""Room for a photo in one piece: of pieces up to 32 MB malloc keeps what was freed, for each thread its own."""

MAX_SCANS = 100
"""Most scans of a JPEG; encoders write 1 to 14, but a hostile file of 6 MB can ask for hours of work with 500,000."""

MAX_SCANNED_PIXELS = 1_000_000_000
"""Most pixels that all scans of a JPEG may touch together (20 scans of the largest photo)."""

_START_OF_SCAN = b"\xff\xda"
_JPEG_KINDS = ("JPEG", "MPO")
_ADOBE_SEGMENT = "adobe"
_WHITE = (255, 255, 255, 255)
_UNREADABLE_EXIF = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
)


class PhotoDecodingError(PhotosError):
    """Bytes that are no photo we decode; `status_code` is the HTTP status that says so to a client."""

    def __init__(self, message: str, *, status_code: int = 400, hint: str = "") -> None:
        """Keep the HTTP status: 400 damaged, 413 too large, 415 not a format we decode."""
        super().__init__(message, hint=hint)
        self.status_code = status_code


def decode_photo(
    data: bytes,
    *,
    max_pixels: int = MAX_PIXELS,
    shortest_side: int = 0,
    while_large: AbstractContextManager[object] | None = None,
) -> Image.Image:
    """Decode a photo to an upright RGB picture.

    Transparency is laid on white, 16-bit grey is scaled to 8 bits, CMYK is converted (also Photoshop's inverted kind),
    EXIF rotation is applied, and of an animation the first frame is taken. The size is checked before any decoding.

    Args:
        data: The file, whole.
        max_pixels: Largest width times height in pixels.
        shortest_side: If positive, a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size as long as both sides keep
            at least this many pixels (several times faster on phone photos).
        while_large: Entered while more than LARGE_PIXELS are decoded; a lock keeps threads from filling the memory.

    Raises:
        PhotoDecodingError: The bytes are empty, no JPEG, PNG or WebP, damaged, truncated or too large.
    """
    picture = _open(data, max_pixels)
    if shortest_side:
        picture.draft(None, (shortest_side, shortest_side))
    is_large = picture.width * picture.height > LARGE_PIXELS
    try:
        with while_large if while_large and is_large else nullcontext():
            picture.load()
            return _rgb(_upright(picture))
    # Pillow's decoders raise a dozen types on damaged files (OSError, SyntaxError, struct.error, zlib.error, ...).
    except Exception as error:
        raise PhotoDecodingError(f"the photo is damaged: {error}") from error


def give_memory_back() -> None:
    """Let the memory of a large photo go back to the system as soon as it is done with, in this process from now on.

    A server of four threads would keep 2.3 GB for ever after it has answered a few photos of 50 megapixels.
    """
    Image.core.set_block_size(_BLOCK_BYTES)


def _open(data: bytes, max_pixels: int) -> Image.Image:
    if not data:
        raise PhotoDecodingError("the photo is empty")
    try:
        picture = Image.open(io.BytesIO(data), formats=PHOTO_FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise PhotoDecodingError(str(error), status_code=413) from error
    except Image.UnidentifiedImageError as error:
        raise PhotoDecodingError(
            "the bytes are not a JPEG, PNG or WebP photo", status_code=415, hint="convert the photo to JPEG"
        ) from error
    except Exception as error:
        raise PhotoDecodingError(f"the photo is damaged: {error}") from error
    _check_size(picture, data, max_pixels)
    return picture


def _check_size(picture: Image.Image, data: bytes, max_pixels: int) -> None:
    pixels = picture.width * picture.height
    if pixels > max_pixels:
        raise PhotoDecodingError(
            f"the photo has {picture.width} x {picture.height} pixels; at most {max_pixels:,} are decoded",
            status_code=413,
        )
    if picture.format not in _JPEG_KINDS:
        return
    scans = data.count(_START_OF_SCAN)
    if scans > MAX_SCANS or scans * pixels > MAX_SCANNED_PIXELS:
        raise PhotoDecodingError("the JPEG has too many scans for its size", status_code=413)


def _upright(picture: Image.Image) -> Image.Image:
    """Apply the EXIF rotation; a photo whose EXIF block cannot be read is taken as it is."""
    try:
        orientation = picture.getexif().get(ExifTags.Base.Orientation, 1)
    except _UNREADABLE_EXIF:
        return picture
    transpose = _TRANSPOSE_OF_ORIENTATION.get(orientation) if isinstance(orientation, int) else None
    return picture if transpose is None else picture.transpose(transpose)


_TRANSPOSE_OF_ORIENTATION = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _rgb(picture: Image.Image) -> Image.Image:
    if picture.mode == "RGB" and not picture.has_transparency_data:
        return picture
    if picture.mode.startswith("I"):
        # Pillow would clip 16-bit grey at 255 instead of scaling it.
        return picture.convert("I").point(lambda value: value / 256).convert("L").convert("RGB")
    if picture.mode == "CMYK":
        # Pillow takes every CMYK JPEG for an inverted one; only those with Adobe's marker are.
        inks = picture if _ADOBE_SEGMENT in picture.info else ImageChops.invert(picture)
        return inks.convert("RGB")
    if picture.has_transparency_data:
        layer = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, _WHITE), layer).convert("RGB")
    return picture.convert("RGB")
