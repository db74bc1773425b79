"""CloudWatch's alarms as Application Auto Scaling reads them: which policy they ask, and the metric's newest value."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from opslib.rehearsal.calls import Call, Principal
from opslib.rehearsal.monitoring.extension import Metric, Monitoring

_SERVICE = Principal(arn="application-autoscaling.amazonaws.com", access_key_id="", secret="")
_SEARCHED_PERIODS = 3


class Alarms:
    """Reads alarms and metrics of a rehearsal."""

    def __init__(self, monitoring: Monitoring) -> None:
        """Take the metrics and the alarms."""
        self._monitoring = monitoring

    def is_ringing(self, region: str, name: str) -> bool:
        """Return whether an alarm is in ALARM."""
        return bool(name) and self._monitoring.alarm_state(region, name) == "ALARM"

    def with_action(self, region: str, arn: str) -> list[dict[str, Any]]:
        """Return the alarms that have a policy as their action, as DescribeAlarms shows them."""
        alarms = self._ask(region, "DescribeAlarms", {"ActionPrefix": arn, "MaxRecords": 100}).get("MetricAlarms", [])
        return [one for one in alarms if one.get("ActionsEnabled", True) and arn in one.get("AlarmActions", ())]

    def newest_value(self, region: str, alarm: Mapping[str, Any], now: datetime) -> tuple[datetime, float] | None:
        """Return the newest value of an alarm's metric and its time; None when the last periods have none."""
        if "Metrics" in alarm:
            return self._newest_of_queries(region, alarm["Metrics"], now)
        dimensions = {one["Name"]: one["Value"] for one in alarm.get("Dimensions", ())}
        values = self._monitoring.series(
            Metric.of(region, alarm["Namespace"], alarm["MetricName"], **dimensions),
            statistic=alarm.get("Statistic") or alarm["ExtendedStatistic"],
            period_seconds=alarm["Period"],
            periods=_SEARCHED_PERIODS,
        )
        return values[-1] if values else None

    def _newest_of_queries(
        self, region: str, queries: list[dict[str, Any]], now: datetime
    ) -> tuple[datetime, float] | None:
        period = max((one["MetricStat"]["Period"] for one in queries if "MetricStat" in one), default=60)
        params = {
            "MetricDataQueries": [{"Period": period, **query} if "Expression" in query else query for query in queries],
            "StartTime": now - timedelta(seconds=period * (_SEARCHED_PERIODS + 1)),
            "EndTime": now.replace(second=0, microsecond=0),
            "ScanBy": "TimestampDescending",
        }
        results = self._ask(region, "GetMetricData", params).get("MetricDataResults", [])
        return next(((one["Timestamps"][0], float(one["Values"][0])) for one in results if one.get("Values")), None)

    def _ask(self, region: str, operation: str, params: dict[str, Any]) -> dict[str, Any]:
        answer = self._monitoring.operations.get(f"cloudwatch.{operation}")
        return answer(Call("cloudwatch", operation, params, _SERVICE, region, "scaling")) if answer else {}
