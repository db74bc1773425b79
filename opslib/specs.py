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


def _require(condition: bool, message: str, hint: str = "") -> None:
    if not condition:
        raise ConfigurationError(message, hint=hint)


@dataclass(frozen=True)
class TrainingSpec:
    """How the head is trained; each field is the hyperparameter of the same name in `hpo.py`.

    `learning_rate` is Adam's; `patience` is the number of epochs without a better validation loss after which
    training stops; `views` is the number of views of each training photo (1: the centre view only).
    """

    backbone: str = "resnet50"
    epochs: int = 40
    batch_size: int = 32
    learning_rate: float = 5e-4
    patience: int = 5
    views: int = 2
    seed: int = 0

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
        _require(0 <= self.seed < 2**32, f"seed is {self.seed}; it must be from 0 to 2**32 - 1")

    def hyperparameters(self) -> dict[str, str]:
        """Return the fields as SageMaker hyperparameters: strings, in the order of their names."""
        return {name: str(value) for name, value in sorted(asdict(self).items())}


@dataclass(frozen=True)
class JobSpec:
    """The machines of a training job: type, count, disk in GiB and the longest run in seconds."""

    instance_type: str = "ml.m5.xlarge"
    instance_count: int = 1
    volume_gib: int = 30
    max_run_seconds: int = 3600

    def __post_init__(self) -> None:
        """Refuse what CreateTrainingJob would refuse, before anything is created."""
        _require(
            self.instance_type.startswith("ml."),
            f"instance_type is {self.instance_type!r}",
            "SageMaker instance types begin with 'ml.', e.g. ml.m5.xlarge",
        )
        _require(
            self.instance_count == 1,
            f"instance_count is {self.instance_count}; hpo.py trains on one instance",
            "without a distributed launcher every instance would train the same model and send its own bill",
        )
        _require(self.volume_gib >= 1, f"volume_gib is {self.volume_gib}; it must be at least 1")
        _require(self.max_run_seconds >= 1, f"max_run_seconds is {self.max_run_seconds}; it must be at least 1")


@dataclass(frozen=True)
class EndpointSpec:
    """An endpoint of one production variant: instance type and count, and the hosts that photos may be fetched from.

    `url_hosts` is empty by default: the model then answers 403 to `{"url": ...}`.
    """

    instance_type: str = "ml.m5.large"
    instance_count: int = 1
    url_hosts: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        """Refuse what CreateEndpointConfig would refuse, before anything is created."""
        _require(
            self.instance_type.startswith("ml."),
            f"instance_type is {self.instance_type!r}",
            "SageMaker instance types begin with 'ml.', e.g. ml.m5.large",
        )
        _require(self.instance_count >= 1, f"instance_count is {self.instance_count}; it must be at least 1")


@dataclass(frozen=True)
class FunctionSpec:
    """A Lambda function: time-out in seconds, memory in MB, and its reserved concurrency (None: not reserved)."""

    timeout_seconds: int = 30
    memory_mb: int = 256
    reserved_concurrency: int | None = None

    def __post_init__(self) -> None:
        """Refuse what CreateFunction would refuse, before anything is created."""
        _require(1 <= self.timeout_seconds <= 900, f"timeout_seconds is {self.timeout_seconds}; Lambda takes 1 to 900")
        _require(128 <= self.memory_mb <= 10240, f"memory_mb is {self.memory_mb}; Lambda takes 128 to 10240")
        _require(
            self.reserved_concurrency is None or self.reserved_concurrency >= 0,
            f"reserved_concurrency is {self.reserved_concurrency}; it must be 0 or more",
        )
