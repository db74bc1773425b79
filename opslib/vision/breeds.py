"""Invented dog breeds for the drawn sample: a kind gives the shape, a coat gives colours and pattern."""

import random
from dataclasses import dataclass

Colour = tuple[int, int, int]

_COLOURS: dict[str, Colour] = {
    "black": (38, 36, 40),
    "slate": (92, 98, 110),
    "silver": (168, 170, 174),
    "white": (240, 238, 232),
    "cream": (230, 208, 168),
    "golden": (214, 160, 84),
    "fawn": (190, 144, 100),
    "red": (164, 82, 44),
    "chestnut": (118, 62, 38),
    "liver": (82, 52, 42),
}

PATTERNS = ("solid", "patched", "spotted", "saddled", "brindled", "bicoloured", "masked")
"""How the second colour lies on the first."""

# fmt: off
_PLACES = (
    "Alder", "Amber", "Arden", "Basalt", "Birch", "Bramble", "Cinder", "Clover", "Copper", "Dale", "Ember",
    "Fen", "Flint", "Gorse", "Harrow", "Heath", "Juniper", "Larch", "Marsh", "Moor", "Ness", "Oxbow", "Quarry",
    "Rowan", "Saffron", "Tarn", "Thistle", "Umber", "Vale", "Wicken", "Yarrow",
)
# fmt: on


@dataclass(frozen=True)
class Shape:
    """Proportions of a kind of dog, in units of half its body length."""

    leg: float
    girth: float
    neck: float
    head: float
    muzzle: float
    ears: str
    tail: str
    fur: float


_KINDS: dict[str, Shape] = {
    "hound": Shape(0.75, 0.40, 0.55, 0.34, 0.42, "hanging", "sabre", 0.00),
    "spitz": Shape(0.60, 0.50, 0.40, 0.36, 0.26, "pointed", "curled", 0.10),
    "terrier": Shape(0.50, 0.42, 0.45, 0.36, 0.34, "folded", "stub", 0.07),
    "mastiff": Shape(0.75, 0.58, 0.40, 0.46, 0.20, "folded", "sabre", 0.00),
    "pointer": Shape(0.85, 0.36, 0.60, 0.30, 0.40, "hanging", "straight", 0.00),
    "spaniel": Shape(0.50, 0.46, 0.45, 0.36, 0.30, "long", "plumed", 0.08),
    "shepherd": Shape(0.70, 0.46, 0.50, 0.36, 0.38, "pointed", "plumed", 0.05),
    "dachsel": Shape(0.25, 0.36, 0.45, 0.32, 0.42, "hanging", "sabre", 0.00),
    "sighthound": Shape(1.00, 0.32, 0.70, 0.26, 0.46, "rose", "sabre", 0.00),
    "bulldog": Shape(0.40, 0.58, 0.25, 0.46, 0.12, "rose", "stub", 0.00),
    "retriever": Shape(0.70, 0.48, 0.50, 0.38, 0.32, "hanging", "plumed", 0.04),
    "poodle": Shape(0.75, 0.44, 0.55, 0.40, 0.36, "long", "pompon", 0.14),
    "collie": Shape(0.65, 0.46, 0.50, 0.33, 0.44, "folded", "plumed", 0.11),
    "pinscher": Shape(0.80, 0.38, 0.55, 0.31, 0.36, "pointed", "stub", 0.00),
}


@dataclass(frozen=True)
class Breed:
    """One class of the sample: its name, and what all its dogs have in common."""

    name: str
    shape: Shape
    coat: Colour
    markings: Colour
    pattern: str
    socks: bool
    bib: bool
    eyes: Colour


def invent_breeds(count: int, seed: int) -> list[Breed]:
    """Invent breeds named like `017.Birch_spaniel`, in the order of their names, always the same ones for a seed."""
    rng = random.Random(f"breeds {seed}")  # noqa: S311 - drawing, not secrets
    names = sorted(rng.sample([f"{place}_{kind}" for place in _PLACES for kind in _KINDS], count))
    return [_invent(f"{number:03}.{name}", rng) for number, name in enumerate(names, start=1)]


def _invent(name: str, rng: random.Random) -> Breed:
    coat, markings = rng.sample(list(_COLOURS.values()), 2)
    return Breed(
        name=name,
        shape=_KINDS[name.rpartition("_")[2]],
        coat=coat,
        markings=markings,
        pattern=rng.choice(PATTERNS),
        socks=rng.random() < 0.3,
        bib=rng.random() < 0.3,
        eyes=rng.choice([(40, 24, 16), (96, 60, 20), (70, 110, 140)]),
    )
