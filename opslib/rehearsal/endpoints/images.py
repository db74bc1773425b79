"""Which program here stands for an inference image, by the name of its repository."""

from pathlib import Path

_PROGRAMS = {"pytorch-inference": "model_server.py"}
"""From a repository of AWS's images to the program beside this file that keeps its contract."""

REHEARSED_IMAGES = tuple(_PROGRAMS)


def find_program(image: str) -> Path | None:
    """Return the program that stands for an image; None when the rehearsal has none."""
    repository = image.rpartition("/")[2].partition("@")[0].partition(":")[0]
    name = next((program for known, program in _PROGRAMS.items() if known in repository), None)
    return Path(__file__).with_name(name) if name else None
