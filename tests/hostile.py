"""Requests that try to break the model server, and the answer that each must get: nothing but its own status.

Also listed are photos that look like trouble but are none (status 200). Everything is made in code; no body is larger
than 300 kB, and every one can be sent through an endpoint as it is.
"""

import io
import json
import random
import struct
import zipfile
import zlib
from typing import NamedTuple

from PIL import Image, ImageCms

JPEG, PNG, WEBP, ANY_PHOTO, JSON = "image/jpeg", "image/png", "image/webp", "application/x-image", "application/json"


class HostileInput(NamedTuple):
    """A request, and the status that it must get."""

    name: str
    body: bytes
    content_type: str
    accept: str
    expected_status: int


def hostile_inputs() -> list[HostileInput]:
    """Build all requests."""
    photos = [HostileInput(name, body, kind, JSON, status) for name, body, kind, status in _photos()]
    headers = [HostileInput(name, good_photo(), kind, accept, status) for name, kind, accept, status in _headers()]
    urls = [HostileInput(name, body, JSON, JSON, status) for name, body, status in _json_bodies()]
    return [*photos, *headers, *urls]


def good_photo() -> bytes:
    """Return a photo that every model must answer."""
    return _encoded(_picture(), "JPEG", quality=90)


def _photos() -> list[tuple[str, bytes, str, int]]:
    picture, jpeg = _picture(), good_photo()
    png, webp = _encoded(picture, "PNG"), _encoded(picture, "WEBP")
    return [
        ("empty body", b"", JPEG, 400),
        ("one byte", b"\xff", JPEG, 415),
        ("noise", random.Random(0).randbytes(4096), ANY_PHOTO, 415),
        ("zeros", bytes(4096), JPEG, 415),
        ("web page", b"<!doctype html><html><body>not found</body></html>", JPEG, 415),
        ("JPEG, start marker only", jpeg[:2], JPEG, 415),
        ("JPEG, headers only", jpeg[: jpeg.index(b"\xff\xda")], JPEG, 400),
        ("JPEG, first half", jpeg[: len(jpeg) // 2], JPEG, 400),
        ("JPEG, last tenth missing", jpeg[: len(jpeg) * 9 // 10], JPEG, 400),
        ("JPEG without its end marker", jpeg[:-2], JPEG, 400),
        ("JPEG with noise after its end", jpeg + random.Random(1).randbytes(1000), JPEG, 200),
        ("JPEG of 65,500 x 65,500 by its header", _resized_jpeg(jpeg, 65500, 65500), JPEG, 413),
        ("JPEG of 9,000 x 9,000 by its header", _resized_jpeg(jpeg, 9000, 9000), JPEG, 413),
        ("JPEG of width 0", _resized_jpeg(jpeg, 0, 100), JPEG, 415),
        ("JPEG with 20,000 scans", _many_scans(20_000), JPEG, 413),
        ("JPEG without tables", _without_segments(jpeg, 0xDB), JPEG, 400),
        ("JPEG with a broken EXIF block", _with_exif(jpeg, b"Exif\0\0" + bytes(range(256))), JPEG, 200),
        ("JPEG with an EXIF block that points to itself", _with_exif(jpeg, _looping_exif()), JPEG, 200),
        ("JPEG with an orientation of 99", _with_exif(jpeg, b"Exif\0\0" + _orientation(99)), JPEG, 200),
        ("JPEG on its side", _encoded(picture, "JPEG", exif=_orientation(6)), JPEG, 200),
        ("JPEG with a broken colour profile", _encoded(picture, "JPEG", icc_profile=b"\0" * 200), JPEG, 200),
        ("JPEG with a colour profile", _encoded(picture, "JPEG", icc_profile=_srgb()), JPEG, 200),
        ("JPEG in CMYK", _encoded(picture.convert("CMYK"), "JPEG"), JPEG, 200),
        ("JPEG in grey", _encoded(picture.convert("L"), "JPEG"), JPEG, 200),
        ("progressive JPEG", _encoded(picture, "JPEG", progressive=True), JPEG, 200),
        ("two photos in one file", _encoded(picture, "MPO", save_all=True, append_images=[picture]), JPEG, 200),
        ("PNG signature only", png[:8], PNG, 415),
        ("PNG, first half", png[: len(png) // 2], PNG, 400),
        ("PNG with a wrong checksum", _flipped(png, len(png) // 2), PNG, 400),
        ("PNG of 30,000 x 30,000 in 100 kB", _png(30000, 30000, bytes(100)), PNG, 413),
        ("PNG of 2 billion x 2 billion", _png(2**31 - 1, 2**31 - 1, bytes(100)), PNG, 413),
        ("PNG of 0 x 0", _png(0, 0, b""), PNG, 415),
        ("PNG with a text bomb of 100 MB", _text_bomb(), PNG, 400),
        ("PNG whose data end early", _png(500, 500, bytes(1000)), PNG, 400),
        ("PNG with transparency", _encoded(picture.convert("RGBA"), "PNG"), PNG, 200),
        ("PNG in grey with transparency", _encoded(picture.convert("LA"), "PNG"), PNG, 200),
        ("PNG with a palette and transparency", _encoded(picture.quantize(16), "PNG", transparency=3), PNG, 200),
        ("PNG of one bit", _encoded(picture.convert("1"), "PNG"), PNG, 200),
        ("PNG of 16 bits", _encoded(Image.new("I;16", (64, 64), 40000), "PNG"), PNG, 200),
        ("PNG of one pixel", _encoded(Image.new("RGB", (1, 1)), "PNG"), PNG, 200),
        ("PNG of 1 x 30,000", _encoded(Image.new("RGB", (1, 30000)), "PNG"), PNG, 200),
        ("PNG of 30,000 x 1", _encoded(Image.new("RGB", (30000, 1)), "PNG"), PNG, 200),
        ("animated PNG", _encoded(picture, "PNG", save_all=True, append_images=[picture.rotate(90)]), PNG, 200),
        ("WebP, first half", webp[: len(webp) // 2], WEBP, 400),
        ("WebP header only", webp[:16], WEBP, 400),
        ("WebP of 16,383 x 16,383 by its header", _huge_webp(), WEBP, 413),
        ("animated WebP", _encoded(picture, "WEBP", save_all=True, append_images=[picture.rotate(90)]), WEBP, 200),
        ("WebP sent as JPEG", webp, JPEG, 200),
        ("GIF", _encoded(picture.quantize(16), "GIF"), ANY_PHOTO, 415),
        ("GIF sent as JPEG", _encoded(picture.quantize(16), "GIF"), JPEG, 415),
        ("BMP", _encoded(picture, "BMP"), ANY_PHOTO, 415),
        ("TIFF", _encoded(picture, "TIFF"), ANY_PHOTO, 415),
        ("icon", _encoded(picture, "ICO"), ANY_PHOTO, 415),
        ("PDF", _encoded(picture, "PDF"), ANY_PHOTO, 415),
        ("SVG", b'<svg xmlns="http://www.w3.org/2000/svg" width="1e9" height="1e9"/>', ANY_PHOTO, 415),
        ("PostScript", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n", ANY_PHOTO, 415),
        ("photo in a zip", _zipped(jpeg), ANY_PHOTO, 415),
        ("GIF header before a JPEG", b"GIF89a" + jpeg, JPEG, 415),
    ]


def _headers() -> list[tuple[str, str, str, int]]:
    return [
        ("content type text/plain", "text/plain", JSON, 415),
        ("content type image/gif", "image/gif", JSON, 415),
        ("content type multipart", "multipart/form-data; boundary=x", JSON, 415),
        ("content type without a slash", "jpeg", JSON, 415),
        ("content type with a parameter", "image/jpeg; charset=binary", JSON, 200),
        ("content type in capitals", "IMAGE/JPEG", JSON, 200),
        ("photo sent as JSON", JSON, JSON, 400),
        ("accept text/html", JPEG, "text/html", 406),
        ("accept an image", JPEG, "image/png", 406),
        ("accept JSON never", JPEG, "application/json;q=0", 406),
        ("accept nonsense", JPEG, ";;,q=", 406),
        ("accept a weight that is no number", JPEG, "application/json;q=much", 406),
        ("accept anything", JPEG, "*/*", 200),
        ("accept a page or anything", JPEG, "text/html, */*;q=0.1", 200),
        ("accept the verbose form", JPEG, "application/json;verbose", 200),
        ("accept the verbose form, with a space", JPEG, "application/json; verbose", 200),
    ]


def _json_bodies() -> list[tuple[str, bytes, int]]:
    return [
        ("JSON, empty", b"", 400),
        ("JSON, broken", b'{"url": ', 400),
        ("JSON, not UTF-8", b'{"url": "\xff\xfe"}', 400),
        ("JSON, a list", b'["https://example.com/dog.jpg"]', 400),
        ("JSON, 100,000 brackets", b"[" * 100_000, 400),
        ("JSON, a number of 100,000 digits", b'{"url": ' + b"9" * 100_000 + b"}", 400),
        ("JSON, no URL", b"{}", 400),
        ("JSON, URL is a number", b'{"url": 1}', 400),
        ("JSON, URL and more", b'{"url": "https://example.com/a.jpg", "file": "/etc/passwd"}', 400),
        ("JSON, URL with a line break", b'{"url": "https://example.com/\\r\\nHost: localhost"}', 400),
        ("JSON, URL with half a surrogate pair", b'{"url": "https://\\ud800.com/dog.jpg"}', 400),
        ("JSON, URL without a host", b'{"url": "https:///dog.jpg"}', 400),
        ("JSON, URL with a broken host", b'{"url": "https://[::1/dog.jpg"}', 400),
        *(
            (f"JSON, URL {url}", json.dumps({"url": url}).encode(), 403)
            for url in (
                "https://example.com/dog.jpg",
                "http://169.254.169.254/latest/meta-data/",
                "https://127.0.0.1/dog.jpg",
                "https://[::1]/dog.jpg",
                "https://localhost:8443/dog.jpg",
                "https://user:secret@example.com/dog.jpg",
                "ftp://example.com/dog.jpg",
                "file://localhost/etc/passwd",
            )
        ),
    ]


def _picture() -> Image.Image:
    noise = Image.frombytes("RGB", (16, 12), random.Random(7).randbytes(16 * 12 * 3))
    return noise.resize((160, 120), Image.Resampling.BICUBIC)


def _encoded(picture: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


def _segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


def _with_exif(jpeg: bytes, content: bytes) -> bytes:
    return jpeg[:2] + _segment(0xE1, content) + jpeg[2:]


def _without_segments(jpeg: bytes, marker: int) -> bytes:
    kept, position = jpeg[:2], 2
    while jpeg[position + 1] != 0xDA:
        end = position + 2 + struct.unpack(">H", jpeg[position + 2 : position + 4])[0]
        kept += b"" if jpeg[position + 1] == marker else jpeg[position:end]
        position = end
    return kept + jpeg[position:]


def _resized_jpeg(jpeg: bytes, width: int, height: int) -> bytes:
    start = jpeg.index(b"\xff\xc0") + 5
    return jpeg[:start] + struct.pack(">HH", height, width) + jpeg[start + 4 :]


def _many_scans(count: int) -> bytes:
    jpeg = _encoded(_picture(), "JPEG", progressive=True)
    scan = _segment(0xDA, b"\x01\x01\x00\x01\x05\x00") + b"\x00"
    return jpeg[:-2] + scan * count + jpeg[-2:]


def _orientation(value: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif.tobytes().removeprefix(b"Exif\0\0")


def _looping_exif() -> bytes:
    entry = struct.pack("<HHII", 0x8769, 4, 1, 8)  # the EXIF directory is this very directory
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, 1) + entry + struct.pack("<I", 8)


def _srgb() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _png(width: int, height: int, pixels: bytes, extra: bytes = b"") -> bytes:
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + extra + _chunk(b"IDAT", zlib.compress(pixels)) + _chunk(b"IEND", b"")


def _text_bomb() -> bytes:
    text = _chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(100_000_000), 9))
    return _png(8, 8, bytes(8 * 25), text)


def _huge_webp() -> bytes:
    webp = _encoded(_picture(), "WEBP", lossless=True)
    start = webp.index(b"VP8L") + 9  # after the chunk's name, its length and the signature byte
    sizes = 16382 | 16382 << 14 | struct.unpack("<I", webp[start : start + 4])[0] >> 28 << 28
    return webp[:start] + struct.pack("<I", sizes) + webp[start + 4 :]


def _flipped(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 0x55]) + data[position + 1 :]


def _zipped(data: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("dog.jpg", data)
    return buffer.getvalue()
