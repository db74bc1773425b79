"""A job's metrics: what its MetricDefinitions find in the lines it prints.

AWS keeps the latest value of each in FinalMetricDataList and sends all of them to CloudWatch, namespace
/aws/sagemaker/TrainingJobs: https://docs.aws.amazon.com/sagemaker/latest/dg/define-train-metrics.html
"""

import re
from collections.abc import Mapping
from math import isfinite
from typing import Any

from opslib.rehearsal.calls import ServiceError
from opslib.rehearsal.monitoring.extension import Metric, Monitoring
from opslib.rehearsal.training.job import TrainingJob

NAMESPACE = "/aws/sagemaker/TrainingJobs"

MAX_CHARACTERS = 4096
"""How much of a line is searched."""


def compile_definitions(params: Mapping[str, Any]) -> dict[str, re.Pattern[str]]:
    """Return the regular expressions of a CreateTrainingJob request by metric name.

    Raises:
        ServiceError: ValidationException, for what is no regular expression.
    """
    definitions = params.get("AlgorithmSpecification", {}).get("MetricDefinitions", [])
    try:
        return {definition["Name"]: re.compile(definition["Regex"]) for definition in definitions}
    except re.error as error:
        raise ServiceError("ValidationException", f"Invalid metric regular expression: {error}") from error


class MetricReader:
    """Finds a job's metrics in its lines."""

    def __init__(self, job: TrainingJob, region: str, monitoring: Monitoring) -> None:
        self._job = job
        self._region = region
        self._monitoring = monitoring
        self._patterns = compile_definitions(job.params)

    def read(self, line: str) -> None:
        """Note every metric in a line; the first group of its expression holds the number."""
        # A progress bar draws itself again and again in one line of hundreds of kilobytes, and an expression's time may
        # grow with the square of it, while nothing else in this process runs.
        pieces = [piece[:MAX_CHARACTERS] for piece in line.split("\r")]
        for name, pattern in self._patterns.items():
            for match in (match for piece in pieces for match in pattern.finditer(piece)):
                value = _number(match.group(1) if pattern.groups else match.group(0))
                if value is not None:
                    self._note(name, value)

    def _note(self, name: str, value: float) -> None:
        self._job.note_metric(name, value)
        self._monitoring.gauge(Metric.of(self._region, NAMESPACE, name, TrainingJobName=self._job.name), value)


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if isfinite(value) else None  # CloudWatch takes neither NaN nor infinity
