"""Traffic and what follows from it as figures: plans side by side."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from opslib.planning import PERIOD_SECONDS, InstanceCapacity, Plan

TRAFFIC = "#8a94a6"
POLICIES = ("#0b6e99", "#c8553d", "#5b8c5a", "#8d6a9f", "#b8860b")
"""One colour a policy, in the order in which they are given; then from the first again."""


def plan_comparison(plans: Mapping[str, Plan], capacity: InstanceCapacity) -> Figure:
    """Draw plans of the same traffic: above the requests a second and what the instances take, below the instances.

    Args:
        plans: by the name of the policy.
        capacity: of one instance, as in the plans.
    """
    figure, (above, below) = plt.subplots(2, 1, figsize=(10, 5.2), sharex=True, layout="constrained")
    first = next(iter(plans.values()))
    hours = [(time - first.times[0]) / 3600 for time in first.times]
    above.fill_between(
        hours, [one / PERIOD_SECONDS for one in first.requests], color=TRAFFIC, alpha=0.35, label="traffic"
    )
    for number, (name, planned) in enumerate(plans.items()):
        colour = POLICIES[number % len(POLICIES)]
        taken = [count * capacity.max_rps for count in planned.instances]
        missed = f"{name}: {_share(planned)} over capacity"
        above.step(hours, taken, where="post", color=colour, linewidth=1.2, label=missed)
        said = f"{name}: {planned.instance_hours:.1f} h, ${planned.dollars:.2f}"
        below.step(hours, planned.instances, where="post", color=colour, linewidth=1.6, label=said)
    above.set(ylabel="requests/s", title="traffic, and what the instances in service take")
    below.set(ylabel="instances", xlabel="hours")
    below.yaxis.get_major_locator().set_params(integer=True)
    for axes in (above, below):
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False, fontsize="small")
        axes.spines[["top", "right"]].set_visible(False)
    plt.close(figure)  # otherwise the inline backend would show it a second time
    return figure


def _share(planned: Plan) -> str:
    return f"{100 * planned.share_over_capacity:.1f} %"
