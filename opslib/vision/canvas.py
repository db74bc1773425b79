"""Drawing with shapes that can be moved, turned and mirrored: the pencil of the drawn sample."""

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from PIL import Image, ImageDraw

Point = tuple[float, float]


@dataclass(frozen=True)
class Placement:
    """Where a figure stands: origin in pixels, pixels per unit, turn in radians, and whether it looks left."""

    x: float
    y: float
    scale: float
    turn: float = 0.0
    mirrored: bool = False

    def pixels(self, points: Iterable[Point]) -> list[Point]:
        """Return points of the figure's own coordinates (y up) in pixels (y down)."""
        cos, sin = math.cos(self.turn) * self.scale, math.sin(self.turn) * self.scale
        side = -1 if self.mirrored else 1
        return [(self.x + side * (x * cos + y * sin), self.y - (y * cos - x * sin)) for x, y in points]


class Pencil:
    """Draws a figure in its own coordinates; round shapes get a ragged edge where there is fur."""

    def __init__(self, picture: Image.Image, placement: Placement, rng: random.Random) -> None:
        """Draw on a picture (or on a mask of mode "L")."""
        self._draw = ImageDraw.Draw(picture)
        self._placement = placement
        self._rng = rng

    def polygon(self, points: Sequence[Point], fill: object) -> None:
        """Draw a filled polygon."""
        self._draw.polygon(self._placement.pixels(points), fill=fill)

    def oval(self, centre: Point, radii: Point, fill: object, *, turn: float = 0.0, fur: float = 0.0) -> None:
        """Draw a filled ellipse turned by `turn` radians; `fur` is the length of tufts as a part of the radii."""
        corners = 44 if fur else 24
        cos, sin = math.cos(turn), math.sin(turn)
        points = []
        for corner in range(corners):
            angle = 2 * math.pi * corner / corners
            reach = 1 + fur * self._rng.uniform(-0.4, 1) if fur else 1
            along, across = radii[0] * reach * math.cos(angle), radii[1] * reach * math.sin(angle)
            points.append((centre[0] + along * cos - across * sin, centre[1] + along * sin + across * cos))
        self.polygon(points, fill)

    def limb(self, points: Sequence[Point], widths: Sequence[float], fill: object) -> None:
        """Draw a chain of rounded segments, `widths` wide (in units) at each point."""
        for (start, end), (first, last) in zip(pairwise(points), pairwise(widths), strict=True):
            length = math.hypot(end[0] - start[0], end[1] - start[1]) or 1
            across = ((start[1] - end[1]) / length / 2, (end[0] - start[0]) / length / 2)
            self.polygon(
                [
                    (start[0] + across[0] * first, start[1] + across[1] * first),
                    (end[0] + across[0] * last, end[1] + across[1] * last),
                    (end[0] - across[0] * last, end[1] - across[1] * last),
                    (start[0] - across[0] * first, start[1] - across[1] * first),
                ],
                fill,
            )
        for point, width in zip(points, widths, strict=True):
            self.oval(point, (width / 2, width / 2), fill)


def shade(colour: Sequence[int], factor: float) -> tuple[int, int, int]:
    """Return a colour made darker (factor below 1) or lighter."""
    red, green, blue = (max(0, min(255, round(part * factor))) for part in colour)
    return red, green, blue
