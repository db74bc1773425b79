"""Where a rehearsal is: what its extensions need to know of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from opslib.rehearsal.calls import Operation
from opslib.rehearsal.clock import Clock
from opslib.rehearsal.monitoring.extension import Monitoring


@dataclass(frozen=True)
class Site:
    """The address under which a rehearsal answers, the directory that holds its files, its clock and its metrics."""

    endpoint_url: str
    directory: Path
    clock: Clock
    monitoring: Monitoring


class Extension(Protocol):
    """A part of AWS that the rehearsal really performs."""

    operations: Mapping[str, Operation]
    """The operations it answers, by "service.Operation", e.g. "sagemaker.CreateTrainingJob"."""

    def stop(self) -> None:
        """End everything it started; called once, while the server still answers."""
