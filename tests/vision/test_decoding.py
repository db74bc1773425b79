"""Bytes to an upright RGB picture."""

import io
import subprocess
import sys
from contextlib import contextmanager

import pytest
from PIL import Image, ImageOps

from opslib.vision.decoding import PhotoDecodingError, decode_photo
from tests.hostile import good_photo


def encoded(picture, form="PNG", **options):
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


def gradient(size=(120, 80)):
    return Image.merge("RGB", [Image.linear_gradient("L").resize(size).rotate(angle) for angle in (0, 90, 180)])


def distance(one, other):
    return max(abs(a - b) for a, b in zip(one.resize((8, 8)).tobytes(), other.resize((8, 8)).tobytes(), strict=True))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "I;16", "CMYK", "YCbCr"])
def test_every_mode_becomes_rgb(mode):
    picture = (
        Image.new("I;16", (9, 7), 30000) if mode == "I;16" else Image.new("RGB", (9, 7), (200, 30, 90)).convert(mode)
    )
    photo = decode_photo(encoded(picture, "JPEG" if mode in ("CMYK", "YCbCr") else "PNG"))
    assert (photo.mode, photo.size) == ("RGB", (9, 7))


def test_transparency_lies_on_white():
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    half = Image.new("RGBA", (4, 4), (0, 0, 0, 128))
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([255, 0, 0, 0, 0, 255])
    assert decode_photo(encoded(clear)).getpixel((0, 0)) == (255, 255, 255)
    assert decode_photo(encoded(half)).getpixel((0, 0)) == (127, 127, 127)
    assert decode_photo(encoded(palette, transparency=1)).getpixel((0, 0)) == (255, 255, 255)
    assert decode_photo(encoded(palette, transparency=0)).getpixel((0, 0)) == (0, 0, 255)


@pytest.mark.parametrize(("value", "grey"), [(0, 0), (256, 1), (32768, 128), (65535, 255)])
def test_16_bits_are_scaled_and_not_clipped(value, grey):
    photo = decode_photo(encoded(Image.new("I;16", (4, 4), value)))
    assert photo.getpixel((1, 1)) == pytest.approx((grey,) * 3, abs=1)


def test_cmyk_with_and_without_adobes_marker_is_the_same_picture():
    inks = gradient().convert("CMYK")
    jpeg = encoded(inks, "JPEG", quality=95)  # Pillow writes Adobe's marker, and inverts as Adobe does
    assert distance(decode_photo(jpeg), inks.convert("RGB")) < 12
    # A file without the marker holds its inks as they are.
    inverted = Image.merge("CMYK", [channel.point(lambda level: 255 - level) for channel in inks.split()])
    jpeg = encoded(inverted, "JPEG", quality=95)
    start = jpeg.index(b"\xff\xee")
    unmarked = jpeg[:start] + jpeg[start + 2 + int.from_bytes(jpeg[start + 2 : start + 4], "big") :]
    assert distance(decode_photo(unmarked), inks.convert("RGB")) < 12


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_exif_rotation_is_applied(form, orientation):
    picture = gradient()
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(picture, form, exif=exif, quality=95)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    assert decode_photo(data).size == expected.size == ((120, 80) if orientation < 5 else (80, 120))
    assert distance(decode_photo(data), expected) <= 1


def test_first_frame_of_an_animation():
    red, blue = Image.new("RGB", (8, 8), (255, 0, 0)), Image.new("RGB", (8, 8), (0, 0, 255))
    for form in ("PNG", "WEBP"):
        data = encoded(red, form, save_all=True, append_images=[blue], lossless=True)
        assert decode_photo(data).getpixel((4, 4)) == (255, 0, 0)


def test_large_jpeg_is_decoded_smaller_but_not_below_what_is_asked():
    data = encoded(gradient((1600, 1200)), "JPEG", quality=95)
    photo = decode_photo(data, shortest_side=250)
    assert photo.size == (400, 300)
    assert distance(photo, decode_photo(data)) < 4
    assert decode_photo(data, shortest_side=700).size == (1600, 1200)


def test_pixels_are_counted_before_they_are_decoded():
    data = encoded(Image.new("1", (2000, 2000)))
    with pytest.raises(PhotoDecodingError, match="2000 x 2000") as caught:
        decode_photo(data, max_pixels=3_999_999)
    assert caught.value.status_code == 413
    assert decode_photo(data, max_pixels=4_000_000).size == (2000, 2000)


@pytest.mark.parametrize("part", [0.2, 0.5, 0.8, 0.95])
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("shortest_side", [0, 32])
def test_truncated_photos_are_noticed_however_they_are_decoded(form, part, shortest_side):
    noise = Image.effect_noise((300, 200), 80).convert("RGB")
    data = encoded(noise, form)
    with pytest.raises(PhotoDecodingError) as caught:
        decode_photo(data[: int(len(data) * part)], shortest_side=shortest_side)
    assert caught.value.status_code == 400


def test_no_byte_flipped_in_a_photo_escapes():
    data = good_photo()
    for position in range(0, len(data), 37):
        broken = data[:position] + bytes([data[position] ^ 0xFF]) + data[position + 1 :]
        try:
            assert decode_photo(broken).mode == "RGB"
        except PhotoDecodingError as error:
            assert error.status_code in (400, 413, 415)


def test_only_what_is_large_when_it_is_decoded_waits_for_its_turn():
    turns = []

    @contextmanager
    def turn():
        turns.append("taken")
        yield

    large = Image.new("L", (4000, 3001))
    for data, expected in ((encoded(large), 1), (encoded(large, "JPEG"), 0), (encoded(Image.new("L", (400, 300))), 0)):
        turns.clear()
        decode_photo(data, shortest_side=512, while_large=turn())
        assert len(turns) == expected


FOUR_THREADS = """
import io, os, sys, threading
from concurrent.futures import ThreadPoolExecutor
from PIL import Image
from opslib.vision.decoding import decode_photo, give_memory_back

def megabytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20

file = io.BytesIO()
Image.new("RGBA", (5000, 5000), (1, 2, 3, 4)).save(file, "PNG", compress_level=1)
give_memory_back()
lock, start = threading.Lock(), threading.Barrier(4)

def decode():
    start.wait()
    decode_photo(file.getvalue(), while_large=lock)

with ThreadPoolExecutor(4) as pool:
    before = megabytes()
    for work in [pool.submit(decode) for _ in range(4)]:
        work.result()
    print(megabytes() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the memory of a process is read as Linux tells it")
def test_the_memory_of_large_photos_is_given_back():
    done = subprocess.run([sys.executable, "-c", FOUR_THREADS], capture_output=True, text=True, timeout=60, check=True)
    assert int(done.stdout) < 100  # 500 otherwise
