"""The parts of AWS that the rehearsal really performs, in the order in which they are registered."""

from opslib.rehearsal.endpoints.extension import EndpointsExtension
from opslib.rehearsal.functions.extension import FunctionsExtension
from opslib.rehearsal.instances.extension import InstancesExtension
from opslib.rehearsal.site import Extension, Site
from opslib.rehearsal.training.extension import TrainingExtension

EXTENSIONS: list[type[Extension]] = [TrainingExtension, EndpointsExtension, FunctionsExtension, InstancesExtension]
"""Each is built with the site of the rehearsal that is about to serve."""


def build_extensions(site: Site) -> list[Extension]:
    """Build every extension."""
    return [extension(site) for extension in EXTENSIONS]
