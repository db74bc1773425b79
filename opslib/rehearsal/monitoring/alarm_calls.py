"""What CloudWatch answers about alarms.

Source: docs.aws.amazon.com/AmazonCloudWatch/latest/APIReference. Alarms of metrics and of metric math are performed;
composite alarms and anomaly detection are refused.
"""

from collections.abc import Mapping
from typing import Any

from moto.cloudwatch.models import cloudwatch_backends

from opslib.rehearsal.calls import ACCOUNT_ID, Call, Operation, ServiceError
from opslib.rehearsal.clock import Clock
from opslib.rehearsal.listing import one_page
from opslib.rehearsal.monitoring.actions import check_actions
from opslib.rehearsal.monitoring.alarms import COMPARISONS, TREATMENTS, Alarm
from opslib.rehearsal.monitoring.queries import check_period, check_statistic
from opslib.rehearsal.monitoring.watch import AlarmWatch

_STATISTIC = ("Statistic", "ExtendedStatistic")
_OF_METRIC = ("MetricName", "Namespace", "Period", "Dimensions", *_STATISTIC)


class AlarmCalls:
    """Puts, shows, sets and deletes alarms; their tags are moto's."""

    def __init__(self, watch: AlarmWatch, clock: Clock) -> None:
        """Take the one who holds the alarms."""
        self._watch = watch
        self._clock = clock
        self.operations: dict[str, Operation] = {
            "PutMetricAlarm": self.put_metric_alarm,
            "DescribeAlarms": self.describe_alarms,
            "DescribeAlarmsForMetric": self.describe_alarms_for_metric,
            "DescribeAlarmHistory": self.describe_alarm_history,
            "SetAlarmState": self.set_alarm_state,
            "DeleteAlarms": self.delete_alarms,
            "EnableAlarmActions": self.enable_alarm_actions,
            "DisableAlarmActions": self.disable_alarm_actions,
            "TagResource": self.tag_resource,
        }

    def put_metric_alarm(self, call: Call) -> dict[str, Any]:
        """Make an alarm, or change one, which keeps its state."""
        self.put(call.region, call.params)
        return {}

    def put(self, region: str, params: Mapping[str, Any]) -> None:
        """Make or change an alarm by PutMetricAlarm's parameters.

        Raises:
            ServiceError: CloudWatch would refuse it.
        """
        _check(params)
        name, now = params["AlarmName"], self._clock.now()
        arn = f"arn:aws:cloudwatch:{region}:{ACCOUNT_ID}:alarm:{name}"
        with self._watch.lock:
            before = self._watch.find(region, name)
            if before is None:
                alarm = Alarm(region, name, arn, dict(params), now, updated=now)
                alarm.note("ConfigurationUpdate", f'Alarm "{name}" created', {"version": "1.0", "type": "Create"}, now)
                cloudwatch_backends[ACCOUNT_ID][region].tagger.tag_resource(arn, list(params.get("Tags", [])))
            else:
                alarm = before
                alarm.params, alarm.configured = dict(params), now
                alarm.note("ConfigurationUpdate", f'Alarm "{name}" updated', {"version": "1.0", "type": "Update"}, now)
            self._watch.keep(alarm)

    def describe_alarms(self, call: Call) -> dict[str, Any]:
        """Return alarms by name, prefix, state or action."""
        params, names = call.params, call.params.get("AlarmNames")
        found = [
            alarm.describe()
            for alarm in self._watch.alarms(call.region)
            if (names is None or alarm.name in names)
            and alarm.name.startswith(params.get("AlarmNamePrefix", ""))
            and params.get("StateValue", alarm.state) == alarm.state
            and _has_action(alarm, params.get("ActionPrefix", ""))
        ]
        if "MetricAlarm" not in params.get("AlarmTypes", ["MetricAlarm"]):
            found = []
        page, token = one_page(found, {"MaxResults": params.get("MaxRecords", 50), **_token(params)})
        return {"MetricAlarms": list(page), "CompositeAlarms": [], "NextToken": token}

    def describe_alarms_for_metric(self, call: Call) -> dict[str, Any]:
        """Return the alarms that watch one metric."""
        wanted = {name: call.params[name] for name in ("MetricName", "Namespace", *_STATISTIC) if name in call.params}
        dimensions = _by_name(call.params.get("Dimensions", []))
        found = [
            alarm.describe()
            for alarm in self._watch.alarms(call.region)
            if all(alarm.params.get(name) == value for name, value in wanted.items())
            and _by_name(alarm.params.get("Dimensions", [])) == dimensions
            and call.params.get("Period", alarm.period_seconds) == alarm.period_seconds
        ]
        return {"MetricAlarms": found}

    def describe_alarm_history(self, call: Call) -> dict[str, Any]:
        """Return what became of alarms, the newest first unless asked otherwise."""
        params = call.params
        items = [
            item
            for alarm in self._watch.alarms(call.region)
            if params.get("AlarmName", alarm.name) == alarm.name
            for item in alarm.history
            if params.get("HistoryItemType", item["HistoryItemType"]) == item["HistoryItemType"]
            and ("StartDate" not in params or item["Timestamp"] >= params["StartDate"])
            and ("EndDate" not in params or item["Timestamp"] <= params["EndDate"])
        ]
        newest_first = params.get("ScanBy", "TimestampDescending") == "TimestampDescending"
        items.sort(key=lambda item: item["Timestamp"], reverse=newest_first)
        page, token = one_page(items, {"MaxResults": params.get("MaxRecords", 100), **_token(params)})
        return {"AlarmHistoryItems": list(page), "NextToken": token}

    def set_alarm_state(self, call: Call) -> dict[str, Any]:
        """Put an alarm into a state until its next evaluation."""
        params = call.params
        alarm = self._watch.find(call.region, params["AlarmName"])
        if alarm is None:
            raise ServiceError("ResourceNotFound", f"Unknown alarm: {params['AlarmName']}", status=404)
        self._watch.change(alarm, params["StateValue"], params["StateReason"], params.get("StateReasonData", ""))
        return {}

    def delete_alarms(self, call: Call) -> dict[str, Any]:
        """Delete alarms: all of them, or none when one is not there."""
        names = call.params["AlarmNames"]
        absent = [name for name in names if self._watch.find(call.region, name) is None]
        if absent and len(names) > 1:
            raise ServiceError("ResourceNotFound", f"Unknown alarms: {', '.join(absent)}", status=404)
        for name in names:
            self._watch.remove(call.region, name)
        return {}

    def enable_alarm_actions(self, call: Call) -> dict[str, Any]:
        """Let alarms act."""
        return self._set_actions(call, enabled=True)

    def disable_alarm_actions(self, call: Call) -> dict[str, Any]:
        """Keep alarms from acting; their states go on changing."""
        return self._set_actions(call, enabled=False)

    def tag_resource(self, call: Call) -> dict[str, Any]:
        """Give an alarm tags; moto, which keeps them, does not know the alarms."""
        arn = call.params["ResourceARN"]
        if arn not in [alarm.arn for alarm in self._watch.alarms(call.region)]:
            raise ServiceError("ResourceNotFoundException", f"Unknown alarm: {arn}", status=404)
        cloudwatch_backends[ACCOUNT_ID][call.region].tagger.tag_resource(arn, call.params["Tags"])
        return {}

    def _set_actions(self, call: Call, *, enabled: bool) -> dict[str, Any]:
        for name in call.params["AlarmNames"]:
            alarm = self._watch.find(call.region, name)
            if alarm is not None:
                alarm.params["ActionsEnabled"] = enabled
        return {}


def _check(params: Mapping[str, Any]) -> None:
    if params["ComparisonOperator"] not in COMPARISONS or "ThresholdMetricId" in params:
        raise ServiceError("NotImplemented", "alarms on anomaly detection cannot be rehearsed", status=501)
    if "Threshold" not in params:
        raise _invalid("Threshold must be specified.")
    check_actions(params)
    if params.get("TreatMissingData", "missing") not in TREATMENTS:
        raise _invalid(f"TreatMissingData must be one of {', '.join(sorted(TREATMENTS))}.")
    if params["EvaluationPeriods"] < params.get("DatapointsToAlarm", 1):
        raise _invalid("The number of datapoints to alarm must be no more than the evaluation periods.")
    if "Metrics" in params:
        _check_queries(params)
        return
    _check_range(params["EvaluationPeriods"], params.get("Period", 0))
    for name in ("MetricName", "Namespace", "Period"):
        if name not in params:
            raise _invalid(f"{name} must be specified.")
    if sum(name in params for name in _STATISTIC) != 1:
        raise _invalid("Exactly one of Statistic and ExtendedStatistic must be specified.")
    check_statistic(params.get("Statistic") or params["ExtendedStatistic"])
    check_period(params["Period"])


def _check_queries(params: Mapping[str, Any]) -> None:
    if any(name in params for name in _OF_METRIC):
        raise _invalid("Metrics cannot be specified together with a single metric's parameters.")
    if sum(one.get("ReturnData", True) for one in params["Metrics"]) != 1:
        raise _invalid("Exactly one element of the Metrics list should return data.")
    stats = [one["MetricStat"] for one in params["Metrics"] if "MetricStat" in one]
    for stat in stats:
        check_statistic(stat["Stat"])
    for period in [
        *(stat["Period"] for stat in stats),
        *(one["Period"] for one in params["Metrics"] if "Period" in one),
    ]:
        check_period(period)
        _check_range(params["EvaluationPeriods"], period)


def _check_range(periods: int, period_seconds: int) -> None:
    """Refuse to look back further than AWS does: a week for periods of an hour and more, a day for others."""
    longest, words = (7 * 24 * 3600, "a week") if period_seconds >= 3600 else (24 * 3600, "a day")
    if periods * period_seconds > longest:
        raise _invalid(
            f"Metrics cannot be checked across more than {words} (EvaluationPeriods * Period must be <= {longest})."
        )


def _has_action(alarm: Alarm, prefix: str) -> bool:
    return not prefix or any(one.startswith(prefix) for one in alarm.params.get("AlarmActions", []))


def _by_name(dimensions: list[dict[str, str]]) -> dict[str, str]:
    return {one["Name"]: one["Value"] for one in dimensions}


def _token(params: Mapping[str, Any]) -> dict[str, str]:
    return {"NextToken": params["NextToken"]} if "NextToken" in params else {}


def _invalid(message: str) -> ServiceError:
    return ServiceError("ValidationError", message)
