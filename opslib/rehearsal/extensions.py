"""The parts of AWS that the rehearsal really performs, in the order in which they are registered."""

from typing import TYPE_CHECKING

from opslib.rehearsal.endpoints.extension import EndpointsExtension
from opslib.rehearsal.functions.extension import FunctionsExtension
from opslib.rehearsal.training.extension import TrainingExtension

if TYPE_CHECKING:
    from opslib.rehearsal.server import Extension, Rehearsal

EXTENSIONS: "list[type[Extension]]" = [TrainingExtension, EndpointsExtension, FunctionsExtension]
"""Each is built with the rehearsal that is about to serve."""


def build_extensions(rehearsal: "Rehearsal") -> "list[Extension]":
    """Build every extension."""
    return [extension(rehearsal) for extension in EXTENSIONS]
