"""What AWS refuses of a CreateHyperParameterTuningJob request, and the training jobs that one asks for."""

import secrets
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from opslib.rehearsal.calls import ServiceError
from opslib.rehearsal.training.job import TERMINAL
from opslib.rehearsal.training.program import OBJECTIVE
from opslib.rehearsal.tuning.job import TuningJob
from opslib.rehearsal.tuning.ranges import Range, combinations, names_of, read_ranges

MAX_EPOCHS = 20_000
_EPOCHS = ("epochs", "numepochs", "n-epochs", "n_epochs", "num_epochs")
_PASSED_ON = (
    "AlgorithmSpecification", "RoleArn", "InputDataConfig", "VpcConfig", "OutputDataConfig", "ResourceConfig",
    "StoppingCondition", "EnableNetworkIsolation", "EnableInterContainerTrafficEncryption",
    "EnableManagedSpotTraining", "CheckpointConfig", "RetryStrategy", "Environment",
)  # fmt: skip


def _refusal(message: str) -> ServiceError:
    return ServiceError("ValidationException", message)


def require_rehearsable(params: Mapping[str, Any]) -> None:
    """Refuse what AWS can do and the rehearsal cannot.

    Raises:
        ServiceError: NotImplemented, or ValidationException when there is no training job definition at all.
    """
    automatic = params["HyperParameterTuningJobConfig"].get("ParameterRanges", {}).get("AutoParameters")
    if params.get("Autotune", {}).get("Mode") == "Enabled" or automatic:
        raise ServiceError("NotImplemented", "Autotune cannot be rehearsed", status=501)
    if "TrainingJobDefinitions" in params:
        raise ServiceError("NotImplemented", "several training job definitions cannot be rehearsed", status=501)
    if "TrainingJobDefinition" not in params:
        raise _refusal("A training job definition is required: TrainingJobDefinition.")


def require_valid(params: Mapping[str, Any]) -> list[Range]:
    """Refuse a request that AWS would; return the ranges to search.

    Raises:
        ServiceError: ValidationException.
    """
    config, definition = params["HyperParameterTuningJobConfig"], params["TrainingJobDefinition"]
    _require_objective(config, definition)
    ranges = read_ranges(config.get("ParameterRanges", {}))
    static = definition.get("StaticHyperParameters", {})
    both = sorted(one.name for one in ranges if one.name in static)
    if both:
        raise _refusal(f"Hyperparameters can be either static or tuned, not both: {both}.")
    _require_counts(config, ranges)
    _require_strategy(config, definition)
    return ranges


def _require_objective(config: Mapping[str, Any], definition: Mapping[str, Any]) -> None:
    if "HyperParameterTuningJobObjective" not in config:
        raise _refusal("A hyperparameter tuning job objective is required.")
    metrics = definition["AlgorithmSpecification"].get("MetricDefinitions", [])
    if config["HyperParameterTuningJobObjective"]["MetricName"] not in [metric["Name"] for metric in metrics]:
        raise _refusal(
            "A metric is required for this hyperparameter tuning job objective. Provide a metric in the metric "
            "definitions."
        )


def _require_counts(config: Mapping[str, Any], ranges: Sequence[Range]) -> None:
    count = config["ResourceLimits"].get("MaxNumberOfTrainingJobs")
    total = combinations(list(ranges))
    if config["Strategy"] == "Grid":
        numbers = [one.name for one in ranges if one.choices is None]
        if numbers:
            raise _refusal(f"The Grid strategy supports categorical hyperparameters only, not {numbers}.")
        if count is not None and count != total:
            raise _refusal(
                f"The Grid strategy tries every combination: MaxNumberOfTrainingJobs [{count}] must be left out or "
                f"equal the number of combinations [{total:.0f}]."
            )
        return
    if count is None:
        raise _refusal("MaxNumberOfTrainingJobs is required for every strategy but Grid.")
    if total < count:
        raise _refusal(
            "You don't have enough combinations of hyperparameter ranges. The total number of hyperparameter "
            f"combinations for the provided ranges [{total}] must be equal or greater than the value of "
            f"MaxNumberOfJobs, [{count}]. Provide additional ranges."
        )


def _require_strategy(config: Mapping[str, Any], definition: Mapping[str, Any]) -> None:
    if config["Strategy"] == "Hyperband":
        if config.get("TrainingJobEarlyStoppingType", "Off") != "Off":
            raise _refusal("TrainingJobEarlyStoppingType must be Off for the Hyperband strategy.")
        epochs_of_hyperband(config, definition)
    elif config.get("StrategyConfig", {}).get("HyperbandStrategyConfig") is not None:
        raise _refusal(f"HyperbandStrategyConfig is not supported for the {config['Strategy']} strategy.")


def epochs_of_hyperband(config: Mapping[str, Any], definition: Mapping[str, Any]) -> tuple[int, int]:
    """Return the least and the most epochs of a trial; (1, 1) for other strategies.

    Raises:
        ServiceError: ValidationException; nothing tells the most, or the two are no range.
    """
    if config["Strategy"] != "Hyperband":
        return 1, 1
    given = config.get("StrategyConfig", {}).get("HyperbandStrategyConfig", {})
    static = definition.get("StaticHyperParameters", {})
    named = next((static[name] for name in _EPOCHS if name in static), "").strip('"')
    most = given.get("MaxResource", int(named) if named.isdecimal() else 0)
    least = given.get("MinResource", 1)
    if not most:
        raise _refusal(f"MaxResource is required for Hyperband when no hyperparameter tells it: {', '.join(_EPOCHS)}.")
    if not least < most <= MAX_EPOCHS:
        raise _refusal(f"MinResource [{least}] must be less than MaxResource [{most}], at most {MAX_EPOCHS}.")
    return least, most


def require_parents(params: Mapping[str, Any], jobs: Mapping[str, TuningJob]) -> list[TuningJob]:
    """Return the tuning jobs that a request starts from.

    Raises:
        ServiceError: ValidationException; a parent is missing, still runs, or searched for something else.
    """
    start = params.get("WarmStartConfig", {})
    names = [one.get("HyperParameterTuningJobName", "") for one in start.get("ParentHyperParameterTuningJobs", ())]
    missing = [name for name in names if name not in jobs]
    if missing:
        raise _refusal(f"Parent hyperparameter tuning jobs that do not exist: {missing}.")
    for parent in (jobs[name] for name in names):
        _require_parent(parent, params, start["WarmStartType"])
    return [jobs[name] for name in names]


def _require_parent(parent: TuningJob, params: Mapping[str, Any], kind: str) -> None:
    config, definition = params["HyperParameterTuningJobConfig"], params["TrainingJobDefinition"]
    if parent.status not in TERMINAL:
        raise _refusal(
            f"Parent hyperparameter tuning job {parent.name} is in status {parent.status}; it must have ended."
        )
    if parent.objective != config["HyperParameterTuningJobObjective"]:
        raise _refusal(f"The objective must be the same as that of the parent hyperparameter tuning job {parent.name}.")
    if _all_names(config, definition) != _all_names(parent.config, parent.definition):
        raise _refusal(
            "The set of tunable plus static HyperParameter names is not the same across current and parent tuning "
            "jobs. Please ensure this set is constant when warm starting. Note that previously static HyperParameters "
            "can be tuned in warm start jobs and vice versa."
        )
    if kind == "IdenticalDataAndAlgorithm":
        image = definition["AlgorithmSpecification"].get("TrainingImage")
        if parent.definition["AlgorithmSpecification"].get("TrainingImage") != image or _data(
            parent.definition
        ) != _data(definition):
            raise _refusal(f"Input data and training image must be those of the parent tuning job {parent.name}.")


def _all_names(config: Mapping[str, Any], definition: Mapping[str, Any]) -> set[str]:
    return {*names_of(config.get("ParameterRanges", {})), *definition.get("StaticHyperParameters", {})}


def _data(definition: Mapping[str, Any]) -> dict[str, Any]:
    """Return the channels, without the one in which the SDK ships its own drivers to a new place each time."""
    channels = definition.get("InputDataConfig", [])
    return {one["ChannelName"]: one for one in channels if one["ChannelName"] != "sm_drivers"}


def training_request(
    params: Mapping[str, Any], number: int, values: Mapping[str, str], tags: Iterable[Mapping[str, str]]
) -> dict[str, Any]:
    """Return the CreateTrainingJob request of trial `number` (from 1)."""
    definition = params["TrainingJobDefinition"]
    request = {name: definition[name] for name in _PASSED_ON if name in definition}
    resources = definition.get("HyperParameterTuningResourceConfig", {})
    if resources and "ResourceConfig" not in request:
        first = {**resources, **next(iter(resources.get("InstanceConfigs", ())), {})}
        names = ("InstanceType", "InstanceCount", "VolumeSizeInGB", "VolumeKmsKeyId")
        request["ResourceConfig"] = {name: first[name] for name in names if name in first}
    objective = params["HyperParameterTuningJobConfig"]["HyperParameterTuningJobObjective"]["MetricName"]
    return request | {
        "TrainingJobName": f"{params['HyperParameterTuningJobName']}-{number:03}-{secrets.token_hex(4)}",
        "HyperParameters": {**definition.get("StaticHyperParameters", {}), **values, OBJECTIVE: objective},
        "Tags": [dict(tag) for tag in tags],
    }
