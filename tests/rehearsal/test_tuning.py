"""Tuning jobs through boto3: trials that really run, strategies, early stopping, warm start, what AWS refuses."""

import copy
import json
import uuid
from math import log10
from statistics import median

import boto3
import pytest
from botocore.exceptions import ClientError

from opslib.rehearsal.tuning import run
from opslib.rehearsal.tuning.ranges import read_ranges
from opslib.rehearsal.tuning.strategies import build_strategy
from tests.rehearsal.jobs import TERMINAL, Job, wait_until

SCRIPT = """
import argparse, math, sys, time
parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float, default=0.01)
parser.add_argument("--batch", type=int, default=32)
parser.add_argument("--epochs", type=int, default=1)
parser.add_argument("--kind", default="good")
parser.add_argument("--seconds", type=float, default=0)
given = parser.parse_args()
if given.kind == "fails":
    sys.exit("no photos")
if given.kind != "silent":
    loss = math.log10(given.lr / 0.01) ** 2 + abs(given.batch - 64) / 64
    for epoch in range(given.epochs, 0, -1):
        print(f"valid_loss={loss + epoch - 1}", flush=True)
        time.sleep(given.seconds)
"""
LOG_LR = {"Name": "lr", "MinValue": "0.0001", "MaxValue": "1", "ScalingType": "Logarithmic"}
BATCHES = {"Name": "batch", "Values": ["16", "64"]}


class Tuning:
    """A tuning job of a test."""

    def __init__(self, role: str, bucket: str, **static: str) -> None:
        job = Job(role, bucket).script(SCRIPT, **static)
        definition = {name: value for name, value in job.request.items() if name != "TrainingJobName"}
        definition["StaticHyperParameters"] = definition.pop("HyperParameters")
        metric = {"Name": "valid:loss", "Regex": r"valid_loss=(\S+)"}
        definition["AlgorithmSpecification"]["MetricDefinitions"] = [metric]
        self.client = job.client
        self.name = f"tuning-{uuid.uuid4().hex[:12]}"
        self.request = {
            "HyperParameterTuningJobName": self.name,
            "HyperParameterTuningJobConfig": {
                "Strategy": "Random",
                "HyperParameterTuningJobObjective": {"Type": "Minimize", "MetricName": "valid:loss"},
                "ResourceLimits": {"MaxNumberOfTrainingJobs": 3, "MaxParallelTrainingJobs": 2},
                "ParameterRanges": {"ContinuousParameterRanges": [dict(LOG_LR)]},
            },
            "TrainingJobDefinition": definition,
        }

    @property
    def config(self) -> dict:
        return self.request["HyperParameterTuningJobConfig"]

    def ranges(self, **ranges: list[dict]) -> "Tuning":
        self.config["ParameterRanges"] = {f"{kind}ParameterRanges": some for kind, some in ranges.items()}
        return self

    def limits(self, trials: int, parallel: int = 2) -> "Tuning":
        limits = {"MaxNumberOfTrainingJobs": trials, "MaxParallelTrainingJobs": parallel}
        self.config["ResourceLimits"] = limits
        return self

    def create(self, **changes) -> "Tuning":
        self.client.create_hyper_parameter_tuning_job(**self.request | changes)
        return self

    def describe(self) -> dict:
        return self.client.describe_hyper_parameter_tuning_job(HyperParameterTuningJobName=self.name)

    def ended(self, **changes) -> dict:
        self.create(**changes)
        wait_until(lambda: self.describe()["HyperParameterTuningJobStatus"] in TERMINAL)
        return self.describe()

    def trials(self, **filters) -> list[dict]:
        pages = self.client.get_paginator("list_training_jobs_for_hyper_parameter_tuning_job").paginate(
            HyperParameterTuningJobName=self.name, PaginationConfig={"PageSize": 2}, **filters
        )  # fmt: skip
        return [trial for page in pages for trial in page["TrainingJobSummaries"]]

    def tried(self, name: str = "lr") -> list[float]:
        return [float(trial["TunedHyperParameters"][name]) for trial in self.trials()]

    def refused(self, **changes) -> str:
        with pytest.raises(ClientError) as error:
            self.create(**changes)
        assert error.value.response["Error"]["Code"] == "ValidationException"
        return error.value.response["Error"]["Message"]


@pytest.fixture
def tuning(role, bucket) -> Tuning:
    return Tuning(role, bucket)


def objective(trial: dict) -> float:
    return trial["FinalHyperParameterTuningJobObjectiveMetric"]["Value"]


def test_trials_are_training_jobs_and_the_best_is_told(tuning):
    tags = [{"Key": "opslib:run", "Value": tuning.name}]
    described = tuning.ended(Tags=tags)
    assert described["HyperParameterTuningJobStatus"] == "Completed", described.get("FailureReason")
    counters = {"Completed": 3, "InProgress": 0, "RetryableError": 0, "NonRetryableError": 0, "Stopped": 0}
    assert described["TrainingJobStatusCounters"] == counters
    assert described["ObjectiveStatusCounters"] == {"Succeeded": 3, "Pending": 0, "Failed": 0}
    assert "OverallBestTrainingJob" not in described
    trials = tuning.trials()
    assert [trial["TrainingJobName"][:-8] for trial in trials] == [f"{tuning.name}-00{n}-" for n in (1, 2, 3)]
    best = min(trials, key=objective)
    assert described["BestTrainingJob"] == best
    by_value = tuning.trials(SortBy="FinalObjectiveMetricValue", SortOrder="Descending")
    assert [objective(trial) for trial in by_value] == sorted(map(objective, trials), reverse=True)
    assert tuning.trials(StatusEquals="Failed") == []
    job = tuning.client.describe_training_job(TrainingJobName=best["TrainingJobName"])
    assert job["TuningJobArn"] == described["HyperParameterTuningJobArn"]
    assert job["HyperParameters"]["lr"] == best["TunedHyperParameters"]["lr"]
    assert tuning.client.list_tags(ResourceArn=job["TrainingJobArn"])["Tags"] == tags
    assert tuning.client.list_tags(ResourceArn=described["HyperParameterTuningJobArn"])["Tags"] == tags
    pages = tuning.client.get_paginator("list_hyper_parameter_tuning_jobs").paginate(NameContains=tuning.name)
    listed = [one for page in pages for one in page["HyperParameterTuningJobSummaries"]]
    assert [one["HyperParameterTuningJobName"] for one in listed] == [tuning.name]
    assert tuning.client.exceptions.ResourceInUse.__name__ == refusal(tuning.create)
    tuning.client.delete_hyper_parameter_tuning_job(HyperParameterTuningJobName=tuning.name)
    assert refusal(tuning.describe) == "ResourceNotFound"
    assert tuning.client.describe_training_job(TrainingJobName=best["TrainingJobName"])


def refusal(call) -> str:
    with pytest.raises(ClientError) as error:
        call()
    return error.value.response["Error"]["Code"]


def test_a_seed_repeats_the_proposals_and_every_scale_is_kept():
    momentum = {"Name": "momentum", "MinValue": "0", "MaxValue": "0.999", "ScalingType": "ReverseLogarithmic"}
    batch = {"Name": "batch", "MinValue": "8", "MaxValue": "128", "ScalingType": "Linear"}
    ranges = {"Continuous": [LOG_LR, momentum], "Integer": [batch]}
    described = {f"{kind}ParameterRanges": some for kind, some in ranges.items()}
    drawn = [
        [strategy.propose().values for _ in range(400)]
        for strategy in (
            build_strategy("Random", read_ranges(described), "Minimize", seed, (1, 1)) for seed in (7, 7, 8)
        )
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    lrs, momenta, batches = ([float(one[name]) for one in drawn[0]] for name in ("lr", "momentum", "batch"))
    assert 0.0001 <= min(lrs) < max(lrs) <= 1
    assert 0.003 < median(lrs) < 0.03
    assert 0 <= min(momenta) < 0.9 < median(momenta) < 0.99 < max(momenta) <= 0.999
    assert 8 <= min(batches) < 12 < 124 < max(batches) <= 128
    assert 55 < median(batches) < 81


def test_bayesian_search_closes_in_on_the_optimum():
    def best_of(name: str, seed: int) -> float:
        ranges = read_ranges({"ContinuousParameterRanges": [LOG_LR], "CategoricalParameterRanges": [BATCHES]})
        strategy, losses = build_strategy(name, ranges, "Minimize", seed, (1, 1)), []
        for _ in range(12):
            proposal = strategy.propose()
            loss = log10(float(proposal.values["lr"]) / 0.01) ** 2 + (proposal.values["batch"] == "16")
            strategy.tell(proposal, loss, was_stopped=False)
            losses.append(loss)
        return min(losses)

    seeds = range(9)
    assert median(best_of("Bayesian", seed) for seed in seeds) < median(best_of("Random", seed) for seed in seeds)


def test_a_grid_is_tried_once_and_whole(tuning):
    tuning.ranges(Categorical=[BATCHES, {"Name": "lr", "Values": ["0.01", "0.1"]}])
    tuning.config["Strategy"] = "Grid"
    assert "MaxNumberOfTrainingJobs [3]" in tuning.refused()
    del tuning.config["ResourceLimits"]["MaxNumberOfTrainingJobs"]
    best = tuning.ended()["BestTrainingJob"]
    assert best["TunedHyperParameters"] == {"batch": "64", "lr": "0.01"}
    tried = [(one["TunedHyperParameters"]["batch"], one["TunedHyperParameters"]["lr"]) for one in tuning.trials()]
    assert sorted(tried) == [("16", "0.01"), ("16", "0.1"), ("64", "0.01"), ("64", "0.1")]


def test_warm_start_learns_from_parents(tuning, role, bucket):
    tuning.config["Strategy"] = "Bayesian"
    parent = tuning.limits(4, 4).ended()["BestTrainingJob"]
    child = Tuning(role, bucket).limits(1, 1)
    child.config["Strategy"] = "Bayesian"
    start = {
        "ParentHyperParameterTuningJobs": [{"HyperParameterTuningJobName": tuning.name}],
        "WarmStartType": "IdenticalDataAndAlgorithm",
    }
    described = child.ended(WarmStartConfig=start)
    own = described["BestTrainingJob"]
    overall = described["OverallBestTrainingJob"]
    assert objective(overall) == min(objective(own), objective(parent))
    owner = child.name if objective(own) < objective(parent) else tuning.name
    assert overall["TuningJobName"] == owner
    child.request["TrainingJobDefinition"]["StaticHyperParameters"]["epochs"] = "2"
    assert child.refused(HyperParameterTuningJobName="other", WarmStartConfig=start).startswith(
        "The set of tunable plus static HyperParameter names is not the same across current and parent tuning jobs."
    )
    start["ParentHyperParameterTuningJobs"] = [{"HyperParameterTuningJobName": "nobody"}]
    assert "nobody" in child.refused(HyperParameterTuningJobName="other", WarmStartConfig=start)


def test_a_hopeless_trial_is_stopped_early(role, bucket, monkeypatch):
    monkeypatch.setattr(run, "EARLY_STOPPING_AFTER_SECONDS", 0.0)
    tuning = Tuning(role, bucket, epochs="3", seconds="0.2").limits(5, 1)
    tuning.ranges(Categorical=[{"Name": "lr", "Values": ["0.01", "0.011", "0.012", "1", "0.013"]}])
    tuning.config.update({"Strategy": "Grid", "TrainingJobEarlyStoppingType": "Auto"})
    described = tuning.ended()
    assert described["HyperParameterTuningJobStatus"] == "Completed"
    assert described["TrainingJobStatusCounters"]["Stopped"] >= 1
    hopeless = tuning.trials()[3]
    assert (hopeless["TrainingJobStatus"], hopeless["ObjectiveStatus"]) == ("Stopped", "Succeeded")
    assert objective(hopeless) > 4


def test_hyperband_stops_at_its_rungs(role, bucket):
    tuning = Tuning(role, bucket, epochs="9", seconds="0.05").limits(8, 2)
    epochs = {"HyperbandStrategyConfig": {"MinResource": 1, "MaxResource": 9}}
    tuning.config.update({"Strategy": "Hyperband", "RandomSeed": 1, "StrategyConfig": epochs})
    described = tuning.ended()
    counters = described["TrainingJobStatusCounters"]
    assert counters["Stopped"] >= 2
    assert counters["Stopped"] + counters["Completed"] == 8
    assert described["BestTrainingJob"]["TrainingJobStatus"] == "Completed"


def test_stopping_a_job_stops_its_trials(role, bucket):
    tuning = Tuning(role, bucket, seconds="100").create()
    wait_until(lambda: len(tuning.trials(StatusEquals="InProgress")) == 2)
    assert tuning.describe()["TrainingJobStatusCounters"]["InProgress"] == 2
    assert refusal(
        lambda: tuning.client.delete_hyper_parameter_tuning_job(HyperParameterTuningJobName=tuning.name)
    ) == ("ResourceInUse")
    tuning.client.stop_hyper_parameter_tuning_job(HyperParameterTuningJobName=tuning.name)
    assert tuning.describe()["HyperParameterTuningJobStatus"] in {"Stopping", "Stopped"}
    wait_until(lambda: tuning.describe()["HyperParameterTuningJobStatus"] == "Stopped")
    assert [trial["TrainingJobStatus"] for trial in tuning.trials()] == ["Stopped"] * 2
    stop = tuning.client.stop_hyper_parameter_tuning_job
    assert refusal(lambda: stop(HyperParameterTuningJobName=tuning.name)) == "ValidationException"
    assert refusal(lambda: stop(HyperParameterTuningJobName="nobody")) == "ResourceNotFound"


@pytest.mark.parametrize(
    ("kinds", "status", "reason"),
    [
        (["silent", "good"], "Completed", None),
        (["silent", "fails"], "Failed", "No objective metrics found after running 2 training jobs."),
        (["fails", "fails2"], "Failed", "No training job succeeded after 2 attempts."),
    ],
)
def test_trials_without_an_objective(tuning, kinds, status, reason):
    values = [kind.rstrip("2") for kind in kinds]
    tuning.ranges(Categorical=[{"Name": "kind", "Values": values if len(set(values)) == 2 else ["fails"]}])
    if len(set(values)) == 1:
        tuning.ranges(Categorical=[{"Name": "kind", "Values": ["fails"]}, BATCHES])
    tuning.config["Strategy"] = "Grid"
    del tuning.config["ResourceLimits"]["MaxNumberOfTrainingJobs"]
    described = tuning.ended()
    assert described["HyperParameterTuningJobStatus"] == status
    assert reason is None or described["FailureReason"].startswith(reason)
    failed = [trial for trial in tuning.trials() if trial["ObjectiveStatus"] == "Failed"]
    assert len(failed) == (1 if status == "Completed" else 2)
    assert all("FinalHyperParameterTuningJobObjectiveMetric" not in trial for trial in failed)


def continuous(low: str, high: str, scaling: str = "Linear") -> dict:
    one = {"Name": "lr", "MinValue": low, "MaxValue": high, "ScalingType": scaling}
    return {"ParameterRanges": {"ContinuousParameterRanges": [one]}}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (continuous("1", "0.1"), "must be less than its maximum"),
        (continuous("a", "b"), "no range of numbers"),
        (continuous("0", "1", "Logarithmic"), "positive values"),
        (continuous("0.1", "1", "ReverseLogarithmic"), "0 <= x < 1"),
        ({"ParameterRanges": {}}, "from 1 to 30 hyperparameters, not 0"),
        ({"Strategy": "Grid"}, "categorical hyperparameters only"),
        ({"Strategy": "Hyperband"}, "MaxResource is required"),
        ({"Strategy": "Hyperband", "TrainingJobEarlyStoppingType": "Auto"}, "must be Off"),
        ({"ResourceLimits": {"MaxParallelTrainingJobs": 1}}, "MaxNumberOfTrainingJobs is required"),
        ({"HyperParameterTuningJobObjective": {"Type": "Minimize", "MetricName": "loss"}}, "A metric is required"),
        ({"ParameterRanges": {"CategoricalParameterRanges": [BATCHES]}}, "combinations for the provided ranges [2.0]"),
    ],
)  # fmt: skip
def test_requests_that_aws_refuses(tuning, changes, words):
    assert words in tuning.refused(HyperParameterTuningJobConfig=tuning.config | changes)
    assert refusal(tuning.describe) == "ResourceNotFound"


def test_the_creator_needs_its_permissions(tuning, role):
    iam = boto3.client("iam")
    user = f"user-{uuid.uuid4().hex[:8]}"
    iam.create_user(UserName=user)
    key = iam.create_access_key(UserName=user)["AccessKey"]
    mine = boto3.client("sagemaker", aws_access_key_id=key["AccessKeyId"], aws_secret_access_key=key["SecretAccessKey"])
    arn = f"arn:aws:sagemaker:us-east-1:000000000000:hyper-parameter-tuning-job/{tuning.name}"

    def denied() -> str:
        with pytest.raises(ClientError) as error:
            mine.create_hyper_parameter_tuning_job(**tuning.request)
        assert error.value.response["Error"]["Code"] == "AccessDeniedException"
        return error.value.response["Error"]["Message"]

    assert f"sagemaker:CreateHyperParameterTuningJob on resource: {arn}" in denied()
    allowed = {"Effect": "Allow", "Action": "sagemaker:CreateHyperParameterTuningJob", "Resource": arn}
    document = {"Version": "2012-10-17", "Statement": [allowed]}
    iam.put_user_policy(UserName=user, PolicyName="own", PolicyDocument=json.dumps(document))
    assert f"iam:PassRole on resource: {role}" in denied()
    foreign = copy.deepcopy(tuning.request["TrainingJobDefinition"]) | {"RoleArn": role + "-missing"}
    assert "Could not assume role" in tuning.refused(TrainingJobDefinition=foreign)


def test_the_sdks_tuner_tunes(role, bucket, tmp_path, monkeypatch):
    from sagemaker.core.helper.session_helper import Session
    from sagemaker.core.parameter import CategoricalParameter, ContinuousParameter
    from sagemaker.train import ModelTrainer
    from sagemaker.train.configs import Compute, OutputDataConfig, SourceCode, StoppingCondition
    from sagemaker.train.tuner import HyperparameterTuner

    monkeypatch.setenv("SAGEMAKER_VALIDATE_ROLE", "false")
    (tmp_path / "train.py").write_text(SCRIPT)
    session = Session(default_bucket=bucket, default_bucket_prefix="sdk")
    trainer = ModelTrainer(
        sagemaker_session=session, role=role, training_image="image", base_job_name="sdk",
        source_code=SourceCode(source_dir=str(tmp_path), entry_script="train.py"),
        compute=Compute(instance_type="ml.m5.large", instance_count=1, volume_size_in_gb=1),
        stopping_condition=StoppingCondition(max_runtime_in_seconds=60),
        output_data_config=OutputDataConfig(s3_output_path=f"s3://{bucket}/jobs"),
        hyperparameters={"epochs": 2},
    )  # fmt: skip
    tuner = HyperparameterTuner(
        trainer, "valid:loss",
        {"lr": ContinuousParameter(1e-4, 1, "Logarithmic"), "batch": CategoricalParameter([16, 64])},
        [{"Name": "valid:loss", "Regex": r"valid_loss=(\S+)"}],
        strategy="Bayesian", objective_type="Minimize", max_jobs=3, max_parallel_jobs=3, random_seed=1,
    )  # fmt: skip
    tuner.tune(inputs=None, wait=False)
    name = tuner.latest_tuning_job.hyper_parameter_tuning_job_name
    wait_until(lambda: tuner.describe().hyper_parameter_tuning_job_status in TERMINAL)
    client = boto3.client("sagemaker")
    described = client.describe_hyper_parameter_tuning_job(HyperParameterTuningJobName=name)
    assert described["ObjectiveStatusCounters"]["Succeeded"] == 3, described
    assert tuner.best_training_job() == described["BestTrainingJob"]["TrainingJobName"]
