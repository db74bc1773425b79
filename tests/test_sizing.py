"""From what one instance takes to the numbers of a deployment."""

import pytest

from opslib import sizing
from opslib.errors import ConfigurationError
from opslib.specs import ScalingSpec


def test_the_target_is_half_of_what_an_instance_takes():
    proposed = sizing.propose(40, latency_seconds=0.1, peak_rps=90, usual_rps=45)
    assert proposed.scaling == ScalingSpec(2, 5, 1200)
    assert proposed.reserved_concurrency == 9  # 90 requests/s x 0.1 s
    assert len(proposed.reasons) == 4
    assert not sizing.warnings(
        ScalingSpec(5, 5, 1200), max_rps=40, latency_seconds=0.1, reserved_concurrency=proposed.reserved_concurrency + 8
    )


@pytest.mark.parametrize("max_rps", [0.7, 4.9, 17.3, 141.1])
def test_three_halves_of_an_instance_are_three_at_half_of_it(max_rps):
    assert (
        sizing.propose(max_rps, latency_seconds=0.1, peak_rps=max_rps * 1.1 + max_rps * 0.4).scaling.max_instances == 3
    )


def test_no_more_is_reserved_than_the_endpoint_can_answer():
    proposed = sizing.propose(10, latency_seconds=1, peak_rps=12, function_seconds=0.5)
    assert proposed.scaling.max_instances == 3
    assert proposed.reserved_concurrency == 18
    assert proposed.reserved_concurrency <= proposed.scaling.max_instances * 10 * 1.5


def test_lambda_answers_ten_a_second_for_each_unit():
    proposed = sizing.propose(400, latency_seconds=0.01, peak_rps=200)
    assert proposed.reserved_concurrency == 20  # and not 2, by the length of the invocations alone
    assert "Lambda answers ten a second for each" in proposed.reasons[-1]
    told = sizing.warnings(ScalingSpec(1, 3, 12000), max_rps=400, latency_seconds=0.01, reserved_concurrency=10)
    assert any("make 100.0 requests/s at most" in one for one in told)


@pytest.mark.parametrize("numbers", [(0, 0.1, 1), (1, 0, 1), (1, 0.1, 0), (float("nan"), 0.1, 1)])
def test_nonsense_is_refused(numbers):
    max_rps, latency, peak = numbers
    with pytest.raises(ConfigurationError, match="positive"):
        sizing.propose(max_rps, latency_seconds=latency, peak_rps=peak)


@pytest.mark.parametrize("number", [-1, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["usual_rps", "function_seconds"])
def test_what_may_be_nothing_is_not_less(name, number):
    with pytest.raises(ConfigurationError, match=name):
        sizing.propose(20, latency_seconds=0.1, peak_rps=60, **{name: number})


def test_the_references_numbers_do_not_fit():
    reference = ScalingSpec(1, 5, 30)
    told = sizing.warnings(reference, max_rps=30, latency_seconds=0.05, reserved_concurrency=10)
    assert any("idle" in one for one in told)
    assert any("the rest is refused" in one for one in told)


def test_a_target_above_what_an_instance_takes_is_told():
    (told, *_) = sizing.warnings(ScalingSpec(1, 2, 600), max_rps=5, latency_seconds=0.1, reserved_concurrency=None)
    assert "overloaded" in told


def test_a_function_that_never_needs_the_last_instance_is_told():
    told = sizing.warnings(ScalingSpec(1, 5, 1200), max_rps=40, latency_seconds=0.5, reserved_concurrency=10)
    assert any("instance 5 is never asked for" in one for one in told)
