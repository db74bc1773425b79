"""An update that is taken back by an alarm, without anybody's help."""

import json
import subprocess
import sys
from datetime import timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path

import boto3

from tests.rehearsal.serving import IMAGE, allow, make_role, pack_model, settled, until
from tests.rehearsal.test_endpoints import create_config
from tests.rehearsal.test_rollouts import SAYS, baking, shifting
from tests.rehearsal.traffic import Traffic

ROOT = Path(__file__).parents[2]
SPEED = 60
DIMENSIONS = [{"Name": "EndpointName", "Value": "endpoint"}, {"Name": "VariantName", "Value": "AllTraffic"}]


def roll_back_a_bad_model() -> dict:
    """Update an endpoint with a model that answers 500; return what became of it."""
    sagemaker, name = boto3.client("sagemaker"), "endpoint"
    boto3.client("s3").create_bucket(Bucket="the-bucket")
    role = make_role("sagemaker.amazonaws.com", allow("*"))
    for word in ("good", "bad"):
        archive = pack_model({"code/inference.py": SAYS.format(word=word)})
        boto3.client("s3").put_object(Bucket="the-bucket", Key=f"{word}.tar.gz", Body=archive)
        container = {"Image": IMAGE, "ModelDataUrl": f"s3://the-bucket/{word}.tar.gz"}
        sagemaker.create_model(ModelName=word, ExecutionRoleArn=role, PrimaryContainer=container)
        create_config(word, word)
    sagemaker.create_endpoint(EndpointName=name, EndpointConfigName="good")
    boto3.client("cloudwatch").put_metric_alarm(
        AlarmName="errors",
        Namespace="AWS/SageMaker",
        MetricName="Invocation5XXErrors",
        Dimensions=DIMENSIONS,
        Statistic="Sum",
        Period=60,
        EvaluationPeriods=1,
        Threshold=1.0,
        ComparisonOperator="GreaterThanOrEqualToThreshold",
        TreatMissingData="notBreaching",
    )
    settled(name)
    with Traffic(name, threads=2, pause_seconds=0.005) as traffic:
        config = shifting("CANARY", percent=10, wait=600, alarms=("errors",))
        sagemaker.update_endpoint(EndpointName=name, EndpointConfigName="bad", DeploymentConfig=config)
        until(lambda: baking(name))
        first = len(traffic.attempts)
        description = settled(name)
        last = len(traffic.attempts)
        until(lambda: len(traffic.attempts) > last + 20)
    return {
        "status": description["EndpointStatus"],
        "config": description["EndpointConfigName"],
        "reason": description.get("FailureReason", ""),
        "canary": last - first,
        "failed": len(traffic.failures),
        "failed_afterwards": sum(bool(attempt.error) for attempt in traffic.attempts[last + 3 :]),
        "answers": dict(traffic.answers),
        "sent": len(traffic.attempts),
        "metrics": {name: metric_sum(name) / SPEED for name in ("Invocations", "Invocation5XXErrors")},
    }


def metric_sum(name: str) -> float:
    """Return the sum of a metric of the endpoint since it was made."""
    cloudwatch = boto3.client("cloudwatch")
    headers = cloudwatch.list_metrics()["ResponseMetadata"]["HTTPHeaders"]
    now = parsedate_to_datetime(headers["date"])
    points = cloudwatch.get_metric_statistics(
        Namespace="AWS/SageMaker",
        MetricName=name,
        Dimensions=DIMENSIONS,
        StartTime=now - timedelta(hours=1),
        EndTime=now + timedelta(minutes=1),
        Period=60,
        Statistics=["Sum"],
    )["Datapoints"]
    return sum(point["Sum"] for point in points)


PROGRAM = """
import json
from opslib import rehearsal
from tests.rehearsal.test_rollback import SPEED, roll_back_a_bad_model

with rehearsal.start(speed=SPEED):
    print(json.dumps(roll_back_a_bad_model()))
"""


def test_a_canary_that_answers_500_is_rolled_back_by_its_alarm():
    """It runs in a rehearsal of its own: on its clock a minute is a second."""
    ended = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    result = json.loads(ended.stdout)
    assert (result["status"], result["config"]) == ("InService", "good")
    assert "errors" in result["reason"]
    assert 0 < result["failed"] <= 0.1 * result["canary"] + 2  # the canary's share, and what was under way
    assert result["failed_afterwards"] == 0
    assert result["answers"]["good"] > result["failed"]
    assert result["metrics"] == {"Invocations": result["sent"], "Invocation5XXErrors": result["failed"]}
