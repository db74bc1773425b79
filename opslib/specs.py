"""What to train, on what, and how to serve it: frozen dataclasses, checked where they are written.

Both sides read this module: `opslib.aws` sends a specification, `hpo.py` receives it.
"""

import re
from dataclasses import asdict, dataclass, field

from opslib.errors import ConfigurationError

OBJECTIVE_METRIC = "valid:loss"
"""The number that tuning minimises: mean cross-entropy per validation photo, in nats."""

METRIC_REGEXES: dict[str, str] = {
    "train:loss": r"train_loss=([0-9.eE+-]+|nan|inf)",
    "train:accuracy": r"train_accuracy=([0-9.]+)",
    "valid:loss": r"valid_loss=([0-9.eE+-]+|nan|inf)",
    "valid:accuracy": r"valid_accuracy=([0-9.]+)",
    "test:accuracy": r"test_accuracy=([0-9.]+)",
    "test:top5": r"test_top5=([0-9.]+)",
}
"""SageMaker metric name to the regular expression that finds it in the lines that `hpo.py` prints."""

CHANNEL = "training"
"""Name of the one input channel; it holds train/, valid/ and test/ (SM_CHANNEL_TRAINING in the container)."""


DISTRIBUTIONS = ("FullyReplicated", "ShardedByS3Key")
"""How SageMaker gives a channel's objects to several hosts: all to each, or each to one."""

CONTAINERS = ("ray", "pytorch")
"""AWS's images for inference: the Ray Serve image, and the PyTorch image, which ends at PyTorch 2.6."""

SHIFTS = ("all_at_once", "canary", "linear")
"""How UpdateEndpoint moves traffic to new instances."""

STRATEGIES = ("Bayesian", "Random", "Hyperband", "Grid")
"""How a tuning job chooses its trials."""


def _require(condition: bool, message: str, hint: str = "") -> None:
    if not condition:
        raise ConfigurationError(message, hint=hint)


def _require_sagemaker_type(instance_type: str) -> None:
    _require(
        instance_type.startswith("ml."),
        f"instance_type is {instance_type!r}",
        "SageMaker instance types begin with 'ml.', e.g. ml.m5.xlarge",
    )


@dataclass(frozen=True)
class TrainingSpec:
    """How the head is trained; each field is the hyperparameter of the same name in `hpo.py`.

    `learning_rate` is Adam's; `patience` is the number of epochs without a better validation loss after which
    training stops; `views` is the number of views of each training photo: 1 is its centre, every further one a random
    crop, which helps where classes have few photos (8 a breed) and not where they have hundreds; `unfreeze` is the
    number of the backbone's last stages that are fine-tuned with the head. `calibration_photos`, e.g. 128, makes an
    int8 model on so many training photos, which is kept if it costs at most half a point of accuracy (it needs nncf).
    """

    backbone: str = "resnet50"
    epochs: int = 40
    batch_size: int = 32
    learning_rate: float = 5e-4
    patience: int = 5
    views: int = 1
    seed: int = 0
    unfreeze: int = 0
    calibration_photos: int = 0

    def __post_init__(self) -> None:
        """Refuse values that cannot train."""
        _require(
            # A quote in a hyperparameter breaks the file of variables that the SageMaker SDK writes in the container.
            re.fullmatch(r"[\w./:-]+", self.backbone) is not None,
            f"backbone is {self.backbone!r}",
            "name a torchvision or timm model, e.g. resnet50",
        )
        _require(self.epochs >= 1, f"epochs is {self.epochs}; it must be at least 1")
        _require(self.batch_size >= 1, f"batch_size is {self.batch_size}; it must be at least 1")
        _require(0 < self.learning_rate < float("inf"), f"learning_rate is {self.learning_rate}; it must be positive")
        _require(self.patience >= 1, f"patience is {self.patience}; it must be at least 1 epoch")
        _require(self.views >= 1, f"views is {self.views}; it must be at least 1 per photo")
        _require(self.unfreeze >= 0, f"unfreeze is {self.unfreeze}; it must be 0 (frozen) or a number of stages")
        _require(
            self.calibration_photos >= 0,
            f"calibration_photos is {self.calibration_photos}; it must be 0 (no int8) or a number of photos",
        )
        _require(0 <= self.seed < 2**32, f"seed is {self.seed}; it must be from 0 to 2**32 - 1")

    def hyperparameters(self) -> dict[str, str]:
        """Return the fields as SageMaker hyperparameters: strings, in the order of their names."""
        return {name: str(value) for name, value in sorted(asdict(self).items())}


@dataclass(frozen=True)
class JobSpec:
    """The machines of a training job.

    `instance_count` instances train one model together; each gets all photos (`FullyReplicated`) or its part of them
    (`ShardedByS3Key`). `spot` asks for managed spot capacity, which costs less and may be interrupted: the job then
    waits and goes on from its checkpoint, `max_wait_seconds` in all (None: twice `max_run_seconds`).
    """

    instance_type: str = "ml.m5.xlarge"
    instance_count: int = 1
    volume_gib: int = 30
    max_run_seconds: int = 3600
    spot: bool = False
    max_wait_seconds: int | None = None
    distribution: str = "FullyReplicated"

    def __post_init__(self) -> None:
        """Refuse what CreateTrainingJob would refuse, before anything is created."""
        _require_sagemaker_type(self.instance_type)
        _require(self.instance_count >= 1, f"instance_count is {self.instance_count}; it must be at least 1")
        _require(self.volume_gib >= 1, f"volume_gib is {self.volume_gib}; it must be at least 1")
        _require(self.max_run_seconds >= 1, f"max_run_seconds is {self.max_run_seconds}; it must be at least 1")
        _require(
            self.max_wait_seconds is None or (self.spot and self.max_wait_seconds >= self.max_run_seconds),
            f"max_wait_seconds is {self.max_wait_seconds}",
            "only a spot job waits, and at least max_run_seconds: the wait includes the run",
        )
        _require(
            self.distribution in DISTRIBUTIONS,
            f"distribution is {self.distribution!r}",
            f"it is one of {', '.join(DISTRIBUTIONS)}",
        )

    @property
    def longest_wait_seconds(self) -> int:
        """MaxWaitTimeInSeconds of a spot job: its runs and the waiting between them."""
        return self.max_wait_seconds or 2 * self.max_run_seconds


@dataclass(frozen=True)
class TuningSpec:
    """What a tuning job searches, and for how long: the lowest validation loss per photo, never the test split.

    `learning_rate` is a range that is searched by its logarithm, `batch_size` a choice. `Grid` tries every combination
    of choices, so it needs the learning rates as `learning_rate_choices`. With `early_stopping`, SageMaker ends
    trials that are worse than the median of the others. `warm_start_from` names former tuning jobs to learn from.
    """

    strategy: str = "Bayesian"
    max_jobs: int = 12
    max_parallel_jobs: int = 2
    learning_rate: tuple[float, float] = (1e-4, 1e-2)
    learning_rate_choices: tuple[float, ...] = ()
    batch_size: tuple[int, ...] = (16, 32, 64, 128)
    early_stopping: bool = True
    seed: int = 0
    warm_start_from: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what CreateHyperParameterTuningJob would refuse, and searches that cannot find anything."""
        _require(
            self.strategy in STRATEGIES,
            f"strategy is {self.strategy!r}",
            f"it is one of {', '.join(STRATEGIES)}",
        )
        _require(self.max_jobs >= 1, f"max_jobs is {self.max_jobs}; it must be at least 1")
        _require(
            1 <= self.max_parallel_jobs <= self.max_jobs,
            f"max_parallel_jobs is {self.max_parallel_jobs}; it must be from 1 to max_jobs ({self.max_jobs})",
        )
        low, high = self.learning_rate
        _require(0 < low < high < float("inf"), f"learning_rate is {self.learning_rate}; 0 < low < high is needed")
        _require(
            len(self.batch_size) > 0 and min(self.batch_size) >= 1,
            f"batch_size is {self.batch_size}; name at least one size, from 1",
        )
        _require(
            all(0 < rate < float("inf") for rate in self.learning_rate_choices),
            f"learning_rate_choices is {self.learning_rate_choices}; each must be positive",
        )
        _require(
            (self.strategy == "Grid") == bool(self.learning_rate_choices),
            f"strategy {self.strategy} with learning_rate_choices {self.learning_rate_choices}",
            "Grid needs learning_rate_choices=(1e-4, 3e-4, ...), the other strategies search the range learning_rate",
        )
        combinations = len(self.learning_rate_choices) * len(self.batch_size)
        _require(
            self.strategy != "Grid" or self.max_jobs == combinations,
            f"max_jobs is {self.max_jobs}, but the grid has {combinations} combinations",
            f"set max_jobs={combinations}: SageMaker tries each once",
        )
        _require(len(self.warm_start_from) <= 5, "warm_start_from names more than 5 tuning jobs, SageMaker's limit")
        _require(0 <= self.seed < 2**31, f"seed is {self.seed}; SageMaker takes 0 to 2**31 - 1")


@dataclass(frozen=True)
class InstanceSpec:
    """An EC2 box that trains and then ends itself: type, disk in GiB, longest life in minutes, spot or on demand."""

    instance_type: str = "m5.xlarge"
    volume_gib: int = 40
    max_minutes: int = 60
    spot: bool = False

    def __post_init__(self) -> None:
        """Refuse what RunInstances would refuse, before anything is created."""
        _require(
            re.fullmatch(r"[a-z][a-z0-9-]*\.[a-z0-9-]+", self.instance_type) is not None
            and not self.instance_type.startswith("ml."),
            f"instance_type is {self.instance_type!r}",
            "EC2's types have no 'ml.' in front, e.g. m5.xlarge",
        )
        _require(8 <= self.volume_gib <= 16384, f"volume_gib is {self.volume_gib}; it must be from 8 to 16384")
        _require(1 <= self.max_minutes <= 1440, f"max_minutes is {self.max_minutes}; it must be from 1 to 1440 (a day)")


@dataclass(frozen=True)
class EndpointSpec:
    """An endpoint of one production variant: instance type and count, hosts that photos may come from, and image.

    `url_hosts` is empty by default: the model then answers 403 to `{"url": ...}`. `container` is AWS's image: `ray`
    (Ray Serve) or `pytorch` (the PyTorch image, which ends at PyTorch 2.6).
    """

    instance_type: str = "ml.m5.large"
    instance_count: int = 1
    url_hosts: tuple[str, ...] = field(default=())
    container: str = "ray"

    def __post_init__(self) -> None:
        """Refuse what CreateEndpointConfig would refuse, before anything is created."""
        _require_sagemaker_type(self.instance_type)
        _require(self.instance_count >= 1, f"instance_count is {self.instance_count}; it must be at least 1")
        _require(
            self.container in CONTAINERS,
            f"container is {self.container!r}",
            f"it is one of {', '.join(CONTAINERS)}",
        )


@dataclass(frozen=True)
class ScalingSpec:
    """How many instances a variant may have, and the traffic that each is meant to take.

    `target_invocations` is SageMakerVariantInvocationsPerInstance: requests per instance and minute. A cooldown is the
    seconds after a scaling activity in which no other of its direction begins; the metric comes once a minute, so
    cooldowns below 60 s never bind.
    """

    min_instances: int = 1
    max_instances: int = 5
    target_invocations: float = 30.0
    scale_out_cooldown_seconds: int = 30
    scale_in_cooldown_seconds: int = 30

    def __post_init__(self) -> None:
        """Refuse what PutScalingPolicy would refuse, before anything is created."""
        _require(self.min_instances >= 1, f"min_instances is {self.min_instances}; it must be at least 1")
        _require(
            self.max_instances >= self.min_instances,
            f"max_instances is {self.max_instances}, below min_instances ({self.min_instances})",
        )
        _require(
            0 < self.target_invocations < float("inf"),
            f"target_invocations is {self.target_invocations}; it must be positive",
        )
        for name in ("scale_out_cooldown_seconds", "scale_in_cooldown_seconds"):
            _require(getattr(self, name) >= 0, f"{name} is {getattr(self, name)}; it must be 0 or more")


@dataclass(frozen=True)
class ShiftSpec:
    """How the traffic of an endpoint goes over to new instances.

    `kind` is `all_at_once`, `canary` (`share_percent` of the traffic first, the rest after `wait_seconds`) or `linear`
    (`share_percent` more at every step, `wait_seconds` apart). While `alarms`, CloudWatch alarms by name, are quiet it
    goes on; if one of them rings, or after `max_minutes`, everything goes back to the old instances.
    """

    kind: str = "canary"
    share_percent: int = 10
    wait_seconds: int = 60
    alarms: tuple[str, ...] = ()
    max_minutes: int = 30

    def __post_init__(self) -> None:
        """Refuse what UpdateEndpoint would refuse."""
        _require(self.kind in SHIFTS, f"kind is {self.kind!r}", f"it is one of {', '.join(SHIFTS)}")
        largest = {"canary": 50, "linear": 50}.get(self.kind, 100)
        _require(
            1 <= self.share_percent <= largest,
            f"share_percent is {self.share_percent}; a {self.kind} deployment takes 1 to {largest}",
        )
        _require(0 <= self.wait_seconds <= 3600, f"wait_seconds is {self.wait_seconds}; SageMaker takes 0 to 3600")
        _require(len(self.alarms) <= 10, f"{len(self.alarms)} alarms are named; SageMaker watches at most 10")
        _require(10 <= self.max_minutes <= 480, f"max_minutes is {self.max_minutes}; SageMaker takes 10 to 480")


@dataclass(frozen=True)
class FunctionSpec:
    """A Lambda function: time-out in seconds, memory in MB, and its concurrency.

    `reserved_concurrency` is free, and a floor and a ceiling at once (None: not reserved). `provisioned_concurrency`
    is paid for by the second: that many environments are kept ready (None: none).
    """

    timeout_seconds: int = 30
    memory_mb: int = 256
    reserved_concurrency: int | None = None
    provisioned_concurrency: int | None = None

    def __post_init__(self) -> None:
        """Refuse what CreateFunction would refuse, before anything is created."""
        _require(1 <= self.timeout_seconds <= 900, f"timeout_seconds is {self.timeout_seconds}; Lambda takes 1 to 900")
        _require(128 <= self.memory_mb <= 10240, f"memory_mb is {self.memory_mb}; Lambda takes 128 to 10240")
        _require(
            self.reserved_concurrency is None or self.reserved_concurrency >= 0,
            f"reserved_concurrency is {self.reserved_concurrency}; it must be 0 or more",
        )
        provisioned, reserved = self.provisioned_concurrency, self.reserved_concurrency
        _require(
            provisioned is None or provisioned >= 1, f"provisioned_concurrency is {provisioned}; it must be 1 or more"
        )
        _require(
            provisioned is None or reserved is None or provisioned <= reserved,
            f"provisioned_concurrency is {provisioned}, above reserved_concurrency ({reserved})",
            "Lambda provisions within the reservation",
        )
