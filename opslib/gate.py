"""The gate: a finished model is judged by its validation figures before it may be deployed.

Of 23 public copies of the reference project, 13 deployed a model that guesses, without noticing. What is judged is what
`hpo.py` writes as `metrics` into `model.json`, always of the validation photos: a model that was chosen by its test
photos would have no honest test left. Every limit is a constant below with the reason beside it.
"""

import html
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from opslib.errors import ModelRefused

LOSS_SHARE = 0.9
"""The largest validation loss, as a share of chance's (ln of the number of classes).

An untrained head starts at 1.0, and one that is trained with too large a step ends far above: both are stopped with
room to spare for noise. Models that are of use lie far below: 0.38 for 133 classes with 8 photos each, 0.14 for ten
classes.
"""

ACCURACY_SHARE = 0.15
"""How much of the way from chance to perfect the accuracy must have come.

A multiple of chance would ask the impossible of two classes (twice chance is perfect) and next to nothing of 133 (twice
chance is 1.5 %). The share asks 57.5 % of two classes, 23.5 % of ten, 15.6 % of 133.
"""

LUCK = 0.01
"""The highest probability with which a guesser may reach the accuracy by luck (binomial, one-sided).

This is what makes few validation photos fair and safe at once: with 15 photos of 5 classes it takes 8 hits, 53 %, not
the 32 % of the share alone.
"""

ECE_LIMIT = 0.2
"""The largest calibration error: how far, on average, the probability that is answered lies from the truth.

Beyond it, "90 % sure" is right less than 70 % of the time, and no threshold on the probability means anything. Models
of frozen features have 0.03 to 0.09.
"""

ECE_NOISE = 0.4
"""Allowance for few photos, times the root of bins per photo.

The mean of |hits - expected| in a bin of n photos is at most 0.8 x 0.5 / sqrt(n) by noise alone, so a perfectly
calibrated model shows up to 0.4 x sqrt(15 / photos) in 15 bins: 0.10 for 266 photos.
"""

ECE_BINS = 15

ANSWERED_SHARE = 0.25
"""The share of the classes that must be answered at least once (of the photos, when these are fewer).

One answer for every photo is a dead model; a handful for a hundred classes is a collapsed one.
"""

SPREAD_LIMIT = 0.05
"""The smallest standard deviation of a class's score over the photos, in nats.

A score that moves by less changes a probability by less than a twentieth of itself, whatever the photo. Models that are
of use have 2 to 6; the dead head that a learning rate of 10 leaves has exactly 0.
"""

NEEDED = (
    *("valid_loss", "valid_accuracy", "valid_photos", "valid_ece", "valid_predicted_classes", "valid_score_spread"),
    *("chance_loss", "chance_accuracy"),
)
"""The figures without which nothing can be judged."""


@dataclass(frozen=True)
class Check:
    """One question put to a model: its name, whether it passed, the figure, and the evidence as a sentence."""

    name: str
    passed: bool
    figure: str
    evidence: str


@dataclass(frozen=True)
class Judgement:
    """What the gate says of one model."""

    name: str
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether the model may be deployed: it passed every check."""
        return all(check.passed for check in self.checks)

    @property
    def verdict(self) -> str:
        """Return one word for it."""
        return "passed" if self.passed else "REFUSED"

    def __str__(self) -> str:
        """Return the verdict, and each check on a line of its own."""
        lines = [f"{self.name or 'the model'}: {self.verdict}"]
        return "\n".join([*lines, *(f"  {_mark(check)} {check.name}: {check.evidence}" for check in self.checks)])

    def _repr_html_(self) -> str:
        rows = [(_mark(check), check.name, check.evidence) for check in self.checks]
        return _table(f"{self.name or 'the model'}: {self.verdict}", ("", "check", "evidence"), rows)

    def raise_if_refused(self) -> None:
        """Raise ModelRefused unless the model passed.

        Raises:
            ModelRefused: it failed; the message holds the evidence of each check that failed.
        """
        if not self.passed:
            failed = "; ".join(f"{check.name}: {check.evidence}" for check in self.checks if not check.passed)
            raise ModelRefused(
                f"{self.name or 'the model'} failed the gate: {failed}",
                hint="train it anew (a lower learning rate, more epochs, better photos), or overrule_gate=True",
            )


@dataclass(frozen=True)
class Comparison:
    """Judgements side by side, as a table: `str` for a terminal, HTML in a notebook."""

    judgements: tuple[Judgement, ...]

    @property
    def passed(self) -> tuple[Judgement, ...]:
        """Those that may be deployed."""
        return tuple(judgement for judgement in self.judgements if judgement.passed)

    def _rows(self) -> list[tuple[str, ...]]:
        names = self._columns()[1:-1]
        rows = []
        for judgement in self.judgements:
            figures = {check.name: check.figure + ("" if check.passed else " ✗") for check in judgement.checks}
            rows.append((judgement.name, *(figures.get(name, "") for name in names), judgement.verdict))
        return rows

    def _columns(self) -> tuple[str, ...]:
        names = dict.fromkeys(check.name for judgement in self.judgements for check in judgement.checks)
        return ("model", *names, "gate")

    def __str__(self) -> str:
        """Return the table with columns in line."""
        rows = [self._columns(), *self._rows()]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
        )

    def _repr_html_(self) -> str:
        return _table(f"{len(self.passed)} of {len(self.judgements)} passed", self._columns(), self._rows())


def judge(metrics: Mapping[str, Any], name: str = "") -> Judgement:
    """Judge a model by the figures of its validation photos.

    Args:
        metrics: `metrics` of `model.json` or of `report.json`; `NEEDED` lists what is read.
        name: What to call the model, e.g. its job's name.
    """
    found = {needed: _number(metrics.get(needed)) for needed in NEEDED}
    missing = [needed for needed, value in found.items() if value is None or not _may_be(needed, value)]
    if missing:
        words = f"{', '.join(missing)} missing or no number: it cannot be judged"
        return Judgement(name, (Check("figures", False, "none", words),))
    figures = {needed: value for needed, value in found.items() if value is not None}
    checks = (_check_loss, _check_accuracy, _check_calibration, _check_answers, _check_scores)
    return Judgement(name, tuple(check(figures) for check in checks))


def compare(judgements: Iterable[Judgement]) -> Comparison:
    """Put judgements side by side, in their order."""
    return Comparison(tuple(judgements))


def _number(value: Any) -> float | None:
    """Return a number as a float, NaN and infinity among them; JSON's null, text and truth values are no numbers."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _may_be(name: str, value: float) -> bool:
    """Tell whether a figure can have that value; what a diverged model answers may be NaN or infinite."""
    bounds = {"valid_photos": (1, 1e12), "valid_predicted_classes": (0, 1e12), "chance_accuracy": (1e-9, 0.5)}
    return name not in bounds or bounds[name][0] <= value <= bounds[name][1]


def _check_loss(figures: Mapping[str, float]) -> Check:
    loss, chance = figures["valid_loss"], figures["chance_loss"]
    limit = LOSS_SHARE * chance
    if not math.isfinite(loss):
        evidence = f"valid_loss is {loss}: training diverged"
    elif loss > chance:
        evidence = f"valid_loss {loss:.2f} is above chance ({chance:.2f}): worse than guessing"
    else:
        evidence = f"valid_loss {loss:.2f} against chance's {chance:.2f}; at most {limit:.2f}"
    return Check("loss", loss <= limit, f"{loss:.3f}", evidence)


def _check_accuracy(figures: Mapping[str, float]) -> Check:
    accuracy, chance, photos = figures["valid_accuracy"], figures["chance_accuracy"], round(figures["valid_photos"])
    floor = max(chance + ACCURACY_SHARE * (1 - chance), _hits_beyond_luck(photos, chance) / photos)
    evidence = f"{accuracy:.1%} of {photos} photos right, chance {chance:.1%}; at least {floor:.1%}"
    if floor > 1:
        evidence += f": {photos} photos are too few to tell any model from luck"
    return Check("accuracy", accuracy >= floor - 1e-9, f"{accuracy:.1%}", evidence)


def _hits_beyond_luck(photos: int, chance: float) -> int:
    """Return the fewest hits that a guesser has with a probability of at most `LUCK`; `photos` + 1 if there are none.

    Of more than 10,000 photos luck reaches less than `ACCURACY_SHARE` asks, whatever chance is. The binomial
    distribution is summed from its upper end, in logarithms so that its terms do not overflow.
    """
    if photos > 10_000:
        return 0
    tail, hits = 0.0, photos + 1
    while hits > 0:
        count = hits - 1
        ways = math.lgamma(photos + 1) - math.lgamma(count + 1) - math.lgamma(photos - count + 1)
        tail += math.exp(ways + count * math.log(chance) + (photos - count) * math.log1p(-chance))
        if tail > LUCK:
            return hits
        hits = count
    return hits


def _check_calibration(figures: Mapping[str, float]) -> Check:
    ece, photos = figures["valid_ece"], figures["valid_photos"]
    limit = ECE_LIMIT + ECE_NOISE * math.sqrt(ECE_BINS / max(photos, 1))
    evidence = f"probabilities are off by {ece:.1%} (ECE); at most {min(limit, 1):.1%} with {photos:.0f} photos"
    return Check("calibration", ece <= limit, f"{ece:.1%}", evidence)


def _check_answers(figures: Mapping[str, float]) -> Check:
    answered, photos = round(figures["valid_predicted_classes"]), figures["valid_photos"]
    classes = round(1 / figures["chance_accuracy"])
    floor = max(2, math.ceil(ANSWERED_SHARE * min(classes, photos)))
    evidence = f"{answered} of {classes} classes are ever answered; at least {floor}"
    return Check("answers", answered >= floor, f"{answered}/{classes}", evidence)


def _check_scores(figures: Mapping[str, float]) -> Check:
    spread = figures["valid_score_spread"]
    constant = ": the output is constant" if spread < SPREAD_LIMIT else ""
    evidence = f"scores vary by {spread:.2f} nats from photo to photo{constant}; at least {SPREAD_LIMIT}"
    return Check("scores", spread >= SPREAD_LIMIT, f"{spread:.2f}", evidence)


def _mark(check: Check) -> str:
    return "✓" if check.passed else "✗"


def _table(title: str, columns: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = "".join(f"<th style='text-align:left'>{html.escape(name)}</th>" for name in columns)
    body = "".join(
        "<tr>" + "".join(f"<td style='text-align:left'>{html.escape(cell)}</td>" for cell in row) + "</tr>"
        for row in rows
    )
    return f"<b>{html.escape(title)}</b><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
