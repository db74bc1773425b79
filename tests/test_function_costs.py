"""What a function costs and how often it starts cold, against figures that are known by hand."""

import math

import pytest

from opslib.errors import ConfigurationError
from opslib.function_costs import FunctionTimes, compare_functions, estimate_cost, lost_share
from opslib.specs import FunctionSpec
from opslib.traffic import Traffic

TIMES = FunctionTimes(warm_seconds=0.1, init_seconds=0.5)
HOUR = Traffic((0.0, 3600.0), (10.0,))


def test_erlangs_formula_at_known_points():
    assert lost_share(1.0, 1) == pytest.approx(0.5)
    assert lost_share(2.0, 2) == pytest.approx(0.4)
    assert lost_share(5.0, 10) == pytest.approx(0.0184, abs=1e-4)  # of the published tables
    assert (lost_share(0.0, 3), lost_share(3.0, 0)) == (0.0, 1.0)


def test_an_hour_by_hand():
    cost = estimate_cost(HOUR, FunctionSpec(memory_mb=1024), TIMES)
    starts = math.ceil(cost.cold_starts)
    assert (cost.requests, cost.throttled, cost.spilled, cost.idle_dollars) == (36000, pytest.approx(0), 0, 0)
    assert 1 <= starts <= 5  # one runs at a time on average
    by_hand = 36000 * 0.2e-6 + (3600 + cost.cold_starts * 0.5) * 0.0000166667
    assert cost.dollars == pytest.approx(by_hand)


def test_what_is_provisioned_is_paid_for_while_it_is_idle():
    nothing = Traffic((0.0, 3600.0), (0.0,))
    cost = estimate_cost(nothing, FunctionSpec(memory_mb=1024, provisioned_concurrency=10), TIMES)
    assert cost.dollars == cost.idle_dollars == pytest.approx(3600 * 10 * 0.0000041667)
    assert cost.cold_starts == 0


def test_provisioning_takes_the_cold_starts_away_and_a_reservation_refuses():
    day = Traffic.day(100.0)
    table = compare_functions(
        day,
        {
            "on demand": FunctionSpec(),
            "reserved 10": FunctionSpec(reserved_concurrency=10),
            "provisioned 30": FunctionSpec(provisioned_concurrency=30),
        },
        TIMES,
    )
    free, reserved, kept = table.costs.values()
    assert free.cold_starts > 10 > kept.cold_starts
    assert free.throttled == pytest.approx(0, abs=1)
    assert reserved.throttled / reserved.requests > 0.05
    assert reserved.dollars < free.dollars < kept.dollars
    assert "provisioned 30" in table._repr_html_()
    assert "provisioned 30" in str(table)


def test_what_spills_over_needs_an_environment_that_starts_cold():
    hour = Traffic((0.0, 3600.0), (5.0,))
    cost = estimate_cost(hour, FunctionSpec(provisioned_concurrency=5), FunctionTimes(0.2, 1.5))
    assert cost.spilled > 10
    assert cost.cold_starts >= 1
    rarely = estimate_cost(Traffic((0.0, 60.0), (0.5,)), FunctionSpec(provisioned_concurrency=5), TIMES)
    assert rarely.cold_starts <= rarely.spilled < 1


def test_short_invocations_are_throttled_by_their_rate():
    times = FunctionTimes(warm_seconds=0.001, init_seconds=0.5)
    cost = estimate_cost(Traffic((0.0, 60.0), (40.0,)), FunctionSpec(reserved_concurrency=2), times)
    assert cost.throttled / cost.requests == pytest.approx(0.5)  # ten a second for each of the two


def test_rare_calls_start_cold():
    rare = Traffic((0.0, 86400.0), (1 / 3600,))
    cost = estimate_cost(rare, FunctionSpec(), TIMES)
    assert 0.8 * cost.requests < cost.cold_starts <= cost.requests


def test_what_is_no_time_or_no_configuration():
    with pytest.raises(ConfigurationError):
        FunctionTimes(0.0, 1.0)
    with pytest.raises(ConfigurationError):
        compare_functions(HOUR, {}, TIMES)
