"""TrainingJobEarlyStoppingType Auto: trials that will hardly be among the good ones are stopped.

Source: https://docs.aws.amazon.com/sagemaker/latest/dg/automatic-model-tuning-early-stopping.html
"""

from collections.abc import Sequence
from statistics import fmean, median

FEWEST_PREDECESSORS = 3
"""How many trials must have completed before one is stopped; AWS documents no number."""


def is_hopeless(value: float, epoch: int, predecessors: Sequence[Sequence[float]], kind: str) -> bool:
    """Return whether a trial's value is worse than the median of its predecessors' running averages at that epoch.

    Args:
        value: the objective after `epoch` epochs (from 1).
        epoch: how many values the trial has printed.
        predecessors: the values of the trials that have completed; those that ended earlier do not count.
        kind: Minimize or Maximize.
    """
    averages = [fmean(values[:epoch]) for values in predecessors if len(values) >= epoch]
    if len(averages) < FEWEST_PREDECESSORS:
        return False
    middle = median(averages)
    return value > middle if kind == "Minimize" else value < middle
