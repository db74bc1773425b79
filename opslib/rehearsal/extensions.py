"""The parts of AWS that the rehearsal really performs, in the order in which they are registered."""

from opslib.rehearsal.endpoints.extension import EndpointsExtension
from opslib.rehearsal.functions.extension import FunctionsExtension
from opslib.rehearsal.instances.extension import InstancesExtension
from opslib.rehearsal.scaling.extension import ScalingExtension
from opslib.rehearsal.site import Extension, Site
from opslib.rehearsal.training.extension import TrainingExtension
from opslib.rehearsal.transforms.extension import TransformsExtension
from opslib.rehearsal.tuning.extension import TuningExtension


def build_extensions(site: Site) -> list[Extension]:
    """Build every extension; they are stopped in the opposite order, tuning before the training that it uses."""
    training, endpoints = TrainingExtension(site), EndpointsExtension(site)
    functions = FunctionsExtension(site)
    scaling = ScalingExtension(site, [endpoints.capacities, functions.capacities])
    others = [endpoints, TransformsExtension(site), functions, scaling, InstancesExtension(site)]
    return [site.monitoring, training, TuningExtension(training), *others]
