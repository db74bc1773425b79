"""What CloudWatch gets of the instances of an endpoint at intervals, on a fast clock."""

import pytest

from opslib.rehearsal.clock import Clock
from opslib.rehearsal.endpoints.fleet import Fleet
from opslib.rehearsal.endpoints.instances import ModelContainer
from opslib.rehearsal.endpoints.metrics import LoadSampler, VariantMetrics
from opslib.rehearsal.monitoring.extension import Metric, Monitoring
from tests.rehearsal.serving import until

WEIGHTS_BYTES = 64 * 2**20
BUSY = """
import time

def model_fn(model_dir):
    return None

def input_fn(body, content_type):
    return float(body)

def predict_fn(seconds, model):
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        pass
    return "done"

def output_fn(prediction, accept):
    return prediction, "text/plain"
"""


@pytest.fixture
def fleet(tmp_path):
    """One instance that computes as long as it is asked to, with weights that take room on its disk."""

    def fetch_model(directory):
        (directory / "code").mkdir(parents=True)
        (directory / "code" / "inference.py").write_text(BUSY)
        (directory / "weights").write_bytes(bytes(WEIGHTS_BYTES))

    made = Fleet(ModelContainer(tmp_path, {}, fetch_model, lambda _: lambda _: None), 1)
    made.start()
    yield made
    made.close()


def test_the_load_of_instances_is_measured_every_minute(fleet):
    clock = Clock(60)
    monitoring = Monitoring(clock)
    metrics = VariantMetrics(monitoring, "us-east-1", "dogs", "V")
    sampler = LoadSampler(clock, lambda: [(metrics, fleet)])
    sampler.start()

    def values(name: str, statistic: str = "Maximum") -> list[float]:
        metric = Metric.of("us-east-1", "/aws/sagemaker/Endpoints", name, EndpointName="dogs", VariantName="V")
        series = monitoring.series(metric, statistic=statistic, period_seconds=60, periods=60)
        return [value for _, value in series]

    def is_busy() -> bool:
        fleet.invoke(b"0.5", {"Content-Type": "text/plain", "Accept": "*/*"})
        return max(values("CPUUtilization"), default=0) > 20

    try:
        until(is_busy)
        assert 0 < max(values("MemoryUtilization")) < 100
        assert 0 < max(values("DiskUtilization")) < 100
    finally:
        sampler.stop()
        monitoring.stop()
