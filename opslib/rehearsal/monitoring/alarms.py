"""An alarm: what it watches, and what its last datapoints say.

Missing data are treated as in https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/
AlarmThatSendsEmail.html#alarms-and-missing-data.
"""

import json
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

OK, ALARM, INSUFFICIENT = "OK", "ALARM", "INSUFFICIENT_DATA"

_COMPARISONS = {
    "GreaterThanThreshold": (operator.gt, "greater than"),
    "GreaterThanOrEqualToThreshold": (operator.ge, "greater than or equal to"),
    "LessThanThreshold": (operator.lt, "less than"),
    "LessThanOrEqualToThreshold": (operator.le, "less than or equal to"),
}
COMPARISONS = frozenset(_COMPARISONS)
TREATMENTS = frozenset({"missing", "breaching", "notBreaching", "ignore"})
"""Of missing data."""
_MOST_HISTORY = 500

Datapoint = tuple[datetime, float]


@dataclass
class Alarm:
    """One metric alarm and its state."""

    region: str
    name: str
    arn: str
    params: dict[str, Any]
    configured: datetime
    state: str = INSUFFICIENT
    reason: str = "Unchecked: Initial alarm creation"
    reason_data: str = ""
    updated: datetime = field(default_factory=lambda: datetime.now(UTC))
    history: list[dict[str, Any]] = field(default_factory=list)

    @property
    def period_seconds(self) -> int:
        """The length of a datapoint; of an alarm on metric math, its longest period."""
        if "Period" in self.params:
            return int(self.params["Period"])
        stats = [one["MetricStat"]["Period"] for one in self.params["Metrics"] if "MetricStat" in one]
        return int(max([*stats, *(one["Period"] for one in self.params["Metrics"] if "Period" in one)], default=60))

    @property
    def queries(self) -> list[dict[str, Any]]:
        """What it watches, as the queries of GetMetricData."""
        if "Metrics" in self.params:
            return list(self.params["Metrics"])
        stat = {
            "Metric": {name: self.params.get(name) or [] for name in ("Namespace", "MetricName", "Dimensions")},
            "Period": self.period_seconds,
            "Stat": self.params.get("Statistic") or self.params.get("ExtendedStatistic"),
            "Unit": self.params.get("Unit"),
        }
        return [{"Id": "watched", "MetricStat": stat}]

    @property
    def evaluation_seconds(self) -> int:
        """How often it is evaluated: every minute, and every ten seconds for shorter periods."""
        return 60 if self.period_seconds >= 60 else 10

    @property
    def periods(self) -> int:
        """How many datapoints are looked at."""
        return int(self.params["EvaluationPeriods"])

    def judge(self, datapoints: Sequence[Datapoint], end: datetime) -> str:
        """Return the state that the newest datapoints before `end` ask for; absent ones are treated as it says."""
        wanted = int(self.params.get("DatapointsToAlarm", self.periods))
        known = datapoints[-self.periods :]
        breaching = sum(self._breaches(value) for _, value in known)
        absent = self.periods - len(known)
        treatment = self.params.get("TreatMissingData", "missing")
        if breaching >= wanted:
            return ALARM
        if treatment == "breaching":
            return ALARM if breaching + absent >= wanted else OK
        if treatment == "notBreaching":
            return OK
        if not known:
            return self.state if treatment == "ignore" else INSUFFICIENT
        if treatment == "ignore":
            return self.state if breaching == len(known) else OK
        # What is there is all beyond the threshold: as on AWS it rings once the oldest is as old as it takes, so that
        # the first datapoint of a new metric alone does not.
        is_old = (end - known[0][0]).total_seconds() >= wanted * self.period_seconds
        return (ALARM if is_old else self.state) if breaching == len(known) else OK

    def explain(self, state: str, datapoints: Sequence[Datapoint], now: datetime) -> tuple[str, str]:
        """Return the reason of a state, in words and as AWS's JSON."""
        known = datapoints[-self.periods :]
        threshold = float(self.params["Threshold"])
        if not known:
            return "Insufficient Data: no datapoints were received.", self._data([], now)
        shown = ", ".join(f"{value} ({at:%d/%m/%y %H:%M:%S})" for at, value in reversed(known))
        words = _COMPARISONS[self.params["ComparisonOperator"]][1]
        count = sum(self._breaches(value) == (state == ALARM) for _, value in known)
        verb = f"{'was' if count == 1 else 'were'}{'' if state == ALARM else ' not'} {words}"
        wanted = int(self.params.get("DatapointsToAlarm", self.periods))
        least = wanted if state == ALARM else self.periods - wanted + 1
        minimum = f"minimum {least} datapoint{'' if least == 1 else 's'} for {_transition(state)}"
        reason = (
            f"Threshold Crossed: {count} out of the last {self.periods} datapoints [{shown}] {verb} "
            f"the threshold ({threshold}) ({minimum})."
        )
        return reason, self._data(known, now)

    def change(self, state: str, reason: str, data: str, now: datetime) -> None:
        """Enter a state and write it down."""
        before = {"stateValue": self.state, "stateReason": self.reason}
        after = {"stateValue": state, "stateReason": reason}
        if data:
            after["stateReasonData"] = json.loads(data)
        summary = f"Alarm updated from {self.state} to {state}"
        self.note("StateUpdate", summary, {"version": "1.0", "oldState": before, "newState": after}, now)
        self.state, self.reason, self.reason_data, self.updated = state, reason, data, now

    def note(self, kind: str, summary: str, data: Mapping[str, Any], now: datetime) -> None:
        """Add to the history; what is oldest goes first."""
        self.history.append(
            {
                "AlarmName": self.name,
                "AlarmType": "MetricAlarm",
                "Timestamp": now,
                "HistoryItemType": kind,
                "HistorySummary": summary,
                "HistoryData": json.dumps(data, default=str),
            }
        )
        del self.history[:-_MOST_HISTORY]

    def describe(self) -> dict[str, Any]:
        """Return the alarm as DescribeAlarms shows it."""
        members = {key: value for key, value in self.params.items() if key != "Tags"}
        defaults = {"ActionsEnabled": True, "OKActions": [], "AlarmActions": [], "InsufficientDataActions": []}
        shown = {**defaults, "Dimensions": [], **members, "AlarmName": self.name, "AlarmArn": self.arn}
        if "Metrics" in shown:
            del shown["Dimensions"]
        return {
            **shown,
            "AlarmConfigurationUpdatedTimestamp": self.configured,
            "StateValue": self.state,
            "StateReason": self.reason,
            **({"StateReasonData": self.reason_data} if self.reason_data else {}),
            "StateUpdatedTimestamp": self.updated,
            "StateTransitionedTimestamp": self.updated,
        }

    def _breaches(self, value: float) -> bool:
        return bool(_COMPARISONS[self.params["ComparisonOperator"]][0](value, float(self.params["Threshold"])))

    def _data(self, known: Sequence[Datapoint], now: datetime) -> str:
        statistic = self.params.get("Statistic") or self.params.get("ExtendedStatistic")
        data = {
            "version": "1.0",
            "queryDate": stamp(now),
            **({"startDate": stamp(known[0][0])} if known else {}),
            **({"statistic": statistic} if statistic else {}),
            "period": self.period_seconds,
            "recentDatapoints": [value for _, value in known],
            "threshold": float(self.params["Threshold"]),
            "evaluatedDatapoints": [{"timestamp": stamp(at), "value": value} for at, value in reversed(known)],
        }
        return json.dumps(data)


def _transition(state: str) -> str:
    return "OK -> ALARM transition" if state == ALARM else "ALARM -> OK transition"


def stamp(moment: datetime) -> str:
    """Return a moment as CloudWatch writes it into its JSON."""
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}+0000"
