"""Tuning jobs: what is asked of AWS, what the trials are told to be, and what is left when they are deleted."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest

from opslib.aws import roles, storage, trainers, training, tuning
from opslib.aws.ledger import start_run
from opslib.aws.logs import TRAINING_GROUP, list_log_streams
from opslib.aws.session import client
from opslib.aws.sweeping import find_leftovers, sweep
from opslib.errors import AwsError, ConfigurationError, TrainingFailed
from opslib.specs import METRIC_REGEXES, JobSpec, TrainingSpec, TuningSpec

SCRIPT = """
import json, math, os, pathlib, sys, time

arguments = dict(zip(sys.argv[1::2], sys.argv[2::2]))
rate, size = float(arguments["--learning_rate"]), int(arguments["--batch_size"])
if arguments["--backbone"] == "sleeps":
    time.sleep(600)
if arguments["--backbone"] == "fails":
    sys.exit("no photos")
for epoch in (1, 2):
    loss = abs(math.log10(rate) + 3) + size / 1000 + 1 / epoch
    print(f"epoch={epoch} train_loss=1.5 train_accuracy=0.5 valid_loss={loss} valid_accuracy=0.25", flush=True)
pathlib.Path(os.environ["SM_MODEL_DIR"], "model.json").write_text(json.dumps(arguments))
"""


@pytest.fixture
def staged(monkeypatch) -> None:
    """Stage SCRIPT as hpo.py instead of the project's."""

    def stage(destination: Path, *, scripts: tuple[str, ...], requirements: tuple[str, ...]) -> None:
        destination.mkdir()
        (destination / "hpo.py").write_text(SCRIPT)

    monkeypatch.setattr(trainers, "copy_bundle", stage)
    monkeypatch.setattr(trainers, "backbone_requirements", lambda _: ())


@pytest.fixture
def start(run, staged, tmp_path) -> Callable[..., str]:
    """Start a tuning job on one photo."""

    def start(search: TuningSpec, backbone: str = "works", job: JobSpec | None = None, **spec: object) -> str:
        bucket = storage.ensure_bucket(run)
        (tmp_path / "a.jpg").write_bytes(b"photo")
        return tuning.start_tuning(
            run,
            TrainingSpec(backbone=backbone, **spec),
            search,
            job or JobSpec(),
            photos_uri=storage.upload_files([("train/breed/a.jpg", tmp_path / "a.jpg")], bucket, "photos"),
            bucket=bucket,
            role=roles.ensure_execution_role(run, bucket),
        )

    return start


@pytest.fixture
def asked(start, monkeypatch) -> Callable[..., dict]:
    """Return the request of a tuning job, which botocore has built and checked, and which is not sent."""

    class Caught(Exception):
        pass

    def asked(*arguments: object, **keywords: object) -> dict:
        requests: list[dict] = []

        def catching(session, operation, change) -> None:
            def catch(parameters: dict) -> None:
                change(parameters)
                requests.append(parameters)
                raise Caught

            trainers.before_create(session, operation, catch)

        monkeypatch.setattr(tuning, "before_create", catching)
        with pytest.raises(Caught):
            start(*arguments, **keywords)
        model = client("sagemaker").meta.service_model.operation_model("CreateHyperParameterTuningJob")
        from botocore.validate import ParamValidator

        assert not ParamValidator().validate(requests[0], model.input_shape).has_errors()
        return requests[0]

    return asked


def test_what_is_asked_of_aws(run, asked) -> None:
    parents = ("former-1", "former-2")
    search = TuningSpec("Random", 7, 3, learning_rate=(1e-4, 1e-1), batch_size=(8, 16), warm_start_from=parents)
    request = asked(search, job=JobSpec(spot=True, max_run_seconds=900), seed=5)
    name = request["HyperParameterTuningJobName"]
    assert name.startswith(run.name_prefix)
    assert len(name) <= 32
    assert ("tuning-job", name) in [(one.kind, one.identifier) for one in run.resources()]
    assert request["Tags"] == run.tags

    config = request["HyperParameterTuningJobConfig"]
    assert config["Strategy"] == "Random"
    assert config["HyperParameterTuningJobObjective"] == {"Type": "Minimize", "MetricName": "valid:loss"}
    assert config["ResourceLimits"] == {"MaxNumberOfTrainingJobs": 7, "MaxParallelTrainingJobs": 3}
    assert config["TrainingJobEarlyStoppingType"] == "Auto"
    assert config["RandomSeed"] == 0
    (rate,) = config["ParameterRanges"]["ContinuousParameterRanges"]
    assert (rate["Name"], rate["ScalingType"]) == ("learning_rate", "Logarithmic")
    assert (float(rate["MinValue"]), float(rate["MaxValue"])) == (1e-4, 1e-1)
    assert config["ParameterRanges"]["CategoricalParameterRanges"] == [{"Name": "batch_size", "Values": ["8", "16"]}]
    started_from = [
        one["HyperParameterTuningJobName"] for one in request["WarmStartConfig"]["ParentHyperParameterTuningJobs"]
    ]
    assert tuple(started_from) == parents

    trial = request["TrainingJobDefinition"]
    static = trial["StaticHyperParameters"]
    archive = static.pop("sagemaker_submit_directory")
    assert archive.startswith(f"s3://{run.name('data')}/{run.prefix}/")
    spec = TrainingSpec(backbone="works", seed=5).hyperparameters()
    searched = {"learning_rate", "batch_size"}
    assert static == {name: value for name, value in spec.items() if name not in searched} | {
        "checkpoint_dir": "/opt/ml/checkpoints", "sagemaker_program": "hpo.py",
    }  # fmt: skip
    assert trial["CheckpointConfig"]["S3Uri"] == f"s3://{run.name('data')}/{run.prefix}/checkpoints"
    assert trial["EnableManagedSpotTraining"]
    assert trial["StoppingCondition"] == {"MaxRuntimeInSeconds": 900, "MaxWaitTimeInSeconds": 1800}
    definitions = {one["Name"]: one["Regex"] for one in trial["AlgorithmSpecification"]["MetricDefinitions"]}
    assert definitions == METRIC_REGEXES


def test_grid_and_hyperband_are_asked_for_in_their_own_ways(asked) -> None:
    rates = (1e-4, 1e-3)
    grid = asked(TuningSpec("Grid", 2, learning_rate_choices=rates, batch_size=(16,), seed=3))
    ranges = grid["HyperParameterTuningJobConfig"]["ParameterRanges"]
    assert "ContinuousParameterRanges" not in ranges
    assert [[float(value) for value in one["Values"]] for one in ranges["CategoricalParameterRanges"]] == [
        [*rates],
        [16],
    ]
    assert grid["HyperParameterTuningJobConfig"]["RandomSeed"] == 3
    assert "WarmStartConfig" not in grid
    hyperband = asked(TuningSpec("Hyperband"), epochs=27)["HyperParameterTuningJobConfig"]
    assert hyperband["TrainingJobEarlyStoppingType"] == "Off"
    assert hyperband["StrategyConfig"]["HyperbandStrategyConfig"] == {"MinResource": 3, "MaxResource": 27}


def test_several_instances_for_a_trial_are_refused(start, run) -> None:
    with pytest.raises(ConfigurationError, match="instance_count is 2"):
        start(TuningSpec(), job=JobSpec(instance_count=2))
    assert "tuning-job" not in {resource.kind for resource in run.resources()}


def test_a_long_run_id_still_gives_a_name_that_fits(tmp_path) -> None:
    name = tuning._fresh_name(start_run(run_id="a" * 29, home=tmp_path))
    assert len(name) <= 32
    assert name != tuning._fresh_name(start_run(run_id="a" * 29, home=tmp_path))


def trial(name: str, rate: float, loss: float | None, status: str = "Completed") -> tuning.Trial:
    return tuning.Trial(name, status, {"learning_rate": rate, "batch_size": 64.0}, loss)


def test_the_best_trial_gives_its_values_to_the_specification() -> None:
    trials = (trial("a", 1e-2, 0.5), trial("b", 1e-3, 0.25), trial("c", 1e-4, None), trial("d", 1, float("nan")))
    stopped = trial("e", 1e-5, 0.1, "Stopped")
    assert tuning._best((stopped,)) == stopped
    progress = tuning.TuningProgress("job", "Completed", 1.0, (stopped, *trials), 5, {})
    results = tuning._results(progress)
    assert results.best.name == "b"
    spec = TrainingSpec(epochs=3)
    assert results.best_spec(spec) == TrainingSpec(epochs=3, learning_rate=1e-3, batch_size=64)
    assert isinstance(results.best_spec(spec).batch_size, int)
    with pytest.raises(TrainingFailed, match="no trial"):
        tuning._results(tuning.TuningProgress("job", "Completed", 1.0, trials[2:], 4, {}))


def test_an_unknown_tuning_job_is_an_error(rehearsal) -> None:
    with pytest.raises(AwsError, match="looking at tuning job"):
        tuning.wait_for_tuning("none")
    tuning.delete_tuning("none")
    assert not tuning.tuning_exists("none")


def test_a_tuning_job_from_start_to_an_empty_account(run, start) -> None:
    name = start(TuningSpec("Random", max_jobs=4, batch_size=(16, 32), early_stopping=False))
    looks: list[tuning.TuningProgress] = []
    results = tuning.wait_for_tuning(name, looks.append)
    assert max(sum(trial.status == "InProgress" for trial in look.trials) for look in looks) == 2
    assert [trial.status for trial in results.trials] == ["Completed"] * 4
    assert all(trial.name.startswith(f"{name}-00{number}-") for number, trial in enumerate(results.trials, 1))
    for trial in results.trials:
        rate, size = trial.hyperparameters["learning_rate"], trial.hyperparameters["batch_size"]
        assert 1e-4 <= rate <= 1e-2
        assert trial.valid_loss == pytest.approx(abs(math.log10(rate) + 3) + size / 1000 + 0.5, rel=1e-4)
    assert results.best.valid_loss == min(trial.valid_loss for trial in results.trials)
    assert tuning.tuning_results(name) == results
    assert sweep(run).leftovers == ()
    assert not any(training.training_exists(trial.name) for trial in results.trials)


def test_failed_trials_are_told_with_their_reasons(start) -> None:
    name = start(TuningSpec("Random", max_jobs=2), backbone="fails")
    with pytest.raises(TrainingFailed, match="no photos"):
        tuning.wait_for_tuning(name)


def test_a_running_tuning_job_is_stopped_and_deleted_with_its_trials(run, start) -> None:
    name = start(TuningSpec("Random", max_jobs=4), backbone="sleeps")
    for look in tuning.follow_tuning(name):
        if any(trial.status == "InProgress" for trial in look.trials):
            break
    trials = [trial.name for trial in tuning.list_trials(name)]
    tuning.delete_tuning(name)
    tuning.delete_tuning(name)
    assert not tuning.tuning_exists(name)
    assert not any(training.training_exists(trial) for trial in trials)
    assert list_log_streams(TRAINING_GROUP, name) == []
    assert {found.kind for found in find_leftovers(run)} == {"bucket", "role"}
