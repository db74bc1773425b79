"""Sweep: delete what a run made, then ask AWS what is left of it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from opslib.aws.failures import masked
from opslib.aws.inventory import KINDS, UNKNOWN, find_by_tag
from opslib.aws.ledger import Run, open_run
from opslib.aws.session import address
from opslib.aws.training import stop_training
from opslib.aws.tuning import stop_tuning
from opslib.errors import ConfigurationError, OpslibError

__all__ = ["KINDS", "Found", "SweepReport", "find_leftovers", "sweep"]

_STOPS = {"tuning-job": stop_tuning, "training-job": stop_training}
"""What takes minutes to stop is asked to do so before the first is waited for."""

_RANK = {kind: rank for rank, kind in enumerate(KINDS)}


@dataclass(frozen=True, order=True)
class Found:
    """One resource: its kind (a key of `KINDS`) and how AWS names it."""

    kind: str
    identifier: str

    def __str__(self) -> str:
        """Return it for people, without an account id."""
        return f"{self.kind} {masked(self.identifier)}"


@dataclass(frozen=True)
class SweepReport:
    """What a sweep deleted, what AWS says is left, and what went wrong on the way."""

    run_id: str
    deleted: tuple[Found, ...]
    leftovers: tuple[Found, ...]
    failures: tuple[str, ...]

    def __str__(self) -> str:
        """Return a few lines for people."""
        lines = [f"run {self.run_id}: {len(self.deleted)} deleted, {len(self.leftovers)} left"]
        lines += [f"  deleted  {found}" for found in self.deleted]
        lines += [f"  LEFT     {found}" for found in self.leftovers]
        lines += [f"  trouble  {failure}" for failure in self.failures]
        return "\n".join(lines)


def sweep(run: Run | str, home: Path = Path("runs")) -> SweepReport:
    """Delete everything that a run made, then ask AWS what is left.

    Goes by the run's ledger and by what AWS finds by name and tag, so it works without the ledger, too. Running jobs
    are asked to stop first. What cannot be deleted is reported, and does not keep the rest from being deleted;
    sweeping again is harmless.

    Raises:
        ConfigurationError: the run id is not one, or the run's things are in another region, or in another rehearsal.
    """
    run = open_run(run, home) if isinstance(run, str) else run
    _require_same_aws(run)
    failures: list[str] = []
    doomed = _order([Found(resource.kind, resource.identifier) for resource in run.resources()], _search(run, failures))
    for found in doomed:
        if stop := _STOPS.get(found.kind):
            _try(lambda stop=stop, name=found.identifier: stop(name), failures)
    there = [found for found in doomed if _is_there(found, failures)]
    for found in there:
        if found.kind in KINDS:
            _try(lambda found=found: KINDS[found.kind].delete(found.identifier), failures)
    leftovers = find_leftovers(run, failures)
    deleted = tuple(found for found in there if found not in leftovers)
    return SweepReport(run.run_id, deleted, leftovers, tuple(dict.fromkeys(failures)))


def _require_same_aws(run: Run) -> None:
    """Refuse to look for things where they never were: nothing would be found, and all be taken for gone."""
    elsewhere = sorted({resource.where for resource in run.resources()} - {"", address()})
    if elsewhere:
        raise ConfigurationError(
            f"run {run.run_id} made things in {', '.join(elsewhere)}, but this is {address() or 'no region'}",
            hint="set AWS_DEFAULT_REGION as it was; enter or leave the rehearsal (what one held is gone when it ends)",
        )


def find_leftovers(run: Run, failures: list[str] | None = None) -> tuple[Found, ...]:
    """Ask AWS what there is of a run, by ledger, name and tag.

    Args:
        run: The run.
        failures: Takes what AWS refused to tell. What cannot be looked at counts as there.
    """
    failures = [] if failures is None else failures
    recorded = [Found(resource.kind, resource.identifier) for resource in run.resources()]
    return tuple(found for found in _order(recorded, _search(run, failures)) if _is_there(found, failures))


def _order(recorded: list[Found], searched: list[Found]) -> list[Found]:
    """Return each resource once, in the order of deletion: by kind, and the newest of a kind first."""
    newest_first = dict.fromkeys([*searched, *reversed(recorded)])
    return sorted(newest_first, key=lambda found: _RANK.get(found.kind, len(_RANK)))


def _search(run: Run, failures: list[str]) -> list[Found]:
    found: list[Found] = []
    for kind, handler in KINDS.items():
        _try(
            lambda kind=kind, handler=handler: found.extend(Found(kind, n) for n in handler.find(run.name_prefix)),
            failures,
        )
    _try(lambda: found.extend(Found(*pair) for pair in find_by_tag(run.run_id)), failures)
    return found


def _is_there(found: Found, failures: list[str]) -> bool:
    if found.kind == UNKNOWN or found.kind not in KINDS:
        return True
    answers: list[bool] = []
    _try(lambda: answers.append(KINDS[found.kind].exists(found.identifier)), failures)
    return answers[0] if answers else True


def _try(step: Callable[[], object], failures: list[str]) -> None:
    """Take one step; an error is written down, and the sweep goes on."""
    try:
        step()
    except OpslibError as error:
        failures.append(error.message)
