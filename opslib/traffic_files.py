"""Files of traffic as people have them: tables of times and rates, and what CloudWatch's calls return."""

import csv
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from opslib.errors import ConfigurationError

Points = list[tuple[float, float]]
"""Seconds since 1970 or since any other moment, and a number for each; in the order of time."""

_MILLISECONDS_FROM = 1e11
"""As seconds this would be the year 5138, as milliseconds it is 1973."""


def read_csv(path: Path | str) -> Points:
    """Read times (seconds, milliseconds since 1970, or ISO 8601) and rates, in any order, with or without a header.

    Columns are separated by commas, semicolons or tabs; where it is not the comma, a rate may have a decimal comma.

    Raises:
        ConfigurationError: it is no such file; the message names the line.
    """
    hint = "a header, then at least two rows of time and requests a second"
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path} is no text in UTF-8: {error}", hint="export it as CSV UTF-8") from error
    delimiter = next((one for one in ";\t" if lines and one in lines[0]), ",")
    try:
        table = enumerate(csv.reader(lines, delimiter=delimiter), start=1)
        rows = [(number, row) for number, row in table if "".join(row).strip()]
    except csv.Error as error:
        raise ConfigurationError(f"{path} is no table: {error}", hint=hint) from error
    points = []
    for number, row in rows:
        try:
            if "".join(row[len(rows[0][1]) :]).strip():
                raise ValueError("more columns than the first line has; of decimal commas, divide by semicolons")
            points.append((_seconds(row[0]), _rate(row, delimiter)))
        except ValueError as error:
            if number > rows[0][0] or _is_time(row[0]):  # otherwise it is the header
                raise ConfigurationError(f"{path} is no traffic, line {number}: {error}", hint=hint) from error
    if len(points) < 2:
        raise ConfigurationError(f"{path} is no traffic: it has {len(points)} row(s)", hint=hint)
    return _in_order(points, str(path))


def read_cloudwatch(reply: Mapping[str, Any] | Path | str) -> Points:
    """Return the sums of a GetMetricData or GetMetricStatistics reply: boto3's, or the file that the AWS CLI wrote.

    Of a GetMetricData reply the first query counts, with all of its pages.

    Raises:
        ConfigurationError: it has no sums.
    """
    if not isinstance(reply, Mapping):
        try:
            reply = json.loads(Path(reply).read_text(encoding="utf-8-sig"))
        except ValueError as error:
            raise ConfigurationError(f"the file holds no JSON: {error}") from error
    try:
        pairs = [(_moment(moment), float(value)) for moment, value in _pairs(reply)]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        hint = "GetMetricData, or GetMetricStatistics with Statistics=['Sum'], of Invocations"
        raise ConfigurationError(f"no sums of CloudWatch: {type(error).__name__} {error}", hint=hint) from error
    if not pairs:
        raise ConfigurationError("the reply holds no values", hint="ask for Invocations, Sum, of a busy time")
    return _in_order(pairs, "the reply")


def _pairs(reply: Mapping[str, Any]) -> Iterable[tuple[Any, Any]]:
    if "Datapoints" in reply:
        return [(point["Timestamp"], point["Sum"]) for point in reply["Datapoints"]]
    results = reply.get("MetricDataResults") or []
    own = [one for one in results if one.get("Id") == results[0].get("Id")]
    return [pair for one in own for pair in zip(one["Timestamps"], one["Values"], strict=True)]


def _in_order(points: Sequence[tuple[float, float]], source: str) -> Points:
    """Return the points by time.

    Raises:
        ConfigurationError: a number is none or negative, or a time occurs twice.
    """
    seen: dict[float, float] = {}
    for at, value in points:
        if not (math.isfinite(at) and 0 <= value < math.inf):
            raise ConfigurationError(f"{source} is no traffic: {value} at {at:g}", hint="requests are 0 or more")
        if at in seen:
            raise ConfigurationError(f"{source} is no traffic: the time {at:.15g} occurs twice")
        seen[at] = value
    return sorted(seen.items())


def _moment(text: datetime | str | float) -> float:
    return text.timestamp() if isinstance(text, datetime) else _seconds(str(text))


def _seconds(text: str) -> float:
    """Read a time: seconds, milliseconds since 1970, or ISO 8601 (UTC where it names no zone)."""
    text = text.strip()
    try:
        number = float(text)
    except ValueError:
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    return number / 1000 if abs(number) >= _MILLISECONDS_FROM else number


def _is_time(text: str) -> bool:
    try:
        return math.isfinite(_seconds(text))
    except ValueError:
        return False


def _rate(row: Sequence[str], delimiter: str) -> float:
    if len(row) < 2:
        raise ValueError("it has one column")
    return float(row[1] if delimiter == "," else row[1].replace(",", "."))
