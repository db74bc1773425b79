"""When scheduled actions are due."""

from datetime import UTC, datetime, timedelta

import pytest

from opslib.rehearsal.calls import ServiceError
from opslib.rehearsal.scaling.schedules import Schedule

START = datetime(2027, 1, 15, 8, 0, tzinfo=UTC)  # a Friday


@pytest.mark.parametrize(
    ("expression", "zone", "expected"),
    [
        ("at(2027-01-15T10:00:00)", "Europe/Berlin", [datetime(2027, 1, 15, 9, tzinfo=UTC)]),
        ("at(2027-01-15T08:00:00)", "UTC", []),
        ("rate(90 minutes)", "UTC", [START + timedelta(minutes=90), START + timedelta(minutes=180)]),
        ("cron(0/30 8 ? * SUN-MON *)", "UTC", [datetime(2027, 1, 17, 8, tzinfo=UTC),
                                               datetime(2027, 1, 17, 8, 30, tzinfo=UTC)]),
        ("cron(0 9 ? * MON-FRI *)", "America/New_York", [datetime(2027, 1, 15, 14, tzinfo=UTC),
                                                          datetime(2027, 1, 18, 14, tzinfo=UTC)]),
        ("cron(15 12 L FEB ? 2027,2028)", "UTC", [datetime(2027, 2, 28, 12, 15, tzinfo=UTC),
                                                  datetime(2028, 2, 29, 12, 15, tzinfo=UTC)]),
        ("cron(0 0 1 1 ? 2026)", "UTC", []),
        ("cron(0 9 31W * ? *)", "UTC", [datetime(2027, 1, 29, 9, tzinfo=UTC),  # the 31st is a Sunday
                                        datetime(2027, 3, 31, 9, tzinfo=UTC)]),
        ("cron(0 9 1W 5 ? *)", "UTC", [datetime(2027, 5, 3, 9, tzinfo=UTC), datetime(2028, 5, 1, 9, tzinfo=UTC)]),
        ("cron(0 9 ? * 6L *)", "UTC", [datetime(2027, 1, 29, 9, tzinfo=UTC), datetime(2027, 2, 26, 9, tzinfo=UTC)]),
        ("cron(0 9 ? * TUE#2 *)", "UTC", [datetime(2027, 2, 9, 9, tzinfo=UTC), datetime(2027, 3, 9, 9, tzinfo=UTC)]),
        ("cron(0 9 ? * L *)", "UTC", [datetime(2027, 1, 16, 9, tzinfo=UTC), datetime(2027, 1, 23, 9, tzinfo=UTC)]),
    ],
)  # fmt: skip
def test_the_next_times(expression, zone, expected):
    schedule, moment, found = Schedule.read(expression, zone), START, []
    while len(found) < 2 and (moment := schedule.next_after(moment, START)) is not None:
        found.append(moment)
    assert found == expected


def test_a_rate_begins_at_its_start():
    later = START + timedelta(hours=5)
    schedule = Schedule.read("rate(1 day)", "UTC")
    assert schedule.next_after(START, later) == later
    assert schedule.next_after(later, later) == later + timedelta(days=1)


@pytest.mark.parametrize(
    "expression",
    ["", "at(soon)", "at(2027-01-15T08:00:00", "rate(0 minutes)", "rate(5 weeks)", "cron(0 9 * *)",
     "cron(60 9 * * ? *)", "cron(0 9 W * ? *)", "cron(0 9 ? * 3#6 *)", "cron(0 9 ? * 1,2L *)",
     "cron(0/0 9 * * ? *)", "every(1 day)"],
)  # fmt: skip
def test_what_is_no_schedule_is_refused(expression):
    with pytest.raises(ServiceError, match="is not valid"):
        Schedule.read(expression, "UTC")


def test_a_zone_that_does_not_exist_is_refused():
    with pytest.raises(ServiceError, match="Timezone Mars/Olympus is not valid"):
        Schedule.read("rate(1 day)", "Mars/Olympus")
