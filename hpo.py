"""Train a photo classifier: what SageMaker runs, alone or many times in a tuning job.

    python hpo.py --data photos/sample-0 --model_dir TrainedModels/sample --backbone efficientnet_lite0
    python hpo.py --data photos --model_dir TrainedModels/dogs --learning_rate 0.0005 --batch_size 64 --epochs 30
    torchrun --nproc_per_node 2 hpo.py --data photos --model_dir TrainedModels/dogs

In a training job the folders come from SageMaker's variables (SM_CHANNEL_TRAINING, SM_MODEL_DIR, SM_OUTPUT_DATA_DIR),
and every hyperparameter arrives as `--name value`. It leaves, in the model folder, model.pth, model.json and code/ (all
that an endpoint needs), and in the output folder metrics.jsonl (a row per epoch) and report.json (the test photos).
"""

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from opslib.bundle import backbone_requirements, copy_serving_code
from opslib.errors import ConfigurationError, HostLost, OpslibError
from opslib.specs import TrainingSpec

if TYPE_CHECKING:
    from opslib.vision.data import Photos
    from opslib.vision.distributed import Ranks
    from opslib.vision.training import TrainedModel

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
    add("--calibration_photos", type=int, default=spec.calibration_photos, help="for int8 (default %(default)s: none)")
    add("--backbone", default=spec.backbone, help="a torchvision or timm model (default %(default)s)")
    add("--weights", type=Path, help="state-dict file of the backbone, in place of a download")
    add("--num_workers", type=int, default=0, help="cores to use; 0: all of them (default %(default)s)")
    add("--checkpoint_dir", type=Path, help="folder of features and training state; a restarted job goes on from it")
    for name, variable, text in (
        ("--data", "SM_CHANNEL_TRAINING", "folder with train/, valid/ and test/, or with a folder for each class"),
        ("--model_dir", "SM_MODEL_DIR", "folder for the model"),
    ):
        default = environment.get(variable)
        add(name, type=Path, default=default, required=default is None, help=text)
    output_dir = environment.get("SM_OUTPUT_DATA_DIR")
    add("--output_dir", type=Path, default=output_dir, help="folder for the metrics (default: the model's)")
    return parser


def run(arguments: argparse.Namespace, environment: Mapping[str, str]) -> None:
    """Train, test, and write everything that the job leaves behind; of several processes, rank 0 writes.

    Raises:
        OpslibError: The photos, the backbone or an argument cannot be used, or another process is gone.
    """
    if arguments.num_workers < 0:
        raise ConfigurationError(f"num_workers is {arguments.num_workers}", hint="0 takes all cores")
    spec = TrainingSpec(**{field.name: getattr(arguments, field.name) for field in fields(TrainingSpec)})
    # torch takes seconds to import: a wrong argument should not have to wait for it.
    from opslib.vision.distributed import joined_ranks
    from opslib.vision.settings import cache_home
    from opslib.vision.training import Surroundings, train

    cache = (arguments.checkpoint_dir or cache_home(environment)) / "features"
    output_dir = arguments.output_dir or arguments.model_dir
    with joined_ranks(environment, on_lost=partial(_fail, environment=environment, is_consequence=True)) as ranks:
        for folder in (output_dir, arguments.model_dir):  # hours of training should not end at a read-only folder
            folder.mkdir(parents=True, exist_ok=True)
        with (output_dir / "metrics.jsonl").open("w", encoding="utf-8") if ranks.is_writer else nullcontext() as rows:
            around = Surroundings(
                weights=arguments.weights,
                workers=arguments.num_workers,
                ranks=ranks,
                cache=cache,
                checkpoints=arguments.checkpoint_dir,
                log=_print_line,
                on_epoch=lambda metrics: print(json.dumps(asdict(metrics)), file=rows, flush=True),
            )
            trained = train(open_part(arguments.data, spec.seed, ranks), spec, around)
        if ranks.is_writer:
            write_results(trained, spec, arguments.model_dir, output_dir)
        elif "SM_OUTPUT_DATA_DIR" in environment and environment.get("LOCAL_RANK") == "0":
            # SageMaker packs the output folder of every host, and one may take the place of another's: all are equal.
            write_history(trained, output_dir)
            write_report(trained, spec, output_dir)


def write_history(trained: "TrainedModel", output_dir: Path) -> None:
    """Write metrics.jsonl at once: a row for each epoch."""
    rows = "".join(json.dumps(asdict(metrics)) + "\n" for metrics in trained.history)
    (output_dir / "metrics.jsonl").write_text(rows, encoding="utf-8")


def write_report(trained: "TrainedModel", spec: TrainingSpec, output_dir: Path) -> None:
    """Write report.json."""
    from opslib.vision.artifact import write_json

    report = {
        **trained.report,
        "backbone": spec.backbone,
        "photos": trained.photos.counts,
        "metrics": trained.metrics,
        "best": asdict(trained.best),
        "epochs": len(trained.history),
        "seconds": trained.seconds,
        "world_size": len(trained.ranks),
        "ranks": trained.ranks,
    }
    write_json(output_dir / "report.json", report)


def write_results(trained: "TrainedModel", spec: TrainingSpec, model_dir: Path, output_dir: Path) -> None:
    """Write report.json, and a model folder that can be deployed as it is."""
    from opslib.vision.artifact import ModelDescription, save_artifact
    from opslib.vision.exporting import export_classifier
    from opslib.vision.quantising import Calibration, quantise_export

    write_report(trained, spec, output_dir)
    transform = trained.backbone.transform
    export = export_classifier(model_dir, trained.classifier, transform)
    if export and spec.calibration_photos:
        photos = trained.photos.files
        calibration = Calibration(photos["train"], photos["valid"], spec.calibration_photos)
        export = quantise_export(model_dir, export, transform, calibration, _print_line)
    description = ModelDescription(
        spec.backbone,
        trained.photos.classes,
        transform,
        trained.metrics,
        asdict(spec),
        export.to_dict() if export else None,
    )
    save_artifact(model_dir, trained.classifier, description)
    # The model carries its own code, so that model.tar.gz can be deployed as the job left it.
    copy_serving_code(model_dir, backbone_requirements(spec.backbone, pretrained=False))
    _print_line(f"model in {model_dir}, metrics in {output_dir}")


def open_part(folder: Path, seed: int, ranks: "Ranks") -> "Photos":
    """Open this process's photos, which may be a part of all.

    Splits that are missing are taken from the training photos, but not where others have them: a host without valid/
    may just have got none of it (ShardedByS3Key), and its training photos must stay what they are.

    Raises:
        PhotosError: There are no training photos.
        HostLost: Another process is gone.
    """
    from opslib.vision.data import open_photos

    if ranks.world_size == 1:
        return open_photos(folder, seed=seed)
    part = open_photos(folder, seed=seed, fill=False)
    own = {split for split, count in part.counts.items() if count}
    held = {split for splits in ranks.gather(own) for split in splits}
    return part if own < held else open_photos(folder, seed=seed)


def refuse_unlaunched_hosts(environment: Mapping[str, str]) -> None:
    """Refuse to run on one of several hosts that nobody told of each other.

    Raises:
        ConfigurationError: SM_HOSTS names several hosts, and no launcher set WORLD_SIZE.
    """
    hosts = json.loads(environment.get("SM_HOSTS", "[]"))
    if len(hosts) > 1 and "WORLD_SIZE" not in environment:
        raise ConfigurationError(
            f"hpo.py runs on one of {len(hosts)} hosts, but no launcher has joined them",
            hint="each would train the same model and send its own bill: use Torchrun, or set instance_count to 1",
        )


def write_failure(message: str, environment: Mapping[str, str], *, is_consequence: bool = False) -> None:
    """Write the reason where SageMaker reads it; outside a training container there is no such place.

    A consequence (another process of this host ended, and so must this one) never hides the reason that came first.
    """
    folder = Path(environment.get("SM_OUTPUT_DIR", FAILURE_FOLDER))
    if folder.is_dir():
        with (
            suppress(FileExistsError),
            (folder / "failure").open("x" if is_consequence else "w", encoding="utf-8") as file,
        ):
            file.write(message)


def main(argv: Sequence[str] | None = None) -> int:
    """Run with command-line arguments and return the exit code.

    0; 1 with the reason on stderr and in `failure`; 143 after SIGTERM, when what was done is saved.
    """
    # The threads that decode photos share the cores with OpenMP's, which otherwise spin while they wait:
    # 58 photos/s became 81 on two cores. It must be set before torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        refuse_unlaunched_hosts(os.environ)
        run(build_parser(os.environ).parse_args(argv), os.environ)
    except OpslibError as error:
        _fail(str(error), os.environ, is_consequence=isinstance(error, HostLost))
        return 1
    except OSError as error:
        place = error.filename2 or error.filename
        if place is None:  # not of a file: somebody else's mistake
            write_failure(f"{type(error).__name__}: {error}", os.environ)
            raise
        hint = "the folders of model, output and checkpoints must be writable, with space left on their disk"
        _fail(f"{error.strerror}: {place}\n  hint: {hint}", os.environ, is_consequence=False)
        return 1
    except Exception as error:
        if type(error).__name__ == "Interrupted":  # its module needs torch, which may not have been imported yet
            _print_line("interrupted: what was done is saved, and the same command goes on from there")
            return 143
        write_failure(f"{type(error).__name__}: {error}", os.environ)
        raise
    return 0


def _fail(message: str, environment: Mapping[str, str], *, is_consequence: bool) -> None:
    write_failure(message, environment, is_consequence=is_consequence)
    print(f"error: {message}", file=sys.stderr, flush=True)


def _print_line(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
