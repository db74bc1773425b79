"""Traffic and what follows from it as figures: plans side by side, a scaling endpoint, latencies."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from opslib.errors import ConfigurationError
from opslib.planning import PERIOD_SECONDS, InstanceCapacity, Plan

if TYPE_CHECKING:
    from opslib.aws.load import LoadReport

TRAFFIC = "#8a94a6"
_SHORT_SECONDS = 2 * 3600
"""Up to which time is drawn in minutes."""
POLICIES = ("#0b6e99", "#c8553d", "#5b8c5a", "#8d6a9f", "#b8860b")
"""One colour a policy, in the order in which they are given; then from the first again."""


def plan_comparison(plans: Mapping[str, Plan], capacity: InstanceCapacity) -> Figure:
    """Draw plans of the same traffic: above the requests a second and what the instances take, below the instances.

    Args:
        plans: by the name of the policy.
        capacity: of one instance, as in the plans.

    Raises:
        ConfigurationError: there is no plan, or they are of different times.
    """
    if not plans:
        raise ConfigurationError("there is no plan to draw", hint='pass them by name: {"reference": ...}')
    first = next(iter(plans.values()))
    if any(planned.times != first.times for planned in plans.values()):
        raise ConfigurationError("the plans are of different times", hint="plan each policy for the same traffic")
    figure, (above, below) = plt.subplots(2, 1, figsize=(11, 5.2), sharex=True, layout="constrained")
    whole = first.times[-1] + PERIOD_SECONDS - first.times[0]
    unit, unit_seconds = ("hours", 3600) if whole > _SHORT_SECONDS else ("minutes", 60)
    times = [(time - first.times[0]) / unit_seconds for time in (*first.times, first.times[0] + whole)]
    rates = [one / PERIOD_SECONDS for one in first.requests]
    above.stairs(rates, times, fill=True, color=TRAFFIC, alpha=0.35, label="traffic")
    for number, (name, planned) in enumerate(plans.items()):
        # The first line is the widest: plans that are the same are seen beneath one another.
        style = {"color": POLICIES[number % len(POLICIES)], "linewidth": 1.2 + len(plans) - 1 - number}
        taken = [count * capacity.max_rps for count in planned.instances]
        missed = f"{name}: {_share(planned)} over capacity"
        above.stairs(taken, times, baseline=None, label=missed, **style)
        price = f", ${planned.dollars:.2f}" if planned.dollars else ""
        said = f"{name}: {planned.instance_hours:.1f} instance hours{price}"
        below.stairs(planned.instances, times, baseline=None, label=said, **style)
    above.set(ylabel="requests/s", title="traffic, and what the instances in service take")
    below.set(ylabel="instances", xlabel=unit)
    below.yaxis.get_major_locator().set_params(integer=True)
    for axes in (above, below):
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False, fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
        axes.spines[["top", "right"]].set_visible(False)
    plt.close(figure)  # otherwise the inline backend would show it a second time
    return figure


def scaling_story(
    report: "LoadReport", looks: Sequence[tuple[datetime, int, int]], planned: Plan, *, begin: datetime, speed: float
) -> Figure:
    """Draw what came, how many instances there were, and how long answers took, in minutes of CloudWatch's clock.

    Args:
        report: of the load.
        looks: time, instances in service, instances wanted (`scaling.InstanceWatch.looks`).
        planned: what the planner says of the same traffic.
        begin: CloudWatch's time when the load began.
        speed: how many of its seconds pass in one of the wall, in which the load was sent; 1 on AWS.
    """
    figure, (above, middle, below) = plt.subplots(3, 1, figsize=(10, 7), sharex=True, layout="constrained")
    minutes = report.due * speed / 60
    width = max(1.0, report.plan.seconds * speed / 60 / 60)
    edges = np.arange(0, minutes.max() + width, width)
    counts, _ = np.histogram(minutes, edges)
    above.stairs(counts / (width * 60 / speed), edges, fill=True, color=TRAFFIC, alpha=0.4)
    above.set(ylabel="requests/s", title=f"{report.requests:,} requests, {report.success_rate:.2%} answered")
    times = [(moment - begin).total_seconds() / 60 for moment, *_ in looks]
    middle.step(times, [count for _, count, _ in looks], where="post", color=POLICIES[0], label="in service")
    middle.step(times, [count for *_, count in looks], where="post", color=POLICIES[1], linestyle=":", label="wanted")
    foreseen = [(time - planned.times[0]) / 60 for time in planned.times]
    middle.step(foreseen, planned.instances, where="post", color=POLICIES[2], linewidth=1, label="planned")
    middle.set(ylabel="instances")
    middle.yaxis.get_major_locator().set_params(integer=True)
    middle.legend(frameon=False, fontsize="small")
    below.plot(minutes, report.latencies_ms, ".", color=POLICIES[0], markersize=2, alpha=0.4)
    below.set(ylabel="latency in ms", yscale="log", xlabel="minutes of CloudWatch's clock")
    for axes in (above, middle, below):
        axes.spines[["top", "right"]].set_visible(False)
    middle.set(ylim=(0, None), xlim=(0, max(times[-1], minutes.max()) + 1))
    plt.close(figure)  # otherwise the inline backend would show it a second time
    return figure


def load_histogram(reports: "Mapping[str, LoadReport]") -> Figure:
    """Draw how long answers took, each load by its name, on a logarithmic scale; what was refused is not drawn."""
    figure, axes = plt.subplots(figsize=(10, 3.2), layout="constrained")
    latencies = [report.answered_ms for report in reports.values()]
    whole = np.concatenate([*latencies, [1.0]])  # a load of which nothing was answered has none
    edges = np.geomspace(max(0.1, whole.min()), whole.max() * 1.01, 60)
    for number, (name, report) in enumerate(reports.items()):
        label = f"{name}: p50 {report.p50_ms:.0f} ms, p95 {report.p95_ms:.0f} ms, {report.success_rate:.1%} answered"
        axes.hist(report.answered_ms, edges, color=POLICIES[number % len(POLICIES)], alpha=0.5, label=label)
    axes.set(xscale="log", xlabel="latency in ms, from the moment at which a request was due", ylabel="requests")
    axes.legend(frameon=False, fontsize="small")
    axes.spines[["top", "right"]].set_visible(False)
    plt.close(figure)  # otherwise the inline backend would show it a second time
    return figure


def _share(planned: Plan) -> str:
    return f"{100 * planned.share_over_capacity:.1f} %"
