"""The ranges of a tuning job's hyperparameters, as AWS writes them and as Optuna searches them.

Source: https://docs.aws.amazon.com/sagemaker/latest/dg/automatic-model-tuning-define-ranges.html
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from opslib.rehearsal.calls import ServiceError

MAX_RANGES = 30
_WIDE = 1000.0
"""From this ratio of its ends on, a range with ScalingType Auto is searched logarithmically."""


@dataclass(frozen=True)
class Range:
    """A hyperparameter's range; `distribution` is what Optuna searches, `is_reversed` that it searches 1 - value."""

    name: str
    distribution: BaseDistribution
    is_reversed: bool = False

    def text(self, searched: Any) -> str:
        """Return the hyperparameter's text for a value of the distribution."""
        if isinstance(searched, float):
            return repr(1.0 - searched if self.is_reversed else searched)
        return str(searched)

    def searched(self, text: str) -> Any:
        """Return the distribution's value for a hyperparameter's text, or None when it is outside of the range."""
        if self.choices is not None:
            return text if text in self.choices else None
        try:
            number = int(text) if isinstance(self.distribution, IntDistribution) else float(text)
        except ValueError:
            return None
        number = 1.0 - number if self.is_reversed else number
        return number if self.distribution.low <= number <= self.distribution.high else None

    @property
    def choices(self) -> tuple[str, ...] | None:
        """The texts of a categorical hyperparameter; None for a number."""
        return self.distribution.choices if isinstance(self.distribution, CategoricalDistribution) else None

    @property
    def count(self) -> float:
        """How many values there are."""
        if isinstance(self.distribution, IntDistribution):
            return float(self.distribution.high - self.distribution.low + 1)
        return float(len(self.choices)) if self.choices is not None else float("inf")


def read_ranges(described: Mapping[str, Any]) -> list[Range]:
    """Return the ranges of a ParameterRanges structure.

    Raises:
        ServiceError: ValidationException, for what AWS would refuse, too.
    """
    ranges = [
        *(_integer(one) for one in described.get("IntegerParameterRanges", [])),
        *(_continuous(one) for one in described.get("ContinuousParameterRanges", [])),
        *(_categorical(one) for one in described.get("CategoricalParameterRanges", [])),
    ]
    names = [one.name for one in ranges]
    if not names or len(names) > MAX_RANGES:
        raise _refusal(
            f"A hyperparameter tuning job searches from 1 to {MAX_RANGES} hyperparameters, not {len(names)}."
        )
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise _refusal(f"Hyperparameters must be unique; given more than once: {twice}.")
    return ranges


def _refusal(message: str) -> ServiceError:
    return ServiceError("ValidationException", message)


def _integer(one: Mapping[str, Any]) -> Range:
    low, high = _ends(one, int)
    scaling = one.get("ScalingType", "Auto")
    if scaling == "ReverseLogarithmic":
        raise _refusal(f"ReverseLogarithmic scaling is not for integers: {one['Name']}.")
    if scaling == "Logarithmic" and low <= 0:
        raise _refusal(f"Logarithmic scaling needs a range of positive values: {one['Name']} begins at {low}.")
    is_log = scaling == "Logarithmic" or (scaling == "Auto" and low > 0 and high / low >= _WIDE)
    return Range(one["Name"], IntDistribution(low, high, log=is_log))


def _continuous(one: Mapping[str, Any]) -> Range:
    low, high = _ends(one, float)
    scaling = one.get("ScalingType", "Auto")
    if scaling == "ReverseLogarithmic":
        if low < 0 or high >= 1:
            raise _refusal(f"ReverseLogarithmic scaling needs a range within 0 <= x < 1: {one['Name']}.")
        return Range(one["Name"], FloatDistribution(1.0 - high, 1.0 - low, log=True), is_reversed=True)
    if scaling == "Logarithmic" and low <= 0:
        raise _refusal(f"Logarithmic scaling needs a range of positive values: {one['Name']} begins at {low}.")
    is_log = scaling == "Logarithmic" or (scaling == "Auto" and low > 0 and high / low >= _WIDE)
    return Range(one["Name"], FloatDistribution(low, high, log=is_log))


def _categorical(one: Mapping[str, Any]) -> Range:
    values = one["Values"]
    if len(set(values)) < len(values):
        raise _refusal(f"The values of a categorical hyperparameter must be unique: {one['Name']}.")
    return Range(one["Name"], CategoricalDistribution(list(values)))


def _ends(one: Mapping[str, Any], kind: type[int] | type[float]) -> tuple[Any, Any]:
    """Return a range's ends as numbers."""
    name = one["Name"]
    try:
        low, high = kind(one["MinValue"]), kind(one["MaxValue"])
    except ValueError as error:
        ends = f"[{one['MinValue']}, {one['MaxValue']}]"
        raise _refusal(f"The range of {name} is no range of numbers ({kind.__name__}): {ends}.") from error
    if not (isfinite(low) and isfinite(high) and low < high):
        raise _refusal(f"The minimum of {name} [{low}] must be less than its maximum [{high}].")
    return low, high


def combinations(ranges: list[Range]) -> float:
    """Return how many combinations of values there are; infinite with a continuous range."""
    total = 1.0
    for one in ranges:
        total *= one.count
    return total


def names_of(described: Mapping[str, Any]) -> Iterator[str]:
    """Yield the names in a ParameterRanges structure."""
    for ranges in described.values():
        yield from (one["Name"] for one in ranges)
