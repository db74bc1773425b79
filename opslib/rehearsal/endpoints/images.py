"""Which program here stands for an inference image, by the name of its repository."""

from pathlib import Path

_PROGRAMS = {"pytorch-inference": "model_server.py", "ray:serve-ml-sagemaker": "ray_server.py"}
"""From a repository (and the beginning of a tag) of AWS's images to the program here that keeps its contract."""

REHEARSED_IMAGES = tuple(_PROGRAMS)


def find_program(image: str) -> Path | None:
    """Return the program that stands for an image; None when the rehearsal has none."""
    named = image.rpartition("/")[2].partition("@")[0]
    name = next((program for known, program in _PROGRAMS.items() if named.startswith(known)), None)
    return Path(__file__).with_name(name) if name else None
