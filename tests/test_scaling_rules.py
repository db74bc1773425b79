"""The rules of scaling: what holds for all loads, and AWS's own examples."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opslib import scaling_rules as rules
from opslib.scaling_rules import Bounds, Cooldowns, Ring, Step, StepScaling, TargetTracking, decide

settings.register_profile("rules", max_examples=60, deadline=None, database=None, derandomize=True)
settings.load_profile("rules")

LOADS = st.floats(0, 1e6)
TARGETS = st.floats(0.1, 1e4)
CAPACITIES = st.integers(1, 100)
BOUNDS = st.tuples(CAPACITIES, CAPACITIES).map(lambda pair: Bounds(min(pair), max(pair)))
TIMES = st.floats(0, 1e5)


@given(TARGETS, LOADS, CAPACITIES, BOUNDS, st.booleans())
def test_a_decision_stays_within_the_bounds(target, value, capacity, bounds, is_high):
    start = bounds.around(capacity)
    ring = Ring(TargetTracking(target), value, is_high)
    assert bounds.minimum <= decide([ring], start, bounds, Cooldowns(), 0).capacity <= bounds.maximum


@given(TARGETS, LOADS, LOADS, CAPACITIES, st.booleans())
def test_more_load_never_asks_for_less(target, one, other, capacity, is_high):
    less, more = sorted((one, other))
    policy, bounds = TargetTracking(target), Bounds(1, 10**9)
    wanted = [decide([Ring(policy, load, is_high)], capacity, bounds, Cooldowns(), 0).capacity for load in (less, more)]
    assert wanted[0] <= wanted[1]


@given(TARGETS, LOADS, CAPACITIES)
def test_what_is_asked_for_is_the_least_that_meets_the_target(target, value, capacity):
    wanted = TargetTracking(target).next_capacity(capacity, value)
    assert capacity * value <= wanted * target * (1 + 1e-6)
    assert wanted == 0 or capacity * value >= (wanted - 1) * target * (1 - 1e-6)


@given(TARGETS, LOADS, CAPACITIES, TIMES, st.floats(0.1, 600), st.floats(0, 1200))
def test_nothing_scales_in_within_its_cooldown(target, value, capacity, ended, cooldown, later):
    cooldowns = Cooldowns().after(capacity + 1, capacity, cooldown, ended)
    policy, bounds, at = TargetTracking(target), Bounds(1, 1000), ended + later
    decision = decide([Ring(policy, value, is_high=False)], capacity, bounds, cooldowns, at)
    if at < ended + cooldown:
        assert decision.capacity == capacity


@given(TARGETS, st.lists(st.tuples(LOADS, st.booleans()), min_size=1, max_size=4), CAPACITIES)
def test_of_several_policies_the_largest_wins(target, loads, capacity):
    rings = [Ring(TargetTracking(target), load, is_high) for load, is_high in loads]
    bounds = Bounds(1, 10**9)
    alone = [decide([ring], capacity, bounds, Cooldowns(), 0).capacity for ring in rings]
    assert decide(rings, capacity, bounds, Cooldowns(), 0).capacity == max(alone)


@given(st.lists(st.one_of(st.none(), LOADS), max_size=20), TARGETS)
def test_an_alarm_needs_all_of_its_datapoints(values, target):
    policy = TargetTracking(target)
    for alarm in (policy.high_alarm, policy.low_alarm):
        if alarm.rings(values):
            last = values[-alarm.datapoints :]
            assert len(last) == alarm.datapoints
            assert None not in last
            assert min(last) > target if alarm.is_high else max(last) < 0.9 * target
    assert not (policy.high_alarm.rings(values) and policy.low_alarm.rings(values))


def test_in_the_cooldown_of_a_scale_out_what_it_added_is_part_of_the_next():
    # The example of step-scaling-policy-overview.html: 2 were added, 3 are asked for now, so 1 is added.
    cooldowns, bounds = Cooldowns().after(10, 12, 300, at=0), Bounds(1, 100)
    again, more = (Ring(StepScaling((Step(by),)), 5.0) for by in (2, 3))
    assert decide([again], 12, bounds, cooldowns, 100) == rules.Decision(12, rules.COOLING_DOWN, again)
    assert decide([more], 12, bounds, cooldowns, 100).capacity == 13
    assert decide([more], 12, bounds, cooldowns, 300).capacity == 15


def test_a_scale_out_ends_the_cooldown_of_a_scale_in():
    resting = Cooldowns().after(5, 4, 300, at=0)
    assert resting.in_until == 300
    out = decide([Ring(TargetTracking(10), 20, is_high=True)], 4, Bounds(1, 10), resting, 10)
    assert out.capacity == 8
    assert resting.after(4, 8, 60, at=10).in_until == -math.inf


@pytest.mark.parametrize(
    ("capacity", "percent", "least", "expected"),
    [(10, 20, 0, 12), (10, 5, 0, 11), (10, -25, 0, 8), (10, -5, 0, 9), (4, 25, 2, 6), (3, -50, 0, 2), (10, 0, 0, 10)],
)
def test_percentages_are_rounded_as_aws_does(capacity, percent, least, expected):
    policy = StepScaling((Step(percent),), "PercentChangeInCapacity", least_adjustment=least)
    assert policy.next_capacity(capacity, 1.0) == expected


def test_a_bound_of_a_step_belongs_to_the_step_farther_from_the_threshold():
    policy = StepScaling((Step(1, 0, 10), Step(3, 10), Step(-1, -10, 0), Step(-3, upper=-10)))
    assert [policy.next_capacity(10, breach) for breach in (0, 9.9, 10, -9.9, -10)] == [11, 11, 13, 9, 7]
    assert StepScaling((Step(2, 10, 20),)).next_capacity(10, 5) == 10


def test_target_tracking_scales_in_only_when_all_its_policies_want_to():
    one, other, passive = TargetTracking(10), TargetTracking(20), TargetTracking(30, disable_scale_in=True)
    low = [Ring(one, 1, is_high=False)]
    assert rules.agreed(low, [one, other]) == []
    assert rules.agreed(low, [one, passive]) == low


def test_why_a_capacity_stays():
    policy, bounds = TargetTracking(10), Bounds(2, 4)
    reasons = {
        (4, 99, True): rules.AT_MAXIMUM,
        (2, 1, False): rules.AT_MINIMUM,
        (3, 8.5, False): rules.FLAPPING,
        (3, 5, True): rules.AT_DESIRED,
    }
    for (capacity, value, is_high), reason in reasons.items():
        assert decide([Ring(policy, value, is_high)], capacity, bounds, Cooldowns(), 0).reason == reason
