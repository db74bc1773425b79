"""When a scheduled action is due: at(...), rate(...) and cron(...), as Application Auto Scaling writes them.

Sources: docs.aws.amazon.com/autoscaling/application/userguide/scheduled-scaling-using-cron-expressions.html and, for
cron's fields, docs.aws.amazon.com/eventbridge/latest/userguide/eb-cron-expressions.html
"""

import calendar
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from opslib.rehearsal.calls import ServiceError

_RATE_SECONDS = {"minute": 60, "hour": 3600, "day": 86_400}
_MONTHS = {name.upper(): number for number, name in enumerate(calendar.month_abbr) if name}
_DAYS = {name: number for number, name in enumerate(("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"), start=1)}
_SEARCHED_DAYS = 366 * 8
"""How far ahead a cron expression is searched: a 29th of February comes at least so often."""


@dataclass(frozen=True)
class _Cron:
    """The values of each field of a cron expression that match."""

    minutes: frozenset[int]
    hours: frozenset[int]
    is_day: Callable[[datetime], bool]
    months: frozenset[int]
    is_weekday: Callable[[datetime], bool]
    years: frozenset[int]

    def matches(self, day: datetime) -> bool:
        """Return whether a day is one of its days."""
        return day.year in self.years and day.month in self.months and self.is_day(day) and self.is_weekday(day)


@dataclass(frozen=True)
class Schedule:
    """An expression, and the zone in which its times are read."""

    expression: str
    zone: ZoneInfo

    @classmethod
    def read(cls, expression: str, zone_name: str) -> "Schedule":
        """Read an expression.

        Raises:
            ServiceError: ValidationException; it is none, or there is no such zone.
        """
        try:
            schedule = cls(expression, ZoneInfo(zone_name))
        except (ZoneInfoNotFoundError, ValueError) as error:
            raise ServiceError("ValidationException", f"Timezone {zone_name} is not valid.") from error
        schedule.next_after(datetime(2000, 1, 1, tzinfo=UTC), datetime(2000, 1, 1, tzinfo=UTC))
        return schedule

    def next_after(self, moment: datetime, start: datetime) -> datetime | None:
        """Return the first time after `moment`; a rate counts from `start`. None: never again.

        Raises:
            ServiceError: ValidationException; the expression is none.
        """
        kind, _, rest = self.expression.partition("(")
        body = rest.removesuffix(")").strip()
        try:
            if not rest.endswith(")"):
                raise ValueError("no closing bracket")
            match kind:
                case "at":
                    at = datetime.strptime(body, "%Y-%m-%dT%H:%M:%S").replace(tzinfo=self.zone).astimezone(UTC)
                    return at if at > moment else None
                case "rate":
                    return _next_of_rate(body, moment, start)
                case "cron":
                    return next(_times_of(_cron(body), moment, self.zone), None)
            raise ValueError("neither at, rate nor cron")
        except ValueError as error:
            message = f"Schedule expression {self.expression} is not valid: {error}"
            raise ServiceError("ValidationException", message) from error


def _next_of_rate(body: str, moment: datetime, start: datetime) -> datetime:
    found = re.fullmatch(r"([1-9][0-9]{0,8}) (minute|hour|day)s?", body)
    if found is None:
        raise ValueError("a rate is a number and minutes, hours or days")
    period = timedelta(seconds=int(found[1]) * _RATE_SECONDS[found[2]])
    passed = max(0, (moment - start) // period) if moment >= start else -1
    return start + (passed + 1) * period


def _cron(body: str) -> _Cron:
    fields = body.upper().split()
    if len(fields) != 6:
        raise ValueError("cron has six fields: minutes, hours, day of month, month, day of week, year")
    return _Cron(
        minutes=_values(fields[0], 0, 59),
        hours=_values(fields[1], 0, 23),
        is_day=_days(fields[2]),
        months=_values(fields[3], 1, 12, _MONTHS),
        is_weekday=_weekdays(fields[4]),
        years=_values(fields[5], 1970, 2199),
    )


def _days(text: str) -> Callable[[datetime], bool]:
    """Read the days of the month: L is the last one, 15W the weekday nearest to the 15th."""
    if text == "L":
        return lambda day: day.day == _last_of(day)
    if text.endswith("W"):
        (wanted,) = _values(text[:-1], 1, 31)
        return lambda day: wanted <= _last_of(day) and day.day == _nearest_weekday(day.replace(day=wanted))
    values = _values(text, 1, 31)
    return lambda day: day.day in values


def _weekdays(text: str) -> Callable[[datetime], bool]:
    """Read the days of the week: L is Saturday, 6L the last Friday of the month, 3#2 its second Tuesday."""
    if text == "L":
        return lambda day: _weekday(day) == 7
    if text.endswith("L"):
        (wanted,) = _values(text[:-1], 1, 7, _DAYS)
        return lambda day: _weekday(day) == wanted and day.day > _last_of(day) - 7
    name, hash_sign, count = text.partition("#")
    values = _values(name, 1, 7, _DAYS)
    if not hash_sign:
        return lambda day: _weekday(day) in values
    (nth,) = _values(count, 1, 5)
    return lambda day: _weekday(day) in values and (day.day - 1) // 7 + 1 == nth


def _weekday(day: datetime) -> int:
    return day.isoweekday() % 7 + 1


def _last_of(day: datetime) -> int:
    return calendar.monthrange(day.year, day.month)[1]


def _nearest_weekday(day: datetime) -> int:
    """Return the day of the month, from Monday to Friday, that is nearest to a day and in its month."""
    match day.isoweekday():
        case 6:
            return day.day - 1 if day.day > 1 else 3
        case 7:
            return day.day + 1 if day.day < _last_of(day) else day.day - 2
        case _:
            return day.day


def _values(text: str, least: int, most: int, names: dict[str, int] | None = None) -> frozenset[int]:
    """Return the values that a field names: *, ?, a list, a range, a step."""
    values: set[int] = set()
    for part in text.split(","):
        span, _, step = part.partition("/")
        first, dash, last = span.partition("-")
        if span in {"*", "?"}:
            begin, end = least, most
        else:
            begin = _number(first, names)
            end = _number(last, names) if dash else (most if step else begin)
        if not least <= begin <= end <= most:
            raise ValueError(f"{part} is not between {least} and {most}")
        values.update(range(begin, end + 1, int(step or 1)))
    return frozenset(values)


def _number(text: str, names: dict[str, int] | None) -> int:
    return names[text] if names and text in names else int(text)


def _times_of(cron: _Cron, moment: datetime, zone: ZoneInfo) -> Iterator[datetime]:
    """Yield its times after a moment, in UTC."""
    local = moment.astimezone(zone)
    midnight = local.replace(hour=0, minute=0, second=0, microsecond=0, tzinfo=None)
    for day in (midnight + timedelta(days=number) for number in range(_SEARCHED_DAYS)):
        if cron.matches(day):
            for hour in sorted(cron.hours):
                for minute in sorted(cron.minutes):
                    at = day.replace(hour=hour, minute=minute, tzinfo=zone).astimezone(UTC)
                    if at > moment:
                        yield at
