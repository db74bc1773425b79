"""What a tuning job tries next, by strategy; see the package's docstring for how they differ from AWS's."""

import itertools
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import optuna

from opslib.rehearsal.tuning.ranges import Range

_RANDOM_STARTS = 4
_REDUCTION = 3


@dataclass(frozen=True)
class Proposal:
    """Values to try, as texts by name; `ticket` is the strategy's own."""

    values: Mapping[str, str]
    ticket: Any = None


class Strategy(Protocol):
    """Proposes values, and learns what became of them."""

    def propose(self) -> Proposal | None:
        """Return what to try next; None when there is nothing more to try."""

    def is_to_stop(self, proposal: Proposal, value: float, resource: int) -> bool:
        """Note the value after `resource` epochs, and return whether the trial is to be stopped."""

    def tell(self, proposal: Proposal, value: float | None, *, was_stopped: bool) -> None:
        """Learn the trial's objective, None when it has none."""

    def learn(self, values: Mapping[str, str], value: float) -> None:
        """Learn what an earlier tuning job found."""


class GridStrategy:
    """Every combination once, in the order of the request."""

    def __init__(self, ranges: Sequence[Range]) -> None:
        names = [one.name for one in ranges]
        self._rest = (
            dict(zip(names, values, strict=True))
            for values in itertools.product(*(one.choices or () for one in ranges))
        )

    def propose(self) -> Proposal | None:
        """Return the next combination."""
        values = next(self._rest, None)
        return None if values is None else Proposal(values)

    def is_to_stop(self, proposal: Proposal, value: float, resource: int) -> bool:  # noqa: ARG002 - the protocol's
        """Let every trial run."""
        return False

    def tell(self, proposal: Proposal, value: float | None, *, was_stopped: bool) -> None:
        """Learn nothing: the order is fixed."""

    def learn(self, values: Mapping[str, str], value: float) -> None:
        """Learn nothing: the order is fixed."""


class StudyStrategy:
    """Values that a study of Optuna asks for; used by one thread."""

    def __init__(
        self,
        ranges: Sequence[Range],
        sampler: optuna.samplers.BaseSampler,
        pruner: optuna.pruners.BasePruner,
        kind: str,
    ) -> None:
        """Build it; `kind` is Minimize or Maximize."""
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._ranges = {one.name: one for one in ranges}
        self._distributions = {one.name: one.distribution for one in ranges}
        # Hyperband draws a trial's bracket by the study's name.
        self._study = optuna.create_study(
            sampler=sampler, pruner=pruner, study_name="tuning", direction=kind.lower()
        )  # fmt: skip

    def propose(self) -> Proposal | None:
        """Return what the sampler asks for."""
        trial = self._study.ask(self._distributions)
        return Proposal({name: self._ranges[name].text(value) for name, value in trial.params.items()}, trial)

    def is_to_stop(self, proposal: Proposal, value: float, resource: int) -> bool:
        """Ask the pruner."""
        proposal.ticket.report(value, resource)
        return proposal.ticket.should_prune()

    def tell(self, proposal: Proposal, value: float | None, *, was_stopped: bool) -> None:
        """Tell the study; what a pruner stopped counts as such."""
        if value is None:
            self._study.tell(proposal.ticket, state=optuna.trial.TrialState.FAIL)
        elif was_stopped and not isinstance(self._study.pruner, optuna.pruners.NopPruner):
            self._study.tell(proposal.ticket, state=optuna.trial.TrialState.PRUNED)
        else:
            self._study.tell(proposal.ticket, value)

    def learn(self, values: Mapping[str, str], value: float) -> None:
        """Add a finished trial whose values all lie within the ranges."""
        found = {name: one.searched(values[name]) for name, one in self._ranges.items() if name in values}
        if len(found) == len(self._ranges) and all(searched is not None for searched in found.values()):
            trial = optuna.trial.create_trial(params=found, distributions=self._distributions, value=value)
            self._study.add_trial(trial)


def build_strategy(
    name: str, ranges: Sequence[Range], kind: str, seed: int | None, resources: tuple[int, int]
) -> Strategy:
    """Return a strategy.

    Args:
        name: Bayesian, Random, Hyperband or Grid.
        ranges: what to search.
        kind: Minimize or Maximize.
        seed: makes the proposals repeatable, as far as the trials end in the same order.
        resources: Hyperband's least and most epochs.
    """
    if name == "Grid":
        return GridStrategy(ranges)
    pruner: optuna.pruners.BasePruner = optuna.pruners.NopPruner()
    sampler: optuna.samplers.BaseSampler = optuna.samplers.RandomSampler(seed)
    if name == "Hyperband":
        least, most = resources
        pruner = optuna.pruners.HyperbandPruner(min_resource=least, max_resource=most, reduction_factor=_REDUCTION)
    if name == "Bayesian":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = optuna.samplers.TPESampler(
                seed=seed, n_startup_trials=_RANDOM_STARTS, multivariate=True, constant_liar=True
            )
    return StudyStrategy(ranges, sampler, pruner, kind)
