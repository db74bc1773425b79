"""The gate passes models that are of use, refuses those that guess, and names the evidence."""

import math

import pytest

from opslib import gate
from opslib.errors import ModelRefused

BREEDS = {
    "valid_photos": 266, "valid_loss": 1.8345, "valid_accuracy": 0.5075, "valid_ece": 0.0673,
    "valid_predicted_classes": 122, "valid_score_spread": 4.3265, "chance_loss": math.log(133),
    "chance_accuracy": 1 / 133,
}  # fmt: skip
"""hpo.py on the drawn sample: 133 breeds, 8 photos each."""

DIVERGED = BREEDS | {
    "valid_loss": 10.2511, "valid_accuracy": 0.0075, "valid_ece": 0.6184, "valid_predicted_classes": 1,
    "valid_score_spread": 0.0,
}  # fmt: skip
"""The same photos with a learning rate of 10."""

CLOTHES = {
    "valid_photos": 341, "valid_loss": 0.3138, "valid_accuracy": 0.8886, "valid_ece": 0.0416,
    "valid_predicted_classes": 10, "valid_score_spread": 3.3964, "chance_loss": math.log(10), "chance_accuracy": 0.1,
}  # fmt: skip
"""hpo.py on photos of ten kinds of clothes."""


def failed(metrics: dict) -> dict[str, str]:
    return {check.name: check.evidence for check in gate.judge(metrics).checks if not check.passed}


@pytest.mark.parametrize("metrics", [BREEDS, CLOTHES], ids=["133 breeds", "10 clothes"])
def test_models_of_use_pass(metrics: dict) -> None:
    gate.judge(metrics).raise_if_refused()


def test_learning_rate_of_10_is_refused_by_name_of_the_evidence() -> None:
    judgement = gate.judge(DIVERGED, "lr 10")
    assert not judgement.passed
    with pytest.raises(ModelRefused, match=r"valid_loss 10\.25 is above chance") as caught:
        judgement.raise_if_refused()
    assert "1 of 133 classes are ever answered" in caught.value.message
    assert "the output is constant" in caught.value.message
    assert "overrule_gate" in caught.value.hint


@pytest.mark.parametrize(
    ("check", "change"),
    [
        ("loss", {"valid_loss": 4.6}),
        ("loss", {"valid_loss": float("nan")}),
        ("loss", {"valid_loss": float("inf")}),
        ("accuracy", {"valid_accuracy": 0.06}),
        ("accuracy", {"valid_accuracy": float("nan")}),
        ("calibration", {"valid_ece": 0.4}),
        ("answers", {"valid_predicted_classes": 9}),
        ("scores", {"valid_score_spread": 0.01}),
        ("scores", {"valid_score_spread": float("nan")}),
        ("figures", {"valid_loss": None}),
        ("figures", {"valid_photos": float("nan")}),
        ("figures", {"valid_photos": "266"}),
        ("figures", {"chance_accuracy": 0}),
    ],
)
def test_each_check_refuses_alone(check: str, change: dict) -> None:
    assert list(failed(BREEDS | change)) == [check]


def test_figures_that_are_missing_are_named() -> None:
    assert (
        "valid_loss, valid_ece"
        in failed({k: v for k, v in BREEDS.items() if k not in {"valid_loss", "valid_ece"}})["figures"]
    )
    assert failed({})


@pytest.mark.parametrize("classes", [2, 3, 10, 133])
@pytest.mark.parametrize("photos", [12, 30, 266, 5000])
def test_guessing_is_refused_and_a_good_model_passes_however_few_the_photos(classes: int, photos: int) -> None:
    """Loss and calibration of a guesser are made as kind as they can be."""
    rest = {"valid_ece": 0.0, "valid_score_spread": 1.0, "valid_predicted_classes": min(classes, photos)}
    rest |= {"valid_photos": photos, "chance_accuracy": 1 / classes, "chance_loss": math.log(classes)}
    guess = {"valid_loss": 0.5 * math.log(classes), "valid_accuracy": round(photos / classes) / photos}
    assert "accuracy" in failed(rest | guess)
    assert not failed(
        rest | {"valid_loss": 0.3 * math.log(classes), "valid_accuracy": math.ceil(0.9 * photos) / photos}
    )


def test_so_few_photos_that_even_a_perfect_model_cannot_be_told_from_luck() -> None:
    three = {"valid_photos": 3, "valid_accuracy": 1.0, "valid_predicted_classes": 3, "chance_accuracy": 1 / 3}
    evidence = failed(BREEDS | three | {"valid_loss": 0.01, "chance_loss": math.log(3)})
    assert "too few to tell any model from luck" in evidence["accuracy"]


def test_luck_is_the_tail_of_the_binomial_distribution() -> None:
    def tail(hits: int) -> float:
        return sum(math.comb(15, k) * 0.2**k * 0.8 ** (15 - k) for k in range(hits, 16))

    hits = gate._hits_beyond_luck(15, 0.2)
    assert tail(hits) <= gate.LUCK < tail(hits - 1)


def test_several_judgements_are_one_table() -> None:
    table = gate.compare([gate.judge(BREEDS, "good"), gate.judge(DIVERGED, "<bad>")])
    assert [judgement.name for judgement in table.passed] == ["good"]
    head, good, bad = str(table).splitlines()
    assert head.split() == ["model", "loss", "accuracy", "calibration", "answers", "scores", "gate"]
    assert good.split() == ["good", "1.835", "50.7%", "6.7%", "122/133", "4.33", "passed"]
    assert "10.251 ✗" in bad
    assert "&lt;bad&gt;" in table._repr_html_()
    assert "1 of 2 passed" in table._repr_html_()
