"""Train a photo classifier: what SageMaker runs, alone or many times in a tuning job.

    python hpo.py --data photos/sample-0 --model_dir TrainedModels/sample --backbone efficientnet_lite0
    python hpo.py --data photos --model_dir TrainedModels/dogs --learning_rate 0.0005 --batch_size 64 --epochs 30

In a training job the folders come from SageMaker's variables (SM_CHANNEL_TRAINING, SM_MODEL_DIR, SM_OUTPUT_DATA_DIR),
and every hyperparameter arrives as `--name value`. It leaves, in the model folder, model.pth, model.json and code/ (all
that an endpoint needs), and in the output folder metrics.jsonl (a row per epoch) and report.json (the test photos).
"""

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import NoReturn

from opslib.bundle import backbone_requirements, copy_bundle
from opslib.errors import ConfigurationError, OpslibError
from opslib.specs import TrainingSpec

FAILURE_FOLDER = "/opt/ml/output"
"""Where SageMaker looks for the file `failure`; its text becomes the job's FailureReason."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Raise instead of exiting, so that the message reaches the job's FailureReason."""
        raise ConfigurationError(message, hint="python hpo.py --help lists the arguments")


def build_parser(environment: Mapping[str, str]) -> argparse.ArgumentParser:
    """Build the parser; a folder is required unless SageMaker's variable for it is in `environment`."""
    spec = TrainingSpec()
    parser = _Parser(description=(__doc__ or "").partition("\n")[0], allow_abbrev=False)
    add = parser.add_argument
    add("--learning_rate", type=float, default=spec.learning_rate, help="Adam's (default %(default)s)")
    add("--batch_size", type=int, default=spec.batch_size, help="photos per step (default %(default)s)")
    add("--epochs", type=int, default=spec.epochs, help="at most (default %(default)s)")
    add("--patience", type=int, default=spec.patience, help="epochs without a lower valid_loss (default %(default)s)")
    add("--views", type=int, default=spec.views, help="views of each training photo (default %(default)s)")
    add("--seed", type=int, default=spec.seed, help="of the head, the order and the views (default %(default)s)")
    add("--unfreeze", type=int, default=spec.unfreeze, help="last stages to fine-tune (default %(default)s: frozen)")
    add("--backbone", default=spec.backbone, help="a torchvision or timm model (default %(default)s)")
    add("--weights", type=Path, help="state-dict file of the backbone, in place of a download")
    add("--num_workers", type=int, default=0, help="decoding threads; 0: one for every core (default %(default)s)")
    for name, variable, text in (
        ("--data", "SM_CHANNEL_TRAINING", "folder with train/, valid/ and test/, or with a folder for each class"),
        ("--model_dir", "SM_MODEL_DIR", "folder for the model"),
    ):
        default = environment.get(variable)
        add(name, type=Path, default=default, required=default is None, help=text)
    output_dir = environment.get("SM_OUTPUT_DATA_DIR")
    add("--output_dir", type=Path, default=output_dir, help="folder for the metrics (default: the model's)")
    return parser


def run(arguments: argparse.Namespace) -> None:
    """Train, test, and write everything that the job leaves behind.

    Raises:
        OpslibError: The photos, the backbone or an argument cannot be used.
    """
    spec = TrainingSpec(**{field.name: getattr(arguments, field.name) for field in fields(TrainingSpec)})
    # torch takes seconds to import: a wrong argument should not have to wait for it.
    from opslib.vision.artifact import ModelDescription, save_artifact, write_json
    from opslib.vision.data import open_photos
    from opslib.vision.training import train

    photos = open_photos(arguments.data, seed=spec.seed)
    output_dir = arguments.output_dir or arguments.model_dir
    output_dir.mkdir(parents=True, exist_ok=True)
    with (output_dir / "metrics.jsonl").open("w", encoding="utf-8") as rows:
        trained = train(
            photos,
            spec,
            weights=arguments.weights,
            workers=arguments.num_workers,
            log=_print_line,
            on_epoch=lambda metrics: print(json.dumps(asdict(metrics)), file=rows, flush=True),
        )
    report = {
        **trained.report,
        "backbone": spec.backbone,
        "photos": photos.counts,
        "best": asdict(trained.best),
        "epochs": len(trained.history),
        "seconds": trained.seconds,
    }
    write_json(output_dir / "report.json", report)
    metrics = {name: value for name, value in report.items() if name.startswith("test_")}
    description = ModelDescription(
        spec.backbone, photos.classes, trained.backbone.transform, {**asdict(trained.best), **metrics}, asdict(spec)
    )
    save_artifact(arguments.model_dir, trained.classifier, description)
    # The model carries its own code, so that model.tar.gz can be deployed as the job left it.
    copy_bundle(
        arguments.model_dir / "code",
        scripts=("inference.py",),
        requirements=backbone_requirements(spec.backbone, pretrained=False),
    )
    _print_line(f"model in {arguments.model_dir}, metrics in {output_dir}")


def refuse_several_hosts(environment: Mapping[str, str]) -> None:
    """Refuse to run as one of several processes: each would train the same model and overwrite the other's.

    Raises:
        ConfigurationError: SM_HOSTS names several hosts, or a launcher set WORLD_SIZE above 1.
    """
    hosts = json.loads(environment.get("SM_HOSTS", "[]"))
    processes = max(len(hosts), int(environment.get("WORLD_SIZE", "1")))
    if processes > 1:
        raise ConfigurationError(
            f"hpo.py runs as one of {processes} processes, but trains on one instance",
            hint="every instance would train the same model and send its own bill; set instance_count to 1",
        )


def write_failure(message: str, environment: Mapping[str, str]) -> None:
    """Write the reason where SageMaker reads it; outside a training container there is no such place."""
    folder = Path(environment.get("SM_OUTPUT_DIR", FAILURE_FOLDER))
    if folder.is_dir():
        (folder / "failure").write_text(message, encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    """Run with command-line arguments and return the exit code: 0, or 1 with the reason on stderr and in `failure`."""
    # The threads that decode photos share the cores with OpenMP's, which otherwise spin while they wait:
    # 58 photos/s became 81 on two cores. It must be set before torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        refuse_several_hosts(os.environ)
        run(build_parser(os.environ).parse_args(argv))
    except OpslibError as error:
        write_failure(str(error), os.environ)
        print(f"error: {error}", file=sys.stderr)
        return 1
    except Exception as error:
        write_failure(f"{type(error).__name__}: {error}", os.environ)
        raise
    return 0


def _print_line(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
