"""Tuning jobs: many trainings of `hpo.py`, each with other hyperparameters, and the one that validates best.

Built on the SageMaker SDK's HyperparameterTuner. It ships the code in script mode, as an archive that the framework
container's toolkit unpacks and runs: a tuning job has no entry point of its own, so torchrun cannot be applied to it,
and each trial is one instance.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from opslib import specs
from opslib.aws.failures import explained, gone_is_fine, masked
from opslib.aws.ledger import Run, new_token
from opslib.aws.progress import ENDED
from opslib.aws.roles import once_role_is_known
from opslib.aws.session import client
from opslib.aws.trainers import before_create, build_trainer, photos_channel, staged_code
from opslib.aws.training import delete_training
from opslib.errors import AwsError, ConfigurationError, TrainingFailed
from opslib.specs import JobSpec, TrainingSpec, TuningSpec

if TYPE_CHECKING:
    from sagemaker.core.shapes import HyperParameterTuningJobStrategyConfig, HyperParameterTuningJobWarmStartConfig
    from sagemaker.train.tuner import HyperparameterTuner

LONGEST_TUNING_NAME = 32
"""SageMaker's limit: it appends 13 characters to name the trials."""

_FAST_POLL_SECONDS, _SLOW_POLL_SECONDS, _FAST_FOR_SECONDS = 1.0, 10.0, 120.0
_STOP_POLL_SECONDS, _STOP_SECONDS = 1.0, 1800.0


@dataclass(frozen=True)
class Trial:
    """One training of a tuning job.

    Attributes:
        name: The training job's.
        status: TrainingJobStatus; `Stopped` is also what early stopping leaves.
        hyperparameters: The values that it tried, by name; `learning_rate` and `batch_size`.
        valid_loss: Its objective in nats per photo; None until it has ended, or when it never printed one.
        train_seconds: From its start to its end, or until now.
        failure: Why it failed, if it did.
    """

    name: str
    status: str
    hyperparameters: dict[str, float]
    valid_loss: float | None = None
    train_seconds: float = 0.0
    failure: str = ""


@dataclass(frozen=True)
class TuningProgress:
    """One look at a tuning job: its status, the seconds since it was created, its trials so far, and how many it wants.

    `description` is what DescribeHyperParameterTuningJob answered.
    """

    name: str
    status: str
    elapsed_seconds: float
    trials: tuple[Trial, ...]
    max_jobs: int
    description: dict[str, Any]

    @property
    def ended(self) -> bool:
        """Whether the job has reached its last state."""
        return self.status in ENDED

    @property
    def best(self) -> Trial | None:
        """The trial with the lowest validation loss so far; one that was stopped only if no other has ended."""
        return _best(self.trials)


@dataclass(frozen=True)
class TuningResults:
    """A tuning job that ended: its trials in the order in which they began, and the best of them."""

    name: str
    trials: tuple[Trial, ...]
    best: Trial

    def best_spec(self, spec: TrainingSpec) -> TrainingSpec:
        """Return `spec` with the best trial's values."""
        values = self.best.hyperparameters
        return replace(
            spec,
            learning_rate=values.get("learning_rate", spec.learning_rate),
            batch_size=int(values.get("batch_size", spec.batch_size)),
        )


def start_tuning(  # noqa: PLR0913  the arguments of start_training, and what to search
    run: Run, spec: TrainingSpec, tuning: TuningSpec, job: JobSpec, *, photos_uri: str, bucket: str, role: str
) -> str:
    """Start a tuning job, and return its name without waiting.

    Args:
        run: The run that the job and its trials belong to.
        spec: What all trials have in common; its learning rate and batch size are what is searched.
        tuning: What to search, and how many trials, so many at a time.
        job: The machine of each trial.
        photos_uri: S3 prefix that holds train/, valid/ and test/.
        bucket: Where the SDK stages the code, and where models and checkpoints go, under the run's prefix.
        role: ARN of the execution role.

    Raises:
        ConfigurationError: `job` asks for several instances.
        AwsError: AWS refused.
    """
    if job.instance_count != 1:
        raise ConfigurationError(
            f"instance_count is {job.instance_count}, but nothing joins the instances of a tuning job's trial",
            hint="tune with instance_count=1 and more max_parallel_jobs, then train the best on several instances",
        )
    name = _fresh_name(run)
    with staged_code(spec) as source, explained("starting the tuning job"):
        # The tuner puts the archive of code straight under the trainer's base name, past the session's prefix.
        base_name = f"{run.prefix}/{name}"
        trainer = build_trainer(run, spec, job, place=(bucket, role), source=source, base_name=base_name)
        tuner = _tuner(trainer, spec, tuning)
        # The SDK takes a seed of 0 for none (`_build_tuning_job_config` in sagemaker 3.27).
        before_create(
            trainer.sagemaker_session,
            "CreateHyperParameterTuningJob",
            lambda parameters: parameters["HyperParameterTuningJobConfig"].update(RandomSeed=tuning.seed),
        )
        run.record("tuning-job", name)
        channels = [photos_channel(photos_uri, job)]
        once_role_is_known(role, lambda: tuner.tune(inputs=channels, job_name=name, wait=False))
    return name


def _fresh_name(run: Run) -> str:
    """Return a name that fits SageMaker's 32 characters: the run's own prefix where that leaves room for a token.

    The trials' names begin with it. A longer run id is in the tags only, which the trials inherit.
    """
    prefix = run.name_prefix if len(run.name_prefix) + 3 <= LONGEST_TUNING_NAME else "opslib-tuning-"
    return f"{prefix}{new_token(min(8, LONGEST_TUNING_NAME - len(prefix)))}"


def _tuner(trainer: Any, spec: TrainingSpec, tuning: TuningSpec) -> "HyperparameterTuner":
    from sagemaker.core.parameter import CategoricalParameter, ContinuousParameter
    from sagemaker.train.tuner import HyperparameterTuner

    rates = list(tuning.learning_rate_choices)
    learning_rate = CategoricalParameter(rates) if rates else ContinuousParameter(*tuning.learning_rate, "Logarithmic")
    # Hyperband has an early stopping of its own, and SageMaker refuses a second one beside it.
    early_stopping = tuning.early_stopping and tuning.strategy != "Hyperband"
    return HyperparameterTuner(
        trainer,
        specs.OBJECTIVE_METRIC,
        {"learning_rate": learning_rate, "batch_size": CategoricalParameter(list(tuning.batch_size))},
        metric_definitions=[{"Name": name, "Regex": regex} for name, regex in specs.METRIC_REGEXES.items()],
        strategy=tuning.strategy,
        strategy_config=_strategy_config(spec, tuning),
        objective_type="Minimize",
        max_jobs=tuning.max_jobs,
        max_parallel_jobs=tuning.max_parallel_jobs,
        early_stopping_type="Auto" if early_stopping else "Off",
        warm_start_config=_warm_start(tuning),
    )


def _strategy_config(spec: TrainingSpec, tuning: TuningSpec) -> "HyperParameterTuningJobStrategyConfig | None":
    """Hyperband counts epochs: it ends the worse trials after a ninth of them, and again after a third."""
    from sagemaker.core.shapes import HyperbandStrategyConfig, HyperParameterTuningJobStrategyConfig

    if tuning.strategy != "Hyperband":
        return None
    epochs = HyperbandStrategyConfig(min_resource=max(1, spec.epochs // 9), max_resource=spec.epochs)
    return HyperParameterTuningJobStrategyConfig(hyperband_strategy_config=epochs)


def _warm_start(tuning: TuningSpec) -> "HyperParameterTuningJobWarmStartConfig | None":
    """Learn from former jobs. TransferLearning lets ranges and photos differ from theirs, the other type does not."""
    from sagemaker.core.shapes import HyperParameterTuningJobWarmStartConfig, ParentHyperParameterTuningJob

    if not tuning.warm_start_from:
        return None
    parents = [ParentHyperParameterTuningJob(hyper_parameter_tuning_job_name=name) for name in tuning.warm_start_from]
    return HyperParameterTuningJobWarmStartConfig(
        parent_hyper_parameter_tuning_jobs=parents, warm_start_type="TransferLearning"
    )


def follow_tuning(name: str) -> Iterator[TuningProgress]:
    """Look at a tuning job every second (after two minutes: every ten) until it has ended, and yield each look.

    Raises:
        AwsError: there is no such job, or AWS refused.
    """
    while True:
        progress = _look(name)
        yield progress
        if progress.ended:
            return
        is_young = progress.elapsed_seconds < _FAST_FOR_SECONDS
        time.sleep(_FAST_POLL_SECONDS if is_young else _SLOW_POLL_SECONDS)


def _look(name: str) -> TuningProgress:
    with explained(f"looking at tuning job {name}"):
        description = client("sagemaker").describe_hyper_parameter_tuning_job(HyperParameterTuningJobName=name)
    end = description.get("HyperParameterTuningEndTime") or datetime.now(UTC)
    return TuningProgress(
        name=name,
        status=description["HyperParameterTuningJobStatus"],
        elapsed_seconds=max(0.0, (end - description["CreationTime"]).total_seconds()),
        trials=list_trials(name),
        max_jobs=description["HyperParameterTuningJobConfig"]["ResourceLimits"].get("MaxNumberOfTrainingJobs", 0),
        description=description,
    )


def list_trials(name: str) -> tuple[Trial, ...]:
    """Return the trials of a tuning job so far, in the order of their names: `<tuning job>-001-...`, `-002-` and on.

    Raises:
        AwsError: there is no such job, or AWS refused.
    """
    operation = "list_training_jobs_for_hyper_parameter_tuning_job"
    with explained(f"listing the trials of tuning job {name}"):
        pages = client("sagemaker").get_paginator(operation).paginate(HyperParameterTuningJobName=name)
        found = [summary for page in pages for summary in page["TrainingJobSummaries"]]
    return tuple(_trial(summary) for summary in sorted(found, key=lambda one: one["TrainingJobName"]))


def _trial(summary: dict[str, Any]) -> Trial:
    objective = summary.get("FinalHyperParameterTuningJobObjectiveMetric", {})
    started = summary.get("TrainingStartTime")
    ended = summary.get("TrainingEndTime") or datetime.now(UTC)
    return Trial(
        name=summary["TrainingJobName"],
        status=summary["TrainingJobStatus"],
        hyperparameters={key: float(value) for key, value in summary["TunedHyperParameters"].items()},
        valid_loss=objective.get("Value"),
        train_seconds=max(0.0, (ended - started).total_seconds()) if started else 0.0,
        failure=masked(summary.get("FailureReason", "")),
    )


def _best(trials: tuple[Trial, ...]) -> Trial | None:
    """Return the trial with the lowest loss, of those that ran to their end if there are any; NaN is no loss."""
    judged = [trial for trial in trials if trial.valid_loss is not None and not math.isnan(trial.valid_loss)]
    completed = [trial for trial in judged if trial.status == "Completed"]
    return min(completed or judged, key=lambda trial: trial.valid_loss or 0.0, default=None)


def wait_for_tuning(name: str, on_progress: Callable[[TuningProgress], object] | None = None) -> TuningResults:
    """Wait until a tuning job has ended, telling `on_progress` at every look, and return its results.

    Raises:
        TrainingFailed: it failed or was stopped; the message holds its reason and those of failed trials.
        AwsError: there is no such job, or AWS refused.
    """
    for progress in follow_tuning(name):
        if on_progress:
            on_progress(progress)
    if progress.status != "Completed":
        raise TrainingFailed(_failure(progress), hint="tuning_results(name) has what the trials found until then")
    return _results(progress)


def tuning_results(name: str) -> TuningResults:
    """Return what the trials of a tuning job have found so far, whether or not it has ended.

    Raises:
        TrainingFailed: no trial has a validation loss.
        AwsError: there is no such job, or AWS refused.
    """
    return _results(_look(name))


def _results(progress: TuningProgress) -> TuningResults:
    best = progress.best
    if best is None:
        raise TrainingFailed(_failure(progress), hint="no trial printed a validation loss")
    return TuningResults(progress.name, progress.trials, best)


def _failure(progress: TuningProgress) -> str:
    why = [masked(progress.description.get("FailureReason", ""))]
    why += list(dict.fromkeys(trial.failure for trial in progress.trials if trial.failure))[:3]
    told = "".join(f"\n  {reason}" for reason in why if reason)
    return f"tuning job {progress.name} is {progress.status} after {len(progress.trials)} trials{told}"


def stop_tuning(name: str) -> None:
    """Ask a running tuning job and its trials to stop; does nothing when it has ended or is gone.

    Raises:
        AwsError: AWS refused.
    """
    with explained(f"stopping tuning job {name}"), gone_is_fine():
        description = client("sagemaker").describe_hyper_parameter_tuning_job(HyperParameterTuningJobName=name)
        if description["HyperParameterTuningJobStatus"] == "InProgress":
            client("sagemaker").stop_hyper_parameter_tuning_job(HyperParameterTuningJobName=name)


def tuning_exists(name: str) -> bool:
    """Tell whether there is a tuning job of that name, in whatever state.

    Raises:
        AwsError: AWS refused.
    """
    with explained(f"looking at tuning job {name}"), gone_is_fine():
        client("sagemaker").describe_hyper_parameter_tuning_job(HyperParameterTuningJobName=name)
        return True
    return False


def delete_tuning(name: str) -> None:
    """Delete a tuning job with its trials and their log streams, stopping it first; succeeds when it is already gone.

    SageMaker deletes the tuning job's entry only. The trials go first, so that an interrupted deletion can be repeated.

    Raises:
        AwsError: AWS refused, or the job did not stop and go within half an hour.
    """
    stop_tuning(name)
    with explained(f"deleting tuning job {name}"), gone_is_fine():
        _await_end(name)
        for trial in list_trials(name):
            delete_training(trial.name)
        client("sagemaker").delete_hyper_parameter_tuning_job(HyperParameterTuningJobName=name)
        _await_end(name, gone=True)


def _await_end(name: str, *, gone: bool = False) -> None:
    """Wait until the job has ended, or until SageMaker does not find it, which botocore raises."""
    deadline = time.monotonic() + _STOP_SECONDS
    while time.monotonic() < deadline:
        answer = client("sagemaker").describe_hyper_parameter_tuning_job(HyperParameterTuningJobName=name)
        status = answer["HyperParameterTuningJobStatus"]
        if status in ENDED and not gone:
            return
        time.sleep(_STOP_POLL_SECONDS)
    raise AwsError(f"tuning job {name} is still {status} after {_STOP_SECONDS:.0f} s")
