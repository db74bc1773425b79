"""Where the dogs of the drawn sample are, and in which light: nothing here says which breed it is."""

import random

from PIL import Image, ImageChops, ImageDraw, ImageFilter

from opslib.vision.breeds import Colour
from opslib.vision.canvas import shade

# Sky or wall above, ground or floor below, and what stands around.
_PLACES: dict[str, tuple[tuple[Colour, ...], tuple[Colour, ...], str]] = {
    "meadow": (((150, 190, 230), (190, 215, 235), (210, 200, 190)), ((96, 140, 60), (130, 150, 70)), "grass"),
    "beach": (((140, 190, 220), (235, 200, 170)), ((222, 200, 150), (205, 180, 140)), "pebbles"),
    "snow": (((190, 200, 215), (160, 180, 210)), ((236, 240, 246), (214, 224, 236)), "trunks"),
    "forest": (((70, 96, 70), (96, 110, 80)), ((92, 78, 52), (80, 92, 52)), "trunks"),
    "street": (((170, 176, 184), (120, 130, 150)), ((110, 110, 114), (140, 136, 130)), "houses"),
    "room": (((226, 214, 190), (170, 190, 196), (200, 160, 150)), ((150, 110, 76), (176, 170, 164)), "frames"),
    "autumn": (((200, 180, 150), (160, 170, 190)), ((170, 110, 50), (150, 90, 40)), "pebbles"),
    "evening": (((60, 60, 96), (110, 70, 90)), ((56, 60, 58), (70, 60, 60)), "houses"),
}


def draw_scene(size: tuple[int, int], horizon: float, rng: random.Random) -> Image.Image:
    """Draw a background, more or less out of focus; `horizon` is the share of the height above the ground."""
    above, below, things = _PLACES[rng.choice(list(_PLACES))]
    width, height = size
    edge = round(height * horizon)
    picture = Image.new("RGB", size)
    picture.paste(_gradient((width, edge), rng.choice(above), rng), (0, 0))
    picture.paste(_gradient((width, height - edge), rng.choice(below), rng), (0, edge))
    _THINGS[things](ImageDraw.Draw(picture), size, edge, rng)
    return picture.filter(ImageFilter.BoxBlur(rng.choice([0, 1, 2, 3])))


def light_scene(picture: Image.Image, rng: random.Random) -> Image.Image:
    """Lay light on a finished picture: brightness, warmth, a shadow from one side, and the grain of a camera."""
    brightness, warmth = rng.uniform(0.75, 1.25), rng.uniform(-0.13, 0.13)
    gains = [brightness * (1 + warmth), brightness, brightness * (1 - warmth)]
    lit = picture.point([min(255, round(level * gain)) for gain in gains for level in range(256)])
    corners = Image.new("L", (2, 2))
    corners.putdata([rng.randint(140, 255) for _ in range(4)])
    shadow = corners.resize(picture.size, Image.Resampling.BILINEAR)
    grain = Image.frombytes("L", (96, 96), rng.randbytes(96 * 96)).resize(picture.size, Image.Resampling.BILINEAR)
    shaded = ImageChops.multiply(lit, Image.merge("RGB", (shadow,) * 3))
    return Image.blend(shaded, Image.merge("RGB", (grain,) * 3), rng.uniform(0.02, 0.09))


def draw_foreground(picture: Image.Image, rng: random.Random) -> None:
    """Sometimes put something between the camera and the dog."""
    draw, (width, height) = ImageDraw.Draw(picture), picture.size
    thing = rng.random()
    if thing < 0.2:
        green = shade((110, 150, 60), rng.uniform(0.6, 1.2))
        for _ in range(26):
            x, tip = rng.uniform(0, width), rng.uniform(0.72, 0.92) * height
            draw.line([(x, height), (x + rng.uniform(-16, 16), tip)], fill=shade(green, rng.uniform(0.8, 1.2)), width=4)
    elif thing < 0.35:
        x, y, radius = rng.uniform(0.1, 0.9) * width, rng.uniform(0.82, 0.95) * height, rng.uniform(0.05, 0.1) * width
        draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=_any_colour(rng))


def _gradient(size: tuple[int, int], colour: Colour, rng: random.Random) -> Image.Image:
    colour = shade(colour, rng.uniform(0.85, 1.12))
    ends = Image.new("RGB", (1, 2))
    ends.putdata([shade(colour, 1.06), shade(colour, 0.88)])
    return ends.resize(size, Image.Resampling.BILINEAR)


def _grass(draw: ImageDraw.ImageDraw, size: tuple[int, int], edge: int, rng: random.Random) -> None:
    for _ in range(70):
        x, y = rng.uniform(0, size[0]), rng.uniform(edge, size[1])
        blade = shade((100, 150, 60), rng.uniform(0.7, 1.2))
        draw.line([(x, y), (x + rng.uniform(-3, 3), y - rng.uniform(3, 11))], fill=blade, width=2)


def _pebbles(draw: ImageDraw.ImageDraw, size: tuple[int, int], edge: int, rng: random.Random) -> None:
    for _ in range(40):
        x, y, radius = rng.uniform(0, size[0]), rng.uniform(edge, size[1]), rng.uniform(1, 4.5)
        stone = shade((190, 150, 100), rng.uniform(0.6, 1.2))
        draw.ellipse([x - radius * 1.5, y - radius * 0.7, x + radius * 1.5, y + radius * 0.7], fill=stone)


def _trunks(draw: ImageDraw.ImageDraw, size: tuple[int, int], edge: int, rng: random.Random) -> None:
    for _ in range(rng.randint(3, 7)):
        x, width, foot = rng.uniform(0, size[0]), rng.uniform(4, 17), edge + rng.uniform(-4, 15)
        draw.rectangle([x, 0, x + width, foot], fill=shade((86, 66, 50), rng.uniform(0.6, 1.4)))


def _houses(draw: ImageDraw.ImageDraw, size: tuple[int, int], edge: int, rng: random.Random) -> None:
    x = 0.0
    while x < size[0]:
        width, roof = rng.uniform(25, 70), edge * rng.uniform(0.1, 0.7)
        draw.rectangle([x, roof, x + width, edge], fill=shade((176, 140, 120), rng.uniform(0.5, 1.2)))
        for window in range(int(x) + 5, int(x + width) - 9, 15):
            draw.rectangle([window, roof + 7, window + 7, roof + 17], fill=rng.choice([(240, 220, 150), (70, 80, 96)]))
        x += width + rng.uniform(0, 10)


def _frames(draw: ImageDraw.ImageDraw, size: tuple[int, int], edge: int, rng: random.Random) -> None:
    for _ in range(rng.randint(1, 3)):
        x, y, side = rng.uniform(0, size[0]), rng.uniform(0, edge / 2), rng.uniform(25, 60)
        draw.rectangle([x, y, x + side, y + side * 0.7], fill=_any_colour(rng), outline=(90, 66, 46), width=3)
    rug = [rng.uniform(0, size[0] / 3), edge + 12, rng.uniform(size[0] / 2, size[0]), size[1] + 30]
    draw.ellipse(rug, fill=shade(_any_colour(rng), 0.9))


_THINGS = {"grass": _grass, "pebbles": _pebbles, "trunks": _trunks, "houses": _houses, "frames": _frames}


def _any_colour(rng: random.Random) -> Colour:
    return rng.randint(60, 230), rng.randint(60, 230), rng.randint(60, 230)
