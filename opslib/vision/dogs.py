"""A dog of a breed in one of four poses: the figure of the drawn sample."""

import math
import random
from collections.abc import Callable
from dataclasses import replace

from PIL import Image, ImageChops

from opslib.vision.breeds import Breed, Colour
from opslib.vision.canvas import Pencil, Placement, Point, shade

_NOSE = (30, 26, 28)
_TONGUE = (222, 108, 116)
_FULL = 255
_THIRD = [level // 3 for level in range(256)]


def draw_dog(picture: Image.Image, breed: Breed, placement: Placement, rng: random.Random) -> None:
    """Draw one dog; no two dogs of a breed have quite the same coat, patches or proportions."""
    breed = _individual(breed, rng)
    pose = rng.choice([_standing, _standing, _sitting, _lying, _face, _face])
    figure = _Figure(picture, breed, placement, rng)
    pose(figure, rng)


class _Figure:
    """The coat is painted on a layer of its own and laid on the picture through the outline of the body."""

    def __init__(self, picture: Image.Image, breed: Breed, placement: Placement, rng: random.Random) -> None:
        self.picture, self.breed, self.placement = picture, breed, placement
        self.pencil = Pencil(picture, placement, rng)
        self.coat = Image.new("RGB", picture.size, breed.coat)
        self.paint = Pencil(self.coat, placement, rng)
        self.outline = Image.new("L", picture.size)
        self.cut = Pencil(self.outline, placement, rng)

    def lay_coat(self) -> None:
        """Lay the coat on the picture, darker along its lower edge, and begin a new outline."""
        box = self.outline.getbbox()
        if box is None:
            return  # the part lies outside the picture
        part = self.outline.crop(box)
        self.picture.paste(self.coat.crop(box), box, part)
        lift = -max(2, round(self.placement.scale * 0.09))
        rim = ImageChops.subtract(part, ImageChops.offset(part, 0, lift))
        self.picture.paste(shade(self.breed.coat, 0.72), box, rim.point(_THIRD))
        self.outline.paste(0, box)


def _individual(breed: Breed, rng: random.Random) -> Breed:
    """Return the breed as one dog of it has it."""
    proportions = {
        name: getattr(breed.shape, name) * rng.uniform(0.93, 1.07)
        for name in ("leg", "girth", "neck", "head", "muzzle")
    }
    light = rng.uniform(0.88, 1.12)
    return replace(
        breed,
        shape=replace(breed.shape, **proportions),
        coat=shade(breed.coat, light),
        markings=shade(breed.markings, light),
    )


def _standing(figure: _Figure, rng: random.Random) -> None:
    shape, stride = figure.breed.shape, rng.uniform(-0.2, 0.2)
    ground = -shape.girth * 0.8 - shape.leg
    for hip, step in ((-0.72, stride), (0.62, -stride)):
        figure.pencil.limb([(hip, -0.2), (hip + step, ground)], [0.3, 0.16], shade(figure.breed.coat, 0.62))
    _tail(figure, (-0.92, shape.girth * 0.5), rng)
    _markings(figure, rng)
    figure.cut.oval((0, 0), (1.0, shape.girth * 0.9), _FULL, fur=shape.fur)
    figure.cut.oval((0.52, -0.04), (0.48, shape.girth * 1.1), _FULL, fur=shape.fur)
    figure.cut.oval((-0.62, 0.0), (0.42, shape.girth), _FULL, fur=shape.fur)
    for hip, step in ((-0.6, -stride), (0.72, stride)):
        figure.cut.limb([(hip, -0.1), (hip + step / 2, ground * 0.6), (hip + step, ground)], [0.42, 0.24, 0.17], _FULL)
        figure.cut.oval((hip + step + 0.06, ground), (0.15, 0.08), _FULL)
    figure.lay_coat()
    if figure.breed.socks:
        for hip, step in ((-0.6, -stride), (0.72, stride)):
            figure.pencil.limb([(hip + step * 0.8, ground * 0.8), (hip + step, ground)], [0.2, 0.18], (238, 236, 230))
            figure.pencil.oval((hip + step + 0.06, ground), (0.15, 0.08), (238, 236, 230))
    _profile(figure, (0.78, shape.girth * 0.4), rng)


def _sitting(figure: _Figure, rng: random.Random) -> None:
    shape = figure.breed.shape
    ground = -0.55 - shape.leg * 0.5
    _tail(figure, (-0.75, ground + 0.2), rng)
    _markings(figure, rng)
    figure.cut.oval((-0.3, -0.25), (0.62, shape.girth * 1.25), _FULL, turn=0.9, fur=shape.fur)
    figure.cut.oval((0.12, 0.22), (0.62, shape.girth * 1.05), _FULL, turn=1.2, fur=shape.fur)
    figure.cut.oval((-0.4, ground + 0.25), (0.5, 0.34), _FULL, fur=shape.fur)
    figure.cut.limb([(0.3, 0.1), (0.38, ground)], [0.36, 0.2], _FULL)
    figure.cut.limb([(0.1, 0.0), (0.12, ground)], [0.36, 0.2], _FULL)
    for paw in (-0.1, 0.2, 0.46):
        figure.cut.oval((paw, ground), (0.17, 0.08), _FULL)
    figure.lay_coat()
    if figure.breed.bib:
        figure.pencil.oval((0.36, 0.3), (0.16, 0.34), (238, 236, 230), turn=0.2, fur=shape.fur)
    _profile(figure, (0.3, 0.62), rng)


def _lying(figure: _Figure, rng: random.Random) -> None:
    shape = figure.breed.shape
    ground = -shape.girth * 0.95
    _tail(figure, (-0.95, 0.0), rng)
    _markings(figure, rng)
    figure.cut.oval((0, 0), (1.02, shape.girth), _FULL, fur=shape.fur)
    figure.cut.oval((-0.62, -0.12), (0.5, shape.girth * 0.95), _FULL, fur=shape.fur)
    figure.cut.limb([(0.5, ground * 0.7), (1.1 + shape.leg * 0.3, ground)], [0.3, 0.2], _FULL)
    figure.cut.limb([(-0.6, ground * 0.8), (-0.2 + shape.leg * 0.2, ground)], [0.34, 0.2], _FULL)
    figure.lay_coat()
    _profile(figure, (0.75, shape.girth * 0.4), rng)


def _profile(figure: _Figure, shoulder: Point, rng: random.Random) -> None:
    """Draw neck and head from the side; the head nods a little up or down."""
    breed, shape = figure.breed, figure.breed.shape
    nod = rng.uniform(-0.35, 0.25)
    lean = rng.uniform(0.5, 1.0)
    head = (shoulder[0] + shape.neck * lean * 0.7, shoulder[1] + shape.neck * 0.9)
    tip = _beyond(head, shape.head * 0.6 + shape.muzzle, nod)
    figure.cut.limb([shoulder, head], [shape.girth * 1.1, shape.head * 1.2], _FULL)
    figure.cut.oval(head, (shape.head, shape.head * 0.9), _FULL, turn=nod, fur=shape.fur)
    figure.cut.limb([_beyond(head, shape.head * 0.3, nod), tip], [shape.head * 1.1, shape.head * 0.62], _FULL)
    if breed.pattern == "masked":
        figure.paint.oval(tip, (shape.muzzle + shape.head * 0.3, shape.head * 0.7), breed.markings, turn=nod)
    figure.lay_coat()
    if rng.random() < 0.35:
        figure.pencil.limb([_beyond(tip, -0.1, nod), _beyond(tip, 0.18, nod - 1.9)], [0.1, 0.12], _TONGUE)
    figure.pencil.oval(_beyond(tip, shape.head * 0.2, nod + 0.6), (0.085, 0.07), _NOSE)
    eye = _beyond(head, shape.head * 0.5, nod + 0.6)
    figure.pencil.oval(eye, (0.075, 0.065), shade(breed.coat, 0.5))
    figure.pencil.oval(eye, (0.05, 0.05), breed.eyes)
    figure.pencil.oval((eye[0] + 0.015, eye[1] + 0.015), (0.015, 0.015), (250, 250, 250))
    _ear(figure, _beyond(head, shape.head * 0.7, nod + 1.9), nod)


def _face(figure: _Figure, rng: random.Random) -> None:
    """Draw the head from the front, as large as the picture allows."""
    breed, shape = figure.breed, figure.breed.shape
    figure.placement = replace(figure.placement, scale=figure.placement.scale * rng.uniform(1.7, 2.3))
    figure = _Figure(figure.picture, breed, figure.placement, rng)
    wide, long = 0.42 + shape.head * 0.35, 0.52 + shape.muzzle * 0.2
    _markings(figure, rng)
    figure.cut.oval((0, -0.85), (wide * 1.15, 0.6), _FULL, fur=shape.fur)
    figure.cut.oval((0, 0.1), (wide, long), _FULL, fur=shape.fur)
    figure.lay_coat()
    muzzle = breed.markings if breed.pattern in ("masked", "bicoloured", "saddled") else shade(breed.coat, 1.12)
    if breed.bib:
        figure.pencil.polygon([(-0.05, 0.6), (0.05, 0.6), (0.12, 0), (-0.12, 0)], (238, 236, 230))
    figure.pencil.oval((0, -0.2), (0.2 + shape.head * 0.25, 0.2 + shape.muzzle * 0.35), muzzle, fur=shape.fur)
    if rng.random() < 0.45:
        figure.pencil.oval((0.02, -0.42 - shape.muzzle * 0.2), (0.09, 0.18), _TONGUE)
    figure.pencil.oval((0, -0.1), (0.13, 0.09), _NOSE)
    figure.pencil.limb([(0, -0.15), (0, -0.3)], [0.03, 0.03], _NOSE)
    for side in (-1, 1):
        eye = (side * wide * 0.46, 0.2)
        figure.pencil.oval(eye, (0.11, 0.1), shade(breed.coat, 0.55))
        figure.pencil.oval(eye, (0.08, 0.08), breed.eyes)
        figure.pencil.oval((eye[0] + 0.02, eye[1] + 0.03), (0.025, 0.025), (250, 250, 250))
        _front_ear(figure, side, wide, long)


def _beyond(point: Point, distance: float, angle: float) -> Point:
    return point[0] + distance * math.cos(angle), point[1] + distance * math.sin(angle)


def _ear_colour(breed: Breed) -> Colour:
    return breed.markings if breed.pattern in ("bicoloured", "patched", "masked") else shade(breed.coat, 0.8)


def _ear(figure: _Figure, root: Point, nod: float) -> None:
    shape, fill = figure.breed.shape, _ear_colour(figure.breed)
    size = shape.head
    if shape.ears == "pointed":
        corners = [(-0.35, -0.1), (0.0, 1.15), (0.4, 0.0)]
        figure.pencil.polygon([(root[0] + x * size, root[1] + y * size) for x, y in corners], fill)
    elif shape.ears == "folded":
        corners = [(-0.35, 0.0), (0.0, 0.55), (0.75, 0.05), (0.3, -0.25)]
        figure.pencil.polygon([(root[0] + x * size, root[1] + y * size) for x, y in corners], fill)
    elif shape.ears == "rose":
        figure.pencil.oval((root[0] - size * 0.3, root[1]), (size * 0.5, size * 0.22), fill, turn=nod - 0.4)
    else:
        reach = 1.0 if shape.ears == "long" else 0.7
        centre = (root[0] - size * 0.1, root[1] - size * reach * 0.75)
        figure.pencil.oval(centre, (size * 0.36, size * reach), fill, turn=-0.12, fur=shape.fur)


def _front_ear(figure: _Figure, side: int, wide: float, long: float) -> None:
    shape, fill = figure.breed.shape, _ear_colour(figure.breed)
    top = long + 0.02
    if shape.ears == "pointed":
        corners = [(0.3, top - 0.12), (0.95, top + 0.45), (1.05, top - 0.35)]
    elif shape.ears == "folded":
        corners = [(0.35, top - 0.1), (0.8, top + 0.12), (1.3, top - 0.3), (0.95, top - 0.35)]
    elif shape.ears == "rose":
        corners = [(0.6, top - 0.2), (1.25, top - 0.1), (1.35, top - 0.3), (0.9, top - 0.4)]
    else:
        drop = 0.75 if shape.ears == "long" else 0.5
        figure.pencil.oval((side * wide * 1.08, 0.3 - drop * 0.4), (0.18, drop), fill, turn=side * 0.15, fur=shape.fur)
        return
    figure.pencil.polygon([(side * x * wide, y) for x, y in corners], fill)


def _tail(figure: _Figure, root: Point, rng: random.Random) -> None:
    shape, fill = figure.breed.shape, shade(figure.breed.coat, 0.9)
    wag = rng.uniform(-0.15, 0.25)
    x, y = root
    if shape.tail == "curled":
        figure.pencil.limb(
            [root, (x - 0.15, y + 0.35), (x + 0.15, y + 0.5), (x + 0.28, y + 0.3)], [0.2, 0.22, 0.2, 0.14], fill
        )
    elif shape.tail == "stub":
        figure.pencil.limb([root, (x - 0.14, y + 0.16 + wag / 2)], [0.2, 0.14], fill)
    elif shape.tail == "plumed":
        figure.pencil.oval((x - 0.35, y + 0.1 + wag), (0.48, 0.17), fill, turn=math.pi - 0.4 - wag, fur=0.2)
    elif shape.tail == "pompon":
        figure.pencil.limb([root, (x - 0.2, y + 0.4 + wag)], [0.1, 0.08], fill)
        figure.pencil.oval((x - 0.22, y + 0.48 + wag), (0.16, 0.16), fill, fur=0.3)
    else:
        rise = 0.05 if shape.tail == "straight" else 0.35
        figure.pencil.limb([root, (x - 0.4, y + wag), (x - 0.75, y + rise + wag)], [0.18, 0.11, 0.05], fill)


def _markings(figure: _Figure, rng: random.Random) -> None:
    """Paint the second colour on the coat; where spots and patches lie differs from dog to dog."""
    _PAINT.get(figure.breed.pattern, _leave)(figure.paint, figure.breed.markings, rng)


def _leave(paint: Pencil, colour: Colour, rng: random.Random) -> None:
    """Paint nothing."""


def _paint_patches(paint: Pencil, colour: Colour, rng: random.Random) -> None:
    for _ in range(5):
        centre = (rng.uniform(-0.9, 0.9), rng.uniform(-0.4, 0.5))
        paint.oval(centre, (rng.uniform(0.16, 0.34), rng.uniform(0.14, 0.28)), colour, turn=rng.uniform(0, 3), fur=0.12)


def _paint_spots(paint: Pencil, colour: Colour, rng: random.Random) -> None:
    for _ in range(60):
        radius = rng.uniform(0.025, 0.07)
        paint.oval((rng.uniform(-1.1, 1.3), rng.uniform(-1.2, 1.2)), (radius, radius * 0.9), colour)


def _paint_saddle(paint: Pencil, colour: Colour, rng: random.Random) -> None:
    paint.oval((rng.uniform(-0.2, 0.05), 0.36), (0.78, 0.4), colour, turn=rng.uniform(-0.1, 0.1), fur=0.06)


def _paint_stripes(paint: Pencil, colour: Colour, rng: random.Random) -> None:
    for stripe in range(17):
        x = -1.2 + stripe * 0.15 + rng.uniform(-0.03, 0.03)
        paint.limb([(x, 1.0), (x + rng.uniform(0.0, 0.12), 0), (x, -1.1)], [0.03, 0.06, 0.03], colour)


def _paint_underside(paint: Pencil, colour: Colour, rng: random.Random) -> None:
    edge = rng.uniform(-0.22, -0.08)
    paint.polygon([(-1.5, edge), (1.5, edge + 0.05), (1.5, -2.5), (-1.5, -2.5)], colour)


_PAINT: dict[str, Callable[[Pencil, Colour, random.Random], None]] = {
    "patched": _paint_patches,
    "spotted": _paint_spots,
    "saddled": _paint_saddle,
    "brindled": _paint_stripes,
    "bicoloured": _paint_underside,
}
