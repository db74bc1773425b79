"""What an alarm does when its state changes: it tells the SNS topics among its actions (scaling listens by itself).

Source: docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/alarms-and-actions.html
"""

import json
import logging
from collections.abc import Mapping
from datetime import datetime
from functools import cache
from typing import Any

from botocore.loaders import create_loader
from moto.core.exceptions import ServiceException
from moto.sns.models import sns_backends

from opslib.rehearsal.calls import ACCOUNT_ID, ServiceError
from opslib.rehearsal.monitoring.alarms import ALARM, INSUFFICIENT, OK, Alarm, stamp

logger = logging.getLogger(__name__)

ACTIONS = {ALARM: "AlarmActions", OK: "OKActions", INSUFFICIENT: "InsufficientDataActions"}
_PERFORMED = frozenset({"sns", "autoscaling"})
_SHOWN = ("Period", "EvaluationPeriods", "DatapointsToAlarm", "ComparisonOperator", "Threshold")


def check_actions(params: Mapping[str, Any]) -> None:
    """Refuse actions that would not be performed.

    Raises:
        ServiceError: NotImplemented; ValidationError, of what is no ARN.
    """
    for action in (one for member in ACTIONS.values() for one in params.get(member, [])):
        if action.count(":") < 5:
            raise ServiceError("ValidationError", f"Invalid arn syntax: {action}")
        service = action.split(":")[2]
        if service == "sns" and action.split(":")[3] not in sns_backends[ACCOUNT_ID]:
            raise ServiceError("ValidationError", f"Invalid region {action.split(':')[3]} in {action}")
        if service not in _PERFORMED:
            raise ServiceError("NotImplemented", f"alarm actions of {service} cannot be rehearsed", status=501)


def perform_actions(alarm: Alarm, state_before: str, now: datetime) -> None:
    """Tell the topics of the alarm's state, as CloudWatch words it."""
    topics = [one for one in alarm.params.get(ACTIONS[alarm.state], []) if one.split(":")[2] == "sns"]
    message = json.dumps(_message(alarm, state_before, now)) if topics else ""
    subject = f'{alarm.state}: "{alarm.name}" in {_region_name(alarm.region)}'
    for topic in topics:
        try:
            sns_backends[ACCOUNT_ID][topic.split(":")[3]].publish(message, topic, None, subject[:100])
        except ServiceException as error:  # it is gone, or is none of this account
            logger.warning("alarm %s: %s was not told: %s", alarm.name, topic, error)


def _message(alarm: Alarm, state_before: str, now: datetime) -> dict[str, Any]:
    return {
        "AlarmName": alarm.name,
        "AlarmDescription": alarm.params.get("AlarmDescription"),
        "AWSAccountId": ACCOUNT_ID,
        "AlarmConfigurationUpdatedTimestamp": stamp(alarm.configured),
        "NewStateValue": alarm.state,
        "NewStateReason": alarm.reason,
        "StateChangeTime": stamp(now),
        "Region": _region_name(alarm.region),
        "AlarmArn": alarm.arn,
        "OldStateValue": state_before,
        **{member: alarm.params.get(member, []) for member in ACTIONS.values()},
        "Trigger": _trigger(alarm.params),
    }


def _trigger(params: Mapping[str, Any]) -> dict[str, Any]:
    how = {name: params[name] for name in _SHOWN if name in params}
    how["TreatMissingData"] = params.get("TreatMissingData", "missing")
    if "Metrics" in params:
        return {**how, "Metrics": params["Metrics"]}
    kind = "Statistic" if "Statistic" in params else "ExtendedStatistic"
    return {
        "MetricName": params["MetricName"],
        "Namespace": params["Namespace"],
        "StatisticType": kind,
        kind: params[kind].upper() if kind == "Statistic" else params[kind],
        "Unit": params.get("Unit"),
        "Dimensions": [{"value": one["Value"], "name": one["Name"]} for one in params.get("Dimensions", [])],
        **how,
    }


@cache
def _region_name(region: str) -> str:
    """Return a region's name as the console has it, e.g. US East (N. Virginia)."""
    partitions = create_loader().load_data("partitions")["partitions"]
    names = {name: one["description"] for partition in partitions for name, one in partition["regions"].items()}
    return names.get(region, region)
