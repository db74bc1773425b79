"""What CloudWatch answers about metrics: PutMetricData, GetMetricStatistics, GetMetricData, ListMetrics.

Source: docs.aws.amazon.com/AmazonCloudWatch/latest/APIReference
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from opslib.rehearsal.calls import Call, Operation, ServiceError
from opslib.rehearsal.clock import Clock
from opslib.rehearsal.listing import one_page
from opslib.rehearsal.monitoring.expressions import Series, evaluate
from opslib.rehearsal.monitoring.store import Metric, MetricStore, Sample

STATISTICS = frozenset({"SampleCount", "Average", "Sum", "Minimum", "Maximum"})
_PERCENTILE = re.compile(r"p(100|\d{1,2}(\.\d{1,10})?)")
_FINE_PERIODS = frozenset({1, 5, 10, 20, 30})
_MOST_DATAPOINTS = 1440
_MOST_DATAPOINTS_OF_QUERIES = 100_800
_MOST_METRICS_LISTED = 500
_LARGEST = 2.0**360
"""Values are between minus this and this, as on AWS."""
_RECENT_SECONDS = 3 * 3600
_LISTED_SECONDS = 14 * 24 * 3600


class MetricQueries:
    """Writes and reads a store's metrics for callers of the API."""

    def __init__(self, store: MetricStore, clock: Clock) -> None:
        """Take the store."""
        self._store = store
        self._clock = clock
        self.operations: dict[str, Operation] = {
            "PutMetricData": self.put_metric_data,
            "GetMetricStatistics": self.get_metric_statistics,
            "GetMetricData": self.get_metric_data,
            "ListMetrics": self.list_metrics,
        }

    def put_metric_data(self, call: Call) -> dict[str, Any]:
        """Keep values; all of a call, or none when one of them cannot be kept."""
        namespace = call.params["Namespace"]
        if namespace.startswith("AWS/"):
            raise _invalid("The value AWS/ for parameter Namespace is invalid.")
        data = call.params.get("MetricData", [])
        for metric, at, sample, fine in [self._read(call.region, namespace, datum) for datum in data]:
            self._store.add(metric, at, sample, fine=fine)
        return {}

    def get_metric_statistics(self, call: Call) -> dict[str, Any]:
        """Return statistics of one metric, in no order, as AWS does."""
        params = call.params
        names = [*params.get("Statistics", []), *params.get("ExtendedStatistics", [])]
        if not names:
            raise ServiceError("InvalidParameterCombination", "Must specify either Statistics or ExtendedStatistics")
        for name in names:
            check_statistic(name)
        starts = _starts(params["StartTime"], params["EndTime"], params["Period"])
        if len(starts) > _MOST_DATAPOINTS:
            raise ServiceError(
                "InvalidParameterCombination",
                f"You have requested up to {len(starts)} datapoints, which exceeds the limit of {_MOST_DATAPOINTS:,}. "
                "You may reduce the datapoints requested by increasing Period, or decreasing the time range.",
            )
        metric = metric_of(call.region, params)
        found = [(at, self._store.sample(metric, at, params["Period"])) for at in starts]
        points = [_datapoint(at, sample, params) for at, sample in found if _is_in(sample, params.get("Unit"))]
        return {"Label": params["MetricName"], "Datapoints": points}

    def get_metric_data(self, call: Call) -> dict[str, Any]:
        """Return series of several metrics, and of expressions over them."""
        params, queries = call.params, call.params["MetricDataQueries"]
        if len({query["Id"] for query in queries}) < len(queries):
            raise _invalid("The values for parameter id in MetricDataQueries are not unique.")
        found = self.series_of(call.region, queries, params["StartTime"], params["EndTime"])
        newest_first = params.get("ScanBy", "TimestampDescending") == "TimestampDescending"
        results = []
        for query in queries:
            if query.get("ReturnData", True):
                points = sorted(found[query["Id"]].items(), reverse=newest_first)
                results.append(_result(query, points))
        if sum(len(one["Values"]) for one in results) > _MOST_DATAPOINTS_OF_QUERIES:
            raise _invalid(f"More than {_MOST_DATAPOINTS_OF_QUERIES:,} datapoints were requested; ask for less time.")
        return {"MetricDataResults": results, "Messages": []}

    def list_metrics(self, call: Call) -> dict[str, Any]:
        """Return the metrics that were written to in the last two weeks."""
        params, now = call.params, self._clock.time()
        kept = _RECENT_SECONDS if params.get("RecentlyActive") else _LISTED_SECONDS
        known = self._store.metrics(call.region)
        found = [metric for metric, newest in known if newest > now - kept and _is_listed(metric, params)]
        found.sort(key=lambda metric: (metric.namespace, metric.name, metric.dimensions))
        page, token = one_page(found, {"MaxResults": _MOST_METRICS_LISTED, "NextToken": params.get("NextToken", "")})
        return {"Metrics": [_shown(metric) for metric in page], "NextToken": token}

    def series_of(
        self, region: str, queries: Sequence[Mapping[str, Any]], start: datetime, end: datetime, origin: float = 0.0
    ) -> dict[str, Series]:
        """Return the series of each query by its id; expressions may name those before and after them.

        Periods begin at whole multiples of their length from `origin`, in seconds since 1970.
        """
        periods = [one["MetricStat"]["Period"] for one in queries if "MetricStat" in one]
        period = max([*periods, *(one.get("Period", 0) for one in queries)], default=60) or 60
        found = {
            one["Id"]: self._series(region, one["MetricStat"], start, end, origin)
            for one in queries
            if "MetricStat" in one
        }
        waiting = [one for one in queries if "MetricStat" not in one]
        starts = _starts(start, end, period, origin)
        while waiting:
            ready = [one for one in waiting if not _names(one) & {other["Id"] for other in waiting}]
            if not ready:
                raise _invalid("The expressions in MetricDataQueries refer to each other in a circle.")
            for one in ready:
                found[one["Id"]] = evaluate(one.get("Expression", ""), found, period, starts)
            waiting = [one for one in waiting if one not in ready]
        return found

    def _series(self, region: str, stat: Mapping[str, Any], start: datetime, end: datetime, origin: float) -> Series:
        check_statistic(stat["Stat"])
        metric, seconds = metric_of(region, stat["Metric"]), stat["Period"]
        samples = {at: self._store.sample(metric, at, seconds) for at in _starts(start, end, seconds, origin)}
        unit = stat.get("Unit")
        return {at: sample.statistic(stat["Stat"]) for at, sample in samples.items() if _is_in(sample, unit)}

    def _read(self, region: str, namespace: str, datum: Mapping[str, Any]) -> tuple[Metric, float, Sample, bool]:
        at = datum["Timestamp"].timestamp() if "Timestamp" in datum else self._clock.time()
        if at > self._clock.time() + 2 * 3600 or at < self._clock.time() - _LISTED_SECONDS:
            raise _invalid("The parameter MetricData.member.1.Timestamp must be within two weeks and two hours of now.")
        sample = Sample(unit=datum.get("Unit", "None"))
        for value, weight in _values(datum):
            _check_number(value)
            if not 0 < weight < math.inf:
                raise _invalid("The values for parameter MetricData.member.1.Counts must be positive numbers.")
            sample.add(value, weight)
        if "StatisticValues" in datum:
            _add_statistics(sample, datum["StatisticValues"])
        if not sample.count:
            raise ServiceError(
                "MissingParameter",
                "At least one of the parameters Value, Values and StatisticValues of MetricData.member.1 is required.",
            )
        metric = metric_of(region, {**datum, "Namespace": namespace})
        return metric, at, sample, datum.get("StorageResolution") == 1


def metric_of(region: str, params: Mapping[str, Any]) -> Metric:
    """Return the metric that a request names by Namespace, MetricName and Dimensions."""
    dimensions = tuple(sorted((one["Name"], one["Value"]) for one in params.get("Dimensions", ())))
    return Metric(region, params.get("Namespace", ""), params["MetricName"], dimensions)


def check_statistic(name: str) -> None:
    """Refuse what is no statistic.

    Raises:
        ServiceError: InvalidParameterValue.
    """
    if name not in STATISTICS and not _PERCENTILE.fullmatch(name):
        raise _invalid(f"The value {name} for parameter Stat is not supported.")


def check_period(seconds: int) -> None:
    """Refuse a period that CloudWatch does not have.

    Raises:
        ServiceError: InvalidParameterValue.
    """
    if seconds not in _FINE_PERIODS and (seconds <= 0 or seconds % 60):
        raise _invalid("The parameter Period must be one of 1, 5, 10, 20, 30, or a multiple of 60.")


def _starts(start: datetime, end: datetime, period_seconds: int, origin: float = 0.0) -> list[float]:
    check_period(period_seconds)
    first, last = _utc(start).timestamp(), _utc(end).timestamp()
    if first >= last:
        raise ServiceError("ValidationError", "The parameter StartTime must be less than the parameter EndTime.")
    first = (first - origin) // period_seconds * period_seconds + origin
    count = math.ceil((last - first) / period_seconds)
    if count > _MOST_DATAPOINTS_OF_QUERIES:
        raise _invalid(f"More than {_MOST_DATAPOINTS_OF_QUERIES:,} datapoints were requested; ask for less time.")
    return [first + number * period_seconds for number in range(count)]


def _is_in(sample: Sample | None, unit: str | None) -> bool:
    """Return whether there are values in a unit, which is any if none is given."""
    return sample is not None and unit in {None, sample.unit}


def _utc(moment: datetime) -> datetime:
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _values(datum: Mapping[str, Any]) -> Iterator[tuple[float, float]]:
    if "Value" in datum:
        yield float(datum["Value"]), 1.0
    values = datum.get("Values", [])
    counts = datum.get("Counts", [1.0] * len(values))
    if len(counts) != len(values):
        raise _invalid("The parameters MetricData.member.1.Values and Counts must have the same length.")
    yield from zip(map(float, values), map(float, counts), strict=True)


def _check_number(value: float) -> None:
    if not abs(value) <= _LARGEST:  # NaN is in no order
        shown = value if math.isfinite(value) else "NaN" if math.isnan(value) else "Infinity"
        raise _invalid(f"The value {shown} for parameter MetricData.member.1.Value is invalid.")


def _add_statistics(sample: Sample, statistics: Mapping[str, float]) -> None:
    """Add a statistic set; of its values only the extremes are known, so percentiles see no more than these."""
    for value in statistics.values():
        _check_number(value)
    count = float(statistics["SampleCount"])
    if count <= 0 or not statistics["Minimum"] <= statistics["Sum"] / count <= statistics["Maximum"]:
        raise _invalid("The values of MetricData.member.1.StatisticValues contradict each other.")
    ends = Sample()
    ends.add(statistics["Minimum"], count / 2)
    ends.add(statistics["Maximum"], count / 2)
    ends.total = float(statistics["Sum"])
    unit = sample.unit
    sample.merge(ends)
    sample.unit = unit


def _datapoint(at: float, sample: Sample, params: Mapping[str, Any]) -> dict[str, Any]:
    point: dict[str, Any] = {"Timestamp": datetime.fromtimestamp(at, UTC), "Unit": sample.unit}
    point |= {name: sample.statistic(name) for name in params.get("Statistics", [])}
    extended = {name: sample.statistic(name) for name in params.get("ExtendedStatistics", [])}
    return {**point, "ExtendedStatistics": extended} if extended else point


def _result(query: Mapping[str, Any], points: Sequence[tuple[float, float]]) -> dict[str, Any]:
    name = query["MetricStat"]["Metric"]["MetricName"] if "MetricStat" in query else query["Id"]
    return {
        "Id": query["Id"],
        "Label": query.get("Label", name),
        "Timestamps": [datetime.fromtimestamp(at, UTC) for at, _ in points],
        "Values": [value for _, value in points],
        "StatusCode": "Complete",
    }


def _names(query: Mapping[str, Any]) -> set[str]:
    return set(re.findall(r"[a-z][A-Za-z0-9_]*", query.get("Expression", "")))


def _is_listed(metric: Metric, params: Mapping[str, Any]) -> bool:
    own = dict(metric.dimensions)
    wanted = params.get("Dimensions", [])
    return (
        params.get("Namespace", metric.namespace) == metric.namespace
        and params.get("MetricName", metric.name) == metric.name
        and all(one["Name"] in own and own[one["Name"]] == one.get("Value", own[one["Name"]]) for one in wanted)
    )


def _shown(metric: Metric) -> dict[str, Any]:
    dimensions = [{"Name": name, "Value": value} for name, value in metric.dimensions]
    return {"Namespace": metric.namespace, "MetricName": metric.name, "Dimensions": dimensions}


def _invalid(message: str) -> ServiceError:
    return ServiceError("InvalidParameterValue", message)
