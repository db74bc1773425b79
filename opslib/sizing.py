"""From what one instance can take to the numbers of a deployment: pure arithmetic, with its reasons.

`target = max_rps x 0.5 x 60` is AWS's own rule: docs.aws.amazon.com/sagemaker/latest/dg/
endpoint-scaling-loadtest.html. The safety factor leaves room for what arrives while new instances start.
"""

import math
from dataclasses import dataclass

from opslib.errors import ConfigurationError
from opslib.specs import ScalingSpec

REQUESTS_PER_CONCURRENCY = 10
"""Requests a second that Lambda lets each unit of a function's concurrency answer, however short they are.

Source: docs.aws.amazon.com/lambda/latest/dg/lambda-concurrency.html.
"""

SAFETY = 0.5
"""Share of an instance's maximum at which another one is asked for."""


@dataclass(frozen=True)
class Sizing:
    """The numbers for an endpoint behind a function.

    Attributes:
        scaling: Target and bounds of the endpoint's instances.
        reserved_concurrency: How many invocations of the function may run at once.
        reasons: A sentence for each number.
    """

    scaling: ScalingSpec
    reserved_concurrency: int
    reasons: tuple[str, ...]

    def _repr_html_(self) -> str:
        return "<ul>" + "".join(f"<li>{reason}</li>" for reason in self.reasons) + "</ul>"

    def __str__(self) -> str:
        """Return the reasons, a line each."""
        return "\n".join(self.reasons)


def propose(
    max_rps: float, *, latency_seconds: float, peak_rps: float, usual_rps: float = 0.0, function_seconds: float = 0.0
) -> Sizing:
    """Propose target, bounds and reserved concurrency.

    Args:
        max_rps: What one instance takes at most, in requests/s (`load.find_knee`).
        latency_seconds: How long the endpoint takes for an answer at that rate.
        peak_rps: The highest traffic that is expected, in requests/s.
        usual_rps: The lowest traffic at which nobody should wait for a new instance.
        function_seconds: What the function adds to the endpoint's answer.

    Raises:
        ConfigurationError: a number is not positive, or one of the last two is negative.
    """
    for name, value in (("max_rps", max_rps), ("latency_seconds", latency_seconds), ("peak_rps", peak_rps)):
        if not 0 < value < math.inf:
            raise ConfigurationError(f"{name} is {value}; it must be positive")
    for name, value in (("usual_rps", usual_rps), ("function_seconds", function_seconds)):
        if not 0 <= value < math.inf:
            raise ConfigurationError(f"{name} is {value}; it must be 0 or more")
    safe_rps = max_rps * SAFETY
    target = safe_rps * 60
    least = max(1, math.ceil(usual_rps / max_rps))
    most = max(least, math.ceil(peak_rps / safe_rps * (1 - 1e-9)))  # 3.0000000000000004 is three
    taken = latency_seconds + function_seconds
    duration = _counted_seconds(taken)
    counted = f"{peak_rps:.1f} requests/s x {duration * 1000:.0f} ms (Little's law"
    counted += ")" if taken == duration else f"; {taken * 1000:.0f} ms, but Lambda answers ten a second for each)"
    concurrency = max(1, math.ceil(peak_rps * duration))
    honoured = math.floor(most * max_rps * duration)
    reserved = max(1, min(concurrency, honoured))
    reasons = (
        f"target {target:.0f} requests per instance and minute: {max_rps:.1f}/s x {SAFETY:g} x 60",
        f"at most {most} instances: {peak_rps:.1f} requests/s at {safe_rps:.1f} each",
        f"at least {least}: {usual_rps:.1f} requests/s are there without waiting",
        f"reserved concurrency {reserved}: {counted}"
        + ("" if reserved == concurrency else f", no more than {most} instances can answer"),
    )
    return Sizing(ScalingSpec(least, most, target), reserved, reasons)


def _counted_seconds(seconds: float) -> float:
    """Return what Little's law is to count for an invocation: a short one takes its place for a tenth of a second."""
    return max(seconds, 1 / REQUESTS_PER_CONCURRENCY)


def warnings(
    scaling: ScalingSpec, *, max_rps: float, latency_seconds: float, reserved_concurrency: int | None
) -> list[str]:
    """Return what does not fit: target and instance, function and endpoint; nothing when all does.

    Args:
        scaling: The endpoint's target and bounds.
        max_rps: What one instance takes at most, in requests/s.
        latency_seconds: How long an invocation of the function takes.
        reserved_concurrency: The function's; None: not reserved.
    """
    found = []
    target_rps = scaling.target_invocations / 60
    if target_rps > max_rps:
        found.append(
            f"the target of {scaling.target_invocations:g} a minute is {target_rps:.1f} requests/s, and an instance "
            f"takes {max_rps:.1f}: it is overloaded before another one is asked for"
        )
    elif target_rps < 0.2 * max_rps:
        found.append(
            f"the target of {scaling.target_invocations:g} a minute is {target_rps:.2f} requests/s, "
            f"{target_rps / max_rps:.0%} of what an instance takes: most of each instance is paid for and idle"
        )
    if reserved_concurrency:
        function_rps = reserved_concurrency / _counted_seconds(latency_seconds)
        calls = f"{reserved_concurrency} invocations of {_counted_seconds(latency_seconds) * 1000:.0f} ms"
        endpoint_rps = scaling.max_instances * max_rps
        scaled_out_rps = (scaling.max_instances - 1) * target_rps
        if function_rps > endpoint_rps:
            found.append(
                f"{calls} make {function_rps:.0f} requests/s, "
                f"and {scaling.max_instances} instances take {endpoint_rps:.0f}: the endpoint refuses the rest"
            )
        if function_rps < scaled_out_rps:
            found.append(
                f"{calls} make {function_rps:.1f} requests/s at most: "
                f"instance {scaling.max_instances} is never asked for"
            )
        one_instance_rps = scaling.min_instances * max_rps
        if function_rps > one_instance_rps and function_rps <= endpoint_rps:
            found.append(
                f"the function can send {function_rps:.0f} requests/s at once, and the first {scaling.min_instances} "
                f"instance(s) take {one_instance_rps:.0f}: for the minutes in which others start, the rest is refused"
            )
    return found
