"""The planner, alone and against the rehearsal's scaling of the same traffic."""

import itertools
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opslib.errors import ConfigurationError
from opslib.planning import InstanceCapacity, Plan, Traffic, compare, plan
from opslib.specs import ScalingSpec
from opslib.traffic_plots import plan_comparison
from tests.rehearsal.scaling_site import ScalingSite

FEW = settings(max_examples=25, deadline=None, database=None, derandomize=True)
KNEE = InstanceCapacity(max_rps=20, dollars_per_hour=1.2, startup_seconds=100)
SPEC = ScalingSpec(max_instances=4, target_invocations=600)
"""Half of the knee, as sizing proposes: 20 requests/s x 0.5 x 60."""


def rehearse(traffic: Traffic, spec: ScalingSpec, startup_seconds: float) -> ScalingSite:
    """Scale the same traffic as the rehearsal does, its metric fed minute by minute."""
    site = ScalingSite(startup_seconds, count=spec.min_instances)
    site.call("RegisterScalableTarget", MinCapacity=spec.min_instances, MaxCapacity=spec.max_instances)
    cooldowns = {
        "ScaleOutCooldown": spec.scale_out_cooldown_seconds,
        "ScaleInCooldown": spec.scale_in_cooldown_seconds,
    }
    site.track(spec.target_invocations, **cooldowns)
    instances, origin = site.instances, site.clock.time()
    for minute in range(int(traffic.edges[-1] // 60)):
        start, end = origin + 60 * minute, origin + 60 * minute + 60
        cuts = [start, *([instances.ready_at] if start < instances.ready_at < end else []), end]
        value = 0.0
        for begin, until in itertools.pairwise(cuts):
            site.clock.seconds = begin
            site.extension.follow_up()
            value += traffic.requests_between(begin - origin, until - origin) / instances.in_service_at(begin)
        site.clock.seconds = end
        site.monitoring.end_minute(value)
    site.extension.stop()
    instances.history = [(at - origin, count) for at, count in instances.history]
    return site


def planned_history(planned: Plan) -> list[tuple[float, int]]:
    return [(one.started_seconds, one.after) for one in planned.activities]


def test_a_ramp_to_twice_the_knee_scales_out_and_back_as_planned():
    ramp = Traffic.ramp(2 * KNEE.max_rps, up_seconds=1200, hold_seconds=600, down_seconds=1200).followed_by(0, 1800)
    site, planned = rehearse(ramp, SPEC, KNEE.startup_seconds), plan(ramp, SPEC, KNEE)
    assert max(planned.instances) == 4
    assert (planned.instances[0], planned.instances[-1]) == (1, 1)
    assert len(planned.activities) == len(site.instances.history) > 2
    for (at, count), (planned_at, planned_count) in zip(site.instances.history, planned_history(planned), strict=True):
        assert count == planned_count
        assert abs(at - planned_at) <= 60
    causes = [one["Cause"] for one in site.activities()]
    for cause, activity in zip(causes, planned.activities, strict=True):
        assert f"-{activity.cause}-" in cause
    assert {one["StatusCode"] for one in site.activities()} == {"Successful"}


COURSES = st.builds(
    lambda rates: Traffic(tuple(300.0 * index for index in range(len(rates) + 1)), tuple(rates)),
    st.lists(st.floats(0, 80), min_size=2, max_size=16),
)
SPECS = st.builds(
    lambda low, more, target, out, into: ScalingSpec(low, low + more, target, out, into),
    st.integers(1, 3), st.integers(0, 6), st.floats(60, 3000), st.integers(0, 400), st.integers(0, 400),
)  # fmt: skip


@FEW
@given(COURSES, SPECS, st.sampled_from([0.0, 45.0, 60.0, 200.0]))
def test_the_planner_does_what_the_rehearsal_does(traffic, spec, startup_seconds):
    planned = plan(traffic, spec, InstanceCapacity(10, 1, startup_seconds))
    assert planned_history(planned) == rehearse(traffic, spec, startup_seconds).instances.history


@FEW
@given(COURSES, SPECS)
def test_a_plan_keeps_the_bounds_and_the_cooldowns(traffic, spec):
    planned = plan(traffic, spec, KNEE)
    assert all(spec.min_instances <= count <= spec.max_instances for count in planned.instances)
    assert sum(planned.requests) == pytest.approx(traffic.requests_between(0, traffic.edges[-1]))
    assert all(0 <= over <= all_of + 1e-6 for over, all_of in zip(planned.over_capacity, planned.requests, strict=True))
    for before, after in itertools.pairwise(planned.activities):
        assert after.started_seconds >= before.ended_seconds
        if before.after < before.before and after.after < after.before:
            assert after.started_seconds >= before.ended_seconds + spec.scale_in_cooldown_seconds


def test_long_cooldowns_make_fewer_activities():
    day = Traffic.day(60, night_rps=1)
    short, long = (plan(day, ScalingSpec(1, 9, 600, rest, rest), KNEE) for rest in (30, 3600))
    assert len(long.activities) < len(short.activities)


def test_a_day_is_1440_minutes_paid_for_at_least_one_instance():
    planned = plan(Traffic.day(100, night_rps=2), SPEC, KNEE)
    assert len(planned.times) == 1440
    assert planned.dollars >= 24 * KNEE.dollars_per_hour * (1 - 1e-9)
    assert planned.share_over_capacity > 0  # 100 requests/s are more than four instances take


def test_what_is_paid_for_is_whole_minutes_of_what_is_in_service():
    for traffic in (Traffic((0, 90), (10,)), Traffic.day(60)):
        planned = plan(traffic, SPEC, InstanceCapacity(20, dollars_per_hour=1.2, startup_seconds=0))
        assert planned.dollars == pytest.approx(1.2 * planned.instance_hours)


def test_plans_are_compared_side_by_side():
    day = Traffic.day(60, night_rps=1)
    plans = {"reference <30>": plan(day, ScalingSpec(), KNEE), "measured": plan(day, SPEC, KNEE)}
    table = compare(plans)
    assert "reference &lt;30&gt;" in table._repr_html_()
    first, second = table.rows
    assert first["dollars"] > second["dollars"]
    assert len(str(table).splitlines()) == 3
    figure = plan_comparison(plans, KNEE)
    assert [axes.get_ylabel() for axes in figure.axes] == ["requests/s", "instances"]
    for show in (compare, lambda plans: plan_comparison(plans, KNEE)):
        with pytest.raises(ConfigurationError):
            show({})


def test_a_comparison_draws_every_minute_and_no_line_hides_another():
    short = plan(Traffic((0, 600), (5,)), SPEC, KNEE)
    figure = plan_comparison({"one": short, "the same": short}, KNEE)
    _, below = figure.axes
    assert below.get_xlabel() == "minutes"
    first, second = below.patches
    assert first.get_linewidth() > second.get_linewidth()
    assert list(second.get_data().edges) == list(range(11))
    with pytest.raises(ConfigurationError, match="different times"):
        plan_comparison({"short": short, "a day": plan(Traffic.day(5), SPEC, KNEE)}, KNEE)


def test_traffic_from_a_file(tmp_path):
    path = tmp_path / "traffic.csv"
    path.write_text(
        "time,requests_per_second\n2026-03-01T10:00:00Z,2\n2026-03-01T10:01:00Z,4\n2026-03-01T10:03:00Z,0\n"
    )
    traffic = Traffic.from_csv(path)
    assert traffic.rates == (2, 4, 0)
    assert traffic.edges == (0, 60, 180, 300)
    assert plan(traffic, SPEC, KNEE).requests == (120, 240, 240, 0, 0)


def test_traffic_from_cloudwatch_fills_the_gaps():
    begin = datetime(2026, 3, 1, 10, tzinfo=UTC)
    moments = [begin + timedelta(minutes=minute) for minute in (3, 1, 0)]
    reply = {"MetricDataResults": [{"Timestamps": moments, "Values": [60.0, 120.0, 30.0]}]}
    assert Traffic.from_cloudwatch(reply).rates == (0.5, 2.0, 0.0, 1.0)


def test_the_period_of_cloudwatchs_sums_is_the_shortest_between_two():
    begin = datetime(2026, 3, 1, 10, tzinfo=UTC)
    points = [{"Timestamp": begin + timedelta(minutes=5 * number), "Sum": 600.0} for number in (3, 0, 1)]
    traffic = Traffic.from_cloudwatch({"Label": "Invocations", "Datapoints": points})
    assert (traffic.edges, traffic.rates) == ((0, 300, 600, 900, 1200), (2, 2, 0, 2))
    assert Traffic.from_cloudwatch({"Datapoints": points[:1]}, period_seconds=300).rates == (2,)


@FEW
@given(COURSES, st.floats(0, 5000), st.floats(0, 5000), st.floats(0, 100))
def test_requests_add_up(traffic, one, other, rate):
    begin, end = sorted((one, other))
    middle = (begin + end) / 2
    whole = traffic.requests_between(begin, end)
    assert whole == pytest.approx(traffic.requests_between(begin, middle) + traffic.requests_between(middle, end))
    assert traffic.requests_above(0, begin, end) == pytest.approx(whole, abs=1e-6)
    assert traffic.requests_above(rate, begin, end) <= whole + 1e-6
