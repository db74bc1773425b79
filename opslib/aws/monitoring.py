"""CloudWatch: an endpoint's metrics as rows, and alarms that watch them.

What "now" is, AWS says: the `Date` of a reply. In a rehearsal whose clock runs faster it is that clock's time.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

from opslib.aws.endpoints import VARIANT
from opslib.aws.failures import explained
from opslib.aws.ledger import Run
from opslib.aws.session import client
from opslib.errors import ConfigurationError

NAMESPACE = "AWS/SageMaker"
INSTANCES_NAMESPACE = "/aws/sagemaker/Endpoints"
_OF_INSTANCES = frozenset({"CPUUtilization", "MemoryUtilization", "DiskUtilization", "GPUUtilization"})


@dataclass(frozen=True)
class AlarmRule:
    """When an alarm rings: a statistic of a metric above a threshold, so many periods one after the other."""

    metric: str = "Invocation5XXErrors"
    statistic: str = "Sum"
    threshold: float = 0.0
    period_seconds: int = 60
    periods: int = 1


def cloudwatch_now() -> datetime:
    """Return the time at which CloudWatch is.

    Raises:
        AwsError: AWS refused.
    """
    with explained("asking CloudWatch for the time"):
        reply = client("cloudwatch").describe_alarms(MaxRecords=1)
    return parsedate_to_datetime(reply["ResponseMetadata"]["HTTPHeaders"]["date"]).astimezone(UTC)


def endpoint_metrics(
    endpoint_name: str,
    metrics: Sequence[tuple[str, str]],
    *,
    minutes: int = 60,
    period_seconds: int = 60,
    variant: str = VARIANT,
) -> dict[str, Any]:
    """Return series of an endpoint's metrics over the last minutes, as GetMetricData replies.

    Args:
        endpoint_name: The endpoint.
        metrics: Names and statistics, e.g. `[("Invocations", "Sum"), ("ModelLatency", "p95")]`.
        minutes: How far back, in minutes of CloudWatch's clock.
        period_seconds: The length of a datapoint.
        variant: The production variant.

    Returns:
        `MetricDataResults`, each with `Label` (`Invocations Sum`), `Timestamps` (oldest first) and `Values`.

    Raises:
        AwsError: AWS refused.
    """
    queries = [
        {
            "Id": f"m{number}",
            "Label": f"{name} {statistic}",
            "MetricStat": {
                "Metric": _metric(endpoint_name, name, variant),
                "Period": period_seconds,
                "Stat": statistic,
            },
        }
        for number, (name, statistic) in enumerate(metrics)
    ]
    end = cloudwatch_now()
    with explained(f"reading the metrics of endpoint {endpoint_name}"):
        return client("cloudwatch").get_metric_data(
            MetricDataQueries=queries,
            StartTime=end - timedelta(minutes=minutes),
            EndTime=end,
            ScanBy="TimestampAscending",
        )


def ensure_alarm(run: Run, suffix: str, rule: AlarmRule, *, endpoint_name: str, variant: str = VARIANT) -> str:
    """Make an alarm on an endpoint's metric, or change it, and return its name.

    No data counts as quiet: an endpoint that nobody asks makes no errors.

    Raises:
        ConfigurationError: `suffix` does not make a name.
        AwsError: AWS refused.
    """
    if not 1 <= rule.periods <= 10:
        raise ConfigurationError(f"periods is {rule.periods}; it is a number from 1 to 10")
    name = run.name(suffix)
    is_percentile = rule.statistic.startswith("p")
    run.record("alarm", name)
    with explained(f"making alarm {name}"):
        client("cloudwatch").put_metric_alarm(
            AlarmName=name,
            AlarmDescription=f"{rule.metric} of endpoint {endpoint_name}",
            **_metric(endpoint_name, rule.metric, variant),
            **{"ExtendedStatistic" if is_percentile else "Statistic": rule.statistic},
            Period=rule.period_seconds,
            EvaluationPeriods=rule.periods,
            Threshold=rule.threshold,
            ComparisonOperator="GreaterThanThreshold",
            TreatMissingData="notBreaching",
            Tags=run.tags,
        )
    return name


def alarm_states(names: Sequence[str]) -> dict[str, str]:
    """Return OK, ALARM or INSUFFICIENT_DATA for each alarm that is there.

    Raises:
        AwsError: AWS refused.
    """
    if not names:
        return {}
    with explained("looking at alarms"):
        found = client("cloudwatch").describe_alarms(AlarmNames=list(names))["MetricAlarms"]
    return {alarm["AlarmName"]: alarm["StateValue"] for alarm in found}


def alarm_exists(name: str) -> bool:
    """Tell whether there is an alarm of that name.

    Raises:
        AwsError: AWS refused.
    """
    return name in alarm_states([name])


def list_alarms(prefix: str) -> list[str]:
    """Return the names of the alarms that begin with `prefix`.

    Raises:
        AwsError: AWS refused.
    """
    with explained("listing alarms"):
        pages = client("cloudwatch").get_paginator("describe_alarms").paginate(AlarmNamePrefix=prefix)
        return [alarm["AlarmName"] for page in pages for alarm in page["MetricAlarms"]]


def delete_alarm(name: str) -> None:
    """Delete an alarm; succeeds when it is already gone.

    Raises:
        AwsError: AWS refused.
    """
    with explained(f"deleting alarm {name}"):
        client("cloudwatch").delete_alarms(AlarmNames=[name])


def _metric(endpoint_name: str, name: str, variant: str) -> dict[str, Any]:
    dimensions = {"EndpointName": endpoint_name, "VariantName": variant}
    return {
        "Namespace": INSTANCES_NAMESPACE if name in _OF_INSTANCES else NAMESPACE,
        "MetricName": name,
        "Dimensions": [{"Name": key, "Value": value} for key, value in dimensions.items()],
    }
