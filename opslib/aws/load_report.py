"""What became of a load: how many requests were answered, how fast, and whether the generator kept its times."""

import math
from collections import Counter
from dataclasses import dataclass

import numpy

from opslib.aws.load_sender import ANSWERED, THROTTLED
from opslib.load_plan import LoadPlan

LATE_SECONDS = 0.1
"""A request that starts so much later than it was due was held up by the generator."""


@dataclass(frozen=True)
class LoadReport:
    """What became of the requests.

    Attributes:
        plan: What was to be sent.
        due: When each request was due, in seconds after the beginning, float64 of shape (N,).
        latencies_ms: From then to its end, in milliseconds, float64 of shape (N,).
        outcomes: `answered`, `throttled` or an error's name, one for each request.
        late_share: The share of requests that the generator itself started late.
        late_p95_ms: The 95th percentile of how late it started them.
    """

    plan: LoadPlan
    due: numpy.ndarray
    latencies_ms: numpy.ndarray
    outcomes: tuple[str, ...]
    late_share: float
    late_p95_ms: float = 0.0

    @property
    def requests(self) -> int:
        """The number of requests."""
        return len(self.outcomes)

    @property
    def counts(self) -> Counter[str]:
        """The number of requests by outcome."""
        return Counter(self.outcomes)

    @property
    def answered(self) -> int:
        """The number of requests that were answered."""
        return self.counts[ANSWERED]

    @property
    def throttled(self) -> int:
        """The number of requests that were told to come back later."""
        return self.counts[THROTTLED]

    @property
    def success_rate(self) -> float:
        """The share of requests that were answered, from 0 to 1."""
        return self.answered / self.requests if self.requests else 0.0

    @property
    def answered_rps(self) -> float:
        """Answers per second until the last one: below the plan's rate when a target falls behind."""
        ends = self.due + self.latencies_ms / 1000
        return self.answered / max(self.plan.seconds, ends[self._is_answered].max(initial=0.0))

    @property
    def answered_ms(self) -> numpy.ndarray:
        """The latencies of what was answered."""
        return self.latencies_ms[self._is_answered]

    @property
    def _is_answered(self) -> numpy.ndarray:
        return numpy.array([outcome == ANSWERED for outcome in self.outcomes], dtype=bool)

    def percentile_ms(self, percent: float) -> float:
        """Return a percentile of the latencies of what was answered; not a number when nothing was."""
        return float(numpy.percentile(self.answered_ms, percent)) if self.answered else math.nan

    @property
    def p50_ms(self) -> float:
        """The median latency."""
        return self.percentile_ms(50)

    @property
    def p95_ms(self) -> float:
        """The 95th percentile of the latencies."""
        return self.percentile_ms(95)

    @property
    def p99_ms(self) -> float:
        """The 99th percentile of the latencies."""
        return self.percentile_ms(99)

    @property
    def is_generator_limited(self) -> bool:
        """Whether more than one request in a hundred started late: then the figures are the generator's."""
        return self.late_share > 0.01

    def rows(self) -> list[tuple[str, str]]:
        """Return the report as names and figures, to be read."""
        latency = f"p50 {self.p50_ms:.0f} ms, p95 {self.p95_ms:.0f} ms, p99 {self.p99_ms:.0f} ms"
        rows = [
            ("requests", f"{self.requests:,} in {self.plan.seconds:.0f} s, at most {self.plan.peak_rps:.1f}/s"),
            ("answered", f"{self.success_rate:.2%} ({self.answered_rps:.1f}/s)"),
            ("latency", latency if self.answered else "nothing was answered"),
            *((outcome, f"{count:,}") for outcome, count in self.counts.items() if outcome != ANSWERED),
        ]
        if self.is_generator_limited:
            rows.append(("careful", f"{self.late_share:.1%} of the requests were sent late: this machine is the limit"))
        return rows

    def _repr_html_(self) -> str:
        cells = "".join(f"<tr><th>{name}</th><td>{figure}</td></tr>" for name, figure in self.rows())
        return f"<table>{cells}</table>"

    def __str__(self) -> str:
        """Return the rows as text."""
        rows = self.rows()
        width = max(len(name) for name, _ in rows) + 2
        return "\n".join(f"{name:<{width}}{figure}" for name, figure in rows)
